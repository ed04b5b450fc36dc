// What a lane lets be in flight, from times and sizes alone.
import assert from "node:assert/strict";
import { Lane } from "./lane.ts";
import type { SentPacket } from "./recovery.ts";

const BASE_RTT_MS = 1;
const PACKET_BYTES = 10_000;

/** A line that carries `bytesPerMs(round)`, and a sender that is never short of bytes. */
class Line {
  readonly lane = new Lane(0, 0);
  readonly #bytesPerMs: (nowMs: number) => number;
  now = 0;
  /** When the last packet on the line will have passed. */
  #freeAt = 0;
  readonly #underWay: { packet: SentPacket; arrivesAt: number }[] = [];
  largestFlight = 0;

  constructor(bytesPerMs: (nowMs: number) => number) {
    this.#bytesPerMs = bytesPerMs;
  }

  runUntil(endMs: number): void {
    while (this.now < endMs) {
      while (this.lane.hasRoom) this.#send();
      const next = this.#underWay.shift();
      if (next === undefined) throw new Error("nothing is under way");
      this.now = next.arrivesAt;
      this.lane.outstanding.shift();
      this.lane.onAcked(next.packet, this.now);
      this.lane.onRtt(this.now - next.packet.sentAt, this.now);
      this.lane.onDelivered(next.packet, this.now);
    }
  }

  #send(): void {
    const packet = {
      lane: this.lane,
      bytes: PACKET_BYTES,
      sentAt: this.now,
      frames: [],
      state: "sent",
    } as unknown as SentPacket;
    this.lane.onSent(packet, this.now);
    this.#freeAt = Math.max(this.#freeAt, this.now) + PACKET_BYTES / this.#bytesPerMs(this.now);
    this.#underWay.push({ packet, arrivesAt: this.#freeAt + BASE_RTT_MS });
    this.largestFlight = Math.max(this.largestFlight, this.lane.inFlightBytes);
  }
}

describe("a lane's flight", () => {
  it("is sized by the usual rate, not by that of the best moment", () => {
    const usual = 50_000;
    const line = new Line((nowMs) => (nowMs % 80 < 20 ? 4 * usual : usual));
    line.runUntil(2_000);
    const { maxInFlightBytes, rateBytesPerSecond, minRttMs = 0 } = line.lane.stats();
    const best = rateBytesPerSecond / 1_000;
    assert.ok(best > 1.5 * usual, `best moment ${best}`);
    const queue = maxInFlightBytes - best * minRttMs;
    assert.ok(queue < best * 5 * 0.75, `queue of ${queue} bytes at ${best} bytes/ms`);
    assert.ok(queue > usual * 4, `queue of ${queue} bytes, usual rate ${usual} bytes/ms`);
  });

  it("does not grow while the base round trip is measured anew", () => {
    const line = new Line(() => 50_000);
    line.runUntil(9_000);
    line.largestFlight = 0;
    line.runUntil(9_500);
    const before = line.largestFlight;
    assert.ok(before > 0);
    line.largestFlight = 0;
    line.runUntil(32_000);
    assert.ok(line.largestFlight <= before, `${line.largestFlight} bytes after ${before}`);
    const { minRttMs = Infinity } = line.lane.stats();
    assert.ok(minRttMs <= BASE_RTT_MS * 1.5, `base round trip taken for ${minRttMs} ms`);
  });
});
