import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import type { Duplex } from "node:stream";
import tls from "node:tls";
import { pino } from "pino";
import { type TestDatabase, testDatabase } from "./db/testing.ts";
import { type ControlPlane, type ControlPlaneOptions, startControlPlane } from "./server.ts";

const PATH = /^\/there$/;
const UPGRADE = "GET /there HTTP/1.1\r\nHost: x\r\nUpgrade: there\r\nConnection: Upgrade\r\n\r\n";
/** Far above what a stop takes, far below what clients would hold it up for. */
const SOON_MS = 6_000;

describe("control plane", function () {
  this.timeout(60_000);
  let database: TestDatabase;
  let plane: ControlPlane | undefined;
  const sockets: net.Socket[] = [];
  before(async () => {
    database = await testDatabase();
  });
  afterEach(async () => {
    for (const socket of sockets.splice(0)) socket.destroy();
    await plane?.stop();
    plane = undefined;
  });
  after(() => database.drop());

  const start = async (options: Partial<ControlPlaneOptions>): Promise<ControlPlane> => {
    plane = await startControlPlane({
      knex: database.knex,
      databaseUrl: database.url,
      listenHost: "127.0.0.1",
      listenPort: 0,
      version: "0.1.0",
      logger: pino({ level: "silent" }),
      ...options,
    });
    return plane;
  };
  const dial = async (port: number, text = ""): Promise<net.Socket> => {
    const socket = net.connect(port, "127.0.0.1");
    socket.on("error", () => undefined);
    sockets.push(socket);
    await once(socket, "connect");
    if (text) socket.write(text);
    return socket;
  };

  it("answers upgrades that come before what serves them has started", async () => {
    let early: Promise<string> | undefined;
    let serve: ((socket: Duplex) => void) | undefined;
    await start({
      upgrades: [{ path: PATH, handle: (_req, socket) => serve?.(socket) }],
      startDaemons: async ({ accessUrl }) => {
        const socket = await dial(Number(new URL(accessUrl).port), UPGRADE);
        early = once(socket, "data").then(([bytes]) => String(bytes));
        // So that it has arrived.
        await fetch(`${accessUrl}/api/v2/buildinfo`).then((answer) => answer.text());
        serve = (duplex) => duplex.end("here I am");
        return { stop: async () => undefined };
      },
    });
    assert.equal(await early, "here I am");
  });

  it("stops soon, whatever clients leave open", async () => {
    const folder = mkdtempSync(path.join(tmpdir(), "control-"));
    const file = (name: string): string => path.join(folder, name);
    try {
      const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
      const out = ["-subj", "/CN=127.0.0.1", "-keyout", file("key"), "-out", file("cert")];
      execFileSync("openssl", ["req", "-x509", ...kind, ...out], { stdio: "ignore" });
      const running = await start({
        upgrades: [{ path: PATH, handle: (_req, socket) => void socket.write("HTTP/1.1 101 Here\r\n\r\n") }],
        tls: {
          host: "127.0.0.1",
          port: 0,
          options: { cert: readFileSync(file("cert")), key: readFileSync(file("key")) },
        },
      });
      const tlsPort = Number(new URL(running.tlsUrl ?? "").port);
      await dial(running.port);
      await dial(running.port, "GET /api/v2/buildinfo HT");
      await dial(running.port, "POST /api/v2/users/login HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{");
      await dial(tlsPort);
      await once(await dial(running.port, UPGRADE), "data");
      const secure = tls.connect({ port: tlsPort, host: "127.0.0.1", rejectUnauthorized: false });
      secure.on("error", () => undefined);
      sockets.push(secure);
      await once(secure, "secureConnect");
      const startedAt = performance.now();
      await running.stop();
      assert.ok(performance.now() - startedAt < SOON_MS);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("serves on while its daemons drain", async () => {
    let end = (): void => undefined;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    const running = await start({ startDaemons: async () => ({ stop: () => ended }) });
    const drained = running.drain();
    assert.equal((await fetch(`${running.url}/api/v2/buildinfo`)).status, 200);
    end();
    await drained;
  });
});
