import { type ChildProcess, spawn } from "node:child_process";
import fs from "node:fs";
import { constants } from "node:os";
import type { Readable, Writable } from "node:stream";
import type { WindowSize } from "../../mesh/wire/channel.ts";
import { MeshError } from "../../mesh/wire/errors.ts";
import { ignoresHangup, onlyDetachedHold, pipeNames } from "./left-behind.ts";
import type { PipePool } from "./pipes.ts";
import { sealedStdio } from "./sealed.ts";

/** What waits unwritten for a process before its client is held up. */
export const INPUT_HIGH_BYTES = 256 * 1024;
/** How long a process that was hung up on may take to end. */
export const KILL_AFTER_MS = 5_000;
/** When what a command left behind is first looked at; then after twice as long each time, up to the second. */
const FIRST_LOOK_MS = 100;
const LAST_LOOK_MS = 5_000;
/** Outputs of detached processes that are read on, so that they don't die of SIGPIPE. Later ones are closed. */
const MAX_KEPT_OUTPUTS = 256;
let keptOutputs = 0;

export type ExitResult = { kind: "exited"; status: number } | { kind: "signaled"; name: string };

export interface StartRequest {
  /** argv: the program's path and its arguments. */
  argv: readonly [string, ...string[]];
  env: Record<string, string>;
  cwd: string;
  /** Default KILL_AFTER_MS. */
  killAfterMs?: number;
  /** The exit doesn't wait for output held by what was detached on purpose (left-behind.ts), and drops that. */
  releaseDetached?: boolean;
}

export interface ProcessEvents {
  output(kind: "data" | "stderr", chunk: Uint8Array): void;
  /** Input is wanted again after `write` said false. */
  drain(): void;
  /** Once, when the process itself has ended; what it started may still hold its output. */
  leaderExit?(result: ExitResult): void;
  /** Once, after the last output. */
  exit(result: ExitResult): void;
}

/** A process of a session, with or without a terminal, as its channel sees it. */
export interface SessionProcess {
  readonly pid: number;
  /** @returns false when the caller should wait for `drain`; the bytes were taken all the same */
  write(bytes: Uint8Array): boolean;
  endInput(): void;
  pause(): void;
  resume(): void;
  resize(size: WindowSize): void;
  /** To the whole process group. `name`: without SIG; unknown names are ignored. */
  signal(name: string): void;
  /** The client is gone: nobody reads or writes any more, SIGHUP, later SIGKILL. */
  hangUp(): void;
}

export class StartError extends MeshError {
  readonly code = "ERR_START_FAILED";
}

/** @returns whether any process of the group took it */
export function signalGroup(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(-pid, signal);
    return true;
  } catch {
    return false; // ended meanwhile, or another user's
  }
}

export function signalByName(name: string): NodeJS.Signals | undefined {
  const signal = `SIG${name}`;
  return signal in constants.signals ? (signal as NodeJS.Signals) : undefined;
}

/** @returns the name without SIG, e.g. 9 → "KILL"; real-time signals are "RT<number>" */
export function signalName(number: number): string {
  const found = Object.entries(constants.signals).find(([, value]) => value === number);
  return found ? found[0].slice(3) : `RT${number}`;
}

/**
 * SIGHUP to the group, and SIGKILL when its leader neither ends nor ignores SIGHUP. The ones who ignore it are
 * left alone, as sshd leaves them: that is what nohup is for.
 *
 * @returns the timer of the SIGKILL, to be cleared when the leader ends
 */
export function hangUpGroup(pid: number, killAfterMs = KILL_AFTER_MS): NodeJS.Timeout {
  signalGroup(pid, "SIGHUP");
  signalGroup(pid, "SIGCONT"); // a stopped process takes no SIGHUP
  return setTimeout(() => {
    if (!ignoresHangup(pid)) signalGroup(pid, "SIGKILL");
  }, killAfterMs);
}

/** Waits until the child runs. @throws {StartError} */
export function spawned(child: ChildProcess): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once("spawn", () => resolve(child.pid!));
    child.once("error", (cause) => {
      reject(new StartError(`the workspace could not start the process: ${cause.message}`, { cause }));
    });
  });
}

/**
 * Starts a process without a terminal, stderr apart, as the leader of its own process group.
 *
 * @throws {StartError} ERR_START_FAILED
 */
export async function startPlain(
  { argv, env, cwd, killAfterMs, releaseDetached }: StartRequest,
  pool: PipePool,
  events: ProcessEvents,
): Promise<SessionProcess> {
  const pipes = await pool.take();
  let child: ChildProcess;
  try {
    const [file, ...args] = argv;
    const stdio = [...(pipes?.child ?? (["pipe", "pipe", "pipe"] as const)), ...sealedStdio()];
    child = spawn(file, args, { env, cwd, detached: true, stdio });
  } catch (cause) {
    // Most failures come as an event; E2BIG, ENOMEM and their like don't, and nobody else would close these.
    for (const end of [pipes?.stdin, pipes?.stdout, pipes?.stderr]) end?.destroy();
    const why = cause instanceof Error ? cause.message : String(cause);
    const hint = why.includes("E2BIG")
      ? "; the command and the environment of template and client are too large"
      : "";
    throw new StartError(`the workspace could not start the process: ${why}${hint}`, { cause });
  } finally {
    for (const fd of pipes?.child ?? []) fs.closeSync(fd);
  }
  const stdin: Writable = pipes?.stdin ?? child.stdin!;
  const outputs: { kind: "data" | "stderr"; stream: Readable }[] = [
    { kind: "data", stream: pipes?.stdout ?? child.stdout! },
    { kind: "stderr", stream: pipes?.stderr ?? child.stderr! },
  ];
  stdin.on("error", () => {}); // EPIPE: it closed its stdin, which is its right; later input is dropped
  let running = true;
  let killTimer: NodeJS.Timeout | undefined;
  let open = outputs.length;
  let result: ExitResult | undefined;
  let released = false;
  let hungUp = false;
  let paused = false;
  let quiet = false;
  const names = pipes && releaseDetached === true ? pipeNames(pipes.outputFds) : undefined;
  let lookTimer: NodeJS.Timeout | undefined;
  const settle = () => {
    if (open === 0 && released) keptOutputs--;
    // Like OpenSSH: what the process left behind may still be writing to its output.
    if (!result || open > 0 || released) return;
    clearTimeout(lookTimer);
    events.exit(result);
  };
  const lookAtRest = (afterMs: number) => {
    lookTimer = setTimeout(() => {
      if (!result || open === 0) return;
      // What the leader wrote comes first, however slow the client: only a pipe that stayed silent is empty.
      const wasQuiet = quiet && !paused;
      quiet = true;
      if (!wasQuiet || !names || keptOutputs >= MAX_KEPT_OUTPUTS || !onlyDetachedHold(names, pid))
        return lookAtRest(Math.min(LAST_LOOK_MS, afterMs * 2));
      released = true;
      keptOutputs++;
      events.exit(result);
    }, afterMs);
    lookTimer.unref();
  };
  child.once("exit", (status, signal) => {
    running = false;
    clearTimeout(killTimer);
    result =
      signal === null ? { kind: "exited", status: status ?? 0 } : { kind: "signaled", name: signal.slice(3) };
    stdin.destroy();
    events.leaderExit?.(result);
    settle();
    if (open > 0 && names) lookAtRest(FIRST_LOOK_MS);
  });
  let pid: number;
  try {
    pid = await spawned(child);
  } catch (error) {
    stdin.destroy();
    for (const { stream } of outputs) stream.destroy();
    throw error;
  }
  for (const { kind, stream } of outputs) {
    stream.on("error", () => {}); // 'close' follows
    stream.on("data", (chunk: Uint8Array) => {
      quiet = false;
      if (!released && !hungUp) events.output(kind, chunk);
    });
    stream.once("close", () => {
      open--;
      settle();
    });
  }
  stdin.on("drain", () => events.drain());
  return {
    pid,
    write(bytes) {
      if (!stdin.writable) return true;
      stdin.write(bytes);
      return stdin.writableLength < INPUT_HIGH_BYTES;
    },
    endInput: () => void stdin.end(),
    pause() {
      if (released || hungUp) return;
      paused = true;
      for (const { stream } of outputs) stream.pause();
    },
    resume() {
      paused = false;
      quiet = false;
      for (const { stream } of outputs) stream.resume();
    },
    resize() {}, // there is no window
    signal(name) {
      const signal = signalByName(name);
      if (signal) signalGroup(pid, signal);
    },
    hangUp() {
      stdin.destroy();
      clearTimeout(lookTimer);
      if (released || hungUp) return;
      hungUp = true;
      const closeOutputs = () => {
        for (const { stream } of outputs) stream.destroy();
      };
      // Without its leader a group is what the session left in the background on purpose.
      if (!running) return closeOutputs();
      killTimer = hangUpGroup(pid, killAfterMs);
      // Who handles SIGHUP may still print (a shell says "Hangup" of its child): on a closed pipe that would end it
      // before it is done. So its output is read on, and dropped.
      for (const { stream } of outputs) stream.resume();
      const timer = setTimeout(closeOutputs, killAfterMs ?? KILL_AFTER_MS);
      child.once("exit", () => {
        clearTimeout(timer);
        closeOutputs();
      });
    },
  };
}
