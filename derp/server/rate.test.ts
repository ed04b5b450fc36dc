import assert from "node:assert/strict";
import { performance } from "node:perf_hooks";
import fc from "fast-check";
import { utf8 } from "../../mesh/wire/bytes.ts";
import { encodeFrame, FRAME } from "../../mesh/wire/derp.ts";
import { rawJoin, sendFrame, startRelay, type TestRelay, until } from "../testing.ts";
import { MIN_BURST_BYTES, NO_LIMIT, parseRateConfig, TokenBucket } from "./rate.ts";

describe("derp properties: rate limits", () => {
  it("PerClientRateLimit: a burst passes, then the reader waits until what it read is paid", () => {
    const bucket = new TokenBucket({ bytesPerSecond: 1_000, burstBytes: 100_000 }, 0);
    assert.equal(bucket.take(100_000, 0), 0);
    assert.equal(bucket.take(1_000, 0), 1_000);
    assert.equal(bucket.waitMs(400), 600);
    assert.equal(bucket.waitMs(1_000), 0);
    assert.equal(bucket.take(500, 1_500), 0, "half a second has filled it by 500");
  });

  it("PerClientRateLimit: no burst is smaller than one packet of full size", () => {
    const bucket = new TokenBucket({ bytesPerSecond: 1_000, burstBytes: 1 }, 0);
    assert.equal(MIN_BURST_BYTES, 65_568);
    assert.equal(bucket.take(65_568, 0), 0);
    assert.equal(bucket.take(1, 0), 1);
  });

  it("PerClientRateLimit: 0 is off", () => {
    const bucket = new TokenBucket(NO_LIMIT, 0);
    for (let i = 0; i < 100; i++) assert.equal(bucket.take(1 << 30, 0), 0);
  });

  it("UpdateRateLimits: a new rate holds at once, and doesn't free of debt", () => {
    const bucket = new TokenBucket({ bytesPerSecond: 1_000, burstBytes: 70_000 }, 0);
    assert.equal(bucket.take(80_000, 0), 10_000);
    bucket.configure({ bytesPerSecond: 10_000, burstBytes: 70_000 }, 0);
    assert.equal(bucket.waitMs(0), 1_000);
    bucket.configure(NO_LIMIT, 0);
    assert.equal(bucket.waitMs(0), 0);
    bucket.configure({ bytesPerSecond: 1_000, burstBytes: 70_000 }, 0);
    assert.equal(bucket.take(70_000, 0), 0, "switched on again, it starts full");
  });

  it("over any time no more passes than burst and rate allow, but for what was read at once", () => {
    const reads = fc.array(fc.record({ bytes: fc.integer({ min: 1, max: 65_536 }), idleMs: fc.nat(500) }), {
      minLength: 1,
      maxLength: 60,
    });
    fc.assert(
      fc.property(reads, fc.integer({ min: 1_000, max: 1_000_000 }), (all, bytesPerSecond) => {
        const bucket = new TokenBucket({ bytesPerSecond, burstBytes: 100_000 }, 0);
        let now = 0;
        let passed = 0;
        for (const { bytes, idleMs } of all) {
          now += idleMs;
          passed += bytes;
          now += bucket.take(bytes, now);
          const allowed = 100_000 + (now / 1_000) * bytesPerSecond;
          assert.ok(passed <= allowed + 1, `${passed} of ${allowed}`);
        }
      }),
    );
  });

  describe("LoadRateConfig", () => {
    it("reads the names other relays have, and ours", () => {
      assert.deepEqual(
        parseRateConfig(
          '{"PerClientRateLimitBytesPerSec":1000,"PerClientRateBurstBytes":2000,"AnonymousRateLimitBytesPerSec":0}',
        ),
        {
          perClient: { bytesPerSecond: 1_000, burstBytes: 2_000 },
          perSubject: undefined,
          anonymous: { bytesPerSecond: 0, burstBytes: 0 },
        },
      );
      assert.deepEqual(parseRateConfig("{}").perClient, undefined);
    });
    for (const [text, problem] of [
      ["{", /not JSON/],
      ["[]", /its top/],
      ['{"PerClientRateLimitBytesPerSec":-1}', /PerClientRateLimitBytesPerSec/],
      ['{"PerClientRateLimitBytesPerSec":"1"}', /PerClientRateLimitBytesPerSec/],
      ['{"PerClientRateLimit":1}', /its top/],
    ] as const)
      it(`refuses ${text}`, () => assert.throws(() => parseRateConfig(text), problem));
  });

  describe("over loopback", () => {
    let relay: TestRelay;
    afterEach(() => relay.close());
    const perClient = { bytesPerSecond: 400_000, burstBytes: 65_568 };
    const kib = new Uint8Array(1 << 16);
    /** Sends and reports when the relay has read it all. */
    const timeToSend = async (packets: number): Promise<number> => {
      const a = await relay.client();
      const startedAt = performance.now();
      for (let i = 0; i < packets; i++) assert.ok(a.client.send(a.key, kib));
      for (let i = 0; i < packets; i++) await a.packets.take();
      return performance.now() - startedAt;
    };

    it("RateLimitWait: what is too fast waits and arrives all the same", async () => {
      relay = await startRelay({ rates: { perClient } });
      const tookMs = await timeToSend(4);
      // Some 262 KB at 400 KB/s, of which the burst and the last read are not waited for.
      assert.ok(tookMs >= 150, `${tookMs} ms`);
      assert.ok(relay.server.stats.rateLimitWaited >= 1);
      assert.equal(relay.server.stats.droppedQueueHead, 0);
    });

    it("UpdateRateLimits: a connection that waits is let go when the limit is lifted", async () => {
      relay = await startRelay({ rates: { perClient: { bytesPerSecond: 10, burstBytes: 0 } } });
      const a = await relay.client();
      for (let i = 0; i < 4; i++) a.client.send(a.key, kib);
      await until(() => relay.server.stats.rateLimitWaited === 1);
      relay.server.setRates({});
      for (let i = 0; i < 4; i++) await a.packets.take();
    });

    it("UpdateRateLimits: a limit reaches connections that are open", async () => {
      relay = await startRelay();
      const a = await relay.client();
      await a.client.ping();
      relay.server.setRates({ perClient: { bytesPerSecond: 10, burstBytes: 0 } });
      for (let i = 0; i < 4; i++) a.client.send(a.key, kib);
      await until(() => relay.server.stats.rateLimitWaited === 1);
    });

    it("servers of the region are exempt", async () => {
      const meshKey = "ab".repeat(32);
      relay = await startRelay({ meshKey, rates: { perClient: { bytesPerSecond: 10, burstBytes: 0 } } });
      const raw = await rawJoin(relay, { info: { meshKey } });
      for (let i = 0; i < 8; i++) raw.socket.write(sendFrame(new Uint8Array(32), kib));
      raw.socket.write(encodeFrame({ kind: "ping", data: utf8("12345678") }));
      assert.equal((await raw.nextFrame()).type, FRAME.pong);
      assert.equal(relay.server.stats.rateLimitWaited, 0);
      raw.socket.destroy();
    });

    it("a connection that waits can be ended, by either side", async () => {
      relay = await startRelay({ rates: { perClient: { bytesPerSecond: 10, burstBytes: 0 } } });
      for (const end of ["client", "relay"] as const) {
        const raw = await rawJoin(relay);
        raw.socket.write(sendFrame(new Uint8Array(32), kib));
        raw.socket.write(sendFrame(new Uint8Array(32), kib));
        await until(() => relay.server.stats.rateLimitWaited > 0);
        if (end === "client") raw.socket.resetAndDestroy();
        relay.server.disconnect(raw.keys.publicKey);
        await raw.closed;
      }
      await until(() => relay.server.stats.currentConnections === 0);
    });
  });
});
