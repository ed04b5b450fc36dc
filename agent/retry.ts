/** A wait before attempt n (from 0): doubles from `minMs` to `maxMs`, and a random half of it, so that agents that
 * lost the same server don't come back in the same instant. `random`: 0..1 */
export function backoffMs(attempt: number, minMs: number, maxMs: number, random: number): number {
  const full = Math.min(maxMs, minMs * 2 ** Math.min(attempt, 30));
  return Math.round(full / 2 + (full / 2) * random);
}

/** Waits, or less when `signal` aborts; never rejects. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done, { once: true });
  });
}

export interface RetryOptions {
  minMs: number;
  maxMs: number | (() => number);
  signal: AbortSignal;
  /** Told of every failure; throws to give up. */
  onFailure(error: unknown, attempt: number): void;
  random?: () => number;
}

/** @returns what `attempt` resolves with, or undefined once `signal` aborted; rejects only with what `onFailure` throws */
export async function retry<T>(attempt: () => Promise<T>, options: RetryOptions): Promise<T | undefined> {
  const { minMs, maxMs, signal, onFailure, random = Math.random } = options;
  for (let count = 0; !signal.aborted; count++) {
    try {
      return await attempt();
    } catch (error) {
      if (signal.aborted) return undefined;
      onFailure(error, count);
      await pause(backoffMs(count, minMs, typeof maxMs === "number" ? maxMs : maxMs(), random()), signal);
    }
  }
  return undefined;
}
