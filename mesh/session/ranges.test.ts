import assert from "node:assert/strict";
import fc from "fast-check";
import { Deque } from "./deque.ts";
import { RangeSet } from "./ranges.ts";

const anyRange = fc
  .tuple(fc.nat(60), fc.nat(12))
  .map(([start, length]): [number, number] => [start, start + length]);
const anyStep = fc.oneof(
  anyRange.map((range) => ({ kind: "add" as const, range })),
  anyRange.map((range) => ({ kind: "remove" as const, range })),
  fc.nat(60).map((below) => ({ kind: "remove" as const, range: [0, below] as [number, number] })),
);

const between = ([start, end]: [number, number]): number[] =>
  Array.from({ length: end - start }, (_, i) => start + i);

describe("RangeSet", () => {
  it("holds what a plain set of integers would hold, in as few ranges as possible", () => {
    fc.assert(
      fc.property(fc.array(anyStep, { maxLength: 40 }), (steps) => {
        const ranges = new RangeSet();
        const model = new Set<number>();
        for (const { kind, range } of steps) {
          if (kind === "remove") {
            ranges.remove(...range);
            for (const value of between(range)) model.delete(value);
          } else {
            const expected = between(range).filter((value) => !model.has(value));
            const fresh: number[] = [];
            const count = ranges.add(...range, (start, end) => fresh.push(...between([start, end])));
            assert.deepEqual(fresh, expected);
            assert.equal(count, expected.length);
            for (const value of expected) model.add(value);
          }
        }
        for (let value = 0; value < 80; value++) assert.equal(ranges.contains(value), model.has(value));
        for (let i = 1; i < ranges.count; i++) assert.ok(ranges.end(i - 1) < ranges.start(i));
      }),
      { numRuns: 300 },
    );
  });
});

describe("Deque", () => {
  it("gives back in order, whatever the mix of pushes and shifts", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -3, max: 200 }), { maxLength: 60 }), (steps) => {
        const deque = new Deque<number>();
        const model: number[] = [];
        let next = 0;
        for (const step of steps) {
          for (let i = 0; i < step; i++) {
            deque.push(next);
            model.push(next++);
          }
          if (step === -1 && model.length > 0) {
            deque.unshift(deque.shift()!);
            deque.replaceLast(next);
            model[model.length - 1] = next++;
          }
          if (step === -2) for (let i = 0; i < 90; i++) assert.equal(deque.shift(), model.shift());
          assert.equal(deque.length, model.length);
          assert.equal(deque.at(0), model[0]);
          assert.equal(deque.last, model.at(-1));
        }
      }),
    );
  });
});
