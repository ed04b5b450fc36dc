// The client's half of DERP over any byte stream: handshake, then frames to events. No socket, no timer, no clock, so
// that a browser's WebSocket can use it as well.

import { equalBytes } from "../../mesh/wire/bytes.ts";
import {
  type ClientInfo,
  decodeFrame,
  encodeFrame,
  FRAME,
  type Frame,
  FrameDecoder,
  HEADER_BYTES,
  KEY_BYTES,
  MAX_PACKET_BYTES,
  maxServerBodyBytes,
  NONCE_BYTES,
  type ServerInfo,
} from "../../mesh/wire/derp.ts";
import { WireError } from "../../mesh/wire/errors.ts";
import { type KeyPair, openServerInfo, sealClientInfo, sharedKey } from "../box.ts";

export interface ProtocolEvents {
  write(bytes: Uint8Array): void;
  /** Our ClientInfo is on its way: packets may follow it at once. */
  onSendable(serverKey: Uint8Array): void;
  /** The relay proved its key and has registered us. */
  onConfirmed(info: ServerInfo): void;
  /** Both are views of what was received; not used again by us, unless `lends` was asked for. */
  onPacket(src: Uint8Array, data: Uint8Array): void;
  onPeerGone(key: Uint8Array, reason: number): void;
  onPong(data: Uint8Array): void;
  /** At most MAX_HEALTH_CHARS, without control characters; "" when the problem is over. */
  onHealth(problem: string): void;
  onRestarting(reconnectInMs: number, tryForMs: number): void;
  /** Frames that only servers of one region get from each other. */
  onOther?(frame: Frame): void;
}

/** A relay's text is shown to the user as it is. */
const MAX_HEALTH_CHARS = 512;

export class ClientProtocol {
  #keys: KeyPair;
  #info: ClientInfo;
  #nonce: Uint8Array;
  #events: ProtocolEvents;
  #decoder: FrameDecoder;
  #serverKey: Uint8Array | undefined;
  #shared: Uint8Array | undefined;
  #confirmed = false;
  #closed = false;
  #frames = 0;

  /** `nonce`: 24 random bytes, used once. `lends`: a packet is valid only until onPacket returns. */
  constructor(
    keys: KeyPair,
    info: ClientInfo,
    nonce: Uint8Array,
    events: ProtocolEvents,
    { lends = false }: { lends?: boolean } = {},
  ) {
    if (nonce.length !== NONCE_BYTES) throw new RangeError("the nonce is 24 bytes");
    this.#keys = keys;
    this.#info = info;
    this.#nonce = nonce;
    this.#events = events;
    this.#decoder = new FrameDecoder(maxServerBodyBytes, { lends });
  }

  /** Whole frames read: a relay that trickles bytes but ends no frame is as good as silent. */
  get frames(): number {
    return this.#frames;
  }

  /**
   * Sends our half at once, since the relay's key is known: its ServerKey is then only compared. Call it before `push`.
   *
   * @throws {WireError} ERR_BAD_VALUE for a key with which no secret can be shared
   */
  startWith(serverKey: Uint8Array): void {
    this.#meet(serverKey);
  }

  /** No event comes after this. */
  close(): void {
    this.#closed = true;
  }

  /** @throws {WireError} the relay broke the protocol: close the connection */
  push(chunk: Uint8Array): void {
    if (!this.#closed) this.#decoder.push(chunk, this.#onFrame);
  }

  #onFrame = (type: number, buffer: Uint8Array, start: number, end: number): boolean => {
    const bodyAt = start + HEADER_BYTES;
    this.#frames++;
    if (this.#confirmed) {
      if (type === FRAME.recvPacket) {
        const dataAt = bodyAt + KEY_BYTES;
        if (end - dataAt > MAX_PACKET_BYTES)
          throw new WireError("ERR_FRAME_TOO_LARGE", `a packet of ${end - dataAt} bytes`);
        if (end >= dataAt)
          this.#events.onPacket(buffer.subarray(bodyAt, dataAt), buffer.subarray(dataAt, end));
      } else this.#steady(type, buffer.subarray(bodyAt, end));
    } else this.#handshake(type, buffer.subarray(bodyAt, end));
    return !this.#closed;
  };

  #handshake(type: number, body: Uint8Array): void {
    if (type === FRAME.serverKey) this.#onServerKey(body);
    else if (!this.#shared)
      throw new WireError("ERR_UNEXPECTED_FRAME", `the relay began with a frame of type ${type}`);
    else if (type === FRAME.serverInfo) {
      const info = openServerInfo(body, this.#shared);
      this.#confirmed = true;
      this.#events.onConfirmed(info);
    } else throw new WireError("ERR_UNEXPECTED_FRAME", `frame of type ${type} before ServerInfo`);
  }

  /** The first one is answered, if the key was not known before; later ones may only repeat it. */
  #onServerKey(body: Uint8Array): void {
    const frame = decodeFrame(FRAME.serverKey, body);
    if (frame.kind !== "serverKey") return;
    if (!this.#serverKey) this.#meet(frame.key.slice());
    else if (!equalBytes(frame.key, this.#serverKey))
      throw new ServerKeyMismatch("ERR_BAD_VALUE", "the relay has another key than expected");
  }

  #meet(serverKey: Uint8Array): void {
    this.#shared = sharedKey(serverKey, this.#keys.privateKey);
    this.#serverKey = serverKey;
    this.#events.write(sealClientInfo(this.#info, this.#keys.publicKey, this.#shared, this.#nonce));
    this.#events.onSendable(serverKey);
  }

  #steady(type: number, body: Uint8Array): void {
    if (type === FRAME.serverKey) {
      this.#onServerKey(body);
      return;
    }
    let frame: ReturnType<typeof decodeFrame>;
    try {
      frame = decodeFrame(type, body);
    } catch (error) {
      if (error instanceof WireError) return; // short or odd, but whole: deployed clients pass over it as well
      throw error;
    }
    switch (frame.kind) {
      case "peerGone":
        this.#events.onPeerGone(frame.key, frame.reason);
        return;
      case "ping":
        this.#events.write(encodeFrame({ kind: "pong", data: frame.data }));
        return;
      case "pong":
        this.#events.onPong(frame.data);
        return;
      case "health":
        this.#events.onHealth(printable(frame.problem));
        return;
      case "restarting":
        this.#events.onRestarting(frame.reconnectInMs, frame.tryForMs);
        return;
      case "keepAlive": // its arrival is all it says
      case "unknown":
        return;
      default:
        this.#events.onOther?.(frame);
    }
  }
}

/** Our ClientInfo was sealed for another key: without knowing one the relay may well work. */
export class ServerKeyMismatch extends WireError {}

function printable(text: string): string {
  return text.slice(0, MAX_HEALTH_CHARS).replace(/[\x00-\x1f\x7f-\x9f]/g, " ");
}
