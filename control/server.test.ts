import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
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

  describe("with more who knock than are looked up at once", () => {
    /** Holds back every look-up of an agent's token until it is told to go on. */
    async function holdBack(): Promise<() => Promise<void>> {
      const lock = await database.knex.transaction();
      await lock.raw("lock table workspace_agents in access exclusive mode");
      return async () => void (await lock.commit());
    }
    /** `count` clients, one after the other, held back; `served` names them in the order in which they were served. */
    async function knock(count: number) {
      const served: string[] = [];
      const lookups: string[] = [];
      const onQuery = ({ sql }: { sql: string }) =>
        sql.includes("where a.token_hash = ") && lookups.push(sql);
      database.knex.on("query", onQuery);
      let arrived = 0;
      let onArrived: () => void = () => undefined;
      const running = await start({
        upgrades: [
          {
            path: PATH,
            async handle(req, socket, _head, authenticate) {
              socket.once("close", () => onGone());
              arrived++;
              onArrived();
              await authenticate().catch(() => undefined);
              if (!socket.destroyed) served.push(String(req.headers["x-name"]));
              socket.end("HTTP/1.1 401 No\r\n\r\n");
            },
          },
        ],
      });
      let onGone: () => void = () => undefined;
      const goOn = await holdBack();
      const clients: net.Socket[] = [];
      for (let i = 0; i < count; i++) {
        const token = `Coder-Session-Token: ${randomUUID()}\r\nX-Name: ${i}\r\nHost: x`;
        clients.push(await dial(running.port, UPGRADE.replace("Host: x", token)));
        while (arrived <= i)
          await new Promise<void>((resolve) => {
            onArrived = resolve;
          });
      }
      return {
        served,
        lookups,
        clients,
        goOn,
        /** Resolves once the server knows that these are gone. */
        async leave(leaving: net.Socket[]): Promise<void> {
          let left = leaving.length;
          const gone = new Promise<void>((resolve) => {
            onGone = () => {
              if (--left === 0) resolve();
            };
          });
          for (const socket of leaving) socket.end();
          await gone;
        },
        stop: () => database.knex.off("query", onQuery),
      };
    }
    const closed = (clients: net.Socket[]) =>
      Promise.all(clients.map((socket) => socket.closed || once(socket.resume(), "close")));

    it("nothing is looked up for those who left meanwhile", async () => {
      const { clients, goOn, leave, lookups, served, stop } = await knock(40);
      const [stay, leaving] = [clients.slice(0, 10), clients.slice(10)];
      await leave(leaving);
      await goOn();
      await closed(stay);
      stop();
      assert.equal(lookups.length, stay.length);
      assert.deepEqual(
        served.map(Number).sort((a, b) => a - b),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
      );
    });

    it("those who came last are served first while many wait: the others are about to give up", async () => {
      const { clients, goOn, served, stop } = await knock(120);
      await goOn();
      await closed(clients);
      stop();
      const turn = (name: number) => served.indexOf(String(name));
      const turns = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => turn(from + i));
      assert.ok(Math.max(...turns(90, 120)) < Math.min(...turns(20, 70)), served.join(" "));
    });
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
