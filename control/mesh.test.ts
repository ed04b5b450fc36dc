import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { pino } from "pino";
import { CoordinatorClient, type CoordinatorError, verifyEd25519 } from "../coordinator/client.ts";
import { Coordinator } from "../coordinator/coordinator.ts";
import { generateSigningKey, Signer } from "../coordinator/signing.ts";
import { RelayClient } from "../derp/client/regions.ts";
import { MeshNode, newIdentity } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";
import type { MeshStream } from "../mesh/node/stream.ts";
import { fromBase64 } from "../mesh/wire/bytes.ts";
import { openStatement } from "../mesh/wire/signed.ts";
import {
  addUser,
  agent as agentOf,
  buildResult,
  type Json,
  nextJob,
  pushTemplate,
  runningWorkspace,
  startTestPlane,
  TestClient,
  type TestPlane,
  until,
} from "./api/testing.ts";
import { PostgresStore } from "./db/queries/mesh-store.ts";
import { type TestDatabase, testDatabase } from "./db/testing.ts";
import { Revocation } from "./mesh/revocation.ts";
import { type MeshServices, startMeshServices } from "./mesh.ts";

const COORDINATE = /^\/api\/v2\/mesh\/coordinate$/;

interface Server {
  test: TestPlane;
  services: MeshServices;
}

/** A control plane with coordinator and relay, as the command composes it. */
async function serve(
  database: TestDatabase,
  { port = 0, now }: { port?: number; now?: () => Date } = {},
): Promise<Server> {
  let services: MeshServices | undefined;
  const test = await startTestPlane({
    database,
    listenPort: port,
    upgrades: [
      { path: /^\/derp$/, handle: (req, socket, head) => services?.relay.handleUpgrade(req, socket, head) },
      { path: COORDINATE, handle: (...request) => services?.handleUpgrade(...request) },
    ],
    startDaemons: async ({ topics, accessUrl }) => {
      services = await startMeshServices({
        knex: database.knex,
        topics,
        accessUrl: () => accessUrl,
        logger: pino({ level: "silent" }),
        now,
      });
      return { stop: async () => undefined };
    },
  });
  assert.ok(services);
  return { test, services };
}

interface Node {
  node: MeshNode;
  coordinator: CoordinatorClient;
  relay: RelayClient;
  nodeKey: string;
  /** Why the coordinator's connections ended, latest last. */
  ends: CoordinatorError[];
  /** Grants it was told are void, with when. */
  revoked: { id: string; at: number }[];
}

function join(url: string, token: string, role: "agent" | "client"): Node {
  const { privateKey, nodeKey } = newIdentity();
  const ends: CoordinatorError[] = [];
  const revoked: Node["revoked"] = [];
  const relay = new RelayClient({ privateKey, accessUrl: url, random: () => 0 });
  const coordinator = new CoordinatorClient({
    url: `${url}/api/v2/mesh/coordinate`,
    token,
    nodeKey,
    onRelayMap: (map) => relay.setMap(map as unknown as DerpMapLike),
    onState: ({ error }) => error && ends.push(error),
    random: () => 0,
  });
  const node = new MeshNode({ role, privateKey, relay, coordinator, verify: verifyEd25519 });
  const onRevoke = coordinator.onRevoke;
  coordinator.onRevoke = (ids) => {
    for (const id of ids) revoked.push({ id, at: performance.now() });
    onRevoke?.(ids);
  };
  if (role === "agent") node.listen("echo", (stream: MeshStream) => stream.pipe(stream));
  coordinator.connect().catch(() => undefined);
  return { node, coordinator, relay, nodeKey, ends, revoked };
}

describe("mesh services of a control plane", () => {
  let database: TestDatabase;
  let server: Server;
  let owner: TestClient;
  let template: Json;
  const nodes: MeshNode[] = [];
  before(async function () {
    this.timeout(60_000); // may have to start PostgreSQL
    database = await testDatabase();
    server = await serve(database);
    owner = server.test.owner;
    template = await pushTemplate(server.test, "plain");
  });
  afterEach(async () => {
    await Promise.all(nodes.splice(0).map((node) => node.close()));
  });
  after(async () => {
    await server.services.stop();
    await server.test.stop();
  });

  const name = (of: string) => `${of}-${randomUUID().slice(0, 8)}`;
  const idOf = async (client: TestClient): Promise<string> => (await client.get("/users/me")).body.id;
  const agentIdOf = (workspace: Json): string => workspace.latest_build.resources[0].agents[0].id;

  function connected(token: string, role: "agent" | "client"): Node {
    const made = join(server.test.plane.url, token, role);
    nodes.push(made.node);
    return made;
  }

  /** What another replica tells its relay. */
  function relayOnly() {
    const { topics } = server.test.plane;
    const onError = (error: unknown) => assert.fail(String(error));
    const store = new PostgresStore({ knex: database.knex, topics, replicaId: randomUUID(), onError });
    const coordinator = new Coordinator({
      store,
      signer: new Signer([generateSigningKey()]),
      authorize: async () => ({ allowed: false, code: "ERR_FORBIDDEN", message: "no" }),
      relayMap: () => ({ Regions: {} }),
      nowMs: Date.now,
      newId: randomUUID,
    });
    const keys: string[] = [];
    const subjects: string[] = [];
    const relay = {
      closePeer: (key: Uint8Array) => void keys.push(Buffer.from(key).toString("base64")),
      closeSubject: (subject: string) => void subjects.push(subject),
    };
    const now = () => new Date();
    const revocation = new Revocation({
      knex: database.knex,
      topics,
      store,
      coordinator,
      relay,
      now,
      onError,
    });
    const stop = async () => {
      await revocation.stop();
      coordinator.close();
      await store.close();
    };
    return { keys, subjects, stop };
  }

  /** A user with a running workspace whose agent is connected. */
  async function person(roles: string[] = []) {
    const user = await addUser(owner, name("u"), roles);
    const { workspace, agentToken } = await runningWorkspace(server.test, user, template.id, "dev");
    const agent = connected(agentToken, "agent");
    await agent.coordinator.connect();
    const agentId = agentIdOf(workspace);
    await until("the agent's record", async () => {
      return (await server.services.coordinator.store.getRecord(agentId)) !== undefined;
    });
    return { user, userId: await idOf(user), workspace, agent, agentId, agentToken };
  }

  /** An open stream to an agent, which has echoed. */
  async function session(token: string, agentId: string): Promise<Node & { stream: MeshStream }> {
    const client = connected(token, "client");
    const stream = await client.node.dial(agentId, "echo");
    stream.write("x");
    await new Promise((resolve) => stream.once("data", resolve));
    return { ...client, stream };
  }

  /** Runs `act`; @returns ms until the agent ended the client's session */
  async function cut(stream: MeshStream, act: () => Promise<unknown>): Promise<number> {
    const failed = new Promise<Error>((resolve) => stream.once("error", resolve));
    const startedAt = performance.now();
    const [error] = await Promise.all([
      Promise.race([failed, delay(10_000, new Error("10 s passed"), { ref: false })]),
      act(),
    ]);
    assert.match(error.message, /revoked/);
    return performance.now() - startedAt;
  }

  const took: string[] = [];
  after(() => took.length > 0 && console.log(`      sessions ended after: ${took.join(", ")}`));
  async function cutsWithinASecond(what: string, stream: MeshStream, act: () => Promise<unknown>) {
    const ms = await cut(stream, act);
    took.push(`${what} ${Math.round(ms)} ms`);
  }

  describe("what ends a session", () => {
    it("deleting the token it was opened with; one opened with another token goes on", async () => {
      const { user, agentId } = await person();
      const { body } = await user.post("/users/me/keys/tokens", {});
      const token: string = body.key;
      const other = await session(user.token!, agentId);
      const { stream, ends } = await session(token, agentId);
      await cutsWithinASecond("token deleted", stream, () =>
        user.delete(`/users/me/keys/${token.split("-")[0]}`),
      );
      await until("the client to hear why", async () => ends.length > 0);
      assert.deepEqual([ends[0].code, ends[0].unauthorized], ["ERR_TOKEN_REVOKED", true]);
      assert.match(ends[0].message, /coder login/);
      other.stream.write("y");
      await new Promise((resolve) => other.stream.once("data", resolve));
    });

    it("logging out", async () => {
      const { user, agentId } = await person();
      const { stream } = await session(user.token!, agentId);
      await cutsWithinASecond("logout", stream, () => user.post("/users/logout"));
    });

    it("a new password, for logins but not for tokens made by hand", async () => {
      const { user, userId, agentId } = await person();
      const { key } = (await user.post("/users/me/keys/tokens", {})).body;
      const kept = await session(key, agentId);
      const { stream } = await session(user.token!, agentId);
      await cutsWithinASecond("password", stream, () =>
        owner.put(`/users/${userId}/password`, { password: "another-Horse-9-battery" }),
      );
      kept.stream.write("y");
      await new Promise((resolve) => kept.stream.once("data", resolve));
    });

    it("suspending its user, whose agent stays for those who may still reach it", async () => {
      const { user, userId, agent, agentId, agentToken } = await person();
      const { stream, ends, nodeKey } = await session(user.token!, agentId);
      const closed: string[] = [];
      const { closePeer, closeSubject } = server.services.relay;
      server.services.relay.closePeer = function (key, at) {
        closed.push(Buffer.from(key).toString("base64"));
        closePeer.call(this, key, at);
      };
      server.services.relay.closeSubject = function (subject, at) {
        closed.push(subject);
        closeSubject.call(this, subject, at);
      };
      await cutsWithinASecond("suspended", stream, () => owner.put(`/users/${userId}/status/suspend`));
      await until("the client to hear why", async () => ends.length > 0);
      assert.equal(ends[0].code, "ERR_USER_SUSPENDED");
      await until("the relay to be told", async () => {
        return closed.includes(nodeKey) && closed.includes(`user:${userId}`);
      });
      Object.assign(server.services.relay, { closePeer, closeSubject });
      assert.equal(agent.coordinator.connected, true);
      const admin = await session(owner.token!, agentId);
      admin.stream.destroy();
      // Also one that has to connect anew.
      const again = connected(agentToken, "agent");
      await again.coordinator.connect();
      await owner.put(`/users/${userId}/status/activate`);
    });

    it("losing the role that gave access; where they may still go they stay", async () => {
      const theirs = await person();
      const sam = await person(["owner"]);
      const own = await session(sam.user.token!, sam.agentId);
      const { stream } = await session(sam.user.token!, theirs.agentId);
      await cutsWithinASecond("role lost", stream, () =>
        owner.put(`/users/${sam.userId}/roles`, { roles: [] }),
      );
      own.stream.write("y");
      await new Promise((resolve) => own.stream.once("data", resolve));
    });

    it("the expiry of its token", async () => {
      const { user, agentId } = await person();
      const { key } = (await user.post("/users/me/keys/tokens", { lifetime: 3e9 })).body;
      const { stream, ends } = await session(key, agentId);
      const id = key.split("-")[0];
      const { expires_at } = (await user.get(`/users/me/keys/${id}`)).body;
      await cut(stream, async () => undefined);
      const lateMs = Date.now() - Date.parse(expires_at);
      assert.ok(lateMs >= 0, `${-lateMs} ms too early`);
      took.push(`token expired ${lateMs} ms`);
      await until("the client to hear why", async () => ends.length > 0);
      assert.equal(ends[0].code, "ERR_TOKEN_EXPIRED");
    });

    it("a build that replaced the agent, and not one that kept it", async () => {
      const { user, workspace, agent, agentId, agentToken } = await person();
      const { stream } = await session(user.token!, agentId);
      const build = async (token: string) => {
        await user.post(`/workspaces/${workspace.id}/builds`, { transition: "start" });
        const job = await nextJob(server.test);
        await server.test.plane.queue.complete(job.id, buildResult([agentOf(token)]));
      };
      await build(agentToken);
      await until("the process to be the new build's agent", async () => {
        return agent.coordinator.agentId !== agentId && agent.coordinator.connected;
      });
      stream.write("y");
      await new Promise((resolve) => stream.once("data", resolve));
      // Its grant names the earlier build's agent; the process is told all the same.
      await cutsWithinASecond("rebuilt", stream, () => build(randomUUID()));
    });

    it("a revocation nobody was told of, because the notification was lost or the agent away", async () => {
      const { user, userId, agent, agentId } = await person();
      const { stream } = await session(user.token!, agentId);
      await database.knex("users").where({ id: userId }).update({ status: "suspended" });
      assert.equal((await server.services.coordinator.grants(userId)).length, 1);
      // The agent says hello again, and lists what it holds.
      await cut(stream, () => server.services.coordinator.dismissAgent(agentId));
      assert.equal(agent.revoked.length, 1);
    });
  });

  it("a relay of a server that starts later, or beside, refuses whose credential is over as well", async () => {
    const { user, userId, agentId } = await person();
    const { body } = await user.post("/users/me/keys/tokens", {});
    const token: string = body.key;
    const client = connected(token, "client");
    await client.coordinator.requestGrant(agentId);
    const beside = relayOnly();
    await user.delete(`/users/me/keys/${token.split("-")[0]}`);
    const told = async (of: { keys: string[] }) => of.keys.includes(client.nodeKey);
    await until("the other replica's relay to be told", () => told(beside));
    await beside.stop();
    await owner.put(`/users/${userId}/status/suspend`);
    await database.knex("mesh_grants").update({ revoked_at: new Date(Date.now() - 3_600_000) });
    const later = relayOnly();
    await until("the later relay to be told", async () => {
      return (await told(later)) && later.subjects.includes(`user:${userId}`);
    });
    await later.stop();
  });

  it("a workspace is reached by name, which tells what the command wants to know", async () => {
    const { user, agentId, workspace } = await person();
    const { username } = (await user.get("/users/me")).body;
    const client = connected(user.token!, "client");
    for (const workspaceName of ["dev", "me/Dev", `${username}/dev`]) {
      const reached = await client.coordinator.requestGrant({ workspace: workspaceName });
      assert.equal(reached.agentId, agentId);
      assert.equal(reached.record?.agentId, agentId);
      assert.deepEqual(
        [reached.workspace?.id, reached.workspace?.latest_build.status, reached.agent?.status],
        [workspace.id, "running", "connected"],
      );
    }
    await assert.rejects(client.coordinator.requestGrant({ workspace: "none" }), { code: "ERR_NOT_FOUND" });
    await assert.rejects(client.coordinator.requestGrant({ workspace: "a/b/c" }), { code: "ERR_NOT_FOUND" });
    await assert.rejects(client.coordinator.requestGrant({ workspace: "dev", agent: "gpu" }), {
      code: "ERR_AGENT_NOT_FOUND",
    });
  });

  it("a workspace with two agents is ambiguous until one is named", async () => {
    const user = await addUser(owner, name("u"));
    const created = await user.post("/users/me/workspaces", { template_id: template.id, name: "two" });
    const client = connected(user.token!, "client");
    await assert.rejects(client.coordinator.requestGrant({ workspace: "two" }), {
      code: "ERR_WORKSPACE_NOT_RUNNING",
    });
    const job = await nextJob(server.test);
    const agents = [agentOf(randomUUID(), { name: "a" }), agentOf(randomUUID(), { name: "b" })];
    await server.test.plane.queue.complete(job.id, buildResult(agents));
    await assert.rejects(client.coordinator.requestGrant({ workspace: "two" }), {
      code: "ERR_AGENT_AMBIGUOUS",
      message: /\(a, b\)/,
    });
    const reached = await client.coordinator.requestGrant({ workspace: "two", agent: "b" });
    assert.deepEqual([reached.agent?.name, reached.workspace?.id], ["b", created.body.id]);
  });

  it("a token that was deleted gets no grant, also over a connection that is still open", async () => {
    const { userId, agentId } = await person();
    const { coordinator } = server.services;
    const answers: string[] = [];
    const subject = { kind: "user", userId, username: "x", tokenId: "gone" } as const;
    const link = coordinator.accept(subject, {
      send: (message) => answers.push(message.type === "error" ? message.code : message.type),
      close: () => undefined,
    });
    await coordinator.receive(
      link,
      JSON.stringify({ type: "hello", version: 1, nodeKey: newIdentity().nodeKey }),
    );
    await coordinator.receive(link, JSON.stringify({ type: "grant-request", request: 1, agentId }));
    assert.equal(answers.at(-1), "ERR_TOKEN_REVOKED");
    await coordinator.disconnect(link);
  });

  it("a grant that is being written while its token is deleted is not given", async () => {
    const { user, agentId } = await person();
    const { key } = (await user.post("/users/me/keys/tokens", {})).body;
    const client = connected(key, "client");
    await client.coordinator.connect();
    const { coordinator } = server.services;
    const { store } = coordinator;
    const putGrant = store.putGrant.bind(store);
    const changed = coordinator.permissionsChanged.bind(coordinator);
    store.putGrant = async (...grant) => {
      store.putGrant = putGrant;
      // Allowed, and then the look for what is void passes before the row is there.
      const looked = new Promise<void>((resolve) => {
        coordinator.permissionsChanged = () => {
          changed();
          resolve();
        };
      });
      await user.delete(`/users/me/keys/${key.split("-")[0]}`);
      await looked;
      coordinator.permissionsChanged = changed;
      return putGrant(...grant);
    };
    await assert.rejects(client.coordinator.requestGrant(agentId), { code: "ERR_TOKEN_REVOKED" });
    const held = await coordinator.grants(await idOf(user));
    assert.deepEqual(held, []);
  });

  it("an open session keeps its login from expiring", async () => {
    const { user, agentId } = await person();
    const id = user.token!.split("-")[0];
    const soon = new Date(Date.now() + 3_600_000);
    await database.knex("api_keys").where({ id }).update({ expires_at: soon });
    await session(user.token!, agentId);
    await until("the login to be moved on", async () => {
      const row = await database.knex("api_keys").where({ id }).first<{ expires_at: Date }>("expires_at");
      return row.expires_at.getTime() > soon.getTime() + 3_600_000;
    });
  });

  it("nodes get a relay ticket that names their key and whom they are", async () => {
    const { user, userId, agent, agentId } = await person();
    const client = connected(user.token!, "client");
    await client.coordinator.connect();
    const open = (node: Node) =>
      openStatement("relayTicket", fromBase64(node.coordinator.relayTicket!), {
        keys: node.coordinator.signingKeys,
        verify: verifyEd25519,
        nowMs: Date.now(),
      });
    assert.deepEqual([open(client).nodeKey, open(client).subject], [client.nodeKey, `user:${userId}`]);
    assert.deepEqual([open(agent).nodeKey, open(agent).subject], [agent.nodeKey, `agent:${agentId}`]);
  });

  it("says how agents are reached, as Coder's clients ask", async () => {
    const { user, agentId } = await person();
    const stranger = await addUser(owner, name("u"));
    const info = (await user.get(`/workspaceagents/${agentId}/connection`)).body;
    assert.deepEqual(info, (await user.get("/workspaceagents/connection")).body);
    assert.equal(info.hostname_suffix, "coder");
    assert.deepEqual(Object.keys(info.derp_map.Regions), ["999"]);
    assert.deepEqual((await user.get("/derp-map")).body, info.derp_map);
    assert.equal((await stranger.get(`/workspaceagents/${agentId}/connection`)).status, 404);
  });

  describe("the signing keys", () => {
    const idsOf = (node: Node) => node.coordinator.signingKeys.map(({ id }) => id);

    it("are rotated for all who are connected: the new one is known before it signs", async () => {
      const { user, agent, agentId } = await person();
      const { stream } = await session(user.token!, agentId);
      assert.equal((await user.get("/deployment/signing-keys")).status, 404);
      assert.equal((await user.post("/deployment/signing-keys/rotate")).status, 404);
      const before = idsOf(agent);
      const { status, body } = await owner.post("/deployment/signing-keys/rotate");
      assert.equal(status, 201);
      const signing = body.find((key: Json) => key.status === "signing");
      const published = body.find((key: Json) => key.status === "published");
      assert.ok(before.includes(signing.id) && !before.includes(published.id));
      await until("the agent to know it", async () => idsOf(agent).includes(published.id));
      assert.equal(server.services.coordinator.signer.publicKeys[0].id, signing.id);
      // An hour later, told here by the clock of the database's rows.
      await database.knex("signing_keys").where({ id: published.id }).update({ active_at: new Date() });
      await database.knex("signing_keys").where({ id: signing.id }).update({ retired_at: new Date() });
      await database.knex.raw("select pg_notify('signing_key', 'rotated')");
      await until(
        "it to sign",
        async () => server.services.coordinator.signer.publicKeys[0].id === published.id,
      );
      // What the old one signed is good for as long as it lives, and the new one's grants open sessions.
      await stream.end();
      const again = await session(user.token!, agentId);
      again.stream.end();
      assert.ok(idsOf(agent).includes(signing.id));
    });

    it("are revoked at once when one leaked, and sessions go on", async () => {
      const { user, agent, agentId } = await person();
      const { stream } = await session(user.token!, agentId);
      const leaked = idsOf(agent);
      const { body } = await owner.post("/deployment/signing-keys/rotate", { revoke: true });
      await until("the agent to know", async () => idsOf(agent).join() === body[0].id);
      assert.ok(!leaked.includes(body[0].id));
      stream.write("y");
      await new Promise((resolve) => stream.once("data", resolve));
      await until("a record under the new key", async () => {
        const stored = await server.services.coordinator.store.getRecord(agentId);
        return (
          stored !== undefined && Buffer.from(stored.statement.subarray(2, 10)).toString("hex") === body[0].id
        );
      });
      (await session(user.token!, agentId)).stream.end();
    });
  });

  describe("several servers on one database", () => {
    let second: Server;
    before(async () => {
      second = await serve(database);
    });
    after(async () => {
      await second.services.stop();
      await second.test.plane.stop();
    });

    it("know each other's agents, and end what any of them gave out", async () => {
      const { user, agent, agentId } = await person();
      const { key } = (await user.post("/users/me/keys/tokens", {})).body;
      const client = join(second.test.plane.url, key, "client");
      nodes.push(client.node);
      const there = await client.coordinator.requestGrant({ workspace: "dev" });
      assert.equal(there.record?.nodeKey, agent.nodeKey);
      const gone: string[] = [];
      client.coordinator.onRecordGone = (id) => gone.push(id);
      const elsewhere = new TestClient(second.test.plane.url, user.token);
      await elsewhere.delete(`/users/me/keys/${key.split("-")[0]}`);
      await until("the agent at the first to hear", async () => agent.revoked.length === 1);
      const other = join(second.test.plane.url, user.token!, "client");
      nodes.push(other.node);
      other.coordinator.onRecordGone = (id) => gone.push(id);
      await other.coordinator.requestGrant(agentId);
      await agent.node.close();
      await until("the client at the second to hear", async () => gone.includes(agentId));
    });
  });

  it("a server that was restarted is joined again within seconds, by resume token, and sessions go on", async () => {
    const { user, agent, agentId } = await person();
    const { stream, coordinator } = await session(user.token!, agentId);
    const { port } = server.test.plane;
    await server.services.stop();
    await server.test.plane.stop();
    await until("the loss to be noticed", async () => !agent.coordinator.connected && !coordinator.connected);
    await delay(500);
    server = await serve(database, { port });
    const listeningAt = performance.now();
    // Before the agent is back: its row is as good as it was.
    const { record } = await coordinator.requestGrant(agentId);
    assert.equal(record?.nodeKey, agent.nodeKey);
    await until("both to be back", async () => agent.coordinator.connected && coordinator.connected);
    took.push(`back after a restart ${Math.round(performance.now() - listeningAt)} ms`);
    assert.ok(server.services.coordinator.stats.resumed >= 2);
    stream.write("y");
    await new Promise((resolve) => stream.once("data", resolve));
    // What was revoked meanwhile, or is now, still ends it.
    owner = server.test.owner;
    await cutsWithinASecond("after the restart", stream, () => user.post("/users/logout"));
  });
});
