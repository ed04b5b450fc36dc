import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer as createHttpServer, type Server as HttpServer, type RequestListener } from "node:http";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { toHex, utf8 } from "../../mesh/wire/bytes.ts";
import { keyPair } from "../box.ts";
import { handleDerpRequest } from "../server/http.ts";
import { DerpServer } from "../server/server.ts";
import { until } from "../testing.ts";
import { isStranded } from "./client.ts";
import type { RelayError } from "./errors.ts";
import { chooseHome } from "./nodes.ts";
import { RegionsLab } from "./testing.ts";

const text = (data: Uint8Array): string => new TextDecoder().decode(data);

describe("relay client, keeping connections", () => {
  const lab = new RegionsLab();
  const { start, mapOf, join } = lab;
  afterEach(() => lab.close());

  const listen = async (server: Server | HttpServer): Promise<number> => {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  };

  /** TCP in between, one pair of sockets per connection. */
  const between = async (onPair: (near: Socket, far: Socket) => void, port: number): Promise<number> => {
    const sockets: Socket[] = [];
    const server = createServer((near) => {
      const far = connect(port, "127.0.0.1");
      for (const [side, other] of [
        [near, far],
        [far, near],
      ]) {
        sockets.push(side);
        side.on("error", () => {}).on("close", () => other.destroy());
      }
      onPair(near, far);
    });
    lab.also(async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    });
    return listen(server);
  };

  it("PickDERPFallback: unmeasured, the home is the control plane's own relay, else the lowest id, and stays", () => {
    const map = mapOf(1, 2, 3);
    assert.equal(chooseHome(map), 1);
    map.Regions["2"].EmbeddedRelay = true;
    assert.equal(chooseHome(map), 2);
    assert.equal(chooseHome(map, 3), 3);
    map.Regions["3"].NoMeasureNoHome = true;
    assert.equal(chooseHome(map, 3), 2);
    assert.equal(chooseHome({ Regions: {} }, 3), undefined);
  });

  it("PeerDERPStateCleanup: a connection that ends takes its routes along", async () => {
    const [one, two] = [await start(), await start()];
    const b = join(mapOf(one.port, two.port), { homeRegion: 2 });
    await b.relay.ping(2);
    const visitor = await two.client();
    visitor.client.send(b.key, utf8("1"));
    await b.packets.take();
    assert.ok(b.relay.send(visitor.key, 7, utf8("over the route")));
    two.server.disconnect(b.key);
    await until(() => b.states.includes("2 down"));
    assert.equal(b.relay.send(visitor.key, 7, utf8("no route")), false);
  });

  it("NotifyError: what ends a connection, or keeps it from being made, is told with its code", async () => {
    const one = await start();
    const a = join(mapOf(one.port));
    await a.relay.ping(1);
    const errors: (Error | undefined)[] = [];
    a.relay.onState = ({ connected, error }) => {
      if (!connected) errors.push(error);
    };
    await one.close();
    await until(() => errors.length >= 2);
    assert.equal((errors[1] as RelayError).code, "ERR_RELAY_UNREACHABLE");
  });

  it("BreakWatcherConn: after each of ten breaks it connects again, once", async () => {
    const one = await start();
    const a = join(mapOf(one.port));
    const b = await one.client();
    for (let i = 1; i <= 10; i++) {
      await a.relay.ping(1);
      assert.equal(one.server.stats.currentConnections, 2);
      assert.ok(a.relay.send(b.key, 1, utf8(String(i))));
      assert.equal(text((await b.packets.take()).data), String(i));
      one.server.disconnect(a.key);
      await until(() => a.states.filter((state) => state === "1 down").length === i);
    }
    await a.relay.ping(1);
    assert.equal(one.server.stats.currentConnections, 2);
  });

  it("a relay that greets and hangs up is not dialled without pause", async () => {
    const one = await start();
    const a = join(mapOf(one.port));
    const startedAt = performance.now();
    for (let round = 1; round <= 8; round++) {
      await until(() => a.states.filter((state) => state === "1 up").length === round);
      await until(() => one.server.disconnect(a.key) > 0);
    }
    // The pauses are 75 % of n² x 10 ms: 7.5 + 30 + 67.5 + ..., seven of them 1,050 ms.
    assert.ok(performance.now() - startedAt > 900);
  });

  it("the ticket of the moment goes with every attempt", async () => {
    const seen: unknown[] = [];
    let ticket = "dGlja2V0IDE=";
    const admit = ({ headers }: { headers: Record<string, unknown> }): boolean => {
      seen.push(headers["derp-ticket"]);
      return true;
    };
    const one = await start(0, { admit });
    const a = join(mapOf(one.port), { ticket: () => ticket });
    await a.relay.ping(1);
    ticket = "dGlja2V0IDI=";
    one.server.disconnect(a.key);
    await until(() => seen.length === 2);
    assert.deepEqual(seen, ["dGlja2V0IDE=", "dGlja2V0IDI="]);
  });

  describe("fast start by the map", () => {
    it("a key that is no longer the relay's costs one more attempt, and no pause", async () => {
      const one = await start();
      const map = mapOf(one.port);
      Object.assign(map.Regions["1"].Nodes[0], { PublicKey: toHex(keyPair().publicKey) });
      const a = join(map);
      await until(() => one.server.stats.currentHomeConnections === 1);
      assert.deepEqual(a.states, ["1 up", "1 down", "1 up"]);
      const fresh = structuredClone(map);
      Object.assign(fresh.Regions["1"].Nodes[0], { PublicKey: toHex(one.server.publicKey) });
      a.relay.setMap(fresh);
      await a.relay.ping(1);
      assert.deepEqual(a.states, ["1 up", "1 down", "1 up"], "another key alone changes no connection");
    });

    it("bytes that something swallows behind the request are noticed, and not risked again", async () => {
      const one = await start();
      // As some reverse proxies do: what comes with the request, before its answer, is lost.
      const port = await between((near, far) => {
        far.pipe(near);
        near.once("data", (chunk) => {
          far.write(chunk.subarray(0, chunk.indexOf("\r\n\r\n") + 4));
          near.pipe(far);
        });
      }, one.port);
      const map = mapOf(port);
      Object.assign(map.Regions["1"].Nodes[0], { PublicKey: toHex(one.server.publicKey) });
      const a = join(map);
      await until(() => one.server.stats.currentHomeConnections === 1);
      assert.deepEqual(a.states, ["1 up", "1 down", "1 up"]);
    });
  });

  describe("WebSocket", () => {
    const stripping = async (derp: DerpServer, statusOf: () => number | undefined): Promise<number> => {
      const http = createHttpServer((_req, res) => res.writeHead(426).end());
      http.on("upgrade", (req, socket, head) => {
        const status = req.headers.upgrade === "DERP" ? statusOf() : undefined;
        if (status === undefined) derp.handleUpgrade(req, socket, head);
        else socket.end(`HTTP/1.1 ${status} No\r\nContent-Length: 0\r\n\r\n`);
      });
      lab.also(async () => {
        await derp.close();
        http.close();
        http.closeAllConnections();
        await once(http, "close");
      });
      return listen(http);
    };

    it("takes over where upgrades are refused, at once and with the reason, and stays", async () => {
      const derp = new DerpServer();
      const a = join(mapOf(await stripping(derp, () => 400)));
      const told: (string | undefined)[] = [];
      a.relay.onFallback = (_region, reason) => told.push(reason);
      await a.relay.ping(1);
      assert.match(a.relay.fallbackReason(1) ?? "", /status 400/);
      assert.deepEqual(a.states, ["1 up"], "in the same attempt");
      derp.disconnect(a.key);
      await until(() => a.states.length === 3);
      assert.equal(told.length, 1);
    });

    it("is no answer to a server that is merely starting", async () => {
      let status: number | undefined = 503;
      const a = join(mapOf(await stripping(new DerpServer(), () => status)));
      await until(() => a.states.length >= 2);
      status = undefined;
      await a.relay.ping(1);
      assert.equal(a.relay.fallbackReason(1), undefined);
    });

    it("is left again when it is refused as well", async () => {
      let refuse = true;
      const derp = new DerpServer();
      const http = createHttpServer();
      http.on("upgrade", (req, socket, head) => {
        if (refuse) socket.end("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        else derp.handleUpgrade(req, socket, head);
      });
      lab.also(async () => {
        await derp.close();
        http.close();
        http.closeAllConnections();
        await once(http, "close");
      });
      const a = join(mapOf(await listen(http)));
      await assert.rejects(a.relay.connect(1), { code: "ERR_RELAY_REFUSED", status: 404 });
      assert.equal(a.relay.fallbackReason(1), undefined);
      refuse = false;
      await a.relay.ping(1);
      assert.equal(a.relay.fallbackReason(1), undefined);
    });

    it("can be forced", async () => {
      const derp = new DerpServer();
      const a = join(mapOf(await stripping(derp, () => 500)), { forceWebSockets: true });
      assert.ok((await a.relay.ping(1)) > 0);
    });
  });

  describe("check", () => {
    it("leaves a good connection alone, however often it is asked", async () => {
      const one = await start();
      const a = join(mapOf(one.port));
      await a.relay.ping(1);
      for (let i = 0; i < 50; i++) a.relay.check();
      await a.relay.ping(1);
      assert.deepEqual(a.states, ["1 up"]);
      assert.ok(one.server.stats.gotPing <= 3, "one test at a time");
    });

    it("replaces a silently dead connection after the 3 s of a ping", async () => {
      const one = await start();
      const pairs: Socket[] = [];
      const port = await between((near, far) => {
        pairs.push(near, far);
        near.pipe(far).pipe(near);
      }, one.port);
      const a = join(mapOf(port));
      await a.relay.ping(1);
      for (const socket of pairs) socket.unpipe().pause();
      const startedAt = performance.now();
      a.relay.check(1);
      await until(() => a.states.length === 3);
      assert.deepEqual(a.states, ["1 up", "1 down", "1 up"]);
      const tookMs = performance.now() - startedAt;
      assert.ok(tookMs > 2_900 && tookMs < 3_600, `${tookMs} ms`);
    });

    it("LocalAddr: a connection from an address the machine no longer has is known to be dead", () => {
      const here = ["127.0.0.1", "::1", "192.0.2.5", "fe80::1"];
      for (const address of ["192.0.2.5", "::ffff:192.0.2.5", "127.0.0.9", "::1", "fe80::1%eth0"])
        assert.equal(isStranded(address, here), false, address);
      for (const address of ["192.0.2.6", "::ffff:192.0.2.6", "2001:db8::1"])
        assert.equal(isStranded(address, here), true, address);
    });

    it("cuts a pause short", async () => {
      const dead = await start();
      await dead.close();
      const a = join(mapOf(dead.port));
      await until(() => a.states.length >= 9); // the next pause is 607 ms
      await start(dead.port);
      const startedAt = performance.now();
      a.relay.check();
      await until(() => a.states.includes("1 up"));
      assert.ok(performance.now() - startedAt < 300);
    });

    it("does nothing for regions that nobody uses, nor when closed", async () => {
      const [one, two] = [await start(), await start()];
      const a = join(mapOf(one.port, two.port), { homeRegion: 1 });
      await a.relay.ping(1);
      for (const region of [undefined, 2, 77]) a.relay.check(region);
      await a.relay.ping(1);
      assert.equal(two.server.stats.accepts, 0);
      assert.deepEqual(a.states, ["1 up"]);
      await a.relay.close();
      a.relay.check();
      assert.deepEqual(a.states, ["1 up", "1 down"]);
    });
  });

  describe("home by latency", () => {
    /** A relay whose answers to HTTP come late. */
    const slow = async (delayMs: number): Promise<{ port: number; derp: DerpServer }> => {
      const derp = new DerpServer();
      const answer: RequestListener = (req, res) =>
        void setTimeout(() => handleDerpRequest(req, res), delayMs);
      const http = createHttpServer(answer);
      http.on("upgrade", (req, socket, head) => derp.handleUpgrade(req, socket, head));
      lab.also(async () => {
        await derp.close();
        http.close();
        http.closeAllConnections();
        await once(http, "close");
      });
      return { port: await listen(http), derp };
    };

    it("the first is used at once; it moves to a much nearer one, once that is connected", async () => {
      const [far, near] = [await slow(120), await slow(0)];
      const a = join(mapOf(far.port, near.port));
      const homes: (number | undefined)[] = [];
      const homeWhenUp: (number | undefined)[] = [];
      a.relay.onHome = (region) => homes.push(region);
      await a.relay.ping(1);
      assert.equal(a.relay.homeRegion, 1);
      a.relay.onState = ({ region, connected }) => {
        if (region === 2 && connected) homeWhenUp.push(a.relay.homeRegion);
      };
      const report = await a.relay.netcheck();
      assert.deepEqual([...report.latencyMs.keys()].sort(), [1, 2]);
      await until(() => near.derp.stats.currentHomeConnections === 1);
      await until(() => far.derp.stats.currentHomeConnections === 0);
      assert.deepEqual([homes, homeWhenUp], [[2], [2]]);
      assert.equal(far.derp.stats.currentConnections, 1, "the old one is left to fall idle");
      await a.relay.netcheck({ full: false });
      assert.deepEqual(homes, [2]);
    });

    it("stays while peers could not learn of a move, and where it is fixed", async () => {
      const [far, near] = [await slow(60), await slow(0)];
      const map = mapOf(far.port, near.port);
      let reachable = false;
      const a = join(map, { canMoveHome: () => reachable });
      const b = join(map, { homeRegion: 1 });
      await Promise.all([a.relay.ping(1), b.relay.ping(1)]);
      await Promise.all([a.relay.netcheck(), b.relay.netcheck()]);
      assert.deepEqual([a.relay.homeRegion, b.relay.homeRegion, near.derp.stats.accepts], [1, 1, 0]);
      reachable = true;
      await Promise.all([a.relay.netcheck(), b.relay.netcheck()]);
      await until(() => a.relay.homeRegion === 2);
      assert.equal(b.relay.homeRegion, 1);
    });

    it("with one region nothing is measured, unless it is asked for", async () => {
      const one = await start();
      const a = join(mapOf(one.port));
      await a.relay.ping(1);
      a.relay.check();
      assert.equal(a.relay.lastReport?.full, undefined);
      const { latencyMs, udp } = await a.relay.netcheck();
      assert.deepEqual([[...latencyMs.keys()], udp], [[1], false]);
      assert.equal(a.relay.lastReport?.latencyMs.size, 1);
      await a.relay.close();
      await assert.rejects(a.relay.netcheck(), { code: "ERR_RELAY_NO_REGION" });
    });
  });
});
