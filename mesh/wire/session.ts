// Session packets and frames: what two nodes say inside WireGuard. Ideas of RFC 9000, not its bytes.
//
// PACKET   one WireGuard payload, at most 65,000 bytes; integers are varints (RFC 9000 section 16) unless noted
//   tag     u32 BE: the first 4 bytes of the session id. One pair of keys may hold several sessions after each
//           other (or at once); a late packet of an old one must never count as one of the new.
//   number  varint, counts up by one per packet sent on any path; never reused, never reset in a session
//   frame*  the rest; WireGuard pads with zeros, which are PADDING frames. At most 1,024 other frames.
//
// A packet whose number is 2^53-1 (CLOSE_NUMBER) lies outside the number space: it carries one CLOSE and nothing
// else and is never acknowledged. So can one answer who has no (or no longer any) state for the session.
//
// FRAMES   type varint, then:
//   00 PADDING         -
//   01 PING            - (answered by an ACK at once)
//   02 ACK             largest | largest-echo | delay in us | more ranges | first length-1 | { gap-1 | length-1 }*
//                      Ranges of packet numbers received, highest first, at most 256: `gap` numbers missing, then
//                      `length` received below them. At most one a packet, before all
//                      frames but HELLO. It travels on the path it acknowledges: `echo` is the
//                      packet that made the sender write this ACK, and `delay` the time it waited there, so the
//                      round trip is measured per path.
//   03 HELLO           length | minVersion | maxVersion | flags u8 (1 = resume) | session id[16] | maxPacketBytes |
//                      maxData | maxStreamData | maxStreams | resumeWindowMs | resumePosition |
//                      grant length | grant <= 4,096 bytes | fields of later versions, ignored
//   04 CLOSE           code | length | reason UTF-8 <= 512 bytes
//   05 OPEN            stream | length | service UTF-8 <= 256 bytes | length | metadata <= 16,384 bytes
//   06 RESET_STREAM    stream | code | final size      the sender gives up; `final size` settles flow control
//   07 STOP_SENDING    stream | code                   the receiver wants no more; answered by RESET_STREAM
//   08 STREAM          stream | offset | length | data
//   09 STREAM + FIN    the same, and the stream ends at offset + length
//   0a MAX_DATA        sum of the highest offsets of all streams that may be sent
//   0b MAX_STREAM_DATA stream | highest offset that may be sent
//   0c MAX_STREAMS     how many streams the receiver of this frame may have opened in this session, ever
//   0e DATAGRAM        stream | length | data          for a UDP forward; not resent
//   20-2f SIGNAL       length | seq | body <= 16,384 bytes. Delivered once and in order of seq (0, 1, 2 ... over all
//                      types, counted per direction); at most 32 unacknowledged.
//                      20 candidates, 21 offer, 22 answer, 23 bye, 24 token, 25 grant renewal,
//                      26 resume window: ms varint, in place of the one in the client's HELLO
//   30-3f PROBE        length | body <= 1,024 bytes. About the path it arrives on; not resent, not ordered.
//                      30 path challenge, 31 path response
//   40 and up          length | body: skipped by who does not know it
//   An unknown type below 0x20 is an error (its length is unknown): those come with a new version only.
//
// STREAMS  ids of the client are even, of the agent odd, counting up by two. Each has two directions; bytes are
// numbered from 0 in each. STREAM, RESET_STREAM and STOP_SENDING may overtake OPEN; the receiver holds them.
//
// WHO SAYS WHAT WHEN
//   The client's packets start with HELLO (version range, session id, grant) until one of them is acknowledged,
//   so that a lost first packet costs nothing but itself. Behind it they may carry OPEN and STREAM at once,
//   within the early limits: 4 streams and 65,536 bytes in all until the agent's HELLO is there; no SIGNAL.
//   The agent stays silent until it has judged the grant. Then it sends CLOSE, or its packets start with HELLO
//   (empty grant) until one is acknowledged. The version of the session is the highest both know.
//   Anything else before HELLO gets CLOSE(unknown session) or CLOSE(protocol violation).
//   After all paths were lost the client's packets start with HELLO again, resume flag set, on the first new
//   path, with its grant of the moment and resumePosition = highest packet number received + 1. An agent
//   that does not know the session (or never sent that number) answers CLOSE(unknown session).
//   CLOSE is sent once on every path and again in answer to further packets, less and less often.
//   Frames are resent in new packets until acknowledged; packets, PING, ACK, DATAGRAM and PROBE are not.
//
// INVARIANT over all versions: the packet header, PADDING, HELLO up to the grant, CLOSE, CLOSE_NUMBER.
// HISTORY  1: this.
import { fromUtf8, utf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import { ByteReader, varintBytes, writeVarint } from "./varint.ts";

export const SESSION_VERSION = 1;
export const MAX_PACKET_BYTES = 65_000;
/** What every node accepts: the largest frame that cannot be split must fit with HELLO before it. */
export const MIN_MAX_PACKET_BYTES = 32_768;
export const SESSION_ID_BYTES = 16;
export const MAX_GRANT_BYTES = 4_096;
export const MAX_SERVICE_BYTES = 256;
export const MAX_METADATA_BYTES = 16_384;
export const MAX_REASON_BYTES = 512;
export const MAX_SIGNAL_BYTES = 16_384;
export const MAX_PROBE_BYTES = 1_024;
export const MAX_ACK_RANGES = 256;
export const MAX_FRAMES = 1_024;
export const MAX_SIGNALS_IN_FLIGHT = 32;
export const EARLY_MAX_STREAMS = 4;
export const EARLY_MAX_DATA_BYTES = 65_536;
export const CLOSE_NUMBER = Number.MAX_SAFE_INTEGER;

const PADDING = 0x00;
const PING = 0x01;
const ACK = 0x02;
const HELLO = 0x03;
const CLOSE = 0x04;
const OPEN = 0x05;
const RESET_STREAM = 0x06;
const STOP_SENDING = 0x07;
const STREAM = 0x08;
const STREAM_FIN = 0x09;
const MAX_DATA = 0x0a;
const MAX_STREAM_DATA = 0x0b;
const MAX_STREAMS = 0x0c;
const DATAGRAM = 0x0e;
const FIRST_SIGNAL = 0x20;
const FIRST_PROBE = 0x30;
const FIRST_SKIPPABLE = 0x40;
const RESUME_FLAG = 0x01;

export const SIGNAL = {
  candidates: 0x20,
  offer: 0x21,
  answer: 0x22,
  bye: 0x23,
  token: 0x24,
  grantRenewal: 0x25,
  resumeWindow: 0x26,
} as const;
export const PROBE = { challenge: 0x30, response: 0x31 } as const;

/** Why a session ends. `text` is for the user, when the peer gave no reason of its own. */
export const CLOSE_CODES = {
  normal: { code: 0, text: "the session was ended" },
  unknownSession: {
    code: 1,
    text: "the other side no longer knows this session (it restarted): connect again",
  },
  version: { code: 2, text: "the two sides share no protocol version: update the older one" },
  grantExpired: { code: 3, text: "the permission has expired: run the command again" },
  clockSkewed: { code: 4, text: "the permission is not valid yet: check this machine's clock" },
  revoked: { code: 5, text: "access was revoked" },
  notYours: { code: 6, text: "you have no permission for this workspace" },
  protocolViolation: {
    code: 7,
    text: "the other side broke the protocol: update both sides, then report it",
  },
  flowControl: { code: 8, text: "the other side sent more than it was allowed: update both sides" },
  internal: { code: 9, text: "an internal error ended the session: see the log of the other side" },
  resourceLimit: { code: 10, text: "a limit was reached: close some sessions or forwards, then try again" },
  shutdown: { code: 11, text: "the other side is shutting down" },
  idle: { code: 12, text: "the session was silent for too long" },
} as const;
export type CloseName = keyof typeof CLOSE_CODES;

/** The user-facing text for a close code, also one this version does not know. */
export function closeText(code: number): string {
  const known = Object.values(CLOSE_CODES).find((entry) => entry.code === code);
  return known?.text ?? `the session was closed with code ${code}`;
}

export interface Hello {
  minVersion: number;
  maxVersion: number;
  resume: boolean;
  /** 16 bytes, made by the client, never reused. */
  sessionId: Uint8Array;
  /** The largest packet the sender of this HELLO accepts. */
  maxPacketBytes: number;
  maxDataBytes: number;
  maxStreamDataBytes: number;
  maxStreams: number;
  /** How long the sender wants a silent session kept. */
  resumeWindowMs: number;
  /** Highest packet number received so far + 1; 0 in a first HELLO. */
  resumePosition: number;
  grant: Uint8Array;
}

export interface Ack {
  kind: "ack";
  /** The packet that made the sender write this ACK; it arrived on the path the ACK travels on. */
  echo: number;
  delayUs: number;
  /** [first, last] inclusive, highest first, not touching; 1..256 of them. */
  ranges: [first: number, last: number][];
}
export interface StreamFrame {
  kind: "stream";
  stream: number;
  offset: number;
  fin: boolean;
  data: Uint8Array;
}
export type Frame =
  | { kind: "ping" }
  | Ack
  | { kind: "hello"; hello: Hello }
  | { kind: "close"; code: number; reason: string }
  | { kind: "open"; stream: number; service: string; metadata: Uint8Array }
  | { kind: "reset"; stream: number; code: number; finalSize: number }
  | { kind: "stop"; stream: number; code: number }
  | StreamFrame
  | { kind: "max-data"; max: number }
  | { kind: "max-stream-data"; stream: number; max: number }
  | { kind: "max-streams"; count: number }
  | { kind: "datagram"; stream: number; data: Uint8Array }
  | { kind: "signal"; type: number; seq: number; body: Uint8Array }
  | { kind: "probe"; type: number; body: Uint8Array }
  | { kind: "skipped"; type: number };

export interface Packet {
  tag: number;
  number: number;
  frames: Frame[];
}

/** The tag of a session: how packets find it. @param sessionId 16 bytes */
export function sessionTag(sessionId: Uint8Array): number {
  return new ByteReader(sessionId).u32();
}

/** @throws {WireError} ERR_FRAME_TRUNCATED; drop the packet */
export function readHeader(reader: ByteReader): { tag: number; number: number } {
  return { tag: reader.u32(), number: reader.varint() };
}

/**
 * Reads one packet. Byte fields are views of it, not copies.
 *
 * @throws {WireError} the peer is broken: close the session
 */
export function decodePacket(bytes: Uint8Array): Packet {
  const reader = new ByteReader(bytes);
  const { tag, number } = readHeader(reader);
  return { tag, number, frames: decodeFrames(reader) };
}

/** The frames from where `reader` stands to its end, PADDING left out. @throws {WireError} */
export function decodeFrames(reader: ByteReader): Frame[] {
  if (reader.bytes.length > MAX_PACKET_BYTES + 15) {
    throw new WireError("ERR_FRAME_TOO_LARGE", `packet of ${reader.bytes.length} bytes`);
  }
  const frames: Frame[] = [];
  const { bytes } = reader;
  while (reader.offset < bytes.length) {
    if (bytes[reader.offset] === PADDING) {
      reader.offset++;
      continue;
    }
    if (frames.length === MAX_FRAMES) throw new WireError("ERR_BAD_VALUE", `more than ${MAX_FRAMES} frames`);
    frames.push(decodeFrame(reader));
  }
  return frames;
}

function decodeFrame(reader: ByteReader): Frame {
  const type = reader.varint();
  switch (type) {
    case PING:
      return { kind: "ping" };
    case ACK:
      return decodeAck(reader);
    case HELLO:
      return { kind: "hello", hello: decodeHello(new ByteReader(sized(reader, MAX_PACKET_BYTES, "hello"))) };
    case CLOSE:
      return { kind: "close", code: reader.varint(), reason: text(reader, MAX_REASON_BYTES, "reason") };
    case OPEN:
      return {
        kind: "open",
        stream: reader.varint(),
        service: text(reader, MAX_SERVICE_BYTES, "service"),
        metadata: sized(reader, MAX_METADATA_BYTES, "metadata"),
      };
    case RESET_STREAM:
      return {
        kind: "reset",
        stream: reader.varint(),
        code: reader.varint(),
        finalSize: reader.varint(),
      };
    case STOP_SENDING:
      return { kind: "stop", stream: reader.varint(), code: reader.varint() };
    case STREAM:
    case STREAM_FIN:
      return decodeStream(reader, type === STREAM_FIN);
    case MAX_DATA:
      return { kind: "max-data", max: reader.varint() };
    case MAX_STREAM_DATA:
      return { kind: "max-stream-data", stream: reader.varint(), max: reader.varint() };
    case MAX_STREAMS:
      return { kind: "max-streams", count: reader.varint() };
    case DATAGRAM:
      return {
        kind: "datagram",
        stream: reader.varint(),
        data: sized(reader, MAX_PACKET_BYTES, "datagram"),
      };
  }
  if (type < FIRST_SIGNAL) throw new WireError("ERR_UNEXPECTED_FRAME", `unknown frame type ${type}`);
  const body = sized(reader, MAX_PACKET_BYTES, "frame");
  if (type < FIRST_PROBE) {
    const inner = new ByteReader(body);
    const seq = inner.varint();
    if (inner.remaining > MAX_SIGNAL_BYTES)
      throw new WireError("ERR_FRAME_TOO_LARGE", `signal of ${inner.remaining} bytes`);
    return { kind: "signal", type, seq, body: inner.take(inner.remaining) };
  }
  if (type < FIRST_SKIPPABLE) {
    if (body.length > MAX_PROBE_BYTES)
      throw new WireError("ERR_FRAME_TOO_LARGE", `probe of ${body.length} bytes`);
    return { kind: "probe", type, body };
  }
  return { kind: "skipped", type };
}

function decodeStream(reader: ByteReader, fin: boolean): StreamFrame {
  const stream = reader.varint();
  const offset = reader.varint();
  const data = reader.take(reader.varint());
  if (offset > Number.MAX_SAFE_INTEGER - data.length)
    throw new WireError("ERR_BAD_VALUE", "stream offset too large");
  return { kind: "stream", stream, offset, fin, data };
}

function decodeAck(reader: ByteReader): Ack {
  const largest = reader.varint();
  const echo = largest - reader.varint();
  const delayUs = reader.varint();
  const more = reader.varint();
  if (more >= MAX_ACK_RANGES) throw new WireError("ERR_BAD_VALUE", `ACK with ${more + 1} ranges`);
  const ranges: Ack["ranges"] = [];
  let last = largest;
  for (let i = 0; ; i++) {
    const first = last - reader.varint();
    if (first < 0) throw new WireError("ERR_BAD_VALUE", "ACK range below zero");
    ranges.push([first, last]);
    if (i === more) break;
    last = first - 2 - reader.varint();
    if (last < 0) throw new WireError("ERR_BAD_VALUE", "ACK gap below zero");
  }
  if (echo < ranges[ranges.length - 1][0])
    throw new WireError("ERR_BAD_VALUE", "ACK echo outside its ranges");
  return { kind: "ack", echo, delayUs, ranges };
}

function decodeHello(reader: ByteReader): Hello {
  const minVersion = reader.varint();
  const maxVersion = reader.varint();
  if (minVersion < 1 || minVersion > maxVersion) throw new WireError("ERR_BAD_VALUE", "bad version range");
  const hello: Hello = {
    minVersion,
    maxVersion,
    resume: (reader.u8() & RESUME_FLAG) !== 0,
    sessionId: reader.take(SESSION_ID_BYTES),
    maxPacketBytes: reader.varint(),
    maxDataBytes: reader.varint(),
    maxStreamDataBytes: reader.varint(),
    maxStreams: reader.varint(),
    resumeWindowMs: reader.varint(),
    resumePosition: reader.varint(),
    grant: sized(reader, MAX_GRANT_BYTES, "grant"),
  };
  if (hello.maxPacketBytes < MIN_MAX_PACKET_BYTES)
    throw new WireError("ERR_BAD_VALUE", `peer accepts only ${hello.maxPacketBytes} bytes a packet`);
  return hello;
}

/** Length, then as many bytes; the length is checked before anything is taken. */
function sized(reader: ByteReader, maxBytes: number, what: string): Uint8Array {
  const length = reader.varint();
  if (length > maxBytes) throw new WireError("ERR_FRAME_TOO_LARGE", `${what} of ${length} bytes`);
  return reader.take(length);
}

const text = (reader: ByteReader, maxBytes: number, what: string): string =>
  fromUtf8(sized(reader, maxBytes, what));

/** Everything but ACK and CLOSE wants an acknowledgement. */
export function isAckEliciting(frame: Frame): boolean {
  return frame.kind !== "ack" && frame.kind !== "close";
}

/** Writes a packet front to back into a buffer it is lent; `limit` is where it must stop. */
export class PacketWriter {
  readonly bytes: Uint8Array;
  limit: number;
  offset = 0;
  frames = 0;

  constructor(bytes: Uint8Array, limit: number) {
    this.bytes = bytes;
    this.limit = Math.min(limit, bytes.length);
  }

  /** Room for one more frame; 0 when the packet may hold no further one. */
  get room(): number {
    return this.frames < MAX_FRAMES ? this.limit - this.offset : 0;
  }

  header(tag: number, number: number): void {
    this.#u32(tag);
    this.#varint(number);
  }

  /** @returns false, with nothing written, when the frame does not fit */
  tryFrame(frame: Exclude<Frame, { kind: "skipped" }>): boolean {
    if (frameBytes(frame) > this.room) return false;
    this.frame(frame);
    return true;
  }

  /** Writes a STREAM header; the caller has checked the room (streamHeaderBytes) and appends `length` bytes. */
  streamHeader(stream: number, offset: number, length: number, fin: boolean): void {
    this.bytes[this.offset++] = fin ? STREAM_FIN : STREAM;
    this.#varint(stream);
    this.#varint(offset);
    this.#varint(length);
    this.frames++;
  }

  append(bytes: Uint8Array): void {
    this.bytes.set(bytes, this.offset);
    this.offset += bytes.length;
  }

  finish(): Uint8Array {
    return this.bytes.subarray(0, this.offset);
  }

  frame(frame: Exclude<Frame, { kind: "skipped" }>): void {
    switch (frame.kind) {
      case "stream":
        this.streamHeader(frame.stream, frame.offset, frame.data.length, frame.fin);
        this.append(frame.data);
        return;
      case "ping":
        this.#varint(PING);
        break;
      case "ack":
        this.#ack(frame);
        break;
      case "hello":
        this.#hello(frame.hello);
        break;
      case "close":
        this.#varint(CLOSE);
        this.#varint(frame.code);
        this.#sized(utf8(frame.reason));
        break;
      case "open":
        this.#varint(OPEN);
        this.#varint(frame.stream);
        this.#sized(utf8(frame.service));
        this.#sized(frame.metadata);
        break;
      case "reset":
        this.#varint(RESET_STREAM);
        this.#varint(frame.stream);
        this.#varint(frame.code);
        this.#varint(frame.finalSize);
        break;
      case "stop":
        this.#varint(STOP_SENDING);
        this.#varint(frame.stream);
        this.#varint(frame.code);
        break;
      case "max-data":
        this.#varint(MAX_DATA);
        this.#varint(frame.max);
        break;
      case "max-stream-data":
        this.#varint(MAX_STREAM_DATA);
        this.#varint(frame.stream);
        this.#varint(frame.max);
        break;
      case "max-streams":
        this.#varint(MAX_STREAMS);
        this.#varint(frame.count);
        break;
      case "datagram":
        this.#varint(DATAGRAM);
        this.#varint(frame.stream);
        this.#sized(frame.data);
        break;
      case "signal":
        this.#varint(frame.type);
        this.#varint(varintBytes(frame.seq) + frame.body.length);
        this.#varint(frame.seq);
        this.append(frame.body);
        break;
      case "probe":
        this.#varint(frame.type);
        this.#sized(frame.body);
        break;
    }
    this.frames++;
  }

  #ack({ echo, delayUs, ranges }: Ack): void {
    const largest = ranges[0][1];
    this.#varint(ACK);
    this.#varint(largest);
    this.#varint(largest - echo);
    this.#varint(delayUs);
    this.#varint(ranges.length - 1);
    for (let i = 0; i < ranges.length; i++) {
      const [first, last] = ranges[i];
      if (i > 0) this.#varint(ranges[i - 1][0] - last - 2);
      this.#varint(last - first);
    }
  }

  #hello(hello: Hello): void {
    this.#varint(HELLO);
    this.#varint(helloBodyBytes(hello));
    this.#varint(hello.minVersion);
    this.#varint(hello.maxVersion);
    this.bytes[this.offset++] = hello.resume ? RESUME_FLAG : 0;
    this.append(hello.sessionId);
    for (const field of helloNumbers(hello)) this.#varint(field);
    this.#sized(hello.grant);
  }

  #sized(bytes: Uint8Array): void {
    this.#varint(bytes.length);
    this.append(bytes);
  }

  #varint(value: number): void {
    this.offset = writeVarint(this.bytes, this.offset, value);
  }

  #u32(value: number): void {
    for (let shift = 24; shift >= 0; shift -= 8) this.bytes[this.offset++] = value >>> shift;
  }
}

/** Bytes of a STREAM frame before its data. */
export function streamHeaderBytes(stream: number, offset: number, length: number): number {
  return 1 + varintBytes(stream) + varintBytes(offset) + varintBytes(length);
}

const helloNumbers = (hello: Hello): number[] => [
  hello.maxPacketBytes,
  hello.maxDataBytes,
  hello.maxStreamDataBytes,
  hello.maxStreams,
  hello.resumeWindowMs,
  hello.resumePosition,
];

const sum = (values: number[]): number => values.reduce((total, value) => total + varintBytes(value), 0);
const sizedBytes = (length: number): number => varintBytes(length) + length;

function helloBodyBytes(hello: Hello): number {
  const numbers = sum([hello.minVersion, hello.maxVersion, ...helloNumbers(hello)]);
  return numbers + 1 + SESSION_ID_BYTES + sizedBytes(hello.grant.length);
}

/** Exact size of a frame on the wire; for an ACK an upper bound. */
export function frameBytes(frame: Exclude<Frame, { kind: "skipped" }>): number {
  switch (frame.kind) {
    case "ping":
      return 1;
    case "ack":
      return 1 + 4 * 8 + frame.ranges.length * 16;
    case "hello":
      return 1 + sizedBytes(helloBodyBytes(frame.hello));
    case "close":
      return 1 + varintBytes(frame.code) + sizedBytes(utf8(frame.reason).length);
    case "open":
      return (
        1 +
        varintBytes(frame.stream) +
        sizedBytes(utf8(frame.service).length) +
        sizedBytes(frame.metadata.length)
      );
    case "reset":
      return 1 + sum([frame.stream, frame.code, frame.finalSize]);
    case "stop":
      return 1 + sum([frame.stream, frame.code]);
    case "stream":
      return streamHeaderBytes(frame.stream, frame.offset, frame.data.length) + frame.data.length;
    case "max-data":
      return 1 + varintBytes(frame.max);
    case "max-stream-data":
      return 1 + sum([frame.stream, frame.max]);
    case "max-streams":
      return 1 + varintBytes(frame.count);
    case "datagram":
      return 1 + varintBytes(frame.stream) + sizedBytes(frame.data.length);
    case "signal":
      return 1 + sizedBytes(varintBytes(frame.seq) + frame.body.length);
    case "probe":
      return 1 + sizedBytes(frame.body.length);
  }
}

/** A whole packet in a buffer of its own; the session itself writes into a shared one. */
export function encodePacket(
  tag: number,
  number: number,
  frames: Exclude<Frame, { kind: "skipped" }>[],
): Uint8Array {
  const size = frames.reduce((total, frame) => total + frameBytes(frame), 12);
  const writer = new PacketWriter(new Uint8Array(size), size);
  writer.header(tag, number);
  for (const frame of frames) writer.frame(frame);
  return writer.finish().slice();
}

/** Ends a session this node knows nothing of. @param tag as the packet that named it had */
export function encodeClosePacket(tag: number, code: number, reason: string): Uint8Array {
  return encodePacket(tag, CLOSE_NUMBER, [{ kind: "close", code, reason: clipReason(reason) }]);
}

/** Cuts a reason to what CLOSE may carry, at a character boundary. */
export function clipReason(reason: string): string {
  let clipped = reason.slice(0, MAX_REASON_BYTES);
  while (utf8(clipped).length > MAX_REASON_BYTES) clipped = clipped.slice(0, -1);
  return clipped.replace(/[\ud800-\udbff]$/, ""); // half of a pair is no character
}

/**
 * The HELLO a packet starts with, if it does: how an agent's shell tells a new session from a stray packet.
 * Never throws: a broken packet has none.
 */
export function peekHello(bytes: Uint8Array): Hello | undefined {
  try {
    const reader = new ByteReader(bytes);
    readHeader(reader);
    if (reader.varint() !== HELLO) return undefined;
    return decodeHello(new ByteReader(sized(reader, MAX_PACKET_BYTES, "hello")));
  } catch (error) {
    if (error instanceof WireError) return undefined;
    throw error;
  }
}

/** The tag a packet starts with; undefined when it is too short to be one (an empty WireGuard keepalive). */
export function peekTag(bytes: Uint8Array): number | undefined {
  return bytes.length < 5 ? undefined : new ByteReader(bytes).u32();
}

/** Whether a packet says CLOSE and nothing else, of whatever session. Never throws. */
export function isClosePacket(bytes: Uint8Array): boolean {
  try {
    return readHeader(new ByteReader(bytes)).number === CLOSE_NUMBER;
  } catch {
    return false; // cut off within its number
  }
}
