import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { concatBytes, fromHex, toHex } from "./bytes.ts";
import { WireError } from "./errors.ts";
import {
  CLOSE_CODES,
  CLOSE_NUMBER,
  clipReason,
  closeText,
  decodePacket,
  encodeClosePacket,
  encodePacket,
  type Frame,
  frameBytes,
  MAX_FRAMES,
  MAX_PACKET_BYTES,
  peekHello,
  peekTag,
} from "./session.ts";

type Encodable = Exclude<Frame, { kind: "skipped" }>;

interface Vector {
  name: string;
  wire: string;
  tag: number;
  number: number;
  frames: unknown[];
  encodes?: boolean;
}
const vectors: { packets: Vector[]; broken: { name: string; wire: string; code: string }[] } = JSON.parse(
  readFileSync(new URL("../../test/vectors/session.json", import.meta.url), "utf8"),
);
const wireOf = ({ wire }: { wire: string }): Uint8Array => fromHex(wire.replaceAll(" ", ""));

/** Frames as the vectors write them: bytes in hex. */
const readable = (value: unknown): unknown =>
  JSON.parse(JSON.stringify(value, (_key, v) => (v instanceof Uint8Array ? toHex(v) : v)));

const varint = fc.oneof(fc.nat(100), fc.nat(100_000), fc.maxSafeNat());
const small = fc.uint8Array({ maxLength: 300 });
const anyHello = fc
  .record({
    minVersion: fc.integer({ min: 1, max: 9 }),
    more: fc.nat(9),
    resume: fc.boolean(),
    sessionId: fc.uint8Array({ minLength: 16, maxLength: 16 }),
    maxPacketBytes: fc.integer({ min: 32_768, max: 100_000 }),
    maxDataBytes: varint,
    maxStreamDataBytes: varint,
    maxStreams: varint,
    resumeWindowMs: varint,
    resumePosition: varint,
    grant: fc.uint8Array({ maxLength: 4_096 }),
  })
  .map(({ more, ...hello }) => ({ ...hello, maxVersion: hello.minVersion + more }));
const anyAck = fc
  .tuple(fc.array(fc.tuple(fc.nat(50), fc.nat(50)), { minLength: 1, maxLength: 20 }), varint)
  .map(([steps, delayUs]): Encodable => {
    const ranges: [number, number][] = [];
    let next = 0;
    for (const [gap, length] of steps) {
      ranges.unshift([next + gap, next + gap + length]);
      next += gap + length + 2;
    }
    return { kind: "ack", echo: ranges[ranges.length - 1][0], delayUs, ranges };
  });
const anyFrame: fc.Arbitrary<Encodable> = fc.oneof(
  fc.constant<Encodable>({ kind: "ping" }),
  anyAck,
  anyHello.map((hello): Encodable => ({ kind: "hello", hello })),
  fc.record({ kind: fc.constant("close" as const), code: varint, reason: fc.string({ maxLength: 40 }) }),
  fc.record({
    kind: fc.constant("open" as const),
    stream: varint,
    service: fc.string({ maxLength: 40 }),
    metadata: small,
  }),
  fc.record({ kind: fc.constant("reset" as const), stream: varint, code: varint, finalSize: varint }),
  fc.record({ kind: fc.constant("stop" as const), stream: varint, code: varint }),
  fc.record({
    kind: fc.constant("stream" as const),
    stream: varint,
    offset: fc.nat(1_000_000_000),
    fin: fc.boolean(),
    data: small,
  }),
  fc.record({ kind: fc.constant("max-data" as const), max: varint }),
  fc.record({ kind: fc.constant("max-stream-data" as const), stream: varint, max: varint }),
  fc.record({ kind: fc.constant("max-streams" as const), count: varint }),
  fc.record({ kind: fc.constant("datagram" as const), stream: varint, data: small }),
  fc.record({
    kind: fc.constant("signal" as const),
    type: fc.integer({ min: 0x20, max: 0x2f }),
    seq: varint,
    body: small,
  }),
  fc.record({
    kind: fc.constant("probe" as const),
    type: fc.integer({ min: 0x30, max: 0x3f }),
    body: small,
  }),
);
const anyPacket = fc.tuple(fc.nat(0xffffffff), varint, fc.array(anyFrame, { maxLength: 6 }));

/** Decodes, and lets nothing but WireError pass. */
function decodeOrRefuse(bytes: Uint8Array): void {
  try {
    decodePacket(bytes);
  } catch (error) {
    if (!(error instanceof WireError)) throw error;
  }
}

describe("session packets", () => {
  for (const vector of vectors.packets) {
    it(`read the published bytes: ${vector.name}`, () => {
      const { tag, number, frames } = decodePacket(wireOf(vector));
      assert.deepEqual({ tag, number }, { tag: vector.tag, number: vector.number });
      assert.deepEqual(readable(frames), vector.frames);
    });

    if (vector.encodes === false) continue;
    it(`write the published bytes: ${vector.name}`, () => {
      const wire = wireOf(vector);
      const { tag, number, frames } = decodePacket(wire);
      const written = encodePacket(tag, number, frames as Encodable[]);
      const padding = wire.length - written.length;
      assert.equal(toHex(concatBytes(written, new Uint8Array(padding))), toHex(wire));
    });
  }

  for (const vector of vectors.broken) {
    it(`refuse: ${vector.name}`, () =>
      assert.throws(() => decodePacket(wireOf(vector)), { name: "WireError", code: vector.code }));
  }

  it("read back what was written, padded to 16 bytes or not", () => {
    fc.assert(
      fc.property(anyPacket, fc.boolean(), ([tag, number, frames], isPadded) => {
        const wire = encodePacket(tag, number, frames);
        const padding = new Uint8Array(isPadded ? (16 - (wire.length % 16)) % 16 : 0);
        assert.deepEqual(
          readable(decodePacket(concatBytes(wire, padding))),
          readable({ tag, number, frames }),
        );
      }),
    );
  });

  it("never take more room than frameBytes says, and exactly that but for ACK", () => {
    fc.assert(
      fc.property(anyFrame, (frame) => {
        const bytes = encodePacket(0, 0, [frame]).length - 5;
        if (frame.kind === "ack") assert.ok(bytes <= frameBytes(frame));
        else assert.equal(bytes, frameBytes(frame));
      }),
    );
  });

  it("cut off or changed anywhere give a WireError or a packet, nothing else", () => {
    fc.assert(
      fc.property(anyPacket, fc.nat(), fc.nat(255), ([tag, number, frames], at, value) => {
        const wire = encodePacket(tag, number, frames);
        decodeOrRefuse(wire.subarray(0, at % (wire.length + 1)));
        const changed = wire.slice();
        changed[at % wire.length] = value;
        decodeOrRefuse(changed);
      }),
      { numRuns: 500 },
    );
  });

  it("made of random bytes give a WireError or a packet, nothing else", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 2_000 }), (bytes) => decodeOrRefuse(bytes)),
      { numRuns: 500 },
    );
  });

  it("with more frames than a receiver should look at are refused", () => {
    const pings = (count: number): Uint8Array =>
      concatBytes(fromHex("0000000100"), new Uint8Array(count).fill(1));
    assert.equal(decodePacket(pings(MAX_FRAMES)).frames.length, MAX_FRAMES);
    assert.throws(() => decodePacket(pings(MAX_FRAMES + 1)), { code: "ERR_BAD_VALUE" });
  });

  it("above 65,000 bytes and its padding are refused before anything is read", () => {
    assert.throws(() => decodePacket(new Uint8Array(MAX_PACKET_BYTES + 16)), { code: "ERR_FRAME_TOO_LARGE" });
  });

  it("are told apart by a peek that never throws", () => {
    const first = wireOf(vectors.packets.find(({ name }) => name.startsWith("first packet"))!);
    assert.equal(peekTag(first), 0x00010203);
    assert.equal(peekHello(first)?.grant.length, 3);
    assert.equal(peekTag(new Uint8Array()), undefined);
    fc.assert(fc.property(fc.uint8Array(), (bytes) => void peekHello(bytes)));
    for (let length = 0; length < 49; length++) assert.equal(peekHello(first.subarray(0, length)), undefined);
  });
});

describe("close codes", () => {
  it("are all different, and have a text for the user", () => {
    const codes = Object.values(CLOSE_CODES);
    assert.equal(new Set(codes.map(({ code }) => code)).size, codes.length);
    for (const { code, text } of codes) assert.equal(closeText(code), text);
    assert.match(closeText(4_711), /4711/);
  });

  it("travel in a packet outside the number space, the reason cut to what fits", () => {
    const { tag, number, frames } = decodePacket(encodeClosePacket(7, 5, "ü".repeat(400)));
    assert.deepEqual(
      { tag, number, frames },
      {
        tag: 7,
        number: CLOSE_NUMBER,
        frames: [{ kind: "close", code: 5, reason: "ü".repeat(256) }],
      },
    );
    assert.equal(clipReason("\u{1f600}".repeat(200)), "\u{1f600}".repeat(128));
  });
});
