// Which region is home, by measurement. Pure: `now` and every instant are monotonic ms.
import { type ClientMap, isEligibleHome, relayNodes } from "./nodes.ts";

/** What one net check found, as far as homes go. */
export interface LatencyReport {
  /** When it began. */
  startedAt: number;
  full: boolean;
  /** Region -> smallest latency in ms; regions that did not answer are missing. */
  latencyMs: ReadonlyMap<number, number>;
}

/** Two full checks apart at most, and some slack, so that one of them always counts. */
export const HISTORY_MS = 305_000;
export const FULL_EVERY_MS = 300_000;
/** Incremental checks come minutes apart; more than this can only be asked for by hand. */
const MAX_REPORTS = 64;

/** A home moves only for both: this much less latency, and a third less. Peers have to follow each move. */
export const MIN_GAIN_MS = 10;
const MAX_RATIO = 2 / 3;
/** A relay heard that lately is alive, though it may not have answered a probe. */
const HEARD_MS = 8_000;
/** The same when no region answers at all: then probes are what is broken. */
const HEARD_ALONE_MS = 120_000;

export interface HomeQuestion {
  map: ClientMap;
  /** Oldest first; the last one decides who is alive. */
  reports: readonly LatencyReport[];
  current: number | undefined;
  /** When a region's relay last sent anything. */
  heardAt: (region: number) => number | undefined;
  /** Must be home if it is alive. */
  forced?: number;
  now: number;
}

/** @returns the region to be home; undefined: nothing is known that speaks for one */
export function preferredHome({
  map,
  reports,
  current,
  heardAt,
  forced,
  now,
}: HomeQuestion): number | undefined {
  const report = reports.at(-1);
  if (!report) return undefined;
  const heardWithin = (region: number, ms: number): boolean => {
    const at = heardAt(region);
    return at !== undefined && (now - at <= ms || at >= report.startedAt);
  };
  const regions = new Map(Object.values(map.Regions).map((region) => [region.RegionID, region]));
  const forcedRegion = forced === undefined ? undefined : regions.get(forced);
  if (forced !== undefined && forcedRegion && relayNodes(forcedRegion).length > 0)
    if (report.latencyMs.has(forced) || heardWithin(forced, HEARD_MS)) return forced;

  const score = (region: number): number => {
    const factor = map.HomeParams?.RegionScore?.[String(region)];
    return factor !== undefined && factor > 0 ? factor : 1;
  };
  const recent = reports.filter(({ startedAt }) => now - startedAt <= HISTORY_MS);
  const best = (region: number): number =>
    Math.min(...recent.map(({ latencyMs }) => latencyMs.get(region) ?? Number.POSITIVE_INFINITY)) *
    score(region);
  const candidates = [...report.latencyMs.keys()]
    .filter((id) => {
      const region = regions.get(id);
      return region && isEligibleHome(region) && (!region.Avoid || id === current);
    })
    .sort((a, b) => best(a) - best(b) || a - b);
  const currentRegion = current === undefined ? undefined : regions.get(current);
  const mayStay = currentRegion !== undefined && isEligibleHome(currentRegion);
  if (candidates.length === 0)
    return mayStay && heardWithin(currentRegion.RegionID, HEARD_ALONE_MS) ? current : undefined;
  const [choice] = candidates;
  if (!mayStay || choice === current) return choice;
  const measuredMs = report.latencyMs.get(currentRegion.RegionID);
  if (measuredMs === undefined && !heardWithin(currentRegion.RegionID, HEARD_MS)) return choice;
  // One that is heard but was not measured has nothing held against it.
  const currentMs = (measuredMs ?? 0) * score(currentRegion.RegionID);
  const choiceMs = best(choice);
  return currentMs - choiceMs < MIN_GAIN_MS || choiceMs > MAX_RATIO * currentMs ? current : choice;
}

/** The reports that count. */
export class ReportHistory<T extends LatencyReport = LatencyReport> {
  #reports: T[] = [];

  /** Oldest first. */
  get reports(): readonly T[] {
    return this.#reports;
  }

  add(report: T): void {
    const lastFull = this.#reports.findLast(({ full }) => full);
    this.#reports = this.#reports
      .filter((one) => report.startedAt - one.startedAt <= HISTORY_MS)
      .slice(1 - MAX_REPORTS);
    // Incremental ones see few regions: without a full one the others would be forgotten.
    if (!report.full && lastFull && !this.#reports.includes(lastFull)) this.#reports.unshift(lastFull);
    this.#reports.push(report);
  }

  /** Whether the next check must look at all regions. */
  needsFull(now: number): boolean {
    const lastFull = this.#reports.findLast(({ full }) => full);
    return !lastFull || now - lastFull.startedAt > FULL_EVERY_MS;
  }
}
