import assert from "node:assert/strict";
import fc from "fast-check";
import { type Access, conflicts, RequestQueue } from "./order.ts";

const access: fc.Arbitrary<Access> = fc.oneof(
  fc.constantFrom<Access>({ kind: "none" }, { kind: "look" }, { kind: "change" }),
  fc
    .record({
      kind: fc.constantFrom("read", "write"),
      handle: fc.nat(2),
      from: fc.nat(50),
      length: fc.nat(20),
    })
    .map(({ kind, handle, from, length }): Access => ({ kind, handle, from, to: from + length })),
  fc.nat(2).map((handle): Access => ({ kind: "handle", handle })),
);
const range = (kind: "read" | "write", handle: number, from: number, to: number): Access => ({
  kind,
  handle,
  from,
  to,
});

describe("the order of SFTP requests", () => {
  it("lets reads and writes of one file run together only where they can't see each other", () => {
    assert.equal(conflicts(range("write", 1, 0, 10), range("write", 1, 10, 20)), false);
    assert.equal(conflicts(range("write", 1, 0, 11), range("write", 1, 10, 20)), true);
    assert.equal(conflicts(range("write", 1, 0, 11), range("read", 1, 10, 20)), true);
    assert.equal(conflicts(range("read", 1, 0, 11), range("write", 1, 10, 20)), true);
    assert.equal(conflicts(range("read", 1, 0, 11), range("read", 1, 10, 20)), false);
    // A write far behind makes zeros of what was the end of the file.
    assert.equal(conflicts(range("write", 1, 90, 99), range("read", 1, 10, 20)), true);
    assert.equal(conflicts(range("read", 1, 10, 20), range("write", 1, 90, 99)), true);
    assert.equal(conflicts(range("write", 1, 0, 10), range("read", 1, 10, 20)), false);
    assert.equal(conflicts(range("write", 1, 0, 11), range("write", 2, 10, 20)), false);
    assert.equal(conflicts(range("write", 1, 0, 11), { kind: "handle", handle: 1 }), true);
    assert.equal(conflicts(range("write", 1, 0, 11), { kind: "look" }), true);
    assert.equal(conflicts(range("read", 1, 0, 11), { kind: "look" }), false);
    assert.equal(conflicts({ kind: "change" }, range("read", 1, 0, 11)), true);
    assert.equal(conflicts({ kind: "change" }, { kind: "none" }), false);
  });

  it("never runs two at once that conflict, starts all, and answers in order", () => {
    fc.assert(
      fc.property(fc.array(access, { maxLength: 40 }), fc.array(fc.nat(), { minLength: 1 }), (all, picks) => {
        const queue = new RequestQueue<number, number>({ requests: 1_000, bytes: 1_000_000 });
        for (const [i, one] of all.entries()) queue.add(i, one, 1);
        const running: NonNullable<ReturnType<typeof queue.next>>[] = [];
        const finished = new Set<number>();
        const replies: number[] = [];
        for (let turn = 0; finished.size < all.length; turn++) {
          for (let next = queue.next(); next; next = queue.next()) {
            const index = next.request;
            for (let earlier = 0; earlier < index; earlier++)
              assert.ok(
                finished.has(earlier) || !conflicts(all[earlier], all[index]),
                `${index} overtook ${earlier}`,
              );
            running.push(next);
          }
          assert.ok(running.length > 0, "nothing can start");
          const [done] = running.splice(picks[turn % picks.length] % running.length, 1);
          finished.add(done.request);
          queue.finish(done, done.request);
          replies.push(...queue.takeReplies());
        }
        assert.deepEqual(replies, [...all.keys()]);
        assert.equal(queue.size, 0);
        assert.equal(queue.full, false);
      }),
    );
  });

  it("is full by number and by bytes, and counts a request until its reply was taken", () => {
    const queue = new RequestQueue<string, string>({ requests: 3, bytes: 100 });
    queue.add("large", { kind: "none" }, 1_000);
    assert.ok(queue.full);
    queue.finish(queue.next()!, "done");
    assert.ok(queue.full);
    assert.deepEqual(queue.takeReplies(), ["done"]);
    assert.ok(!queue.full);
    for (let i = 0; i < 3; i++) queue.add("small", { kind: "none" }, 1);
    assert.ok(queue.full);
  });
});
