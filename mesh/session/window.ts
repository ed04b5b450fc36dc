import type { MemoryBudget } from "./budget.ts";

/** A window consumed faster than this is grown even when the round trip is shorter: an event loop has pauses. */
const MIN_TUNE_MS = 20;
const UPDATE_BYTES = 128 << 10;

/**
 * How much the peer may send, on one stream or in the whole session. Grows like the bandwidth-delay product: it
 * doubles whenever half of it was consumed within one round trip.
 */
export class ReceiveWindow {
  /** Highest offset (or sum of them) the peer may reach; what the last MAX_* frame said. */
  limit: number;
  /** Bytes the application took, or that were thrown away. */
  consumed = 0;
  #windowBytes: number;
  readonly #initialBytes: number;
  readonly #maxBytes: number;
  readonly #budget: MemoryBudget | undefined;
  /** What was consumed, and when, as the present measurement began. */
  #since: { consumed: number; at: number } | undefined;

  /** @param budget what growth beyond `initialBytes` is taken from */
  constructor(initialBytes: number, maxBytes: number, budget?: MemoryBudget) {
    this.#initialBytes = initialBytes;
    this.#budget = budget;
    this.#windowBytes = initialBytes;
    this.#maxBytes = maxBytes;
    this.limit = initialBytes;
  }

  get windowBytes(): number {
    return this.#windowBytes;
  }

  /**
   * Is it worth telling the peer of new room? A large window is renewed by eighths: an update takes half a round
   * trip, in which the sender must not run dry.
   */
  get isDue(): boolean {
    const step = Math.min(this.#windowBytes / 2, Math.max(this.#windowBytes / 8, UPDATE_BYTES));
    return this.consumed + this.#windowBytes - this.limit >= step;
  }

  /** Raises the limit. @returns the new one, to be sent */
  renew(now: number, rttMs: number): number {
    this.#since ??= { consumed: this.consumed, at: now };
    if (this.consumed - this.#since.consumed >= this.#windowBytes / 2) {
      if (now - this.#since.at <= Math.max(rttMs, MIN_TUNE_MS)) this.#grow();
      this.#since = { consumed: this.consumed, at: now };
    }
    this.limit = Math.max(this.limit, this.consumed + this.#windowBytes);
    return this.limit;
  }

  /** The peer is away: back to the first size. What it was promised before stays promised. */
  shrink(): void {
    const excess = this.#windowBytes - this.#initialBytes;
    if (excess <= 0) return;
    this.#windowBytes = this.#initialBytes;
    this.#since = undefined;
    this.#budget?.give(excess);
  }

  /** The peer is back: what it was promised counts again. */
  restore(): void {
    const promised = Math.min(this.limit - this.consumed, this.#maxBytes);
    if (promised <= this.#windowBytes) return;
    this.#budget?.takeAnyway(promised - this.#windowBytes);
    this.#windowBytes = promised;
  }

  #grow(): void {
    const grown = Math.min(2 * this.#windowBytes, this.#maxBytes);
    const more = grown - this.#windowBytes;
    if (more > 0 && (this.#budget?.take(more) ?? true)) this.#windowBytes = grown;
  }
}
