import assert from "node:assert/strict";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { fromHex } from "../../mesh/wire/bytes.ts";
import { parseStunBindingResponse, stunBindingRequest } from "../../mesh/wire/stun.ts";
import { until } from "../testing.ts";
import { DEFAULT_STUN_LIMITS, SourceLimiter, StunServer, type StunServerOptions } from "./stun.ts";

const txId = fromHex("000102030405060708090a0b");

describe("STUN server", () => {
  const servers: StunServer[] = [];
  const sockets: Socket[] = [];
  const start = async (options: StunServerOptions = {}): Promise<StunServer> => {
    const server = await StunServer.listen({ host: "127.0.0.1", port: 0, ...options });
    assert.ok(server);
    servers.push(server);
    return server;
  };
  const socket = async (type: "udp4" | "udp6" = "udp4"): Promise<Socket> => {
    const one = createSocket(type);
    sockets.push(one);
    one.bind(0, type === "udp4" ? "127.0.0.1" : "::1");
    await once(one, "listening");
    return one;
  };
  afterEach(async () => {
    for (const one of sockets.splice(0)) one.close();
    await Promise.all(servers.splice(0).map((server) => server.close()));
  });

  it("tells where a request came from, in no more bytes than it had", async () => {
    const server = await start();
    const client = await socket();
    const request = stunBindingRequest(txId);
    client.send(request, server.port, "127.0.0.1");
    const [response] = await once(client, "message");
    assert.deepEqual(parseStunBindingResponse(response), {
      txId,
      address: "127.0.0.1",
      port: client.address().port,
    });
    assert.ok(response.length <= request.length);
    assert.equal(server.counters.answered, 1);
  });

  it("answers IPv4 and IPv6 on one port, each with its own kind of address", async function () {
    let server: StunServer;
    let client: Socket;
    try {
      client = await socket("udp6");
      server = await start({ host: "::" });
    } catch {
      console.log("      skipped: no IPv6 on this machine");
      return this.skip();
    }
    const four = await socket();
    for (const [from, to, address] of [
      [client, "::1", "::1"],
      [four, "127.0.0.1", "127.0.0.1"],
    ] as const) {
      from.send(stunBindingRequest(txId), server.port, to);
      const [response] = await once(from, "message");
      assert.equal(parseStunBindingResponse(response)?.address, address);
    }
  });

  it("answers a request as WebRTC sends it, and nothing that is none", async () => {
    const server = await start();
    const client = await socket();
    for (const bytes of [
      fromHex("0101"),
      new Uint8Array(60).fill(4),
      fromHex("010100002112a442000102030405060708090a0b"), // a response
      fromHex("000100042112a442000102030405060708090a0b"), // cut
      fromHex("000100002112a442000102030405060708090a0b"),
    ])
      client.send(bytes, server.port, "127.0.0.1");
    const [response] = await once(client, "message");
    assert.deepEqual(parseStunBindingResponse(response)?.txId, txId);
    await until(() => server.counters.notStun + server.counters.malformed === 4);
    assert.deepEqual(
      [server.counters.notStun, server.counters.malformed, server.counters.answered],
      [2, 2, 1],
    );
  });

  it("answers one source no more often than allowed", async () => {
    const server = await start({ limits: { burstPerSource: 3, perSecondPerSource: 0 } });
    const client = await socket();
    for (let i = 0; i < 10; i++) client.send(stunBindingRequest(txId), server.port, "127.0.0.1");
    await until(() => server.counters.limited + server.counters.answered === 10);
    assert.deepEqual([server.counters.answered, server.counters.limited], [3, 7]);
    assert.equal(server.metrics().find(({ name }) => name === "stun_limited")?.values[0].value, 7);
  });

  it("a taken port is told and does no harm", async () => {
    const server = await start();
    const warnings: string[] = [];
    const logger = {
      debug() {},
      info() {},
      warn: (_fields: object, message: string) => warnings.push(message),
    };
    const second = await StunServer.listen({ host: "127.0.0.1", port: server.port, logger });
    assert.equal(second, undefined);
    assert.match(warnings[0], /--derp-server-stun-address/);
  });

  it("limits sources for themselves and all together, remembers a bounded number, and forgives with time", () => {
    const limits = {
      ...DEFAULT_STUN_LIMITS,
      burstPerSource: 2,
      perSecondPerSource: 1,
      perSecond: 4,
      sources: 3,
    };
    const limiter = new SourceLimiter(limits);
    assert.deepEqual(
      [limiter.take("a", 0), limiter.take("a", 0), limiter.take("a", 0), limiter.take("b", 0)],
      [true, true, false, true],
    );
    assert.deepEqual([limiter.take("c", 0), limiter.take("d", 0)], [true, false], "all together are out");
    assert.equal(limiter.take("a", 1_000), true);
    assert.equal(limiter.take("a", 1_000), false);
    for (let i = 0; i < 100; i++) limiter.take(`s${i}`, i * 1_000);
    assert.equal(limiter.sources, 3);
  });
});
