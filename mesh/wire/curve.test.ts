import assert from "node:assert/strict";
import { fromHex } from "./bytes.ts";
import { isCanonicalPublicKey } from "./curve.ts";

describe("a Curve25519 public key", () => {
  const ff30 = "ff".repeat(30);
  for (const [what, key, is] of [
    ["zero", "00".repeat(32), true],
    ["2^255 - 20, the largest", `ec${ff30}7f`, true],
    ["2^255 - 19, another zero", `ed${ff30}7f`, false],
    ["2^255 - 1", `ff${ff30}7f`, false],
    ["2^255, another zero", `${"00".repeat(31)}80`, false],
    ["less by one bit in the middle", `ff${"ff".repeat(14)}fe${"ff".repeat(15)}7f`, true],
    ["31 bytes", "00".repeat(31), false],
  ] as const)
    it(`${what} is ${is ? "" : "not "}as it is written`, () => {
      assert.equal(isCanonicalPublicKey(fromHex(key)), is);
    });
});
