// The client's half of DERP over any byte stream: handshake, then frames to events. No socket, no timer, no clock, so
// that a browser's WebSocket can use it as well.
import {
  type ClientInfo,
  decodeFrame,
  encodeFrame,
  FRAME,
  FrameDecoder,
  HEADER_BYTES,
  KEY_BYTES,
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
  /** Both are views of what was received, not used again by us. */
  onPacket(src: Uint8Array, data: Uint8Array): void;
  onPeerGone(key: Uint8Array, reason: number): void;
  onPong(data: Uint8Array): void;
  onHealth(problem: string): void;
  onRestarting(reconnectInMs: number, tryForMs: number): void;
}

export class ClientProtocol {
  #keys: KeyPair;
  #info: ClientInfo;
  #nonce: Uint8Array;
  #events: ProtocolEvents;
  #decoder = new FrameDecoder(maxServerBodyBytes);
  #shared: Uint8Array | undefined;
  #confirmed = false;
  #closed = false;

  /** `nonce`: 24 random bytes, used once. */
  constructor(keys: KeyPair, info: ClientInfo, nonce: Uint8Array, events: ProtocolEvents) {
    if (nonce.length !== NONCE_BYTES) throw new RangeError("the nonce is 24 bytes");
    this.#keys = keys;
    this.#info = info;
    this.#nonce = nonce;
    this.#events = events;
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
    if (this.#confirmed) {
      if (type === FRAME.recvPacket) {
        const dataAt = bodyAt + KEY_BYTES;
        if (end >= dataAt)
          this.#events.onPacket(buffer.subarray(bodyAt, dataAt), buffer.subarray(dataAt, end));
      } else this.#steady(type, buffer.subarray(bodyAt, end));
    } else this.#handshake(type, buffer.subarray(bodyAt, end));
    return !this.#closed;
  };

  #handshake(type: number, body: Uint8Array): void {
    if (!this.#shared) {
      const frame = decodeFrame(type, body);
      if (frame.kind !== "serverKey")
        throw new WireError("ERR_UNEXPECTED_FRAME", `the relay began with a frame of type ${type}`);
      this.#shared = sharedKey(frame.key, this.#keys.privateKey);
      this.#events.write(sealClientInfo(this.#info, this.#keys.publicKey, this.#shared, this.#nonce));
      this.#events.onSendable(frame.key.slice());
    } else if (type === FRAME.serverInfo) {
      const info = openServerInfo(body, this.#shared);
      this.#confirmed = true;
      this.#events.onConfirmed(info);
    } else throw new WireError("ERR_UNEXPECTED_FRAME", `frame of type ${type} before ServerInfo`);
  }

  #steady(type: number, body: Uint8Array): void {
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
        this.#events.onHealth(frame.problem);
        return;
      case "restarting":
        this.#events.onRestarting(frame.reconnectInMs, frame.tryForMs);
        return;
      default: // KeepAlive, whose arrival is all it says, and types of other versions
    }
  }
}
