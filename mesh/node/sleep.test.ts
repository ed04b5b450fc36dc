import assert from "node:assert/strict";
import { type Clocks, SLEPT_MS, SleepDetector, STOPPED_MS } from "./sleep.ts";

const TICK_MS = 1_000;
const at = (monotonicMs: number, wallMs = monotonicMs, uptimeMs = monotonicMs): Clocks => ({
  monotonicMs,
  wallMs,
  uptimeMs,
});
const after = (clocks: Clocks): number | undefined => new SleepDetector(TICK_MS, at(0)).check(clocks);

describe("noticing sleep", () => {
  it("time that the monotonic clock did not count was slept", () => {
    assert.equal(after(at(1_000, 61_000)), 60_000);
    assert.equal(after(at(1_000, 1_000, 61_000)), 60_000);
  });
  it("so was time in which no timer fired", () => {
    assert.equal(after(at(TICK_MS + STOPPED_MS + 1)), STOPPED_MS + 1);
  });
  it("a busy event loop, a slow clock and one set back are no sleep", () => {
    assert.equal(after(at(5_000)), undefined);
    assert.equal(after(at(1_000, 1_000 + SLEPT_MS)), undefined);
    assert.equal(after(at(1_000, -3_600_000)), undefined);
  });
  it("a sleep is told once", () => {
    const detector = new SleepDetector(TICK_MS, at(0));
    assert.equal(detector.check(at(1_000, 61_000)), 60_000);
    assert.equal(detector.check(at(2_000, 62_000)), undefined);
  });
});
