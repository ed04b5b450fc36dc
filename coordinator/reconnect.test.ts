import assert from "node:assert/strict";
import fc from "fast-check";
import { reconnectDelayMs } from "./reconnect.ts";

/** Ms after the server listens that a node is connected, when every try before failed at once. */
function backAfterMs(outageMs: number, random: () => number): number {
  let at = 0;
  for (let failures = 0; ; failures++) {
    at += reconnectDelayMs({ failures, outageMs: at }, random());
    if (at >= outageMs) return at - outageMs;
  }
}

describe("reconnecting to the coordinator", () => {
  const random = fc.infiniteStream(fc.double({ min: 0, max: 0.999, noNaN: true }));
  const drawn = (stream: Iterator<number>) => () => stream.next().value as number;

  it("after an outage of less than a minute a node is back within 1.5 s", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 58_000 }), random, (outageMs, stream) => {
        assert.ok(backAfterMs(outageMs, drawn(stream[Symbol.iterator]())) <= 1_500);
      }),
    );
  });

  it("after a long one nodes come back spread, each within 22.5 s", () => {
    fc.assert(
      fc.property(fc.integer({ min: 900_000, max: 4_000_000 }), random, (outageMs, stream) => {
        assert.ok(backAfterMs(outageMs, drawn(stream[Symbol.iterator]())) <= 22_500);
      }),
    );
    // As many in the first second as in any other, give or take: nobody is in step with the outage.
    let seed = 1;
    const lcg = () => {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
      return seed / 2 ** 31;
    };
    const waits = Array.from({ length: 2_000 }, () => backAfterMs(1_800_000, lcg));
    const perSecond = Array.from(
      { length: 15 },
      (_, s) => waits.filter((ms) => Math.floor(ms / 1000) === s).length,
    );
    assert.ok(Math.max(...perSecond) < 2_000 / 8, perSecond.join(" "));
  });

  it("never waits less than a tenth of a second, whatever failed", () => {
    fc.assert(
      fc.property(fc.nat(1e6), fc.nat(1e9), random, (failures, outageMs, stream) => {
        const ms = reconnectDelayMs({ failures, outageMs }, drawn(stream[Symbol.iterator]())());
        assert.ok(ms >= 100 && ms <= 22_500);
      }),
    );
  });
});
