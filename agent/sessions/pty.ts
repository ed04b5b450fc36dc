import fs from "node:fs";
import type { Socket } from "node:net";
import type { PtyRequest } from "../../mesh/wire/channel.ts";
import { isExecutable } from "./environment.ts";
import { statFields } from "./left-behind.ts";
import { sttyCalls } from "./modes.ts";
import {
  type ExitResult,
  hangUpGroup,
  INPUT_HIGH_BYTES,
  type ProcessEvents,
  type SessionProcess,
  StartError,
  type StartRequest,
  signalByName,
  signalGroup,
  signalName,
} from "./process.ts";
import { closeTerminals, preparingShell, terminalClosed, terminalOpened } from "./sealed.ts";

// node-pty gives us a terminal, and six traps (all tried with 1.1.0 on Linux; each has a test):
// 1. 200 ms after the exit it destroys its socket, read or not; and EIO, which is how Linux reports the end,
//    destroys it together with what a paused reader had buffered. Both lose the last output of a session whose
//    client is slow. So destroy is ours: it happens once everything was handed on.
// 2. libuv takes a hangup after a partial read for the end. A terminal never gives more than 4,095 bytes a read, so
//    every read is partial, and all but the next 4 KB of what was written before the exit would be lost. So after
//    libuv's end we read the descriptor ourselves until the kernel says EIO.
// 3. Its write() goes through a socket libuv deems blocking: a program that does not read its terminal would
//    freeze the whole agent in a busy loop. So we write to the descriptor ourselves and retry on EAGAIN.
// 4. The master descriptor is inherited by every later child, which could then read and type in this session, and
//    keeps the terminal from hanging up. sealed.ts tells what later children get instead.
// 5. Its kill() reaches only the leader. So signals go to the group.
// 6. Only with encoding "utf8" does it set IUTF8, without which the kernel's line editing erases single bytes of a
//    character; but then its socket reads text, which tears what is no UTF-8. So the socket is switched to latin1,
//    one character per byte, before the first read.

const QUIET_MS = 50;
/** After the exit, output of what was left behind in the background is handed on for at most this long. */
const MAX_DRAIN_MS = 2_000;
const RETRY_MIN_MS = 2;
const RETRY_MAX_MS = 100;
const WRITE_BYTES = 64 * 1024;
/** What the kernel hands out at once. */
const READ_BYTES = 4_096;
const MAX_REST_TRIES = 50;

/** What we use of node-pty's UnixTerminal beyond its published types. */
interface UnixTerminal {
  readonly pid: number;
  readonly fd: number;
  readonly _socket: Socket;
  resize(cols: number, rows: number): void;
  onExit(listener: (event: { exitCode: number; signal?: number }) => void): unknown;
}

function isUnixTerminal(value: object): value is UnixTerminal {
  return "fd" in value && typeof value.fd === "number" && "_socket" in value;
}

/**
 * argv for a new terminal: a shell that closes the other terminals, sets the client's modes and SSH_TTY, and becomes
 * the program. Costs 2 ms. Words reach it as arguments, never as part of the script.
 */
export function preparedCommand(
  argv: readonly [string, ...string[]],
  modes: Record<string, number> | undefined,
): readonly [string, ...string[]] {
  const { shell, sealing } = preparingShell();
  const calls = sttyCalls(modes).filter((call) => call.length > 0);
  const words = calls.flat();
  let first = 1;
  const stty = calls.map((call) => {
    const places = call.map((_, i) => `"\${${first + i}}"`).join(" ");
    first += call.length;
    return `stty ${places} 2>/dev/null; `;
  });
  const script = [
    sealing ? closeTerminals() : "",
    ...stty,
    "SSH_TTY=$(tty) && export SSH_TTY; ",
    `shift ${words.length}; exec "$@"`,
  ].join("");
  // bash: --norc and -p, since the user's own bash reads its files, this one must not.
  const quiet = shell.endsWith("bash") ? ["--norc", "--noprofile", "-p"] : [];
  return [shell, ...quiet, "-c", script, shell, ...words, ...argv];
}

/**
 * Starts a process as the leader of its own session on a new terminal.
 *
 * @throws {StartError} ERR_START_FAILED
 */
export async function startPty(
  { argv, env, cwd, killAfterMs }: StartRequest,
  request: PtyRequest,
  events: ProcessEvents,
): Promise<SessionProcess> {
  // Only the preparing shell would notice, with an exit status for an error.
  if (argv[0].includes("/") && !isExecutable(argv[0]))
    throw new StartError(`the workspace could not start the process: ENOENT ${argv[0]}`);
  const [file, ...args] = preparedCommand(argv, request.modes);
  let terminal: UnixTerminal;
  try {
    const nodePty = await import("@lydell/node-pty");
    const spawnedTerminal = nodePty.spawn(file, args, {
      name: request.term,
      cols: request.cols,
      rows: request.rows,
      cwd,
      env,
      encoding: "utf8",
    });
    if (!isUnixTerminal(spawnedTerminal)) throw new Error("terminals are supported on Linux and macOS only");
    terminal = spawnedTerminal;
    terminal._socket.setEncoding("latin1");
  } catch (cause) {
    throw new StartError(
      `the workspace could not open a terminal: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
  return new PtyProcess(terminal, events, killAfterMs);
}

class PtyProcess implements SessionProcess {
  readonly pid: number;
  readonly #terminal: UnixTerminal;
  readonly #socket: Socket;
  readonly #events: ProcessEvents;
  readonly #destroySocket: () => void;
  #running = true;
  /** The kernel has no more output for us. */
  #outputEnded = false;
  #closed = false;
  #hungUp = false;
  #killTimer: NodeJS.Timeout | undefined;
  readonly #killAfterMs: number | undefined;
  #paused = false;
  #bytesRead = 0;
  /** Set once the socket has ended: how often the rest was not there yet. */
  #restTries: number | undefined;
  #restTimer: NodeJS.Timeout | undefined;
  #drainTimer: NodeJS.Timeout | undefined;
  #input: Uint8Array[] = [];
  #inputBytes = 0;
  #inputFull = false;
  #retryMs = RETRY_MIN_MS;
  #retryTimer: NodeJS.Timeout | undefined;

  constructor(terminal: UnixTerminal, events: ProcessEvents, killAfterMs: number | undefined) {
    this.#killAfterMs = killAfterMs;
    this.pid = terminal.pid;
    this.#terminal = terminal;
    this.#events = events;
    const socket = terminal._socket;
    this.#socket = socket;
    terminalOpened(terminal.fd);
    this.#destroySocket = socket.destroy.bind(socket, undefined);
    // Trap 1. With an error: the read side ended (EIO). Without: node-pty's timer, 200 ms after the exit.
    socket.destroy = (error?: Error) => {
      if (error) this.#onOutputEnd();
      else this.#drainLeftBehind();
      return socket;
    };
    socket.on("end", () => this.#readRest());
    socket.on("data", (text: string) => {
      const chunk = Buffer.from(text, "latin1");
      this.#bytesRead += chunk.length;
      if (!this.#hungUp) events.output("data", chunk);
      if (this.#outputEnded) this.#onOutputEnd();
    });
    terminal.onExit(({ exitCode, signal }) => {
      const result: ExitResult =
        signal !== undefined && signal > 0
          ? { kind: "signaled", name: signalName(signal) }
          : { kind: "exited", status: exitCode };
      this.#running = false;
      clearTimeout(this.#killTimer);
      events.exit(result);
    });
  }

  write(bytes: Uint8Array): boolean {
    if (this.#closed || this.#outputEnded || !this.#running) return true; // nobody is left to read it
    this.#input.push(bytes);
    this.#inputBytes += bytes.length;
    if (this.#retryTimer === undefined) this.#pump();
    this.#inputFull = this.#inputBytes >= INPUT_HIGH_BYTES;
    return !this.#inputFull;
  }

  /** As in sshd nothing happens: a terminal has no end of input, only a key that means it (usually Ctrl-D). */
  endInput(): void {}

  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#paused = false;
    if (this.#restTries !== undefined) this.#readRest();
    else this.#socket.resume();
  }

  resize({ cols, rows }: { cols: number; rows: number }): void {
    if (!this.#closed) this.#terminal.resize(cols, rows);
  }

  signal(name: string): void {
    const signal = signalByName(name);
    if (!signal || !this.#running) return;
    // The job in the foreground, which has a group of its own (tpgid of proc(5)); the shell's when there is none.
    const foreground = Number(statFields(this.pid)?.[5]);
    if (!(foreground > 1 && signalGroup(foreground, signal))) signalGroup(this.pid, signal);
  }

  hangUp(): void {
    if (this.#hungUp) return;
    this.#hungUp = true;
    if (this.#running) this.#killTimer = hangUpGroup(this.pid, this.#killAfterMs);
    // Closing the master makes the kernel hang up on the job in the foreground, which has a group of its own.
    this.#close();
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    terminalClosed(this.#terminal.fd);
    clearInterval(this.#drainTimer);
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#restTimer);
    this.#input = [];
    this.#destroySocket();
  }

  #onOutputEnd(): void {
    this.#outputEnded = true;
    if (this.#socket.readableLength === 0) this.#close();
  }

  /** Trap 2. What the socket no longer reads, at the client's pace. */
  #readRest(): void {
    this.#restTries ??= 0;
    while (!this.#closed && !this.#paused) {
      const buffer = Buffer.allocUnsafe(READ_BYTES);
      let length = 0;
      try {
        length = fs.readSync(this.#terminal.fd, buffer);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === "EAGAIN" && this.#restTries++ < MAX_REST_TRIES) {
          clearTimeout(this.#restTimer);
          this.#restTimer = setTimeout(() => this.#readRest(), RETRY_MIN_MS);
          return;
        }
      }
      if (length === 0) return this.#onOutputEnd();
      if (!this.#hungUp) this.#events.output("data", buffer.subarray(0, length));
    }
  }

  /** The process has ended, but something it started keeps the terminal open: end once that is quiet. */
  #drainLeftBehind(): void {
    if (this.#drainTimer || this.#closed || this.#outputEnded || this.#restTries !== undefined) return;
    let seen = -1;
    let ticks = 0;
    this.#drainTimer = setInterval(() => {
      if (this.#paused || this.#restTries !== undefined) return;
      ticks++;
      if (this.#bytesRead === seen || ticks * QUIET_MS >= MAX_DRAIN_MS) this.#close();
      seen = this.#bytesRead;
    }, QUIET_MS);
  }

  #pump(): void {
    this.#retryTimer = undefined;
    while (this.#input.length > 0 && !this.#closed) {
      const head = this.#input[0];
      let written: number;
      try {
        written = fs.writeSync(this.#terminal.fd, head, 0, Math.min(head.length, WRITE_BYTES));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN") {
          this.#input = []; // EIO: nobody is left to read it
          this.#inputBytes = 0;
          break;
        }
        this.#retryTimer = setTimeout(() => this.#pump(), this.#retryMs);
        this.#retryMs = Math.min(RETRY_MAX_MS, this.#retryMs * 2);
        return;
      }
      this.#retryMs = RETRY_MIN_MS;
      this.#inputBytes -= written;
      if (written === head.length) this.#input.shift();
      else this.#input[0] = head.subarray(written);
    }
    if (this.#inputFull && this.#inputBytes < INPUT_HIGH_BYTES / 2) {
      this.#inputFull = false;
      this.#events.drain();
    }
  }
}
