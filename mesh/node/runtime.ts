// The world around a node: clocks, timers, randomness. What runs whole nodes on virtual time brings its own.
import { randomBytes } from "node:crypto";
import { totalmem, uptime } from "node:os";

/** What a timer is known by; only the runtime that made it knows more. */
export type Timer = object;

export interface Runtime {
  /** Monotonic ms, fractions allowed; timers go by it. On Linux it stands still while the machine sleeps. */
  nowMs(): number;
  /** Unix ms; it may be set at any time. */
  wallClockMs(): number;
  /** Since boot, sleep included, in ms. */
  uptimeMs(): number;
  /** Calls `fn` once, `ms` from now; the process lives at least as long. */
  setTimer(fn: () => void, ms: number): Timer;
  /** As setTimer, but the process may end before. */
  setIdleTimer(fn: () => void, ms: number): Timer;
  /** Calls `fn` every `ms`; the process may end before. */
  repeat(fn: () => void, ms: number): Timer;
  /** Ends a timer of any of the three kinds; harmless when it is over, or there is none. */
  clearTimer(timer: Timer | undefined): void;
  /** Cryptographically strong. */
  randomBytes(count: number): Uint8Array;
  /** 0 <= n < 1, for jitter. */
  random(): number;
}

export const systemRuntime: Runtime = {
  nowMs: () => performance.now(),
  wallClockMs: () => Date.now(),
  uptimeMs: () => uptime() * 1_000,
  setTimer: (fn, ms) => setTimeout(fn, ms),
  setIdleTimer: (fn, ms) => setTimeout(fn, ms).unref(),
  repeat: (fn, ms) => setInterval(fn, ms).unref(),
  clearTimer: (timer) => clearTimeout(timer as NodeJS.Timeout | undefined),
  randomBytes: (count) => new Uint8Array(randomBytes(count)),
  random: () => Math.random(),
};

/** What this process may use: its cgroup's limit where there is one, else the machine's memory. */
export function memoryLimitBytes(): number {
  const constrained = process.constrainedMemory();
  const total = totalmem();
  return constrained > 0 && constrained < total ? constrained : total;
}
