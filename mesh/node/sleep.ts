/** A clock ran on by this much more than our timers' did: the machine slept. */
export const SLEPT_MS = 2_000;
/** Nothing ran for this long, by any clock: a machine whose monotonic clock counts sleep, or a process that was stopped. */
export const STOPPED_MS = 10_000;

/** What the clocks say now, in ms; only differences count. */
export interface Clocks {
  /** Monotonic, as timers see it. On Linux it stands still while the machine sleeps, elsewhere it may not. */
  monotonicMs: number;
  wallMs: number;
  /** Since boot, sleep included. */
  uptimeMs: number;
}

/**
 * Notices that the machine slept, by comparing clocks every `intervalMs`: those that ran on against the one that did
 * not, and that one against the pace of the calls. A wall clock set forward looks the same, and costs a handshake.
 */
export class SleepDetector {
  readonly #intervalMs: number;
  #last: Clocks;

  constructor(intervalMs: number, clocks: Clocks) {
    this.#intervalMs = intervalMs;
    this.#last = clocks;
  }

  /** @returns for how long it slept, in ms; undefined when it did not */
  check(clocks: Clocks): number | undefined {
    const last = this.#last;
    this.#last = clocks;
    const ranMs = clocks.monotonicMs - last.monotonicMs;
    const sleptMs = Math.max(clocks.wallMs - last.wallMs, clocks.uptimeMs - last.uptimeMs) - ranMs;
    if (sleptMs > SLEPT_MS) return sleptMs;
    const stoppedMs = ranMs - this.#intervalMs;
    return stoppedMs > STOPPED_MS ? stoppedMs : undefined;
  }
}
