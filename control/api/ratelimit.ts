// Token buckets, pure: `now` comes in, the verdict goes out. One limiter per group of routes, one bucket per user
// or address. A bucket that is full again is forgotten, so memory is bounded by who asked lately.

export interface Limit {
  /** Requests a minute, and as many at once. */
  perMinute: number;
}

export const LIMITS = {
  api: { perMinute: 512 },
  login: { perMinute: 60 },
  files: { perMinute: 12 },
} satisfies Record<string, Limit>;
export type LimitName = keyof typeof LIMITS;

/** With more keys than this the ones longest unused are forgotten: they are the fullest. */
export const MAX_BUCKETS = 20_000;

export class RateLimiter {
  readonly perMinute: number;
  #buckets = new Map<string, { tokens: number; at: number }>();
  constructor({ perMinute }: Limit) {
    this.perMinute = perMinute;
  }

  get size(): number {
    return this.#buckets.size;
  }

  /**
   * Takes one token of `key`.
   *
   * @param now ms
   * @returns what is left, and how long to wait when nothing was
   */
  take(key: string, now: number): { ok: boolean; remaining: number; retryAfterMs: number } {
    const perMs = this.perMinute / 60_000;
    const before = this.#buckets.get(key) ?? { tokens: this.perMinute, at: now };
    const tokens = Math.min(this.perMinute, before.tokens + Math.max(0, now - before.at) * perMs);
    const ok = tokens >= 1;
    const left = ok ? tokens - 1 : tokens;
    // Re-inserted, so that the map's order is the order of last use.
    this.#buckets.delete(key);
    this.#buckets.set(key, { tokens: left, at: now });
    if (this.#buckets.size > MAX_BUCKETS) {
      const [oldest] = this.#buckets.keys();
      this.#buckets.delete(oldest);
    }
    return { ok, remaining: Math.floor(left), retryAfterMs: ok ? 0 : Math.ceil((1 - tokens) / perMs) };
  }
}
