// The net check: how far every relay region is, and what the network does to UDP. Pure: probes out, answers and `now`
// (monotonic ms) in; netcheck-shell.ts has the sockets.
import { toHex } from "../../mesh/wire/bytes.ts";
import type { LatencyReport } from "./home.ts";
import {
  type ClientMap,
  type ClientNode,
  type ClientRegion,
  nodeAddresses,
  relayNodes,
  sortRegions,
} from "./nodes.ts";

export interface RegionLatency {
  /** Smallest of all. */
  latencyMs: number;
  v4Ms?: number;
  v6Ms?: number;
  /** A request's round trip behind TLS; measured where UDP has no answer. */
  httpsMs?: number;
}

export interface NetcheckReport extends LatencyReport {
  /** How long it took. */
  tookMs: number;
  /** Any STUN answer came. */
  udp: boolean;
  ipv4: boolean;
  ipv6: boolean;
  regions: ReadonlyMap<number, RegionLatency>;
  /** Our address as STUN servers see it, address:port; the one seen most. */
  globalV4?: string;
  globalV6?: string;
  /** How often each address:port was seen. */
  mappingsV4: ReadonlyMap<string, number>;
  mappingsV6: ReadonlyMap<string, number>;
  /** The NAT maps us to another port for each destination; undefined below two answers over IPv4. */
  mappingVariesByDestIp: boolean | undefined;
}

export interface StunProbe {
  region: number;
  node: ClientNode;
  family: 4 | 6;
  /** After the start, ms. */
  atMs: number;
}

export type NetcheckOutput =
  | { kind: "stun"; txId: Uint8Array; probe: StunProbe }
  /** Answer with `onHttps`, once. */
  | { kind: "https"; region: number; node: ClientNode }
  | { kind: "done"; report: NetcheckReport };

export interface PlanOptions {
  map: ClientMap;
  full: boolean;
  hasV4: boolean;
  hasV6: boolean;
  home?: number;
  /** The latest report; without one the plan is full. */
  last?: NetcheckReport;
}

export const MAX_CHECK_MS = 5_000;
const STUN_PHASE_MS = 3_000;
/** Without any answer for so long UDP is probably blocked: regions are asked by HTTPS as well. */
const HTTPS_AFTER_MS = 1_000;
/** Answers from so many regions are enough to wait only for those not much slower. */
const ENOUGH_REGIONS = 3;
const FULL_TRIES = 3;
const FULL_SPACING_MS = 100;
const FASTEST = 3;
const HOME_TRIES = 4;
const FASTEST_TRIES = 2;
const DEFAULT_SPACING_MS = 200;
const LATE_TRY_MS = 50;
/** A map may have a thousand regions; a check asks the nearest known. */
const MAX_REGIONS = 64;
const MAX_HTTPS_REGIONS = 16;
/** Distinct mappings remembered; a NAT that makes more tells nothing new. */
const MAX_MAPPINGS = 64;

/** What STUN is sent where and when, in order of time. */
export function probePlan({ map, full, hasV4, hasV6, home, last }: PlanOptions): StunProbe[] {
  const measured = last?.latencyMs ?? new Map<number, number>();
  const regions = sortRegions(map, measured).filter(
    (region) => !region.NoMeasureNoHome && stunNodes(region).length > 0,
  );
  const probes: StunProbe[] = [];
  const add = (region: ClientRegion, node: ClientNode, family: 4 | 6, atMs: number): void => {
    const { v4, v6 } = nodeAddresses(node);
    const able = family === 4 ? hasV4 && v4.kind !== "off" : hasV6 && v6.kind !== "off";
    if (able) probes.push({ region: region.RegionID, node, family, atMs });
  };
  if (full || measured.size === 0) {
    for (const region of regions.slice(0, MAX_REGIONS)) {
      const nodes = stunNodes(region);
      for (let i = 0; i < FULL_TRIES; i++)
        for (const family of [4, 6] as const)
          add(region, nodes[i % nodes.length], family, i * FULL_SPACING_MS);
    }
  } else {
    const chosen = regions.filter((region, i) => i < FASTEST || region.RegionID === home);
    for (const [i, region] of chosen.entries()) {
      const nodes = stunNodes(region);
      const fastest = i < 2;
      const tries = region.RegionID === home ? HOME_TRIES : fastest ? FASTEST_TRIES : 1;
      const lastMs = measured.get(region.RegionID);
      const spacingMs = lastMs === undefined ? DEFAULT_SPACING_MS : lastMs * 1.2;
      // Where both families work, one is enough to see how a slower region does.
      const alternate = !fastest && last?.ipv4 && last.ipv6;
      for (let n = 0; n < tries; n++) {
        const atMs = n * spacingMs + (n > 1 ? n * LATE_TRY_MS : 0);
        for (const family of [4, 6] as const)
          if (!alternate || (i % 2 === 0) === (family === 4))
            add(region, nodes[n % nodes.length], family, atMs);
      }
    }
  }
  return probes.sort((a, b) => a.atMs - b.atMs);
}

function stunNodes(region: ClientRegion): ClientNode[] {
  return region.Nodes.filter((node) => node.STUNPort !== -1);
}

/** One check. Perform `takeOutputs()` after each call; `done` is the last output, at most MAX_CHECK_MS after the start. */
export class Netcheck {
  #options: PlanOptions;
  #newTxId: () => Uint8Array;
  #startedAt: number;
  #stunUntilAt: number;
  #planned: StunProbe[];
  /** Region and family -> how many of its probes are neither answered nor failed; gone when one is answered. */
  #open = new Map<string, number>();
  #sent = new Map<string, { probe: StunProbe; sentAt: number }>();
  #https = new Set<number>();
  #httpsAll = false;
  #regions = new Map<number, RegionLatency>();
  #mappings = { 4: new Map<string, number>(), 6: new Map<string, number>() };
  #answers = { 4: 0, 6: 0 };
  #done = false;
  #out: NetcheckOutput[] = [];

  /** `newTxId`: 12 random bytes each time. */
  constructor(options: PlanOptions, newTxId: () => Uint8Array, now: number) {
    this.#options = options;
    this.#newTxId = newTxId;
    this.#startedAt = now;
    this.#stunUntilAt = now + STUN_PHASE_MS;
    this.#planned = probePlan(options);
    for (const probe of this.#planned) {
      const set = setOf(probe);
      this.#open.set(set, (this.#open.get(set) ?? 0) + 1);
    }
    this.#askHttps((region) => stunNodes(region).length === 0);
    if (this.#planned.length === 0) this.#askHttpsAll();
    this.handleTimeout(now);
  }

  takeOutputs(): NetcheckOutput[] {
    return this.#out.splice(0);
  }

  nextTimeout(): number | undefined {
    if (this.#done) return undefined;
    const times = [this.#startedAt + MAX_CHECK_MS];
    if (this.#planned.length > 0) times.push(this.#startedAt + this.#planned[0].atMs);
    if (this.#open.size > 0) times.push(this.#stunUntilAt);
    if (!this.#httpsAll && !this.#udp) times.push(this.#startedAt + HTTPS_AFTER_MS);
    return Math.min(...times);
  }

  handleTimeout(now: number): void {
    if (this.#done) return;
    const elapsedMs = now - this.#startedAt;
    if (now >= this.#stunUntilAt) {
      this.#planned = [];
      this.#open.clear();
    }
    while (this.#planned.length > 0 && this.#planned[0].atMs <= elapsedMs) {
      const probe = this.#planned.shift()!;
      if (!this.#open.has(setOf(probe))) continue;
      const txId = this.#newTxId();
      this.#sent.set(toHex(txId), { probe, sentAt: now });
      this.#out.push({ kind: "stun", txId, probe });
    }
    if (!this.#udp && elapsedMs >= HTTPS_AFTER_MS) this.#askHttpsAll();
    this.#settle(now, elapsedMs >= MAX_CHECK_MS);
  }

  /** A STUN response. Unknown transactions are ignored: late, or forged. */
  onStun(txId: Uint8Array, mapped: { address: string; port: number }, now: number): void {
    const id = toHex(txId);
    const sent = this.#sent.get(id);
    if (this.#done || !sent) return;
    this.#sent.delete(id);
    const { region, family } = sent.probe;
    this.#open.delete(setOf(sent.probe));
    const name = mapped.address.includes(":")
      ? `[${mapped.address}]:${mapped.port}`
      : `${mapped.address}:${mapped.port}`;
    const mappings = this.#mappings[family];
    if (mappings.has(name) || mappings.size < MAX_MAPPINGS) mappings.set(name, (mappings.get(name) ?? 0) + 1);
    this.#answers[family]++;
    const before = this.#answered();
    this.#measured(region, family === 4 ? "v4Ms" : "v6Ms", now - sent.sentAt);
    if (before < ENOUGH_REGIONS && this.#answered() >= ENOUGH_REGIONS) {
      const slowestMs = Math.max(...[...this.#regions.values()].map(({ latencyMs }) => latencyMs));
      this.#stunUntilAt = Math.min(this.#stunUntilAt, now + slowestMs * (this.#isFull ? 2 : 1));
    }
    this.handleTimeout(now);
  }

  /** A probe could not be sent, or its name not be resolved. */
  onStunFailed(txId: Uint8Array, now: number): void {
    const id = toHex(txId);
    const sent = this.#sent.get(id);
    if (this.#done || !sent) return;
    this.#sent.delete(id);
    const set = setOf(sent.probe);
    const left = (this.#open.get(set) ?? 1) - 1;
    if (left > 0) this.#open.set(set, left);
    else this.#open.delete(set);
    this.handleTimeout(now);
  }

  /** `latencyMs`: undefined when it failed. */
  onHttps(region: number, latencyMs: number | undefined, now: number): void {
    if (this.#done || !this.#https.delete(region)) return;
    if (latencyMs !== undefined) this.#measured(region, "httpsMs", latencyMs);
    this.handleTimeout(now);
  }

  get #udp(): boolean {
    return this.#answers[4] + this.#answers[6] > 0;
  }

  get #isFull(): boolean {
    return this.#options.full || !this.#options.last;
  }

  #answered(): number {
    let count = 0;
    for (const { v4Ms, v6Ms } of this.#regions.values())
      if (v4Ms !== undefined || v6Ms !== undefined) count++;
    return count;
  }

  #measured(region: number, what: "v4Ms" | "v6Ms" | "httpsMs", ms: number): void {
    const known = this.#regions.get(region);
    const least = Math.min(ms, known?.[what] ?? ms);
    this.#regions.set(region, { ...known, [what]: least, latencyMs: Math.min(ms, known?.latencyMs ?? ms) });
  }

  #askHttpsAll(): void {
    if (this.#httpsAll) return;
    this.#httpsAll = true;
    this.#askHttps((region) => stunNodes(region).length > 0);
  }

  #askHttps(wanted: (region: ClientRegion) => boolean): void {
    const { map, last, home } = this.#options;
    const regions = sortRegions(map, last?.latencyMs).filter(
      (region) => !region.NoMeasureNoHome && relayNodes(region).length > 0 && wanted(region),
    );
    const first = regions.filter((region) => region.RegionID === home);
    for (const region of new Set([...first, ...regions])) {
      if (this.#https.size >= MAX_HTTPS_REGIONS) return;
      this.#https.add(region.RegionID);
      this.#out.push({ kind: "https", region: region.RegionID, node: relayNodes(region)[0] });
    }
  }

  #settle(now: number, late: boolean): void {
    const stunOver = this.#open.size === 0 || now >= this.#stunUntilAt;
    if (stunOver && !this.#udp && !this.#httpsAll) this.#askHttpsAll();
    if (!late && (!stunOver || this.#https.size > 0)) return;
    this.#done = true;
    this.#out.push({ kind: "done", report: this.#report(now) });
  }

  #report(now: number): NetcheckReport {
    const v4 = this.#mappings[4];
    return {
      startedAt: this.#startedAt,
      tookMs: now - this.#startedAt,
      full: this.#isFull,
      udp: this.#udp,
      ipv4: this.#answers[4] > 0,
      ipv6: this.#answers[6] > 0,
      regions: this.#regions,
      latencyMs: new Map([...this.#regions].map(([region, { latencyMs }]) => [region, latencyMs])),
      globalV4: mostSeen(v4),
      globalV6: mostSeen(this.#mappings[6]),
      mappingsV4: v4,
      mappingsV6: this.#mappings[6],
      mappingVariesByDestIp: this.#answers[4] < 2 ? undefined : v4.size > 1,
    };
  }
}

function setOf({ region, family }: StunProbe): string {
  return `${region} ${family}`;
}

function mostSeen(mappings: ReadonlyMap<string, number>): string | undefined {
  let best: [string, number] | undefined;
  for (const one of mappings) if (!best || one[1] > best[1]) best = one;
  return best?.[0];
}
