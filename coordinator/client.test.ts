import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocket, WebSocketServer } from "ws";
import { systemRuntime } from "../mesh/node/runtime.ts";
import { encodeStatement } from "../mesh/wire/signed.ts";
import { CoordinatorClient, type CoordinatorError } from "./client.ts";
import { Coordinator, type NodeSubject } from "./coordinator.ts";
import { type ServeOptions, serveNode } from "./server.ts";
import { generateSigningKey, Signer } from "./signing.ts";
import { MemoryStore } from "./store.ts";

import { AGENT, alice, deps, keyOf } from "./testing.ts";

describe("coordinator client", () => {
  async function listen(
    coordinator: Coordinator,
    subjectOf: (token: string) => NodeSubject | undefined,
    port = 0,
    options: ServeOptions = {},
  ) {
    const sockets = new WebSocketServer({ noServer: true });
    const server = createServer();
    server.on("upgrade", (request, socket, head) => {
      const subject = subjectOf(String(request.headers["coder-session-token"]));
      if (!subject) return socket.end("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n");
      sockets.handleUpgrade(request, socket, head, (ws) => serveNode(coordinator, ws, subject, options));
    });
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    const stop = async () => {
      for (const client of sockets.clients) client.terminate();
      server.close();
      await once(server, "close");
    };
    return { port: (server.address() as AddressInfo).port, clients: sockets.clients, stop };
  }
  const subjects: Record<string, NodeSubject> = { user: alice, agent: { kind: "agent", agentId: AGENT } };

  it("gets grants, follows records, and comes back after the server was away", async () => {
    const d = deps({ nowMs: Date.now });
    const first = await listen(new Coordinator(d), (token) => subjects[token]);
    const url = `http://127.0.0.1:${first.port}/coordinate`;
    const states: boolean[] = [];
    let onWelcome = () => {};
    const agent = new CoordinatorClient({
      url,
      token: "agent",
      nodeKey: keyOf(7),
      homeRegion: 999,
      random: () => 0,
      onState: ({ connected }) => {
        states.push(connected);
        if (connected) onWelcome();
      },
    });
    await agent.connect();
    const user = new CoordinatorClient({ url, token: "user", nodeKey: keyOf(9) });
    const { record } = await user.requestGrant(AGENT);
    assert.equal(record?.nodeKey, keyOf(7));
    assert.ok(Math.abs(user.nowMs() - Date.now()) < 5_000);

    const back = new Promise<void>((resolve) => {
      onWelcome = resolve;
    });
    await first.stop();
    const second = await listen(
      new Coordinator({ ...d, store: new MemoryStore() }),
      (token) => subjects[token],
      first.port,
    );
    await back;
    assert.deepEqual(states, [true, false, true]);
    await Promise.all([agent.close(), user.close()]);
    await second.stop();
  });

  it("a home that is found while hello is under way is told with the welcome", async () => {
    const server = await listen(new Coordinator(deps({ nowMs: Date.now })), (token) => subjects[token]);
    const url = `http://127.0.0.1:${server.port}/coordinate`;
    const agent = new CoordinatorClient({ url, token: "agent", nodeKey: keyOf(7) });
    const connected = agent.connect();
    await Promise.resolve(); // hello is written; no answer can have come
    await Promise.resolve();
    agent.setHomeRegion(7);
    await connected;
    const user = new CoordinatorClient({ url, token: "user", nodeKey: keyOf(9) });
    const told = new Promise<number>((resolve) => {
      user.onRecord = ({ homeRegion = 0 }) => resolve(homeRegion);
    });
    const { record } = await user.requestGrant(AGENT);
    assert.equal(record?.homeRegion ?? (await told), 7);
    await Promise.all([agent.close(), user.close(), server.stop()]);
  });

  it("a node that floods is read at a pace it can't exceed", async () => {
    let published = 0;
    const coordinator = new Coordinator(deps({ onAgentPresence: () => published++ }));
    const server = await listen(coordinator, (token) => subjects[token]);
    const socket = new WebSocket(`ws://127.0.0.1:${server.port}/`, {
      headers: { "Coder-Session-Token": "agent" },
    });
    await once(socket, "open");
    socket.send(JSON.stringify({ type: "hello", version: 1, nodeKey: keyOf(7), homeRegion: 1 }));
    for (let batch = 0; batch < 20; batch++) {
      for (let i = 0; i < 100; i++) socket.send(JSON.stringify({ type: "home", homeRegion: 2 + (i % 2) }));
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    // 128 at once; beyond it what one read brought is still handled, and then nothing is read for a while.
    assert.ok(published > 0 && published < 500, `${published} of 2000 messages handled`);
    socket.terminate();
    await server.stop();
  });

  it("a node is sent away when the coordinator's clock was set, and comes back with the new time", async () => {
    let setMs = 0;
    const coordinator = new Coordinator(deps({ nowMs: () => Date.now() + setMs }));
    const options = { pingIntervalMs: 20, wallClockMs: () => Date.now() + setMs };
    const server = await listen(coordinator, (token) => subjects[token], 0, options);
    const errors: string[] = [];
    let connects = 0;
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${server.port}/`,
      token: "user",
      nodeKey: keyOf(9),
      random: () => 0,
      onState: ({ connected, error }) => {
        if (connected) connects++;
        else errors.push(String(error?.message));
      },
    });
    await user.connect();
    setMs = -3_600_000;
    while (connects < 2) await new Promise((resolve) => setImmediate(resolve));
    assert.match(errors[0], /clock was set/);
    assert.ok(Math.abs(user.nowMs() - (Date.now() + setMs)) < 5_000);
    await user.close();
    await server.stop();
  });

  it("a question outlives the connection it was asked over", async () => {
    let asked = 0;
    let server: Awaited<ReturnType<typeof listen>>;
    const coordinator = new Coordinator(
      deps({
        authorize: async () => {
          // The first time the connection is lost before the answer.
          if (++asked === 1) for (const socket of server.clients) socket.terminate();
          return { allowed: true, permissions: ["*"] };
        },
      }),
    );
    server = await listen(coordinator, (token) => subjects[token]);
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${server.port}/`,
      token: "user",
      nodeKey: keyOf(9),
      random: () => 0,
    });
    assert.ok((await user.requestGrant(AGENT)).grant.length > 0);
    assert.equal(asked, 2);
    await user.close();
    await server.stop();
  });

  it("after a sleep it asks whether the connection lives, and ends a wait for the next try", async () => {
    const server = await listen(new Coordinator(deps()), (token) => subjects[token]);
    const { port } = server;
    const states: boolean[] = [];
    let changed = () => {};
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${port}/`,
      token: "user",
      nodeKey: keyOf(9),
      random: () => 1e6, // no try by itself within this test
      onState: ({ connected }) => {
        states.push(connected);
        changed();
      },
    });
    const next = () =>
      new Promise<void>((resolve) => {
        changed = resolve;
      });
    await user.connect();
    const [socket] = server.clients;
    const pinged = once(socket, "ping");
    user.check();
    await pinged;
    let change = next();
    socket.terminate();
    await change;
    change = next();
    user.check();
    await change;
    assert.deepEqual(states, [true, false, true]);
    await user.close();
    await server.stop();
  });

  it("who says no hello, or floods, is closed with a code that says so", async () => {
    const coordinator = new Coordinator(
      deps({ authorize: () => new Promise(() => undefined) }), // never answers, so that messages wait
    );
    const server = await listen(coordinator, (token) => subjects[token], 0, { helloTimeoutMs: 20 });
    const open = async () => {
      const socket = new WebSocket(`ws://127.0.0.1:${server.port}/`, {
        headers: { "Coder-Session-Token": "user" },
      });
      await once(socket, "open");
      return socket;
    };
    const [code, reason] = await once(await open(), "close");
    assert.deepEqual([code, String(reason)], [4408, "ERR_SILENT: no hello came"]);
    const flood = await open();
    flood.send(JSON.stringify({ type: "hello", version: 1, nodeKey: keyOf(1) }));
    const question = JSON.stringify({ type: "grant-request", request: 1, agentId: AGENT });
    for (let i = 0; i < 300; i++) flood.send(question);
    assert.equal((await once(flood, "close"))[0], 4429);
    await server.stop();
  });

  it("a command leaves without waiting for the farewell, and is heard to leave in good order", async () => {
    const server = await listen(new Coordinator(deps()), (token) => subjects[token]);
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${server.port}/coordinate`,
      token: "user",
      nodeKey: keyOf(9),
      leavesAtOnce: true,
      // What would end the wait for a coordinator that does not answer.
      runtime: { ...systemRuntime, setTimer: () => ({}) },
    });
    await user.requestGrant(AGENT).catch(() => undefined);
    const [far] = server.clients;
    far.pause();
    await user.close();
    const closed = once(far, "close");
    far.resume();
    assert.equal((await closed)[0], 1000);
    await server.stop();
  });

  it("once closed it connects to nothing", async () => {
    const coordinator = new Coordinator(deps());
    const server = await listen(coordinator, (token) => subjects[token]);
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${server.port}/`,
      token: "user",
      nodeKey: keyOf(9),
    });
    await user.close();
    await assert.rejects(user.requestGrant(AGENT), { code: "ERR_COORDINATOR_UNREACHABLE" });
    await new Promise(setImmediate);
    assert.equal(coordinator.connections, 0);
    await server.stop();
  });

  it("a refused token fails the waiting call at once and says what to do", async () => {
    const server = await listen(new Coordinator(deps()), () => undefined);
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${server.port}/`,
      token: "x",
      nodeKey: keyOf(9),
    });
    await assert.rejects(user.requestGrant(AGENT), (error: CoordinatorError) => {
      assert.equal(error.code, "ERR_UNAUTHORIZED");
      assert.match(error.message, /coder login/);
      return true;
    });
    await user.close();
    await server.stop();
  });

  it("a record signed by someone else is refused, whatever the coordinator says", async () => {
    const honest = deps({ nowMs: Date.now });
    const store = new MemoryStore();
    const forger = new Signer([generateSigningKey()]);
    const record = {
      agentId: AGENT,
      nodeKey: keyOf(66),
      homeRegion: 999,
      issuedAt: Date.now(),
      expiresAt: Date.now() + 60_000,
    };
    await store.putRecord({
      connectionId: "x",
      record,
      statement: encodeStatement("nodeRecord", record, forger),
    });
    const server = await listen(new Coordinator({ ...honest, store }), (token) => subjects[token]);
    const user = new CoordinatorClient({
      url: `http://127.0.0.1:${server.port}/`,
      token: "user",
      nodeKey: keyOf(9),
    });
    await assert.rejects(user.requestGrant(AGENT), { code: "ERR_STATEMENT_UNKNOWN_KEY" });
    await user.close();
    await server.stop();
  });
});
