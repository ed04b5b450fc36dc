import type { MemoryBudget } from "../session/budget.ts";
import type { SessionStats } from "../session/events.ts";
import type { Grant } from "../wire/signed.ts";
import type { DeviceCounters, WireGuardDevice } from "../wireguard/device.ts";
import type { SessionLink } from "./link.ts";
import type { PathInfo } from "./watch.ts";

/** One live session, for people and for support. Instants: Unix ms. */
export interface SessionInfo {
  /** Hex of the session's 16 bytes. */
  id: string;
  peerKey: string;
  /** Agent: what the client was granted. */
  grant: Grant | undefined;
  /** Client: whose session it is. */
  agentId: string | undefined;
  startedAtMs: number;
  lastHeardAtMs: number;
  /** How long it is kept while silent. */
  resumeWindowMs: number;
  path: PathInfo;
  /** Smoothed; undefined before the first sample on the present path. */
  rttMs: number | undefined;
  streams: { service: string; metadata: Uint8Array; openedAtMs: number }[];
  /** No progress for more than 3 s though some was due. */
  isStalled: boolean;
  /** What is held for the peer: written and not yet acknowledged. */
  bufferedBytes: number;
  packetsLost: number;
  /** How often it went on after all paths had been lost. */
  resumedCount: number;
}

/** @param clock.offsetMs wall clock minus monotonic clock */
export function describeSession(
  link: SessionLink,
  { offsetMs, resumeWindowMs, path }: { offsetMs: number; resumeWindowMs: number; path: PathInfo },
): SessionInfo {
  const { rttMs, packetsLost, resumedCount, bufferedBytes } = link.session.stats;
  return {
    id: link.id ?? "",
    peerKey: link.peerKey,
    grant: link.grant,
    agentId: link.agentId,
    startedAtMs: link.startedAt + offsetMs,
    lastHeardAtMs: link.lastHeardAt + offsetMs,
    resumeWindowMs,
    path,
    rttMs,
    streams: link.streams.map(({ service, metadata, openedAt }) => ({
      service,
      metadata,
      openedAtMs: openedAt + offsetMs,
    })),
    isStalled: link.session.isStalled,
    bufferedBytes,
    packetsLost,
    resumedCount,
  };
}

/** What a node holds for others, all of it bounded; for health checks and tests. */
export interface NodeHoldings {
  peers: number;
  device: WireGuardDevice["size"];
  counters: DeviceCounters;
  budgetBytes: number;
  /** Of all sessions, those that end or were not let in yet included. */
  sessions: { peerKey: string; id: string | undefined; isClosed: boolean; stats: SessionStats }[];
}

export function describeHoldings(
  peers: Iterable<{ links: ReadonlyMap<number, SessionLink> }>,
  device: WireGuardDevice,
  budget: MemoryBudget,
): NodeHoldings {
  const all = [...peers];
  return {
    peers: all.length,
    device: device.size,
    counters: { ...device.counters },
    budgetBytes: budget.usedBytes,
    sessions: all.flatMap(({ links }) =>
      [...links.values()].map(({ peerKey, id, session }) => ({
        peerKey,
        id,
        isClosed: session.isClosed,
        stats: session.stats,
      })),
    ),
  };
}
