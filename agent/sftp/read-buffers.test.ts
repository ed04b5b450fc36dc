import assert from "node:assert/strict";
import { ReadBuffers } from "./read-buffers.ts";

const CAPACITY_BYTES = 256 * 1024;

describe("ReadBuffers", () => {
  it("sends a copy of a short read, and reads into the same buffer again", () => {
    const buffers = new ReadBuffers(CAPACITY_BYTES, 2);
    const first = buffers.take(CAPACITY_BYTES);
    first.fill(1, 0, 100);
    const sent = buffers.settle(first, 100);
    const second = buffers.take(200_000);
    assert.equal(second, first);
    second.fill(2, 0, 100);
    assert.deepEqual(sent, Buffer.alloc(100, 1), "what waits to be sent must not change");
    assert.equal(sent.length, 100);
  });

  it("hands a well filled buffer on, and never takes it back", () => {
    const buffers = new ReadBuffers(CAPACITY_BYTES, 2);
    const buffer = buffers.take(CAPACITY_BYTES);
    assert.equal(buffers.settle(buffer, CAPACITY_BYTES), buffer);
    assert.equal(buffers.spare, 0);
    assert.notEqual(buffers.take(CAPACITY_BYTES), buffer);
  });

  it("takes a buffer back that nothing was read into", () => {
    const buffers = new ReadBuffers(CAPACITY_BYTES, 2);
    buffers.settle(buffers.take(CAPACITY_BYTES), 0);
    assert.equal(buffers.spare, 1);
  });

  it("keeps no more unused buffers than it was told to", () => {
    const buffers = new ReadBuffers(CAPACITY_BYTES, 2);
    const taken = [1, 2, 3].map(() => buffers.take(CAPACITY_BYTES));
    for (const buffer of taken) buffers.settle(buffer, 1);
    assert.equal(buffers.spare, 2);
  });

  it("gives small requests a buffer of their own", () => {
    const buffers = new ReadBuffers(CAPACITY_BYTES, 2);
    const buffer = buffers.take(4_096);
    assert.equal(buffer.length, 4_096);
    assert.equal(buffers.settle(buffer, 10), buffer);
    assert.equal(buffers.spare, 0);
  });
});
