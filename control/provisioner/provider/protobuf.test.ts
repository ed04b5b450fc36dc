import assert from "node:assert/strict";
import fc from "fast-check";
import { fromHex, toHex } from "../../../mesh/wire/bytes.ts";
import { ProviderError } from "./errors.ts";
import { bool, bytes, bytesMap, int, message, nested, repeated, string, strings } from "./protobuf.ts";
import { attributePath } from "./tfplugin5.ts";

const Inner = message({ name: string(1), flag: bool(2) });
const Outer = message({
  count: int(1),
  text: string(2),
  inner: nested(3, Inner),
  raw: bytes(4),
  tags: strings(5),
  items: repeated(6, Inner),
  table: bytesMap(16),
});
const EMPTY = {
  count: 0,
  text: "",
  inner: undefined,
  raw: new Uint8Array(),
  tags: [],
  items: [],
  table: new Map(),
};

// The first three are the examples of https://protobuf.dev/programming-guides/encoding/, the others by hand.
const vectors = [
  { name: "a varint", wire: "089601", value: { count: 150 } },
  { name: "a string", wire: "120774657374696e67", value: { text: "testing" } },
  { name: "a nested message", wire: "1a030a0161", value: { inner: { name: "a", flag: false } } },
  { name: "an empty nested message", wire: "1a00", value: { inner: { name: "", flag: false } } },
  { name: "repeated strings, the empty one too", wire: "2a01612a00", value: { tags: ["a", ""] } },
  {
    name: "repeated messages",
    wire: "3202100132030a0162",
    value: {
      items: [
        { name: "", flag: true },
        { name: "b", flag: false },
      ],
    },
  },
  { name: "a map", wire: "8201060a016b120107", value: { table: new Map([["k", Uint8Array.of(7)]]) } },
  {
    name: "a number of more than 32 bits",
    wire: "08ffffffffffffff0f",
    value: { count: Number.MAX_SAFE_INTEGER },
  },
];

const refused = [
  { name: "a number that never ends", wire: `08${"ff".repeat(11)}` },
  { name: "a number that is cut short", wire: "08ff" },
  { name: "a number above 2^53", wire: "08ffffffffffffff7f" },
  { name: "a string longer than the message", wire: "12ffffff7f61" },
  { name: "a string that is not UTF-8", wire: "1201ff" },
  { name: "another wire type than the field's", wire: "0a00" },
  { name: "field number 0", wire: "0001" },
  { name: "a group, which proto3 does not have", wire: "3b" },
  { name: "an unknown field that is cut short", wire: "f9010000" },
];

describe("the protocol buffers codec", () => {
  for (const { name, wire, value } of vectors)
    it(`reads and writes ${name}`, () => {
      assert.deepEqual(Outer.decode(fromHex(wire)), { ...EMPTY, ...value });
      assert.equal(toHex(Outer.encode(value)), wire);
    });

  for (const { name, wire } of refused)
    it(`refuses ${name}`, () =>
      assert.throws(() => Outer.decode(fromHex(wire)), { code: "ERR_PROVIDER_PROTOBUF" }));

  it("skips fields it does not know, of every wire type, and takes the last of a repeated single one", () => {
    const wire =
      "f801ffffffffffffffffff01" + "fa010161" + "f9010102030405060708" + "fd0101020304" + "0801" + "0802";
    assert.deepEqual(Outer.decode(fromHex(wire)), { ...EMPTY, count: 2 });
  });

  it("writes index 0 of a path, which a oneof must not leave out", () => {
    assert.equal(toHex(attributePath(["a", 0, 3])), "0a030a0161" + "0a021800" + "0a021803");
  });

  const anyInner = fc.record(
    { name: fc.string({ unit: "binary" }), flag: fc.boolean() },
    { noNullPrototype: true },
  );
  const anyOuter = fc.record(
    {
      count: fc.maxSafeNat(),
      text: fc.string({ unit: "binary" }),
      inner: fc.option(anyInner, { nil: undefined }),
      raw: fc.uint8Array(),
      tags: fc.array(fc.string()),
      items: fc.array(anyInner),
      table: fc.array(fc.tuple(fc.string(), fc.uint8Array())).map((entries) => new Map(entries)),
    },
    { noNullPrototype: true },
  );

  it("a message survives writing and reading", () => {
    fc.assert(fc.property(anyOuter, (value) => assert.deepEqual(Outer.decode(Outer.encode(value)), value)));
  });

  it("cut or changed bytes are read as something or refused, never worse", () => {
    fc.assert(
      fc.property(anyOuter, fc.nat(), fc.nat(255), fc.boolean(), (value, where, byte, cut) => {
        const wire = Outer.encode(value);
        const at = where % Math.max(wire.length, 1);
        const bad = cut || wire.length === 0 ? wire.subarray(0, at) : wire.with(at, byte);
        try {
          Outer.decode(bad);
        } catch (problem) {
          if (!(problem instanceof ProviderError)) throw problem;
        }
      }),
    );
  });
});
