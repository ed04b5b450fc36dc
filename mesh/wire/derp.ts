// DERP, protocol version 2: frames between a relay and its clients, on one reliable byte stream.
//
//   frame    type u8 | length u32 | body[length]                 all integers big-endian; the header is 5 bytes
//   key      32 raw bytes of a Curve25519 public key (a node key); the server has one of its own
//   box      NaCl crypto_box (X25519, XSalsa20-Poly1305): tag(16) ciphertext; its nonce(24) stands before it
//
//   type  name           from  body
//   0x01  ServerKey      S     magic(8) server key(32) [more is ignored]; 40..1024 bytes
//   0x02  ClientInfo     C     client key(32) nonce(24) box of the client's JSON; 56..262,144 bytes
//   0x03  ServerInfo     S     nonce(24) box of the server's JSON; the box at most 1 MiB
//   0x04  SendPacket     C     destination key(32) data(0..65,536)
//   0x05  RecvPacket     S     source key(32) data(0..65,536)
//   0x06  KeepAlive      S     empty
//   0x07  NotePreferred  C     01 this relay is my home, 00 it is not; exactly 1 byte
//   0x08  PeerGone       S     key(32) reason(1); a missing reason is 0
//   0x09  PeerPresent    S->M  key(32) IP(16) port u16 flags(1); address, port and flags may be missing
//   0x0A  ForwardPacket  M     source key(32) destination key(32) data(0..65,536)
//   0x10  WatchConns     M     empty
//   0x11  ClosePeer      M     key(32)
//   0x12  Ping           both  8 opaque bytes; 8..1000 are accepted, the first 8 count
//   0x13  Pong           both  the 8 bytes echoed
//   0x14  Health         S     UTF-8 text of a problem; empty: healthy again
//   0x15  Restarting     S     reconnect in u32 ms, try for u32 ms
//   (S server, C client, M client that proved the mesh key: another server of the region)
//
// Order: ServerKey, ClientInfo, ServerInfo, then anything. The client may send frames right behind ClientInfo.
// ServerInfo is the server's first frame after ServerKey. Unknown types are skipped by both sides.
// No error frame exists: a side that finds the other breaking the protocol closes the connection.
//
// ClientInfo JSON: meshKey (omitted when unset), version, CanAckPings, IsProber, AppName, and our own
// PeerGoneForAll and Ticket (see ClientInfo). ServerInfo JSON: version, TokenBucketBytesPerSecond, TokenBucketBytesBurst.
// Names are matched without regard to case; unknown ones are ignored.
import { fromUtf8, utf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import { ByteReader } from "./varint.ts";

export const PROTOCOL_VERSION = 2;
export const HEADER_BYTES = 5;
export const KEY_BYTES = 32;
export const NONCE_BYTES = 24;
/** Data of one packet, without keys and header. */
export const MAX_PACKET_BYTES = 65_536;
/** What deployed clients accept as a body; a server never sends more. */
export const MAX_BODY_BYTES = 1 << 20;
export const MAX_CLIENT_INFO_BYTES = 262_144;
/** Header and destination (or source) key in front of a packet's data. */
export const PACKET_OVERHEAD_BYTES = HEADER_BYTES + KEY_BYTES;

/** UTF-8 of "DERP" and U+1F511. */
export const MAGIC = Uint8Array.of(0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91);

export const FRAME = {
  serverKey: 0x01,
  clientInfo: 0x02,
  serverInfo: 0x03,
  sendPacket: 0x04,
  recvPacket: 0x05,
  keepAlive: 0x06,
  notePreferred: 0x07,
  peerGone: 0x08,
  peerPresent: 0x09,
  forwardPacket: 0x0a,
  watchConns: 0x10,
  closePeer: 0x11,
  ping: 0x12,
  pong: 0x13,
  health: 0x14,
  restarting: 0x15,
} as const;

export const PEER_GONE = { disconnected: 0, notHere: 1 } as const;
/** Flags of PeerPresent; `regular` stands alone. */
export const PRESENT = { regular: 1, meshPeer: 2, prober: 4, notIdeal: 8 } as const;

/** One frame, decoded. Byte fields are views of the body they were decoded from. */
export type Frame =
  | { kind: "serverKey"; key: Uint8Array }
  | { kind: "clientInfo"; key: Uint8Array; nonce: Uint8Array; box: Uint8Array }
  | { kind: "serverInfo"; nonce: Uint8Array; box: Uint8Array }
  | { kind: "sendPacket"; dst: Uint8Array; data: Uint8Array }
  | { kind: "recvPacket"; src: Uint8Array; data: Uint8Array }
  | { kind: "keepAlive" }
  | { kind: "notePreferred"; home: boolean }
  | { kind: "peerGone"; key: Uint8Array; reason: number }
  /** `address`: 16 bytes, IPv4 as ::ffff:a.b.c.d, zeros when unknown. */
  | { kind: "peerPresent"; key: Uint8Array; address?: Uint8Array; port?: number; flags?: number }
  | { kind: "forwardPacket"; src: Uint8Array; dst: Uint8Array; data: Uint8Array }
  | { kind: "watchConns" }
  | { kind: "closePeer"; key: Uint8Array }
  | { kind: "ping"; data: Uint8Array }
  | { kind: "pong"; data: Uint8Array }
  | { kind: "health"; problem: string }
  | { kind: "restarting"; reconnectInMs: number; tryForMs: number }
  | { kind: "unknown"; type: number };

/** Largest body a server takes from a client, by type; the header alone decides. */
export function maxClientBodyBytes(type: number): number {
  switch (type) {
    case FRAME.clientInfo:
      return MAX_CLIENT_INFO_BYTES;
    case FRAME.sendPacket:
      return KEY_BYTES + MAX_PACKET_BYTES;
    case FRAME.notePreferred:
      return 1;
    case FRAME.watchConns:
      return 0;
    case FRAME.closePeer:
      return KEY_BYTES;
    case FRAME.ping:
    case FRAME.pong:
      return 1000;
    default: // ForwardPacket is the longest; unknown types get no more than known ones
      return 2 * KEY_BYTES + MAX_PACKET_BYTES;
  }
}

/** Largest body a client takes from a server. */
export function maxServerBodyBytes(type: number): number {
  return type === FRAME.serverKey ? 1024 : MAX_BODY_BYTES;
}

/**
 * Takes one frame: header at `start`, body from `start + HEADER_BYTES` to `end`. Answers `false` to stop the decoder
 * behind this frame.
 */
// biome-ignore lint/suspicious/noConfusingVoidType: a sink that never stops need not return
export type FrameSink = (type: number, buffer: Uint8Array, start: number, end: number) => boolean | void;

const EMPTY = new Uint8Array();
/** What a cut frame reserves, as a multiple of what has come of it: a header alone reserves nothing. */
const GROWTH = 4;
/** From here on a decoder that lends its frames keeps one buffer for all that were cut. */
const LENT_FROM_BYTES = 16_384;
const LENT_BYTES = HEADER_BYTES + KEY_BYTES + MAX_PACKET_BYTES;

/**
 * Cuts a byte stream into frames. Frames that lie whole in a chunk are handed out where they lie; only one that was
 * cut is copied, once, into a buffer that grows with what has arrived (a header alone reserves nothing).
 * A chunk belongs to the decoder's user afterwards: frames may be kept, or changed in place.
 */
export class FrameDecoder {
  #maxBodyBytes: (type: number) => number;
  /** The cut frame: #have bytes so far of #want (0 while the header is incomplete). */
  #partial: Uint8Array = EMPTY;
  #have = 0;
  #want = 0;
  readonly #lends: boolean;
  #lent: Uint8Array | undefined;

  /**
   * `lends`: a frame is its sink's only until that returns. Most of what a bulk transfer receives was cut, and a buffer
   * for each costs as much as decrypting it.
   */
  constructor(maxBodyBytes: (type: number) => number, { lends = false }: { lends?: boolean } = {}) {
    this.#maxBodyBytes = maxBodyBytes;
    this.#lends = lends;
  }

  /** Bytes held of an unfinished frame. */
  get pendingBytes(): number {
    return this.#have;
  }

  /**
   * Feeds one chunk, however the transport cut it.
   *
   * @returns the bytes behind the frame at which `sink` stopped, for a later push; else undefined
   * @throws {WireError} ERR_FRAME_TOO_LARGE, on the header alone; drop the decoder
   */
  push(chunk: Uint8Array, sink: FrameSink): Uint8Array | undefined {
    let at = 0;
    if (this.#have > 0) {
      at = this.#fill(chunk);
      if (this.#want === 0 || this.#have < this.#want) return undefined;
      const frame = this.#partial;
      const end = this.#want;
      this.#partial = EMPTY;
      this.#have = 0;
      this.#want = 0;
      if (sink(frame[0], frame, 0, end) === false) return chunk.subarray(at);
    }
    while (chunk.length - at >= HEADER_BYTES) {
      const start = at;
      const bytes = this.#frameBytes(chunk, start);
      if (chunk.length - start < bytes) {
        this.#want = bytes;
        break;
      }
      at = start + bytes;
      if (sink(chunk[start], chunk, start, at) === false) return chunk.subarray(at);
    }
    if (at < chunk.length) this.#append(chunk, at, chunk.length);
    return undefined;
  }

  /** Completes the cut frame as far as `chunk` goes. @returns how much of `chunk` was used */
  #fill(chunk: Uint8Array): number {
    let at = 0;
    if (this.#want === 0) {
      at = Math.min(HEADER_BYTES - this.#have, chunk.length);
      this.#append(chunk, 0, at);
      if (this.#have < HEADER_BYTES) return at;
      this.#want = this.#frameBytes(this.#partial, 0);
    }
    const end = Math.min(at + this.#want - this.#have, chunk.length);
    if (end > at) this.#append(chunk, at, end);
    return end;
  }

  #append(chunk: Uint8Array, start: number, end: number): void {
    const need = this.#have + end - start;
    if (need > this.#partial.length) {
      // Growth by a factor keeps copying linear, and a large frame is seldom copied twice; never beyond the frame, so
      // a finished one is exactly its buffer.
      const limit = this.#want === 0 ? HEADER_BYTES : this.#want;
      const isLent = this.#lends && limit >= LENT_FROM_BYTES && limit <= LENT_BYTES;
      if (isLent) this.#lent ??= new Uint8Array(LENT_BYTES);
      const grown = isLent ? this.#lent! : new Uint8Array(Math.min(limit, Math.max(GROWTH * need, 256)));
      grown.set(this.#partial.subarray(0, this.#have));
      this.#partial = grown;
    }
    this.#partial.set(chunk.subarray(start, end), this.#have);
    this.#have = need;
  }

  #frameBytes(buffer: Uint8Array, start: number): number {
    const length =
      buffer[start + 1] * 0x1000000 +
      ((buffer[start + 2] << 16) | (buffer[start + 3] << 8) | buffer[start + 4]);
    const max = this.#maxBodyBytes(buffer[start]);
    if (length > max)
      throw new WireError(
        "ERR_FRAME_TOO_LARGE",
        `frame 0x${buffer[start].toString(16)} announces ${length} bytes, at most ${max} are allowed`,
      );
    return HEADER_BYTES + length;
  }
}

/** Writes the 5 header bytes at `offset`. */
export function writeHeader(out: Uint8Array, offset: number, type: number, bodyBytes: number): void {
  out[offset] = type;
  out[offset + 1] = bodyBytes >>> 24;
  out[offset + 2] = (bodyBytes >>> 16) & 0xff;
  out[offset + 3] = (bodyBytes >>> 8) & 0xff;
  out[offset + 4] = bodyBytes & 0xff;
}

/** Turns the SendPacket at `start` into the RecvPacket its receiver gets: same length, so nothing moves. */
export function turnSendIntoRecv(buffer: Uint8Array, start: number, src: Uint8Array): void {
  buffer[start] = FRAME.recvPacket;
  buffer.set(src, start + HEADER_BYTES);
}

/**
 * Turns the ForwardPacket at `start` into the RecvPacket its receiver gets: the destination between the keys and the
 * data goes, so the frame begins 32 bytes later.
 *
 * @returns where it begins
 */
export function turnForwardIntoRecv(buffer: Uint8Array, start: number, end: number): number {
  const at = start + KEY_BYTES;
  const src = start + HEADER_BYTES;
  buffer.copyWithin(at + HEADER_BYTES, src, src + KEY_BYTES);
  writeHeader(buffer, at, FRAME.recvPacket, end - at - HEADER_BYTES);
  return at;
}

/** Makes the ForwardPacket for a sibling server of a whole SendPacket frame. */
export function forwardOfSend(send: Uint8Array, src: Uint8Array): Uint8Array {
  const out = new Uint8Array(send.length + KEY_BYTES);
  writeHeader(out, 0, FRAME.forwardPacket, out.length - HEADER_BYTES);
  out.set(src, HEADER_BYTES);
  out.set(send.subarray(HEADER_BYTES), HEADER_BYTES + KEY_BYTES);
  return out;
}

/** Whether packet data is a path-discovery message (magic 54 53 F0 9F 92 AC, at least 62 bytes). */
export function isDisco(buffer: Uint8Array, start: number, end: number): boolean {
  return (
    end - start >= 62 &&
    buffer[start] === 0x54 &&
    buffer[start + 1] === 0x53 &&
    buffer[start + 2] === 0xf0 &&
    buffer[start + 3] === 0x9f &&
    buffer[start + 4] === 0x92 &&
    buffer[start + 5] === 0xac
  );
}

/** Encodes header and body. Field lengths are the caller's duty. */
export function encodeFrame(frame: Exclude<Frame, { kind: "unknown" }>): Uint8Array {
  const type = FRAME[frame.kind];
  switch (frame.kind) {
    case "serverKey":
      return join(type, MAGIC, frame.key);
    case "clientInfo":
      return join(type, frame.key, frame.nonce, frame.box);
    case "serverInfo":
      return join(type, frame.nonce, frame.box);
    case "sendPacket":
      return join(type, frame.dst, frame.data);
    case "recvPacket":
      return join(type, frame.src, frame.data);
    case "forwardPacket":
      return join(type, frame.src, frame.dst, frame.data);
    case "keepAlive":
    case "watchConns":
      return join(type);
    case "notePreferred":
      return join(type, Uint8Array.of(frame.home ? 1 : 0));
    case "peerGone":
      return join(type, frame.key, Uint8Array.of(frame.reason));
    case "peerPresent":
      return join(type, frame.key, presentTail(frame.address, frame.port ?? 0, frame.flags ?? 0));
    case "closePeer":
      return join(type, frame.key);
    case "ping":
    case "pong":
      return join(type, frame.data);
    case "health":
      return join(type, utf8(frame.problem));
    case "restarting": {
      const body = new Uint8Array(8);
      new DataView(body.buffer).setUint32(0, frame.reconnectInMs);
      new DataView(body.buffer).setUint32(4, frame.tryForMs);
      return join(type, body);
    }
  }
}

/**
 * Decodes one body; trailing bytes a version may add are ignored where the table above allows them.
 *
 * @throws {WireError} ERR_FRAME_TRUNCATED, ERR_FRAME_TOO_LARGE, ERR_BAD_MAGIC, ERR_BAD_VALUE (text not UTF-8)
 */
export function decodeFrame(type: number, body: Uint8Array): Frame {
  const reader = new ByteReader(body);
  const rest = (max: number): Uint8Array => {
    if (reader.remaining > max)
      throw new WireError("ERR_FRAME_TOO_LARGE", `${reader.remaining} bytes where ${max} are allowed`);
    return reader.take(reader.remaining);
  };
  switch (type) {
    case FRAME.serverKey: {
      const magic = reader.take(MAGIC.length);
      if (!MAGIC.every((byte, i) => byte === magic[i]))
        throw new WireError("ERR_BAD_MAGIC", "the other side does not speak DERP");
      return { kind: "serverKey", key: reader.take(KEY_BYTES) };
    }
    case FRAME.clientInfo:
      return {
        kind: "clientInfo",
        key: reader.take(KEY_BYTES),
        nonce: reader.take(NONCE_BYTES),
        box: rest(MAX_CLIENT_INFO_BYTES - KEY_BYTES - NONCE_BYTES),
      };
    case FRAME.serverInfo:
      return { kind: "serverInfo", nonce: reader.take(NONCE_BYTES), box: rest(MAX_BODY_BYTES) };
    case FRAME.sendPacket:
      return { kind: "sendPacket", dst: reader.take(KEY_BYTES), data: rest(MAX_PACKET_BYTES) };
    case FRAME.recvPacket:
      return { kind: "recvPacket", src: reader.take(KEY_BYTES), data: rest(MAX_PACKET_BYTES) };
    case FRAME.forwardPacket:
      return {
        kind: "forwardPacket",
        src: reader.take(KEY_BYTES),
        dst: reader.take(KEY_BYTES),
        data: rest(MAX_PACKET_BYTES),
      };
    case FRAME.keepAlive:
      return { kind: "keepAlive" };
    case FRAME.notePreferred: {
      const home = reader.u8() === 1;
      rest(0);
      return { kind: "notePreferred", home };
    }
    case FRAME.peerGone:
      return {
        kind: "peerGone",
        key: reader.take(KEY_BYTES),
        reason: reader.remaining > 0 ? reader.u8() : PEER_GONE.disconnected,
      };
    case FRAME.peerPresent: {
      const key = reader.take(KEY_BYTES);
      if (reader.remaining < 18) return { kind: "peerPresent", key };
      const address = reader.take(16);
      const port = reader.u16();
      return reader.remaining > 0
        ? { kind: "peerPresent", key, address, port, flags: reader.u8() }
        : { kind: "peerPresent", key, address, port };
    }
    case FRAME.watchConns:
      rest(0);
      return { kind: "watchConns" };
    case FRAME.closePeer: {
      const key = reader.take(KEY_BYTES);
      rest(0);
      return { kind: "closePeer", key };
    }
    case FRAME.ping:
      return { kind: "ping", data: reader.take(8) };
    case FRAME.pong:
      return { kind: "pong", data: reader.take(8) };
    case FRAME.health:
      return { kind: "health", problem: fromUtf8(body) };
    case FRAME.restarting:
      return { kind: "restarting", reconnectInMs: reader.u32(), tryForMs: reader.u32() };
    default:
      return { kind: "unknown", type };
  }
}

/** What a client says about itself, sealed for the server. */
export interface ClientInfo {
  version: number;
  canAckPings: boolean;
  /** Shared by the servers of a region: 64 hex digits, or the 32 characters an older fork uses. */
  meshKey?: string;
  isProber?: boolean;
  appName?: string;
  /**
   * Ours: asks for PeerGone(notHere) after a packet of any kind to a key that is not connected. Without it the server
   * answers only path-discovery messages, as other servers do (they ignore the field).
   */
  peerGoneForAll?: boolean;
  /**
   * Ours: the relay ticket in base64, where the upgrade request had to leave before there was one; other servers ignore
   * the field. Who has it at the upgrade says it there.
   */
  ticket?: string;
}

export interface ServerInfo {
  version: number;
  /** When set, the client drops what it would send beyond it. */
  tokenBucketBytesPerSecond?: number;
  tokenBucketBytesBurst?: number;
}

/** UTF-8 JSON; fields that are unset or false are left out, except those every server expects. */
export function encodeClientInfo(info: ClientInfo): Uint8Array {
  return utf8(
    JSON.stringify({
      meshKey: info.meshKey || undefined,
      version: info.version,
      CanAckPings: info.canAckPings,
      IsProber: info.isProber || undefined,
      AppName: info.appName || undefined,
      PeerGoneForAll: info.peerGoneForAll || undefined,
      Ticket: info.ticket || undefined,
    }),
  );
}

/** What servers of a region may share: 64 hex digits, or the 32 printable characters an older fork uses. */
export function isMeshKeyText(text: string): boolean {
  return /^([0-9a-f]{64}|[\x21-\x7e]{32})$/i.test(text);
}

/** @throws {WireError} ERR_BAD_VALUE */
export function decodeClientInfo(json: Uint8Array): ClientInfo {
  const field = fields(json);
  const meshKey = field("meshKey", "string");
  if (meshKey !== undefined && !isMeshKeyText(meshKey))
    throw new WireError("ERR_BAD_VALUE", "meshKey is neither 64 hex digits nor 32 characters");
  return {
    version: integer(field("version", "number")) ?? 0,
    canAckPings: field("CanAckPings", "boolean") ?? false,
    meshKey,
    isProber: field("IsProber", "boolean") ?? false,
    appName: field("AppName", "string") ?? "",
    peerGoneForAll: field("PeerGoneForAll", "boolean") ?? false,
    ticket: field("Ticket", "string"),
  };
}

/** UTF-8 JSON. */
export function encodeServerInfo(info: ServerInfo): Uint8Array {
  return utf8(
    JSON.stringify({
      version: info.version,
      TokenBucketBytesPerSecond: info.tokenBucketBytesPerSecond || undefined,
      TokenBucketBytesBurst: info.tokenBucketBytesBurst || undefined,
    }),
  );
}

/** @throws {WireError} ERR_BAD_VALUE */
export function decodeServerInfo(json: Uint8Array): ServerInfo {
  const field = fields(json);
  return {
    version: integer(field("version", "number")) ?? 0,
    tokenBucketBytesPerSecond: integer(field("TokenBucketBytesPerSecond", "number")),
    tokenBucketBytesBurst: integer(field("TokenBucketBytesBurst", "number")),
  };
}

interface JsonTypes {
  string: string;
  number: number;
  boolean: boolean;
}

/** Reader of a JSON object's fields, names without regard to case, null the same as absent. */
function fields(
  json: Uint8Array,
): <T extends keyof JsonTypes>(name: string, type: T) => JsonTypes[T] | undefined {
  const text = fromUtf8(json);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new WireError("ERR_BAD_VALUE", "not JSON", { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new WireError("ERR_BAD_VALUE", "not a JSON object");
  const byName = new Map(Object.entries(value).map(([name, item]) => [name.toLowerCase(), item]));
  return <T extends keyof JsonTypes>(name: string, type: T): JsonTypes[T] | undefined => {
    const item: unknown = byName.get(name.toLowerCase());
    if (item === undefined || item === null) return undefined;
    if (typeof item !== type) throw new WireError("ERR_BAD_VALUE", `${name} is not a ${type}`);
    return item as JsonTypes[T];
  };
}

function integer(value: number | undefined): number | undefined {
  if (value !== undefined && !Number.isSafeInteger(value))
    throw new WireError("ERR_BAD_VALUE", "a number is not an integer");
  return value;
}

function presentTail(address: Uint8Array | undefined, port: number, flags: number): Uint8Array {
  const tail = new Uint8Array(19);
  if (address) tail.set(address);
  tail[16] = port >>> 8;
  tail[17] = port & 0xff;
  tail[18] = flags;
  return tail;
}

function join(type: number, ...parts: Uint8Array[]): Uint8Array {
  let bodyBytes = 0;
  for (const part of parts) bodyBytes += part.length;
  const out = new Uint8Array(HEADER_BYTES + bodyBytes);
  writeHeader(out, 0, type, bodyBytes);
  let offset = HEADER_BYTES;
  for (const part of parts) {
    out.set(part, offset);
    offset += part.length;
  }
  return out;
}
