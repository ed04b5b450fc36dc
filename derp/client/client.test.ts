import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import type { Duplex } from "node:stream";
import { utf8 } from "../../mesh/wire/bytes.ts";
import { encodeFrame } from "../../mesh/wire/derp.ts";
import { keyPair, sealServerInfo } from "../box.ts";
import { DerpServer } from "../server/server.ts";
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

  it("connects over TLS, and not to a certificate it can't check", async function () {
    const folder = mkdtempSync(path.join(tmpdir(), "derp-tls-"));
    try {
      try {
        execFileSync(
          "openssl",
          "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem".split(
            " ",
          ),
          { cwd: folder, stdio: "ignore" },
        );
      } catch {
        console.log("      skipped: no openssl command to make a certificate with");
        this.skip();
      }
      const cert = readFileSync(path.join(folder, "cert.pem"), "utf8");
      const derp = new DerpServer();
      const server = createTlsServer({ cert, key: readFileSync(path.join(folder, "key.pem")) });
      server.on("upgrade", (req, socket, head) => derp.handleUpgrade(req, socket, head));
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      const { port } = server.address() as AddressInfo;
      const url = `https://localhost:${port}/derp`;
      await assert.rejects(clientOf(url, { address: "127.0.0.1" }).connect(), {
        code: "ERR_RELAY_UNREACHABLE",
      });
      const client = clientOf(url, { address: "127.0.0.1", ca: cert });
      const received: number[] = [];
      client.on("packet", ({ data }) => received.push(data.length));
      await client.connect();
      for (let i = 0; i < 40; i++) assert.ok(client.send(client.publicKey, new Uint8Array(20_000 + i)));
      await until(() => received.length === 40);
      assert.deepEqual(
        received,
        Array.from({ length: 40 }, (_, i) => 20_000 + i),
      );
      await client.close();
      await derp.close();
      server.close();
      await once(server, "close");
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
