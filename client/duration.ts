import { CliError } from "./errors.ts";

const UNIT_MS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 };

/** "5s", "200ms", "1h30m" in ms, as Go writes durations. @throws {CliError} ERR_BAD_DURATION */
export function parseDurationMs(text: string): number {
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h)/g)];
  if (parts.length === 0 || parts.map(([part]) => part).join("") !== text)
    throw new CliError("ERR_BAD_DURATION", `"${text}" is no duration`, {
      hint: "Write it as 200ms, 5s, 1m or 1h30m.",
    });
  return parts.reduce((sum, [, value, unit]) => sum + Number(value) * UNIT_MS[unit], 0);
}

/** As parseDurationMs. @throws {CliError} ERR_BAD_DURATION also outside of `min` and `max`, in ms; `flag` is for the message */
export function durationMsIn(text: string, flag: string, min: number, max: number): number {
  const ms = parseDurationMs(text);
  if (ms < min || ms > max)
    throw new CliError("ERR_BAD_DURATION", `${flag} ${text} is out of range`, {
      hint: `It goes from ${formatDuration(min)} to ${formatDuration(max)}.`,
    });
  return ms;
}

/** "5s", "200ms", "24h". */
export function formatDuration(ms: number): string {
  for (const [unit, size] of [
    ["h", 3_600_000],
    ["m", 60_000],
    ["s", 1_000],
  ] as const)
    if (ms >= size && ms % size === 0) return `${ms / size}${unit}`;
  return `${ms}ms`;
}

/** Resolves after `ms`, or as soon as the signal says so. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const finish = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", finish);
      resolve();
    };
    const timer = setTimeout(finish, ms);
    signal.addEventListener("abort", finish, { once: true });
    if (signal.aborted) finish();
  });
}
