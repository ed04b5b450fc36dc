import assert from "node:assert/strict";
import { AckTracker, MAX_ACK_DELAY_MS } from "./acks.ts";

describe("AckTracker", () => {
  it("acknowledges every second packet at once, a lone one after a moment, a gap or a PING at once", () => {
    const acks = new AckTracker();
    acks.onPacket(0, 1, false, 100);
    assert.equal(acks.isDue(1, 100), false);
    assert.equal(acks.nextTimeout(), 100 + MAX_ACK_DELAY_MS);
    assert.equal(acks.isDue(1, 100 + MAX_ACK_DELAY_MS), true);
    acks.onPacket(1, 1, false, 101);
    assert.equal(acks.isDue(1, 101), true);
    assert.equal(acks.nextTimeout(), undefined); // it waits for the lane, not for time
    acks.onSent(1, 0);
    acks.onPacket(3, 1, false, 102);
    assert.equal(acks.isDue(1, 102), true);
    acks.onSent(1, 0);
    acks.onPacket(4, 1, true, 103);
    assert.equal(acks.isDue(1, 103), true);
  });

  it("acknowledges large packets by fours, or by twos once the last ACK is a moment old", () => {
    const acks = new AckTracker();
    const large = 65_000;
    acks.onPacket(0, 1, false, 100, large);
    acks.onPacket(1, 1, false, 100, large);
    assert.equal(acks.isDue(1, 100), true, "the first two: no ACK has left yet");
    acks.onSent(1, 100);
    acks.onPacket(2, 1, false, 100.2, large);
    acks.onPacket(3, 1, false, 100.2, large);
    assert.equal(acks.isDue(1, 100.2), false);
    assert.equal(acks.nextTimeout(), 101, "a sender that waits hears within a millisecond");
    assert.equal(acks.isDue(1, 101), true);
    acks.onPacket(4, 1, false, 100.3, large);
    assert.equal(acks.isDue(1, 100.3), false);
    acks.onPacket(5, 1, false, 100.3, large);
    assert.equal(acks.isDue(1, 100.3), true);
    acks.onSent(1, 100.3);
    acks.onPacket(6, 1, false, 102, large);
    assert.equal(acks.nextTimeout(), 102 + MAX_ACK_DELAY_MS, "a lone one waits for company as ever");
    acks.onPacket(7, 1, false, 102, large);
    assert.equal(acks.isDue(1, 102), true);
    acks.onSent(1, 102);
    acks.onPacket(8, 1, false, 102.1, 4_096);
    acks.onPacket(9, 1, false, 102.1, 4_096);
    assert.equal(acks.isDue(1, 102.1), true, "small ones come of a sender that has little under way");
  });

  it("answers each lane for the packet that came on it, with the time it waited", () => {
    const acks = new AckTracker();
    acks.onPacket(5, 1, false, 100);
    acks.onPacket(6, 2, false, 101);
    assert.deepEqual(acks.peek(1, 103), { kind: "ack", echo: 5, delayUs: 3_000, ranges: [[5, 6]] });
    assert.deepEqual(acks.peek(2, 103), { kind: "ack", echo: 6, delayUs: 2_000, ranges: [[5, 6]] });
    assert.equal(acks.peek(3, 103), undefined);
  });

  it("stops repeating what the peer knows, but reports a packet that comes late on a slow lane", () => {
    const acks = new AckTracker();
    for (const number of [0, 1, 5, 6]) acks.onPacket(number, 1, true, 100);
    assert.deepEqual(acks.peek(1, 100)?.ranges, [
      [5, 6],
      [0, 1],
    ]);
    acks.onAckAcked(6);
    acks.onPacket(9, 1, true, 101);
    assert.deepEqual(acks.peek(1, 101)?.ranges, [[9, 9]]);
    acks.onPacket(3, 2, true, 102);
    assert.deepEqual(acks.peek(2, 102)?.ranges, [
      [9, 9],
      [5, 6],
      [3, 3],
    ]);
    assert.equal(acks.peek(2, 102)?.echo, 3);
  });

  it("what a dead lane owed another one pays", () => {
    const acks = new AckTracker();
    acks.onPacket(0, 1, false, 100);
    acks.moveLane(1, 2);
    assert.equal(acks.isDue(1, 999), false);
    assert.equal(acks.isDue(2, 100), true);
    acks.moveLane(2, undefined);
    assert.equal(acks.nextTimeout(), undefined);
  });
});
