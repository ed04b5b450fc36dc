// The send rate a relay asks of its clients. Pure.

/** Then one looks again: a timer can't be set for years. */
const MAX_WAIT_MS = 60_000;

/** `now`: monotonic ms. */
export class TokenBucket {
  #bytesPerMs: number;
  #burstBytes: number;
  #tokens: number;
  #at: number;

  constructor(bytesPerSecond: number, burstBytes: number, now: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#burstBytes = burstBytes;
    this.#tokens = burstBytes;
    this.#at = now;
  }

  /**
   * Whether a packet may leave now. The last one may overdraw: a bucket smaller than a packet would else never let it
   * pass, and what is overdrawn is waited for.
   */
  ready(now: number): boolean {
    this.#refill(now);
    return this.#tokens > 0;
  }

  take(bytes: number, now: number): void {
    this.#refill(now);
    this.#tokens -= bytes;
  }

  /** @returns ms until `ready`; 0 when it is */
  waitMs(now: number): number {
    this.#refill(now);
    return this.#tokens > 0 ? 0 : Math.min(-this.#tokens / this.#bytesPerMs + 1, MAX_WAIT_MS);
  }

  #refill(now: number): void {
    this.#tokens = Math.min(this.#burstBytes, this.#tokens + Math.max(0, now - this.#at) * this.#bytesPerMs);
    this.#at = now;
  }
}
