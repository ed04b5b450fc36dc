import assert from "node:assert/strict";
import fc from "fast-check";
import vectors from "../../test/vectors/forward.json" with { type: "json" };
import { concatBytes, fromHex, utf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import {
  type Answer,
  AnswerDecoder,
  CallbackMetadata,
  decodeMetadata,
  encodeAnswer,
  encodeMetadata,
  hostPortService,
  ListenMetadata,
  MAX_ANSWER_BYTES,
  MAX_METADATA_BYTES,
  parseHostPort,
  SessionsMetadata,
  SpeedtestMetadata,
} from "./forward.ts";

const hex = (text: string) => fromHex(text.replaceAll(" ", ""));
const SCHEMAS = {
  listen: ListenMetadata,
  callback: CallbackMetadata,
  speedtest: SpeedtestMetadata,
  sessions: SessionsMetadata,
} as const;

/** @returns the answer and how many bytes came behind it, however the wire is cut */
function decode(
  wire: Uint8Array,
  size = wire.length || 1,
): { answer: Answer | undefined; restBytes: number } {
  const decoder = new AnswerDecoder();
  for (let at = 0; at < wire.length; at += size) {
    const answer = decoder.push(wire.subarray(at, at + size));
    if (answer) return { answer, restBytes: answer.rest.length + Math.max(0, wire.length - at - size) };
  }
  return { answer: undefined, restBytes: 0 };
}

describe("forward answers", () => {
  for (const vector of vectors.answers) {
    const wire = hex(vector.wire);
    if (vector.bad !== undefined) {
      it(`${vector.name} is refused with ${vector.bad}`, () =>
        assert.throws(() => decode(wire), { code: vector.bad }));
      continue;
    }
    it(`${vector.name} is read from the published bytes`, () => {
      const { answer, restBytes } = decode(wire);
      assert.deepEqual([answer?.status, answer?.text, restBytes], [vector.status, vector.text, 0]);
    });
    if (vector.notCanonical !== true)
      it(`${vector.name} encodes to the published bytes`, () =>
        assert.deepEqual(encodeAnswer(vector.status, vector.text), wire));
  }

  it("is read the same however the stream is cut, and what follows it stays whole", () => {
    const seed = Math.floor(Math.random() * 2 ** 31);
    console.log(`      seed ${seed}`);
    fc.assert(
      fc.property(
        fc.nat(255),
        fc.string({ unit: "grapheme", maxLength: 200 }),
        fc.uint8Array({ maxLength: 50 }),
        fc.integer({ min: 1, max: 40 }),
        (status, text, behind, size) => {
          const { answer, restBytes } = decode(concatBytes(encodeAnswer(status, text), behind), size);
          assert.deepEqual([answer?.status, answer?.text, restBytes], [status, text, behind.length]);
        },
      ),
      { seed },
    );
  });

  it("a cut one is never taken for whole, a mangled one throws WireError or reads as another", () => {
    const wire = encodeAnswer(2, "a reason of some length");
    for (let length = 0; length < wire.length; length++)
      assert.equal(decode(wire.subarray(0, length)).answer, undefined);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
        try {
          decode(bytes);
        } catch (error) {
          assert.ok(error instanceof WireError, String(error));
        }
      }),
    );
  });

  it("carries as much as the header promises, and no more", () => {
    const longest = "x".repeat(MAX_ANSWER_BYTES);
    assert.equal(decode(encodeAnswer(0, longest)).answer?.text, longest);
    assert.throws(() => encodeAnswer(0, `${longest}x`), { code: "ERR_FRAME_TOO_LARGE" });
  });
});

describe("forward targets", () => {
  for (const { service, target } of vectors.targets)
    it(`${JSON.stringify(service)} names ${target ? `port ${target.port} of ${target.host}` : "no target"}`, () => {
      assert.deepEqual(parseHostPort(service), target ?? undefined);
      if (target) {
        const { protocol, host, port } = target;
        assert.equal(hostPortService(protocol as "tcp" | "udp", host, port), service);
      }
    });
});

describe("forward metadata", () => {
  for (const { name, kind, json, ok } of vectors.metadata)
    it(`${name} is ${ok ? "read" : "refused"}`, () => {
      const read = () => decodeMetadata(SCHEMAS[kind as keyof typeof SCHEMAS], utf8(json));
      if (!ok) return assert.throws(read, { code: "ERR_BAD_VALUE" });
      const value = read();
      assert.deepEqual(decodeMetadata(SCHEMAS[kind as keyof typeof SCHEMAS], encodeMetadata(value)), value);
    });

  it("too much of it is refused before it is parsed", () =>
    assert.throws(() => decodeMetadata(SessionsMetadata, new Uint8Array(MAX_METADATA_BYTES + 1)), {
      code: "ERR_FRAME_TOO_LARGE",
    }));
});
