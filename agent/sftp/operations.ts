// What each request does. The behaviour is that of OpenSSH's sftp-server, whose clients everybody tests with; where
// it differs, a comment says so.
import fs from "node:fs";
import type { Accounts } from "./accounts.ts";
import type { Calls } from "./calls.ts";
import { errnoOf, failureReply, PathError } from "./errors.ts";
import { TRANSFER_THREADS } from "./gate.ts";
import type { DirectoryHandle, FileHandle, HandleTable } from "./handles.ts";
import { longNamePrefix } from "./longname.ts";
import { mountFlags } from "./mounts.ts";
import type { Access } from "./order.ts";
import { absolutePath, childPath, MAX_PATH_BYTES, realPathOfMissing } from "./paths.ts";
import { ReadBuffers } from "./read-buffers.ts";
import {
  type Attributes,
  DATA_HEADER_BYTES,
  type FileName,
  MAX_DATA_BYTES,
  MAX_PACKET_BYTES,
  OPEN_APPEND,
  OPEN_CREATE,
  OPEN_EXCLUSIVE,
  OPEN_READ,
  OPEN_TRUNCATE,
  OPEN_WRITE,
  type Reply,
  type Request,
  STATUS,
} from "./wire.ts";

/** One NAME reply of READDIR: the draft has every implementation take packets of 34,000 bytes. */
const NAMES_BYTES = 32_000;
/** Of an entry beside its name, which it has twice: two lengths, attributes, the long name's columns. */
const NAME_OVERHEAD_BYTES = 110;
/** What a small request may come to hold: its packet, its paths, its reply. */
const SMALL_COST_BYTES = 1_024;
const COPY_BYTES = 1024 * 1024;
/** Account names are read again after this, when a directory is listed. */
const ACCOUNTS_AGE_MS = 10_000;
/** NAME_MAX of every file system in use. */
const MAX_NAME_BYTES = 255;
const MODE_BITS = 0o7777;
const TILDE = 0x7e;
/** errno of a link(2) that this file system, or this file, can't have: rename(2) may still work. */
const NO_LINKS = new Set(["EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EXDEV", "EPERM", "EMLINK"]);

const OK: Reply = { kind: "status", code: STATUS.ok };
const END: Reply = { kind: "status", code: STATUS.eof };
const FAILURE: Reply = { kind: "status", code: STATUS.failure };
const NO_SUCH_FILE = { kind: "status", code: STATUS.noSuchFile } as const;
const BAD_MESSAGE: Reply = { kind: "status", code: STATUS.badMessage };
const UNSUPPORTED: Reply = { kind: "status", code: STATUS.opUnsupported };

export interface OperationsDeps {
  calls: Calls;
  handles: HandleTable;
  accounts: Accounts;
  /** Absolute: where relative paths start. */
  directory: Buffer;
  /** Absolute: what `~` is. */
  home: Buffer;
  /** True once nobody waits for a long operation any more. */
  aborted(): boolean;
}

function openFlags(flags: number): number {
  const { O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_EXCL, O_APPEND } = fs.constants;
  const write = (flags & OPEN_WRITE) !== 0;
  let out = write ? (flags & OPEN_READ ? O_RDWR : O_WRONLY) : O_RDONLY;
  if (flags & OPEN_APPEND) out |= O_APPEND;
  if (flags & OPEN_CREATE) out |= O_CREAT;
  if (flags & OPEN_TRUNCATE) out |= O_TRUNC;
  if (flags & OPEN_EXCLUSIVE) out |= O_EXCL;
  return out;
}

/** One for each read that can run at a time. */
const readBuffers = new ReadBuffers(DATA_HEADER_BYTES + MAX_DATA_BYTES, TRANSFER_THREADS);

const seconds = (ms: number): number => Math.floor(ms / 1000);

function attributesOf(stats: fs.Stats): Attributes {
  return {
    sizeBytes: stats.size,
    owner: { uid: stats.uid, gid: stats.gid },
    permissions: stats.mode,
    // u32 on the wire: what is before 1970 or after 2106 wraps, as with OpenSSH
    times: { accessedAtS: seconds(stats.atimeMs) >>> 0, modifiedAtS: seconds(stats.mtimeMs) >>> 0 },
  };
}

function singleName(path: Uint8Array): Reply {
  return { kind: "names", names: [{ name: path, longName: path, attributes: {} }] };
}

/** @throws {PathError} EINVAL for what lseek(2) would refuse */
function checkedOffset(offset: number): number {
  if (offset > Number.MAX_SAFE_INTEGER) throw new PathError("EINVAL");
  return offset;
}

/** What a request touches, for its place among the others. */
export function accessOf(request: Request, handles: HandleTable): Access {
  switch (request.kind) {
    case "read": {
      const length = Math.min(request.length, MAX_DATA_BYTES);
      return { kind: "read", handle: request.handle, from: request.offset, to: request.offset + length };
    }
    case "write": {
      const { handle, offset, data } = request;
      // Appended: in the order they came, wherever they say. Nobody can ask this of a handle not yet opened.
      if (handles.file(handle)?.append) return { kind: "handle", handle };
      return { kind: "write", handle, from: offset, to: offset + data.length };
    }
    case "close":
    case "fstat":
    case "fsetstat":
    case "readdir":
    case "fsync":
    case "fstatvfs":
      return { kind: "handle", handle: request.handle };
    case "lstat":
    case "stat":
    case "opendir":
    case "realpath":
    case "readlink":
    case "statvfs":
    case "expandPath":
      return { kind: "look" };
    case "open":
      return request.flags & (OPEN_CREATE | OPEN_TRUNCATE) ? { kind: "change" } : { kind: "look" };
    case "setstat":
    case "lsetstat":
    case "mkdir":
    case "remove":
    case "rmdir":
    case "rename":
    case "posixRename":
    case "hardlink":
    case "symlink":
    case "copyData":
      return { kind: "change" };
    case "homeDirectory":
    case "usersGroupsById":
    case "limits":
    case "invalid":
    case "unsupported":
      return { kind: "none" };
  }
}

/** What a request holds in memory until its reply has left, in bytes. */
export function costOf(request: Request): number {
  switch (request.kind) {
    case "read":
      return SMALL_COST_BYTES + Math.min(request.length, MAX_DATA_BYTES);
    case "write":
      return SMALL_COST_BYTES + request.data.length;
    case "readdir":
      return SMALL_COST_BYTES + NAMES_BYTES;
    case "copyData":
      return COPY_BYTES;
    case "usersGroupsById":
      return SMALL_COST_BYTES + 64 * (request.uids.length + request.gids.length);
    default:
      return SMALL_COST_BYTES;
  }
}

export class Operations {
  readonly #deps: OperationsDeps;
  readonly #calls: Calls;
  readonly #handles: HandleTable;
  #accountsReadAtMs = Number.NEGATIVE_INFINITY;
  constructor(deps: OperationsDeps) {
    this.#deps = deps;
    this.#calls = deps.calls;
    this.#handles = deps.handles;
  }

  /** Never rejects: what fails is a status. */
  async run(request: Request): Promise<Reply> {
    try {
      return await this.#perform(request);
    } catch (error) {
      return failureReply(error);
    }
  }

  /** Closes what is still open. */
  async closeAll(): Promise<void> {
    for (const handle of this.#handles.takeAll())
      await (handle.kind === "file"
        ? this.#calls.close(handle.fd)
        : this.#calls.closeDirectory(handle.dir)
      ).catch(() => {}); // an error of a late write-back has nobody to hear it
  }

  #perform(request: Request): Promise<Reply> | Reply {
    const calls = this.#calls;
    switch (request.kind) {
      case "open":
        return this.#open(this.#path(request.path), request.flags, request.attributes);
      case "close":
        return this.#close(request.handle);
      case "read":
        return this.#read(request.handle, request.offset, request.length);
      case "write":
        return this.#write(request.handle, request.offset, request.data);
      case "lstat":
        return this.#attributes(calls.lstat(this.#path(request.path)));
      case "stat":
        return this.#attributes(calls.stat(this.#path(request.path)));
      case "fstat":
        return this.#withFile(request.handle, FAILURE, ({ fd }) => this.#attributes(calls.fstat(fd)));
      case "setstat":
        return this.#setAttributes(request.path, request.attributes);
      case "lsetstat":
        return this.#setOwnAttributes(request.path, request.attributes);
      case "fsetstat":
        return this.#withFile(request.handle, FAILURE, ({ fd }) =>
          this.#setFileAttributes(fd, request.attributes),
        );
      case "opendir":
        return this.#openDirectory(this.#path(request.path));
      case "readdir":
        return this.#readDirectory(request.handle);
      case "remove":
        return this.#done(calls.unlink(this.#path(request.path)));
      case "mkdir":
        return this.#done(
          calls.mkdir(this.#path(request.path), (request.attributes.permissions ?? 0o777) & MODE_BITS),
        );
      case "rmdir":
        return this.#done(calls.rmdir(this.#path(request.path)));
      case "realpath":
        return this.#realPath(request.path.length === 0 ? this.#deps.directory : this.#path(request.path));
      case "rename":
        return this.#rename(this.#path(request.from), this.#path(request.to));
      case "posixRename":
        return this.#done(calls.rename(this.#path(request.from), this.#path(request.to)));
      case "hardlink":
        return this.#done(calls.link(this.#path(request.from), this.#path(request.to)));
      case "readlink":
        return calls.readlink(this.#path(request.path)).then(singleName);
      case "symlink":
        return this.#done(calls.symlink(request.target, this.#path(request.path)));
      case "fsync":
        return this.#withFile(request.handle, NO_SUCH_FILE, ({ fd }) => this.#done(calls.fsync(fd)));
      case "statvfs":
        return this.#fileSystem(this.#path(request.path));
      case "fstatvfs":
        return this.#withFile(request.handle, FAILURE, ({ fd }) => this.#fileSystem(`/dev/fd/${fd}`));
      case "expandPath":
        return this.#expandPath(request.path);
      case "copyData":
        return this.#copyData(request);
      case "homeDirectory":
        return this.#homeDirectory(request.username);
      case "usersGroupsById":
        return this.#names(request.uids, request.gids);
      case "limits":
        return {
          kind: "numbers",
          values: [MAX_PACKET_BYTES, MAX_DATA_BYTES, MAX_DATA_BYTES, this.#handles.max],
        };
      case "invalid":
        return BAD_MESSAGE;
      case "unsupported":
        return UNSUPPORTED;
    }
  }

  #path(path: Buffer): Buffer {
    return absolutePath(this.#deps.directory, path);
  }

  async #done(call: Promise<void>): Promise<Reply> {
    await call;
    return OK;
  }

  async #attributes(call: Promise<fs.Stats>): Promise<Reply> {
    return { kind: "attributes", attributes: attributesOf(await call) };
  }

  #withFile(id: number, otherwise: Reply, use: (file: FileHandle) => Promise<Reply>): Promise<Reply> | Reply {
    const file = this.#handles.file(id);
    return file ? use(file) : otherwise;
  }

  async #open(path: Buffer, flags: number, attributes: Attributes): Promise<Reply> {
    const id = this.#handles.reserve();
    if (id === undefined) return this.#tooManyHandles();
    try {
      const fd = await this.#calls.open(path, openFlags(flags), attributes.permissions ?? 0o666);
      // A copy: the path is a view of what came with it, up to a whole packet, and a handle may stay for days.
      const append = (flags & OPEN_APPEND) !== 0;
      this.#handles.set(id, { kind: "file", fd, path: Buffer.from(path), append });
      return { kind: "handle", handle: id };
    } catch (error) {
      this.#handles.release(id);
      throw error;
    }
  }

  #tooManyHandles(): Reply {
    const text = `Failure: ${this.#handles.max} files are open; close some first`;
    return { kind: "status", code: STATUS.failure, text };
  }

  async #close(id: number): Promise<Reply> {
    const handle = this.#handles.get(id);
    if (!handle) return NO_SUCH_FILE;
    try {
      await (handle.kind === "file" ? this.#calls.close(handle.fd) : this.#calls.closeDirectory(handle.dir));
      return OK;
    } finally {
      this.#handles.release(id); // close(2) frees the descriptor also when it fails
    }
  }

  async #read(id: number, offset: number, length: number): Promise<Reply> {
    const file = this.#handles.file(id);
    if (!file) return FAILURE;
    const wanted = Math.min(length, MAX_DATA_BYTES);
    if (wanted === 0) return { kind: "data", packet: Buffer.allocUnsafe(DATA_HEADER_BYTES), length: 0 };
    const buffer = readBuffers.take(DATA_HEADER_BYTES + wanted);
    let got = 0;
    let packet: Buffer;
    try {
      got = await this.#calls.read(file.fd, buffer, DATA_HEADER_BYTES, wanted, checkedOffset(offset));
    } finally {
      packet = readBuffers.settle(buffer, got === 0 ? 0 : DATA_HEADER_BYTES + got);
    }
    return got === 0 ? END : { kind: "data", packet, length: got };
  }

  async #write(id: number, offset: number, data: Buffer): Promise<Reply> {
    const file = this.#handles.file(id);
    if (!file) return FAILURE;
    checkedOffset(offset + data.length);
    let written = await this.#calls.write(file.fd, data, 0, offset);
    // A full disk takes a part; only the next call says why.
    while (written < data.length) {
      const more = await this.#calls.write(file.fd, data, written, offset + written);
      if (more === 0) return FAILURE;
      written += more;
    }
    return OK;
  }

  /** Each in OpenSSH's order, whatever became of the one before; the last failure is told. */
  async #applyEach(steps: readonly (false | undefined | (() => Promise<void>))[]): Promise<Reply> {
    let reply = OK;
    for (const step of steps) {
      if (!step) continue;
      try {
        await step();
      } catch (error) {
        reply = failureReply(error);
      }
    }
    return reply;
  }

  #setAttributes(name: Buffer, { sizeBytes, permissions, times, owner }: Attributes): Promise<Reply> {
    const calls = this.#calls;
    const path = () => this.#path(name);
    return this.#applyEach([
      sizeBytes !== undefined &&
        (async () => {
          const length = checkedOffset(sizeBytes); // truncate(2) looks at it before the path
          await calls.truncate(path(), length);
        }),
      permissions !== undefined && (async () => calls.chmod(path(), permissions & MODE_BITS)),
      times && (async () => calls.utimes(path(), times.accessedAtS, times.modifiedAtS)),
      owner && (async () => calls.chown(path(), owner.uid, owner.gid)),
    ]);
  }

  #setFileAttributes(fd: number, { sizeBytes, permissions, times, owner }: Attributes): Promise<Reply> {
    const calls = this.#calls;
    return this.#applyEach([
      sizeBytes !== undefined && (async () => calls.ftruncate(fd, checkedOffset(sizeBytes))),
      permissions !== undefined && (() => calls.fchmod(fd, permissions & MODE_BITS)),
      times && (() => calls.futimes(fd, times.accessedAtS, times.modifiedAtS)),
      owner && (() => calls.fchown(fd, owner.uid, owner.gid)),
    ]);
  }

  async #setOwnAttributes(
    name: Buffer,
    { sizeBytes, permissions, times, owner }: Attributes,
  ): Promise<Reply> {
    const calls = this.#calls;
    if (sizeBytes !== undefined) return BAD_MESSAGE; // a link has no length to set
    const path = () => this.#path(name);
    return this.#applyEach([
      permissions !== undefined && (() => this.#chmodItself(path(), permissions & MODE_BITS)),
      times && (async () => calls.lutimes(path(), times.accessedAtS, times.modifiedAtS)),
      owner && (async () => calls.lchown(path(), owner.uid, owner.gid)),
    ]);
  }

  /** fchmodat(2) with AT_SYMLINK_NOFOLLOW, which Node lacks: the mode of a link can't be set on Linux. */
  async #chmodItself(path: Buffer, mode: number): Promise<void> {
    const calls = this.#calls;
    if (process.platform !== "linux") {
      if ((await calls.lstat(path)).isSymbolicLink()) throw new PathError("EOPNOTSUPP");
      return calls.chmod(path, mode);
    }
    await calls.using(await calls.openItself(path), async (fd) => {
      if ((await calls.fstat(fd)).isSymbolicLink()) throw new PathError("EOPNOTSUPP");
      await calls.chmod(`/proc/self/fd/${fd}`, mode);
    });
  }

  async #openDirectory(path: Buffer): Promise<Reply> {
    const id = this.#handles.reserve();
    if (id === undefined) return this.#tooManyHandles();
    try {
      const dir = await this.#calls.openDirectory(path);
      this.#handles.set(id, { kind: "directory", dir, path: Buffer.from(path), started: false });
      return { kind: "handle", handle: id };
    } catch (error) {
      this.#handles.release(id);
      throw error;
    }
  }

  async #readDirectory(id: number): Promise<Reply> {
    const directory = this.#handles.directory(id);
    if (!directory) return FAILURE;
    if (!directory.started) await this.#refreshAccounts();
    for (;;) {
      const names = await this.#nextNames(directory);
      if (names.length === 0) return END;
      const listed = await Promise.all(names.map((name) => this.#listed(directory.path, name)));
      const found = listed.filter((name) => name !== undefined);
      // What was removed meanwhile is left out; a batch of nothing else must not look like the end.
      if (found.length > 0) return { kind: "names", names: found };
    }
  }

  async #nextNames(directory: DirectoryHandle): Promise<Buffer[]> {
    const first = directory.started ? [] : [Buffer.from("."), Buffer.from("..")];
    directory.started = true;
    let bytes = 2 * NAME_OVERHEAD_BYTES;
    const names = await this.#calls.readDirectory(directory.dir, (name) => {
      bytes += 2 * name.length + NAME_OVERHEAD_BYTES;
      return bytes + 2 * MAX_NAME_BYTES + NAME_OVERHEAD_BYTES > NAMES_BYTES;
    });
    return [...first, ...names];
  }

  async #listed(directory: Buffer, name: Buffer): Promise<FileName | undefined> {
    let stats: fs.Stats;
    try {
      stats = await this.#calls.lstat(childPath(directory, name));
    } catch {
      return undefined;
    }
    const { accounts } = this.#deps;
    const prefix = longNamePrefix(
      {
        mode: stats.mode,
        links: stats.nlink,
        user: accounts.userName(stats.uid) ?? String(stats.uid),
        group: accounts.groupName(stats.gid) ?? String(stats.gid),
        sizeBytes: stats.size,
        modifiedAtS: seconds(stats.mtimeMs),
      },
      seconds(Date.now()),
    );
    const longName = Buffer.allocUnsafe(prefix.length + name.length);
    const end = longName.write(prefix, "latin1"); // account names beyond ASCII don't exist in passwd(5)
    name.copy(longName, end);
    return { name, longName, attributes: attributesOf(stats) };
  }

  async #refreshAccounts(): Promise<void> {
    const now = performance.now();
    if (now - this.#accountsReadAtMs < ACCOUNTS_AGE_MS) return;
    this.#accountsReadAtMs = now;
    await this.#deps.accounts.refresh();
  }

  async #realPath(path: Buffer): Promise<Reply> {
    try {
      return singleName(await this.#calls.realpath(path));
    } catch {
      return singleName(await realPathOfMissing(path, this.#calls.readlink));
    }
  }

  /** `~` is the home, also when the session starts elsewhere. */
  async #expandPath(path: Buffer): Promise<Reply> {
    if (path[0] !== TILDE) {
      const whole = this.#path(path.length === 0 ? Buffer.from(".") : path);
      return whole.length < MAX_PATH_BYTES ? this.#realPath(whole) : BAD_MESSAGE;
    }
    const [, username, rest] = /^~([^/]*)\/?(.*)$/s.exec(path.toString("latin1"))!;
    let home = this.#deps.home;
    if (username !== "") {
      await this.#refreshAccounts();
      const found = this.#deps.accounts.homeOf(Buffer.from(username, "latin1").toString("utf8"));
      if (found === undefined) return { ...NO_SUCH_FILE, text: "no such user" };
      home = Buffer.from(found);
    }
    return this.#realPath(absolutePath(home, Buffer.from(rest === "" ? "." : rest, "latin1")));
  }

  /** Never replaces what exists: version 3 clients count on it. */
  async #rename(from: Buffer, to: Buffer): Promise<Reply> {
    const calls = this.#calls;
    if ((await calls.lstat(from)).isFile()) {
      try {
        await calls.link(from, to); // fails when `to` exists, without a race
      } catch (error) {
        if (!NO_LINKS.has(errnoOf(error) ?? "")) throw error;
        return this.#renameToMissing(from, to);
      }
      try {
        await calls.unlink(from);
      } catch (error) {
        await calls.unlink(to);
        throw error;
      }
      return OK;
    }
    return this.#renameToMissing(from, to);
  }

  async #renameToMissing(from: Buffer, to: Buffer): Promise<Reply> {
    const exists = await this.#calls.stat(to).then(
      () => true,
      () => false,
    );
    return exists ? FAILURE : this.#done(this.#calls.rename(from, to));
  }

  async #fileSystem(path: Buffer | string): Promise<Reply> {
    const calls = this.#calls;
    const [found, { dev }, mounts] = await Promise.all([
      calls.statfs(path),
      calls.stat(path),
      calls.readText("/proc/self/mountinfo").catch(() => ""),
    ]);
    const { bsize, blocks, bfree, bavail, files, ffree } = found;
    return {
      kind: "numbers",
      // Twice bsize: the size of a fragment, which blocks are counted in, is another only on exotic mounts.
      values: [
        bsize,
        bsize,
        blocks,
        bfree,
        bavail,
        files,
        ffree,
        ffree,
        dev,
        mountFlags(mounts, dev),
        MAX_NAME_BYTES,
      ],
    };
  }

  async #copyData(request: Request & { kind: "copyData" }): Promise<Reply> {
    const calls = this.#calls;
    const [source, target] = [this.#handles.file(request.from), this.#handles.file(request.to)];
    if (!source || !target || source === target || source.path.equals(target.path)) return FAILURE;
    const [a, b] = [await calls.fstat(source.fd), await calls.fstat(target.fd)];
    // OpenSSH looks at the names alone; a file copied onto itself by another name could grow for ever.
    if (a.dev === b.dev && a.ino === b.ino) return FAILURE;
    let from = checkedOffset(request.fromOffset);
    let to = checkedOffset(request.toOffset);
    const toEnd = request.length === 0;
    let left = toEnd ? Number.POSITIVE_INFINITY : request.length;
    const buffer = Buffer.allocUnsafeSlow(Math.min(COPY_BYTES, left));
    while (left > 0) {
      if (this.#deps.aborted()) return FAILURE;
      const got = await calls.read(source.fd, buffer, 0, Math.min(buffer.length, left), from);
      // OpenSSH calls a source that is too short a success unless it lacks more than 64 KiB.
      if (got === 0) return toEnd ? OK : END;
      const piece = buffer.subarray(0, got);
      for (let written = 0; written < got; )
        written += await calls.write(target.fd, piece, written, to + written);
      from += got;
      to += got;
      left -= got;
    }
    return OK;
  }

  async #homeDirectory(username: string): Promise<Reply> {
    await this.#refreshAccounts();
    const home = this.#deps.accounts.homeOf(username);
    return home === undefined ? FAILURE : singleName(Buffer.from(home));
  }

  async #names(uids: number[], gids: number[]): Promise<Reply> {
    await this.#refreshAccounts();
    const { accounts } = this.#deps;
    const users = uids.map((uid) => Buffer.from(accounts.userName(uid) ?? ""));
    const groups = gids.map((gid) => Buffer.from(accounts.groupName(gid) ?? ""));
    const bytes = [...users, ...groups].reduce((sum, name) => sum + 4 + name.length, 64);
    return bytes > MAX_PACKET_BYTES ? FAILURE : { kind: "nameLists", lists: [users, groups] };
  }
}
