import assert from "node:assert/strict";
import fc from "fast-check";
import { REPLAY_WINDOW_PACKETS, ReplayWindow } from "./replay.ts";

const seed = 818_192;

describe("replay window", () => {
  it("takes each counter once, in any order within the window", () => {
    const window = new ReplayWindow();
    for (const counter of [5, 0, 3, 8191, 4, 1]) {
      assert.equal(window.accepts(counter), true);
      window.record(counter);
      assert.equal(window.accepts(counter), false);
    }
    assert.equal(window.accepts(2), true);
  });

  it("is exactly 8,192 packets wide", () => {
    for (const newest of [8_192, 8_223, 1_000_000, Number.MAX_SAFE_INTEGER]) {
      const window = new ReplayWindow();
      window.record(newest);
      assert.equal(window.accepts(newest - REPLAY_WINDOW_PACKETS + 1), true);
      assert.equal(window.accepts(newest - REPLAY_WINDOW_PACKETS), false);
    }
  });

  it("forgets nothing inside the window as it slides", () => {
    const window = new ReplayWindow();
    for (let counter = 0; counter < REPLAY_WINDOW_PACKETS; counter++) window.record(counter);
    for (let newest = REPLAY_WINDOW_PACKETS; newest < REPLAY_WINDOW_PACKETS + 40; newest++) {
      window.record(newest);
      for (let counter = newest - REPLAY_WINDOW_PACKETS + 1; counter <= newest; counter++)
        if (window.accepts(counter)) assert.fail(`${counter} again, newest ${newest}`);
    }
  });

  it("takes what is new where the ring held something else before", () => {
    const window = new ReplayWindow();
    const full = REPLAY_WINDOW_PACKETS + 32; // every word of the ring
    for (let counter = 0; counter < full; counter++) window.record(counter);
    for (const skipped of [31, 32, 64, full + 31]) {
      const newest = full + skipped;
      window.record(newest);
      for (let counter = newest - 1; counter >= newest - (newest % 32); counter--)
        assert.equal(window.accepts(counter), true, `${counter}, newest ${newest}`);
    }
  });

  it("changes nothing before a packet has authenticated", () => {
    const window = new ReplayWindow();
    window.record(1);
    assert.equal(window.accepts(1_000_000), true);
    assert.equal(window.accepts(0), true);
  });

  it("agrees with a set that forgets nothing", () => {
    const step = fc.oneof(
      { weight: 8, arbitrary: fc.integer({ min: -40, max: 40 }) },
      { weight: 2, arbitrary: fc.integer({ min: -8_300, max: 200 }) },
      { weight: 1, arbitrary: fc.integer({ min: 0, max: 20_000 }) },
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
        const window = new ReplayWindow();
        const seen = new Set<number>();
        let newest = -1;
        for (const delta of steps) {
          const counter = Math.max(0, newest + delta);
          const expected = !seen.has(counter) && counter > newest - REPLAY_WINDOW_PACKETS;
          assert.equal(window.accepts(counter), expected, `counter ${counter}, newest ${newest}`);
          if (!expected) continue;
          window.record(counter);
          seen.add(counter);
          newest = Math.max(newest, counter);
        }
      }),
      { seed, numRuns: 300 },
    );
  });
});
