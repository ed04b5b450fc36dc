// What a relay counts: plain numbers on the way of packets, named as deployed relays name them, and their text form
// for Prometheus.

export const DROP_REASONS = [
  "unknown_dest",
  "unknown_dest_on_fwd",
  "gone_disconnected",
  "queue_head",
  "queue_tail",
  "write_error",
  "dup_client",
] as const;
export type DropReason = (typeof DROP_REASONS)[number];

/** Packets that share a fate; `disco` of the `frames` are path discovery. `bytes`: payload alone. */
export interface Lost {
  frames: number;
  disco: number;
  bytes: number;
}

/** Counts by upper bounds that double: 1, 2, 4, ... 2^(size - 2), more. */
export class Histogram {
  readonly buckets: number[];
  sum = 0;

  constructor(size: number) {
    this.buckets = new Array<number>(size).fill(0);
  }

  /** `value`: a whole number from 1. */
  add(value: number): void {
    const index = value <= 1 ? 0 : 32 - Math.clz32(value - 1);
    this.buckets[Math.min(index, this.buckets.length - 1)]++;
    this.sum += value;
  }
}

export class Counters {
  /** Added to where packets pass; nothing but numbers. */
  readonly hot = {
    accepts: 0,
    refused: 0,
    notAdmitted: 0,
    bytesReceived: 0,
    bytesSent: 0,
    packetsReceived: 0,
    packetsReceivedDisco: 0,
    packetsSent: 0,
    packetsForwardedIn: 0,
    packetsForwardedOut: 0,
    gotPing: 0,
    sentPong: 0,
    writeTimeouts: 0,
    protocolErrors: 0,
    unknownFrames: 0,
    rateLimitWaited: 0,
    /** Average of the time packets waited in queues, ms; exponential, a tenth per packet. */
    queueMs: 0,
  };
  readonly framesPerWrite = new Histogram(11);
  readonly meshBatch = new Histogram(11);
  readonly drops: Record<DropReason, Lost> = Object.fromEntries(
    DROP_REASONS.map((reason) => [reason, { frames: 0, disco: 0, bytes: 0 }]),
  ) as Record<DropReason, Lost>;

  dropped(reason: DropReason, { frames, disco, bytes }: Lost): void {
    const drop = this.drops[reason];
    drop.frames += frames;
    drop.disco += disco;
    drop.bytes += bytes;
  }
}

/** One measured thing, as JSON can carry it between processes. `name`: without the prefix of the exported text. */
export interface Metric {
  name: string;
  type: "counter" | "gauge" | "histogram";
  help: string;
  values: { labels?: Record<string, string>; value: number }[];
  /** Of a histogram: its values are per `le`, not summed up; this is the sum of what was observed. */
  sum?: number;
}

export const counter = (name: string, help: string, value: number): Metric => ({
  name,
  type: "counter",
  help,
  values: [{ value }],
});

export const gauge = (name: string, help: string, value: number): Metric => ({
  name,
  type: "gauge",
  help,
  values: [{ value }],
});

export function histogram(name: string, help: string, { buckets, sum }: Histogram): Metric {
  const values = buckets.map((value, i) => ({
    labels: { le: i === buckets.length - 1 ? "+Inf" : String(2 ** i) },
    value,
  }));
  return { name, type: "histogram", help, values, sum };
}

/** What the counters hold, under the names deployed relays use. */
export function counterMetrics({ hot, drops, framesPerWrite, meshBatch }: Counters): Metric[] {
  const lost = (
    name: string,
    help: string,
    of: (drop: Lost) => { disco: number; other: number },
  ): Metric => ({
    name,
    type: "counter",
    help,
    values: DROP_REASONS.flatMap((reason) =>
      Object.entries(of(drops[reason])).map(([kind, value]) => ({ labels: { reason, kind }, value })),
    ),
  });
  return [
    counter("accepts", "Connections taken over from the HTTP server.", hot.accepts),
    counter("refused", "Connections refused before their handshake.", hot.refused),
    counter("not_admitted", "Proven keys that were not admitted.", hot.notAdmitted),
    counter("bytes_received", "Payload bytes received in packets.", hot.bytesReceived),
    counter("bytes_sent", "Payload bytes sent in packets.", hot.bytesSent),
    counter("packets_received", "Packets received from clients.", hot.packetsReceived),
    counter("packets_sent", "Packets sent to clients and to siblings.", hot.packetsSent),
    {
      name: "counter_packets_received_kind",
      type: "counter",
      help: "Packets received from clients, path discovery and others.",
      values: [
        { labels: { kind: "disco" }, value: hot.packetsReceivedDisco },
        { labels: { kind: "other" }, value: hot.packetsReceived - hot.packetsReceivedDisco },
      ],
    },
    lost("derp_packets_dropped", "Packets dropped.", ({ frames, disco }) => ({
      disco,
      other: frames - disco,
    })),
    {
      name: "derp_bytes_dropped",
      type: "counter",
      help: "Payload bytes of packets dropped.",
      values: DROP_REASONS.map((reason) => ({ labels: { reason }, value: drops[reason].bytes })),
    },
    counter("packets_forwarded_in", "Packets that siblings forwarded to us.", hot.packetsForwardedIn),
    counter("packets_forwarded_out", "Packets that we forwarded to siblings.", hot.packetsForwardedOut),
    counter("got_ping", "Pings received.", hot.gotPing),
    counter("sent_pong", "Pongs sent.", hot.sentPong),
    counter(
      "sclient_write_timeouts",
      "Connections ended because their client did not read.",
      hot.writeTimeouts,
    ),
    counter(
      "protocol_errors",
      "Connections ended because their client broke the protocol.",
      hot.protocolErrors,
    ),
    counter("unknown_frames", "Frames of unknown types, skipped.", hot.unknownFrames),
    counter(
      "rate_limit_per_client_waited",
      "Times a client was made to wait by a rate limit.",
      hot.rateLimitWaited,
    ),
    gauge("average_queue_duration_ms", "How long packets wait for their receiver.", hot.queueMs),
    histogram("frames_per_write", "Packets that left in one write.", framesPerWrite),
    histogram("mesh_batch", "Changes told to a sibling in one write.", meshBatch),
  ];
}

/** Prometheus text exposition format 0.0.4. */
export function prometheusText(metrics: readonly Metric[], prefix = "coder_derp_"): string {
  const lines: string[] = [];
  for (const { name, type, help, values, sum } of metrics) {
    const full = prefix + name;
    lines.push(
      `# HELP ${full} ${help.replace(/\\/g, "\\\\").replace(/\n/g, "\\n")}`,
      `# TYPE ${full} ${type}`,
    );
    if (type === "histogram") {
      let total = 0;
      for (const { labels, value } of values) {
        total += value;
        lines.push(`${full}_bucket${labelText(labels)} ${total}`);
      }
      lines.push(`${full}_sum ${sum ?? 0}`, `${full}_count ${total}`);
    } else for (const { labels, value } of values) lines.push(`${full}${labelText(labels)} ${value}`);
  }
  return `${lines.join("\n")}\n`;
}

function labelText(labels: Record<string, string> = {}): string {
  const pairs = Object.entries(labels).map(
    ([name, value]) => `${name}="${value.replace(/[\\"]/g, "\\$&").replace(/\n/g, "\\n")}"`,
  );
  return pairs.length > 0 ? `{${pairs.join(",")}}` : "";
}
