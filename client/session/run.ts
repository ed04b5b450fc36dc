import { constants } from "node:os";
import type { Duplex, Readable, Writable } from "node:stream";
import {
  ChannelDecoder,
  type ChannelMessage,
  dataPrefix,
  encodeMessage,
  MAX_DATA_BYTES,
  type WindowSize,
} from "../../mesh/wire/channel.ts";
import { MeshError, WireError } from "../../mesh/wire/errors.ts";
import { ESCAPE_HELP, type EscapeAction, EscapeKeys } from "./escape.ts";
import { enterRawMode, suspendProcess, windowSize } from "./terminal.ts";

/** As OpenSSH: the connection failed, so the code is not the command's. */
export const EXIT_CONNECTION = 255;
/** Local output was closed (`… | head -1`): 128 + SIGPIPE, as a shell reports a local program that wrote on. */
export const EXIT_OUTPUT_CLOSED = 141;
const COPY_BELOW_BYTES = 2_048;
/** A reader of our output that is stuck must not keep us once we were told to go. */
const FLUSH_MS = 500;

export interface RunSessionOptions {
  stdin: Readable;
  stdout: Writable;
  stderr: Writable;
  /** The session has a terminal and `stdin` is one: raw mode, escape keys, resizes are sent, no end of input. */
  isTerminal: boolean;
  /** What the session's terminal was asked to measure; if the local one was resized meanwhile, it is told. */
  size?: WindowSize;
  /** Written first: `encodeOpening(…).first`. */
  first?: Uint8Array;
  /** Ends the session: the process gets SIGHUP, the result is 130. */
  abort?: AbortSignal;
  /** Sees what goes to the terminal. */
  onOutput?: (bytes: Uint8Array) => void;
  /** What `~I` shows: how the workspace is reached. */
  describe?: () => Promise<string>;
}

export interface SessionResult {
  /** The command's own; 128 + n for signal n; EXIT_CONNECTION when the session did not start or was cut off. */
  exitCode: number;
  /** Without SIG, when a signal ended the command. */
  signal?: string;
  /** The user left by `~.`, perhaps since nothing answered: whoever closes the connection must not wait for it. */
  left?: boolean;
  /** We ended it, not the command: the agent has to hear of it, or the command goes on. */
  cutShort?: boolean;
}

type Ending =
  | { kind: "exit"; message: ChannelMessage }
  | { kind: "lost"; reason: string }
  | { kind: "outputFailed"; reason: string }
  | { kind: "outputClosed" }
  | { kind: "left" }
  /** The terminal itself is gone: its window was closed, its line was dropped. */
  | { kind: "terminalGone" }
  | { kind: "aborted" };

/**
 * The user's side of a session: joins a stream just opened to the session service with local input and output.
 * Resolves, never rejects, once all output has been handed to the operating system and the terminal is as it was;
 * what went wrong is told on `stderr`.
 */
export async function runSession(stream: Duplex, options: RunSessionOptions): Promise<SessionResult> {
  const { stdin, stdout, stderr, isTerminal, first, abort, size, onOutput } = options;
  const restore = isTerminal ? enterRawMode(stdin) : () => {};
  const undo: (() => void)[] = [];
  const on: On = (emitter, event, listener) => {
    const handler = listener as (...args: unknown[]) => void;
    emitter.on(event, handler);
    undo.push(() => emitter.removeListener(event, handler));
  };
  let outputFailed: Ending | undefined;
  try {
    const ending = await new Promise<Ending>((resolve) => {
      if (first && first.length > 0) stream.write(first);
      receive(stream, { stdout, stderr, onOutput }, on, resolve);
      if (isTerminal) {
        const act = (action: EscapeAction) => performEscape(action, stream, options, resolve);
        sendInput(stream, stdin, on, { act, gone: () => resolve({ kind: "terminalGone" }) });
      } else sendInput(stream, stdin, on);
      if (isTerminal) sendSize(stream, stdout, on, size);
      for (const output of [stdout, stderr])
        on(output, "error", (error: NodeJS.ErrnoException) => {
          if (error.code === "EPIPE") return resolve({ kind: "outputClosed" });
          outputFailed = { kind: "outputFailed", reason: error.message };
          resolve(outputFailed);
        });
      if (abort?.aborted) resolve({ kind: "aborted" });
      const onAbort = () => resolve({ kind: "aborted" });
      abort?.addEventListener("abort", onAbort, { once: true });
      undo.push(() => abort?.removeEventListener("abort", onAbort));
    });
    stream.on("error", () => {}); // whatever the stream still has to say, the session is over
    if (ending.kind === "exit") stream.end();
    else stream.destroy();
    stream.resume();
    const flush = Promise.all([flushed(stdout), flushed(stderr)]);
    if (["aborted", "left", "terminalGone"].includes(ending.kind)) await Promise.race([flush, flushTime()]);
    else await flush;
    restore();
    // Output that came right before the result may have failed after it: no success without the whole output.
    return await report(outputFailed ?? ending, stderr, isTerminal);
  } finally {
    restore();
    for (const step of undo) step();
    stdin.pause(); // else a terminal or a pipe keeps the process alive
  }
}

const flushTime = () => new Promise<void>((resolve) => setTimeout(resolve, FLUSH_MS).unref());

function flushed(output: Writable): Promise<void> {
  return new Promise((resolve) => {
    if (output.destroyed || output.writableEnded) return resolve();
    output.once("close", resolve);
    output.write("", () => {
      output.removeListener("close", resolve);
      resolve();
    });
  });
}

type On = (emitter: NodeJS.EventEmitter, event: string, listener: (...args: never[]) => void) => void;

function sendSize(stream: Duplex, stdout: Writable, on: On, known: WindowSize | undefined): void {
  const send = (size: WindowSize) => {
    if (stream.writable) stream.write(encodeMessage({ kind: "windowChange", ...size }));
  };
  const now = windowSize(stdout);
  if (known && (known.cols !== now.cols || known.rows !== now.rows)) send(now);
  on(stdout, "resize", () => send(windowSize(stdout)));
}

/** Does what an escape key asks for. */
function performEscape(
  action: EscapeAction,
  stream: Duplex,
  { stdin, stderr, describe }: RunSessionOptions,
  settle: (ending: Ending) => void,
): void {
  switch (action) {
    case "leave":
      return settle({ kind: "left" });
    case "help":
      return void stderr.write(ESCAPE_HELP);
    case "break":
      if (stream.writable) stream.write(encodeMessage({ kind: "break", lengthMs: 0 }));
      return;
    case "suspend":
      return suspendProcess(stdin);
    case "info":
      describe?.().then(
        (text) => stderr.write(`~I\r\n[coder] ${printable(text)}\r\n`),
        (error: Error) => stderr.write(`~I\r\n[coder] ${printable(error.message)}\r\n`),
      );
  }
}

interface TerminalKeys {
  act(action: EscapeAction): void;
  gone(): void;
}

/** `terminal`: with it, escape keys are looked for and taken out, and the end of input is the end of the terminal. */
function sendInput(stream: Duplex, stdin: Readable, on: On, terminal?: TerminalKeys): void {
  const escapes = terminal ? new EscapeKeys() : undefined;
  on(stdin, "data", (chunk: Uint8Array | string) => {
    let bytes: Uint8Array = typeof chunk === "string" ? Buffer.from(chunk) : chunk;
    if (escapes) {
      const keys = escapes.push(bytes);
      bytes = keys.bytes;
      for (const action of keys.actions) terminal?.act(action);
      if (keys.actions.includes("leave")) return;
    }
    if (!stream.writable) return;
    for (let at = 0; at < bytes.length; at += MAX_DATA_BYTES)
      if (!writeInput(stream, bytes.subarray(at, at + MAX_DATA_BYTES))) stdin.pause();
  });
  on(stream, "drain", () => void stdin.resume());
  const end = () => {
    if (terminal) terminal.gone();
    else if (stream.writable) stream.write(encodeMessage({ kind: "eof" }));
  };
  on(stdin, "end", end);
  on(stdin, "error", end); // a local file that can't be read on: what came before counts
  if (stdin.readableEnded || stdin.destroyed) end();
  else stdin.resume();
}

function writeInput(stream: Duplex, bytes: Uint8Array): boolean {
  if (bytes.length < COPY_BELOW_BYTES) return stream.write(encodeMessage({ kind: "data", bytes }));
  stream.cork();
  stream.write(dataPrefix("data", bytes.length));
  const more = stream.write(bytes);
  stream.uncork();
  return more;
}

function receive(
  stream: Duplex,
  { stdout, stderr, onOutput }: Pick<RunSessionOptions, "stdout" | "stderr" | "onOutput">,
  on: On,
  settle: (ending: Ending) => void,
): void {
  const decoder = new ChannelDecoder();
  let over = false;
  const finish = (ending: Ending) => {
    over = true;
    settle(ending);
  };
  const full = new Set<Writable>();
  const write = (output: Writable, bytes: Uint8Array) => {
    onOutput?.(bytes);
    if (output.write(bytes)) return;
    full.add(output);
    stream.pause();
  };
  for (const output of [stdout, stderr])
    on(output, "drain", () => {
      if (full.delete(output) && full.size === 0) stream.resume();
    });
  const take = (message: ChannelMessage) => {
    switch (message.kind) {
      case "data":
        return write(stdout, message.bytes);
      case "stderr":
        return write(stderr, message.bytes);
      case "exitStatus":
      case "exitSignal":
      case "openFailed":
        return finish({ kind: "exit", message });
      case "openOk":
      case "eof":
        return;
      default:
        throw new WireError("ERR_UNEXPECTED_FRAME", `an agent must not send ${message.kind}`);
    }
  };
  on(stream, "data", (chunk: Uint8Array) => {
    if (over) return;
    try {
      for (const message of decoder.push(chunk)) if (!over) take(message);
    } catch (error) {
      finish({ kind: "lost", reason: error instanceof MeshError ? error.message : String(error) });
    }
  });
  const lost = (reason: string) => {
    if (!over) finish({ kind: "lost", reason });
  };
  on(stream, "error", (error: Error) => lost(explain(error)));
  on(stream, "end", () => lost("the agent ended the session without a result"));
  on(stream, "close", () => lost("the connection was closed"));
}

/** An agent resets a session only when it stops, or when we broke the protocol. */
function explain(error: Error): string {
  if (!(error instanceof MeshError) || error.code !== "ERR_STREAM_RESET") return error.message;
  return "the workspace ended it, as it does when it is stopped";
}

/** Lets an agent's text reach the terminal as text only: it could carry control sequences. */
const printable = (text: string) => text.replace(/[\x00-\x1f\x7f-\x9f]/g, " ");

async function report(ending: Ending, stderr: Writable, newLine: boolean): Promise<SessionResult> {
  const tell = (line: string) =>
    new Promise<void>((resolve) => {
      if (stderr.destroyed || stderr.writableEnded) return resolve();
      setTimeout(resolve, FLUSH_MS).unref();
      // A program on a terminal leaves the cursor anywhere.
      stderr.write(`${newLine ? "\n" : ""}${line}\n`, () => resolve());
    });
  switch (ending.kind) {
    case "outputClosed":
      return { exitCode: EXIT_OUTPUT_CLOSED, cutShort: true };
    case "aborted":
      return { exitCode: 128 + constants.signals.SIGINT, cutShort: true };
    case "terminalGone":
      return { exitCode: 128 + constants.signals.SIGHUP, left: true };
    case "left":
      await tell("Session closed.");
      return { exitCode: EXIT_CONNECTION, left: true };
    case "outputFailed":
      await tell(`error: the output could not be written: ${printable(ending.reason)}`);
      return { exitCode: EXIT_CONNECTION, cutShort: true };
    case "lost":
      await tell(
        `error: the session was cut off: ${printable(ending.reason)}\n` +
          "Run the command again; `coder show` says whether the workspace still runs.",
      );
      return { exitCode: EXIT_CONNECTION };
    case "exit":
      break;
  }
  const { message } = ending;
  if (message.kind === "exitStatus") return { exitCode: message.status };
  if (message.kind === "exitSignal") {
    // The agent says why it hung up; a process that a signal ended has nothing to say.
    if (message.name === "HUP" && message.message !== "") {
      await tell(
        `error: the session was cut off: the workspace ended it (${printable(message.message)})\n` +
          "`coder show` says how it is; `coder start` starts it again.",
      );
      return { exitCode: EXIT_CONNECTION };
    }
    const signals: Record<string, number | undefined> = constants.signals;
    return { exitCode: 128 + (signals[`SIG${message.name}`] ?? 0), signal: message.name };
  }
  if (message.kind === "openFailed")
    await tell(`error: the workspace refused the session: ${printable(message.message)}`);
  return { exitCode: EXIT_CONNECTION };
}
