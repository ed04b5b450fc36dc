// What of a process can be seen from outside (Linux), how a measure went over time, and whether that is a leak.
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import path from "node:path";

export interface Outside {
  /** Open file descriptors, in all and by kind: socket, pipe, file, anon. */
  fds: number;
  fdKinds: Record<string, number>;
  rssBytes: number;
  threads: number;
  /** Direct children, and how many of them nobody has collected. */
  children: number;
  zombies: number;
  /** Since its start. */
  cpuSeconds: number;
}

const TICKS_PER_SECOND = 100;
const KIB = 1024;
export const MIB = 1024 * KIB;

function kindOf(target: string): string {
  if (target.startsWith("socket:")) return "socket";
  if (target.startsWith("pipe:")) return "pipe";
  return target.startsWith("anon_inode:") ? "anon" : "file";
}

/** Fields 3.. of /proc/PID/stat, after the name, which may hold anything. */
function statFields(pid: number | string): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}

/** Every process there is: number, parent, state. */
function processTable(): { pid: number; parent: number; state: string }[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const [state, parent] = statFields(name);
      return [{ pid: Number(name), parent: Number(parent), state }];
    } catch {
      return []; // ended meanwhile
    }
  });
}

/** @returns undefined when the process is gone */
export function look(pid: number): Outside | undefined {
  try {
    const fdKinds: Record<string, number> = {};
    let fds = 0;
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      try {
        const kind = kindOf(readlinkSync(`/proc/${pid}/fd/${fd}`));
        fdKinds[kind] = (fdKinds[kind] ?? 0) + 1;
        fds++;
      } catch {
        // closed meanwhile
      }
    }
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    const number = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]);
    const children = processTable().filter(({ parent }) => parent === pid);
    const fields = statFields(pid);
    return {
      fds,
      fdKinds,
      rssBytes: number("VmRSS") * KIB,
      threads: number("Threads"),
      children: children.length,
      zombies: children.filter(({ state }) => state === "Z").length,
      cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
    };
  } catch {
    return undefined;
  }
}

/** The first child of `pid`, at any depth, whose command line matches. */
export function descendant(pid: number, pattern: RegExp): number | undefined {
  const table = processTable();
  const queue = [pid];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    for (const child of table.filter(({ parent }) => parent === next)) {
      try {
        if (pattern.test(readFileSync(`/proc/${child.pid}/cmdline`, "utf8").replaceAll("\0", " ")))
          return child.pid;
      } catch {
        continue; // ended meanwhile
      }
      queue.push(child.pid);
    }
  }
  return undefined;
}

/** Bytes of all files below a folder, and how many there are. What vanishes meanwhile counts as nothing. */
export function folderSize(folder: string): { bytes: number; files: number } {
  let [bytes, files] = [0, 0];
  try {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const full = path.join(folder, entry.name);
      if (entry.isDirectory()) {
        const inner = folderSize(full);
        bytes += inner.bytes;
        files += inner.files;
      } else {
        files++;
        if (entry.isFile()) bytes += statSync(full).size;
      }
    }
  } catch {
    // gone meanwhile
  }
  return { bytes, files };
}

/** One measurement: hours since the start, and what was there. */
export interface Point {
  hours: number;
  value: number;
}

export const medianOf = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length === 0
    ? Number.NaN
    : (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

/** Median of the slopes of all pairs, per hour (Theil and Sen): a few odd points don't move it. */
export function slopePerHour(points: readonly Point[]): number {
  const slopes = points.flatMap((a, i) =>
    points
      .slice(i + 1)
      .flatMap((b) => (b.hours > a.hours ? [(b.value - a.value) / (b.hours - a.hours)] : [])),
  );
  return medianOf(slopes);
}

export interface Bound {
  /** How much the median of the last third may lie above that of the first. */
  rise?: number;
  /** How steep the second half may be. */
  perHour?: number;
  /** What no point may exceed. */
  most?: number;
}

export interface Judgement {
  n: number;
  first: number;
  last: number;
  firstHalfPerHour: number;
  secondHalfPerHour: number;
  most: number;
  verdict: "flat" | "grows" | "too few points";
}

const FEWEST_POINTS = 6;

/** Points in the order of time, all of one life of a process, those of its first minutes left out. */
export function judge(points: readonly Point[], bound: Bound): Judgement {
  const third = Math.max(1, Math.floor(points.length / 3));
  const half = points.length >> 1;
  const values = points.map(({ value }) => value);
  const found = {
    n: points.length,
    first: medianOf(values.slice(0, third)),
    last: medianOf(values.slice(-third)),
    firstHalfPerHour: slopePerHour(points.slice(0, half)),
    secondHalfPerHour: slopePerHour(points.slice(half)),
    most: Math.max(...values),
  };
  const grows =
    (bound.rise !== undefined && found.last - found.first > bound.rise) ||
    (bound.perHour !== undefined && found.secondHalfPerHour > bound.perHour) ||
    (bound.most !== undefined && found.most > bound.most);
  const isEnough = points.length >= FEWEST_POINTS || (bound.most !== undefined && grows);
  return { ...found, verdict: !isEnough ? "too few points" : grows ? "grows" : "flat" };
}
