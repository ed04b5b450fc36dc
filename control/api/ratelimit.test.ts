import assert from "node:assert/strict";
import fc from "fast-check";
import { MAX_BUCKETS, RateLimiter } from "./ratelimit.ts";

describe("rate limit", () => {
  it("lets the burst through, then one per interval, and says how long to wait", () => {
    const limiter = new RateLimiter({ perMinute: 60 });
    for (let i = 0; i < 60; i++) assert.equal(limiter.take("a", 0).ok, true);
    assert.deepEqual(limiter.take("a", 0), { ok: false, remaining: 0, retryAfterMs: 1000 });
    assert.equal(limiter.take("a", 999).ok, false);
    assert.equal(limiter.take("a", 1000).ok, true);
    assert.equal(limiter.take("b", 1000).ok, true);
  });

  it("never lets more through than the burst and what has dripped in since, whatever the clock does", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -100, max: 2000 }), { maxLength: 300 }), (steps) => {
        const limiter = new RateLimiter({ perMinute: 30 });
        let now = 0;
        let forward = 0;
        let passed = 0;
        for (const step of steps) {
          now += step;
          forward += Math.max(0, step);
          if (limiter.take("a", now).ok) passed++;
        }
        assert.ok(passed <= 30 + forward / 2000 + 1e-6);
      }),
    );
  });

  it("holds a bounded number of keys, and forgets the longest unused", () => {
    const limiter = new RateLimiter({ perMinute: 1 });
    limiter.take("first", 0);
    for (let i = 0; i < MAX_BUCKETS; i++) limiter.take(`key ${i}`, 0);
    assert.equal(limiter.size, MAX_BUCKETS);
    assert.equal(limiter.take("first", 0).ok, true);
  });
});
