// When to dial again. n² x 10 ms as deployed clients do, but for the first minute of an outage never beyond 1 s: a
// relay that restarts must have its clients back within two seconds.
const STEP_MS = 10;
const MAX_MS = 5_000;
const MAX_EARLY_MS = 1_000;
const EARLY_MS = 60_000;

/** `failures`: consecutive, from 1. `outageMs`: since the connection was last good. `random`: 0..1. @returns ms */
export function backoffMs(failures: number, outageMs: number, random: number): number {
  const cap = outageMs < EARLY_MS ? MAX_EARLY_MS : MAX_MS;
  return Math.min(failures * failures * STEP_MS, cap) * (0.5 + random);
}
