// What a device knows of one other node: its keypairs, its handshake under way, its deadlines. Rules in device.ts.
import { isCanonicalPublicKey } from "../wire/curve.ts";
import { MacWriter } from "./cookie.ts";
import type { WireGuardCrypto, X25519KeyPair } from "./crypto.ts";
import type { Keypair } from "./keypair.ts";
import type { SentInitiation } from "./noise.ts";
import { NO_PSK } from "./noise.ts";
import { isLater } from "./tai64n.ts";

/** Faster initiations than this are noise or an attack, whoever signed them (as deployed WireGuard has it). */
export const MIN_INITIATION_INTERVAL_MS = 20;

/** Our initiation that has no response yet; each retry replaces it, so only the latest can be answered. */
export interface PendingInitiation extends SentInitiation {
  localIndex: number;
}

/** Trying to reach the peer, from the first initiation to success or `giveUpAt`. */
export interface Attempt {
  pending: PendingInitiation;
  /** No session when it began: somebody waits, so retry sooner. */
  first: boolean;
  retries: number;
  retryAt: number;
  giveUpAt: number;
}

/** @returns undefined for a point of low order, and for another spelling of a key, under which its owner would be a second peer */
export const sharedWithPeer = (identity: X25519KeyPair, publicKey: Uint8Array): Uint8Array | undefined =>
  isCanonicalPublicKey(publicKey) ? identity.shared(publicKey) : undefined;

export class Peer {
  readonly publicKey: Uint8Array;
  /** Our static key with the peer's. */
  readonly shared: Uint8Array;
  readonly macs: MacWriter;
  presharedKey: Uint8Array = NO_PSK;
  /** Set while the caller has not said `admit`: whose handshake it is, and when it is forgotten. */
  unadmitted: { sourceKey: string; untilAt: number } | undefined;

  /** Sends and receives. */
  current: Keypair | undefined;
  /** Still receives what was under way when `current` took over. */
  previous: Keypair | undefined;
  /** We answered with it; the initiator has not yet proven that it got the answer. */
  next: Keypair | undefined;
  attempt: Attempt | undefined;

  /** A handshake is wanted from here on. */
  handshakeAt: number | undefined;
  /** Data went out and nothing came back since: by then the keys are doubted. */
  doubtAt: number | undefined;
  /** Something came in and nothing went out since: by then an empty packet says that we live. */
  keepaliveAt: number | undefined;

  #lastTimestamp: Uint8Array | undefined;
  #lastInitiationAt = Number.NEGATIVE_INFINITY;

  constructor(crypto: WireGuardCrypto, publicKey: Uint8Array, shared: Uint8Array) {
    this.publicKey = publicKey;
    this.shared = shared;
    this.macs = new MacWriter(crypto, publicKey);
  }

  /** Takes the timestamp of an authentic initiation. @returns false for a replay or a flood: drop it */
  acceptInitiation(timestamp: Uint8Array, now: number): boolean {
    if (this.#lastTimestamp && !isLater(timestamp, this.#lastTimestamp)) return false;
    if (now - this.#lastInitiationAt < MIN_INITIATION_INTERVAL_MS) return false;
    this.#lastTimestamp = timestamp;
    this.#lastInitiationAt = now;
    return true;
  }

  /** Keypairs that receive, the likeliest first. */
  keypairs(): Keypair[] {
    return [this.current, this.previous, this.next].filter((pair) => pair !== undefined);
  }

  /** Forgets all keys but these, which the initiator has not used yet, and what was due for them. */
  dropKeys(next?: Keypair): void {
    this.current = undefined;
    this.previous = undefined;
    this.next = next;
    this.doubtAt = undefined;
    this.keepaliveAt = undefined;
  }

  /** When something is next due. */
  nextAt(): number {
    let at = Number.POSITIVE_INFINITY;
    for (const deadline of [
      this.unadmitted?.untilAt,
      this.current?.rejectAt,
      this.previous?.rejectAt,
      this.next?.rejectAt,
      this.attempt?.retryAt,
      this.attempt?.giveUpAt,
      this.handshakeAt,
      this.doubtAt,
      this.keepaliveAt,
    ])
      if (deadline !== undefined && deadline < at) at = deadline;
    return at;
  }
}
