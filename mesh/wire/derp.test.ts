import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { concatBytes, fromHex, toHex, utf8 } from "./bytes.ts";
import {
  decodeClientInfo,
  decodeFrame,
  decodeServerInfo,
  encodeClientInfo,
  encodeFrame,
  encodeServerInfo,
  FRAME,
  type Frame,
  FrameDecoder,
  HEADER_BYTES,
  isDisco,
  MAX_BODY_BYTES,
  maxClientBodyBytes,
  maxServerBodyBytes,
  turnSendIntoRecv,
  writeHeader,
} from "./derp.ts";
import { WireError } from "./errors.ts";

interface Vector {
  name: string;
  wire: string;
  frame: Record<string, unknown>;
}
const vectors: {
  frames: Vector[];
  decodeOnly: Vector[];
  malformed: { name: string; wire: string; code: string }[];
} = JSON.parse(readFileSync(new URL("../../test/vectors/derp.json", import.meta.url), "utf8"));

const wireOf = (text: string): Uint8Array => fromHex(text.replaceAll(" ", ""));

/** The frame as the vectors spell it: byte fields in hex. */
function spelled(frame: Frame): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(frame).map(([name, value]) => [name, value instanceof Uint8Array ? toHex(value) : value]),
  );
}

const BYTE_FIELDS = new Set(["key", "nonce", "box", "dst", "src", "data", "address"]);
function unspelled(frame: Record<string, unknown>): Frame {
  return Object.fromEntries(
    Object.entries(frame).map(([name, value]) => [
      name,
      BYTE_FIELDS.has(name) ? fromHex(String(value)) : value,
    ]),
  ) as Frame;
}

/** All frames of a stream cut into `sizes` (repeated), copied. */
function framesOf(wire: Uint8Array, sizes: number[], max = maxServerBodyBytes): Uint8Array[] {
  const decoder = new FrameDecoder(max);
  const out: Uint8Array[] = [];
  for (let at = 0, i = 0; at < wire.length; i++) {
    const end = Math.min(wire.length, at + sizes[i % sizes.length]);
    decoder.push(wire.slice(at, end), (_type, buffer, start, stop) => {
      out.push(buffer.slice(start, stop));
    });
    at = end;
  }
  return out;
}

describe("DERP frames", () => {
  for (const { name, wire, frame } of vectors.frames) {
    it(`${name} encodes to the published bytes and decodes from them`, () => {
      const encoded = encodeFrame(unspelled(frame) as Exclude<Frame, { kind: "unknown" }>);
      assert.equal(toHex(encoded), wire.replaceAll(" ", ""));
      assert.deepEqual(spelled(decodeFrame(encoded[0], encoded.subarray(HEADER_BYTES))), frame);
    });
  }

  for (const { name, wire, frame } of vectors.decodeOnly) {
    it(`decodes: ${name}`, () => {
      const bytes = wireOf(wire);
      const [whole] = framesOf(bytes, [bytes.length]);
      assert.deepEqual(spelled(decodeFrame(whole[0], whole.subarray(HEADER_BYTES))), frame);
    });
  }

  for (const { name, wire, code } of vectors.malformed) {
    it(`refuses: ${name}`, () => {
      const bytes = wireOf(wire);
      assert.throws(
        () => decodeFrame(bytes[0], bytes.subarray(HEADER_BYTES)),
        (error: unknown) => error instanceof WireError && error.code === code,
      );
    });
  }

  it("WriteFrameHeader: writes the length of the largest body there is", () => {
    const out = new Uint8Array(7);
    writeHeader(out, 1, 0x04, 0xffffffff);
    assert.equal(toHex(out), "0004ffffffff00");
  });

  it("a SendPacket becomes the RecvPacket of its receiver in place", () => {
    const frame = encodeFrame({ kind: "sendPacket", dst: new Uint8Array(32).fill(2), data: utf8("hello") });
    const buffer = new Uint8Array(frame.length + 3);
    buffer.set(frame, 2);
    turnSendIntoRecv(buffer, 2, new Uint8Array(32).fill(1));
    const expected = encodeFrame({
      kind: "recvPacket",
      src: new Uint8Array(32).fill(1),
      data: utf8("hello"),
    });
    assert.deepEqual(buffer.slice(2, 2 + frame.length), expected);
    assert.deepEqual([buffer[0], buffer[1], buffer.at(-1)], [0, 0, 0]);
  });

  it("tells path discovery by its magic and length", () => {
    const disco = new Uint8Array(62);
    disco.set(fromHex("5453f09f92ac"));
    assert.equal(isDisco(disco, 0, 62), true);
    assert.equal(isDisco(disco, 0, 61), false);
    disco[5] ^= 1;
    assert.equal(isDisco(disco, 0, 62), false);
  });
});

const anyFrame = fc
  .tuple(fc.integer({ min: 2, max: 255 }), fc.uint8Array({ maxLength: 600 }))
  .map(([type, body]) => {
    const frame = new Uint8Array(HEADER_BYTES + body.length);
    writeHeader(frame, 0, type, body.length);
    frame.set(body, HEADER_BYTES);
    return frame;
  });
const streamOf = (frames: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(frames));

describe("DERP frame decoder", () => {
  it("ReadFrameHeader: yields the same frames however the stream is cut", () => {
    fc.assert(
      fc.property(
        fc.array(anyFrame, { maxLength: 12 }),
        fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1, maxLength: 8 }),
        (frames, sizes) => assert.deepEqual(framesOf(streamOf(frames), sizes), frames),
      ),
    );
  });

  it("lends each frame until its sink returns: the same frames however the stream is cut, one buffer for large ones", () => {
    const body = (size: number, fill: number) => new Uint8Array(size).fill(fill);
    const sent = [40_000, 65_568, 20, 65_568, 16_384, 30_000].map((size, i) => body(size, i + 1));
    const stream = concatBytes(
      ...sent.flatMap((bytes) => {
        const header = new Uint8Array(HEADER_BYTES);
        writeHeader(header, 0, FRAME.recvPacket, bytes.length);
        return [header, bytes];
      }),
    );
    fc.assert(
      fc.property(fc.integer({ min: 1_000, max: 70_000 }), (size) => {
        const decoder = new FrameDecoder(maxServerBodyBytes, { lends: true });
        const got: Uint8Array[] = [];
        const lent = new Set<ArrayBufferLike>();
        for (let at = 0; at < stream.length; at += size) {
          const chunk = stream.slice(at, at + size);
          decoder.push(chunk, (_type, buffer, start, end) => {
            got.push(buffer.slice(start + HEADER_BYTES, end));
            if (buffer.buffer !== chunk.buffer && end - start > 16_384) lent.add(buffer.buffer);
          });
        }
        assert.deepEqual(got, sent);
        assert.ok(lent.size <= 1, "frames that were cut lay in one buffer");
      }),
      { numRuns: 50 },
    );
  });
  it("yields the same frames byte by byte", () => {
    fc.assert(
      fc.property(fc.array(anyFrame, { maxLength: 4 }), (frames) =>
        assert.deepEqual(framesOf(streamOf(frames), [1]), frames),
      ),
      { numRuns: 30 },
    );
  });

  it("hands back what lies behind the frame it was stopped at", () => {
    fc.assert(
      fc.property(
        fc.array(anyFrame, { minLength: 1, maxLength: 6 }),
        fc.nat(),
        fc.nat(),
        (frames, nth, cutAt) => {
          const stopAt = nth % frames.length;
          const wire = streamOf(frames);
          const cut = cutAt % (wire.length + 1);
          const decoder = new FrameDecoder(maxServerBodyBytes);
          const got: Uint8Array[] = [];
          const parts = [wire.slice(0, cut), wire.slice(cut)];
          for (const [i, part] of parts.entries()) {
            const rest = decoder.push(part, (_type, buffer, start, end) => {
              assert.ok(got.length <= stopAt, "no frame comes after the stop");
              got.push(buffer.slice(start, end));
              return got.length <= stopAt;
            });
            if (rest === undefined) continue;
            const after = [rest, ...parts.slice(i + 1)];
            for (const chunk of after)
              decoder.push(chunk, (_type, buffer, start, end) => {
                got.push(buffer.slice(start, end));
              });
            break;
          }
          assert.deepEqual(got, frames);
        },
      ),
    );
  });

  it("hands out frames that lie whole in a chunk without copying", () => {
    const chunk = streamOf([encodeFrame({ kind: "keepAlive" }), encodeFrame({ kind: "watchConns" })]);
    const places: number[] = [];
    new FrameDecoder(maxServerBodyBytes).push(chunk, (_type, buffer, start) => {
      assert.equal(buffer, chunk);
      places.push(start);
    });
    assert.deepEqual(places, [0, 5]);
  });

  it("ReadFrameHeader: refuses a length over the limit on the header alone, also when the header is cut", () => {
    for (const [type, max] of [
      [FRAME.clientInfo, 262_144],
      [FRAME.sendPacket, 65_568],
      [FRAME.forwardPacket, 65_600],
      [FRAME.ping, 1000],
      [FRAME.watchConns, 0],
      [0x7f, 65_600],
    ]) {
      const header = new Uint8Array(HEADER_BYTES);
      writeHeader(header, 0, type, max);
      assert.deepEqual(framesOf(header, [5], maxClientBodyBytes).length, max === 0 ? 1 : 0);
      writeHeader(header, 0, type, max + 1);
      for (const size of [5, 3, 1])
        assert.throws(
          () => framesOf(header, [size], maxClientBodyBytes),
          (error: unknown) => error instanceof WireError && error.code === "ERR_FRAME_TOO_LARGE",
        );
    }
    const header = new Uint8Array(HEADER_BYTES);
    writeHeader(header, 0, 0x05, MAX_BODY_BYTES + 1);
    assert.throws(() => framesOf(header, [5]), WireError);
  });

  it("holds no more than it was sent, whatever a header announces", () => {
    const decoder = new FrameDecoder(maxServerBodyBytes);
    const header = new Uint8Array(HEADER_BYTES);
    writeHeader(header, 0, 0x05, MAX_BODY_BYTES);
    decoder.push(header, () => assert.fail("no frame yet"));
    assert.equal(decoder.pendingBytes, HEADER_BYTES);
  });

  it("mutated and cut streams bring only WireError", () => {
    const valid = streamOf(vectors.frames.map(({ wire }) => wireOf(wire)));
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(valid.length - 1), fc.nat(255)), { minLength: 1, maxLength: 6 }),
        fc.nat(valid.length),
        fc.integer({ min: 1, max: 200 }),
        (changes, length, size) => {
          const wire = valid.slice(0, length);
          for (const [at, value] of changes) if (at < length) wire[at] = value;
          try {
            for (const frame of framesOf(wire, [size])) decodeFrame(frame[0], frame.subarray(HEADER_BYTES));
          } catch (error) {
            assert.ok(error instanceof WireError, String(error));
          }
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

describe("DERP ClientInfo and ServerInfo (ClientInfoUnmarshal)", () => {
  it("read back what was written", () => {
    const info = {
      version: 2,
      canAckPings: true,
      meshKey: "ab".repeat(32),
      isProber: true,
      appName: "x",
      peerGoneForAll: true,
      ticket: "AQID",
    };
    assert.deepEqual(decodeClientInfo(encodeClientInfo(info)), info);
    const server = { version: 2, tokenBucketBytesPerSecond: 5, tokenBucketBytesBurst: 6 };
    assert.deepEqual(decodeServerInfo(encodeServerInfo(server)), server);
  });

  it("leave out what is unset: deployed servers reject an empty meshKey", () => {
    const json = new TextDecoder().decode(encodeClientInfo({ version: 2, canAckPings: false }));
    assert.equal(json, '{"version":2,"CanAckPings":false}');
  });

  it("take either case of a name, null as absent, and ignore what they don't know", () => {
    const info = decodeClientInfo(
      utf8(`{"Version":2,"MeshKey":"${"AB".repeat(32)}","canackpings":true,"AppName":null,"new":[1]}`),
    );
    assert.equal(info.version, 2);
    assert.equal(info.meshKey, "AB".repeat(32));
    assert.equal(info.canAckPings, true);
    assert.equal(decodeClientInfo(utf8("{}")).meshKey, undefined);
    assert.equal(decodeClientInfo(utf8(`{"meshKey":"${"k9-".repeat(10)}xy"}`)).meshKey?.length, 32);
  });

  for (const json of [
    "",
    "null",
    "[]",
    "1",
    "{",
    '{"meshKey":""}',
    '{"meshKey":"0"}',
    `{"meshKey":"${"0".repeat(63)}"}`,
    `{"meshKey":"${"g".repeat(64)}"}`,
    '{"version":"2"}',
    '{"version":1.5}',
    '{"CanAckPings":1}',
  ])
    it(`refuse ${json || "nothing"}`, () => {
      assert.throws(() => decodeClientInfo(utf8(json)), WireError);
    });
});
