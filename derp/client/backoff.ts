// When to dial again. n² x 10 ms as deployed clients do, but for the first minutes of an outage never beyond 1 s: a
// relay that restarts must have its clients back within two seconds, whatever it was gone for.
const STEP_MS = 10;
const MAX_MS = 5_000;
const MAX_EARLY_MS = 1_000;
/** As long as sessions are kept by default: who comes back in time must find them. */
const EARLY_MS = 300_000;

/**
 * The random half keeps the clients of one relay apart, so that its return is not met by all of them at once.
 * `failures`: consecutive, from 1. `outageMs`: since the connection was last good. `random`: 0..1. @returns ms
 */
export function backoffMs(failures: number, outageMs: number, random: number): number {
  const baseMs = failures * failures * STEP_MS;
  // Jitter downwards only: beyond the cap there would be no promise left.
  if (outageMs < EARLY_MS) return Math.min(baseMs, MAX_EARLY_MS) * (0.5 + random / 2);
  return Math.min(baseMs, MAX_MS) * (0.5 + random);
}
