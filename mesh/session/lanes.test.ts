// Lanes, what travels beside the streams, and what becomes of damaged packets.
import assert from "node:assert/strict";
import fc from "fast-check";
import { utf8 } from "../wire/bytes.ts";
import { decodePacket, type Frame } from "../wire/session.ts";
import { connected, eventsOf, readAll, type Side, SimulatedNetwork, settle } from "./testing.ts";

const NONE = new Uint8Array();

describe("what is lost is said again", () => {
  /** Loses the first packet of `side` that carries such a frame. @returns frames of later packets */
  function loseFirst(net: SimulatedNetwork, side: Side, kind: Frame["kind"]): Frame["kind"][][] {
    const later: Frame["kind"][][] = [];
    let isLost = false;
    net.onPacket = (from, packet) => {
      if (from !== side) return packet;
      const kinds = decodePacket(packet).frames.map((frame) => frame.kind);
      if (isLost) later.push(kinds);
      if (isLost || !kinds.includes(kind)) return packet;
      isLost = true;
      return undefined;
    };
    return later;
  }

  it("by the probe itself, not only after its answer", () => {
    const { net } = connected();
    const later = loseFirst(net, "client", "open");
    net.client.openStream("second", NONE, net.now);
    settle(net);
    assert.deepEqual(later[0], ["ping", "open"]);
    assert.equal(eventsOf(net.events.agent, "open").length, 2);
  });

  for (const kind of ["max-data", "max-stream-data", "max-streams", "reset", "stop", "hello"] as const) {
    it(`${kind}, the last packet for long`, () => {
      const side = kind === "reset" || kind === "stop" || kind === "hello" ? "client" : "agent";
      const limits = {
        maxStreams: 1,
        initialStreamWindowBytes: 100_000,
        maxStreamWindowBytes: 100_000,
        initialSessionWindowBytes: 150_000,
        maxSessionWindowBytes: 150_000,
      };
      const net = new SimulatedNetwork({ agent: { limits } });
      loseFirst(net, side, kind);
      net.addLink();
      let received = 0;
      net.onEvent = (at, event) => {
        const session = net.session(at);
        if (event.kind === "readable") received += readAll(session, event.stream);
        if (event.kind === "fin" || event.kind === "reset") session.end(event.stream);
        if (event.kind === "writable") session.end(event.stream);
      };
      for (let i = 0; i < 5; i++) {
        const stream = net.client.openStream("x", NONE, net.now);
        assert.equal(net.client.write(stream, new Uint8Array(90_000)), 90_000);
        net.client.end(stream);
      }
      const doomed = net.client.openStream("doomed", NONE, net.now);
      settle(net, 10_000);
      net.client.reset(doomed, 1);
      net.client.stopSending(doomed, 1);
      settle(net, 10_000);
      assert.equal(received, 450_000);
      assert.equal(net.client.stats.streams + net.agent.stats.streams, 0);
    });
  }
});

describe("lanes", () => {
  it("on standby carry acknowledgements and probes, no data", () => {
    const { net, stream } = connected();
    const standby = net.addLink({ delayMs: 1 }, { standby: true });
    net.client.write(stream, new Uint8Array(50_000));
    assert.equal(net.client.nextPacket(standby, 65_000, net.now), undefined);
    net.client.sendProbe(standby, 0x30, utf8("12345678"));
    settle(net);
    assert.deepEqual(eventsOf(net.events.agent, "probe"), [
      { kind: "probe", lane: standby, type: 0x30, body: utf8("12345678") },
    ]);
    const onStandby = net.client.stats.lanes.find(({ lane }) => lane === standby);
    assert.equal(onStandby?.rttMs, 2);
    assert.equal(onStandby?.inFlightBytes, 0);
  });

  it("suspected lose nothing: what was under way goes out on the others", () => {
    const { net, stream, lane } = connected();
    net.addLink({ delayMs: 1 });
    net.client.write(stream, new Uint8Array(20_000));
    net.run(() => false, net.now + 1);
    net.setSilent(lane, true);
    net.client.write(stream, new Uint8Array(20_000));
    for (const session of [net.client, net.agent]) {
      session.setLane(lane, { standby: true });
      session.suspectLane(lane);
    }
    settle(net, 100);
    assert.equal(readAll(net.agent, stream), 40_000);
  });

  it("measure their round trip without the time the other side waited", () => {
    const { net } = connected();
    const id = net.client.ping(net.now);
    settle(net, 500);
    const [event] = eventsOf(net.events.client, "rtt");
    assert.equal(event.id, id);
    assert.equal(event.rttMs, 20);
    assert.equal(net.client.stats.lanes[0].minRttMs, 20);
  });

  it("that carry nothing are pinged when asked to, and only then", () => {
    const quiet = connected().net;
    const before = quiet.packets.client;
    assert.equal(
      quiet.run(() => false, quiet.now + 100_000),
      "idle",
    );
    assert.equal(quiet.packets.client, before);
    const kept = connected({ client: { keepaliveMs: 5_000 } }).net;
    const started = kept.packets.client;
    kept.run(() => false, kept.now + 50_000);
    const pings = kept.packets.client - started;
    assert.ok(pings >= 9 && pings <= 11, `${pings} packets in 50 s`);
  });

  it("that went silent are asked again without declaring loss, ever less often", () => {
    const { net, stream, lane } = connected();
    net.setSilent(lane, true);
    net.client.write(stream, utf8("hello?"));
    const before = net.packets.client;
    net.run(() => false, net.now + 60_000);
    assert.equal(net.client.stats.packetsLost, 0);
    assert.ok(net.packets.client - before < 16, `${net.packets.client - before} packets`);
    net.setSilent(lane, false);
    net.run(() => false, net.now + 11_000);
    assert.equal(readAll(net.agent, stream), 6);
  });
});

describe("messages", () => {
  it("signals arrive once and in order over a lossy lane; a 33rd waits", () => {
    const { net } = connected({ seed: 8 });
    net.addLink({ loss: 0.3, reorder: 0.3, duplicate: 0.1 });
    const sent: string[] = [];
    for (let i = 0; i < 40; i++) {
      if (net.client.sendSignal(0x20 + (i % 6), utf8(`signal ${i}`))) sent.push(`signal ${i}`);
    }
    assert.equal(sent.length, 32);
    settle(net, 20_000);
    assert.deepEqual(
      eventsOf(net.events.agent, "signal").map(({ body }) => new TextDecoder().decode(body)),
      sent,
    );
    assert.ok(net.client.sendSignal(0x20, NONE));
    assert.equal(net.client.sendSignal(0x20, new Uint8Array(16_385)), false);
  });

  it("datagrams arrive, are dropped after 100 ms in the queue, and never resent", () => {
    const { net, stream, lane } = connected();
    assert.ok(net.client.sendDatagram(stream, utf8("now"), net.now));
    settle(net);
    assert.deepEqual(eventsOf(net.events.agent, "datagram"), [
      { kind: "datagram", stream, data: utf8("now") },
    ]);
    net.client.setLane(lane, { standby: true });
    net.client.sendDatagram(stream, utf8("late"), net.now);
    net.now += 101;
    net.client.setLane(lane, { standby: false });
    settle(net);
    assert.equal(eventsOf(net.events.agent, "datagram").length, 1);
    assert.equal(net.client.stats.datagramsDropped, 1);
    for (let i = 0; i < 300; i++) net.client.sendDatagram(stream, new Uint8Array(1_000), net.now);
    assert.ok(net.client.stats.datagramsDropped >= 44);
    assert.equal(net.client.sendDatagram(stream, new Uint8Array(60_000), net.now), false);
  });
});

describe("a hostile network", () => {
  it("changing, cutting and repeating packets makes sessions close or drop, never throw or swell", () => {
    fc.assert(
      fc.property(fc.integer(), fc.double({ min: 0.01, max: 0.5, noNaN: true }), (seed, share) => {
        const net = new SimulatedNetwork({ seed });
        const seen: Record<Side, Uint8Array[]> = { client: [], agent: [] };
        net.onPacket = (side, packet) => {
          seen[side].push(packet);
          if (net.random() > share) return packet;
          const kind = net.random();
          if (kind < 0.2) return packet.slice(0, net.random() * packet.length);
          if (kind < 0.4) return seen[side][Math.floor(net.random() * seen[side].length)];
          const changed = packet.slice();
          for (let i = 0; i < 3; i++)
            changed[Math.min(4 + net.random() * 60, changed.length - 1)] = net.random() * 256;
          return changed;
        };
        net.addLink();
        for (let i = 0; i < 3; i++) {
          const stream = net.client.openStream("x", NONE, net.now);
          net.client.write(stream, new Uint8Array(50_000));
          net.client.end(stream);
        }
        net.onEvent = (side, event) => {
          const session = net.session(side);
          if (event.kind === "open") session.write(event.stream, new Uint8Array(20_000));
          if (event.kind === "readable") readAll(session, event.stream);
        };
        net.run(() => net.client.isClosed && net.agent.isClosed, net.now + 5_000);
        for (const session of [net.client, net.agent]) {
          const { bufferedBytes, reorderRanges, ackRanges, streams } = session.stats;
          assert.ok(bufferedBytes < 1 << 20 && reorderRanges < 5_000 && ackRanges <= 256 && streams < 300);
        }
      }),
      { numRuns: 150 },
    );
  });
});
