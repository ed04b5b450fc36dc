// The session service: RFC 4254's connection layer, one mesh stream per channel.
//
// The client opens a stream to the service "session". The stream's OPEN metadata is the header; then both
// sides write messages. Version 1.
//
// HEADER: one JSON object in UTF-8, at most 16,384 bytes (what an OPEN frame carries).
//   v          1. A change that an older agent would misunderstand raises it; the agent answers OPEN_FAILED 6.
//   kind       "shell"      login shell of the user
//              "exec"       `command` is handed to the login shell, unparsed
//              "subsystem"  `subsystem` names it, e.g. "sftp"; DATA is then the subsystem's byte stream
//   command    exec: the command. Left out when it does not fit: then COMMAND is the first message.
//   subsystem  subsystem: 1..64 of [A-Za-z0-9@._-]
//   env        object of string values, at most 256; names match [A-Za-z_][A-Za-z0-9_]*
//   pty        {term, cols, rows, widthPx, heightPx, modes?}: a terminal. cols and rows 1..65535; the pixel
//              sizes may be 0 or missing; modes: RFC 4254 section 8 names (ECHO, VERASE, …) with u32 values.
//   agent      {token}: forward the user's SSH agent. The agent makes a socket for SSH_AUTH_SOCK and opens a
//              "callback" with this token for each connection to it (mesh/wire/forward.ts)
//   x11        {token, singleConnection, authProtocol, authCookie, screen}: likewise for X11 (RFC 4254 6.3);
//              authCookie is hex
//   Fields a reader doesn't know are ignored.
//
// MESSAGE: type u8 | length varint (RFC 9000 section 16) | payload[length]. Text is UTF-8.
//   type            from     payload                                         RFC 4254
//   01 DATA         both     bytes                                           5.2
//   02 STDERR       agent    bytes                                           5.2, extended data type 1
//   03 EOF          both     empty: no more DATA (agent: nor STDERR) follows 5.3
//   04 COMMAND      client   text, at most 131,071 bytes; first, once, only for an exec header without command
//   10 WINDOW_CHANGE client  cols, rows, widthPx, heightPx: varints          6.7
//   11 SIGNAL       client   name without SIG                                6.9
//   12 BREAK        client   length in ms: varint                            RFC 4335
//   20 OPEN_OK      agent    empty                                           5.1, 6.5
//   21 OPEN_FAILED  agent    reason: varint | text for the user              5.1
//   30 EXIT_STATUS  agent    varint, u32                                     6.10
//   31 EXIT_SIGNAL  agent    flags u8 (bit 0: core dumped) | length u8 | name | text for the user   6.10
// DATA and STDERR carry at most 1,048,576 bytes and are handed on in pieces as they arrive; every other
// message is at most 4,096 bytes but COMMAND. Types not listed are skipped, and bytes behind the fields of
// a listed control message are ignored, so that versions can mix.
//
// ORDER. The client may write DATA at once, without waiting. The agent's first message is OPEN_OK, or
// OPEN_FAILED and then its end of the stream. The agent's EXIT_STATUS or EXIT_SIGNAL comes after the last
// byte of output, and its end of the stream right behind. A stream that ends without one of these three was
// cut off: the connection or the agent was lost. Resetting the stream hangs up: the process gets SIGHUP.
//
// OPEN_FAILED reasons: 1-4 are RFC 4254's (prohibited, connect failed, unknown kind, resource shortage);
// 5 bad header, 6 version not supported, 7 the process could not be started.
//
// History: 1 first version.
import { fromUtf8, utf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import { ByteReader, varintBytes, writeVarint } from "./varint.ts";

export const CHANNEL_VERSION = 1;
export const SESSION_SERVICE = "session";
export const MAX_HEADER_BYTES = 16_384;
export const MAX_DATA_BYTES = 1 << 20;
export const MAX_CONTROL_BYTES = 4_096;
/** Linux takes no longer single argument. */
export const MAX_COMMAND_BYTES = 131_071;
export const MAX_ENV_ENTRIES = 256;
const MAX_MODES = 128;
/** A command up to this size travels in the header, with room for env beside it. */
const HEADER_COMMAND_BYTES = 8_192;

const DATA = 0x01;
const STDERR = 0x02;
const EOF = 0x03;
const COMMAND = 0x04;
const WINDOW_CHANGE = 0x10;
const SIGNAL = 0x11;
const BREAK = 0x12;
const OPEN_OK = 0x20;
const OPEN_FAILED = 0x21;
const EXIT_STATUS = 0x30;
const EXIT_SIGNAL = 0x31;
const CONTROL_TYPES = new Set([
  EOF,
  COMMAND,
  WINDOW_CHANGE,
  SIGNAL,
  BREAK,
  OPEN_OK,
  OPEN_FAILED,
  EXIT_STATUS,
  EXIT_SIGNAL,
]);

export const OPEN_FAILED_REASONS = {
  prohibited: 1,
  connectFailed: 2,
  unknownKind: 3,
  resourceShortage: 4,
  badHeader: 5,
  unsupportedVersion: 6,
  startFailed: 7,
} as const;

export interface WindowSize {
  cols: number;
  rows: number;
  widthPx: number;
  heightPx: number;
}

export interface PtyRequest extends WindowSize {
  term: string;
  modes?: Record<string, number>;
}

/** RFC 4254 section 6.3.1. */
export interface X11Request {
  /** 16 random bytes in base64: callbacks for it carry this. */
  token: string;
  singleConnection: boolean;
  authProtocol: string;
  /** Hex digits, at most 512. */
  authCookie: string;
  screen: number;
}

interface HeaderBase {
  env: Record<string, string>;
  pty?: PtyRequest;
  /** Forward the user's SSH agent; `token` as in X11Request. */
  agent?: { token: string };
  x11?: X11Request;
}

/** An exec without `command` announces a COMMAND message. */
export type SessionHeader = HeaderBase &
  ({ kind: "shell" } | { kind: "exec"; command?: string } | { kind: "subsystem"; subsystem: string });

export type ChannelMessage =
  | { kind: "data"; bytes: Uint8Array }
  | { kind: "stderr"; bytes: Uint8Array }
  | { kind: "eof" }
  | { kind: "command"; command: string }
  | ({ kind: "windowChange" } & WindowSize)
  | { kind: "signal"; name: string }
  | { kind: "break"; lengthMs: number }
  | { kind: "openOk" }
  | { kind: "openFailed"; reason: number; message: string }
  | { kind: "exitStatus"; status: number }
  | { kind: "exitSignal"; name: string; coreDumped: boolean; message: string };

/** A header this version can't serve; `reason` is what OPEN_FAILED should say. */
export class HeaderError extends WireError {
  readonly reason: number;
  constructor(reason: number, message: string, options?: ErrorOptions) {
    super("ERR_BAD_VALUE", message, options);
    this.reason = reason;
  }
}

const bad = (message: string, options?: ErrorOptions) =>
  new HeaderError(OPEN_FAILED_REASONS.badHeader, message, options);

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function intIn(value: unknown, min: number, max: number, name: string): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max)
    throw bad(`${name} is not an integer from ${min} to ${max}`);
  return value + 0; // JSON has a -0, which is another value to who compares
}

/** What an exec or an environment can't carry: the kernel's strings end at NUL. */
function textOf(value: unknown, name: string): string {
  if (typeof value !== "string") throw bad(`${name} is not a string`);
  if (value.includes("\0")) throw bad(`${name} contains a NUL`);
  return value;
}

function decodeEnv(value: unknown): Record<string, string> {
  if (value === undefined) return {};
  if (!isObject(value)) throw bad("env is not an object");
  const entries = Object.entries(value);
  if (entries.length > MAX_ENV_ENTRIES) throw bad(`env has more than ${MAX_ENV_ENTRIES} entries`);
  for (const [name, item] of entries) {
    if (!/^[A-Za-z_][A-Za-z0-9_]{0,255}$/.test(name)) throw bad("env has a name that is no variable name");
    textOf(item, `env.${name}`);
  }
  return Object.fromEntries(entries) as Record<string, string>;
}

function decodePty(value: unknown): PtyRequest | undefined {
  if (value === undefined) return undefined;
  if (!isObject(value)) throw bad("pty is not an object");
  const { term, cols, rows, widthPx = 0, heightPx = 0, modes } = value;
  if (typeof term !== "string" || !/^[\x21-\x7e]{1,64}$/.test(term))
    throw bad("pty.term is no terminal name");
  const pty: PtyRequest = {
    term,
    cols: intIn(cols, 1, 65_535, "pty.cols"),
    rows: intIn(rows, 1, 65_535, "pty.rows"),
    widthPx: intIn(widthPx, 0, 65_535, "pty.widthPx"),
    heightPx: intIn(heightPx, 0, 65_535, "pty.heightPx"),
  };
  if (modes !== undefined) {
    if (!isObject(modes)) throw bad("pty.modes is not an object");
    const entries = Object.entries(modes);
    if (entries.length > MAX_MODES) throw bad(`pty.modes has more than ${MAX_MODES} entries`);
    pty.modes = Object.fromEntries(
      entries.map(([name, mode]) => {
        if (!/^[A-Z0-9_]{1,32}$/.test(name)) throw bad("pty.modes has a name that is no terminal mode");
        return [name, intIn(mode, 0, 0xffffffff, `pty.modes.${name}`)];
      }),
    );
  }
  return pty;
}

function tokenOf(value: unknown, name: string): string {
  if (typeof value !== "string" || !/^[A-Za-z0-9+/]{22}==$/.test(value))
    throw bad(`${name} is not 16 bytes in base64`);
  return value;
}

function decodeX11(value: unknown): X11Request {
  if (!isObject(value)) throw bad("x11 is not an object");
  const { token, singleConnection, authProtocol, authCookie, screen } = value;
  if (typeof authProtocol !== "string" || !/^[\x21-\x7e]{1,64}$/.test(authProtocol))
    throw bad("x11.authProtocol is no protocol name");
  if (typeof authCookie !== "string" || !/^(?:[0-9a-fA-F]{2}){1,256}$/.test(authCookie))
    throw bad("x11.authCookie is not hex");
  return {
    token: tokenOf(token, "x11.token"),
    singleConnection: singleConnection === true,
    authProtocol,
    authCookie,
    screen: intIn(screen, 0, 65_535, "x11.screen"),
  };
}

/** @throws {HeaderError} ERR_BAD_VALUE with the `reason` to answer */
export function decodeHeader(metadata: Uint8Array): SessionHeader {
  if (metadata.length > MAX_HEADER_BYTES) throw bad(`header of ${metadata.length} bytes`);
  let header: unknown;
  try {
    header = JSON.parse(fromUtf8(metadata));
  } catch (cause) {
    throw bad("the header is not JSON", { cause });
  }
  if (!isObject(header)) throw bad("the header is not an object");
  if (header["v"] !== CHANNEL_VERSION)
    throw new HeaderError(
      OPEN_FAILED_REASONS.unsupportedVersion,
      `this agent speaks session version ${CHANNEL_VERSION}; update the older side`,
    );
  const base: HeaderBase = { env: decodeEnv(header["env"]) };
  const pty = decodePty(header["pty"]);
  if (pty) base.pty = pty;
  const { agent, x11 } = header;
  if (agent !== undefined) {
    if (!isObject(agent)) throw bad("agent is not an object");
    base.agent = { token: tokenOf(agent["token"], "agent.token") };
  }
  if (x11 !== undefined) base.x11 = decodeX11(x11);
  switch (header["kind"]) {
    case "shell":
      return { kind: "shell", ...base };
    case "exec":
      return header["command"] === undefined
        ? { kind: "exec", ...base }
        : { kind: "exec", command: textOf(header["command"], "command"), ...base };
    case "subsystem": {
      const subsystem = header["subsystem"];
      if (typeof subsystem !== "string" || !/^[A-Za-z0-9@._-]{1,64}$/.test(subsystem))
        throw bad("subsystem is no subsystem name");
      return { kind: "subsystem", subsystem, ...base };
    }
    default:
      throw new HeaderError(
        OPEN_FAILED_REASONS.unknownKind,
        "this agent can't serve that kind of session; update it by restarting the workspace",
      );
  }
}

/** @throws {HeaderError} ERR_BAD_VALUE above MAX_HEADER_BYTES or for a value decodeHeader would refuse */
export function encodeHeader(header: SessionHeader): Uint8Array {
  const bytes = utf8(JSON.stringify({ v: CHANNEL_VERSION, ...header }));
  decodeHeader(bytes);
  return bytes;
}

/**
 * What opens a session: the OPEN metadata, and the bytes to write first (empty, or a COMMAND message for a
 * command too long for the header).
 *
 * @throws {HeaderError} ERR_BAD_VALUE when the environment does not fit or a value is no legal one
 * @throws {WireError} ERR_FRAME_TOO_LARGE for a command above MAX_COMMAND_BYTES
 */
export function encodeOpening(header: SessionHeader): { metadata: Uint8Array; first: Uint8Array } {
  if (header.kind !== "exec" || header.command === undefined)
    return { metadata: encodeHeader(header), first: new Uint8Array() };
  if (utf8(header.command).length <= HEADER_COMMAND_BYTES) {
    const metadata = utf8(JSON.stringify({ v: CHANNEL_VERSION, ...header }));
    if (metadata.length <= MAX_HEADER_BYTES)
      return { metadata: encodeHeader(header), first: new Uint8Array() };
  }
  const { command, ...rest } = header;
  return { metadata: encodeHeader(rest), first: encodeMessage({ kind: "command", command }) };
}

/** The bytes before a DATA or STDERR payload of `length` bytes (at most MAX_DATA_BYTES), so that a shell can
 * write them and then the payload itself, uncopied. */
export function dataPrefix(kind: "data" | "stderr", length: number): Uint8Array {
  if (length > MAX_DATA_BYTES) throw new WireError("ERR_FRAME_TOO_LARGE", `DATA of ${length} bytes`);
  const out = new Uint8Array(1 + varintBytes(length));
  out[0] = kind === "data" ? DATA : STDERR;
  writeVarint(out, 1, length);
  return out;
}

function frame(type: number, limit: number, ...parts: Uint8Array[]): Uint8Array {
  let length = 0;
  for (const part of parts) length += part.length;
  if (length > limit)
    throw new WireError("ERR_FRAME_TOO_LARGE", `message of ${length} bytes, the limit is ${limit}`);
  const out = new Uint8Array(1 + varintBytes(length) + length);
  out[0] = type;
  let offset = writeVarint(out, 1, length);
  for (const part of parts) {
    out.set(part, offset);
    offset += part.length;
  }
  return out;
}

function varints(...values: number[]): Uint8Array {
  const out = new Uint8Array(8 * values.length);
  let end = 0;
  for (const value of values) end = writeVarint(out, end, value);
  return out.subarray(0, end);
}

/** Shortens text for the user so that it fits a control message, never inside a character. */
function clip(text: string): Uint8Array {
  return utf8(text.length <= 1_000 ? text : `${Array.from(text.slice(0, 1_000)).slice(0, -1).join("")}…`);
}

function commandText(command: string): string {
  if (command.includes("\0")) throw new WireError("ERR_BAD_VALUE", "the command contains a NUL");
  return command;
}

const SIGNAL_NAME = /^[A-Z0-9]{1,16}(@[a-z0-9.-]{1,48})?$/;

function signalName(name: string): string {
  if (!SIGNAL_NAME.test(name)) throw new WireError("ERR_BAD_VALUE", "no signal name");
  return name;
}

/** @throws {WireError} ERR_FRAME_TOO_LARGE, ERR_BAD_VALUE (a signal name or a command that can't be one) */
export function encodeMessage(message: ChannelMessage): Uint8Array {
  switch (message.kind) {
    case "data":
      return frame(DATA, MAX_DATA_BYTES, message.bytes);
    case "stderr":
      return frame(STDERR, MAX_DATA_BYTES, message.bytes);
    case "eof":
      return frame(EOF, 0);
    case "command":
      return frame(COMMAND, MAX_COMMAND_BYTES, utf8(commandText(message.command)));
    case "windowChange":
      return frame(
        WINDOW_CHANGE,
        MAX_CONTROL_BYTES,
        varints(message.cols, message.rows, message.widthPx, message.heightPx),
      );
    case "signal":
      return frame(SIGNAL, MAX_CONTROL_BYTES, utf8(signalName(message.name)));
    case "break":
      return frame(BREAK, MAX_CONTROL_BYTES, varints(message.lengthMs));
    case "openOk":
      return frame(OPEN_OK, 0);
    case "openFailed":
      return frame(OPEN_FAILED, MAX_CONTROL_BYTES, varints(message.reason), clip(message.message));
    case "exitStatus":
      return frame(EXIT_STATUS, MAX_CONTROL_BYTES, varints(message.status));
    case "exitSignal": {
      const name = utf8(signalName(message.name));
      const flags = Uint8Array.of(message.coreDumped ? 1 : 0, name.length);
      return frame(EXIT_SIGNAL, MAX_CONTROL_BYTES, flags, name, clip(message.message));
    }
  }
}

function limitOf(type: number): number {
  if (type === COMMAND) return MAX_COMMAND_BYTES;
  return CONTROL_TYPES.has(type) ? MAX_CONTROL_BYTES : MAX_DATA_BYTES;
}

/** Sizes are clamped to what a terminal can have, not refused: a minimised window says 0. */
const dimension = (value: number, min: number) => Math.min(65_535, Math.max(min, value));

function decodeControl(type: number, payload: Uint8Array): ChannelMessage {
  const reader = new ByteReader(payload);
  const rest = () => fromUtf8(reader.take(reader.remaining));
  switch (type) {
    case COMMAND:
      return { kind: "command", command: commandText(rest()) };
    case WINDOW_CHANGE:
      return {
        kind: "windowChange",
        cols: dimension(reader.varint(), 1),
        rows: dimension(reader.varint(), 1),
        widthPx: dimension(reader.varint(), 0),
        heightPx: dimension(reader.varint(), 0),
      };
    case SIGNAL:
      return { kind: "signal", name: signalName(rest()) };
    case BREAK:
      return { kind: "break", lengthMs: reader.varint() };
    case OPEN_OK:
      return { kind: "openOk" };
    case OPEN_FAILED:
      return { kind: "openFailed", reason: reader.varint(), message: rest() };
    case EXIT_STATUS: {
      const status = reader.varint();
      if (status > 0xffffffff) throw new WireError("ERR_BAD_VALUE", "exit status above u32");
      return { kind: "exitStatus", status };
    }
    case EXIT_SIGNAL: {
      const coreDumped = (reader.u8() & 1) === 1;
      const name = signalName(fromUtf8(reader.take(reader.u8())));
      return { kind: "exitSignal", name, coreDumped, message: rest() };
    }
    default:
      return { kind: "eof" };
  }
}

/** One direction of a channel. Holds at most one control message; DATA passes through in views, uncopied. */
export class ChannelDecoder {
  #type = 0;
  /** Type and length, while they are incomplete. */
  #head: number[] = [];
  #left = 0;
  #inPayload = false;
  #control: Uint8Array | undefined;
  #filled = 0;

  /**
   * Feeds one chunk, however the transport cut it.
   *
   * @returns what is now complete, oldest first. The `bytes` of data and stderr are views of `chunk`, never
   * empty, and a long message yields several.
   * @throws {WireError} ERR_FRAME_TOO_LARGE (on type and length alone), ERR_FRAME_TRUNCATED (fields longer than
   * their message), ERR_BAD_VALUE; drop the decoder
   */
  push(chunk: Uint8Array): ChannelMessage[] {
    const messages: ChannelMessage[] = [];
    let offset = 0;
    while (offset < chunk.length) {
      if (!this.#inPayload) {
        this.#head.push(chunk[offset++]);
        if (!this.#startPayload()) continue;
      }
      const piece = chunk.subarray(offset, offset + this.#left);
      offset += piece.length;
      this.#left -= piece.length;
      if (this.#control) {
        this.#control.set(piece, this.#filled);
        this.#filled += piece.length;
      } else if (piece.length > 0 && (this.#type === DATA || this.#type === STDERR)) {
        messages.push({ kind: this.#type === DATA ? "data" : "stderr", bytes: piece });
      }
      if (this.#left > 0) continue;
      if (this.#control) messages.push(decodeControl(this.#type, this.#control));
      this.#control = undefined;
      this.#inPayload = false;
    }
    return messages;
  }

  /** To be called at the end of the stream. @throws {WireError} ERR_FRAME_TRUNCATED inside a message */
  end(): void {
    if (this.#inPayload || this.#head.length > 0)
      throw new WireError("ERR_FRAME_TRUNCATED", "the stream ended inside a message");
  }

  #startPayload(): boolean {
    const head = this.#head;
    if (head.length < 2 || head.length < 1 + (1 << (head[1] >>> 6))) return false;
    const length = new ByteReader(Uint8Array.from(head), 1).varint();
    this.#type = head[0];
    const limit = limitOf(this.#type);
    if (length > limit)
      throw new WireError("ERR_FRAME_TOO_LARGE", `message of ${length} bytes, the limit is ${limit}`);
    this.#head = [];
    this.#left = length;
    this.#filled = 0;
    this.#control = CONTROL_TYPES.has(this.#type) ? new Uint8Array(length) : undefined;
    this.#inPayload = true;
    return true;
  }
}
