// Transport keys of one finished handshake, and when they end (WireGuard paper section 6.1).
import {
  MAX_PLAINTEXT_BYTES,
  PADDING_BYTES,
  TRANSPORT_HEADER_BYTES,
  transportCounter,
  writeTransportHeader,
} from "../wire/wireguard.ts";
import { type TransportCipher, type WireGuardCrypto, WireGuardError } from "./crypto.ts";
import type { TransportKeys } from "./noise.ts";
import { ReplayWindow } from "./replay.ts";

/** The initiator makes new keys when it sends with ones this old. */
export const REKEY_AFTER_MS = 120_000;
/** Nobody sends or accepts anything with keys this old. */
export const REJECT_AFTER_MS = 180_000;
/** Having received but not sent for this long, say that we live. */
export const KEEPALIVE_AFTER_MS = 10_000;
/** A rekey is tried again after this long. */
export const REKEY_RETRY_MS = 5_000;
/** The initiator makes new keys when it *receives* with ones this old, lest a one-way flow ends at REJECT_AFTER_MS. */
export const REKEY_ON_RECEIVE_MS = REJECT_AFTER_MS - KEEPALIVE_AFTER_MS - REKEY_RETRY_MS;
/**
 * The paper's limits are 2^60 and 2^64 - 2^13 - 1. Ours are lower so that a counter is an exact number; making new
 * keys early is always allowed, and neither can be reached in 180 s.
 */
export const REKEY_AFTER_MESSAGES = 2 ** 52;
export const REJECT_AFTER_MESSAGES = Number.MAX_SAFE_INTEGER - 2 ** 13;

export class Keypair {
  readonly localIndex: number;
  readonly initiator: boolean;
  readonly createdAt: number;
  #remoteIndex: number;
  #send: TransportCipher;
  #receive: TransportCipher;
  #sendCounter = 0;
  #replay = new ReplayWindow();

  constructor(options: {
    crypto: WireGuardCrypto;
    keys: TransportKeys;
    localIndex: number;
    remoteIndex: number;
    initiator: boolean;
    now: number;
  }) {
    this.localIndex = options.localIndex;
    this.initiator = options.initiator;
    this.createdAt = options.now;
    this.#remoteIndex = options.remoteIndex;
    this.#send = options.crypto.transportCipher(options.keys.send);
    this.#receive = options.crypto.transportCipher(options.keys.receive);
  }

  /** Neither sends nor receives from here on. */
  get rejectAt(): number {
    return this.createdAt + REJECT_AFTER_MS;
  }

  canSend(now: number): boolean {
    return now < this.rejectAt && this.#sendCounter < REJECT_AFTER_MESSAGES;
  }

  /** Whether whoever sends with this should start a handshake beside it. */
  wantsRekey(now: number): boolean {
    return (
      this.#sendCounter >= REKEY_AFTER_MESSAGES || (this.initiator && now - this.createdAt >= REKEY_AFTER_MS)
    );
  }

  /**
   * @returns a whole transport message, in one allocation
   * @throws {WireGuardError} ERR_PACKET_TOO_LARGE above MAX_PLAINTEXT_BYTES
   */
  seal(plaintext: Uint8Array): Uint8Array {
    const padded = paddedBytes(plaintext);
    const counter = this.#sendCounter++;
    const message = this.#send.seal(counter, plaintext, padded, TRANSPORT_HEADER_BYTES);
    writeTransportHeader(message, this.#remoteIndex, counter);
    return message;
  }

  /**
   * As seal, in pieces that follow one another, where the cipher can: saves the copy of a large packet.
   *
   * @throws as seal
   */
  sealPieces(plaintext: Uint8Array): Uint8Array[] {
    if (!this.#send.sealPieces) return [this.seal(plaintext)];
    const padded = paddedBytes(plaintext);
    const counter = this.#sendCounter++;
    const header = new Uint8Array(TRANSPORT_HEADER_BYTES);
    writeTransportHeader(header, this.#remoteIndex, counter);
    return [header, ...this.#send.sealPieces(counter, plaintext, padded)];
  }

  /** @returns the padded plaintext of a transport message, or why it is dropped */
  open(message: Uint8Array): Uint8Array | "replayed" | "forged" {
    const counter = transportCounter(message);
    if (counter === undefined) return "forged";
    if (!this.#replay.accepts(counter)) return "replayed";
    const plaintext = this.#receive.open(counter, message.subarray(TRANSPORT_HEADER_BYTES));
    if (!plaintext) return "forged";
    this.#replay.record(counter);
    return plaintext;
  }
}

/** @throws {WireGuardError} ERR_PACKET_TOO_LARGE */
function paddedBytes(plaintext: Uint8Array): number {
  if (plaintext.length > MAX_PLAINTEXT_BYTES)
    throw new WireGuardError(
      "ERR_PACKET_TOO_LARGE",
      `a packet of ${plaintext.length} bytes; split it into ${MAX_PLAINTEXT_BYTES} or less`,
    );
  return Math.ceil(plaintext.length / PADDING_BYTES) * PADDING_BYTES;
}
