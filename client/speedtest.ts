// What `coder speedtest` counts and says. Pure: instants are monotonic ms.

export const INTERVAL_MS = 1_000;

export interface Interval {
  /** Since the start. */
  fromMs: number;
  toMs: number;
  bytes: number;
}

/** Cuts a transfer into intervals of a second and what is left at its end. */
export class ThroughputMeter {
  readonly #startedAt: number;
  #intervalAt: number;
  #intervalBytes = 0;
  #bytes = 0;

  constructor(now: number) {
    this.#startedAt = now;
    this.#intervalAt = now;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** When tick() is next due. */
  nextTimeout(): number {
    return this.#intervalAt + INTERVAL_MS;
  }

  add(bytes: number): void {
    this.#bytes += bytes;
    this.#intervalBytes += bytes;
  }

  /** @returns the interval that ended, if one did; a late call makes it longer, not two */
  tick(now: number): Interval | undefined {
    if (now < this.nextTimeout()) return undefined;
    return this.#cut(now);
  }

  /** @returns the last interval, unless it is too short to say anything, and the whole */
  end(now: number): { last: Interval | undefined; total: Interval } {
    const total = { fromMs: 0, toMs: now - this.#startedAt, bytes: this.#bytes };
    const last = now - this.#intervalAt >= INTERVAL_MS / 10 ? this.#cut(now) : undefined;
    return { last, total };
  }

  #cut(now: number): Interval {
    const interval = {
      fromMs: this.#intervalAt - this.#startedAt,
      toMs: now - this.#startedAt,
      bytes: this.#intervalBytes,
    };
    this.#intervalAt = now;
    this.#intervalBytes = 0;
    return interval;
  }
}

/** Megabits (10^6) a second. */
export const mbitPerSecond = ({ fromMs, toMs, bytes }: Interval): number =>
  toMs > fromMs ? (bytes * 8) / 1_000 / (toMs - fromMs) : 0;

export const HEADING = "INTERVAL         THROUGHPUT";

/** "0.00-1.00 sec    941.2313 Mbits/sec", as Coder prints them. */
export function formatInterval(interval: Interval): string {
  const span = `${(interval.fromMs / 1_000).toFixed(2)}-${(interval.toMs / 1_000).toFixed(2)} sec`;
  return `${span.padEnd(15)}  ${mbitPerSecond(interval).toFixed(4)} Mbits/sec`;
}

/** Names as in Coder's JSON. */
export function toJson(interval: Interval): {
  start_time_seconds: number;
  end_time_seconds: number;
  throughput_mbits: number;
} {
  return {
    start_time_seconds: interval.fromMs / 1_000,
    end_time_seconds: interval.toMs / 1_000,
    throughput_mbits: mbitPerSecond(interval),
  };
}
