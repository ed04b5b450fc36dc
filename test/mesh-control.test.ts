import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { pino } from "pino";
import {
  addUser,
  type Json,
  pushTemplate,
  runningWorkspace,
  startTestPlane,
  type TestClient,
  type TestPlane,
  until,
} from "../control/api/testing.ts";
import { testDatabase } from "../control/db/testing.ts";
import { type MeshServices, startMeshServices } from "../control/mesh.ts";
import { newIdentity } from "../mesh/node/node.ts";

describe("the control plane's grants", () => {
  let test: TestPlane;
  let services: MeshServices;
  let changed: (topic: string) => void;
  let template: Json;
  before(async function () {
    this.timeout(60_000); // may have to start PostgreSQL
    const database = await testDatabase();
    test = await startTestPlane({
      database,
      startDaemons: async ({ topics }) => {
        const watchers: [topic: string, callback: (id: string) => void][] = [];
        const watch = topics.watch.bind(topics);
        topics.watch = (topic, id, callback) => {
          watchers.push([topic, callback]);
          return watch(topic, id, callback);
        };
        changed = (topic) => {
          for (const [of, callback] of watchers) if (of === topic) callback("*");
        };
        services = await startMeshServices({
          knex: database.knex,
          topics,
          accessUrl: () => "http://127.0.0.1",
          logger: pino({ level: "silent" }),
        });
        return { stop: () => services.stop() };
      },
    });
    template = await pushTemplate(test, "plain");
  });
  after(() => test.stop());

  async function userId(client: TestClient): Promise<string> {
    return (await client.get("/users/me")).body.id;
  }

  /** A session token is "ID-SECRET". */
  const tokenId = ({ token }: TestClient): string => String(token).split("-")[0];

  /** Asks for a grant as a node of `client` would. @returns the agent's id */
  async function reach(client: TestClient, workspace: Json): Promise<string> {
    const agentId: string = workspace.latest_build.resources[0].agents[0].id;
    const { coordinator } = services;
    const answers: string[] = [];
    const subject = {
      kind: "user",
      userId: await userId(client),
      username: "x",
      tokenId: tokenId(client),
    } as const;
    const link = coordinator.accept(subject, {
      send: (message) => answers.push(message.type),
      close: (code) => answers.push(code),
    });
    const say = (message: object) => coordinator.receive(link, JSON.stringify(message));
    await say({ type: "hello", version: 1, nodeKey: newIdentity().nodeKey });
    await say({ type: "grant-request", request: 1, agentId });
    assert.equal(answers.at(-1), "grant");
    return agentId;
  }

  const held = async (client: TestClient) =>
    (await services.coordinator.grants(await userId(client))).map(({ agentId }) => agentId);

  it("end for a user who loses a role that gave access, and stay where they may still go", async () => {
    const sam = await addUser(test.owner, `sam-${randomUUID().slice(0, 8)}`, ["owner"]);
    const theirs = await runningWorkspace(test, test.owner, template.id, "theirs");
    const own = await runningWorkspace(test, sam, template.id, "own");
    await reach(sam, theirs.workspace);
    const ownAgent = await reach(sam, own.workspace);
    await test.owner.put(`/users/${await userId(sam)}/roles`, { roles: [] });
    await until("the grant to be void", async () => (await held(sam)).length === 1);
    assert.deepEqual(await held(sam), [ownAgent]);
  });

  it("end for a user who was suspended while the database connection was away", async () => {
    const eve = await addUser(test.owner, `eve-${randomUUID().slice(0, 8)}`);
    const { workspace } = await runningWorkspace(test, eve, template.id, "own");
    await reach(eve, workspace);
    const id = await userId(eve);
    await test.database.knex("users").where({ id }).update({ status: "suspended" }); // nobody is told
    assert.equal((await services.coordinator.grants(id)).length, 1);
    changed("user");
    await until("the grant to be void", async () => (await services.coordinator.grants(id)).length === 0);
  });
});
