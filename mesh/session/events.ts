import type { Hello } from "../wire/session.ts";
import type { LaneStats } from "./lane.ts";

/** What a session tells its shell; taken with takeEvents(). */
export type SessionEvent =
  /** The peer's HELLO. An agent answers with accept() or reject(); `resume`: the session goes on meanwhile. */
  | { kind: "hello"; hello: Hello; resume: boolean }
  /** Both HELLOs are there (agent: and accepted). */
  | { kind: "ready"; version: number }
  /** The agent still knows us: a session that had lost all its lanes goes on (client only). */
  | { kind: "resumed" }
  /** The peer opened a stream. Whether it may is for the shell to say: reset() and stopSending() refuse it. */
  | { kind: "open"; stream: number; service: string; metadata: Uint8Array }
  /** There is something to read; not repeated before read() has returned undefined. */
  | { kind: "readable"; stream: number }
  /** Everything was read, and the peer sends no more. */
  | { kind: "fin"; stream: number }
  /** The peer gave up sending; unread bytes are gone. */
  | { kind: "reset"; stream: number; code: number }
  /** The peer wants no more of it: what was unsent is dropped already. */
  | { kind: "stop"; stream: number; code: number }
  /** write() may be tried again. */
  | { kind: "writable"; stream: number }
  /** Both directions are over and the id is forgotten. */
  | { kind: "stream-closed"; stream: number }
  /** No progress for `forMs` though some was due, or no lane; told once per stall. */
  | { kind: "stalled"; forMs: number }
  /** The end of a stall that lasted `afterMs`. */
  | { kind: "flowing"; afterMs: number }
  /** The answer to ping(). */
  | { kind: "rtt"; id: number; lane: number; rttMs: number }
  | { kind: "datagram"; stream: number; data: Uint8Array }
  /** Candidates, offers, tokens ...: once and in order. Types the shell does not know it ignores. */
  | { kind: "signal"; type: number; body: Uint8Array }
  /** Path challenge or response, about `lane`. */
  | { kind: "probe"; lane: number; type: number; body: Uint8Array }
  /** The last event. `reason` is fit for a terminal. */
  | { kind: "closed"; code: number; reason: string; byPeer: boolean };

export interface SessionLimits {
  /** Streams the peer may have open at once. */
  maxStreams: number;
  /** Streams of our own, open or waiting for the peer's credit. */
  maxLocalStreams: number;
  initialStreamWindowBytes: number;
  maxStreamWindowBytes: number;
  initialSessionWindowBytes: number;
  maxSessionWindowBytes: number;
  /** Written and not yet acknowledged, over all streams. */
  maxSendBufferBytes: number;
  /** Written and not yet sent, on one stream. */
  maxUnsentBytes: number;
  /** Gaps in received streams, over all streams. */
  maxReorderRanges: number;
  maxPacketBytes: number;
}

export const DEFAULT_LIMITS: SessionLimits = {
  maxStreams: 256,
  maxLocalStreams: 1_024,
  initialStreamWindowBytes: 256 << 10,
  maxStreamWindowBytes: 16 << 20,
  initialSessionWindowBytes: 1 << 20,
  maxSessionWindowBytes: 32 << 20,
  maxSendBufferBytes: 32 << 20,
  maxUnsentBytes: 256 << 10,
  maxReorderRanges: 4_096,
  maxPacketBytes: 65_000,
};

/** Bytes of all streams since the session began, and what flow control makes of them. */
export interface FlowStats {
  /** For the first time; what was given up by a reset before it left is not among them. */
  sentBytes: number;
  /** What the peer has promised to take beyond that. */
  creditBytes: number;
  receivedBytes: number;
  /** Received, and neither read nor thrown away: credit that was not given back yet. */
  heldBytes: number;
  /** What the peer may send in one go, by what its reader takes. */
  windowBytes: number;
}

export interface SessionStats {
  streams: number;
  lanes: LaneStats[];
  packetsSent: number;
  packetsReceived: number;
  /** Duplicates, foreign tags, fragments: dropped without effect. */
  packetsDropped: number;
  /** Dropped because a limit on what we hold was reached; the peer sends them again. */
  packetsRefused: number;
  /** Ours, that were not sent in time. */
  datagramsDropped: number;
  /** The peer's, that came faster than they were taken. */
  datagramsRefused: number;
  packetsLost: number;
  /** How often it went on after all its lanes were gone. */
  resumedCount: number;
  /** Smoothed round trip on the lane in use, in ms. */
  rttMs: number | undefined;
  bufferedBytes: number;
  flow: FlowStats;
  reorderRanges: number;
  ackRanges: number;
}
