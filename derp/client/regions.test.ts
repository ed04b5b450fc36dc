import assert from "node:assert/strict";
import * as fc from "fast-check";
import { utf8 } from "../../mesh/wire/bytes.ts";
import { until } from "../testing.ts";
import { backoffMs } from "./backoff.ts";
import { RegionsLab } from "./testing.ts";

const text = (data: Uint8Array): string => new TextDecoder().decode(data);

describe("relay client over regions", () => {
  const lab = new RegionsLab();
  const { start, mapOf, join } = lab;
  afterEach(() => lab.close());

  it("connects home by itself and says so to the relay", async () => {
    const one = await start();
    const a = join(mapOf(one.port));
    await until(() => one.server.stats.currentHomeConnections === 1);
    assert.deepEqual(a.states, ["1 up"]);
    assert.equal(a.relay.homeRegion, 1);
  });

  it("carries packets between nodes, with the region they came through", async () => {
    const one = await start();
    const [a, b] = [join(mapOf(one.port)), join(mapOf(one.port))];
    await Promise.all([a.relay.connect(1), b.relay.connect(1)]);
    assert.ok((await a.relay.ping(1)) > 0);
    await b.relay.ping(1);
    assert.ok(a.relay.send(b.key, 1, utf8("hello")));
    const got = await b.packets.take();
    assert.deepEqual([got.src, got.region, text(got.data)], [a.key, 1, "hello"]);
    await a.relay.close();
    assert.deepEqual(await b.gone.take(), { peer: a.key, region: 1, reason: 0 });
    b.relay.send(a.key, 1, utf8("still there?"));
    assert.deepEqual(await b.gone.take(), { peer: a.key, region: 1, reason: 1 });
  });

  it("dials a peer's region on the first send, and answers where it heard the peer", async () => {
    const [one, two] = [await start(), await start()];
    const map = mapOf(one.port, two.port);
    const a = join(map, { homeRegion: 1 });
    const b = join(map, { homeRegion: 2 });
    await Promise.all([a.relay.ping(1), b.relay.ping(2)]);
    assert.equal(a.relay.send(b.key, 2, utf8("lost")), false, "no connection yet");
    await until(() => a.states.includes("2 up"));
    assert.ok(a.relay.send(b.key, 2, utf8("hello")));
    assert.equal(text((await b.packets.take()).data), "hello");
    assert.ok(b.relay.send(a.key, 1, utf8("answer")), "over the route, without dialling region 1");
    const answer = await a.packets.take();
    assert.deepEqual([answer.region, text(answer.data)], [2, "answer"]);
    assert.equal(one.server.stats.currentConnections, 1);
    assert.deepEqual(b.states, ["2 up"]);
  });

  it("forgets a route when the peer is gone, and learns it anew when heard again", async () => {
    const [one, two] = [await start(), await start()];
    const map = mapOf(one.port, two.port);
    const b = join(map, { homeRegion: 2 });
    await b.relay.ping(2);
    const visitor = await two.client();
    visitor.client.send(b.key, utf8("1"));
    await b.packets.take();
    assert.ok(b.relay.send(visitor.key, 7, utf8("no such region, but a route")));
    await visitor.client.close();
    await b.gone.take();
    assert.equal(b.relay.send(visitor.key, 7, utf8("no route")), false);
  });

  it("comes back after the relay was away, in well under two seconds", async () => {
    const first = await start();
    const a = join(mapOf(first.port));
    await a.relay.ping(1);
    await first.close();
    await until(() => a.states.filter((state) => state === "1 down").length >= 2);
    const second = await start(first.port);
    const listeningAt = performance.now();
    await until(() => second.server.stats.currentHomeConnections === 1);
    assert.ok(performance.now() - listeningAt < 2_000);
    assert.equal(a.states.at(-1), "1 up");
  });

  it("uses the region's next node when the first doesn't answer", async () => {
    const dead = await start();
    await dead.close();
    const alive = await start();
    const a = join(mapOf([dead.port, alive.port]));
    await a.relay.connect(1);
    await a.relay.ping(1);
    assert.equal(alive.server.stats.currentConnections, 1);
    assert.deepEqual(a.states, ["1 up"]);
  });

  it("follows the map: a changed region is dialled anew, a removed one closed", async () => {
    const [one, two] = [await start(), await start()];
    const a = join(mapOf(one.port));
    await a.relay.ping(1);
    a.relay.setMap(mapOf(one.port));
    await a.relay.ping(1);
    assert.deepEqual(a.states, ["1 up"], "the same map changes nothing");
    a.relay.setMap(mapOf(two.port));
    await until(() => two.server.stats.currentHomeConnections === 1);
    await until(() => one.server.stats.currentConnections === 0);
    a.relay.setMap({ Regions: {} });
    await until(() => two.server.stats.currentConnections === 0);
    assert.equal(a.relay.homeRegion, undefined);
    await assert.rejects(a.relay.connect(1), { code: "ERR_RELAY_NO_REGION" });
  });

  it("a home that a new map moves to a region already connected is told as a state, for who publishes it", async () => {
    const [one, two] = [await start(), await start()];
    const map = mapOf(one.port, two.port);
    const a = join(map);
    await Promise.all([a.relay.ping(1), a.relay.ping(2)]);
    const before = a.states.length;
    const regions = Object.entries(map.Regions).map(([id, region]) => [
      id,
      id === "1" ? { ...region, NoMeasureNoHome: true } : region,
    ]);
    a.relay.setMap({ Regions: Object.fromEntries(regions) });
    assert.equal(a.relay.homeRegion, 2);
    assert.deepEqual(a.states.slice(before), ["2 up"]);
  });

  it("a home that moves is told to both relays", async () => {
    const [one, two] = [await start(), await start()];
    const map = mapOf(one.port, two.port);
    const a = join(map);
    const homes: (number | undefined)[] = [];
    a.relay.onHome = (region) => homes.push(region);
    await Promise.all([a.relay.ping(1), a.relay.ping(2)]);
    map.Regions["1"].NoMeasureNoHome = true;
    a.relay.setMap(structuredClone(map));
    await until(() => two.server.stats.currentHomeConnections === 1);
    await until(() => one.server.stats.currentHomeConnections === 0);
    assert.deepEqual(homes, [2]);
    assert.equal(one.server.stats.currentConnections, 1, "region 1 stays open while in use");
  });

  it("an attempt's failure is told to who asked, and goes on in the background", async () => {
    const dead = await start();
    await dead.close();
    const a = join(mapOf(dead.port));
    await assert.rejects(a.relay.connect(1), { code: "ERR_RELAY_UNREACHABLE" });
    await start(dead.port);
    await until(() => a.states.includes("1 up"));
  });

  it("closing leaves no socket and no timer, connected, connecting or waiting", async () => {
    const count = (): number =>
      process.getActiveResourcesInfo().filter((name) => /^(TCPSocketWrap|TCPServerWrap|Timeout)$/.test(name))
        .length;
    await new Promise((resolve) => setImmediate(resolve)); // the test runner's own timer starts by then
    const before = count();
    const one = await start();
    const dead = await start();
    await dead.close();
    const a = join(mapOf(one.port, one.port));
    await Promise.all([a.relay.ping(1), a.relay.ping(2)]);
    const waiting = join(mapOf(dead.port));
    await assert.rejects(waiting.relay.connect(1));
    const connecting = join(mapOf(one.port));
    await Promise.all([a, waiting, connecting].map((node) => node.relay.close()));
    await one.close();
    await until(() => count() <= before);
    assert.deepEqual(connecting.states, []);
    await assert.rejects(a.relay.connect(1), { code: "ERR_RELAY_CLOSED" });
    assert.equal(a.relay.send(one.server.publicKey, 1, utf8("x")), false);
  });
});

/** How long a client that retries from the start of an outage takes to notice its end. */
function noticedAfterMs(outageMs: number, random: () => number): number {
  let now = 0;
  for (let failures = 1; now < outageMs; failures++) now += backoffMs(failures, now, random());
  return now - outageMs;
}

describe("relay back-off", () => {
  for (const [failures, outageMs, random, expected] of [
    [1, 0, 1, 10],
    [3, 100, 1, 90],
    [3, 100, 0, 45],
    [10, 5_000, 0.5, 750],
    [10_000, 299_999, 1, 1_000],
    [22, 300_000, 0.5, 4_840],
    [10_000, 300_000, 1, 7_500],
  ] as const)
    it(`failure ${failures} after ${outageMs} ms, random ${random}, waits ${expected} ms`, () =>
      assert.equal(backoffMs(failures, outageMs, random), expected));

  for (const seconds of [1, 10, 60, 290])
    it(`an outage of ${seconds} s: every client is back within 1 s of its end`, () => {
      const draws = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 50, maxLength: 50 });
      fc.assert(
        fc.property(draws, (random) => {
          let i = 0;
          assert.ok(noticedAfterMs(seconds * 1_000, () => random[i++ % random.length]) <= 1_000);
        }),
      );
    });

  it("a thousand clients of one relay don't come back at the same moment", () => {
    for (const seconds of [10, 60, 290]) {
      const perTenth = new Array<number>(10).fill(0);
      for (let client = 1; client <= 1_000; client++) {
        let state = client * 7_919;
        const random = (): number => {
          state = (state * 48_271) % 0x7fffffff;
          return state / 0x7fffffff;
        };
        perTenth[Math.floor(noticedAfterMs(seconds * 1_000, random) / 100)]++;
      }
      assert.ok(Math.max(...perTenth) < 250, perTenth.join(" "));
    }
  });
});
