import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { randomBytes, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { type ConnectionOptions, connect, type TLSSocket } from "node:tls";
import { promisify } from "node:util";
import { toHex, utf8 } from "../../mesh/wire/bytes.ts";
import { encodeFrame, FRAME, FrameDecoder, HEADER_BYTES, maxServerBodyBytes } from "../../mesh/wire/derp.ts";
import { keyPair, sealClientInfo, sharedKey } from "../box.ts";
import { until } from "../testing.ts";
import { der, makeMetaCertificate, withMetaCertificate } from "./meta-cert.ts";
import { DerpServer } from "./server.ts";
import { readTls } from "./tls.ts";

const KEY = new Uint8Array(32).map((_, i) => i);
const DAY_MS = 24 * 3_600_000;

describe("meta certificate", () => {
  it("MetaCert: carries key and version, is signed by itself, and valid for 30 days around", () => {
    const now = Date.UTC(2026, 7, 1, 12, 30, 15);
    const certificate = new X509Certificate(makeMetaCertificate(KEY, now));
    assert.equal(certificate.subject, `CN=derpkey${toHex(KEY)}`);
    assert.equal(certificate.issuer, certificate.subject);
    assert.equal(certificate.serialNumber, "02");
    assert.equal(certificate.verify(certificate.publicKey), true);
    assert.equal(certificate.publicKey.asymmetricKeyType, "ed25519");
    assert.equal(certificate.ca, false);
    assert.equal(Date.parse(certificate.validFrom), now - 30 * DAY_MS);
    assert.equal(Date.parse(certificate.validTo), now + 30 * DAY_MS);
  });

  it("MetaCert: writes years from 2050 with four digits", () => {
    const certificate = new X509Certificate(makeMetaCertificate(KEY, Date.UTC(2049, 11, 20)));
    assert.equal(Date.parse(certificate.validFrom), Date.UTC(2049, 10, 20));
    assert.equal(Date.parse(certificate.validTo), Date.UTC(2050, 0, 19));
  });

  it("MetaCert: openssl takes it, with basicConstraints as its only extension", () => {
    const text = execFileSync("openssl", ["x509", "-inform", "der", "-noout", "-text"], {
      input: makeMetaCertificate(KEY, Date.now()),
      encoding: "utf8",
    });
    assert.match(
      text,
      /X509v3 extensions:\s+X509v3 Basic Constraints: critical\s+CA:FALSE\s+Signature Algorithm/,
    );
  });

  it("writes lengths of one, two and three bytes", () => {
    const lengths = [127, 128, 255, 256, 65_535].map((size) =>
      toHex(der(4, new Uint8Array(size))).slice(0, 8),
    );
    assert.deepEqual(lengths, ["047f0000", "04818000", "0481ff00", "04820100", "0482ffff"]);
  });

  it("ModifyTLSConfigToAddMetaCert: stands last, and the chain it is added to stays as it is", () => {
    const chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\n";
    const pem = withMetaCertificate(chain, makeMetaCertificate(KEY, 0));
    assert.equal(pem.match(/BEGIN CERTIFICATE/g)?.length, 2);
    assert.ok(pem.startsWith(chain.trimEnd()));
    assert.equal(new X509Certificate(pem.slice(pem.lastIndexOf("-----BEGIN"))).serialNumber, "02");
    assert.ok(pem.split("\n").every((line) => line.length <= 64));
  });
});

describe("derp properties: TLS", () => {
  let folder: string;
  let relay: DerpServer;
  let server: https.Server | undefined;
  const files = (name = "127.0.0.1") => {
    const cert = path.join(folder, `${name}.pem`);
    const key = path.join(folder, `${name}.key`);
    const subject = ["-subj", `/CN=${name}`, "-days", "2"];
    const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    execFileSync("openssl", ["req", "-x509", ...kind, ...subject, "-keyout", key, "-out", cert], {
      stdio: "ignore",
    });
    return { certFiles: [cert], keyFiles: [key], minVersion: "TLSv1.2" as const };
  };
  const start = async (tls: Parameters<typeof readTls>[0]): Promise<number> => {
    relay = new DerpServer();
    server = https.createServer(readTls(tls, relay.publicKey, Date.now()));
    server.on("upgrade", (req, socket, head) => relay.handleUpgrade(req, socket, head));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  };
  const dial = async (port: number, options: ConnectionOptions = {}): Promise<TLSSocket> => {
    const socket = connect({ port, host: "127.0.0.1", rejectUnauthorized: false, ...options });
    socket.on("error", () => {});
    await once(socket, "secureConnect");
    return socket;
  };
  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), "derp-tls-"));
  });
  afterEach(async () => {
    await relay?.close();
    server?.close();
    server?.closeAllConnections();
    server = undefined;
    rmSync(folder, { recursive: true });
  });

  it("presents the meta certificate behind its own, and offers HTTP/1.1 alone", async () => {
    const port = await start(files());
    const socket = await dial(port, { ALPNProtocols: ["h2", "http/1.1"] });
    assert.equal(socket.alpnProtocol, "http/1.1");
    const asked = promisify(execFile)("openssl", [
      "s_client",
      ...["-connect", `127.0.0.1:${port}`, "-showcerts", "-servername", "x"],
    ]);
    asked.child.stdin?.end();
    const { stdout: shown } = await asked;
    assert.match(shown, new RegExp(`1 s:CN ?= ?derpkey${toHex(relay.publicKey)}`));
    socket.destroy();
  });

  it("fast start: request, ClientInfo and a packet in one flight get ServerKey without an HTTP response", async () => {
    const port = await start(files());
    const socket = await dial(port, { minVersion: "TLSv1.3" });
    const keys = keyPair();
    const shared = sharedKey(relay.publicKey, keys.privateKey);
    const info = sealClientInfo({ version: 2, canAckPings: true }, keys.publicKey, shared, randomBytes(24));
    const frames: { type: number; body: Uint8Array }[] = [];
    const decoder = new FrameDecoder(maxServerBodyBytes);
    socket.on("data", (chunk: Buffer) => {
      decoder.push(new Uint8Array(chunk), (type, buffer, from, to) => {
        frames.push({ type, body: buffer.slice(from + HEADER_BYTES, to) });
      });
    });
    socket.write(
      Buffer.concat([
        utf8(
          "GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n",
        ),
        info,
        encodeFrame({ kind: "sendPacket", dst: keys.publicKey, data: utf8("to myself") }),
      ]),
    );
    await until(() => frames.length === 3);
    assert.deepEqual(
      frames.map(({ type }) => type),
      [FRAME.serverKey, FRAME.serverInfo, FRAME.recvPacket],
    );
    assert.equal(new TextDecoder().decode(frames[2].body.subarray(32)), "to myself");
    socket.destroy();
  });

  it("takes no TLS older than it was told to", async () => {
    const port = await start({ ...files(), minVersion: "TLSv1.3" });
    const old = connect({ port, host: "127.0.0.1", rejectUnauthorized: false, maxVersion: "TLSv1.2" });
    const [error] = await once(old, "error");
    assert.match(error.code, /TLS|SSL|ECONNRESET/);
    const socket = await dial(port);
    assert.equal(socket.getProtocol(), "TLSv1.3");
    socket.destroy();
  });

  it("says which file is wrong", async () => {
    const good = files();
    const other = files("other");
    const broken = path.join(folder, "broken.pem");
    writeFileSync(broken, "no certificate");
    for (const [tls, problem] of [
      [{ ...good, keyFiles: [] }, /a key for each certificate/],
      [{ ...good, certFiles: [path.join(folder, "missing.pem")] }, /missing\.pem/],
      [{ ...good, certFiles: [broken] }, /broken\.pem/],
      [{ ...good, keyFiles: other.keyFiles }, /with its key/],
    ] as const)
      assert.throws(() => readTls(tls, KEY, 0), { code: "ERR_TLS_FILES", message: problem });
  });
});
