import assert from "node:assert/strict";
import { pino } from "pino";
import { WebSocket } from "ws";
import { announce } from "../db/queries/topics.ts";
import type { BuildJob, JobLog } from "../provisioner/protocol.ts";
import { startControlPlane } from "../server.ts";
import { pump, type Source } from "./follow.ts";
import {
  addUser,
  buildResult,
  type Json,
  nextJob,
  pushTemplate,
  runningWorkspace,
  startTestPlane,
  TestClient,
  type TestPlane,
  tarOf,
  until,
} from "./testing.ts";

describe("following logs", () => {
  let test: TestPlane;
  let owner: TestClient;
  let template: Json;
  before(async function () {
    this.timeout(60_000);
    test = await startTestPlane();
    owner = test.owner;
    template = await pushTemplate(test, "base");
  });
  after(() => test.stop());

  const line = (output: string): JobLog => ({
    createdAt: new Date(),
    source: "provisioner",
    level: "info",
    stage: "Applying",
    output,
  });

  async function newBuild(name: string): Promise<{ buildId: string; job: BuildJob }> {
    const { body } = await owner.post("/users/me/workspaces", { template_id: template.id, name });
    return { buildId: body.latest_build.id, job: (await nextJob(test)) as BuildJob };
  }

  const outputs = (messages: Json[]) => messages.map((message) => message.output);

  it("lines come while they are written, old ones first, and the socket closes once the job is over", async () => {
    const { buildId, job } = await newBuild("live");
    const { queue } = test.plane;
    await queue.log(job.id, [line("one"), line("two")]);
    const seen: string[] = [];
    const followed = owner.follow(`/workspacebuilds/${buildId}/logs?follow`, ({ output }) =>
      seen.push(output),
    );
    await until("the lines that exist", async () => seen.length === 2);
    await queue.log(job.id, [line("three")]);
    await until("the next line, before the job ends", async () => seen.length === 3);
    await queue.log(job.id, [line("four")]);
    await queue.complete(job.id, buildResult());
    const { code, messages } = await followed;
    assert.equal(code, 1000);
    assert.deepEqual(outputs(messages), ["one", "two", "three", "four"]);
    assert.deepEqual(Object.keys(messages[0]).sort(), [
      "created_at",
      "id",
      "log_level",
      "log_source",
      "output",
      "stage",
    ]);

    const late = await owner.follow(`/workspacebuilds/${buildId}/logs?follow=true&after=${messages[1].id}`);
    assert.deepEqual(outputs(late.messages), ["three", "four"]);
    const whole = await owner.get(`/workspacebuilds/${buildId}/logs`);
    assert.deepEqual(outputs(whole.body), ["one", "two", "three", "four"]);
    assert.equal((await owner.get(`/workspacebuilds/${buildId}/logs?follow`)).status, 400);
  });

  it("no line is lost or doubled when writers and readers race", async () => {
    const { buildId, job } = await newBuild("race");
    const followed = [1, 2, 3].map(() => owner.follow(`/workspacebuilds/${buildId}/logs?follow`));
    const expected: string[] = [];
    for (let i = 0; i < 40; i++) {
      expected.push(`a${i}`, `b${i}`);
      await test.plane.queue.log(job.id, [line(`a${i}`), line(`b${i}`)]);
    }
    await test.plane.queue.complete(job.id, buildResult());
    for (const { messages } of await Promise.all(followed)) assert.deepEqual(outputs(messages), expected);
  });

  it("lines written between the last read and the end are still sent", async () => {
    const rows = ["one"];
    let over = false;
    const sent: string[] = [];
    const source: Source = {
      watched: [["provisioner_job", "made up"]],
      isOver: async () => over,
      async read(after) {
        const messages = rows.slice(after);
        if (!over) {
          rows.push("two");
          over = true;
          queueMicrotask(() => announce(test.database.knex, "provisioner_job", "made up"));
        }
        return { messages, last: after + messages.length, more: false };
      },
    };
    const ws = {
      send: (message: string, done?: (error?: Error) => void) => {
        sent.push(message);
        done?.();
      },
    } as Parameters<typeof pump>[1];
    await pump({ topics: test.plane.topics }, ws, source, 0, AbortSignal.timeout(10_000));
    assert.deepEqual(sent, ["one", "two"]);
  });

  it("a template's import and an agent's log can be followed too", async () => {
    const version = template.active_version_id;
    assert.equal((await owner.follow(`/templateversions/${version}/logs?follow`)).code, 1000);

    const { workspace, agentToken } = await runningWorkspace(test, owner, template.id, "agent");
    const agentId = workspace.latest_build.resources[0].agents[0].id;
    const agent = new TestClient(test.plane.url, agentToken);
    const { scripts } = (await agent.get("/workspaceagents/me/manifest")).body;
    const seen: Json[] = [];
    const followed = owner.follow(`/workspaceagents/${agentId}/logs?follow`, (lines) => seen.push(...lines));
    await agent.patch("/workspaceagents/me/logs", {
      log_source_id: scripts[0].log_source_id,
      logs: [{ created_at: new Date().toISOString(), level: "warn", output: "hello" }],
    });
    await until("the agent's line", async () => seen.length === 1);
    assert.deepEqual([seen[0].output, seen[0].level], ["hello", "warn"]);
    // A build anew ends it: that agent says nothing more.
    await owner.post(`/workspaces/${workspace.id}/builds`, { transition: "stop" });
    await test.plane.queue.complete((await nextJob(test)).id, { ...buildResult(), resources: [] });
    assert.equal((await followed).code, 1000);
  });

  it("an upgrade is refused like any request: 401, 404, 400", async () => {
    const { buildId, job } = await newBuild("refused");
    const member = await addUser(owner, "mel");
    const status = (client: TestClient, path: string) =>
      new Promise<number | undefined>((resolve, reject) => {
        const ws = new WebSocket(`${client.url.replace("http", "ws")}/api/v2${path}`, {
          headers: client.token ? { "Coder-Session-Token": client.token } : {},
        });
        ws.on("unexpected-response", (_req, res) => {
          resolve(res.statusCode);
          ws.terminate();
        });
        ws.on("open", () => reject(new Error("opened")));
        ws.on("error", () => {});
      });
    const path = `/workspacebuilds/${buildId}/logs?follow`;
    assert.equal(await status(test.anyone, path), 401);
    assert.equal(await status(member, path), 404);
    assert.equal(await status(owner, "/workspacebuilds/x/logs?follow"), 400);
    assert.equal(await status(owner, "/nothing"), 404);
    await test.plane.queue.complete(job.id, buildResult());
  });

  it("a user who is suspended is cut off", async () => {
    const member = await addUser(owner, "sam");
    const created = await member.post("/users/me/workspaces", { template_id: template.id, name: "mine" });
    const job = await nextJob(test);
    let opened = false;
    const followed = member.follow(`/workspacebuilds/${created.body.latest_build.id}/logs?follow`, () => {
      opened = true;
    });
    await test.plane.queue.log(job.id, [line("one")]);
    await until("the first line", async () => opened);
    await owner.put("/users/sam/status/suspend");
    assert.equal((await followed).code, 1008);
    await test.plane.queue.complete(job.id, buildResult());
  });

  it("stopping the server closes what is followed, and a second one on its port says what to do", async () => {
    const own = await startTestPlane();
    const { knex, url } = own.database;
    const clash = startControlPlane({
      knex,
      databaseUrl: url,
      listenHost: "127.0.0.1",
      listenPort: own.plane.port,
      version: "0.1.0",
      logger: pino({ enabled: false }),
    });
    await assert.rejects(clash, { code: "ERR_PORT_IN_USE", message: /choose another address/ });

    const file = await own.owner.call("POST", "/files", await tarOf({ "main.tf": "" }));
    const version = await own.owner.post("/organizations/default/templateversions", {
      file_id: file.body.hash,
    });
    await own.plane.queue.log(version.body.job.id, [line("one")]);
    let opened = false;
    const followed = own.owner.follow(`/templateversions/${version.body.id}/logs?follow`, () => {
      opened = true;
    });
    await until("the first line", async () => opened);
    await own.plane.stop();
    assert.equal((await followed).code, 1001);
    await assert.rejects(fetch(`${own.plane.url}/healthz`));
    await own.database.drop();
  });

  it("others' upgrades are tried on the path, and learn who knocks", async () => {
    const seen: string[] = [];
    const own = await startTestPlane({
      upgrades: [
        {
          path: /^\/knock$/,
          async handle(_req, socket, _head, authenticate) {
            const who = await authenticate();
            seen.push(who.kind === "user" ? who.username : who.agentName);
            socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
          },
        },
      ],
      mounts: [{ path: /^\/bin\//, handle: (_req, res) => res.end("binary") }],
    });
    const { agentToken } = await runningWorkspace(
      own,
      own.owner,
      (await pushTemplate(own, "base")).id,
      "dev",
    );
    const knock = (token?: string) =>
      new Promise<number | undefined>((resolve) => {
        const ws = new WebSocket(`${own.plane.url.replace("http", "ws")}/knock`, {
          headers: token ? { "Coder-Session-Token": token } : {},
        });
        ws.on("unexpected-response", (_req, res) => {
          resolve(res.statusCode);
          ws.terminate();
        });
        ws.on("error", () => {});
      });
    assert.deepEqual([await knock(), await knock(own.owner.token), await knock(agentToken)], [401, 400, 400]);
    assert.deepEqual(seen, ["ada", "main"]);
    assert.equal(await (await fetch(`${own.plane.url}/bin/coder-linux-amd64`)).text(), "binary");
    await own.stop();
  });
});
