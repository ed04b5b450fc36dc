import assert from "node:assert/strict";
import fc from "fast-check";
import { fromHex, toHex } from "../../../mesh/wire/bytes.ts";
import { ProviderError } from "./errors.ts";
import { decodeMsgpack, encodeMsgpack } from "./msgpack.ts";
import { ExactNumber, type ObjectValue, objectValue, type Type, UNKNOWN, type Value } from "./value.ts";

// Written out by hand from https://github.com/msgpack/msgpack/blob/master/spec.md.
const vectors: { name: string; type: Type; wire: string; value: Value; readOnly?: true }[] = [
  { name: "nil", type: "string", wire: "c0", value: null },
  { name: "false", type: "bool", wire: "c2", value: false },
  { name: "true", type: "bool", wire: "c3", value: true },
  { name: "positive fixint", type: "number", wire: "7f", value: 127 },
  { name: "negative fixint", type: "number", wire: "e0", value: -32 },
  { name: "int 64", type: "number", wire: "d30000000000000080", value: 128 },
  { name: "negative int 64", type: "number", wire: "d3ffffffffffffffdf", value: -33 },
  { name: "float 64", type: "number", wire: "cb3ff8000000000000", value: 1.5 },
  { name: "uint 8", type: "number", wire: "ccff", value: 255, readOnly: true },
  { name: "uint 16", type: "number", wire: "cd0100", value: 256, readOnly: true },
  { name: "uint 32", type: "number", wire: "ce80000000", value: 2 ** 31, readOnly: true },
  { name: "uint 64", type: "number", wire: "cf0000000100000000", value: 2 ** 32, readOnly: true },
  { name: "int 8", type: "number", wire: "d080", value: -128, readOnly: true },
  { name: "int 16", type: "number", wire: "d18000", value: -32768, readOnly: true },
  { name: "int 32", type: "number", wire: "d280000000", value: -(2 ** 31), readOnly: true },
  { name: "float 32", type: "number", wire: "ca3fc00000", value: 1.5, readOnly: true },
  { name: "a number as text", type: "number", wire: "a431653430", value: new ExactNumber("1e40") },
  {
    name: "a number above 2^53",
    type: "number",
    wire: "cfffffffffffffffff",
    value: new ExactNumber("18446744073709551615"),
    readOnly: true,
  },
  { name: "fixstr", type: "string", wire: "a3c3a96f", value: "éo" },
  { name: "str 8", type: "string", wire: `d920${"61".repeat(32)}`, value: "a".repeat(32) },
  { name: "str 16", type: "string", wire: `da0100${"61".repeat(256)}`, value: "a".repeat(256) },
  { name: "str 32", type: "string", wire: "db0000000161", value: "a", readOnly: true },
  { name: "unknown", type: "bool", wire: "d40000", value: UNKNOWN },
  { name: "unknown with refinements", type: "bool", wire: "c7020c8101", value: UNKNOWN, readOnly: true },
  {
    name: "unknown as fixext 16",
    type: "bool",
    wire: `d800${"00".repeat(16)}`,
    value: UNKNOWN,
    readOnly: true,
  },
  { name: "list", type: ["list", "bool"], wire: "93c2c0d40000", value: [false, null, UNKNOWN] },
  { name: "array 16", type: ["set", "bool"], wire: "dc0001c3", value: [true], readOnly: true },
  { name: "map", type: ["map", "number"], wire: "81a16b07", value: objectValue([["k", 7]]) },
  {
    name: "object",
    type: ["object", { a: "string", b: ["list", "string"] }],
    wire: "82a161a178a16290",
    value: objectValue([
      ["a", "x"],
      ["b", []],
    ]),
  },
  {
    name: "map 16",
    type: ["map", "bool"],
    wire: "de0001a95f5f70726f746f5f5fc3",
    value: objectValue([["__proto__", true]]),
    readOnly: true,
  },
];

const refused: { name: string; type: Type; wire: string }[] = [
  { name: "nothing", type: "string", wire: "" },
  { name: "a list of 2^32 - 1 items in five bytes", type: ["list", "bool"], wire: "ddffffffff" },
  { name: "a map of 2^32 - 1 entries in five bytes", type: ["map", "bool"], wire: "dfffffffff" },
  { name: "a string longer than the message", type: "string", wire: "dbffffffff61" },
  { name: "an ext longer than the message", type: "string", wire: "c9ffffffff00" },
  { name: "a string for a bool", type: "bool", wire: "a161" },
  { name: "a bool for a string", type: "string", wire: "c3" },
  { name: "a list for a map", type: ["map", "bool"], wire: "90" },
  { name: "text that is no number", type: "number", wire: "a16e" },
  { name: "text that is not UTF-8", type: "string", wire: "a1ff" },
  { name: "an attribute the type lacks", type: ["object", {}], wire: "81a161c0" },
  { name: "an attribute that is missing", type: ["object", { a: "bool" }], wire: "80" },
  { name: "an attribute given twice", type: ["object", { a: "bool", b: "bool" }], wire: "82a161c0a161c0" },
  { name: "an attribute called like one of Object's", type: ["object", {}], wire: "81a8746f537472696e67c0" },
  { name: "bytes behind the value", type: "bool", wire: "c3c3" },
  { name: "the byte that is never used", type: "bool", wire: "c1" },
];

/** Types as schemas nest them, each with its values. */
const typed: fc.Arbitrary<{ type: Type; value: Value }> = fc
  .letrec<{ type: Type }>((tie) => ({
    type: fc.oneof(
      { depthSize: "small", withCrossShrink: true },
      fc.constantFrom<Type>("string", "number", "bool"),
      fc
        .tuple(fc.constantFrom<"list" | "set" | "map">("list", "set", "map"), tie("type"))
        .map((x): Type => x),
      fc
        .dictionary(fc.string({ maxLength: 4 }), tie("type"), { maxKeys: 4 })
        .map((fields): Type => ["object", fields]),
    ),
  }))
  .type.chain((type) => valuesOf(type).map((value) => ({ type, value })));

function valuesOf(type: Type): fc.Arbitrary<Value> {
  const special: fc.Arbitrary<Value> = fc.constantFrom<Value>(null, UNKNOWN);
  const ordinary = (): fc.Arbitrary<Value> => {
    if (type === "string") return fc.string({ unit: "binary" });
    if (type === "bool") return fc.boolean();
    if (type === "number") return fc.oneof(fc.maxSafeInteger(), fc.double({ noNaN: true }));
    if (type[0] === "object")
      return fc
        .tuple(
          ...Object.entries(type[1]).map(([name, field]) => fc.tuple(fc.constant(name), valuesOf(field))),
        )
        .map((entries) => objectValue(entries));
    if (type[0] === "map")
      return fc
        .dictionary(fc.string({ maxLength: 4 }), valuesOf(type[1]), { maxKeys: 20 })
        .map((entries): ObjectValue => objectValue(Object.entries(entries)));
    return fc.array(valuesOf(type[1]), { maxLength: 20 });
  };
  return fc.oneof({ weight: 1, arbitrary: special }, { weight: 6, arbitrary: ordinary() });
}

describe("Terraform's values in MessagePack", () => {
  for (const { name, type, wire, value, readOnly } of vectors)
    it(`${name} ${readOnly ? "is read" : "is read and written"} as the format's text has it`, () => {
      assert.deepEqual(decodeMsgpack(fromHex(wire), type), value);
      if (!readOnly) assert.equal(toHex(encodeMsgpack(value, type)), wire);
    });

  for (const { name, type, wire } of refused)
    it(`${name} is refused`, () =>
      assert.throws(() => decodeMsgpack(fromHex(wire), type), { code: "ERR_PROVIDER_MSGPACK" }));

  it("a value survives writing and reading", () => {
    fc.assert(
      fc.property(typed, ({ type, value }) => {
        assert.deepEqual(decodeMsgpack(encodeMsgpack(value, type), type), value);
      }),
    );
  });

  it("cut or changed bytes are read as something or refused, never worse", () => {
    fc.assert(
      fc.property(typed, fc.nat(), fc.nat(255), fc.boolean(), ({ type, value }, where, byte, cut) => {
        const wire = encodeMsgpack(value, type);
        const at = where % wire.length;
        const bad = cut ? wire.subarray(0, at) : wire.with(at, byte);
        try {
          decodeMsgpack(bad, type);
        } catch (problem) {
          if (!(problem instanceof ProviderError)) throw problem;
        }
      }),
    );
  });

  it("writing refuses a value of another type", () => {
    assert.throws(() => encodeMsgpack("x", "bool"), { code: "ERR_PROVIDER_MSGPACK" });
    assert.throws(() => encodeMsgpack(objectValue(), ["object", { a: "bool" }]), {
      code: "ERR_PROVIDER_MSGPACK",
    });
    assert.throws(() => encodeMsgpack(objectValue([["b", null]]), ["object", {}]), {
      code: "ERR_PROVIDER_MSGPACK",
    });
  });
});
