import type { QueueLimits } from "./queue.ts";

/** What one relay allows. Every field has a default; times in ms. */
export interface DerpLimits {
  /** From the upgrade to a proven ClientInfo. */
  handshakeMs: number;
  /** For `admit` to answer. */
  admitMs: number;
  /** Connections that have not proven a key, per remote address (IPv6: per /64). */
  unprovenPerAddress: number;
  /** The same over all addresses. */
  unproven: number;
  /** One older than this gives way to a new one when there are too many: who means it has proven its key by then. */
  unprovenYieldMs: number;
  /** Bytes that all of them together may make us hold. */
  unprovenBytes: number;
  /** Connections taken over per second, and at once; more are refused. 0: no limit. */
  acceptsPerSecond: number;
  acceptBurst: number;
  /** Proven connections. */
  clients: number;
  /** Connections with one key; a further one closes the one silent longest. */
  connectionsPerKey: number;
  /** A write that the receiver's socket has not taken by then ends the connection. */
  writeTimeoutMs: number;
  keepAliveMs: number;
  /** Random addition, drawn once per connection. */
  keepAliveJitterMs: number;
  queue: QueueLimits;
}

export const DEFAULT_LIMITS: DerpLimits = {
  handshakeMs: 10_000,
  admitMs: 5_000,
  // Nodes behind one NAT or reverse proxy reconnect at once after a restart; each is unproven for about one RTT.
  unprovenPerAddress: 256,
  unproven: 2_048,
  // A round trip and a half of the slowest links. Whoever opens connections and says nothing then gets in nobody's way
  // with fewer than some thousand a second.
  unprovenYieldMs: 1_000,
  unprovenBytes: 32 << 20,
  acceptsPerSecond: 0,
  acceptBurst: 0,
  clients: 20_000,
  connectionsPerKey: 16,
  // At most 128 KiB lie in one write, so this asks for 200 kbit/s; upstream's 2 s close more than they save.
  writeTimeoutMs: 5_000,
  keepAliveMs: 60_000,
  keepAliveJitterMs: 5_000,
  queue: { maxBytes: 1 << 20, maxAgeMs: 50, keepBytes: 128 << 10 },
};
