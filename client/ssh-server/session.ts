import type { Duplex } from "node:stream";
import {
  ChannelDecoder,
  type ChannelMessage,
  dataPrefix,
  encodeMessage,
  encodeOpening,
  MAX_ENV_ENTRIES,
  type PtyRequest,
  SESSION_SERVICE,
  type SessionHeader,
  type WindowSize,
  type X11Request,
} from "../../mesh/wire/channel.ts";
import { WireError } from "../../mesh/wire/errors.ts";
import { ptyRequest } from "../session/header.ts";
import type { Channel } from "./channel.ts";
import { describeEnding, describeFailure, type ServerConnection } from "./connection.ts";
import type { PtyRequestMessage } from "./modes.ts";

/** Of the header's 16,384 bytes; command, terminal modes and cookies need the rest. */
const MAX_ENV_BYTES = 6_144;
/** What a client may send before the workspace is reached; later ones are dropped. */
const MAX_EARLY_MESSAGES = 64;
/** Below this one small write beats two. */
const COPY_BELOW_BYTES = 2_048;
/** As OpenSSH: the connection failed, so the code is not the command's. */
const EXIT_CONNECTION = 255;

/** What a session needs of the SSH connection beside its channel. */
export interface SessionHost {
  readonly connection: Promise<ServerConnection>;
  exitStatus(channel: Channel, status: number): void;
  exitSignal(channel: Channel, name: string, coreDumped: boolean, text: string): void;
  /** Streams that an agent opens with `token` become channels of this type at the client. */
  acceptCallbacks(
    connection: ServerConnection,
    token: string,
    channelType: "auth-agent" | "x11",
    once: boolean,
  ): () => void;
  newToken(): string;
  failureTold(): void;
}

export type SessionStart =
  | { kind: "shell" }
  | { kind: "exec"; command: string }
  | { kind: "subsystem"; subsystem: string };

function isWindowSize(data: unknown): data is { cols: number; rows: number; width: number; height: number } {
  return typeof data === "object" && data !== null && "cols" in data && "rows" in data;
}

const dimension = (value: number, min: number) => Math.min(65_535, Math.max(min, value));

const sizeOf = (cols: number, rows: number, widthPx: number, heightPx: number): WindowSize => ({
  cols: dimension(cols, 1),
  rows: dimension(rows, 1),
  widthPx: dimension(widthPx, 0),
  heightPx: dimension(heightPx, 0),
});

/** A channel of type "session": RFC 4254 section 6 on the client's side, the session service on the workspace's. */
export class SshSession {
  readonly #channel: Channel;
  readonly #host: SessionHost;
  readonly #env: Record<string, string> = {};
  #envBytes = 0;
  #pty: PtyRequest | undefined;
  #wantsAgent = false;
  #x11: Omit<X11Request, "token"> | undefined;
  #isStarted = false;
  #isOver = false;
  #stream: Duplex | undefined;
  /** Until there is a stream. Data is bounded by the channel's window, messages by their number. */
  #early: ChannelMessage[] = [];
  #undo: (() => void)[] = [];
  /** The client reads no output any more: eow@openssh.com. */
  #isDeaf = false;
  #saidPipe = false;

  constructor(channel: Channel, host: SessionHost) {
    this.#channel = channel;
    this.#host = host;
    channel.onData = (bytes) => this.#send({ kind: "data", bytes });
    channel.onEof = () => this.#send({ kind: "eof" });
    channel.onClose = () => this.#release();
    channel.onDrain = () => void this.#stream?.resume();
  }

  /** @returns whether it was done */
  onPtyRequest(request: PtyRequestMessage): boolean {
    if (this.#isStarted) return false;
    const size = sizeOf(request.cols, request.rows, request.widthPx, request.heightPx);
    this.#pty = { ...ptyRequest(size, request.term), modes: request.modes };
    return true;
  }

  /** Any request but pty-req. @returns whether it was done */
  onRequest(type: string, data: unknown): boolean {
    switch (type) {
      case "shell":
        return this.#start({ kind: "shell" });
      case "exec":
        return this.#start({ kind: "exec", command: String(data) });
      case "subsystem":
        return this.#start({ kind: "subsystem", subsystem: String(data) });
      case "env":
        return this.#setEnv(data as { name: string; value: string });
      case "auth-agent-req@openssh.com":
        if (this.#isStarted) return false;
        this.#wantsAgent = true;
        return true;
      case "x11-req":
        return this.#requestX11(
          data as { single: boolean; protocol: string; cookie: Buffer; screen: number },
        );
      case "window-change":
        if (!isWindowSize(data)) return false;
        this.#send({ kind: "windowChange", ...sizeOf(data.cols, data.rows, data.width, data.height) });
        return true;
      case "signal":
        return this.#signal(String(data));
      case "break": {
        const lengthMs = Buffer.isBuffer(data) && data.length >= 4 ? data.readUInt32BE(0) : 0;
        this.#send({ kind: "break", lengthMs });
        return true;
      }
      case "eow@openssh.com":
        this.#isDeaf = true;
        return true;
      default:
        return false;
    }
  }

  /** The workspace can't be reached, or no longer. */
  fail(error: unknown): void {
    if (this.#isOver) return;
    this.#host.failureTold();
    this.#finishWith(describeFailure(error));
  }

  #setEnv({ name, value }: { name: string; value: string }): boolean {
    if (this.#isStarted || !/^[A-Za-z_][A-Za-z0-9_]{0,255}$/.test(name) || value.includes("\0")) return false;
    const bytes = JSON.stringify(name).length + Buffer.byteLength(JSON.stringify(value)) + 2;
    if (this.#envBytes + bytes > MAX_ENV_BYTES || Object.keys(this.#env).length >= MAX_ENV_ENTRIES)
      return false;
    this.#envBytes += bytes;
    this.#env[name] = value;
    return true;
  }

  #requestX11(data: { single: boolean; protocol: string; cookie: Buffer; screen: number }): boolean {
    const authCookie = data.cookie.toString("latin1");
    if (
      this.#isStarted ||
      data.screen > 65_535 ||
      !/^[\x21-\x7e]{1,64}$/.test(data.protocol) ||
      !/^(?:[0-9a-fA-F]{2}){1,256}$/.test(authCookie)
    )
      return false;
    this.#x11 = {
      singleConnection: data.single,
      authProtocol: data.protocol,
      authCookie,
      screen: data.screen,
    };
    return true;
  }

  #signal(name: string): boolean {
    try {
      encodeMessage({ kind: "signal", name });
    } catch {
      return false;
    }
    this.#send({ kind: "signal", name });
    return true;
  }

  /** RFC 4254 section 6.5: one of them a channel. Said yes to at once: the workspace's answer takes a round trip. */
  #start(start: SessionStart): boolean {
    if (this.#isStarted) return false;
    this.#isStarted = true;
    void this.#run(start).catch((error: unknown) => this.fail(error));
    return true;
  }

  async #run(start: SessionStart): Promise<void> {
    const connection = await this.#host.connection;
    if (this.#isOver) return;
    const header: SessionHeader = { ...start, env: this.#env };
    if (this.#pty) header.pty = this.#pty;
    if (this.#wantsAgent) header.agent = { token: this.#callbacks(connection, "auth-agent", false) };
    if (this.#x11) {
      const token = this.#callbacks(connection, "x11", this.#x11.singleConnection);
      header.x11 = { ...this.#x11, token };
    }
    const { metadata, first } = encodeOpening(header);
    const stream = await connection.dial(SESSION_SERVICE, metadata);
    if (this.#isOver) return void stream.on("error", () => {}).destroy();
    this.#stream = stream;
    if (first.length > 0) stream.write(first);
    this.#receive(stream);
    for (const message of this.#early.splice(0)) this.#sendTo(stream, message);
  }

  #callbacks(connection: ServerConnection, type: "auth-agent" | "x11", once: boolean): string {
    const token = this.#host.newToken();
    this.#undo.push(this.#host.acceptCallbacks(connection, token, type, once));
    return token;
  }

  #send(message: ChannelMessage): void {
    if (this.#isOver) return;
    if (this.#stream) return this.#sendTo(this.#stream, message);
    const held = this.#early.filter(({ kind }) => kind !== "data").length;
    if (message.kind === "data" || message.kind === "eof" || held < MAX_EARLY_MESSAGES)
      this.#early.push(message);
  }

  #sendTo(stream: Duplex, message: ChannelMessage): void {
    if (message.kind !== "data") {
      if (stream.writable) stream.write(encodeMessage(message));
      return;
    }
    const { bytes } = message;
    const taken = () => this.#channel.consumed(bytes.length);
    // What comes too late, after the command has ended, is taken all the same: the client may write on.
    if (!stream.writable) return taken();
    if (bytes.length < COPY_BELOW_BYTES) return void stream.write(encodeMessage(message), taken);
    stream.cork();
    stream.write(dataPrefix("data", bytes.length));
    stream.write(bytes, taken);
    stream.uncork();
  }

  #receive(stream: Duplex): void {
    const decoder = new ChannelDecoder();
    stream.on("data", (chunk: Uint8Array) => {
      if (this.#isOver) return;
      try {
        for (const message of decoder.push(chunk)) if (!this.#isOver) this.#take(stream, message);
      } catch (error) {
        this.fail(error);
      }
    });
    const lost = (error: unknown) => this.fail(error);
    stream.on("error", lost);
    stream.on("end", () => lost(new WireError("ERR_FRAME_TRUNCATED", "the agent ended it without a result")));
    stream.on("close", () => lost(new WireError("ERR_FRAME_TRUNCATED", "the connection was closed")));
  }

  #take(stream: Duplex, message: ChannelMessage): void {
    const channel = this.#channel;
    switch (message.kind) {
      case "data":
      case "stderr":
        if (this.#isDeaf && message.kind === "data") {
          // What sshd's closed pipe does to a program that writes on.
          if (stream.writable && !this.#saidPipe)
            stream.write(encodeMessage({ kind: "signal", name: "PIPE" }));
          this.#saidPipe = true;
          return;
        }
        if (!channel.write(message.bytes, message.kind)) stream.pause();
        return;
      case "openOk":
      case "eof":
        return;
      case "openFailed":
        return this.#finishWith(`error: the workspace refused the session: ${message.message}\n`);
      case "exitStatus":
        return this.#finish(() => this.#host.exitStatus(channel, message.status));
      case "exitSignal":
        // Only the agent itself has something to say, when it hung up; the SSH client would show none of it.
        if (message.name === "HUP" && message.message !== "")
          return this.#finishWith(describeEnding(message.message));
        return this.#finish(() =>
          this.#host.exitSignal(channel, message.name, message.coreDumped, message.message),
        );
      default:
        throw new WireError("ERR_UNEXPECTED_FRAME", `an agent must not send ${message.kind}`);
    }
  }

  #finishWith(text: string): void {
    // A terminal in raw mode takes no line feed for a new line.
    const lines = printable(text);
    this.#channel.write(Buffer.from(this.#pty ? lines.replace(/\n/g, "\r\n") : lines), "stderr");
    this.#finish(() => this.#host.exitStatus(this.#channel, EXIT_CONNECTION));
  }

  /** The result goes behind the output, then both say goodbye. */
  #finish(tellResult: () => void): void {
    this.#channel.whenWritten(tellResult);
    this.#channel.eof();
    this.#channel.close();
    this.#release(true);
  }

  /** @param isClean the agent said the result: its process needs no hang-up */
  #release(isClean = false): void {
    if (this.#isOver) return;
    this.#isOver = true;
    for (const undo of this.#undo.splice(0)) undo();
    this.#early = [];
    const stream = this.#stream;
    if (!stream) return;
    stream.on("error", () => {});
    if (isClean && stream.writable) {
      stream.end();
      stream.resume();
    } else stream.destroy();
  }
}

/** An agent's text must not carry control sequences to the terminal. */
const printable = (text: string) => text.replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, " ");
