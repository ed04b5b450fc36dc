// File calls as promises, each through the session's gate. Node's callbacks and plain descriptors instead of
// fs.promises: half the time per call, which is most of what a small request costs.
import fs from "node:fs";
import type { Gate } from "./gate.ts";

type Done<T> = (error: NodeJS.ErrnoException | null, value?: T) => void;
export type Calls = ReturnType<typeof createCalls>;

/** Opens the file itself, also a symbolic link, with no rights on its content (Linux, open(2)). */
const O_PATH = 0o10000000;
/** No FIFO or device may hold a thread until somebody opens its other end, and no terminal become ours. */
const NEVER_WAIT = fs.constants.O_NONBLOCK | fs.constants.O_NOCTTY;

/** Names per call of readdir(3). */
const DIRECTORY_BATCH = 256;

export function createCalls(gate: Gate) {
  const call = <T>(start: (done: Done<T>) => void): Promise<T> =>
    new Promise((resolve, reject) => {
      gate.enter((leave) => {
        try {
          start((error, value) => {
            leave();
            if (error) reject(error);
            else resolve(value as T);
          });
        } catch (error) {
          leave(); // Node refused an argument
          reject(error);
        }
      });
    });
  const bytes = { encoding: "buffer" } as const;

  const open = (path: fs.PathLike, flags: number, mode = 0) =>
    call<number>((done) => fs.open(path, flags | NEVER_WAIT, mode, done));
  const close = (fd: number) => call<void>((done) => fs.close(fd, done));

  /** Closes `fd` however `use` ends. */
  async function using<T>(fd: number, use: (fd: number) => Promise<T>): Promise<T> {
    try {
      return await use(fd);
    } finally {
      await close(fd);
    }
  }

  return {
    open,
    close,
    using,
    openItself: (path: Buffer) => open(path, O_PATH | fs.constants.O_NOFOLLOW),
    /** @returns bytes read, fewer only at the end of the file (or of what a device has) */
    read: (fd: number, buffer: Buffer, offset: number, length: number, position: number) =>
      call<number>((done) => fs.read(fd, buffer, offset, length, position, done)),
    write: (fd: number, buffer: Buffer, offset: number, position: number) =>
      call<number>((done) => fs.write(fd, buffer, offset, buffer.length - offset, position, done)),
    stat: (path: fs.PathLike) => call<fs.Stats>((done) => fs.stat(path, done)),
    lstat: (path: Buffer) => call<fs.Stats>((done) => fs.lstat(path, done)),
    fstat: (fd: number) => call<fs.Stats>((done) => fs.fstat(fd, done)),
    truncate: async (path: Buffer, length: number) =>
      using(await open(path, fs.constants.O_WRONLY), (fd) =>
        call<void>((done) => fs.ftruncate(fd, length, done)),
      ),
    ftruncate: (fd: number, length: number) => call<void>((done) => fs.ftruncate(fd, length, done)),
    chmod: (path: fs.PathLike, mode: number) => call<void>((done) => fs.chmod(path, mode, done)),
    fchmod: (fd: number, mode: number) => call<void>((done) => fs.fchmod(fd, mode, done)),
    utimes: (path: Buffer, accessedAtS: number, modifiedAtS: number) =>
      call<void>((done) => fs.utimes(path, accessedAtS, modifiedAtS, done)),
    lutimes: (path: Buffer, accessedAtS: number, modifiedAtS: number) =>
      call<void>((done) => fs.lutimes(path, accessedAtS, modifiedAtS, done)),
    futimes: (fd: number, accessedAtS: number, modifiedAtS: number) =>
      call<void>((done) => fs.futimes(fd, accessedAtS, modifiedAtS, done)),
    chown: (path: Buffer, uid: number, gid: number) => call<void>((done) => fs.chown(path, uid, gid, done)),
    lchown: (path: Buffer, uid: number, gid: number) => call<void>((done) => fs.lchown(path, uid, gid, done)),
    fchown: (fd: number, uid: number, gid: number) => call<void>((done) => fs.fchown(fd, uid, gid, done)),
    fsync: (fd: number) => call<void>((done) => fs.fsync(fd, done)),
    link: (from: Buffer, to: Buffer) => call<void>((done) => fs.link(from, to, done)),
    symlink: (target: Buffer, path: Buffer) => call<void>((done) => fs.symlink(target, path, done)),
    readlink: (path: Buffer) => call<Buffer>((done) => fs.readlink(path, bytes, done)),
    /** realpath(3). */
    realpath: (path: Buffer) => call<Buffer>((done) => fs.realpath.native(path, bytes, done)),
    rename: (from: Buffer, to: Buffer) => call<void>((done) => fs.rename(from, to, done)),
    unlink: (path: Buffer) => call<void>((done) => fs.unlink(path, done)),
    mkdir: (path: Buffer, mode: number) => call<void>((done) => fs.mkdir(path, mode, (error) => done(error))),
    rmdir: (path: Buffer) => call<void>((done) => fs.rmdir(path, done)),
    statfs: (path: fs.PathLike) => call<fs.BigIntStatsFs>((done) => fs.statfs(path, { bigint: true }, done)),
    readText: (path: string) => call<string>((done) => fs.readFile(path, "utf8", done)),
    openDirectory: (path: Buffer) =>
      // The type wants an encoding of text; Node hands on "buffer" as it does for readdir.
      call<fs.Dir>((done) =>
        fs.opendir(
          path as unknown as string,
          { encoding: "buffer" as BufferEncoding, bufferSize: DIRECTORY_BATCH },
          done,
        ),
      ),
    closeDirectory: (dir: fs.Dir) => call<void>((done) => dir.close(done)),
    /** Names until `enough` says so of one, or to the end. */
    readDirectory: (dir: fs.Dir, enough: (name: Buffer) => boolean) =>
      call<Buffer[]>((done) => {
        const names: Buffer[] = [];
        const step = () =>
          dir.read((error, entry) => {
            if (error) return done(error);
            if (!entry) return done(null, names);
            const name = entry.name as unknown as Buffer;
            names.push(name);
            if (enough(name)) return done(null, names);
            step();
          });
        step();
      }),
  };
}
