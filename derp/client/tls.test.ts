import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server, type ServerOptions } from "node:https";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { toHex, utf8 } from "../../mesh/wire/bytes.ts";
import { keyPair } from "../box.ts";
import { makeMetaCertificate, withMetaCertificate } from "../server/meta-cert.ts";
import { DerpServer } from "../server/server.ts";
import { until } from "../testing.ts";
import { DerpClient, type DerpClientOptions } from "./client.ts";

describe("DERP client over TLS", () => {
  let folder = "";
  const files = new Map<string, { cert: string; key: string }>();
  let derp: DerpServer | undefined;
  let server: Server | undefined;
  const tunnels: { close(): Promise<void> }[] = [];
  const upgrades: { fast: boolean; headBytes: number }[] = [];

  const certificate = (name: string, subject: string, names: string, days = 2): void => {
    const command =
      `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days ${days} -subj /CN=${subject} ` +
      `-addext subjectAltName=${names} -keyout ${name}.key -out ${name}.pem`;
    execFileSync("openssl", command.split(" "), { cwd: folder, stdio: "ignore" });
    const read = (ending: string): string => readFileSync(path.join(folder, `${name}.${ending}`), "utf8");
    files.set(name, { cert: read("pem"), key: read("key") });
  };

  before(function () {
    folder = mkdtempSync(path.join(tmpdir(), "derp-tls-"));
    try {
      certificate("localhost", "localhost", "DNS:localhost");
      certificate("other", "other.test", "DNS:other.test");
      certificate("ip", "whatever", "IP:127.0.0.1");
    } catch {
      console.log("      skipped: no openssl command to make certificates with");
      this.skip();
    }
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  const start = async (
    name: string,
    { meta = false, ...tls }: ServerOptions & { meta?: boolean } = {},
  ): Promise<number> => {
    const { cert, key: tlsKey } = files.get(name)!;
    const running = new DerpServer();
    derp = running;
    const chain = meta ? withMetaCertificate(cert, makeMetaCertificate(running.publicKey, Date.now())) : cert;
    server = createServer({ cert: chain, key: tlsKey, ...tls });
    server.on("upgrade", (req, socket, head) => {
      upgrades.push({ fast: req.headers["derp-fast-start"] === "1", headBytes: head.length });
      running.handleUpgrade(req, socket, head);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  };
  const clientAt = (url: string, options: Partial<DerpClientOptions> = {}): DerpClient =>
    new DerpClient({
      url,
      privateKey: keyPair().privateKey,
      address: "127.0.0.1",
      environment: {},
      ...options,
    });
  const works = async (client: DerpClient): Promise<void> => {
    await client.connect();
    assert.ok((await client.ping()) > 0);
    await client.close();
  };
  const pin = (name: string): string =>
    `sha256-raw:${createHash("sha256")
      .update(new X509Certificate(files.get(name)!.cert).raw)
      .digest("hex")}`;

  afterEach(async () => {
    upgrades.length = 0;
    await Promise.all(tunnels.splice(0).map((tunnel) => tunnel.close()));
    await derp?.close();
    if (server) {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    }
    derp = server = undefined;
  });

  it("MetaCert: the relay's certificate tells its key, and our half leaves with the request", async () => {
    const port = await start("localhost", { meta: true });
    const client = clientAt(`https://localhost:${port}/derp`, { ca: files.get("localhost")!.cert });
    const packets: Uint8Array[] = [];
    client.on("packet", ({ data }) => packets.push(data));
    await client.connect();
    assert.ok(client.fastStarted && !client.confirmed);
    assert.equal(toHex(client.serverKey!), toHex(derp!.publicKey));
    client.send(client.publicKey, utf8("in the first flight"));
    await until(() => packets.length === 1);
    assert.ok(upgrades[0].fast);
    assert.ok(upgrades[0].headBytes > 0, "in one piece with the request");
    await client.close();
  });

  it("under TLS 1.2 the hint is not believed, and the plain way taken", async () => {
    const port = await start("localhost", { meta: true, maxVersion: "TLSv1.2" });
    const client = clientAt(`https://localhost:${port}/derp`, { ca: files.get("localhost")!.cert });
    await works(client);
    assert.deepEqual([client.fastStarted, upgrades[0].fast], [false, false]);
  });

  it("TLS below 1.2 is refused", async () => {
    const port = await start("localhost", {
      minVersion: "TLSv1",
      maxVersion: "TLSv1.1",
      ciphers: "DEFAULT@SECLEVEL=0",
    });
    await assert.rejects(clientAt(`https://localhost:${port}/derp`, { insecure: true }).connect(), {
      code: "ERR_RELAY_TLS",
    });
  });

  it("CertName: another name is verified than the one that is dialled", async () => {
    const port = await start("other");
    const url = `https://localhost:${port}/derp`;
    const ca = files.get("other")!.cert;
    await assert.rejects(clientAt(url, { ca }).connect(), { code: "ERR_RELAY_TLS" });
    await assert.rejects(clientAt(url, { ca, certName: "third.test" }).connect(), { code: "ERR_RELAY_TLS" });
    await works(clientAt(url, { ca, certName: "other.test" }));
  });

  it("InsecureForTests: any certificate", async () => {
    const port = await start("other");
    await works(clientAt(`https://localhost:${port}/derp`, { insecure: true }));
  });

  it("CertIP: an address as host name is verified as one", async () => {
    const port = await start("ip");
    await works(clientAt(`https://127.0.0.1:${port}/derp`, { ca: files.get("ip")!.cert }));
  });

  it("PinnedCertRawIP: exactly the pinned certificate, no authority, meta certificate or not", async () => {
    const port = await start("ip", { meta: true });
    const url = `https://127.0.0.1:${port}/derp`;
    await works(clientAt(url, { certName: pin("ip") }));
    assert.ok(upgrades[0].fast);
    await assert.rejects(clientAt(url, { certName: pin("other") }).connect(), {
      code: "ERR_RELAY_TLS",
      message: /its certificate is sha256-raw:[0-9a-f]{64}/,
    });
  });

  it("a pinned certificate must be for the name, and the only one", async () => {
    const port = await start("other");
    await assert.rejects(clientAt(`https://localhost:${port}/derp`, { certName: pin("other") }).connect(), {
      code: "ERR_RELAY_TLS",
      message: /another name/,
    });
    server!.setSecureContext({
      ...files.get("ip")!,
      cert: `${files.get("ip")!.cert}\n${files.get("other")!.cert}`,
    });
    await assert.rejects(clientAt(`https://127.0.0.1:${port}/derp`, { certName: pin("ip") }).connect(), {
      code: "ERR_RELAY_TLS",
      message: /2 certificates/,
    });
  });

  it("works through a tunnel, with TLS end to end", async () => {
    const port = await start("localhost", { meta: true });
    const sockets: Socket[] = [];
    const proxy = createTcpServer((socket) => {
      sockets.push(socket);
      socket.on("error", () => {});
      socket.once("data", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        const onward = connect(port, "127.0.0.1").on("error", () => socket.destroy());
        sockets.push(onward);
        socket.pipe(onward).pipe(socket);
      });
    }).listen(0, "127.0.0.1");
    await once(proxy, "listening");
    tunnels.push({
      close: async () => {
        for (const socket of sockets) socket.destroy();
        proxy.close();
        await once(proxy, "close");
      },
    });
    const environment = { HTTPS_PROXY: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}` };
    await works(
      clientAt("https://relay.test/derp", {
        environment,
        ca: files.get("localhost")!.cert,
        certName: "localhost",
      }),
    );
    assert.ok(upgrades[0].fast);
  });

  it("carries many large packets in order", async () => {
    const port = await start("localhost");
    const client = clientAt(`https://localhost:${port}/derp`, { ca: files.get("localhost")!.cert });
    const received: number[] = [];
    client.on("packet", ({ data }) => received.push(data.length));
    await client.connect();
    const sizes = Array.from({ length: 40 }, (_, i) => 20_000 + i);
    for (const size of sizes) assert.ok(client.send(client.publicKey, new Uint8Array(size)));
    await until(() => received.length === sizes.length);
    assert.deepEqual(received, sizes);
    await client.close();
  });
});
