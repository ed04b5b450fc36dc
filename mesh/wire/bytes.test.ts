import assert from "node:assert/strict";
import fc from "fast-check";
import { fromBase64, fromHex, toBase64, toHex } from "./bytes.ts";
import { WireError } from "./errors.ts";
import { ByteReader, varintBytes, writeVarint } from "./varint.ts";

describe("byte helpers", () => {
  // RFC 9000 appendix A.1
  for (const [wire, value] of [
    ["9d7f3e7d", 494_878_333],
    ["7bbd", 15_293],
    ["25", 37],
    ["4025", 37],
  ] as const) {
    it(`reads the published varint ${wire}`, () =>
      assert.equal(new ByteReader(fromHex(wire)).varint(), value));
  }

  it("every varint reads back, in the length announced", () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (value) => {
        const out = new Uint8Array(8);
        const end = writeVarint(out, 0, value);
        assert.equal(end, varintBytes(value));
        assert.equal(new ByteReader(out.subarray(0, end)).varint(), value);
      }),
    );
  });

  it("a varint above 2^53 - 1 is refused, not rounded", () => {
    assert.throws(() => new ByteReader(fromHex("ffffffffffffffff")).varint(), WireError);
  });

  it("a reader never reads past the end", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 7 }), (bytes) => {
        assert.throws(() => new ByteReader(bytes).take(8), WireError);
      }),
    );
  });

  it("base64 and hex read back and refuse everything else", () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        assert.deepEqual(fromBase64(toBase64(bytes)), bytes);
        assert.deepEqual(fromHex(toHex(bytes)), bytes);
      }),
    );
    for (const text of ["abc", "zz", "0x"]) assert.throws(() => fromHex(text), WireError);
    for (const text of ["a", "QQ", "QR==", "Q Q="]) assert.throws(() => fromBase64(text), WireError);
  });
});
