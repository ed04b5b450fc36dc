import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type RequestListener, type Server } from "node:http";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import type { Duplex } from "node:stream";
import { utf8 } from "../../mesh/wire/bytes.ts";
import {
  decodeFrame,
  encodeFrame,
  type Frame,
  FrameDecoder,
  HEADER_BYTES,
  maxClientBodyBytes,
  type ServerInfo,
} from "../../mesh/wire/derp.ts";
import { keyPair, sealServerInfo, sharedKey } from "../box.ts";
import { startRelay, type TestRelay, until } from "../testing.ts";
import { DerpClient, type DerpClientOptions } from "./client.ts";

const clientOf = (url: string, options: Partial<DerpClientOptions> = {}): DerpClient =>
  new DerpClient({ url, privateKey: keyPair().privateKey, ...options });

const UPGRADED = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";

describe("DERP client", () => {
  let relay: TestRelay | undefined;
  let other: Server | undefined;
  const sockets: Duplex[] = [];

  /** An HTTP server that does with an upgraded socket what `onUpgrade` says. @returns its relay URL */
  async function fake(
    onUpgrade: ((socket: Duplex) => void) | undefined,
    onRequest?: RequestListener,
  ): Promise<string> {
    const server = createServer(onRequest);
    other = server;
    server.on("connection", (socket) => sockets.push(socket));
    if (onUpgrade)
      server.on("upgrade", (_req, socket) => {
        socket.on("error", () => {});
        onUpgrade(socket);
      });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}/derp`;
  }

  afterEach(async () => {
    for (const socket of sockets.splice(0)) socket.destroy();
    await relay?.close();
    relay = undefined;
    if (other) {
      other.close();
      await once(other, "close");
    }
    other = undefined;
  });

  it("measures the round trip to the relay", async () => {
    relay = await startRelay();
    const { client } = await relay.client();
    const rttMs = await client.ping();
    assert.ok(rttMs > 0 && rttMs < 5_000);
    await Promise.all(Array.from({ length: 16 }, () => client.ping()));
  });

  it("packets may follow the handshake at once: connect doesn't wait for the relay's half", async () => {
    relay = await startRelay();
    const b = await relay.client();
    const a = clientOf(relay.url);
    await a.connect();
    assert.equal(a.confirmed, false);
    assert.ok(a.send(b.key, utf8("early")));
    assert.deepEqual((await b.packets.take()).src, a.publicKey);
    await a.close();
  });

  it("a status other than 101 is told with what to look at", async () => {
    const url = await fake(undefined, (_req, res) => res.writeHead(404).end("no"));
    await assert.rejects(clientOf(url).connect(), {
      code: "ERR_RELAY_REFUSED",
      status: 404,
      message: /404.*proxy/,
    });
  });

  it("a closed port is unreachable", async () => {
    const tcp = createTcpServer().listen(0, "127.0.0.1");
    await once(tcp, "listening");
    const { port } = tcp.address() as AddressInfo;
    tcp.close();
    await once(tcp, "close");
    await assert.rejects(clientOf(`http://127.0.0.1:${port}/derp`).connect(), {
      code: "ERR_RELAY_UNREACHABLE",
    });
  });

  it("a server that never answers is given up after the deadline, before and after the upgrade", async () => {
    const silent = await fake(
      () => {},
      () => {},
    );
    await assert.rejects(clientOf(silent, { timeoutMs: 50 }).connect(), { code: "ERR_RELAY_TIMEOUT" });
    for (const socket of sockets.splice(0)) socket.destroy();
    other?.close();
    const upgraded = await fake((socket) => socket.write(UPGRADED));
    await assert.rejects(clientOf(upgraded, { timeoutMs: 50 }).connect(), { code: "ERR_RELAY_TIMEOUT" });
  });

  it("a relay that never finishes the handshake is given up too", async () => {
    const keys = keyPair();
    const url = await fake((socket) => {
      socket.write(UPGRADED);
      socket.write(encodeFrame({ kind: "serverKey", key: keys.publicKey }));
    });
    const client = clientOf(url, { timeoutMs: 60 });
    const closed = once(client, "close");
    await client.connect();
    assert.equal((await closed)[0].code, "ERR_RELAY_TIMEOUT");
  });

  it("connecting can be given up, and close during it leaves nothing", async () => {
    const url = await fake(() => {});
    const abort = new AbortController();
    const client = clientOf(url);
    const connecting = client.connect(abort.signal);
    await until(() => sockets.length === 1);
    abort.abort();
    await assert.rejects(connecting, { code: "ERR_RELAY_ABORTED" });
    const second = clientOf(url);
    const pending = second.connect();
    await until(() => sockets.length === 2);
    second.close();
    await assert.rejects(pending, { code: "ERR_RELAY_ABORTED" });
    await assert.rejects(clientOf(url).connect(AbortSignal.abort()), { code: "ERR_RELAY_ABORTED" });
  });

  it("what speaks no DERP is told apart from what closes", async () => {
    const garbage = await fake((socket) => socket.write(`${UPGRADED}hello, this is another protocol`));
    await assert.rejects(clientOf(garbage).connect(), { code: "ERR_RELAY_PROTOCOL" });
    other?.close();
    const closes = await fake((socket) => socket.end(UPGRADED));
    await assert.rejects(clientOf(closes).connect(), { code: "ERR_RELAY_CLOSED" });
  });

  it("a relay that doesn't own the key it announces is not believed", async () => {
    const url = await fake((socket) => {
      socket.write(UPGRADED);
      socket.write(encodeFrame({ kind: "serverKey", key: keyPair().publicKey }));
      socket.once("data", () =>
        socket.write(sealServerInfo({ version: 2 }, new Uint8Array(32), randomBytes(24))),
      );
    });
    const client = clientOf(url);
    const closed = once(client, "close");
    await client.connect();
    const [error] = await closed;
    assert.equal(error.code, "ERR_RELAY_PROTOCOL");
    assert.match(error.message, /does not own the key/);
    assert.equal(client.confirmed, false);
  });

  it("send refuses when too much waits, and drain tells when it takes packets again", async () => {
    const keys = keyPair();
    let stuck: Duplex | undefined;
    const url = await fake((socket) => {
      stuck = socket;
      socket.pause();
      socket.write(UPGRADED);
      socket.write(encodeFrame({ kind: "serverKey", key: keys.publicKey }));
    });
    const client = clientOf(url);
    await client.connect();
    const dst = new Uint8Array(32);
    const data = new Uint8Array(65_536);
    while (client.send(dst, data)) assert.ok(client.bufferedBytes <= (1 << 20) + 65_536 + 37);
    assert.ok(client.bufferedBytes > 1 << 20);
    assert.equal(client.send(dst, new Uint8Array(1)), false, "until drain");
    const drained = once(client, "drain");
    stuck?.resume();
    await drained;
    assert.ok(client.bufferedBytes <= (1 << 20) / 2);
    assert.ok(client.send(dst, data));
    await client.close();
  });

  it("a relay that goes silent is noticed, and open pings fail", async () => {
    const keys = keyPair();
    const url = await fake((socket) => {
      socket.write(UPGRADED);
      socket.write(encodeFrame({ kind: "serverKey", key: keys.publicKey }));
      socket.resume();
    });
    const client = clientOf(url, { readTimeoutMs: 60 });
    const closed = once(client, "close");
    await client.connect();
    await Promise.all([
      assert.rejects(client.ping(), { code: "ERR_RELAY_CLOSED" }),
      closed.then(([error]) => assert.equal(error.code, "ERR_RELAY_TIMEOUT")),
    ]);
    assert.equal(client.send(new Uint8Array(32), new Uint8Array(1)), false);
    await assert.rejects(client.ping(), { code: "ERR_RELAY_CLOSED" });
  });

  it("what was sent before close still arrives", async () => {
    relay = await startRelay();
    const b = await relay.client();
    const a = await relay.client();
    const count = 20;
    for (let i = 0; i < count; i++) a.client.send(b.key, new Uint8Array(60_000).fill(i));
    await a.client.close();
    for (let i = 0; i < count; i++) assert.equal((await b.packets.take()).data[0], i);
  });

  describe("fast start", () => {
    it("with a known key our half leaves with the request; the relay answers as ever", async () => {
      relay = await startRelay();
      const b = await relay.client();
      const a = clientOf(relay.url, { serverKey: relay.server.publicKey });
      await a.connect();
      assert.ok(a.fastStarted && !a.confirmed);
      assert.ok(a.send(b.key, utf8("early")));
      assert.deepEqual((await b.packets.take()).src, a.publicKey);
      assert.ok((await a.ping()) > 0);
      await a.close();
    });

    it("request, handshake and first packet need no answer", async () => {
      const keys = keyPair();
      const got: Buffer[] = [];
      const url = await fake((socket) => socket.on("data", (chunk) => got.push(chunk)));
      let head = 0;
      other?.on("upgrade", (_req, _socket, bytes) => {
        head = bytes.length;
      });
      const client = clientOf(url, { serverKey: keys.publicKey });
      await client.connect();
      client.send(new Uint8Array(32), new Uint8Array(2_000));
      await until(() => head + Buffer.concat(got).length > 2_000);
      await client.close();
    });

    it("another key than expected is told as such", async () => {
      relay = await startRelay();
      const client = clientOf(relay.url, { serverKey: keyPair().publicKey });
      const closed = once(client, "close");
      await client.connect();
      assert.equal((await closed)[0].code, "ERR_RELAY_KEY_CHANGED");
    });

    it("a refusal has its status also then", async () => {
      const url = await fake(undefined, (_req, res) => res.writeHead(403).end());
      const client = clientOf(url, { serverKey: keyPair().publicKey });
      const closed = once(client, "close");
      await client.connect();
      assert.deepEqual([(await closed)[0].code, (await closed)[0].status], ["ERR_RELAY_REFUSED", 403]);
    });

    it("a low-order key is not used", async () => {
      relay = await startRelay();
      const client = clientOf(relay.url, { serverKey: new Uint8Array(32) });
      await assert.rejects(client.connect(), { code: "ERR_RELAY_PROTOCOL" });
    });
  });

  it("sends a packet in pieces as one, wherever it is cut, and refuses one that is too large", async () => {
    relay = await startRelay();
    const { client, key, packets } = await relay.client();
    const cuts = [
      [0],
      [5],
      [16, 65_000, 16],
      [4_000, 96, 1, 4_097],
      [65_536, 0],
      [0, 0, 3],
      [1, 20_000, 20_000],
    ];
    for (const sizes of cuts)
      assert.ok(
        client.sendPieces(
          key,
          sizes.map((size, i) => new Uint8Array(size).fill(i + 1)),
        ),
      );
    for (const sizes of cuts) {
      const { data } = await packets.take();
      assert.deepEqual(Buffer.from(data), Buffer.concat(sizes.map((size, i) => Buffer.alloc(size, i + 1))));
    }
    assert.throws(() => client.sendPieces(key, [new Uint8Array(65_536), new Uint8Array(1)]), RangeError);
  });

  describe("over WebSocket", () => {
    it("carries packets of all sizes, in order", async () => {
      relay = await startRelay();
      const { client, key, packets } = await relay.client({ webSocket: true });
      const sizes = [0, 1, 16_347, 16_384, 65_536, 3, 65_536];
      for (const size of sizes) client.send(key, new Uint8Array(size).fill(size));
      for (const size of sizes) {
        const { data } = await packets.take();
        assert.equal(data.length, size);
        assert.ok(data.every((byte) => byte === (size & 0xff)));
      }
      assert.ok((await client.ping()) > 0);
    });

    it("a refusal is told with its status", async () => {
      const url = await fake(undefined, (_req, res) => res.writeHead(404).end());
      await assert.rejects(clientOf(url, { webSocket: true }).connect(), {
        code: "ERR_RELAY_REFUSED",
        status: 404,
      });
    });

    it("the relay's end is an end", async () => {
      relay = await startRelay();
      const { client } = await relay.client({ webSocket: true });
      const closed = once(client, "close");
      await relay.server.close();
      assert.equal((await closed)[0], undefined);
    });
  });

  describe("frames of the relay", () => {
    /** A connected client, and a relay that sends what it is told. */
    async function pair(options: Partial<DerpClientOptions> = {}, info: ServerInfo = { version: 2 }) {
      const keys = keyPair();
      let relaySide: Duplex | undefined;
      const received: Frame[] = [];
      const decoder = new FrameDecoder(maxClientBodyBytes);
      const url = await fake((socket) => {
        relaySide = socket;
        socket.write(UPGRADED);
        socket.write(encodeFrame({ kind: "serverKey", key: keys.publicKey }));
        socket.on("data", (chunk) =>
          decoder.push(new Uint8Array(chunk), (type, buffer, start, end) => {
            const frame = decodeFrame(type, buffer.slice(start + HEADER_BYTES, end));
            received.push(frame);
            if (frame.kind !== "clientInfo") return;
            socket.write(sealServerInfo(info, sharedKey(frame.key, keys.privateKey), randomBytes(24)));
          }),
        );
      });
      const client = clientOf(url, options);
      const confirmed = once(client, "confirmed");
      await client.connect();
      await confirmed;
      return {
        client,
        keys,
        received,
        send: (bytes: Uint8Array) => relaySide?.write(bytes),
        relaySide: relaySide!,
      };
    }

    it("ClientRecv: ping, pong, health and restarting", async () => {
      const { client, received, send } = await pair();
      const health: string[] = [];
      const restarts: number[][] = [];
      client.on("health", (problem) => health.push(problem));
      client.on("restarting", ({ reconnectInMs, tryForMs }) => restarts.push([reconnectInMs, tryForMs]));
      const data = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
      send(encodeFrame({ kind: "health", problem: "too many\u001b[31m clones" }));
      send(encodeFrame({ kind: "health", problem: "" }));
      send(encodeFrame({ kind: "restarting", reconnectInMs: 1, tryForMs: 2 }));
      send(encodeFrame({ kind: "ping", data }));
      send(encodeFrame({ kind: "pong", data })); // nobody asked
      send(Uint8Array.of(0x7f, 0, 0, 0, 2, 1, 1)); // a type of another version
      await until(() => received.some(({ kind }) => kind === "pong"));
      assert.deepEqual(health, ["too many [31m clones", ""]);
      assert.deepEqual(restarts, [[1, 2]]);
      await client.close();
    });

    it("ClientSendPing, ClientSendPong: 8 bytes, echoed", async () => {
      const { client, received, send } = await pair();
      const rtt = client.ping();
      await until(() => received.some(({ kind }) => kind === "ping"));
      const ping = received.find((frame) => frame.kind === "ping");
      assert.equal(ping?.data.length, 8);
      send(encodeFrame({ kind: "pong", data: ping!.data }));
      assert.ok((await rtt) > 0);
      const data = Uint8Array.of(9, 8, 7, 6, 5, 4, 3, 2);
      send(encodeFrame({ kind: "ping", data }));
      await until(() => received.some(({ kind }) => kind === "pong"));
      assert.deepEqual(received.find((frame) => frame.kind === "pong")?.data, data);
      await client.close();
    });

    it("ClientSendRateLimiting: without a limit all leave; a bucket of two packets lets few pass, and drain follows", async () => {
      const free = await pair();
      for (let i = 0; i < 1000; i++) assert.ok(free.client.send(new Uint8Array(32), new Uint8Array(200)));
      await free.client.close();
      other?.close();
      const limited = await pair(
        {},
        { version: 2, tokenBucketBytesPerSecond: 10_000, tokenBucketBytesBurst: 474 },
      );
      let sent = 0;
      for (let i = 0; i < 1000; i++) if (limited.client.send(new Uint8Array(32), new Uint8Array(200))) sent++;
      assert.ok(sent >= 2 && sent <= 4, `${sent} left`);
      assert.equal(limited.client.isWritable, false);
      await once(limited.client, "drain");
      assert.equal(limited.client.isWritable, true);
      await limited.client.close();
    });

    for (const [what, bytes] of [
      ["an oversize frame", () => Uint8Array.of(0x05, 0x00, 0x20, 0, 0)],
      [
        "a packet beyond 64 KiB",
        () => Buffer.concat([Uint8Array.of(0x05, 0, 1, 0, 33), Buffer.alloc(65_569)]),
      ],
      ["another server key mid-way", () => encodeFrame({ kind: "serverKey", key: keyPair().publicKey })],
      ["a malformed server key", () => Uint8Array.of(0x01, 0, 0, 0, 1, 7)],
    ] as const)
      it(`${what} ends the connection with a code`, async () => {
        const { client, send } = await pair();
        const closed = once(client, "close");
        send(bytes());
        assert.equal((await closed)[0].code, "ERR_RELAY_PROTOCOL");
      });

    it("a repeated server key is passed over", async () => {
      const { client, keys, send, received } = await pair();
      send(encodeFrame({ kind: "serverKey", key: keys.publicKey }));
      send(encodeFrame({ kind: "ping", data: new Uint8Array(8) }));
      await until(() => received.some(({ kind }) => kind === "pong"));
      await client.close();
    });

    it("bytes that never make a frame are no sign of life", async () => {
      const { client, send, relaySide } = await pair({ readTimeoutMs: 80 });
      send(Uint8Array.of(0x05, 0, 0x0f, 0, 0)); // announces much
      const timer = setInterval(() => send(new Uint8Array(1)), 5);
      relaySide.on("close", () => clearInterval(timer));
      const [error] = await once(client, "close");
      assert.equal(error.code, "ERR_RELAY_TIMEOUT");
    });

    it("a flood of PeerGone and pings is worked off and leaves nothing", async () => {
      const { client, send, relaySide } = await pair({ maxBufferedBytes: 10_000 });
      let gone = 0;
      client.on("peerGone", () => gone++);
      relaySide.pause(); // it asks, but never reads
      const one = Buffer.concat([
        encodeFrame({ kind: "peerGone", key: new Uint8Array(32), reason: 1 }),
        encodeFrame({ kind: "ping", data: new Uint8Array(8) }),
      ]);
      const many = Buffer.concat(Array.from({ length: 20_000 }, () => one));
      for (let i = 0; i < 20; i++) send(many);
      await until(() => gone === 400_000);
      assert.ok(client.bufferedBytes <= 10_100, `${client.bufferedBytes} bytes wait`);
      client.abandon(new Error("over"));
    });
  });
});
