// SFTP protocol version 3 (draft-ietf-secsh-filexfer-02), the version every client speaks, with OpenSSH's
// extensions. Big endian.
//
// PACKET: length u32 | type u8 | body[length - 1]. length 1..262,144, as OpenSSH has it.
// string: length u32 | bytes. Paths are bytes: a file name need not be UTF-8.
// ATTRS: flags u32 | size u64 (flag 1) | uid u32, gid u32 (2) | permissions u32 (4) | atime u32, mtime u32 (8)
//        | count u32, count x (type string, data string) (0x80000000: read and ignored)
//
//   type          body
//   01 INIT       version u32 | (name string, data string)*; first, and has no id
//   every other request: id u32 |
//   03 OPEN       path | pflags u32 | ATTRS          04 CLOSE     handle
//   05 READ       handle | offset u64 | length u32   06 WRITE     handle | offset u64 | data string
//   07 LSTAT      path                               08 FSTAT     handle
//   09 SETSTAT    path | ATTRS                       10 FSETSTAT  handle | ATTRS
//   11 OPENDIR    path                               12 READDIR   handle
//   13 REMOVE     path                               14 MKDIR     path | ATTRS
//   15 RMDIR      path                               16 REALPATH  path
//   17 STAT       path                               18 RENAME    old path | new path
//   19 READLINK   path                               20 SYMLINK   target | link path: OpenSSH's order, which the
//                                                                 draft has the other way round; clients follow it
//   200 EXTENDED  name string | by name:
//     posix-rename@openssh.com 1   old path | new path         fsync@openssh.com 1      handle
//     hardlink@openssh.com 1       old path | new path         statvfs@openssh.com 2    path
//     lsetstat@openssh.com 1       path | ATTRS                fstatvfs@openssh.com 2   handle
//     limits@openssh.com 1         nothing                     expand-path@openssh.com 1  path
//     copy-data 1                  handle | offset u64 | length u64 (0: to the end) | handle | offset u64
//     home-directory 1             user name                   users-groups-by-id@openssh.com 1
//                                                              string of u32 uids | string of u32 gids
// Replies: 02 VERSION version u32 | (name, data)*; and with the request's id
//   101 STATUS code u32 | text | language    102 HANDLE handle           103 DATA string
//   104 NAME   count u32 | (name, long name, ATTRS)*                     105 ATTRS ATTRS
//   201 EXTENDED_REPLY by request: statvfs 11 x u64; limits 4 x u64; users-groups-by-id 2 strings of strings
// Our handles are u32 numbers in 4 bytes. Bytes behind the fields of a packet are ignored.
import { WireError } from "../../mesh/wire/errors.ts";

export const SFTP_VERSION = 3;
/** Type and body; what OpenSSH's client and server take. */
export const MAX_PACKET_BYTES = 256 * 1024;
/** Data of one READ or WRITE: a packet less room for its fields, as limits@openssh.com tells. */
export const MAX_DATA_BYTES = MAX_PACKET_BYTES - 1024;

export const OPEN_READ = 0x01;
export const OPEN_WRITE = 0x02;
export const OPEN_APPEND = 0x04;
export const OPEN_CREATE = 0x08;
export const OPEN_TRUNCATE = 0x10;
export const OPEN_EXCLUSIVE = 0x20;

const ATTR_SIZE = 1;
const ATTR_OWNER = 2;
const ATTR_PERMISSIONS = 4;
const ATTR_TIMES = 8;
const ATTR_EXTENDED = 0x80000000;

/** Draft section 7: the index is the code, the text what OpenSSH says. */
const STATUS_TEXTS = [
  "Success",
  "End of file",
  "No such file",
  "Permission denied",
  "Failure",
  "Bad message",
  "No connection",
  "Connection lost",
  "Operation unsupported",
] as const;
export const STATUS = {
  ok: 0,
  eof: 1,
  noSuchFile: 2,
  permissionDenied: 3,
  failure: 4,
  badMessage: 5,
  opUnsupported: 8,
} as const;
export type StatusCode = (typeof STATUS)[keyof typeof STATUS];

export const EXTENSIONS: readonly (readonly [name: string, data: string])[] = [
  ["posix-rename@openssh.com", "1"],
  ["statvfs@openssh.com", "2"],
  ["fstatvfs@openssh.com", "2"],
  ["hardlink@openssh.com", "1"],
  ["fsync@openssh.com", "1"],
  ["lsetstat@openssh.com", "1"],
  ["limits@openssh.com", "1"],
  ["expand-path@openssh.com", "1"],
  ["copy-data", "1"],
  ["home-directory", "1"],
  ["users-groups-by-id@openssh.com", "1"],
];

export interface Attributes {
  sizeBytes?: number;
  owner?: { uid: number; gid: number };
  /** Type and mode bits, as st_mode. */
  permissions?: number;
  /** Unix seconds, u32. */
  times?: { accessedAtS: number; modifiedAtS: number };
}

/** A handle that is none of ours is a number no table has. */
export type HandleId = number;
const NO_HANDLE: HandleId = -1;

/** Offsets and sizes of 2^53 and more are Infinity: no file of ours has them. */
export type Request =
  | { kind: "open"; id: number; path: Buffer; flags: number; attributes: Attributes }
  | { kind: "read"; id: number; handle: HandleId; offset: number; length: number }
  | { kind: "write"; id: number; handle: HandleId; offset: number; data: Buffer }
  | {
      kind:
        | "lstat"
        | "stat"
        | "opendir"
        | "remove"
        | "rmdir"
        | "realpath"
        | "readlink"
        | "statvfs"
        | "expandPath";
      id: number;
      path: Buffer;
    }
  | { kind: "setstat" | "lsetstat" | "mkdir"; id: number; path: Buffer; attributes: Attributes }
  | { kind: "fsetstat"; id: number; handle: HandleId; attributes: Attributes }
  | { kind: "close" | "fstat" | "readdir" | "fsync" | "fstatvfs"; id: number; handle: HandleId }
  | { kind: "rename" | "posixRename" | "hardlink"; id: number; from: Buffer; to: Buffer }
  | { kind: "symlink"; id: number; target: Buffer; path: Buffer }
  | {
      kind: "copyData";
      id: number;
      from: HandleId;
      fromOffset: number;
      /** 0: to the end of the file. */
      length: number;
      to: HandleId;
      toOffset: number;
    }
  | { kind: "homeDirectory"; id: number; username: string }
  | { kind: "usersGroupsById"; id: number; uids: number[]; gids: number[] }
  | { kind: "limits"; id: number }
  /** A path or name that no file can have: answered with Bad message. */
  | { kind: "invalid"; id: number }
  | { kind: "unsupported"; id: number };

export type Incoming = { kind: "init"; version: number } | Request;

export interface FileName {
  name: Uint8Array;
  longName: Uint8Array;
  attributes: Attributes;
}

export type Reply =
  | { kind: "status"; code: StatusCode; text?: string }
  | { kind: "handle"; handle: HandleId }
  /** `packet` has DATA_HEADER_BYTES of room before `length` bytes of data, and maybe some behind. */
  | { kind: "data"; packet: Buffer; length: number }
  | { kind: "names"; names: readonly FileName[] }
  | { kind: "attributes"; attributes: Attributes }
  | { kind: "numbers"; values: readonly (number | bigint)[] }
  | { kind: "nameLists"; lists: readonly (readonly Uint8Array[])[] };

/** Before a DATA reply's bytes: length, type, id, length of the data. */
export const DATA_HEADER_BYTES = 13;

class NulError extends Error {}

class Reader {
  readonly #bytes: Buffer;
  #at = 0;
  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  #step(count: number): number {
    const at = this.#at;
    if (count > this.#bytes.length - at)
      throw new WireError(
        "ERR_FRAME_TRUNCATED",
        `a packet of ${this.#bytes.length} bytes ends inside a field`,
      );
    this.#at = at + count;
    return at;
  }

  get remaining(): number {
    return this.#bytes.length - this.#at;
  }

  u8 = () => this.#bytes[this.#step(1)];
  u32 = () => this.#bytes.readUInt32BE(this.#step(4));

  u64(): number {
    const at = this.#step(8);
    const high = this.#bytes.readUInt32BE(at);
    return high < 0x200000
      ? high * 0x1_0000_0000 + this.#bytes.readUInt32BE(at + 4)
      : Number.POSITIVE_INFINITY;
  }

  string(): Buffer {
    const length = this.u32();
    const at = this.#step(length);
    return this.#bytes.subarray(at, at + length);
  }

  /** As C sees it: one NUL at the end is none. @throws {NulError} for one inside */
  path(): Buffer {
    const bytes = this.string();
    const nul = bytes.indexOf(0);
    if (nul === -1) return bytes;
    if (nul === bytes.length - 1) return bytes.subarray(0, nul);
    throw new NulError();
  }

  handle(): HandleId {
    const bytes = this.string();
    return bytes.length === 4 ? bytes.readUInt32BE(0) : NO_HANDLE;
  }

  attributes(): Attributes {
    const flags = this.u32();
    const attributes: Attributes = {};
    if (flags & ATTR_SIZE) attributes.sizeBytes = this.u64();
    if (flags & ATTR_OWNER) attributes.owner = { uid: this.u32(), gid: this.u32() };
    if (flags & ATTR_PERMISSIONS) attributes.permissions = this.u32();
    if (flags & ATTR_TIMES) attributes.times = { accessedAtS: this.u32(), modifiedAtS: this.u32() };
    if (flags & ATTR_EXTENDED) {
      // Each pair takes 8 bytes at least, so that a giant count runs out of packet, not of time.
      for (let count = this.u32(); count > 0; count--) {
        this.string();
        this.string();
      }
    }
    return attributes;
  }

  ids(): number[] {
    const bytes = this.string();
    if (bytes.length % 4 !== 0)
      throw new WireError("ERR_BAD_VALUE", `a list of ids of ${bytes.length} bytes`);
    return Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readUInt32BE(4 * index));
  }
}

const text = (bytes: Buffer): string => bytes.toString("utf8");

function decodeExtended(reader: Reader, id: number): Request {
  const name = text(reader.string());
  switch (name) {
    case "posix-rename@openssh.com":
      return { kind: "posixRename", id, from: reader.path(), to: reader.path() };
    case "hardlink@openssh.com":
      return { kind: "hardlink", id, from: reader.path(), to: reader.path() };
    case "statvfs@openssh.com":
      return { kind: "statvfs", id, path: reader.path() };
    case "fstatvfs@openssh.com":
      return { kind: "fstatvfs", id, handle: reader.handle() };
    case "fsync@openssh.com":
      return { kind: "fsync", id, handle: reader.handle() };
    case "lsetstat@openssh.com":
      return { kind: "lsetstat", id, path: reader.path(), attributes: reader.attributes() };
    case "limits@openssh.com":
      return { kind: "limits", id };
    case "expand-path@openssh.com":
      return { kind: "expandPath", id, path: reader.path() };
    case "copy-data": {
      const [from, fromOffset, length] = [reader.handle(), reader.u64(), reader.u64()];
      return { kind: "copyData", id, from, fromOffset, length, to: reader.handle(), toOffset: reader.u64() };
    }
    case "home-directory":
      return { kind: "homeDirectory", id, username: text(reader.path()) };
    case "users-groups-by-id@openssh.com":
      return { kind: "usersGroupsById", id, uids: reader.ids(), gids: reader.ids() };
    default:
      return { kind: "unsupported", id };
  }
}

function decodeBody(type: number, reader: Reader, id: number): Request {
  switch (type) {
    case 3:
      return { kind: "open", id, path: reader.path(), flags: reader.u32(), attributes: reader.attributes() };
    case 4:
      return { kind: "close", id, handle: reader.handle() };
    case 5:
      return { kind: "read", id, handle: reader.handle(), offset: reader.u64(), length: reader.u32() };
    case 6:
      return { kind: "write", id, handle: reader.handle(), offset: reader.u64(), data: reader.string() };
    case 7:
      return { kind: "lstat", id, path: reader.path() };
    case 8:
      return { kind: "fstat", id, handle: reader.handle() };
    case 9:
      return { kind: "setstat", id, path: reader.path(), attributes: reader.attributes() };
    case 10:
      return { kind: "fsetstat", id, handle: reader.handle(), attributes: reader.attributes() };
    case 11:
      return { kind: "opendir", id, path: reader.path() };
    case 12:
      return { kind: "readdir", id, handle: reader.handle() };
    case 13:
      return { kind: "remove", id, path: reader.path() };
    case 14:
      return { kind: "mkdir", id, path: reader.path(), attributes: reader.attributes() };
    case 15:
      return { kind: "rmdir", id, path: reader.path() };
    case 16:
      return { kind: "realpath", id, path: reader.path() };
    case 17:
      return { kind: "stat", id, path: reader.path() };
    case 18:
      return { kind: "rename", id, from: reader.path(), to: reader.path() };
    case 19:
      return { kind: "readlink", id, path: reader.path() };
    case 20:
      return { kind: "symlink", id, target: reader.path(), path: reader.path() };
    case 200:
      return decodeExtended(reader, id);
    default:
      return { kind: "unsupported", id };
  }
}

/**
 * Takes a packet (without its length) apart. Data and paths are views of `packet`.
 *
 * @throws {WireError} ERR_FRAME_TRUNCATED, ERR_BAD_VALUE: the session can't go on
 */
export function decodePacket(packet: Buffer): Incoming {
  const reader = new Reader(packet);
  const type = reader.u8();
  if (type === 1) return { kind: "init", version: reader.u32() };
  const id = reader.u32();
  try {
    return decodeBody(type, reader, id);
  } catch (error) {
    if (error instanceof NulError) return { kind: "invalid", id };
    throw error;
  }
}

/** Cuts a byte stream into packets. Holds what is fed until it is taken, so its caller sets the bound. */
export class PacketDecoder {
  #chunks: Buffer[] = [];
  #bytes = 0;

  get bufferedBytes(): number {
    return this.#bytes;
  }

  /** `chunk` is kept, uncopied. */
  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length));
    this.#bytes += chunk.length;
  }

  /**
   * @returns the next packet without its length (a view of the chunk where it lies in one), or undefined when
   * it is not complete
   * @throws {WireError} ERR_FRAME_TOO_LARGE or ERR_FRAME_TRUNCATED, on the length alone; drop the decoder
   */
  take(): Buffer | undefined {
    if (this.#bytes < 4) return undefined;
    const length = this.#peekLength();
    if (length > MAX_PACKET_BYTES)
      throw new WireError(
        "ERR_FRAME_TOO_LARGE",
        `packet of ${length} bytes, the limit is ${MAX_PACKET_BYTES}`,
      );
    if (length === 0) throw new WireError("ERR_FRAME_TRUNCATED", "a packet without a type");
    if (this.#bytes < 4 + length) return undefined;
    return this.#consume(4 + length).subarray(4);
  }

  #peekLength(): number {
    const first = this.#chunks[0];
    if (first.length >= 4) return first.readUInt32BE(0);
    return Buffer.concat(this.#chunks.slice(0, 4), 4).readUInt32BE(0);
  }

  #consume(count: number): Buffer {
    this.#bytes -= count;
    const first = this.#chunks[0];
    if (first.length > count) {
      this.#chunks[0] = first.subarray(count);
      return first.subarray(0, count);
    }
    if (first.length === count) {
      this.#chunks.shift();
      return first;
    }
    const out = Buffer.allocUnsafe(count);
    let filled = 0;
    let index = 0;
    while (filled < count) {
      const chunk = this.#chunks[index];
      const taken = Math.min(chunk.length, count - filled);
      chunk.copy(out, filled, 0, taken);
      filled += taken;
      if (taken === chunk.length) index++;
      else this.#chunks[index] = chunk.subarray(taken);
    }
    this.#chunks.splice(0, index);
    return out;
  }
}

class Writer {
  #bytes: Buffer;
  #end = 4;
  constructor(sizeBytes: number) {
    this.#bytes = Buffer.allocUnsafe(4 + sizeBytes);
  }

  #room(count: number): number {
    const at = this.#end;
    this.#end += count;
    if (this.#end > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#end, 2 * this.#bytes.length));
      this.#bytes.copy(larger, 0, 0, at);
      this.#bytes = larger;
    }
    return at;
  }

  u8(value: number): this {
    const at = this.#room(1);
    this.#bytes[at] = value;
    return this;
  }

  u32(value: number): this {
    const at = this.#room(4);
    this.#bytes.writeUInt32BE(value, at);
    return this;
  }

  u64(value: number | bigint): this {
    const at = this.#room(8);
    if (typeof value === "bigint") this.#bytes.writeBigUInt64BE(BigInt.asUintN(64, value), at);
    else {
      this.#bytes.writeUInt32BE(Math.floor(value / 0x1_0000_0000), at);
      this.#bytes.writeUInt32BE(value % 0x1_0000_0000, at + 4);
    }
    return this;
  }

  string(value: Uint8Array | string): this {
    const length = typeof value === "string" ? Buffer.byteLength(value) : value.length;
    this.u32(length);
    const at = this.#room(length);
    if (typeof value === "string") this.#bytes.write(value, at);
    else this.#bytes.set(value, at);
    return this;
  }

  attributes({ sizeBytes, owner, permissions, times }: Attributes): this {
    this.u32(
      (sizeBytes === undefined ? 0 : ATTR_SIZE) |
        (owner ? ATTR_OWNER : 0) |
        (permissions === undefined ? 0 : ATTR_PERMISSIONS) |
        (times ? ATTR_TIMES : 0),
    );
    if (sizeBytes !== undefined) this.u64(sizeBytes);
    if (owner) this.u32(owner.uid).u32(owner.gid);
    if (permissions !== undefined) this.u32(permissions);
    if (times) this.u32(times.accessedAtS).u32(times.modifiedAtS);
    return this;
  }

  finish(): Buffer {
    const packet = this.#bytes.subarray(0, this.#end);
    packet.writeUInt32BE(this.#end - 4, 0);
    return packet;
  }
}

export function encodeVersion(): Buffer {
  const out = new Writer(512).u8(2).u32(SFTP_VERSION);
  for (const [name, data] of EXTENSIONS) out.string(name).string(data);
  return out.finish();
}

function encodeData(id: number, packet: Buffer, length: number): Buffer {
  packet.writeUInt32BE(DATA_HEADER_BYTES - 4 + length, 0);
  packet[4] = 103;
  packet.writeUInt32BE(id, 5);
  packet.writeUInt32BE(length, 9);
  const whole = packet.subarray(0, DATA_HEADER_BYTES + length);
  // A short read must not hold the whole buffer until it is sent.
  return 2 * whole.length < packet.length ? Buffer.from(whole) : whole;
}

/** @returns the whole packet; a data reply's own buffer where it is well filled */
export function encodeReply(id: number, reply: Reply): Buffer {
  switch (reply.kind) {
    case "status": {
      const words = reply.text ?? STATUS_TEXTS[reply.code];
      return new Writer(17 + 3 * words.length)
        .u8(101)
        .u32(id)
        .u32(reply.code)
        .string(words)
        .string("")
        .finish();
    }
    case "handle":
      return new Writer(13).u8(102).u32(id).u32(4).u32(reply.handle).finish();
    case "data":
      return encodeData(id, reply.packet, reply.length);
    case "names": {
      const out = new Writer(64 + 192 * reply.names.length).u8(104).u32(id).u32(reply.names.length);
      for (const { name, longName, attributes } of reply.names)
        out.string(name).string(longName).attributes(attributes);
      return out.finish();
    }
    case "attributes":
      return new Writer(37).u8(105).u32(id).attributes(reply.attributes).finish();
    case "numbers": {
      const out = new Writer(5 + 8 * reply.values.length).u8(201).u32(id);
      for (const value of reply.values) out.u64(value);
      return out.finish();
    }
    case "nameLists": {
      const out = new Writer(1_024).u8(201).u32(id);
      for (const list of reply.lists) {
        out.u32(list.reduce((sum, name) => sum + 4 + name.length, 0));
        for (const name of list) out.string(name);
      }
      return out.finish();
    }
  }
}
