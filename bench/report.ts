// What every group of benchmarks makes, and how it is written and printed.
//
// A group is a script bench/GROUP.ts that `npm run bench -- GROUP` runs in a process of its own. It measures, makes rows
// with row(), and ends with `report({ group: "GROUP", title, rows })`, once. report() prints the table and, when bench/run.mjs asked
// for it (BENCH_OUT), leaves the JSON there; run.mjs compares it with bench/results/GROUP.json and with --save replaces that.
//
// The JSON, all figures in the row's unit:
//   { group, title, date (ISO day), hardware { cpu, cores, memoryGiB, node, os }, quick, rows: [
//     { id, what, unit, better: "lower" | "higher", n,
//       ours:    { median, p99, min, max },
//       control: { name, median, p99 } | absent,
//       ratio:   ours / control, of the medians, or of pairs taken in turns | absent,
//       goal:    { text, holds } | absent } ] }
//
// `id` is what the comparison with the last result goes by: keep it when the wording changes, take a new one when what is
// measured changes. p99 of fewer than 100 values is their worst. A control is taken in the same run, in turns with ours:
// another hour's figures of this machine are no comparison.
import { readFileSync, writeFileSync } from "node:fs";
import os from "node:os";

/** `--quick`: a few rounds, to see that a group works; its figures mean little and are not saved. */
export const quick = process.env["BENCH_QUICK"] === "1";

/** How many rounds to take: `full`, or with --quick `few`. */
export const rounds = (full: number, few: number): number => (quick ? few : full);

export interface Summary {
  median: number;
  p99: number;
  min: number;
  max: number;
}

export interface Goal {
  /** As it is read: "<= control + 0.15 ms". */
  text: string;
  holds: boolean;
}

export interface Row {
  id: string;
  what: string;
  unit: string;
  better: "lower" | "higher";
  n: number;
  ours: Summary;
  control?: { name: string; median: number; p99: number };
  ratio?: number;
  goal?: Goal;
}

export interface Result {
  group: string;
  title: string;
  rows: readonly Row[];
}

/** As it lies in bench/results/GROUP.json. */
export interface SavedResult extends Result {
  date: string;
  hardware: Hardware;
  quick: boolean;
}

export interface RowInput {
  id: string;
  what: string;
  unit: string;
  better?: "lower" | "higher";
  /** One value a round, or one a call; at least one. */
  ours: readonly number[];
  control?: { name: string; values: readonly number[] };
  /** Ours and control were taken in turns and belong together pair by pair: the ratio is the median of the pairs'. */
  paired?: boolean;
  goal?: {
    text: string;
    holds(ours: Summary, control: Summary | undefined, ratio: number | undefined): boolean;
  };
}

/** Nearest rank. @param share 0 <= share <= 1 */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

export const median = (values: readonly number[]): number => percentile(values, 0.5);

export function summary(values: readonly number[]): Summary {
  if (values.length === 0) throw new RangeError("a row needs at least one value");
  return {
    median: median(values),
    p99: percentile(values, 0.99),
    min: percentile(values, 0),
    max: percentile(values, 1),
  };
}

export function row(input: RowInput): Row {
  const { id, what, unit, better = "lower", ours: values, control: beside, paired, goal } = input;
  const ours = summary(values);
  const control = beside && summary(beside.values);
  const ratio =
    control &&
    (paired ? median(values.map((value, i) => value / beside.values[i])) : ours.median / control.median);
  return {
    id,
    what,
    unit,
    better,
    n: values.length,
    ours,
    ...(control && { control: { name: beside.name, median: control.median, p99: control.p99 }, ratio }),
    ...(goal && { goal: { text: goal.text, holds: goal.holds(ours, control, ratio) } }),
  };
}

/** Three digits that say something, and no more. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export interface Hardware {
  cpu: string;
  cores: number;
  memoryGiB: number;
  node: string;
  os: string;
}

export const hardware = (): Hardware => ({
  cpu: os.cpus()[0]?.model.trim() ?? "unknown",
  cores: os.cpus().length,
  memoryGiB: Math.round(os.totalmem() / 2 ** 30),
  node: process.version,
  os: `${os.type()} ${os.release()}`,
});

/** Prints the rows as a table and hands them to bench/run.mjs. Call it once, when everything is measured. */
export function report({ group, title, rows }: Result): void {
  const machine = hardware();
  const { cpu, cores, memoryGiB, node } = machine;
  console.log(
    `${group}: ${title}\n${cpu}, ${cores} cores, ${memoryGiB} GiB, Node ${node}, ${machine.os}${quick ? ", quick" : ""}`,
  );
  for (const line of table(rows)) console.log(`  ${line}`);
  const out = process.env["BENCH_OUT"];
  if (!out) return;
  const result: SavedResult = {
    group,
    title,
    date: new Date().toISOString().slice(0, 10),
    hardware: machine,
    quick,
    rows,
  };
  writeFileSync(out, `${JSON.stringify(result, null, 2)}\n`);
}

function table(rows: readonly Row[]): string[] {
  const lines = [["", "n", "median", "p99", "", "control", "ratio", "goal"]];
  for (const { what, unit, n, ours, control, ratio, goal } of rows)
    lines.push([
      what,
      String(n),
      figure(ours.median),
      n > 1 ? figure(ours.p99) : "",
      unit,
      control ? `${figure(control.median)} ${control.name}` : "",
      ratio === undefined ? "" : `${figure(ratio)}x`,
      goal ? `${goal.text}: ${goal.holds ? "holds" : "MISSED"}` : "",
    ]);
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)));
  const isText = new Set([0, 4, 5, 7]);
  return lines.map((line) =>
    line
      .map((cell, column) =>
        isText.has(column) ? cell.padEnd(widths[column]) : cell.padStart(widths[column]),
      )
      .join("  ")
      .trimEnd(),
  );
}

/** CPU seconds, user and system, that a process of this machine has used so far. Linux only. */
export function cpuSecondsOf(pid: number, andOfEndedChildren = false): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticks = fields.slice(11, andOfEndedChildren ? 15 : 13); // utime, stime; cutime, cstime
  return ticks.reduce((sum, one) => sum + Number(one), 0) / 100; // USER_HZ is 100 on every Linux that Node runs on
}

/** Resident memory of a process, bytes. Linux only. */
export function residentBytesOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024;
}
