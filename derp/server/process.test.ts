import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { PassThrough } from "node:stream";
import { fileURLToPath } from "node:url";
import { toHex, utf8 } from "../../mesh/wire/bytes.ts";
import { encodeFrame } from "../../mesh/wire/derp.ts";
import { keyPair, sealClientInfo, sharedKey } from "../box.ts";
import { DerpClient } from "../client/client.ts";
import { Inbox, RawClient, until } from "../testing.ts";
import { RelayProcess, type RelayProcessOptions } from "./process.ts";
import { DerpServer } from "./server.ts";
import { readTls } from "./tls.ts";

const MODULE = fileURLToPath(new URL("./process-main.ts", import.meta.url));

describe("relay in its own process", function () {
  this.timeout(30_000);
  let relay: RelayProcess;
  let http: Server | undefined;
  let port: number;
  const clients: DerpClient[] = [];
  let folder: string | undefined;

  const start = async (options: Partial<RelayProcessOptions> = {}): Promise<void> => {
    const privateKey = keyPair().privateKey;
    const common = { privateKey, fallback: () => new DerpServer({ privateKey }) };
    relay = new RelayProcess({ modulePath: MODULE, execArgv: ["--import", "tsx"], ...common, ...options });
    http = createServer((_req, res) => res.end());
    http.on("upgrade", (req, socket, head) => relay.handleUpgrade(req, socket, head));
    http.listen(0, "127.0.0.1");
    await once(http, "listening");
    port = (http.address() as AddressInfo).port;
  };
  const join = async (options: Partial<ConstructorParameters<typeof DerpClient>[0]> = {}) => {
    const client = new DerpClient({
      url: `http://127.0.0.1:${port}/derp`,
      privateKey: keyPair().privateKey,
      ...options,
    });
    clients.push(client);
    const packets = new Inbox<string>();
    client.on("packet", ({ data }) => packets.push(new TextDecoder().decode(data)));
    const confirmed = once(client, "confirmed");
    await client.connect();
    await confirmed;
    return { client, key: client.publicKey, packets };
  };
  const folderOf = (): string => {
    folder ??= mkdtempSync(path.join(tmpdir(), "relay-process-"));
    return folder;
  };
  /** A certificate for 127.0.0.1 and its key, in files. */
  const certificate = (): { certFiles: string[]; keyFiles: string[]; minVersion: "TLSv1.2"; ca: string } => {
    const cert = path.join(folderOf(), "cert.pem");
    const key = path.join(folderOf(), "key.pem");
    const subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"];
    const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    execFileSync("openssl", ["req", "-x509", ...kind, ...subject, "-keyout", key, "-out", cert], {
      stdio: "ignore",
    });
    return { certFiles: [cert], keyFiles: [key], minVersion: "TLSv1.2", ca: readFileSync(cert, "utf8") };
  };

  afterEach(async () => {
    await Promise.all(clients.splice(0).map((client) => client.close()));
    await relay.close();
    if (http) {
      // Done at once: nothing that was handed over counts as a connection of this server any more.
      const closed = once(http, "close");
      http.close();
      await closed;
    }
    http = undefined;
    if (folder) rmSync(folder, { recursive: true });
    folder = undefined;
  });

  it("takes the sockets of upgrades that came before it was there, with the server's key", async () => {
    await start();
    assert.equal(relay.isUp, false);
    const [a, b] = await Promise.all([join(), join()]);
    assert.equal(toHex(a.client.serverKey!), toHex(relay.publicKey));
    a.client.send(b.key, utf8("across"));
    assert.equal(await b.packets.take(), "across");
    const metrics = await relay.metrics();
    const value = (name: string) => metrics.find((metric) => metric.name === name)?.values[0].value;
    assert.deepEqual([value("packets_received"), value("gauge_current_connections")], [1, 2]);
    assert.deepEqual([value("process_up"), value("process_piped")], [1, 0]);
  });

  it("loses no byte that arrives while a socket is handed over", async () => {
    await start();
    await relay.ready;
    const b = await join();
    const count = 300;
    for (let round = 0; round < 5; round++) {
      const raw = new RawClient(port);
      const shared = sharedKey(relay.publicKey, raw.keys.privateKey);
      const info = sealClientInfo(
        { version: 2, canAckPings: true },
        raw.keys.publicKey,
        shared,
        randomBytes(24),
      );
      raw.upgrade("Derp-Fast-Start: 1\r\n");
      raw.socket.write(info);
      // Pieces that arrive before, during and after the hand-over.
      for (let i = 0; i < count; i++) {
        raw.socket.write(encodeFrame({ kind: "sendPacket", dst: b.key, data: utf8(`${round}/${i}`) }));
        if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      for (let i = 0; i < count; i++) assert.equal(await b.packets.take(), `${round}/${i}`);
      raw.socket.destroy();
    }
  });

  it("a crashed process is started again with the same key, and clients come back", async () => {
    await start({ random: () => 0 });
    await relay.ready;
    const privateKey = keyPair().privateKey;
    const before = await join({ privateKey });
    const closed = once(before.client, "close");
    process.kill(relay.pid!, "SIGKILL");
    await closed;
    await until(() => !relay.isUp); // a socket handed over before that is closed, and its client tries again
    const after = await join({ privateKey });
    assert.equal(relay.restarts, 1);
    assert.deepEqual(after.client.serverKey, before.client.serverKey);
    after.client.send(after.key, utf8("again"));
    assert.equal(await after.packets.take(), "again");
  });

  it("revocations outlive a crash", async () => {
    await start({ random: () => 0 });
    await relay.ready;
    const privateKey = keyPair().privateKey;
    const { client, key } = await join({ privateKey });
    const closed = once(client, "close");
    relay.closePeer(key);
    await closed;
    process.kill(relay.pid!, "SIGKILL");
    await until(() => !relay.isUp);
    await assert.rejects(
      Promise.race([
        join({ privateKey }),
        once(clients.at(-1)!, "close").then(() => Promise.reject(new Error("closed"))),
      ]),
    );
  });

  it("listens with TLS itself, while connections to the server's own TLS pass through it", async () => {
    const { ca, ...tls } = certificate();
    await start({ listen: { host: "127.0.0.1", port: 0, tls } });
    await relay.ready;
    const own = await join({ url: `https://127.0.0.1:${relay.port}/derp`, ca });
    const front = https.createServer(readTls(tls, relay.publicKey, Date.now()));
    front.on("upgrade", (req, socket, head) => relay.handleUpgrade(req, socket, head));
    front.listen(0, "127.0.0.1");
    await once(front, "listening");
    const through = await join({
      url: `https://127.0.0.1:${(front.address() as AddressInfo).port}/derp`,
      ca,
    });
    own.client.send(through.key, utf8("to the one behind the server"));
    assert.equal(await through.packets.take(), "to the one behind the server");
    const big = "x".repeat(60_000);
    for (let i = 0; i < 15; i++) assert.ok(through.client.send(own.key, utf8(big + i)));
    for (let i = 0; i < 15; i++) assert.equal(await own.packets.take(), big + i);
    await through.client.close();
    await until(() => through.client.connected === false);
    front.close();
    front.closeAllConnections();
  });

  it("reads changed certificates again when told", async () => {
    const { ca, ...tls } = certificate();
    await start({ listen: { host: "127.0.0.1", port: 0, tls } });
    await relay.ready;
    await (await join({ url: `https://127.0.0.1:${relay.port}/derp`, ca })).client.close();
    const renewed = certificate();
    relay.reloadCertificates();
    await relay.metrics(); // answered in order
    await assert.rejects(join({ url: `https://127.0.0.1:${relay.port}/derp`, ca }));
    await join({ url: `https://127.0.0.1:${relay.port}/derp`, ca: renewed.ca });
  });

  it("says why it can't listen", async () => {
    const { ca: _, ...tls } = certificate();
    await start({ listen: { host: "127.0.0.1", port: 0, tls: { ...tls, keyFiles: ["/nowhere/key.pem"] } } });
    await assert.rejects(relay.ready, { code: "ERR_RELAY_PROCESS", message: /\/nowhere\/key\.pem/ });
  });

  it("asks clients to come back when it closes, and ends", async () => {
    await start();
    const { client } = await join();
    const restarting = once(client, "restarting");
    const { pid } = relay;
    await relay.close({ reconnectInMs: 700, tryForMs: 3_000 });
    assert.deepEqual((await restarting)[0], { reconnectInMs: 700, tryForMs: 3_000 });
    assert.throws(() => process.kill(pid!, 0), { code: "ESRCH" });
    const raw = new RawClient(port);
    raw.upgrade();
    await raw.closed;
    assert.match(raw.head, /^HTTP\/1\.1 503/);
    assert.equal(raw.frames.size, 0);
  });

  it("sockets on their way to a process that dies are closed, and no hand-over is counted for ever", async () => {
    await start({ random: () => 0 });
    await relay.ready;
    await join();
    const { pid } = relay;
    process.kill(pid!, "SIGSTOP");
    const raws = Array.from({ length: 20 }, () => new RawClient(port));
    for (const raw of raws) raw.upgrade();
    await until(() => relay.handovers === 19); // one waits in the pipe already
    process.kill(pid!, "SIGKILL");
    await Promise.all(raws.map(({ closed }) => closed));
    assert.equal(relay.handovers, 0);
    await join();
  });

  it("a TLS connection that ends while it is passed on leaves no socket behind", async () => {
    await start();
    await relay.ready;
    const sockets = () => process.getActiveResourcesInfo().filter((kind) => kind === "TCPSocketWrap").length;
    const before = sockets();
    const request = { method: "GET", url: "/derp", headers: {}, socket: {} };
    for (let i = 0; i < 20; i++) {
      const socket = new PassThrough();
      relay.handleUpgrade(request, socket, new Uint8Array());
      if (i % 2) socket.destroy();
      else setImmediate(() => socket.destroy());
    }
    await until(() => sockets() > before);
    const giveUpAt = performance.now() + 10_000;
    await until(() => sockets() <= before || performance.now() > giveUpAt);
    assert.ok(sockets() <= before, `${sockets() - before} sockets are left`);
    const { values } = (await relay.metrics()).find(({ name }) => name === "process_piped")!;
    assert.equal(values[0].value, 0);
  });

  it("without a program to start, the relay serves in its server's process, and closes", async () => {
    const { execPath } = process;
    process.execPath = path.join(folderOf(), "no-such-node");
    try {
      await start({ random: () => 0 });
      await relay.ready;
    } finally {
      process.execPath = execPath;
    }
    assert.equal(relay.pid, undefined);
    const [a, b] = await Promise.all([join(), join()]);
    assert.equal(toHex(a.client.serverKey!), toHex(relay.publicKey));
    a.client.send(b.key, utf8("all the same"));
    assert.equal(await b.packets.take(), "all the same");
    const metrics = await relay.metrics();
    assert.equal(metrics.find(({ name }) => name === "process_fallback")?.values[0].value, 1);
  });

  it("a process that ends at each start is given up, and what was revoked before stays so", async () => {
    const modulePath = path.join(folderOf(), "broken.js");
    writeFileSync(modulePath, "process.exit(1)");
    await start({ modulePath, execArgv: [], random: () => 0 });
    const { publicKey, privateKey } = keyPair();
    relay.closePeer(publicKey);
    await relay.ready;
    await join();
    await assert.rejects(
      Promise.race([
        join({ privateKey }),
        once(clients.at(-1)!, "close").then(() => Promise.reject(new Error("closed"))),
      ]),
    );
  });

  it("ends with its server, however that ends", async () => {
    const script = `
      import { RelayProcess } from ${JSON.stringify(new URL("./process.ts", import.meta.url).href)};
      const relay = new RelayProcess({ modulePath: ${JSON.stringify(MODULE)}, execArgv: ["--import", "tsx"] });
      await relay.ready;
      console.log(relay.pid);
      setInterval(() => {}, 1000);`;
    const server = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const [line] = (await once(server.stdout, "data")) as [Buffer];
    const pid = Number(line.toString());
    assert.equal(process.kill(pid, 0), true);
    server.kill("SIGKILL");
    await until(() => {
      try {
        return !process.kill(pid, 0);
      } catch {
        return true;
      }
    });
  });
});
