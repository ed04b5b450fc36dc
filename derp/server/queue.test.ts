import assert from "node:assert/strict";
import fc from "fast-check";
import { FairQueue } from "./queue.ts";

const limits = { maxBytes: 10_000, maxAgeMs: 50, keepBytes: 4_000 };
const packet = (bytes: number, tag = 0): Uint8Array => new Uint8Array(bytes).fill(tag);
function drain(queue: FairQueue<string>): Uint8Array[] {
  const out: Uint8Array[] = [];
  for (let bytes = queue.shift(); bytes; bytes = queue.shift()) out.push(bytes);
  return out;
}

describe("relay queue", () => {
  it("drops the oldest when it holds too many bytes", () => {
    const queue = new FairQueue<string>(limits);
    for (let i = 0; i < 12; i++) queue.push("a", packet(1_000, i), 1, 0);
    assert.deepEqual(
      drain(queue).map((bytes) => bytes[0]),
      [2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    );
    assert.equal(queue.droppedFrames, 2);
    assert.equal(queue.droppedBytes, 2_000);
  });

  it("drops the sender's oldest that waited too long, but keeps a burst however old", () => {
    const queue = new FairQueue<string>(limits);
    for (let i = 0; i < 6; i++) queue.push("a", packet(1_000, i), 1, 0);
    queue.push("a", packet(1_000, 6), 1, 50);
    assert.equal(queue.droppedFrames, 0);
    queue.push("a", packet(1_000, 7), 1, 51);
    assert.deepEqual(
      drain(queue).map((bytes) => bytes[0]),
      [4, 5, 6, 7],
    );
  });

  it("a flood drops its own packets, not those of others", () => {
    const queue = new FairQueue<string>(limits);
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

  it("does not keep a large read buffer alive for a small packet in it", () => {
    const queue = new FairQueue<string>(limits);
    queue.push("a", new Uint8Array(65_536).subarray(10, 110), 1, 0);
    assert.equal(queue.shift()?.buffer.byteLength, 100);
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
        const queue = new FairQueue<string>(limits);
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
            const bytes = queue.shift();
            if (bytes) take(bytes);
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
        assert.equal(inBytes, outBytes + queue.droppedBytes);
        assert.deepEqual([queue.bytes, queue.frames], [0, 0]);
      }),
    );
  });
});
