import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { type CoordinatorMessage, MAX_LIVE_GRANTS } from "../mesh/wire/coordinator.ts";
import { openStatement } from "../mesh/wire/signed.ts";
import { verifyEd25519 } from "./client.ts";
import {
  Coordinator,
  GRANT_TTL_MS,
  MAX_GRANTS_PER_USER,
  MAX_LINKS_PER_AGENT,
  MAX_LINKS_PER_USER,
  MAX_WATCHED_AGENTS,
  type NodeSubject,
  RECORD_TTL_MS,
  TICKET_TTL_MS,
} from "./coordinator.ts";
import { MemoryStore } from "./store.ts";

import { AGENT, alice, deps, keyOf, Peer, USER } from "./testing.ts";

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

  it("an agent whose home flaps is told of at once a few times, then with its heartbeats, the latest home last", async () => {
    let now = 1_000_000;
    const d = deps({ nowMs: () => now });
    const coordinator = new Coordinator(d);
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    await user.say({ type: "grant-request", request: 1, agentId: AGENT });
    const agent = new Peer(coordinator, { kind: "agent", agentId: AGENT });
    await agent.hello(7, 999);
    for (let i = 1; i <= 100; i++) await agent.say({ type: "home", homeRegion: i });
    const told = () => user.said.filter(({ type }) => type === "record").length;
    assert.ok(told() <= 10, `${told()} records`);
    coordinator.heard(agent.link);
    await agent.link.tail;
    assert.equal((await d.store.getRecord(AGENT))?.record.homeRegion, 100);
    now += 5_000;
    const before = told();
    await agent.say({ type: "home", homeRegion: 5 });
    assert.equal(told(), before + 1);
  });

  it("a user's connections decide few grants at once, and together not too many", async () => {
    let running = 0;
    let most = 0;
    const coordinator = new Coordinator(
      deps({
        async authorize() {
          most = Math.max(most, ++running);
          await new Promise((resolve) => setImmediate(resolve));
          running--;
          return { allowed: false, code: "ERR_NOT_FOUND", message: "none" };
        },
      }),
    );
    const peers = Array.from({ length: 60 }, () => new Peer(coordinator, alice));
    await Promise.all(peers.map((peer) => peer.hello(9)));
    const ask = (peer: Peer, request: number) => peer.say({ type: "grant-request", request, agentId: AGENT });
    await Promise.all(peers.flatMap((peer) => Array.from({ length: 50 }, (_, i) => ask(peer, i + 1))));
    assert.equal(most, 4);
    const codes = peers.flatMap(({ said }) => said.map((message) => ("code" in message ? message.code : "")));
    assert.equal(codes.filter((code) => code === "ERR_NOT_FOUND").length, 2 * MAX_WATCHED_AGENTS);
    assert.equal(codes.filter((code) => code === "ERR_BUSY").length, 3_000 - 2 * MAX_WATCHED_AGENTS);
    const other = new Peer(coordinator, { ...alice, userId: randomUUID() } as NodeSubject);
    await other.hello(10);
    await ask(other, 1);
    assert.equal(other.last("error").code, "ERR_NOT_FOUND");
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
    const grant = {
      userId: USER,
      agentId: AGENT,
      tokenId: "token1",
      nodeKey: keyOf(9),
      issuedAt: 1,
      expiresAt: 2_000_000,
    };
    for (let i = 0; i < MAX_LIVE_GRANTS + 5; i++)
      await d.store.putGrant({ id: randomUUID(), ...grant }, 1e9, 1);
    await d.store.putGrant({ ...grant, id: randomUUID(), agentId: randomUUID() }, 1e9, 1);
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
        {
          id: randomUUID(),
          userId: USER,
          agentId: AGENT,
          tokenId: "t",
          nodeKey: keyOf(9),
          issuedAt: now,
          expiresAt: now + 1,
        },
        MAX_GRANTS_PER_USER,
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

  it("messages of unknown types are counted, and a node that says nothing else is sent away", async () => {
    const coordinator = new Coordinator(deps());
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    for (let i = 0; i < 64; i++) await user.say({ type: "from-the-future" });
    assert.equal(user.closed, undefined);
    await user.say({ type: "from-the-future" });
    assert.equal(user.closed, "ERR_UNEXPECTED_FRAME");
    assert.equal(coordinator.stats.unknownMessages, 65);
    assert.deepEqual(coordinator.stats.closed, { ERR_UNEXPECTED_FRAME: 1 });
  });

  it("a user opens so many connections and no more; of an agent the newest stay", async () => {
    const coordinator = new Coordinator(deps());
    const users = Array.from({ length: MAX_LINKS_PER_USER + 1 }, () => new Peer(coordinator, alice));
    assert.deepEqual(
      users.flatMap(({ closed }, i) => (closed ? [[i, closed]] : [])),
      [[MAX_LINKS_PER_USER, "ERR_TOO_MANY_CONNECTIONS"]],
    );
    const agents = Array.from(
      { length: MAX_LINKS_PER_AGENT + 1 },
      () => new Peer(coordinator, { kind: "agent", agentId: AGENT }),
    );
    assert.deepEqual(
      agents.flatMap(({ closed }, i) => (closed ? [i] : [])),
      [0],
    );
  });

  it("what a client watches shrinks when its grants expire, so that it may reach others", async () => {
    let now = 1_000_000;
    const coordinator = new Coordinator(deps({ nowMs: () => now }));
    const user = new Peer(coordinator, alice);
    await user.hello(9);
    const ask = (agentId: string) => user.say({ type: "grant-request", request: 1, agentId });
    for (let i = 0; i < MAX_WATCHED_AGENTS; i++) await ask(randomUUID());
    assert.equal(user.link.watched?.size, MAX_WATCHED_AGENTS);
    await ask(AGENT);
    assert.equal(user.last("error").code, "ERR_TOO_MANY_AGENTS");
    now += GRANT_TTL_MS;
    await ask(AGENT);
    assert.deepEqual([...(user.link.watched?.keys() ?? [])], [AGENT]);
    now += GRANT_TTL_MS;
    coordinator.heard(user.link);
    assert.equal(user.link.watched, undefined);
    // Nor is it told of any longer.
    const before = user.said.length;
    await new Peer(coordinator, { kind: "agent", agentId: AGENT }).hello(7, 999);
    assert.equal(user.said.length, before);
  });

  it("relay ticket and resume token are renewed long before they expire", async () => {
    let now = 1_000_000_000;
    const d = deps({ nowMs: () => now });
    const coordinator = new Coordinator(d);
    const said: CoordinatorMessage[] = [];
    const link = coordinator.accept(
      alice,
      { send: (message) => said.push(message), close: () => undefined },
      { credential: "hash" },
    );
    await coordinator.receive(link, JSON.stringify({ type: "hello", version: 1, nodeKey: keyOf(9) }));
    coordinator.heard(link);
    assert.deepEqual(
      said.map(({ type }) => type),
      ["welcome", "relay-map"],
    );
    now += TICKET_TTL_MS / 2;
    coordinator.heard(link);
    const renewed = said.at(-1);
    assert.ok(renewed?.type === "relay-ticket" && renewed.resumeToken !== undefined);
    const ticket = openStatement("relayTicket", Buffer.from(renewed.ticket, "base64"), {
      keys: d.signer.publicKeys,
      verify: verifyEd25519,
      nowMs: now,
    });
    assert.deepEqual(
      [ticket.nodeKey, ticket.subject, ticket.expiresAt],
      [keyOf(9), `user:${USER}`, now + TICKET_TTL_MS],
    );
  });

  it("a node taken back while the store is away hears what is void when it answers again", async () => {
    const store = new MemoryStore();
    const id = randomUUID();
    const grant = { id, userId: USER, agentId: AGENT, tokenId: "t", nodeKey: keyOf(9) };
    await store.putGrant({ ...grant, issuedAt: 1, expiresAt: 2_000_000 }, 9, 1);
    await store.revokeGrants([id], 1);
    let isAway = true;
    const { voidGrants, putRecord } = store;
    store.voidGrants = (...of) => (isAway ? Promise.reject(new Error("away")) : voidGrants.apply(store, of));
    store.putRecord = (of) => (isAway ? Promise.reject(new Error("away")) : putRecord.call(store, of));
    const coordinator = new Coordinator(deps({ store }));
    const hello = JSON.stringify({
      type: "hello",
      version: 1,
      nodeKey: keyOf(7),
      homeRegion: 999,
      liveGrants: [id],
    });
    const accept = (resumed?: { linkId: string; nodeKey: string }) => {
      const said: CoordinatorMessage[] = [];
      const codes: string[] = [];
      const link = coordinator.accept(
        { kind: "agent", agentId: AGENT },
        { send: (message) => said.push(message), close: (code) => codes.push(code) },
        { resumed },
      );
      return { link, said, codes };
    };
    const unknown = accept();
    await coordinator.receive(unknown.link, hello);
    assert.deepEqual(unknown.codes, ["ERR_INTERNAL"]);
    const known = accept({ linkId: randomUUID(), nodeKey: keyOf(7) });
    await coordinator.receive(known.link, hello);
    assert.deepEqual([known.codes, known.said.map(({ type }) => type)], [[], ["welcome", "relay-map"]]);
    isAway = false;
    coordinator.heard(known.link);
    await known.link.tail;
    assert.deepEqual(known.said.at(-1), { type: "revoke", grants: [id] });
    assert.equal((await store.getRecord(AGENT))?.record.nodeKey, keyOf(7));
    const thief = accept({ linkId: randomUUID(), nodeKey: keyOf(8) });
    await coordinator.receive(thief.link, hello);
    assert.deepEqual(thief.codes, ["ERR_BAD_VALUE"]);
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
