// What fuzzing found, each once more.
import assert from "node:assert/strict";
import vectors from "../vectors/fuzz.json" with { type: "json" };
import { replay } from "./engine.ts";
import { targets } from "./index.ts";

describe("what fuzzing found stays found", () => {
  for (const { name, target, input } of vectors.found)
    it(`${target}: ${name}`, async () => {
      const found = targets.find((one) => one.name === target);
      assert.ok(found, `no target ${target}`);
      const text = (input as [string, number][]).map(([piece, times]) => piece.repeat(times)).join("");
      const error = await replay(found, [Uint8Array.from(Buffer.from(text, "latin1"))]);
      if (error !== undefined) throw error;
    });
});
