import assert from "node:assert/strict";
import { toHex } from "../wire/bytes.ts";
import { isLater, Tai64nClock } from "./tai64n.ts";

describe("TAI64N", () => {
  it("writes 2^62 + 10 + Unix seconds, then nanoseconds", () => {
    assert.equal(toHex(new Tai64nClock().next(1)), "400000000000000a000f4240");
    assert.equal(toHex(new Tai64nClock().next(1_700_000_000_250)), "400000006553f10a0ee6b280");
    assert.equal(toHex(new Tai64nClock().next((2 ** 32 - 10) * 1000 + 1)), "4000000100000000000f4240");
    assert.equal(toHex(new Tai64nClock().next(2 ** 32 * 1000 + 1)), "400000010000000a000f4240");
  });

  it("goes on by a nanosecond when the wall clock stands still or goes back", () => {
    const clock = new Tai64nClock();
    const stamps = [1_000.999999, 1_000.999999, 5, -7, 999, 1_001].map((wallClockMs) =>
      clock.next(wallClockMs),
    );
    for (let i = 1; i < stamps.length; i++) {
      assert.ok(isLater(stamps[i], stamps[i - 1]), `${i}`);
      assert.ok(!isLater(stamps[i - 1], stamps[i]));
    }
    assert.ok(!isLater(stamps[0], stamps[0]));
  });

  it("carries nanoseconds into seconds", () => {
    const clock = new Tai64nClock();
    assert.equal(toHex(clock.next(999.999999)), "400000000000000a3b9ac9ff");
    assert.equal(toHex(clock.next(0)), "400000000000000b00000000");
  });
});
