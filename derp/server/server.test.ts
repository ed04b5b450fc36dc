import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createWebSocketStream, WebSocket } from "ws";
import { fromHex, toHex, utf8 } from "../../mesh/wire/bytes.ts";
import {
  encodeFrame,
  FRAME,
  FrameDecoder,
  HEADER_BYTES,
  MAGIC,
  maxServerBodyBytes,
  writeHeader,
} from "../../mesh/wire/derp.ts";
import { keyPair, sealClientInfo, sharedKey } from "../box.ts";
import {
  RawClient,
  rawJoin,
  sendFrame,
  startRelay,
  type TestClient,
  type TestRelay,
  until,
} from "../testing.ts";
import { addressGroup, type DerpServerOptions } from "./server.ts";

const disco = (): Uint8Array => {
  const bytes = new Uint8Array(100);
  bytes.set(fromHex("5453f09f92ac"));
  return bytes;
};
describe("derp properties: the relay over loopback", () => {
  let relay: TestRelay;
  const start = async (options: DerpServerOptions = {}): Promise<void> => {
    relay = await startRelay(options);
  };
  afterEach(async () => {
    await relay.close();
    assert.equal(relay.server.stats.currentConnections, 0);
    assert.equal(relay.server.stats.currentUnproven, 0);
  });

  it("SendRecv: only the addressee receives", async () => {
    await start();
    const [a, b, c] = await Promise.all([relay.client(), relay.client(), relay.client()]);
    assert.equal(relay.server.stats.currentConnections, 3);
    a.client.send(b.key, utf8("for b"));
    b.client.send(c.key, utf8("for c"));
    const atB = await b.packets.take();
    assert.deepEqual([toHex(atB.src), new TextDecoder().decode(atB.data)], [toHex(a.key), "for b"]);
    const atC = await c.packets.take();
    assert.deepEqual([toHex(atC.src), new TextDecoder().decode(atC.data)], [toHex(b.key), "for c"]);
    a.client.send(a.key, utf8("loop"));
    assert.deepEqual((await a.packets.take()).src, a.key);
    assert.deepEqual([a.packets.size, b.packets.size, c.packets.size], [0, 0, 0]);
  });

  it("SendRecv: home connections follow NotePreferred, idempotently", async () => {
    await start();
    const a = await relay.client();
    const b = await relay.client();
    const homes = async (expected: number): Promise<void> => {
      await Promise.all([a.client.ping(), b.client.ping()]);
      assert.equal(relay.server.stats.currentHomeConnections, expected);
    };
    await homes(0);
    a.client.notePreferred(true);
    await homes(1);
    a.client.notePreferred(true);
    b.client.notePreferred(true);
    await homes(2);
    b.client.notePreferred(false);
    b.client.notePreferred(false);
    await homes(1);
    await a.client.close();
    await until(() => relay.server.stats.currentConnections === 1);
    assert.equal(relay.server.stats.currentHomeConnections, 0);
  });

  it("SendRecv: the end of a client is told once to who received from it, to nobody else", async () => {
    await start();
    const [a, b, c] = await Promise.all([relay.client(), relay.client(), relay.client()]);
    a.client.send(b.key, utf8("1"));
    a.client.send(b.key, utf8("2"));
    await b.packets.take();
    await a.client.close();
    const gone = await b.gone.take();
    assert.deepEqual([toHex(gone.key), gone.reason], [toHex(a.key), 0]);
    await Promise.all([b.client.ping(), c.client.ping()]);
    assert.deepEqual([b.gone.size, c.gone.size], [0, 0]);
  });

  it("a foreign client hears of an unknown key only after path discovery, three times in a burst", async () => {
    await start();
    const raw = await rawJoin(relay);
    const nobody = new Uint8Array(32).fill(9);
    const ping = encodeFrame({ kind: "ping", data: utf8("12345678") });
    raw.socket.write(Buffer.concat([sendFrame(nobody, utf8("plain data")), ping]));
    assert.equal((await raw.nextFrame()).type, FRAME.pong);
    raw.socket.write(Buffer.concat([...Array(6).fill(sendFrame(nobody, disco())), ping]));
    const types: number[] = [];
    for (let i = 0; i < 4; i++) types.push((await raw.nextFrame()).type);
    assert.deepEqual(
      types.sort((a, b) => a - b),
      [FRAME.peerGone, FRAME.peerGone, FRAME.peerGone, FRAME.pong],
    );
    raw.socket.destroy();
  });

  it("our client hears at once that a peer is not here, after any packet", async () => {
    await start();
    const a = await relay.client();
    const nobody = new Uint8Array(32).fill(9);
    a.client.send(nobody, utf8("first byte"));
    const gone = await a.gone.take();
    assert.deepEqual([toHex(gone.key), gone.reason], [toHex(nobody), 1]);
    for (let i = 0; i < 100; i++) a.client.send(nobody, utf8("more"));
    await a.client.ping();
    assert.equal(a.gone.size, 0, "not again within a second");
    assert.equal(relay.server.stats.droppedUnknownDestination, 101);
  });

  it("LargePacket: 64 KiB pass whole, 64 KiB + 1 close the connection", async () => {
    await start();
    const a = await relay.client();
    const b = await relay.client();
    const data = randomBytes(65_536);
    a.client.send(b.key, data);
    assert.deepEqual(Buffer.from((await b.packets.take()).data), data);
    assert.throws(() => a.client.send(b.key, new Uint8Array(65_537)), RangeError);
    const raw = await rawJoin(relay);
    const header = new Uint8Array(HEADER_BYTES);
    writeHeader(header, 0, FRAME.sendPacket, 32 + 65_537);
    raw.socket.write(header);
    await raw.closed;
  });

  it("RunDerpProbeNodePair: 100 MB in 64 KiB packets, at most 30 in flight, arrive complete and in order", async () => {
    await start();
    const a = await relay.client();
    const b = await relay.client();
    const total = Math.ceil(100_000_000 / 65_536);
    const data = new Uint8Array(65_536);
    let sent = 0;
    const send = (): void => {
      const copy = data.slice();
      new DataView(copy.buffer).setUint32(0, sent++);
      assert.ok(a.client.send(b.key, copy));
    };
    for (let i = 0; i < 15; i++) send(); // 1 MiB, what a client lets wait; 30 would be refused
    for (let i = 0; i < total; i++) {
      const { data: got } = await b.packets.take();
      assert.equal(new DataView(got.buffer, got.byteOffset).getUint32(0), i);
      assert.equal(got.length, data.length);
      if (sent < total) send();
    }
    assert.equal(relay.server.stats.bytesSent, total * data.length);
  });

  it("keeps packets apart and in order however small they are and however many share a read", async () => {
    await start();
    const a = await relay.client();
    const [b, c] = await Promise.all([relay.client(), relay.client()]);
    const count = 2_000;
    for (let i = 0; i < count; i++)
      a.client.send(i % 3 === 0 ? b.key : c.key, utf8(`${i}:${"x".repeat(i % 50)}`));
    const numbers = async (from: TestClient, wanted: number): Promise<number[]> => {
      const out: number[] = [];
      while (out.length < wanted) {
        const text = new TextDecoder().decode((await from.packets.take()).data);
        const number = Number.parseInt(text, 10);
        assert.equal(text, `${number}:${"x".repeat(number % 50)}`);
        out.push(number);
      }
      return out;
    };
    const all = Array.from({ length: count }, (_, i) => i);
    const forB = all.filter((i) => i % 3 === 0);
    assert.deepEqual(await numbers(b, forB.length), forB);
    assert.deepEqual(
      await numbers(c, count - forB.length),
      all.filter((i) => i % 3 !== 0),
    );
  });

  it("frames between two packets to one receiver don't reach it", async () => {
    await start();
    const b = await rawJoin(relay);
    const raw = await rawJoin(relay);
    const toB = (text: string): Uint8Array => sendFrame(b.keys.publicKey, utf8(text));
    const ping = encodeFrame({ kind: "ping", data: utf8("12345678") });
    const nobody = sendFrame(new Uint8Array(32).fill(9), utf8("lost"));
    raw.socket.write(Buffer.concat([toB("1"), ping, toB("2"), ping, nobody, toB("3")]));
    for (const expected of ["1", "2", "3"]) {
      const { type, body } = await b.nextFrame();
      assert.deepEqual(
        [type, new TextDecoder().decode(body.subarray(32))],
        [FRAME.recvPacket, expected],
        "nothing but packets",
      );
    }
    for (const one of [raw, b]) one.socket.destroy();
  });

  it("SendFreeze: a receiver that stops reading costs its sender's other receivers nothing", async () => {
    await start({ limits: { writeTimeoutMs: 60_000 } });
    const [alice, bob] = await Promise.all([relay.client(), relay.client()]);
    const cathy = await rawJoin(relay);
    cathy.socket.pause();
    const big = new Uint8Array(65_536);
    // Until the kernel's buffers are full and the relay has begun to drop.
    while (relay.server.stats.droppedQueueHead < 10) {
      if (!alice.client.send(cathy.keys.publicKey, big)) await once(alice.client, "drain");
      await alice.client.ping();
      assert.ok(relay.server.stats.queuedBytes <= 1 << 20);
    }
    for (let i = 0; i < 100; i++) {
      alice.client.send(cathy.keys.publicKey, big);
      alice.client.send(bob.key, utf8(`still here ${i}`));
      assert.equal(new TextDecoder().decode((await bob.packets.take()).data), `still here ${i}`);
    }
    cathy.socket.destroy();
  }).timeout(20_000);

  it("a receiver that stops reading for good is closed", async () => {
    await start({ limits: { writeTimeoutMs: 200 } });
    const a = await relay.client();
    const frozen = await rawJoin(relay);
    frozen.socket.pause();
    while (relay.server.stats.writeTimeouts === 0) {
      if (!a.client.send(frozen.keys.publicKey, new Uint8Array(65_536))) await once(a.client, "drain");
      await a.client.ping();
    }
    await until(() => relay.server.stats.currentConnections === 1);
    frozen.socket.destroy();
  });

  it("ServerRepliesToPing with the first 8 bytes, and closes on a Ping of 7 or 1001", async () => {
    await start();
    const raw = await rawJoin(relay);
    const long = new Uint8Array(HEADER_BYTES + 1000).fill(7);
    writeHeader(long, 0, FRAME.ping, 1000);
    raw.socket.write(long);
    const pong = await raw.nextFrame();
    assert.deepEqual([pong.type, toHex(pong.body)], [FRAME.pong, "07".repeat(8)]);
    raw.socket.destroy();
    for (const length of [7, 1001]) {
      const bad = await rawJoin(relay);
      const frame = new Uint8Array(HEADER_BYTES + length);
      writeHeader(frame, 0, FRAME.ping, length);
      bad.socket.write(frame);
      await bad.closed;
    }
  });

  it("ServerDupClients: the last writer receives, and the one left takes over", async () => {
    await start();
    const { privateKey } = keyPair();
    const from = await relay.client();
    const first = await relay.client({ privateKey });
    const second = await relay.client({ privateKey });
    const reaches = async (who: TestClient, text: string): Promise<void> => {
      from.client.send(first.key, utf8(text));
      assert.equal(new TextDecoder().decode((await who.packets.take()).data), text);
    };
    assert.equal(relay.server.stats.currentDuplicateKeys, 1);
    await reaches(second, "newest");
    await first.client.ping();
    await reaches(first, "last writer");
    await first.client.close();
    await until(() => relay.server.stats.currentConnections === 2);
    await reaches(second, "the one left");
    assert.equal(relay.server.stats.currentDuplicateKeys, 0);
  });

  it("ServerDupClients: of fighters A-B-A and A-B-C-A whoever spoke last receives, and none is closed", async () => {
    await start();
    const { privateKey } = keyPair();
    const from = await relay.client();
    const fighters = [await relay.client({ privateKey }), await relay.client({ privateKey })];
    const fight = async (order: number[]): Promise<void> => {
      for (const i of order) await fighters[i].client.ping();
      const last = fighters[order.at(-1)!];
      from.client.send(last.key, utf8("to the last"));
      await last.packets.take();
      assert.ok(fighters.every(({ client, packets }) => client.connected && packets.size === 0));
    };
    await fight([0, 1, 0]);
    fighters.push(await relay.client({ privateKey }));
    await fight([0, 1, 2, 0]);
    assert.equal(relay.server.stats.currentDuplicateKeys, 1);
  });

  it("ServerDupClients: a connection that replaces another takes over before the old one ends", async () => {
    await start();
    const { privateKey } = keyPair();
    const from = await relay.client();
    const old = await relay.client({ privateKey });
    from.client.send(old.key, utf8("1"));
    await old.packets.take();
    const replacement = await relay.client({ privateKey });
    await old.client.close();
    await until(() => relay.server.stats.currentConnections === 2);
    from.client.send(old.key, utf8("2"));
    assert.equal(new TextDecoder().decode((await replacement.packets.take()).data), "2");
    await from.client.ping();
    assert.equal(from.gone.size, 0, "the key was never gone");
  });

  it("frames behind ClientInfo in the same segment are not lost", async () => {
    await start();
    const b = await relay.client();
    const raw = await rawJoin(relay, {
      extra: Buffer.concat([
        encodeFrame({ kind: "notePreferred", home: true }),
        sendFrame(b.key, utf8("early")),
      ]),
    });
    assert.equal(new TextDecoder().decode((await b.packets.take()).data), "early");
    assert.equal(relay.server.stats.currentHomeConnections, 1);
    raw.socket.destroy();
  });

  it("bytes behind the request head belong to DERP (fast start)", async () => {
    await start();
    const b = await relay.client();
    const raw = new RawClient(relay.port);
    const shared = sharedKey(relay.server.publicKey, raw.keys.privateKey);
    const info = sealClientInfo(
      { version: 2, canAckPings: true },
      raw.keys.publicKey,
      shared,
      randomBytes(24),
    );
    const received: Buffer[] = [];
    raw.socket.removeAllListeners("data");
    raw.socket.on("data", (chunk) => received.push(chunk));
    raw.socket.write(
      Buffer.concat([
        utf8(
          "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n",
        ),
        info,
        sendFrame(b.key, utf8("one flight")),
      ]),
    );
    assert.equal(new TextDecoder().decode((await b.packets.take()).data), "one flight");
    await until(() => Buffer.concat(received).length > HEADER_BYTES + 40);
    const wire = Buffer.concat(received);
    assert.equal(wire[0], FRAME.serverKey, "no HTTP response, ServerKey first");
    assert.deepEqual(new Uint8Array(wire.subarray(5, 13)), MAGIC);
    raw.socket.destroy();
  });

  it("the upgrade answers with version and key, in the case of the specification", async () => {
    await start();
    const raw = await rawJoin(relay);
    assert.deepEqual(raw.head.split("\r\n"), [
      "HTTP/1.1 101 Switching Protocols",
      "Upgrade: DERP",
      "Connection: Upgrade",
      "Derp-Version: 2",
      `Derp-Public-Key: ${toHex(relay.server.publicKey)}`,
      "",
      "",
    ]);
    raw.socket.destroy();
  });

  it("Probe: 200 for both check paths, 405 for POST, 426 for /derp without an upgrade", async () => {
    await start();
    for (const path of ["/probe", "/latency-check"]) {
      const response = await fetch(relay.url + path);
      assert.deepEqual(
        [response.status, await response.text(), response.headers.get("access-control-allow-origin")],
        [200, "", "*"],
      );
      assert.equal((await fetch(relay.url + path, { method: "POST", body: "x" })).status, 405);
    }
    assert.equal((await fetch(relay.url)).status, 426);
    const raw = new RawClient(relay.port);
    raw.socket.write("GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n");
    await raw.closed;
    assert.match(raw.head, /^HTTP\/1\.1 426 Upgrade Required\r\n/);
  });

  it("NoContent: /generate_204 answers challenges that can be no markup, and none else", async () => {
    await start();
    const ask = async (challenge: string): Promise<string | null> => {
      const url = new URL("/generate_204", relay.url);
      const response = await fetch(url, { headers: { "X-Tailscale-Challenge": challenge } });
      assert.equal(response.status, 204);
      assert.match(response.headers.get("cache-control")!, /no-store/);
      return response.headers.get("x-tailscale-response");
    };
    assert.equal(await ask("ts_a.example:80-1"), "response ts_a.example:80-1");
    assert.equal(await ask("<b>"), null);
    assert.equal(await ask("x".repeat(65)), null);
  });

  it("WebSocket with the subprotocol derp carries the same bytes, however cut", async () => {
    await start();
    const b = await relay.client();
    const keys = keyPair();
    const webSocket = new WebSocket(relay.url.replace("http", "ws"), ["derp"]);
    const stream = createWebSocketStream(webSocket);
    await once(webSocket, "open");
    assert.equal(webSocket.protocol, "derp");
    const decoder = new FrameDecoder(maxServerBodyBytes);
    const shared = sharedKey(relay.server.publicKey, keys.privateKey);
    const types: number[] = [];
    stream.on("data", (chunk: Buffer) =>
      decoder.push(chunk, (type) => {
        types.push(type);
      }),
    );
    const wire = Buffer.concat([
      sealClientInfo({ version: 2, canAckPings: true }, keys.publicKey, shared, randomBytes(24)),
      sendFrame(b.key, utf8("from a browser")),
    ]);
    for (let at = 0; at < wire.length; at += 50) stream.write(wire.subarray(at, at + 50));
    assert.equal(new TextDecoder().decode((await b.packets.take()).data), "from a browser");
    b.client.send(keys.publicKey, new Uint8Array(65_536));
    await until(() => types.includes(FRAME.recvPacket));
    assert.deepEqual(types, [FRAME.serverKey, FRAME.serverInfo, FRAME.recvPacket]);
    const closed = once(webSocket, "close");
    webSocket.send("text");
    assert.equal((await closed)[0], 1003);
  });

  for (const [what, bytes] of [
    ["garbage", new Uint8Array(500).map((_, i) => (i * 37 + 11) & 0xff)],
    ["a frame that is no ClientInfo", sendFrame(new Uint8Array(32), utf8("x"))],
    ["a short ClientInfo", Uint8Array.of(0x02, 0, 0, 0, 10, ...new Uint8Array(10))],
    ["a ClientInfo over 256 KiB", Uint8Array.of(0x02, 0, 4, 0, 1)],
    ["a box that doesn't open", Uint8Array.of(0x02, 0, 0, 0, 100, ...new Uint8Array(100).fill(3))],
  ] as const)
    it(`handshake: ${what} closes the connection`, async () => {
      await start();
      const raw = new RawClient(relay.port);
      raw.upgrade();
      await raw.nextFrame();
      raw.socket.write(bytes);
      await raw.closed;
      assert.equal(relay.server.stats.protocolErrors, 1);
    });

  it("handshake: who sends one byte now and then is closed at the deadline", async () => {
    await start({ limits: { handshakeMs: 150 } });
    const raw = new RawClient(relay.port);
    raw.upgrade();
    await raw.nextFrame();
    const drip = setInterval(() => raw.socket.write(Uint8Array.of(0x02)), 20);
    await raw.closed;
    clearInterval(drip);
    assert.equal(relay.server.stats.currentUnproven, 0);
  });

  it("handshake: one address can't hold more than its share of unproven connections", async () => {
    await start({ limits: { unprovenPerAddress: 3 } });
    const raws = Array.from({ length: 5 }, () => new RawClient(relay.port));
    for (const raw of raws) raw.upgrade();
    await Promise.race([
      Promise.all(raws.slice(0, 3).map((raw) => raw.nextFrame())),
      until(() => relay.server.stats.refused === 2),
    ]);
    await until(() => relay.server.stats.refused === 2);
    assert.equal(relay.server.stats.currentUnproven, 3);
    for (const raw of raws) raw.socket.destroy();
    await until(() => relay.server.stats.currentUnproven === 0);
    await relay.client();
  });

  it("handshake: who only opens connections keeps nobody out for long, from its own address or all", async () => {
    for (const limits of [{ unprovenPerAddress: 3 }, { unproven: 3 }]) {
      await start({ limits: { ...limits, unprovenYieldMs: 0 } });
      const raws = Array.from({ length: 3 }, () => new RawClient(relay.port));
      for (const raw of raws) raw.upgrade();
      await Promise.all(raws.map((raw) => raw.nextFrame()));
      await relay.client();
      await Promise.race(raws.map(({ closed }) => closed));
      assert.equal(relay.server.stats.currentUnproven, 2);
      assert.equal(relay.server.stats.refused, 0);
      for (const raw of raws) raw.socket.destroy();
      await relay.close();
    }
  });

  it("handshake: what unproven connections hold together is bounded", async () => {
    await start({ limits: { unprovenBytes: 100_000 } });
    const raw = new RawClient(relay.port);
    raw.upgrade();
    await raw.nextFrame();
    const frame = new Uint8Array(200_000);
    writeHeader(frame, 0, FRAME.clientInfo, 250_000);
    raw.socket.write(frame);
    await raw.closed;
  });

  it("frames between servers need the mesh key", async () => {
    await start();
    const key = new Uint8Array(32).fill(1);
    for (const frame of [
      encodeFrame({ kind: "watchConns" }),
      encodeFrame({ kind: "closePeer", key }),
      encodeFrame({ kind: "forwardPacket", src: key, dst: key, data: key }),
    ]) {
      const raw = await rawJoin(relay, { info: { meshKey: "00".repeat(32) } });
      raw.socket.write(frame);
      await raw.closed;
    }
  });

  it("unknown frames are skipped, and NotePreferred of 2 bytes closes", async () => {
    await start();
    const raw = await rawJoin(relay);
    const unknown = new Uint8Array(HEADER_BYTES + 3000);
    writeHeader(unknown, 0, 0x7f, 3000);
    raw.socket.write(Buffer.concat([unknown, encodeFrame({ kind: "ping", data: utf8("abcdefgh") })]));
    assert.equal((await raw.nextFrame()).type, FRAME.pong);
    raw.socket.write(Uint8Array.of(0x07, 0, 0, 0, 2, 1, 1));
    await raw.closed;
  });

  it("keepalives come on time", async () => {
    await start({ limits: { keepAliveMs: 50, keepAliveJitterMs: 5 } });
    const raw = await rawJoin(relay);
    assert.equal((await raw.nextFrame()).type, FRAME.keepAlive);
    assert.equal((await raw.nextFrame()).type, FRAME.keepAlive);
    raw.socket.destroy();
  });

  it("admission sees the proven key, and keeps what was sent meanwhile", async () => {
    const asked: string[] = [];
    let allow: (yes: boolean) => void = () => {};
    await start({
      admit: ({ key, remoteAddress, headers }) => {
        asked.push(`${toHex(key)} ${addressGroup(remoteAddress)} ${headers["x-ticket"]}`);
        return asked.length === 1 ? true : new Promise((resolve) => (allow = resolve));
      },
    });
    const b = await relay.client({ headers: { "X-Ticket": "t1" } });
    assert.equal(asked[0], `${toHex(b.key)} 127.0.0.1 t1`);
    const raw = rawJoin(relay, { extra: sendFrame(b.key, utf8("held")) });
    await until(() => asked.length === 2);
    assert.equal(relay.server.stats.currentConnections, 1);
    allow(true);
    assert.equal(new TextDecoder().decode((await b.packets.take()).data), "held");
    (await raw).socket.destroy();
  });

  it("who is not admitted is closed, also when the decision fails", async () => {
    for (const admit of [
      () => false,
      () => Promise.resolve(false),
      () => Promise.reject(new Error("database away")),
      () => {
        throw new Error("bug");
      },
    ]) {
      await start({ admit });
      await assert.rejects(relay.client(), { code: "ERR_RELAY_CLOSED" });
      await until(() => relay.server.stats.currentUnproven === 0);
      assert.equal(relay.server.stats.currentConnections, 0);
      await relay.close();
    }
  });

  it("health reaches who is there and who comes", async () => {
    await start();
    const a = await rawJoin(relay);
    relay.server.setHealth("disk full");
    const told = await a.nextFrame();
    assert.deepEqual([told.type, new TextDecoder().decode(told.body)], [FRAME.health, "disk full"]);
    const b = await rawJoin(relay);
    assert.equal((await b.nextFrame()).type, FRAME.health);
    relay.server.setHealth("");
    assert.equal((await b.nextFrame()).body.length, 0);
    for (const raw of [a, b]) raw.socket.destroy();
  });

  it("a revoked key is cut off", async () => {
    await start();
    const a = await relay.client();
    const closed = once(a.client, "close");
    assert.equal(relay.server.disconnect(a.key), 1);
    await closed;
    assert.equal(relay.server.disconnect(a.key), 0);
  });

  it("closing asks clients to come back, ends who doesn't listen, and takes nobody new", async () => {
    await start();
    const a = await relay.client();
    const deaf = await rawJoin(relay);
    deaf.socket.pause();
    const silent = new RawClient(relay.port);
    silent.upgrade();
    await silent.nextFrame();
    const restarting = once(a.client, "restarting");
    const closed = once(a.client, "close");
    const done = relay.server.close({ reconnectInMs: 700, tryForMs: 3_000 });
    assert.deepEqual((await restarting)[0], { reconnectInMs: 700, tryForMs: 3_000 });
    assert.deepEqual(await closed, [undefined]);
    await assert.rejects(relay.client(), { code: "ERR_RELAY_REFUSED" });
    await done;
    assert.equal(relay.server.stats.currentConnections, 0);
    deaf.socket.destroy();
  });

  it("mutated streams of a proven client bring no harm to the relay", async () => {
    await start();
    const b = await relay.client();
    const valid = Buffer.concat([
      encodeFrame({ kind: "notePreferred", home: true }),
      sendFrame(b.key, utf8("hello")),
      encodeFrame({ kind: "ping", data: utf8("12345678") }),
      encodeFrame({ kind: "pong", data: utf8("12345678") }),
      sendFrame(new Uint8Array(32), disco()),
    ]);
    let seed = 20_240_607;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
      return (seed >>> 8) % below;
    };
    for (let i = 0; i < 60; i++) {
      const wire = Buffer.from(valid.subarray(0, 1 + random(valid.length)));
      for (let n = 0; n < 3; n++) wire[random(wire.length)] = random(256);
      const raw = await rawJoin(relay);
      raw.socket.end(wire);
      await raw.closed;
    }
    await until(() => relay.server.stats.currentConnections === 1);
    await b.client.ping();
  });
});

describe("derp properties: accept limiter", () => {
  it("refuses what comes faster than allowed, and goes on accepting", async () => {
    const relay = await startRelay({ limits: { acceptsPerSecond: 100, acceptBurst: 2 } });
    const raws = Array.from({ length: 6 }, () => new RawClient(relay.port));
    for (const raw of raws) raw.upgrade();
    await until(() => relay.server.stats.accepts + relay.server.stats.refused === 6);
    assert.ok(relay.server.stats.refused >= 3);
    for (const raw of raws) raw.socket.destroy();
    let client: TestClient | undefined;
    while (!client) client = await relay.client().catch(() => undefined);
    assert.ok(client.client.connected);
    await relay.close();
  });
});

describe("address groups", () => {
  for (const [address, group] of [
    ["192.0.2.1", "192.0.2.1"],
    ["::ffff:192.0.2.1", "192.0.2.1"],
    ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2"],
    ["2001:db8:1:2::9", "2001:db8:1:2"],
    ["2001:db8::9", "2001:db8:0:0"],
    ["::1", "0:0:0:0"],
    ["fe80::1%eth0", "fe80:0:0:0"],
    ["internal", "internal"],
  ] as const)
    it(`${address} counts as ${group}`, () => assert.equal(addressGroup(address), group));
});
