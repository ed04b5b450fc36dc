import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { CoordinatorClient, type CoordinatorError } from "../../coordinator/client.ts";
import { Coordinator } from "../../coordinator/coordinator.ts";
import { generateSigningKey, Signer } from "../../coordinator/signing.ts";
import { MemoryStore } from "../../coordinator/store.ts";
import { newIdentity } from "../../mesh/node/node.ts";
import type { Identity } from "../api/authenticate.ts";
import { ApiError } from "../api/errors.ts";
import { until } from "../api/testing.ts";
import { type NodeUpgrades, nodeUpgrades } from "./upgrade.ts";

const suspended = new ApiError(401, "ERR_USER_SUSPENDED", "suspended");
const databaseAway = new ApiError(503, "ERR_DATABASE_UNREACHABLE", "away");

describe("upgrades of nodes", () => {
  const agentId = randomUUID();
  const agent: Identity = {
    kind: "agent",
    agentId,
    agentName: "main",
    workspaceId: randomUUID(),
    ownerId: randomUUID(),
  };
  const user: Identity = {
    kind: "user",
    userId: randomUUID(),
    username: "ada",
    keyId: "key",
    subject: { userId: randomUUID(), roles: [] },
  };
  let who: Identity = agent;
  /** What a look into the database says. */
  let failure: Error | undefined;
  let looks = 0;
  let nowMs = 0;
  let server: Server;
  let upgrades: NodeUpgrades;
  let store: MemoryStore;
  let coordinator: Coordinator;
  let client: CoordinatorClient;
  let ends: (CoordinatorError | undefined)[];
  let tickets: string[];
  const signer = new Signer([generateSigningKey()]);

  const authenticate = async (): Promise<Identity> => {
    looks++;
    if (failure) throw failure;
    return who;
  };
  /** Another process on the same database and port. */
  async function start(port = 0): Promise<void> {
    coordinator = new Coordinator({
      store,
      signer,
      authorize: async () => ({ allowed: true, permissions: ["*"] }),
      relayMap: () => ({ Regions: {} }),
      nowMs: () => nowMs,
      newId: randomUUID,
    });
    upgrades = nodeUpgrades({ coordinator, nowMs: () => nowMs, random: () => 0, onError: () => undefined });
    server = createServer();
    server.on("upgrade", (req, socket, head) => {
      upgrades.handle(req, socket, head, authenticate).catch((error: ApiError) => {
        socket.end(`HTTP/1.1 ${error.status} Refused\r\nConnection: close\r\n\r\n`);
      });
    });
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
  }
  async function stop(): Promise<void> {
    upgrades.stop();
    coordinator.close();
    server.close();
    await once(server, "close");
  }
  async function restart(): Promise<void> {
    const { port } = server.address() as AddressInfo;
    await stop();
    await start(port);
  }
  const join = (token = "token") => {
    ends = [];
    tickets = [];
    const { port } = server.address() as AddressInfo;
    client = new CoordinatorClient({
      url: `http://127.0.0.1:${port}/`,
      token,
      nodeKey: newIdentity().nodeKey,
      homeRegion: 1,
      random: () => 0,
      onState: ({ connected, error }) => ends.push(connected ? undefined : error),
      onRelayTicket: (ticket) => tickets.push(ticket),
    });
    return client.connect();
  };

  beforeEach(async () => {
    who = agent;
    failure = undefined;
    looks = 0;
    nowMs = 1_800_000_000_000;
    store = new MemoryStore();
    await start();
  });
  afterEach(async () => {
    await client.close();
    await stop();
  });

  it("hello and questions travel with the request: one round trip from there to the grant", async () => {
    who = user;
    ends = [];
    const { port } = server.address() as AddressInfo;
    const nodeKey = newIdentity().nodeKey;
    client = new CoordinatorClient({ url: `http://127.0.0.1:${port}/`, token: "t", nodeKey });
    let saidLater = 0;
    server.on("upgrade", (_req, socket) => {
      socket.on("data", () => saidLater++);
    });
    client.connect().catch(() => undefined);
    const { grant } = await client.requestGrant(randomUUID());
    assert.ok(grant.length > 0);
    assert.equal(saidLater, 0);
  });

  it("an agent shown to be known is taken back while the database is away, and stays if it still may", async () => {
    await join();
    assert.equal(looks, 1);
    failure = databaseAway;
    await restart();
    await until("it to be back", async () => client.connected && coordinator.stats.agents === 1);
    assert.ok((await store.getRecord(agentId))?.record);
    await until("the database to be asked", async () => looks > 1);
    assert.equal(client.connected, true);
    failure = undefined;
    const before = looks;
    await until("it to be asked again", async () => looks > before);
    assert.deepEqual([client.connected, ends.length], [true, 3]);
  });

  it("one whose user was suspended meanwhile is sent away as soon as the database says so, and must log in", async () => {
    who = user;
    await join();
    failure = suspended;
    await restart();
    await until("it to be sent away", async () => ends.some((end) => end?.code === "ERR_USER_SUSPENDED"));
    // Its token is gone; without it it is refused at the door.
    await until("it to be refused", async () => ends.at(-1)?.code === "ERR_UNAUTHORIZED");
    assert.equal(coordinator.connections, 0);
  });

  it("a resume token alone gives no new relay ticket: one comes once the credential was found good", async () => {
    who = user;
    await join();
    assert.equal(tickets.length, 1);
    failure = databaseAway;
    await restart();
    await until("it to be back", async () => client.connected && coordinator.stats.users === 1);
    await until("the database to be asked", async () => looks > 2);
    nowMs += 13 * 3_600_000;
    for (const link of coordinator.users()) coordinator.heard(link);
    await restart();
    await until("it to be back again", async () => client.connected && coordinator.stats.resumed === 1);
    assert.equal(tickets.length, 1);
    failure = undefined;
    await until("a ticket", async () => tickets.length === 2);
    nowMs += 13 * 3_600_000;
    for (const link of coordinator.users()) coordinator.heard(link);
    await until("another, when it is old", async () => tickets.length === 3);
  });

  it("a token that is too old is worth nothing: the database is asked first", async () => {
    await join();
    failure = databaseAway;
    nowMs += 24 * 3_600_000;
    await restart();
    await until("the database to be asked first", async () => looks > 1);
    assert.equal(client.connected, false);
    nowMs -= 24 * 3_600_000;
    await until("it to be good", async () => client.connected);
  });
});
