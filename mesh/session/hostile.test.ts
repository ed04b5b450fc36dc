// What a peer that means harm can do to a session: end it, or lose its own packets. Each flood is fed by hand, and what
// is held and told afterwards is counted.
import assert from "node:assert/strict";
import fc from "fast-check";
import { CLOSE_CODES, encodePacket } from "../wire/session.ts";
import { admitted, type Encodable, HandFed, hello, NONE, TAG } from "./hand-fed.ts";
import { eventsOf } from "./testing.ts";

const open = (stream: number, metadata: Uint8Array = NONE): Encodable => ({
  kind: "open",
  stream,
  service: "x",
  metadata,
});
const data = (stream: number, offset: number, length: number, fin = false): Encodable => ({
  kind: "stream",
  stream,
  offset,
  fin,
  data: new Uint8Array(length),
});

describe("floods", () => {
  it("of OPENs end at the limit of streams, each with its metadata held once", () => {
    const fed = admitted();
    const metadata = new Uint8Array(16_384);
    for (let i = 0; i < 256; i++) fed.feed(open(2 * i, metadata)).feed(open(2 * i, metadata));
    assert.equal(eventsOf(fed.events, "open").length, 256);
    assert.equal(fed.agent.stats.streams, 256);
    assert.equal(fed.feed(open(512)).closed?.code, CLOSE_CODES.resourceLimit.code);
  });

  it("of streams that are opened and reset at once give the opener no more than its turn", () => {
    const fed = admitted();
    for (let round = 0; round < 20; round++) {
      for (let i = 0; i < 100; i++) {
        const stream = 2 * (100 * round + i);
        fed.feed(open(stream), { kind: "reset", stream, code: 0, finalSize: 0 });
        fed.agent.reset(stream, 0);
      }
      fed.said();
      const last = fed.sentNumbers.at(-1);
      fed.feed({ kind: "ack", echo: last!, delayUs: 0, ranges: [[0, last!]] });
      fed.said();
      if (fed.closed) return assert.fail(fed.closed.reason);
    }
    assert.equal(fed.agent.stats.streams, 0);
    assert.equal(eventsOf(fed.events, "stream-closed").length, 2_000);
  });

  it("of resets, stops and window updates for one stream are told once and answered once", () => {
    const fed = admitted().feed(open(0));
    fed.said();
    const max = Number.MAX_SAFE_INTEGER;
    for (let i = 0; i < 500; i++)
      fed.feed(
        { kind: "reset", stream: 0, code: i, finalSize: 0 },
        { kind: "stop", stream: 0, code: i },
        { kind: "max-stream-data", stream: 0, max: i % 2 ? max : 0 },
        { kind: "max-data", max: i % 2 ? max : 0 },
      );
    assert.equal(eventsOf(fed.events, "reset").length, 1);
    assert.equal(eventsOf(fed.events, "stop").length, 1);
    assert.ok(fed.said().filter(({ kind }) => kind === "reset").length <= 1);
    assert.equal(fed.closed, undefined);
  });

  it("of single bytes with gaps between them hold 4,096 pieces; packets beyond that don't count as received", () => {
    const fed = admitted().feed(open(0));
    for (let i = 0; i < 8_000; i++) fed.feed(data(0, 2 * i + 1, 1));
    assert.equal(fed.agent.stats.reorderRanges, 4_096);
    assert.equal(fed.agent.stats.packetsRefused, 8_000 - 4_096);
    assert.equal(fed.closed, undefined);
  });

  it("of single bytes in order are held in few pieces, and a reader that never comes ends the writer", () => {
    const fed = admitted().feed(open(0));
    for (let i = 0; i < 5_000; i++) fed.feed(data(0, i, 1));
    let pieces = 0;
    for (let piece = fed.agent.read(0); piece; piece = fed.agent.read(0)) pieces++;
    assert.ok(pieces <= 5, `${pieces} pieces`);
    fed.feed(data(0, 5_000, 60_000));
    for (let at = 65_000; !fed.closed; at += 60_000) fed.feed(data(0, at, 60_000));
    assert.equal(fed.closed?.code, CLOSE_CODES.flowControl.code);
    assert.ok(fed.agent.stats.bufferedBytes === 0);
  });

  it("of datagrams hold 1 MB until somebody takes them", () => {
    const fed = admitted().feed(open(0));
    const datagram: Encodable = { kind: "datagram", stream: 0, data: new Uint8Array(50_000) };
    for (let i = 0; i < 100; i++) fed.agent.receivePacket(encodePacket(TAG, 100 + i, [datagram]), 1, 0);
    assert.equal(eventsOf(fed.agent.takeEvents(), "datagram").length, 20);
    assert.equal(fed.agent.stats.datagramsRefused, 80);
    fed.agent.receivePacket(encodePacket(TAG, 300, [datagram]), 1, 0);
    assert.equal(eventsOf(fed.agent.takeEvents(), "datagram").length, 1);
  });

  it("of datagrams for streams that are not there are told to nobody", () => {
    const fed = admitted();
    for (let i = 0; i < 100; i++) fed.feed({ kind: "datagram", stream: 2 * i, data: NONE });
    assert.deepEqual(eventsOf(fed.events, "datagram"), []);
    assert.equal(fed.agent.stats.streams, 0);
  });

  it("of HELLOs: the same one is judged once, one a packet at most is looked at", () => {
    const fed = admitted();
    const grants = (count: number) =>
      Array.from({ length: count }, (_, i) => hello({ resume: true, grant: Uint8Array.of(i) }));
    for (let i = 0; i < 50; i++) fed.feed(hello({ resume: true, grant: Uint8Array.of(1) }));
    assert.equal(eventsOf(fed.events, "hello").length, 2);
    assert.equal(fed.feed(...grants(2)).closed?.code, CLOSE_CODES.protocolViolation.code);
    assert.equal(eventsOf(fed.events, "hello").length, 3);
  });

  it("of ACKs: one a packet at most is looked at", () => {
    const fed = admitted();
    fed.said();
    const last = fed.sentNumbers.at(-1)!;
    const ack: Encodable = { kind: "ack", echo: last, delayUs: 0, ranges: [[0, last]] };
    assert.equal(fed.feed(ack).closed, undefined);
    assert.equal(fed.feed(ack, ack).closed?.code, CLOSE_CODES.protocolViolation.code);
  });

  it("of HELLOs from a stranger whom nobody judges are no news", () => {
    const fed = new HandFed();
    for (let i = 0; i < 50; i++) fed.feed(hello({ grant: Uint8Array.of(i) }));
    assert.equal(eventsOf(fed.events, "hello").length, 1);
    assert.deepEqual(fed.said(), []);
  });

  it("of pings are answered by one ACK for all that came at once", () => {
    const fed = admitted();
    fed.said();
    for (let i = 0; i < 1_000; i++) fed.feed({ kind: "ping" });
    assert.equal(fed.said().filter(({ kind }) => kind === "ack").length, 1);
  });

  it("of repeated packets change nothing but a counter", () => {
    const fed = admitted().feed(open(0), data(0, 0, 100));
    const packet = encodePacket(TAG, 1, [open(0), data(0, 0, 100)]);
    const before = fed.events.length;
    for (let i = 0; i < 1_000; i++) fed.feedBytes(packet);
    assert.equal(fed.events.length, before);
    assert.equal(fed.agent.stats.packetsDropped, 1_000);
  });
});

describe("lies", () => {
  const lies: [string, keyof typeof CLOSE_CODES, (last: number) => Encodable][] = [
    [
      "acknowledging the packet after the last one",
      "protocolViolation",
      (last) => ({ kind: "ack", echo: last + 1, delayUs: 0, ranges: [[last + 1, last + 1]] }),
    ],
    [
      "acknowledging all there could ever be",
      "protocolViolation",
      () => ({
        kind: "ack",
        echo: 0,
        delayUs: 0,
        ranges: [[0, Number.MAX_SAFE_INTEGER - 1]],
      }),
    ],
    [
      "a signal that is far ahead",
      "resourceLimit",
      () => ({ kind: "signal", type: 0x20, seq: 1e9, body: NONE }),
    ],
    ["data at the end of what numbers hold", "flowControl", () => data(0, Number.MAX_SAFE_INTEGER - 10, 10)],
  ];
  for (const [what, name, frame] of lies)
    it(`${what} end the session`, () => {
      const fed = admitted().feed(open(0));
      fed.agent.write(0, new Uint8Array(1_000));
      fed.said();
      fed.feed(frame(fed.sentNumbers.at(-1) ?? 0));
      assert.equal(fed.closed?.code, CLOSE_CODES[name].code, fed.closed?.reason);
    });

  it("a window that shrinks is not believed, nor does one above 2^53 get past the decoder", () => {
    const fed = admitted().feed(open(0));
    const sent = () => {
      let bytes = 0;
      for (const frame of fed.said()) if (frame.kind === "stream") bytes += frame.data.length;
      return bytes;
    };
    fed.feed({ kind: "max-data", max: 5 }, { kind: "max-stream-data", stream: 0, max: 5 });
    fed.agent.write(0, new Uint8Array(20_000));
    assert.equal(sent(), 20_000);
    const absurd = encodePacket(TAG, 1_000, [{ kind: "max-data", max: Number.MAX_SAFE_INTEGER }]);
    absurd[absurd.length - 8] = 0xff; // 2^62 - 1
    assert.equal(fed.feedBytes(absurd).closed?.code, CLOSE_CODES.protocolViolation.code);
  });

  it("optimistic acknowledgements let in flight no more than a lane may hold", () => {
    const fed = admitted().feed(
      open(0),
      { kind: "max-data", max: Number.MAX_SAFE_INTEGER },
      { kind: "max-stream-data", stream: 0, max: Number.MAX_SAFE_INTEGER },
    );
    for (let i = 0; i < 300; i++) {
      fed.now += 0.01;
      for (let taken = 1; taken > 0; ) taken = fed.agent.write(0, new Uint8Array(65_536));
      fed.said();
      const last = fed.sentNumbers.at(-1)!;
      fed.feed({ kind: "ack", echo: last, delayUs: 1e12, ranges: [[0, last]] });
      assert.ok(fed.agent.stats.lanes[0].maxInFlightBytes <= 16 << 20);
      assert.ok(fed.agent.stats.bufferedBytes <= 32 << 20);
    }
    assert.equal(fed.closed, undefined);
  });
});

it("frames in any order and number never throw, and never hold more than the limits", () => {
  const small = fc.integer({ min: 0, max: 40 });
  const any = fc.oneof(small, fc.maxSafeNat());
  const frame: fc.Arbitrary<Encodable> = fc.oneof(
    fc.record({ kind: fc.constant("ping" as const) }),
    fc.record({
      kind: fc.constant("open" as const),
      stream: small,
      service: fc.constant("x"),
      metadata: fc.constant(NONE),
    }),
    fc.record({ kind: fc.constant("reset" as const), stream: any, code: small, finalSize: any }),
    fc.record({ kind: fc.constant("stop" as const), stream: any, code: small }),
    fc.record({
      kind: fc.constant("stream" as const),
      stream: small,
      offset: fc.integer({ min: 0, max: 300_000 }),
      fin: fc.boolean(),
      data: fc.uint8Array({ maxLength: 50 }),
    }),
    fc.record({ kind: fc.constant("max-data" as const), max: any }),
    fc.record({ kind: fc.constant("max-stream-data" as const), stream: small, max: any }),
    fc.record({ kind: fc.constant("max-streams" as const), count: any }),
    fc.record({
      kind: fc.constant("datagram" as const),
      stream: any,
      data: fc.uint8Array({ maxLength: 50 }),
    }),
    fc.record({
      kind: fc.constant("signal" as const),
      type: fc.constant(0x26),
      seq: fc.oneof(fc.integer({ min: 0, max: 5 }), any),
      body: fc.uint8Array({ maxLength: 9 }),
    }),
    fc
      .record({ kind: fc.constant("ack" as const), first: small, length: small })
      .map(({ first, length }) => ({
        kind: "ack" as const,
        echo: first + length,
        delayUs: 0,
        ranges: [[first, first + length]] as [number, number][],
      })),
    fc.constant(hello({ resume: true, resumePosition: 1 })),
  );
  fc.assert(
    fc.property(fc.array(fc.array(frame, { minLength: 1, maxLength: 8 }), { maxLength: 40 }), (packets) => {
      const fed = admitted();
      for (const frames of packets) {
        fed.now += 7;
        fed.feed(...frames);
        for (const event of fed.events)
          if (event.kind === "open" && !fed.closed) fed.agent.write(event.stream, new Uint8Array(10));
        fed.said();
        fed.agent.handleTimeout(fed.now);
        const { streams, reorderRanges, ackRanges } = fed.agent.stats;
        assert.ok(streams <= 256 && reorderRanges <= 4_096 && ackRanges <= 256);
      }
    }),
    { seed: 2_026, numRuns: 300 },
  );
});
