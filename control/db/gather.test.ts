import assert from "node:assert/strict";
import { gathered } from "./gather.ts";

describe("gathered work", () => {
  /** A worker that doubles numbers, each batch when it is told to. */
  function doubling(maxAtOnce?: number) {
    const batches: number[][] = [];
    const steps: ((error?: Error) => void)[] = [];
    const arrivals: (() => void)[] = [];
    const double = gathered<number, number>((items) => {
      batches.push([...items]);
      arrivals.shift()?.();
      return new Promise((resolve, reject) =>
        steps.push((error) => (error ? reject(error) : resolve(items.map((item) => 2 * item)))),
      );
    }, maxAtOnce);
    return { batches, steps, double, arrival: () => new Promise<void>((resolve) => arrivals.push(resolve)) };
  }

  it("answers each of those who asked together or meanwhile, in one go", async () => {
    const { batches, steps, double, arrival } = doubling();
    const first = arrival();
    const answers = [double(1), double(2)];
    await first;
    answers.push(double(3), double(4));
    const second = arrival();
    steps[0]();
    await second;
    steps[1]();
    assert.deepEqual(await Promise.all(answers), [2, 4, 6, 8]);
    assert.deepEqual(batches, [
      [1, 2],
      [3, 4],
    ]);
  });

  it("fails those whose batch failed, and goes on with the next", async () => {
    const { batches, steps, double, arrival } = doubling(2);
    const first = arrival();
    const answers = [1, 2, 3].map(double);
    const outcomes = Promise.allSettled(answers);
    await first;
    const second = arrival();
    steps[0](new Error("away"));
    await second;
    steps[1]();
    assert.deepEqual(
      (await outcomes).map((outcome) =>
        outcome.status === "fulfilled" ? outcome.value : (outcome.reason as Error).message,
      ),
      ["away", "away", 6],
    );
    assert.deepEqual(batches, [[1, 2], [3]]);
  });
});
