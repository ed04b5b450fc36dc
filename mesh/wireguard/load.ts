// When handshakes come faster than we care to compute them, and how many a single source may have then.
import type { Source } from "./cookie.ts";

/** Under load from a busy second until one second after it. */
const LOAD_WINDOW_MS = 1_000;
/** As deployed WireGuard limits a source that has proven itself: 20 a second, 5 at once. */
const TOKEN_MS = 50;
const BURST = 5;
/** Buckets kept; the one that has been quiet longest goes first. */
const MAX_SOURCES = 1_024;

export class HandshakeLoad {
  #maxPerSecond: number;
  #windowStartAt = Number.NEGATIVE_INFINITY;
  #count = 0;
  #underLoadUntilAt = Number.NEGATIVE_INFINITY;
  #buckets = new Map<string, { tokens: number; at: number }>();

  constructor(maxPerSecond: number) {
    this.#maxPerSecond = maxPerSecond;
  }

  /** Counts a handshake message with a valid mac1. @returns whether we are under load */
  arrived(now: number): boolean {
    if (now - this.#windowStartAt >= LOAD_WINDOW_MS) {
      this.#windowStartAt = now;
      this.#count = 0;
    }
    if (++this.#count > this.#maxPerSecond) this.#underLoadUntilAt = this.#windowStartAt + 2 * LOAD_WINDOW_MS;
    return now < this.#underLoadUntilAt;
  }

  /** Takes a token of a source that has shown a valid mac2. */
  allows(from: Source, now: number): boolean {
    const bucket = this.#buckets.get(from.key) ?? { tokens: BURST, at: now };
    this.#buckets.delete(from.key); // to the end: a Map keeps the order of insertion
    this.#buckets.set(from.key, bucket);
    if (this.#buckets.size > MAX_SOURCES)
      for (const oldest of this.#buckets.keys()) {
        this.#buckets.delete(oldest);
        break;
      }
    bucket.tokens = Math.min(BURST, bucket.tokens + (now - bucket.at) / TOKEN_MS);
    bucket.at = now;
    if (bucket.tokens < 1) return false;
    bucket.tokens--;
    return true;
  }
}
