// For tests: the server as a program, OpenSSH's to compare with, and a client that sends what it is told.
import { type ChildProcess, spawn } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";
import type { ExitResult, ProcessEvents } from "../sessions/process.ts";
import { type SftpOptions, startSftp } from "./server.ts";

/** Where distributions keep OpenSSH's server. */
export const OPENSSH_SERVER = [
  "/usr/lib/openssh/sftp-server",
  "/usr/libexec/openssh/sftp-server",
  "/usr/lib/ssh/sftp-server",
  "/usr/libexec/sftp-server",
].find((file) => fs.existsSync(file));

export function temporaryDirectory(): string {
  return fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "sftp-")));
}

/** Bundles the server into `directory`. @returns a program to be started without arguments */
export async function buildServer(directory: string): Promise<string> {
  const bundle = path.join(directory, "stdio.mjs");
  await esbuild.build({
    entryPoints: [fileURLToPath(new URL("./stdio.ts", import.meta.url))],
    outfile: bundle,
    bundle: true,
    platform: "node",
    format: "esm",
    logLevel: "silent",
  });
  const program = path.join(directory, "sftp-server");
  fs.writeFileSync(program, `#!/bin/sh\nexec '${process.execPath}' '${bundle}'\n`, { mode: 0o755 });
  return program;
}

export const u32 = (value: number): Buffer => {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(value >>> 0);
  return out;
};
export const u64 = (value: number | bigint): Buffer => {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(BigInt(value));
  return out;
};
export const string = (value: string | Uint8Array): Buffer =>
  Buffer.concat([u32(Buffer.from(value).length), Buffer.from(value)]);

export interface Attrs {
  size?: number | bigint;
  owner?: [uid: number, gid: number];
  mode?: number;
  times?: [accessed: number, modified: number];
}
export function attrs({ size, owner, mode, times }: Attrs = {}): Buffer {
  const flags =
    (size === undefined ? 0 : 1) | (owner ? 2 : 0) | (mode === undefined ? 0 : 4) | (times ? 8 : 0);
  const parts = [u32(flags)];
  if (size !== undefined) parts.push(u64(size));
  if (owner) parts.push(u32(owner[0]), u32(owner[1]));
  if (mode !== undefined) parts.push(u32(mode));
  if (times) parts.push(u32(times[0]), u32(times[1]));
  return Buffer.concat(parts);
}

/** A packet with its length. */
export const packet = (type: number, ...body: Uint8Array[]): Buffer => {
  const rest = Buffer.concat(body);
  return Buffer.concat([u32(1 + rest.length), Buffer.from([type]), rest]);
};

export const INIT = packet(1, u32(3));
/** Body of a request that has an id, which the client puts in. */
export interface Asked {
  type: number;
  body: Buffer;
}
export const ask = (type: number, ...body: Uint8Array[]): Asked => ({ type, body: Buffer.concat(body) });

export const open = (name: string | Uint8Array, flags: number, a: Attrs = {}) =>
  ask(3, string(name), u32(flags), attrs(a));
export const close = (handle: Uint8Array) => ask(4, string(handle));
export const read = (handle: Uint8Array, offset: number | bigint, length: number) =>
  ask(5, string(handle), u64(offset), u32(length));
export const write = (handle: Uint8Array, offset: number | bigint, data: string | Uint8Array) =>
  ask(6, string(handle), u64(offset), string(data));
export const onPath = (type: number, name: string | Uint8Array, ...rest: Uint8Array[]) =>
  ask(type, string(name), ...rest);
export const extended = (name: string, ...rest: Uint8Array[]) => ask(200, string(name), ...rest);
export const READ = 1;
export const WRITE = 2;
export const APPEND = 4;
export const CREATE = 8;
export const TRUNCATE = 16;
export const EXCLUSIVE = 32;

export interface Answer {
  type: number;
  id: number;
  body: Buffer;
}

const TYPES: Record<number, string> = {
  101: "status",
  102: "handle",
  103: "data",
  104: "name",
  105: "attrs",
  201: "extended",
};
/** For messages of assertions, and comparisons of what must not differ in its words. */
export function shown({ type, body }: Answer): string {
  if (type === 101) return `status ${body.readUInt32BE(0)} ${textOf(body, 4)}`;
  return `${TYPES[type] ?? type} ${body.toString("hex")}`;
}
export const statusOf = (answer: Answer): number => (answer.type === 101 ? answer.body.readUInt32BE(0) : -1);
export const textOf = (body: Buffer, at: number): string =>
  body.toString("utf8", at + 4, at + 4 + body.readUInt32BE(at));
/** Of a HANDLE or DATA answer. */
export function bytesOf(answer: Answer): Buffer {
  if (answer.type !== 102 && answer.type !== 103) throw new Error(`not a handle or data: ${shown(answer)}`);
  return answer.body.subarray(4);
}
export interface Listed {
  name: Buffer;
  longName: string;
  attrs: Buffer;
}
/** Of a NAME answer with attributes of all kinds, or none. */
export function namesOf(answer: Answer): Listed[] {
  if (answer.type !== 104) throw new Error(`no names: ${shown(answer)}`);
  const { body } = answer;
  const out: Listed[] = [];
  let at = 4;
  const next = () => {
    const bytes = body.subarray(at + 4, at + 4 + body.readUInt32BE(at));
    at += 4 + bytes.length;
    return bytes;
  };
  for (let left = body.readUInt32BE(0); left > 0; left--) {
    const name = next();
    const longName = next().toString();
    const length = body.readUInt32BE(at) === 0 ? 4 : 32;
    out.push({ name, longName, attrs: body.subarray(at, at + length) });
    at += length;
  }
  return out;
}

/** Speaks SFTP as it is told, over the two ends of a server. */
export class RawClient {
  readonly #send: (bytes: Buffer) => void;
  #pending = Buffer.alloc(0);
  #nextId = 1;
  #waiting = new Map<number, (answer: Answer) => void>();
  #version: ((body: Buffer) => void) | undefined;
  /** Ids in the order of their answers. */
  readonly answered: number[] = [];

  constructor(send: (bytes: Buffer) => void) {
    this.#send = send;
  }

  receive(chunk: Uint8Array): void {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= 4 && this.#pending.length >= 4 + this.#pending.readUInt32BE(0)) {
      const end = 4 + this.#pending.readUInt32BE(0);
      const whole = this.#pending.subarray(4, end);
      this.#pending = this.#pending.subarray(end);
      if (whole[0] === 2) {
        this.#version?.(whole.subarray(1));
        continue;
      }
      const id = whole.readUInt32BE(1);
      this.answered.push(id);
      this.#waiting.get(id)?.({ type: whole[0], id, body: whole.subarray(5) });
      this.#waiting.delete(id);
    }
  }

  init(): Promise<Buffer> {
    const answer = new Promise<Buffer>((resolve) => {
      this.#version = resolve;
    });
    this.#send(INIT);
    return answer;
  }

  raw(bytes: Buffer): void {
    this.#send(bytes);
  }

  /** Sends at once; several may be outstanding. */
  request({ type, body }: Asked): Promise<Answer> {
    const id = this.#nextId++;
    const answer = new Promise<Answer>((resolve) => this.#waiting.set(id, resolve));
    this.#send(packet(type, u32(id), body));
    return answer;
  }
}

export interface Program {
  client: RawClient;
  child: ChildProcess;
  /** Ends its input and waits for its end. */
  end(): Promise<number | null>;
}

/** Starts a server program and says INIT to it. `uid`: whom it runs as, for tests run by root. */
export async function startProgram(file: string, cwd: string, uid?: number): Promise<Program> {
  const child = spawn(file, [], {
    cwd,
    stdio: ["pipe", "pipe", "inherit"],
    ...(uid === undefined ? {} : { uid, gid: uid }),
    env: { ...process.env, HOME: cwd },
  });
  const [stdin, stdout] = [child.stdin as Writable, child.stdout as Readable];
  stdin.on("error", () => {});
  const client = new RawClient((bytes) => void stdin.write(bytes));
  stdout.on("data", (chunk: Buffer) => client.receive(chunk));
  const exited = new Promise<number | null>((resolve) => child.once("close", resolve));
  await client.init();
  return {
    client,
    child,
    end() {
      stdin.end();
      return exited;
    },
  };
}

/** A server in this process. */
export interface InProcess {
  client: RawClient;
  session: ReturnType<typeof startSftp>;
  stderr: string[];
  exited: Promise<ExitResult>;
  /** Whether the session wants no input at the moment. */
  held(): boolean;
  drained(): Promise<void>;
}

export function startInProcess(options: SftpOptions, events: Partial<ProcessEvents> = {}): InProcess {
  const stderr: string[] = [];
  let held = false;
  let onDrain: (() => void) | undefined;
  let markExited: (result: ExitResult) => void;
  const exited = new Promise<ExitResult>((resolve) => {
    markExited = resolve;
  });
  const client = new RawClient((bytes) => {
    held = !session.write(bytes);
  });
  const session = startSftp(options, {
    output(kind, chunk) {
      if (kind === "stderr") stderr.push(Buffer.from(chunk).toString());
      else client.receive(chunk);
      events.output?.(kind, chunk);
    },
    drain() {
      held = false;
      onDrain?.();
      events.drain?.();
    },
    exit(result) {
      markExited(result);
      events.exit?.(result);
    },
  });
  return {
    client,
    session,
    stderr,
    exited,
    held: () => held,
    drained: () =>
      held
        ? new Promise((resolve) => {
            onDrain = resolve;
          })
        : Promise.resolve(),
  };
}
