import assert from "node:assert/strict";
import fc from "fast-check";
import { FairQueue } from "./queue.ts";

/** A queue that keeps books of what it dropped. */
function counted() {
  const dropped = { frames: 0, disco: 0, bytes: 0 };
  const queue = new FairQueue<string>(limits, ({ frames, disco, bytes }) => {
    dropped.frames += frames;
    dropped.disco += disco;
    dropped.bytes += bytes;
  });
  return { queue, dropped };
}

const limits = { maxBytes: 10_000, maxAgeMs: 50, keepBytes: 4_000 };
const packet = (bytes: number, tag = 0): Uint8Array => new Uint8Array(bytes).fill(tag);
function drain(queue: FairQueue<string>): Uint8Array[] {
  const out: Uint8Array[] = [];
  for (let item = queue.shift(); item; item = queue.shift()) out.push(item.bytes);
  return out;
}

describe("relay queue", () => {
  it("drops the oldest when it holds too many bytes", () => {
    const { queue, dropped } = counted();
    for (let i = 0; i < 12; i++) queue.push("a", packet(1_000, i), 1, 0);
    assert.deepEqual(
      drain(queue).map((bytes) => bytes[0]),
      [2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    );
    assert.equal(dropped.frames, 2);
    assert.equal(dropped.bytes, 2_000);
  });

  it("drops the sender's oldest that waited too long, but keeps a burst however old", () => {
    const { queue, dropped } = counted();
    for (let i = 0; i < 6; i++) queue.push("a", packet(1_000, i), 1, 0);
    queue.push("a", packet(1_000, 6), 1, 50);
    assert.equal(dropped.frames, 0);
    queue.push("a", packet(1_000, 7), 1, 51);
    assert.deepEqual(
      drain(queue).map((bytes) => bytes[0]),
      [4, 5, 6, 7],
    );
  });

  it("a flood drops its own packets, not those of others", () => {
    const { queue } = counted();
    queue.push("quiet", packet(500, 1), 1, 0);
    for (let i = 0; i < 100; i++) queue.push("flood", packet(1_000, 2), 1, 0);
    assert.equal(drain(queue).filter((bytes) => bytes[0] === 1).length, 1);
  });

  it("a quiet sender waits for no more than one round of each other", () => {
    const queue = new FairQueue<string>({ maxBytes: 1 << 20, maxAgeMs: 1_000, keepBytes: 1 << 20 });
    for (let i = 0; i < 10; i++) queue.push("flood", packet(60_000, 2), 1, 0);
    queue.push("quiet", packet(100, 1), 1, 0);
    assert.ok(drain(queue).findIndex((bytes) => bytes[0] === 1) <= 1);
  });

  it("forgets everything at once, and tells what that was", () => {
    const { queue, dropped } = counted();
    queue.push("a", packet(100), 2, 0, 1);
    queue.push("b", packet(50), 1, 0);
    const lost: number[] = [];
    queue.clear(({ bytes }) => lost.push(bytes));
    assert.deepEqual([lost, queue.bytes, queue.frames, queue.shift()], [[100, 50], 0, 0, undefined]);
    assert.equal(dropped.frames, 0);
  });

  it("does not keep a large read buffer alive for a small packet in it", () => {
    const { queue } = counted();
    queue.push("a", new Uint8Array(65_536).subarray(10, 110), 1, 0);
    assert.equal(queue.shift()?.bytes.buffer.byteLength, 100);
  });

  it("keeps each sender's order, its books and its bound, whatever happens", () => {
    const step = fc.oneof(
      fc.record({
        kind: fc.constant("push" as const),
        source: fc.constantFrom("a", "b", "c"),
        bytes: fc.integer({ min: 1, max: 3_000 }),
        afterMs: fc.nat(30),
      }),
      fc.record({ kind: fc.constant("shift" as const) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const { queue, dropped } = counted();
        const last = new Map<number, number>();
        let now = 0;
        let serial = 0;
        let inBytes = 0;
        let outBytes = 0;
        const take = (bytes: Uint8Array): void => {
          const view = new DataView(bytes.buffer, bytes.byteOffset);
          const source = view.getUint8(0);
          const number = view.getUint32(1);
          assert.ok(number > (last.get(source) ?? -1));
          last.set(source, number);
          outBytes += bytes.length;
        };
        for (const one of steps) {
          if (one.kind === "shift") {
            const item = queue.shift();
            if (item) take(item.bytes);
            continue;
          }
          now += one.afterMs;
          const bytes = packet(one.bytes + 5);
          bytes[0] = one.source.charCodeAt(0);
          new DataView(bytes.buffer).setUint32(1, serial++);
          queue.push(one.source, bytes, 1, now);
          inBytes += bytes.length;
          assert.ok(queue.bytes <= limits.maxBytes);
        }
        for (const bytes of drain(queue)) take(bytes);
        assert.equal(inBytes, outBytes + dropped.bytes);
        assert.deepEqual([queue.bytes, queue.frames], [0, 0]);
      }),
    );
  });
});
