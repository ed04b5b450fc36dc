// Some thousand changed inputs for every parser that a stranger can reach; a million each: test/soak/fuzz.ts.
import assert from "node:assert/strict";
import { type Failure, fuzz, type Instance, replay, reproduction, type Target } from "./engine.ts";
import { targets } from "./index.ts";

const SEED = 20_261;
const INPUTS = 1_200;
/** Ten times what a target takes on a busy machine. */
const LIMIT_MS = 60_000;

const told = (failure: Failure): string => `seed ${SEED}: ${failure.message}\n  ${reproduction(failure)}`;

describe(`fuzzing, seed ${SEED}`, () => {
  for (const target of targets)
    it(`${target.name} keeps its promises whatever comes in`, async function () {
      this.timeout(LIMIT_MS);
      const report = await fuzz(target, { seed: SEED, inputs: target.shortInputs ?? INPUTS });
      assert.deepEqual(report.failures.map(told), []);
      assert.ok(report.outcomes.size > 1, "every input had the same outcome: is it reached at all?");
    });
});

/** Fails on what ends in "!", once it has met a "?". */
const fragile: Target = {
  name: "fragile",
  format: "bytes",
  seeds: [Buffer.from("hello?"), Buffer.from("hello!")],
  inputsPerInstance: 50,
  open(): Instance {
    let isPrepared = false;
    return {
      run(input) {
        const text = Buffer.from(input).toString("latin1");
        if (isPrepared && text.endsWith("!")) throw new RangeError("broken");
        isPrepared ||= text.includes("?");
        return String(isPrepared);
      },
    };
  },
};

describe("the fuzzer", () => {
  it("finds a failure that takes two inputs, and shrinks it to a byte each", async () => {
    const { failures } = await fuzz(fragile, { seed: 1, inputs: 1_000 });
    assert.equal(failures.length, 1);
    assert.deepEqual(
      failures[0].inputs.map((input) => Buffer.from(input).toString("latin1")),
      ["?", "!"],
    );
    assert.ok((await replay(fragile, failures[0].inputs)) instanceof RangeError);
    assert.match(reproduction(failures[0]), /--target fragile --replay 3f,21$/);
  });

  it("does the same again for the same seed, and something else for another", async () => {
    const inputsOf = async (seed: number): Promise<string> => {
      const seen: string[] = [];
      const onInput = (input: Uint8Array): void => void seen.push(Buffer.from(input).toString("hex"));
      await fuzz({ ...fragile, open: () => ({ run: () => "" }) }, { seed, inputs: 200, onInput });
      return seen.join();
    };
    assert.equal(await inputsOf(7), await inputsOf(7));
    assert.notEqual(await inputsOf(7), await inputsOf(8));
  });

  it("takes an input that keeps a parser busy each time for a failure", async () => {
    const slow: Target = {
      ...fragile,
      name: "slow",
      open: () => ({
        run(input) {
          const untilAt = performance.now() + (input.length > 4 ? 60 : 0);
          while (performance.now() < untilAt);
          return String(input.length);
        },
      }),
    };
    const { failures } = await fuzz(slow, { seed: 1, inputs: 2 });
    assert.match(failures[0].message, /took longer than/);
  });
});
