import assert from "node:assert/strict";
import { fromHex, utf8 } from "../../mesh/wire/bytes.ts";
import { startRelay } from "../testing.ts";
import { Counters, counter, Histogram, histogram, type Metric, prometheusText } from "./metrics.ts";

const numberOf = (metrics: Metric[], name: string, labels?: Record<string, string>): number | undefined =>
  metrics
    .find((metric) => metric.name === name)
    ?.values.find((value) => JSON.stringify(value.labels) === JSON.stringify(labels))?.value;

describe("relay metrics", () => {
  it("have the names of deployed relays", async () => {
    const relay = await startRelay();
    const names = new Set(relay.server.metrics().map(({ name }) => name));
    for (const name of [
      ...[
        "gauge_current_connections",
        "gauge_current_home_connections",
        "gauge_current_notideal_connections",
      ],
      ...["gauge_clients_total", "gauge_clients_local", "gauge_clients_remote", "gauge_watchers"],
      ...[
        "gauge_current_dup_client_keys",
        "gauge_current_dup_client_conns",
        "counter_total_dup_client_conns",
      ],
      ...["accepts", "bytes_received", "bytes_sent", "packets_received", "packets_sent"],
      ...["counter_packets_received_kind", "derp_packets_dropped", "derp_bytes_dropped"],
      ...["packets_forwarded_in", "packets_forwarded_out", "home_moves_in", "home_moves_out", "got_ping"],
      ...["sent_pong", "peer_gone_disconnected_frames", "peer_gone_not_here_frames"],
      ...["multiforwarder_created", "multiforwarder_deleted", "packet_forwarder_delete_other_value"],
      ...["sclient_write_timeouts", "unknown_frames", "rate_limit_per_client_waited"],
      ...["average_queue_duration_ms"],
    ])
      assert.ok(names.has(name), name);
    await relay.close();
  });

  it("count packets and bytes by kind, and what was dropped why", async () => {
    const relay = await startRelay();
    const [a, b] = [await relay.client(), await relay.client()];
    const disco = new Uint8Array(100);
    disco.set(fromHex("5453f09f92ac"));
    a.client.send(b.key, utf8("12345"));
    a.client.send(b.key, disco);
    a.client.send(new Uint8Array(32), utf8("lost"));
    a.client.send(new Uint8Array(32), disco);
    await Promise.all([b.packets.take(), a.client.ping()]);
    const metrics = relay.server.metrics();
    assert.deepEqual(
      [
        numberOf(metrics, "packets_received"),
        numberOf(metrics, "bytes_received"),
        numberOf(metrics, "packets_sent"),
        numberOf(metrics, "bytes_sent"),
        numberOf(metrics, "counter_packets_received_kind", { kind: "disco" }),
        numberOf(metrics, "counter_packets_received_kind", { kind: "other" }),
        numberOf(metrics, "derp_packets_dropped", { reason: "unknown_dest", kind: "disco" }),
        numberOf(metrics, "derp_packets_dropped", { reason: "unknown_dest", kind: "other" }),
        numberOf(metrics, "derp_bytes_dropped", { reason: "unknown_dest" }),
      ],
      [4, 209, 2, 105, 2, 2, 1, 1, 104],
    );
    await relay.close();
  });

  it("a histogram's buckets double", () => {
    const all = new Histogram(5);
    for (const value of [1, 2, 3, 4, 5, 8, 9, 1_000_000]) all.add(value);
    assert.deepEqual(all.buckets, [1, 1, 2, 2, 2]);
    const { values } = histogram("h", "", all);
    assert.deepEqual(
      values.map(({ labels }) => labels!.le),
      ["1", "2", "4", "8", "+Inf"],
    );
  });

  it("are text that Prometheus reads", () => {
    const counters = new Counters();
    counters.framesPerWrite.add(1);
    counters.framesPerWrite.add(3);
    assert.equal(
      prometheusText([
        counter("a", 'with "quotes" and \\', 7),
        { name: "b", type: "gauge", help: "", values: [{ labels: { x: 'say "hi"\\\n' }, value: 0.5 }] },
      ]),
      '# HELP coder_derp_a with "quotes" and \\\\\n# TYPE coder_derp_a counter\ncoder_derp_a 7\n' +
        '# HELP coder_derp_b \n# TYPE coder_derp_b gauge\ncoder_derp_b{x="say \\"hi\\"\\\\\\n"} 0.5\n',
    );
    const text = prometheusText([histogram("f", "frames", counters.framesPerWrite)]);
    assert.match(text, /_bucket\{le="2"\} 1\ncoder_derp_f_bucket\{le="4"\} 2\n/);
    assert.match(text, /_bucket\{le="\+Inf"\} 2\ncoder_derp_f_sum 4\ncoder_derp_f_count 2\n$/);
  });
});
