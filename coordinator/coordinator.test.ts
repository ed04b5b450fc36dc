import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { WebSocket, WebSocketServer } from "ws";
import { toBase64 } from "../mesh/wire/bytes.ts";
import { type CoordinatorMessage, MAX_LIVE_GRANTS } from "../mesh/wire/coordinator.ts";
import { encodeStatement, isPermitted, openStatement, StatementError } from "../mesh/wire/signed.ts";
import { backoffMs, CoordinatorClient, type CoordinatorError, verifyEd25519 } from "./client.ts";
import {
  Coordinator,
  type CoordinatorDeps,
  GRANT_TTL_MS,
  MAX_GRANTS_PER_USER,
  type NodeLink,
  type NodeSubject,
  RECORD_TTL_MS,
} from "./coordinator.ts";
import { type ServeOptions, serveNode } from "./server.ts";
import { generateSigningKey, Signer } from "./signing.ts";
import { MemoryStore } from "./store.ts";

const AGENT = "6b2f4a3e-9f7c-4a55-8a3c-0d9f5f1f2a10";
const USER = "0f6f2f60-59c4-4a3f-9d0b-4b8f4b1c9f11";
const keyOf = (fill: number) => toBase64(new Uint8Array(32).fill(fill));
const alice: NodeSubject = { kind: "user", userId: USER, username: "alice", tokenId: "token1" };

class Peer {
  readonly said: CoordinatorMessage[] = [];
  closed: string | undefined;
  readonly link: NodeLink;
  readonly #coordinator: Coordinator;
  constructor(coordinator: Coordinator, subject: NodeSubject) {
    this.#coordinator = coordinator;
    this.link = coordinator.accept(subject, {
      send: (message) => this.said.push(message),
      close: (code) => {
        this.closed = code;
      },
    });
  }
  say(message: object): Promise<void> {
    return this.#coordinator.receive(this.link, JSON.stringify(message));
  }
  hello(fill: number, homeRegion?: number): Promise<void> {
    return this.say({ type: "hello", version: 1, nodeKey: keyOf(fill), homeRegion });
  }
  last<T extends CoordinatorMessage["type"]>(type: T): Extract<CoordinatorMessage, { type: T }> {
    const found = this.said.findLast((message) => message.type === type);
    assert.ok(found, `no ${type} among ${this.said.map((message) => message.type)}`);
    return found as Extract<CoordinatorMessage, { type: T }>;
  }
}

function deps(overrides: Partial<CoordinatorDeps> = {}): CoordinatorDeps {
  return {
    store: new MemoryStore(),
    signer: new Signer([generateSigningKey()]),
    authorize: async () => ({ allowed: true, permissions: ["*"] }),
    relayMap: () => ({ Regions: { "999": { RegionID: 999 } } }),
    nowMs: () => 1_000_000,
    newId: randomUUID,
    ...overrides,
  };
}

describe("signed statements", () => {
  const signer = new Signer([generateSigningKey()]);
  const grant = {
    id: randomUUID(),
    nodeKey: keyOf(1),
    userId: USER,
    username: "alice",
    agentId: AGENT,
    permissions: ["tcp:127.0.0.1:8080"],
    issuedAt: 1000,
    expiresAt: 2000,
  };
  const options = { keys: signer.publicKeys, verify: verifyEd25519, nowMs: 1500 };
  const code = (fn: () => unknown): string => {
    try {
      fn();
    } catch (error) {
      assert.ok(error instanceof StatementError, String(error));
      return error.code;
    }
    return "none";
  };

  it("opens what the deployment signed", () => {
    assert.deepEqual(openStatement("grant", encodeStatement("grant", grant, signer), options), grant);
  });

  it("refuses every single flipped bit", () => {
    const statement = encodeStatement("grant", grant, signer);
    fc.assert(
      fc.property(fc.nat(statement.length * 8 - 1), (bit) => {
        const forged = statement.slice();
        forged[bit >> 3] ^= 1 << (bit & 7);
        assert.notEqual(
          code(() => openStatement("grant", forged, options)),
          "none",
        );
      }),
    );
  });

  it("refuses truncated and random bytes without any other error", () => {
    const statement = encodeStatement("grant", grant, signer);
    for (let length = 0; length < statement.length; length += 7)
      assert.notEqual(
        code(() => openStatement("grant", statement.subarray(0, length), options)),
        "none",
      );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        assert.notEqual(
          code(() => openStatement("grant", bytes, options)),
          "none",
        );
      }),
    );
  });

  it("says why: expired, from the future, another deployment's key, another kind", () => {
    const statement = encodeStatement("grant", grant, signer);
    assert.equal(
      code(() => openStatement("grant", statement, { ...options, nowMs: 2000 })),
      "ERR_STATEMENT_EXPIRED",
    );
    assert.equal(
      code(() => openStatement("grant", statement, { ...options, nowMs: -100_000 })),
      "ERR_STATEMENT_NOT_YET_VALID",
    );
    const other = new Signer([generateSigningKey()]).publicKeys;
    assert.equal(
      code(() => openStatement("grant", statement, { ...options, keys: other })),
      "ERR_STATEMENT_UNKNOWN_KEY",
    );
    assert.equal(
      code(() => openStatement("nodeRecord", statement, options)),
      "ERR_STATEMENT_MALFORMED",
    );
  });

  it("an old key still verifies beside a new one", () => {
    const old = generateSigningKey();
    const statement = encodeStatement("grant", grant, new Signer([old]));
    const rotated = new Signer([generateSigningKey(), old]);
    assert.equal(openStatement("grant", statement, { ...options, keys: rotated.publicKeys }).id, grant.id);
  });

  it("permits the named service alone, or all with a star", () => {
    assert.equal(isPermitted(grant, "tcp:127.0.0.1:8080"), true);
    assert.equal(isPermitted(grant, "session"), false);
    assert.equal(isPermitted({ permissions: ["*"] }, "session"), true);
  });
});

describe("coordinator", () => {
  it("gives a user a signed grant and the agent's signed record", async () => {
    const d = deps();
    const coordinator = new Coordinator(d);
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7, 999);
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 1, agentId: AGENT });
    const { grant, record } = user.last("grant");
    const options = { keys: d.signer.publicKeys, verify: verifyEd25519, nowMs: 1_000_000 };
    const opened = openStatement("grant", Buffer.from(grant, "base64"), options);
    assert.equal(opened.nodeKey, keyOf(9));
    assert.equal(opened.agentId, AGENT);
    assert.equal(opened.expiresAt, 1_000_000 + GRANT_TTL_MS);
    const openedRecord = openStatement("nodeRecord", Buffer.from(record!, "base64"), options);
    assert.equal(openedRecord.nodeKey, keyOf(7));
    assert.equal(openedRecord.homeRegion, 999);
  });

  it("refuses a grant with the control plane's reason, and refuses agents altogether", async () => {
    const coordinator = new Coordinator(
      deps({
        authorize: async () => ({ allowed: false, code: "ERR_WORKSPACE_STOPPED", message: "start it first" }),
      }),
    );
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 5, agentId: AGENT });
    assert.deepEqual(user.last("error"), {
      type: "error",
      request: 5,
      code: "ERR_WORKSPACE_STOPPED",
      message: "start it first",
    });
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7, 999);
    await agent.say({ type: "grant-request", request: 1, agentId: AGENT });
    assert.equal(agent.last("error").code, "ERR_FORBIDDEN");
  });

  it("tells clients when an agent they may reach comes, moves and goes", async () => {
    const presence: [string, boolean][] = [];
    const coordinator = new Coordinator(
      deps({ onAgentPresence: (id, connected) => presence.push([id, connected]) }),
    );
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 1, agentId: AGENT });
    assert.equal(user.last("grant").record, undefined);
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7);
    assert.equal(presence.length, 0, "an agent without a home region cannot be found yet");
    await agent.say({ type: "home", homeRegion: 999 });
    assert.equal(user.last("record").agentId, AGENT);
    await coordinator.disconnect(agent.link);
    assert.equal(user.last("record-gone").agentId, AGENT);
    assert.deepEqual(presence, [
      [AGENT, true],
      [AGENT, false],
    ]);
  });

  it("a late goodbye of an agent's old connection does not remove its new one", async () => {
    const presence: boolean[] = [];
    const d = deps({ onAgentPresence: (_, connected) => presence.push(connected) });
    const coordinator = new Coordinator(d);
    const before = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await before.hello(7, 999);
    const after = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await after.hello(8, 999);
    await coordinator.disconnect(before.link);
    assert.equal((await d.store.getRecord(AGENT))?.record.nodeKey, keyOf(8));
    assert.deepEqual(presence, [true, true]);
  });

  it("revoked grants are named to the agent at once, and again when it asks later", async () => {
    const d = deps();
    const coordinator = new Coordinator(d);
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7, 999);
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 1, agentId: AGENT });
    const { id } = openStatement("grant", Buffer.from(user.last("grant").grant, "base64"), {
      keys: d.signer.publicKeys,
      verify: verifyEd25519,
      nowMs: 1_000_000,
    });
    assert.equal(await coordinator.revoke((grant) => grant.tokenId === "other"), 0);
    assert.equal(await coordinator.revoke((grant) => grant.tokenId === "token1"), 1);
    assert.deepEqual(agent.last("revoke").grants, [id]);
    const other = randomUUID();
    await agent.say({ type: "still-granted", request: 2, grants: [id, other] });
    assert.deepEqual(agent.last("void-grants").grants, [id]);
    const back = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await back.say({
      type: "hello",
      version: 1,
      nodeKey: keyOf(7),
      homeRegion: 999,
      liveGrants: [id, other],
    });
    assert.deepEqual(back.last("welcome").voidGrants, [id]);
  });

  it("an agent's record is signed anew long before it expires, and when the clock was set back", async () => {
    let now = 1_000_000_000;
    const d = deps({ nowMs: () => now });
    const coordinator = new Coordinator(d);
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7, 999);
    const issuedAt = async () => (await d.store.getRecord(AGENT))?.record.issuedAt;
    const first = await issuedAt();
    now += RECORD_TTL_MS / 2 - 1;
    coordinator.heard(agent.link);
    await agent.link.tail;
    assert.equal(await issuedAt(), first);
    now += 1;
    coordinator.heard(agent.link);
    await agent.link.tail;
    assert.equal(await issuedAt(), now);
    now -= 3_600_000;
    coordinator.heard(agent.link);
    await agent.link.tail;
    assert.equal(await issuedAt(), now);
  });

  it("of two connections of one agent the older is found again when the newer ends, and never before", async () => {
    let now = 1_000_000_000;
    const presence: boolean[] = [];
    const d = deps({ nowMs: () => now, onAgentPresence: (_, connected) => presence.push(connected) });
    const coordinator = new Coordinator(d);
    const older = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await older.hello(7, 999);
    const newer = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await newer.hello(8, 999);
    const key = async () => (await d.store.getRecord(AGENT))?.record.nodeKey;
    now += RECORD_TTL_MS;
    coordinator.heard(older.link);
    await older.link.tail;
    assert.equal(await key(), keyOf(8));
    await coordinator.disconnect(newer.link);
    assert.equal(await key(), keyOf(7));
    assert.equal(presence.at(-1), true);
  });

  it("an agent that left while its record was being stored leaves none behind", async () => {
    const store = new MemoryStore();
    let goOn = () => {};
    const putRecord = store.putRecord.bind(store);
    store.putRecord = async (record) => {
      await new Promise<void>((resolve) => {
        goOn = resolve;
      });
      await putRecord(record);
    };
    const presence: boolean[] = [];
    const coordinator = new Coordinator(
      deps({ store, onAgentPresence: (_, connected) => presence.push(connected) }),
    );
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    const said = agent.hello(7, 999);
    await new Promise(setImmediate);
    await coordinator.disconnect(agent.link);
    goOn();
    await said;
    assert.equal(await store.getRecord(AGENT), undefined);
    assert.deepEqual(presence, []);
  });

  it("a grant decided while others are revoked is decided again", async () => {
    let coordinator: Coordinator;
    let asked = 0;
    coordinator = new Coordinator(
      deps({
        authorize: async () => {
          if (++asked > 1) return { allowed: false, code: "ERR_FORBIDDEN", message: "suspended" };
          await coordinator.revoke(({ userId }) => userId === USER);
          return { allowed: true, permissions: ["*"] };
        },
      }),
    );
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 1, agentId: AGENT });
    assert.equal(user.last("error").code, "ERR_FORBIDDEN");
    assert.deepEqual(await coordinator.grants(), []);
  });

  it("revoked grants are named to the agent in messages it accepts, and again at its next hello", async () => {
    const d = deps();
    const coordinator = new Coordinator(d);
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7, 999);
    const grant = { userId: USER, agentId: AGENT, tokenId: "token1", expiresAt: 2_000_000 };
    for (let i = 0; i < MAX_LIVE_GRANTS + 5; i++) await d.store.putGrant({ id: randomUUID(), ...grant }, 1);
    await d.store.putGrant({ ...grant, id: randomUUID(), agentId: randomUUID() }, 1);
    await coordinator.revoke(() => true);
    const named = (peer: Peer) =>
      peer.said.flatMap((message) => {
        if (message.type === "welcome") return [message.voidGrants.length];
        return message.type === "revoke" ? [message.grants.length] : [];
      });
    assert.deepEqual(named(agent), [0, MAX_LIVE_GRANTS, 5]);
    const back = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await back.hello(8, 999);
    assert.deepEqual(named(back), [MAX_LIVE_GRANTS, 5]);
  });

  it("one user can't make it forget grants: beyond a number they must wait until theirs expire", async () => {
    let now = 1_000_000;
    const d = deps({ nowMs: () => now });
    const coordinator = new Coordinator(d);
    for (let i = 0; i < MAX_GRANTS_PER_USER; i++)
      await d.store.putGrant(
        { id: randomUUID(), userId: USER, agentId: AGENT, tokenId: "t", expiresAt: now + 1 },
        now,
      );
    const ask = async (subject: NodeSubject) => {
      const user = new Peer(coordinator, subject);
      await user.hello(9);
      await user.say({ type: "grant-request", request: 1, agentId: AGENT });
      return user.said.at(-1);
    };
    const refused = await ask(alice);
    assert.equal(refused?.type === "error" && refused.code, "ERR_TOO_MANY_GRANTS");
    assert.equal((await ask({ ...alice, userId: randomUUID() } as NodeSubject))?.type, "grant");
    now += 1;
    assert.equal((await ask(alice))?.type, "grant");
  });

  it("closes on anything before hello, a second hello, and messages off schema; ignores unknown types", async () => {
    const coordinator = new Coordinator(deps());
    const early = new Peer(coordinator, alice);
    await early.say({ type: "grant-request", request: 1, agentId: AGENT });
    assert.equal(early.closed, "ERR_UNEXPECTED_FRAME");
    const twice = new Peer(coordinator, alice);
    await twice.hello(1);
    await twice.say({ type: "from-the-future", x: 1 });
    assert.equal(twice.closed, undefined);
    await twice.hello(1);
    assert.equal(twice.closed, "ERR_UNEXPECTED_FRAME");
    for (const bad of [
      "",
      "{}",
      "[]",
      '{"type":"hello"}',
      '{"type":"hello","version":1,"nodeKey":"AA=="}',
      "null",
    ]) {
      const peer = new Peer(coordinator, alice);
      await coordinator.receive(peer.link, bad);
      assert.equal(peer.closed, "ERR_BAD_VALUE", bad);
    }
    assert.equal(coordinator.connections, 0);
  });

  it("a failure of the database closes the connection without telling its details", async () => {
    const coordinator = new Coordinator(
      deps({ authorize: () => Promise.reject(new Error("secret detail")) }),
    );
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 1, agentId: AGENT });
    assert.equal(user.closed, "ERR_INTERNAL");
  });
});

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
    return { port: (server.address() as AddressInfo).port, stop };
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

  it("waits longer after each failure, never in step with others, never beyond the cap", () => {
    fc.assert(
      fc.property(fc.nat(1000), fc.double({ min: 0, max: 1, noNaN: true }), (failures, random) => {
        const wait = backoffMs(failures, random);
        assert.ok(wait >= 100 && wait <= 22_500);
        assert.ok(backoffMs(failures + 1, random) >= wait);
      }),
    );
  });
});
