// Cron expressions as github.com/robfig/cron reads them (the library the platform's schedules were written for):
// lists, ranges, steps, `?`, English names of months and days, `@daily` and friends, `@every 1h30m`, `TZ=` in front.
import { isTimeZone } from "./time-zone.ts";

interface FieldRange {
  name: string;
  min: number;
  max: number;
  names?: readonly string[];
}
const MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SECOND = { name: "second", min: 0, max: 59 };
const MINUTE = { name: "minute", min: 0, max: 59 };
const HOUR = { name: "hour", min: 0, max: 23 };
const DAY_OF_MONTH = { name: "day of month", min: 1, max: 31 };
const MONTH = { name: "month", min: 1, max: 12, names: MONTHS };
const DAY_OF_WEEK = { name: "day of week", min: 0, max: 6, names: DAYS };

const DESCRIPTORS = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
/** Each number can be read in one way only, or a long text that does not match would take for ever. */
const EVERY = /^@every [+]?((\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$/;

/**
 * Six fields with seconds first, of which the last (day of week) may be left out, or a descriptor.
 *
 * @returns what is wrong, or undefined
 */
export function scriptCronProblem(spec: string): string | undefined {
  const zone = /^(?:TZ|CRON_TZ)=(\S*)\s*/.exec(spec);
  if (zone && !isTimeZone(zone[1])) return `${JSON.stringify(zone[1])} is not a time zone`;
  const rest = zone ? spec.slice(zone[0].length) : spec;
  if (rest.startsWith("@"))
    return DESCRIPTORS.includes(rest) || EVERY.test(rest)
      ? undefined
      : `${JSON.stringify(rest)} is none of ${DESCRIPTORS.join(", ")}, @every <duration>`;
  const fields = rest.split(/\s+/).filter(Boolean);
  if (fields.length !== 5 && fields.length !== 6)
    return `expected 6 fields (second minute hour day-of-month month day-of-week), got ${fields.length}`;
  return fieldsProblem(fields, [SECOND, MINUTE, HOUR, DAY_OF_MONTH, MONTH, DAY_OF_WEEK]);
}

/** The usual five fields, minute first. @returns what is wrong, or undefined */
export function standardCronProblem(spec: string): string | undefined {
  const fields = spec.split(/\s+/).filter(Boolean);
  if (fields.length !== 5)
    return `expected 5 fields (minute hour day-of-month month day-of-week), got ${fields.length}`;
  return fieldsProblem(fields, [MINUTE, HOUR, DAY_OF_MONTH, MONTH, DAY_OF_WEEK]);
}

function fieldsProblem(fields: string[], ranges: FieldRange[]): string | undefined {
  for (const [i, field] of fields.entries())
    for (const part of field.split(",").filter(Boolean)) {
      const problem = partProblem(part, ranges[i]);
      if (problem) return `${ranges[i].name} ${JSON.stringify(part)}: ${problem}`;
    }
  return undefined;
}

function partProblem(part: string, range: FieldRange): string | undefined {
  const [span, step, ...moreSteps] = part.split("/");
  const [low, high, ...moreBounds] = span.split("-");
  if (moreSteps.length > 0) return "more than one slash";
  if (moreBounds.length > 0) return "more than one hyphen";
  const isStar = low === "*" || low === "?";
  const start = isStar ? range.min : numberOf(low, range);
  const end = isStar || (high === undefined && step !== undefined) ? range.max : numberOf(high ?? low, range);
  if (start === undefined || end === undefined) return "not a number";
  if (step !== undefined && (!/^\d+$/.test(step) || Number(step) === 0))
    return "the step is not a positive number";
  if (start < range.min || end > range.max) return `expected ${range.min} to ${range.max}`;
  return start > end ? "the range ends before it begins" : undefined;
}

function numberOf(text: string, range: FieldRange): number | undefined {
  const named = range.names?.indexOf(text.toLowerCase()) ?? -1;
  if (named >= 0) return named + range.min;
  return /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}

/**
 * Whether two five-field schedules can be due in the same hour of the same day. Fields may be `*`, numbers, ranges
 * and lists; months and hours must meet, and so must the days: by day of week if either leaves the day of month
 * open, by day of month if either leaves the day of week open, else by either of the two.
 *
 * @returns the answer, or a sentence about a field that can't be compared
 */
export function schedulesOverlap(one: string, other: string): boolean | string {
  const a = one.split(/\s+/).filter(Boolean);
  const b = other.split(/\s+/).filter(Boolean);
  try {
    const meet = (field: number, range: FieldRange) => {
      const right = expand(b[field], range);
      return [...expand(a[field], range)].some((value) => right.has(value));
    };
    if (!meet(3, MONTH) || !meet(1, HOUR)) return false;
    if (a[2] === "*" || b[2] === "*") return meet(4, DAY_OF_WEEK);
    if (a[4] === "*" || b[4] === "*") return meet(2, DAY_OF_MONTH);
    return meet(2, DAY_OF_MONTH) || meet(4, DAY_OF_WEEK);
  } catch (problem) {
    if (problem instanceof RangeError) return problem.message;
    throw problem;
  }
}

function expand(field: string, range: FieldRange): Set<number> {
  const out = new Set<number>();
  for (const part of field === "*" ? [`${range.min}-${range.max}`] : field.split(",")) {
    const span = /^(\d+)(?:-(\d+))?$/.exec(part);
    const low = Number(span?.[1]);
    const high = Number(span?.[2] ?? span?.[1]);
    if (!span || low < range.min || high > range.max || low > high)
      throw new RangeError(
        `${range.name} ${JSON.stringify(part)}: beside other schedules, use numbers and ranges within ` +
          `${range.min} to ${range.max}`,
      );
    for (let value = low; value <= high; value++) out.add(value);
  }
  return out;
}
