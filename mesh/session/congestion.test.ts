// "Short queues": what a lane keeps in flight, seen from outside, on simulated lines.
import assert from "node:assert/strict";
import { type LinkOptions, SimulatedNetwork } from "./testing.ts";

interface Measured {
  /** Share of the line's rate that bulk data got. */
  utilization: number;
  echoMs: { p50: number; p95: number };
  lost: number;
  sent: number;
}

/** A copy that never ends and a keystroke every 37 ms, over one line; measured after the start phase. */
function measure(link: LinkOptions & { bytesPerMs: number }, fromMs: number, toMs: number): Measured {
  const net = new SimulatedNetwork({ seed: 5 });
  const startAt = net.now;
  net.addLink(link);
  const chunk = new Uint8Array(65_536);
  const bulk = net.client.openStream("copy", new Uint8Array(), net.now);
  const echo = net.client.openStream("shell", new Uint8Array(), net.now);
  const echoes: number[] = [];
  let received = 0;
  let typedAt = 0;
  const type = (): void => {
    typedAt = net.now;
    net.client.write(echo, new Uint8Array(1));
  };
  const copy = (): void => {
    while (net.client.write(bulk, chunk) === chunk.length);
  };
  net.onEvent = (side, event) => {
    if (event.kind === "writable") copy();
    if (event.kind !== "readable") return;
    const session = net.session(side);
    for (let bytes = session.read(event.stream); bytes; bytes = session.read(event.stream)) {
      if (event.stream === bulk) received += bytes.length;
      else if (side === "agent") session.write(echo, bytes);
      else {
        if (net.now > startAt + fromMs) echoes.push(net.now - typedAt);
        net.at(net.now + 37, type);
      }
    }
  };
  copy();
  type();
  net.run(() => false, startAt + fromMs);
  const before = received;
  net.run(() => false, startAt + toMs);
  echoes.sort((a, b) => a - b);
  return {
    utilization: (received - before) / (toMs - fromMs) / link.bytesPerMs,
    echoMs: {
      p50: echoes[echoes.length >>> 1],
      p95: echoes[Math.floor(echoes.length * 0.95)],
    },
    lost: net.client.stats.packetsLost,
    sent: net.client.stats.packetsSent,
  };
}

const MBIT = 125; // bytes per ms

describe("short queues", () => {
  for (const [rate, delayMs] of [
    [1, 25],
    [10, 10],
    [100, 25],
  ] as const) {
    it(`fill a ${rate} Mbit/s line of ${2 * delayMs} ms and leave keystrokes nearly alone`, () => {
      const { utilization, echoMs, lost } = measure({ bytesPerMs: rate * MBIT, delayMs }, 3_000, 8_000);
      assert.ok(utilization > 0.9, `used ${utilization}`);
      // At 1 Mbit/s two of the smallest packets are longer than the queue wanted.
      const bound = 2 * delayMs + (rate === 1 ? 30 : 20);
      assert.ok(echoMs.p95 <= bound, `echo p95 ${echoMs.p95}, p50 ${echoMs.p50}`);
      assert.equal(lost, 0);
    });
  }

  it("are shorter still where the round trip is next to nothing", () => {
    const { utilization, echoMs, lost } = measure({ bytesPerMs: 200 * MBIT, delayMs: 0.2 }, 1_000, 3_000);
    assert.ok(utilization > 0.9, `used ${utilization}`);
    assert.ok(echoMs.p95 <= 11, `echo p95 ${echoMs.p95}, p50 ${echoMs.p50}`);
    assert.equal(lost, 0);
  });

  it("keep the rate at 1 % loss", () => {
    const { utilization } = measure({ bytesPerMs: 100 * MBIT, delayMs: 25, loss: 0.01 }, 4_000, 9_000);
    assert.ok(utilization > 0.75, `used ${utilization}`);
  });

  it("stay under a relay's queue that is shorter than ours: few packets lost, most of the rate", () => {
    const { utilization, lost, sent } = measure(
      { bytesPerMs: 100 * MBIT, delayMs: 10, queueBytes: 100_000 },
      3_000,
      8_000,
    );
    assert.ok(utilization > 0.7, `used ${utilization}`);
    assert.ok(lost < sent / 20, `${lost} of ${sent} lost`);
  });

  it("grow windows with the line: 100 Mbit/s at 200 ms is used", () => {
    const { utilization } = measure({ bytesPerMs: 100 * MBIT, delayMs: 100 }, 5_000, 10_000);
    assert.ok(utilization > 0.8, `used ${utilization}`);
  });
});
