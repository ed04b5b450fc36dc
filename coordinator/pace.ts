// What one subject may make us do at once, however many connections it has. No clock: `nowMs` is given.

export interface PaceLimits {
  /** At once. */
  burst: number;
  perSecond: number;
  /** Under way at the same time; more wait in turn. */
  concurrent: number;
}

interface Lane {
  tokens: number;
  at: number;
  running: number;
  waiting: (() => void)[];
}

/** A token bucket, and a queue, per subject. */
export class Pace {
  readonly #limits: PaceLimits;
  readonly #lanes = new Map<string, Lane>();

  constructor(limits: PaceLimits) {
    this.#limits = limits;
  }

  /** Subjects that have something under way, or had lately. */
  get size(): number {
    return this.#lanes.size;
  }

  /**
   * Runs `work` when its turn has come.
   *
   * @returns undefined, and doesn't run it, when the subject has asked for too much
   */
  async run<T>(subject: string, nowMs: number, work: () => Promise<T>): Promise<{ result: T } | undefined> {
    const lane = this.#laneOf(subject, nowMs);
    if (lane.tokens < 1) return undefined;
    lane.tokens--;
    if (lane.running >= this.#limits.concurrent)
      await new Promise<void>((resolve) => lane.waiting.push(resolve));
    else lane.running++;
    try {
      return { result: await work() };
    } finally {
      const next = lane.waiting.shift();
      if (next) next();
      else lane.running--;
    }
  }

  /** Forgets who has asked for nothing long enough. */
  sweep(nowMs: number): void {
    for (const [subject, lane] of this.#lanes) {
      this.#refill(lane, nowMs);
      if (lane.running === 0 && lane.tokens >= this.#limits.burst) this.#lanes.delete(subject);
    }
  }

  #laneOf(subject: string, nowMs: number): Lane {
    let lane = this.#lanes.get(subject);
    if (!lane) {
      lane = { tokens: this.#limits.burst, at: nowMs, running: 0, waiting: [] };
      this.#lanes.set(subject, lane);
    }
    this.#refill(lane, nowMs);
    return lane;
  }

  #refill(lane: Lane, nowMs: number): void {
    const seconds = Math.max(0, nowMs - lane.at) / 1_000; // below zero the clock was set back
    lane.tokens = Math.min(this.#limits.burst, lane.tokens + seconds * this.#limits.perSecond);
    lane.at = nowMs;
  }
}
