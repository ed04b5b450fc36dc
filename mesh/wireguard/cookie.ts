// mac1, mac2 and cookies (WireGuard paper sections 5.3 and 5.4.7): what a node checks before it computes anything
// expensive. mac1 proves that the sender knows our public key; mac2, asked for only under load, that it receives
// at the source it sends from.
import { equalBytes, utf8 } from "../wire/bytes.ts";
import { beforeMac1, beforeMac2, encodeCookieReply, mac1Of, mac2Of } from "../wire/wireguard.ts";
import type { WireGuardCrypto } from "./crypto.ts";

/** Where a message came from, as the shell names it: region and sender key on a relay, or IP and port. */
export interface Source {
  key: string;
}

export const COOKIE_LIFETIME_MS = 120_000;
/** A cookie is used a little less long than its maker honours it, for the way there. */
const COOKIE_USE_MS = COOKIE_LIFETIME_MS - 5_000;

const MAC1_LABEL = utf8("mac1----");
const COOKIE_LABEL = utf8("cookie--");

/** The answering side: checks what comes in, hands out cookies. One per node. */
export class CookieChecker {
  #crypto: WireGuardCrypto;
  #randomBytes: (count: number) => Uint8Array;
  #mac1Key: Uint8Array;
  #replyKey: Uint8Array;
  #secret: Uint8Array | undefined;
  #secretUntilAt = 0;

  constructor(crypto: WireGuardCrypto, ownPublicKey: Uint8Array, randomBytes: (count: number) => Uint8Array) {
    this.#crypto = crypto;
    this.#randomBytes = randomBytes;
    this.#mac1Key = crypto.hash(MAC1_LABEL, ownPublicKey);
    this.#replyKey = crypto.hash(COOKIE_LABEL, ownPublicKey);
  }

  /** @param message an initiation or response */
  mac1IsValid(message: Uint8Array): boolean {
    return equalBytes(mac1Of(message), this.#crypto.mac(this.#mac1Key, beforeMac1(message)));
  }

  mac2IsValid(message: Uint8Array, from: Source, now: number): boolean {
    if (!this.#secret || now >= this.#secretUntilAt) return false;
    const expected = this.#crypto.mac(this.#crypto.mac(this.#secret, utf8(from.key)), beforeMac2(message));
    return equalBytes(mac2Of(message), expected);
  }

  /** @returns the 64-byte answer that carries the cookie of `from`; it holds until the secret changes */
  reply(message: Uint8Array, sender: number, from: Source, now: number): Uint8Array {
    if (!this.#secret || now >= this.#secretUntilAt) {
      this.#secret = this.#randomBytes(32);
      this.#secretUntilAt = now + COOKIE_LIFETIME_MS;
    }
    const cookie = this.#crypto.mac(this.#secret, utf8(from.key));
    const nonce = this.#randomBytes(24);
    const sealedCookie = this.#crypto.xseal(this.#replyKey, nonce, cookie, mac1Of(message));
    return encodeCookieReply({ receiver: sender, nonce, sealedCookie });
  }
}

/** The asking side: signs handshake messages to one peer, with its cookie while that is fresh. One per peer. */
export class MacWriter {
  #crypto: WireGuardCrypto;
  #mac1Key: Uint8Array;
  #replyKey: Uint8Array;
  #lastMac1: Uint8Array | undefined;
  #cookie: Uint8Array | undefined;
  #cookieUntilAt = 0;

  constructor(crypto: WireGuardCrypto, peerPublicKey: Uint8Array) {
    this.#crypto = crypto;
    this.#mac1Key = crypto.hash(MAC1_LABEL, peerPublicKey);
    this.#replyKey = crypto.hash(COOKIE_LABEL, peerPublicKey);
  }

  /** Fills both macs of an initiation or response in. */
  write(message: Uint8Array, now: number): void {
    const mac1 = this.#crypto.mac(this.#mac1Key, beforeMac1(message));
    mac1Of(message).set(mac1);
    this.#lastMac1 = mac1;
    if (this.#cookie && now < this.#cookieUntilAt)
      mac2Of(message).set(this.#crypto.mac(this.#cookie, beforeMac2(message)));
  }

  /** @returns whether the reply answers our latest message; its cookie goes into the next one */
  acceptReply(nonce: Uint8Array, sealedCookie: Uint8Array, now: number): boolean {
    if (!this.#lastMac1) return false;
    const cookie = this.#crypto.xopen(this.#replyKey, nonce, sealedCookie, this.#lastMac1);
    if (!cookie) return false;
    this.#cookie = cookie;
    this.#cookieUntilAt = now + COOKIE_USE_MS;
    this.#lastMac1 = undefined; // one reply for one message
    return true;
  }
}
