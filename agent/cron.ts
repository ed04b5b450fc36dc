// When a script's `cron` is due next. Expressions as github.com/robfig/cron reads them, which templates are written
// for: fields second, minute, hour, day of month, month and, optional, day of week (so five fields start with the
// SECOND, unlike crontab's); lists, ranges, steps, `?`, names; @daily and friends; @every 1h30m; TZ=Area/City in front.

const MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const RANGES: { name: string; min: number; max: number; names?: string[] }[] = [
  { name: "second", min: 0, max: 59 },
  { name: "minute", min: 0, max: 59 },
  { name: "hour", min: 0, max: 23 },
  { name: "day of month", min: 1, max: 31 },
  { name: "month", min: 1, max: 12, names: MONTHS },
  { name: "day of week", min: 0, max: 6, names: DAYS },
];
const DESCRIPTORS = new Map([
  ["@yearly", "0 0 0 1 1 *"],
  ["@annually", "0 0 0 1 1 *"],
  ["@monthly", "0 0 0 1 * *"],
  ["@weekly", "0 0 0 * * 0"],
  ["@daily", "0 0 0 * * *"],
  ["@midnight", "0 0 0 * * *"],
  ["@hourly", "0 0 * * * *"],
]);
const UNIT_MS: Record<string, number> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ms: 1,
  s: 1_000,
  m: 60_000,
  h: 3_600_000,
};
const DAY_MS = 86_400_000;
/** A 29th of February on a given day of the week comes again within 40 years; what never comes is given up then. */
const MAX_DAYS = 366 * 40;

interface Field {
  values: ReadonlySet<number>;
  /** `*` or `?`: it leaves the choice of days to the other field. */
  isOpen: boolean;
}

export type Schedule =
  | { kind: "every"; everyMs: number }
  | {
      kind: "fields";
      second: Field;
      minute: Field;
      hour: Field;
      dayOfMonth: Field;
      month: Field;
      dayOfWeek: Field;
      /** IANA name; undefined: the workspace's own. */
      timeZone: string | undefined;
    };

export class CronError extends Error {
  readonly code = "ERR_BAD_CRON";
}

function numberOf(text: string, { name, names, min }: (typeof RANGES)[number]): number {
  const named = names?.indexOf(text.toLowerCase()) ?? -1;
  if (named >= 0) return named + min;
  if (!/^\d{1,9}$/.test(text)) throw new CronError(`${name}: ${JSON.stringify(text)} is not a number`);
  return Number(text);
}

function parseField(text: string, range: (typeof RANGES)[number]): Field {
  const values = new Set<number>();
  let isOpen = false;
  for (const part of text.split(",").filter(Boolean)) {
    const match = /^([^/-]+)(?:-([^/-]*))?(?:\/(\d+))?$/.exec(part);
    const step = Number(match?.[3] ?? 1);
    if (!match || step === 0) throw new CronError(`${range.name}: ${JSON.stringify(part)} is no range`);
    const [, low, high] = match;
    const isStar = low === "*" || low === "?";
    const start = isStar ? range.min : numberOf(low, range);
    const end =
      isStar || (high === undefined && match[3] !== undefined) ? range.max : numberOf(high ?? low, range);
    if (start < range.min || end > range.max || start > end)
      throw new CronError(
        `${range.name}: ${JSON.stringify(part)} is not within ${range.min} to ${range.max}`,
      );
    if (isStar && step === 1) isOpen = true;
    for (let value = start; value <= end; value += step) values.add(value);
  }
  return { values, isOpen };
}

/** @throws {CronError} ERR_BAD_CRON with what is wrong */
export function parseCron(spec: string): Schedule {
  const zone = /^(?:TZ|CRON_TZ)=(\S*)\s*/.exec(spec);
  const timeZone = zone && zone[1] !== "Local" ? zone[1] : undefined;
  if (timeZone !== undefined) wallClockOf(timeZone); // throws for a name it doesn't know
  const rest = (zone ? spec.slice(zone[0].length) : spec).trim();
  if (rest.startsWith("@every "))
    return { kind: "every", everyMs: parseDuration(rest.slice("@every ".length)) };
  const fields = (DESCRIPTORS.get(rest) ?? rest).split(/\s+/).filter(Boolean);
  if (fields.length === 5) fields.push("*");
  if (fields.length !== 6) throw new CronError(`expected 5 or 6 fields, got ${fields.length}`);
  const [second, minute, hour, dayOfMonth, month, dayOfWeek] = fields.map((text, i) =>
    parseField(text, RANGES[i]),
  );
  return { kind: "fields", second, minute, hour, dayOfMonth, month, dayOfWeek, timeZone };
}

function parseDuration(text: string): number {
  // One way to read a number, not one for each of its digits: else a long text that doesn't match takes for ever.
  if (!/^\+?((\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$/.test(text))
    throw new CronError(`${JSON.stringify(text)} is no duration such as 1h30m`);
  let ms = 0;
  for (const [, amount, unit] of text.matchAll(/(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)/g))
    ms += Number(amount) * UNIT_MS[unit];
  return Math.max(1_000, Math.floor(ms / 1_000) * 1_000);
}

/** Wall-clock time, written as the instant it would be in UTC: arithmetic without any zone's gaps. */
type WallMs = number;

/** @returns what the clock on the wall shows at an instant @throws {CronError} for an unknown zone */
function wallClockOf(timeZone: string | undefined): (atMs: number) => WallMs {
  if (timeZone === undefined)
    return (atMs) => {
      const date = new Date(atMs);
      return Date.UTC(
        date.getFullYear(),
        date.getMonth(),
        date.getDate(),
        date.getHours(),
        date.getMinutes(),
        date.getSeconds(),
      );
    };
  let format: Intl.DateTimeFormat;
  try {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone,
      hourCycle: "h23",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
    });
  } catch {
    throw new CronError(`${JSON.stringify(timeZone)} is no time zone`);
  }
  return (atMs) => {
    const parts = Object.fromEntries(
      format.formatToParts(atMs).map(({ type, value }) => [type, Number(value)]),
    );
    return Date.UTC(
      parts["year"],
      parts["month"] - 1,
      parts["day"],
      parts["hour"],
      parts["minute"],
      parts["second"],
    );
  };
}

/** The instants at which the wall shows a time, earliest first: none in the hour summer time leaves out, two in the
 * hour winter time repeats. */
function instantsOf(wall: WallMs, wallClock: (atMs: number) => WallMs): number[] {
  const offsets = [-DAY_MS, DAY_MS].map((ms) => wallClock(wall + ms) - (wall + ms));
  return [...new Set(offsets)]
    .map((offset) => wall - offset)
    .filter((at) => wallClock(at) === wall)
    .sort((a, b) => a - b);
}

/**
 * The first instant after `nowMs` at which the schedule is due; undefined when it never is (30 February). A time that
 * summer time leaves out is skipped, one that winter time repeats is due once when only that hour is named.
 *
 * @param nowMs Unix ms
 */
export function nextDue(schedule: Schedule, nowMs: number): number | undefined {
  if (schedule.kind === "every") return Math.floor(nowMs / 1_000) * 1_000 + schedule.everyMs;
  const { second, minute, hour, dayOfMonth, month, dayOfWeek, timeZone } = schedule;
  const wallClock = wallClockOf(timeZone);
  const wallNow = wallClock(nowMs);
  const [hours, minutes, seconds] = [hour, minute, second].map(({ values }) =>
    [...values].sort((a, b) => a - b),
  );
  let day = Math.floor(wallNow / DAY_MS) * DAY_MS;
  for (let days = 0; days < MAX_DAYS; days++, day += DAY_MS) {
    const date = new Date(day);
    if (!month.values.has(date.getUTCMonth() + 1)) continue;
    const inMonth = dayOfMonth.values.has(date.getUTCDate());
    const inWeek = dayOfWeek.values.has(date.getUTCDay());
    // As in crontab(5): two restricted fields are alternatives.
    const isDay = dayOfMonth.isOpen || dayOfWeek.isOpen ? inMonth && inWeek : inMonth || inWeek;
    if (!isDay) continue;
    for (const h of hours)
      for (const m of minutes)
        for (const s of seconds) {
          const wall = day + h * 3_600_000 + m * 60_000 + s * 1_000;
          if (wall <= wallNow) continue;
          const at = instantsOf(wall, wallClock).find((instant) => instant > nowMs);
          if (at !== undefined) return at;
        }
  }
  return undefined;
}
