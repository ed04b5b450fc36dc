import type { Duplex } from "node:stream";
import {
  ChannelDecoder,
  type ChannelMessage,
  dataPrefix,
  decodeHeader,
  encodeMessage,
  HeaderError,
  OPEN_FAILED_REASONS,
  type SessionHeader,
} from "../../mesh/wire/channel.ts";
import { MeshError, WireError } from "../../mesh/wire/errors.ts";
import { describe, type Logger } from "../logging.ts";
import { lastWords, type Peer } from "../streams.ts";
import { type Doors, openDoors } from "./doors.ts";
import { type Account, type Environment, sessionEnvironment } from "./environment.ts";
import { messageOfTheDay } from "./motd.ts";
import type { PipePool } from "./pipes.ts";
import {
  type ExitResult,
  KILL_AFTER_MS,
  type ProcessEvents,
  type SessionProcess,
  StartError,
  startPlain,
} from "./process.ts";
import { startPty } from "./pty.ts";

/** Sessions at once, processes or not: each may hold up to a stream's window of memory. */
export const MAX_SESSIONS = 256;
export const COMMAND_TIMEOUT_MS = 10_000;
/** A client that got everything but never ends its side is cut off after this. */
export const LINGER_MS = 10 * 60_000;
const REAP_MS = 500;
/** How long a client may take to read why its session is ended by us. */
const GOODBYE_MS = 500;
const STOPPING = "the workspace is stopping";
/** The one subsystem there is. */
const SFTP = "sftp";
/** Below this one small write beats two: an echoed key is one packet and one copy of a few bytes. */
const COPY_BELOW_BYTES = 2_048;

export interface SessionDeps {
  account: Account;
  environment: Environment;
  /** Asked for at each start: the directory may be made by a startup script. */
  directory(): string;
  pipes: PipePool;
  logger: Logger;
  /** Path of the message of the day; "" or undefined for none. */
  motdFile?(): string;
  commandTimeoutMs?: number;
  killAfterMs?: number;
}

function writeOutput(stream: Duplex, kind: "data" | "stderr", chunk: Uint8Array): boolean {
  if (chunk.length < COPY_BELOW_BYTES) return stream.write(encodeMessage({ kind, bytes: chunk }));
  stream.cork();
  stream.write(dataPrefix(kind, chunk.length));
  const more = stream.write(chunk);
  stream.uncork();
  return more;
}

function exitMessage(result: ExitResult): ChannelMessage {
  return result.kind === "exited"
    ? { kind: "exitStatus", status: result.status }
    : { kind: "exitSignal", name: result.name, coreDumped: false, message: "" };
}

/** argv for a header: the login shell, interactive or with the command, which only the shell takes apart. */
function loginCommand(header: SessionHeader, shell: string): readonly [string, ...string[]] {
  return header.kind === "exec" ? [shell, "-c", header.command ?? ""] : [shell, "-l"];
}

/**
 * Serves one session on its stream, from the process's start until both directions and the process have ended.
 * Never rejects: what goes wrong is told to the client, and the stream is reset when it broke the protocol.
 */
export async function serveSession(
  stream: Duplex,
  header: SessionHeader,
  deps: SessionDeps,
  peer?: Pick<Peer, "open">,
): Promise<void> {
  await new Channel(stream, header, deps, peer).run();
}

class Channel {
  readonly #stream: Duplex;
  readonly #deps: SessionDeps;
  readonly #peer: Pick<Peer, "open"> | undefined;
  #doors: Doors | undefined;
  readonly #decoder = new ChannelDecoder();
  readonly #closed: Promise<void>;
  readonly #ended: Promise<void>;
  #markEnded: () => void = () => {};
  #header: SessionHeader;
  #process: SessionProcess | undefined;
  #finished = false;
  /** Messages that came in one chunk with COMMAND, before there was a process to take them. */
  #early: ChannelMessage[] = [];
  #onCommand: ((command: string) => void) | undefined;

  constructor(
    stream: Duplex,
    header: SessionHeader,
    deps: SessionDeps,
    peer: Pick<Peer, "open"> | undefined,
  ) {
    this.#stream = stream;
    this.#peer = peer;
    this.#header = header;
    this.#deps = deps;
    this.#closed = new Promise((resolve) => {
      if (stream.destroyed) resolve();
      stream.once("close", resolve);
    });
    this.#ended = new Promise((resolve) => {
      this.#markEnded = resolve;
    });
    stream.on("error", (error) => deps.logger.debug({ reason: describe(error) }, "session stream closed"));
  }

  async run(): Promise<void> {
    const stream = this.#stream;
    stream.on("data", (chunk: Uint8Array) => this.#onChunk(chunk));
    stream.pause();
    stream.once("end", () => this.#onClientEnd());
    stream.once("close", () => this.#process?.hangUp());
    try {
      await this.#readCommand();
      await this.#start();
    } catch (error) {
      this.#refuse(error);
    }
    await this.#closed;
    this.#doors?.close();
    if (this.#process) await this.#processEnd();
  }

  /** Ends the session from our side: the process is hung up on, and the client told why. */
  stop(reason: string): void {
    const stream = this.#stream;
    if (stream.destroyed) return;
    if (this.#finished) return void stream.destroy();
    this.#finished = true;
    this.#process?.hangUp();
    const last: ChannelMessage = this.#process
      ? { kind: "exitSignal", name: "HUP", coreDumped: false, message: reason }
      : { kind: "openFailed", reason: OPEN_FAILED_REASONS.resourceShortage, message: reason };
    stream.end(encodeMessage(last));
    stream.resume();
    const timer = setTimeout(() => stream.destroy(), GOODBYE_MS);
    void this.#closed.then(() => clearTimeout(timer));
  }

  /** A process that was hung up on may take its time, and one that ignores SIGHUP as nohup does may stay. */
  async #processEnd(): Promise<void> {
    const waitMs = (this.#deps.killAfterMs ?? KILL_AFTER_MS) + REAP_MS;
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([
      this.#ended,
      new Promise((resolve) => {
        timer = setTimeout(resolve, waitMs);
      }),
    ]);
    clearTimeout(timer);
  }

  async #readCommand(): Promise<void> {
    const header = this.#header;
    if (header.kind !== "exec" || header.command !== undefined) return;
    const command = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new WireError("ERR_UNEXPECTED_FRAME", "the command did not arrive in time")),
        this.#deps.commandTimeoutMs ?? COMMAND_TIMEOUT_MS,
      );
      this.#onCommand = (text) => {
        clearTimeout(timer);
        this.#stream.pause();
        resolve(text);
      };
      void this.#closed.then(() => {
        clearTimeout(timer);
        reject(new WireError("ERR_FRAME_TRUNCATED", "the stream ended before the command"));
      });
      this.#stream.resume();
    });
    this.#onCommand = undefined;
    this.#header = { ...header, command };
  }

  async #start(): Promise<void> {
    const stream = this.#stream;
    let opened = false;
    const open = () => {
      if (!opened && stream.writable) stream.write(encodeMessage({ kind: "openOk" }));
      opened = true;
    };
    const events: ProcessEvents = {
      output: (kind, chunk) => {
        if (!stream.writable || this.#finished) return;
        open();
        if (!writeOutput(stream, kind, chunk)) this.#process?.pause();
      },
      drain: () => void stream.resume(),
      exit: (result) => this.#onExit(result),
    };
    stream.on("drain", () => this.#process?.resume());
    const started = await this.#startProcess(events);
    this.#process = started;
    if (stream.destroyed || this.#finished) return started.hangUp();
    open();
    // What came before there was a process to hold up.
    if (stream.writableNeedDrain) started.pause();
    for (const message of this.#early.splice(0)) this.#onMessage(message);
    stream.resume();
  }

  async #startProcess(events: ProcessEvents): Promise<SessionProcess> {
    const { account, environment, directory, pipes, logger, killAfterMs, motdFile } = this.#deps;
    const header = this.#header;
    if (header.kind === "subsystem") {
      if (header.subsystem !== SFTP)
        throw new HeaderError(
          OPEN_FAILED_REASONS.unknownKind,
          `this workspace has no subsystem "${header.subsystem}"; it has "${SFTP}"`,
        );
      const { startSftp } = await import("../sftp/server.ts");
      return startSftp({ directory: directory(), home: account.homeDir, logger }, events);
    }
    const doors = await openDoors(header, this.#peer, logger);
    this.#doors = doors;
    if (this.#stream.destroyed) doors.close();
    const request = {
      argv: loginCommand(header, account.shell),
      env: sessionEnvironment(environment, header.env, doors.env),
      cwd: directory(),
      killAfterMs,
      releaseDetached: true,
    };
    if (!header.pty) return startPlain(request, pipes, events);
    const motd = header.kind === "shell" ? messageOfTheDay(motdFile?.() ?? "", account.homeDir) : undefined;
    if (motd) events.output("data", motd);
    return startPty(request, header.pty, events);
  }

  #onChunk(chunk: Uint8Array): void {
    try {
      for (const message of this.#decoder.push(chunk)) this.#onMessage(message);
    } catch (error) {
      this.#reset(error);
    }
  }

  #onMessage(message: ChannelMessage): void {
    if (this.#onCommand) {
      if (message.kind !== "command")
        throw new WireError("ERR_UNEXPECTED_FRAME", `${message.kind} came before the command`);
      const deliver = this.#onCommand;
      this.#onCommand = undefined;
      return deliver(message.command);
    }
    const started = this.#process;
    if (!started) {
      // Bounded by the one chunk that is being decoded: the stream is paused.
      this.#early.push(message);
      return;
    }
    switch (message.kind) {
      case "data":
        if (!started.write(message.bytes) && !this.#finished) this.#stream.pause();
        return;
      case "eof":
        return started.endInput();
      case "windowChange":
        return started.resize(message);
      case "signal":
        return started.signal(message.name);
      case "break":
        return; // only a serial line has one; TCSBRK does nothing to a pseudo-terminal
      default:
        throw new WireError("ERR_UNEXPECTED_FRAME", `a client must not send ${message.kind}`);
    }
  }

  /** The client's end without EOF before it means the same. */
  #onClientEnd(): void {
    try {
      this.#decoder.end();
      this.#process?.endInput();
    } catch (error) {
      this.#reset(error);
    }
  }

  #onExit(result: ExitResult): void {
    this.#markEnded();
    if (this.#finished) return; // stopped: all was said
    this.#finish(exitMessage(result));
  }

  #refuse(error: unknown): void {
    const { logger } = this.#deps;
    if (this.#stream.destroyed) return;
    if (error instanceof WireError && !(error instanceof HeaderError)) return this.#reset(error);
    if (!(error instanceof MeshError)) logger.error({ reason: describe(error) }, "a session failed to start");
    const reason = error instanceof HeaderError ? error.reason : OPEN_FAILED_REASONS.startFailed;
    const message =
      error instanceof HeaderError || error instanceof StartError
        ? error.message
        : "the agent could not start the session; its log says why";
    this.#finish({ kind: "openFailed", reason, message });
  }

  /** Our last message and our end; the client's own end then closes the stream. */
  #finish(message: ChannelMessage): void {
    const stream = this.#stream;
    this.#finished = true;
    if (stream.destroyed) return;
    stream.end(encodeMessage(message));
    stream.resume(); // input that came too late
    const timer = setTimeout(() => stream.destroy(), LINGER_MS);
    timer.unref();
    void this.#closed.then(() => clearTimeout(timer));
  }

  #reset(error: unknown): void {
    this.#deps.logger.warn({ reason: describe(error) }, "a client broke the session protocol");
    this.#stream.destroy(error instanceof Error ? error : new Error(String(error)));
  }
}

/** Every session of the agent: their number is bounded, and all can be hung up on. */
export class SessionService {
  readonly #deps: SessionDeps;
  readonly #maxSessions: number;
  readonly #sessions = new Map<Channel, Promise<void>>();
  #closing = false;

  constructor(deps: SessionDeps, maxSessions = MAX_SESSIONS) {
    this.#deps = deps;
    this.#maxSessions = maxSessions;
  }

  get count(): number {
    return this.#sessions.size;
  }

  /**
   * Serves a stream opened to SESSION_SERVICE; `metadata`: its OPEN frame's; without `peer` neither SSH agent nor X11
   * is forwarded. Never rejects.
   */
  async handle(stream: Duplex, metadata: Uint8Array, peer?: Pick<Peer, "open">): Promise<void> {
    if (this.#closing || this.#sessions.size >= this.#maxSessions) {
      const message = this.#closing
        ? STOPPING
        : `the workspace already has ${this.#maxSessions} sessions; end one and try again`;
      return refuse(stream, OPEN_FAILED_REASONS.resourceShortage, message);
    }
    let header: SessionHeader;
    try {
      header = decodeHeader(metadata);
    } catch (error) {
      const reason = error instanceof HeaderError ? error.reason : OPEN_FAILED_REASONS.badHeader;
      return refuse(stream, reason, describe(error));
    }
    const startedAt = performance.now();
    this.#deps.logger.info({ kind: header.kind, pty: header.pty !== undefined }, "session started");
    const channel = new Channel(stream, header, this.#deps, peer);
    const session = channel.run();
    this.#sessions.set(channel, session);
    await session;
    this.#sessions.delete(channel);
    this.#deps.logger.info({ durationMs: Math.round(performance.now() - startedAt) }, "session ended");
  }

  /** Hangs up on every session, refuses new ones, and waits (bounded) for the processes to end. */
  async close(): Promise<void> {
    this.#closing = true;
    for (const channel of this.#sessions.keys()) channel.stop(STOPPING);
    await Promise.all(this.#sessions.values());
  }
}

const refuse = (stream: Duplex, reason: number, message: string): Promise<void> =>
  lastWords(stream, encodeMessage({ kind: "openFailed", reason, message }));
