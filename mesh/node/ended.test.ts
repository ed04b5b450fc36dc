import assert from "node:assert/strict";
import { toHex } from "../wire/bytes.ts";
import { ENDED_KEPT_MS, EndedSessions, MAX_ENDED } from "./ended.ts";

const idOf = (n: number) => Uint8Array.of(...Array<number>(12).fill(0), n >>> 24, n >>> 16, n >>> 8, n);

describe("sessions an agent remembers to be over", () => {
  it("are known by their peer and id, for a day", () => {
    const ended = new EndedSessions();
    ended.add("a", toHex(idOf(1)), 0);
    assert.ok(ended.has("a", idOf(1)));
    assert.ok(!ended.has("b", idOf(1)));
    assert.ok(!ended.has("a", idOf(2)));
    ended.add("a", toHex(idOf(2)), ENDED_KEPT_MS);
    assert.deepEqual([ended.has("a", idOf(1)), ended.has("a", idOf(2))], [false, true]);
  });

  it("are bounded: the oldest are forgotten", () => {
    const ended = new EndedSessions();
    for (let i = 0; i < MAX_ENDED + 10; i++) ended.add("a", toHex(idOf(i)), i);
    assert.equal(ended.size, MAX_ENDED);
    assert.deepEqual([ended.has("a", idOf(9)), ended.has("a", idOf(10))], [false, true]);
  });
});
