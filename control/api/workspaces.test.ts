import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { agentById, setAgentsConnected, setAgentsDisconnected } from "../db/queries/agents.ts";
import { judgeReach, type ReachQuery, reachRows } from "../db/queries/reach.ts";
import type { BuildJob } from "../provisioner/protocol.ts";
import {
  addUser,
  agent,
  buildResult,
  importResult,
  type Json,
  nextJob,
  parameter,
  pushTemplate,
  runningWorkspace,
  startTestPlane,
  TestClient,
  type TestPlane,
  tarOf,
} from "./testing.ts";

describe("templates and workspaces", () => {
  let test: TestPlane;
  let owner: TestClient;
  let member: TestClient;
  let template: Json;
  before(async function () {
    this.timeout(60_000);
    // One process, hundreds of calls: the limits are ratelimit.test.ts's business.
    test = await startTestPlane();
    owner = test.owner;
    member = await addUser(owner, "mel");
    template = await pushTemplate(test, "base", { parameters: [parameter({})] });
  });
  after(() => test.stop());

  const ownerOf = (client: TestClient) => client.get("/users/me").then(({ body }) => body.id as string);
  const nextBuild = () => nextJob(test) as Promise<BuildJob>;
  const build = (workspaceId: string, transition: string, more = {}, client = owner) =>
    client.post(`/workspaces/${workspaceId}/builds`, { transition, ...more });

  describe("templates", () => {
    it("an upload over the limit is refused with the limit in the message, declared or streamed", async () => {
      const big = new Uint8Array((1 << 20) + 512);
      const declared = await owner.call("POST", "/files", big);
      assert.equal(declared.status, 413);
      assert.match(declared.body.message, /larger than 1 MiB/);
      const streamed = await fetch(`${test.plane.url}/api/v2/files`, {
        method: "POST",
        headers: { "Coder-Session-Token": owner.token ?? "", "Content-Type": "application/x-tar" },
        body: new Blob([big]).stream(),
        duplex: "half",
      } as RequestInit);
      assert.equal(streamed.status, 413);
    });

    it("only tar archives are taken, and the same bytes are one file", async () => {
      assert.equal((await owner.call("POST", "/files", new Uint8Array(1024))).status, 400);
      const zip = await owner.call("POST", "/files", new Uint8Array(4), {
        "Content-Type": "application/zip",
      });
      assert.equal(zip.status, 415);
      const archive = await tarOf({ "main.tf": "# same" });
      const [first, second] = [
        await owner.call("POST", "/files", archive),
        await owner.call("POST", "/files", archive),
      ];
      assert.deepEqual([first.status, second.status], [201, 200]);
      assert.equal(first.body.hash, second.body.hash);
      const other = await member.call("POST", "/files", archive);
      assert.notEqual(other.body.hash, first.body.hash);
      assert.equal((await member.get(`/files/${first.body.hash}`)).status, 404);
    });

    it("a push is imported by a daemon and shows what it found", async () => {
      const file = await owner.call("POST", "/files", await tarOf({ "main.tf": "# v2" }));
      const pushed = await owner.post("/organizations/default/templateversions", {
        file_id: file.body.hash,
        template_id: template.id,
        name: "v2",
        message: "second",
        user_variable_values: [
          { name: "zone", value: "b" },
          { name: "key", value: "s3cret" },
        ],
      });
      assert.equal(pushed.status, 201);
      assert.equal(pushed.body.job.status, "pending");
      assert.deepEqual([pushed.body.job.queue_position, pushed.body.job.queue_size], [1, 1]);
      assert.equal((await owner.get(`/templateversions/${pushed.body.id}/rich-parameters`)).status, 412);

      const job = await nextJob(test);
      assert.equal(job.type, "template_version_import");
      assert.equal(job.metadata.ownerName, "ada");
      assert.equal(job.metadata.coderUrl, test.plane.url);
      assert.ok(job.templateArchive.length >= 1024);
      assert.equal((await owner.get(`/templateversions/${pushed.body.id}`)).body.job.status, "running");
      const variable = { description: "", type: "string", defaultValue: "a", required: false };
      await test.plane.queue.complete(
        job.id,
        importResult({
          readme: "# Hello",
          parameters: [parameter({}), parameter({ name: "image", type: "string", required: true })],
          variables: [
            { ...variable, name: "zone", sensitive: false },
            { ...variable, name: "key", sensitive: true },
          ],
          presets: [
            {
              name: "small",
              description: "",
              icon: "",
              default: true,
              parameters: [{ name: "size", value: "1" }],
            },
          ],
          startResources: buildResult([agent()]).resources,
        }),
      );
      const version = (await owner.get(`/templateversions/${pushed.body.id}`)).body;
      assert.equal(version.job.status, "succeeded");
      assert.equal(version.readme, "# Hello");
      const parameters = (await member.get(`/templateversions/${version.id}/rich-parameters`)).body;
      assert.deepEqual(
        parameters.map((item: Json) => [item.name, item.type, item.required, item.description_plaintext]),
        [
          ["size", "number", false, "How big"],
          ["image", "string", true, "How big"],
        ],
      );
      const variables = (await owner.get(`/templateversions/${version.id}/variables`)).body;
      assert.deepEqual(
        variables.map((item: Json) => item.value),
        ["b", ""],
      );
      assert.equal((await member.get(`/templateversions/${version.id}/variables`)).status, 403);
      assert.equal((await owner.get(`/templateversions/${version.id}/presets`)).body[0].Name, "small");
      const [resource] = (await owner.get(`/templateversions/${version.id}/resources`)).body;
      assert.equal(resource.agents[0].name, "main");
      assert.deepEqual(
        resource.metadata.map((item: Json) => item.value),
        ["here", ""],
      );
      assert.equal((await owner.get(`/templates/${template.id}/versions`)).body.length, 2);
      assert.equal((await owner.get(`/templates/${template.id}/versions/v2`)).body.id, version.id);

      const taken = await owner.post("/organizations/default/templateversions", {
        file_id: file.body.hash,
        template_id: template.id,
        name: "V2",
      });
      assert.equal(taken.status, 409);
      // Values not given again are those of the active version.
      await owner.patch(`/templates/${template.id}/versions`, { id: version.id });
      await owner.post("/organizations/default/templateversions", {
        file_id: file.body.hash,
        template_id: template.id,
        user_variable_values: [{ name: "zone", value: "c" }],
      });
      const again = await nextJob(test);
      assert.deepEqual(again.variables, [
        { name: "zone", value: "c" },
        { name: "key", value: "s3cret" },
      ]);
      await test.plane.queue.fail(again.id, { message: "main.tf:3: no", errorCode: "ERR_TERRAFORM" });
      await owner.patch(`/templates/${template.id}/versions`, { id: template.active_version_id });
    });

    it("a version whose import failed is neither made a template nor active", async () => {
      const file = await owner.call("POST", "/files", await tarOf({ "main.tf": "# broken" }));
      const version = await owner.post("/organizations/default/templateversions", {
        file_id: file.body.hash,
      });
      const make = () =>
        owner.post("/organizations/default/templates", {
          name: "broken",
          template_version_id: version.body.id,
        });
      assert.match((await make()).body.message, /still being imported/);
      const job = await nextJob(test);
      await test.plane.queue.fail(job.id, { message: "main.tf:1: what is this", errorCode: "ERR_TERRAFORM" });
      const refused = await make();
      assert.equal(refused.status, 412);
      const shown = await owner.get(`/templateversions/${version.body.id}`);
      assert.deepEqual(
        [shown.body.job.status, shown.body.job.error, shown.body.job.error_code],
        ["failed", "main.tf:1: what is this", "ERR_TERRAFORM"],
      );
    });

    it("a name is taken once in an organization, in any case of letters, until deleted", async () => {
      const second = await pushTemplate(test, "second");
      const rename = await owner.patch(`/templates/${second.id}`, { name: "BASE" });
      assert.equal(rename.status, 409);
      assert.equal(rename.body.validations?.[0].field, "name");
      const changed = await owner.patch(`/templates/${second.id}`, {
        description: "new",
        default_ttl_ms: 1000,
      });
      assert.deepEqual([changed.body.description, changed.body.default_ttl_ms], ["new", 1000]);
      assert.equal((await owner.delete(`/templates/${second.id}`)).status, 200);
      assert.equal((await owner.get(`/templates/${second.id}`)).status, 404);
      assert.equal((await pushTemplate(test, "second")).name, "second");
    });

    it("members read and use templates, and change none", async () => {
      assert.equal((await member.get("/templates")).status, 200);
      assert.equal(
        (await member.get(`/organizations/coder/templates/${template.name}`)).body.id,
        template.id,
      );
      assert.equal((await member.patch(`/templates/${template.id}`, { name: "mine" })).status, 403);
      assert.equal((await member.delete(`/templates/${template.id}`)).status, 403);
      const file = await member.call("POST", "/files", await tarOf({ "main.tf": "# evil" }));
      const push = { file_id: file.body.hash, template_id: template.id };
      assert.equal((await member.post("/organizations/default/templateversions", push)).status, 403);
    });

    it("an unknown search key is refused by name", async () => {
      const bad = await owner.get("/templates?q=colour:red");
      assert.equal(bad.status, 400);
      assert.equal(bad.body.validations?.[0].field, "colour");
      assert.equal((await owner.get("/templates?q=exact_name:base")).body.length, 1);
    });
  });

  describe("a workspace's life", () => {
    it("is created, stopped, started and deleted; state and parameters pass from build to build", async () => {
      const created = await member.post("/users/me/workspaces", {
        template_id: template.id,
        name: "dev",
        rich_parameter_values: [{ name: "size", value: "3" }],
      });
      assert.equal(created.status, 201);
      const { id } = created.body;
      assert.equal(created.body.latest_build.status, "pending");
      assert.equal((await build(id, "stop", {}, member)).status, 409);

      const first = await nextBuild();
      assert.equal(first.state, undefined);
      assert.deepEqual(first.parameters, [{ name: "size", value: "3" }]);
      const { metadata } = first;
      assert.deepEqual(
        [metadata.transition, metadata.workspaceName, metadata.ownerName, metadata.templateName],
        ["start", "dev", "mel", "base"],
      );
      const inside = new TestClient(test.plane.url, metadata.ownerSessionToken);
      assert.equal((await inside.get("/users/me")).body.username, "mel");
      assert.equal((await member.get(`/workspaces/${id}`)).body.latest_build.status, "starting");
      await test.plane.queue.complete(first.id, buildResult([agent()], "one"));
      const running = (await member.get(`/users/me/workspace/DEV`)).body;
      assert.equal(running.latest_build.status, "running");
      assert.equal(running.latest_build.resources[0].agents[0].status, "connecting");
      assert.equal(running.health.healthy, false);

      assert.equal((await build(id, "stop", {}, member)).status, 201);
      const second = await nextBuild();
      assert.equal(new TextDecoder().decode(second.state), "one");
      assert.deepEqual(second.parameters, [{ name: "size", value: "3" }]);
      assert.equal(second.metadata.ownerSessionToken, "");
      assert.equal((await inside.get("/users/me")).status, 401);
      // Half-way: what Terraform left is kept, and goes to whoever builds next.
      await test.plane.queue.fail(second.id, {
        message: "apply failed",
        errorCode: "ERR_TERRAFORM",
        state: new TextEncoder().encode("half"),
      });
      assert.equal((await member.get(`/workspaces/${id}`)).body.latest_build.status, "failed");

      await build(id, "start", { rich_parameter_values: [{ name: "size", value: "4" }] }, member);
      const third = await nextBuild();
      assert.equal(new TextDecoder().decode(third.state), "half");
      assert.deepEqual(third.previousParameters, [{ name: "size", value: "3" }]);
      assert.deepEqual(third.parameters, [{ name: "size", value: "4" }]);
      await test.plane.queue.complete(third.id, buildResult([], "three"));

      await build(id, "delete", {}, member);
      const last = await nextBuild();
      assert.equal(new TextDecoder().decode(last.state), "three");
      await test.plane.queue.complete(last.id, { ...buildResult(), resources: [], state: new Uint8Array() });
      assert.equal((await member.get("/users/me/workspace/dev")).status, 404);
      const gone = await member.get("/users/me/workspace/dev?include_deleted=true");
      assert.equal(gone.body.latest_build.status, "deleted");
      const builds = await member.get(`/workspaces/${id}/builds`);
      assert.deepEqual(
        builds.body.map((item: Json) => [item.build_number, item.transition, item.status]),
        [
          [4, "delete", "deleted"],
          [3, "start", "running"],
          [2, "stop", "failed"],
          [1, "start", "running"],
        ],
      );
    });

    it("a name is taken once per owner, however many ask at the same moment", async () => {
      const all = await Promise.all(
        Array.from({ length: 6 }, () =>
          owner.post("/users/me/workspaces", { template_id: template.id, name: "race" }),
        ),
      );
      assert.deepEqual(all.map(({ status }) => status).sort(), [201, 409, 409, 409, 409, 409]);
      const refused = all.find(({ status }) => status === 409);
      assert.equal(refused?.body.validations?.[0].field, "name");
      assert.match(refused?.body.message ?? "", /already exists/);
      await test.plane.queue.complete((await nextBuild()).id, buildResult());
      // Its job is the only one: what the losers inserted went with their transactions.
      assert.equal((await test.database.knex("provisioner_jobs").where({ status: "pending" })).length, 0);
    });

    it("two builds at the same moment are one and a 409", async () => {
      const { workspace } = await runningWorkspace(test, owner, template.id, "twice");
      const both = await Promise.all([build(workspace.id, "stop"), build(workspace.id, "stop")]);
      assert.deepEqual(both.map(({ status }) => status).sort(), [201, 409]);
      await test.plane.queue.complete((await nextBuild()).id, buildResult());
    });

    it("bad parameters are refused by name, before anything is built", async () => {
      const bad = await owner.post("/users/me/workspaces", {
        template_id: template.id,
        name: "bad",
        rich_parameter_values: [{ name: "size", value: "10" }],
      });
      assert.equal(bad.status, 400);
      assert.deepEqual(bad.body.validations, [{ field: "size", detail: "The value must be at most 9." }]);
      assert.equal((await owner.get("/users/me/workspace/bad")).status, 404);
    });

    it("a waiting build ends at once when canceled, a running one when its daemon says so", async () => {
      const created = await owner.post("/users/me/workspaces", { template_id: template.id, name: "cancel" });
      const path = `/workspacebuilds/${created.body.latest_build.id}`;
      assert.equal((await owner.patch(`${path}/cancel`)).status, 200);
      assert.equal((await owner.get(path)).body.status, "canceled");
      assert.equal((await owner.patch(`${path}/cancel`)).status, 412);

      const next = await build(created.body.id, "start");
      const job = await nextBuild();
      assert.equal((await test.plane.queue.heartbeat(job.id)).canceled, false);
      await owner.patch(`/workspacebuilds/${next.body.id}/cancel`);
      assert.equal((await owner.get(`/workspacebuilds/${next.body.id}`)).body.status, "canceling");
      assert.equal((await test.plane.queue.heartbeat(job.id)).canceled, true);
      await test.plane.queue.fail(job.id, { message: "interrupted", errorCode: "ERR_CANCELED" });
      assert.equal((await owner.get(`/workspacebuilds/${next.body.id}`)).body.status, "canceled");
      assert.equal((await build(created.body.id, "delete")).status, 201);
      await test.plane.queue.complete((await nextBuild()).id, buildResult());
    });

    it("an orphaned workspace is forgotten without a daemon, by template admins only", async () => {
      const { workspace } = await runningWorkspace(test, member, template.id, "orphan");
      assert.equal((await build(workspace.id, "delete", { orphan: true }, member)).status, 403);
      const gone = await build(workspace.id, "delete", { orphan: true });
      assert.equal(gone.body.status, "deleted");
      assert.equal((await member.get("/users/me/workspace/orphan")).status, 404);
    });

    it("others' workspaces are not there for a member; a template admin sees but doesn't change them", async () => {
      const { workspace } = await runningWorkspace(test, owner, template.id, "secret");
      const admin = await addUser(owner, "tim", ["template-admin"]);
      for (const path of [
        `/workspaces/${workspace.id}`,
        "/users/ada/workspace/secret",
        `/workspaces/${workspace.id}/builds`,
        `/workspacebuilds/${workspace.latest_build.id}`,
        `/workspacebuilds/${workspace.latest_build.id}/logs`,
        `/workspaceagents/${workspace.latest_build.resources[0].agents[0].id}`,
      ]) {
        const hidden = await member.get(path);
        assert.equal(hidden.status, 404, path);
        assert.equal((await admin.get(path)).status, 200, path);
      }
      assert.equal((await build(workspace.id, "stop", {}, member)).status, 404);
      assert.equal((await build(workspace.id, "stop", {}, admin)).status, 403);
      const state = `/workspacebuilds/${workspace.latest_build.id}/state`;
      assert.equal((await owner.get(state)).status, 200);
      const own = await runningWorkspace(test, member, template.id, "mine");
      assert.equal((await member.get(`/workspacebuilds/${own.workspace.latest_build.id}/state`)).status, 403);
      const foreign = await member.post("/users/ada/workspaces", { template_id: template.id, name: "gift" });
      assert.equal(foreign.status, 404);
    });

    it("lists are searched by owner, name, template and status, and unknown keys are refused", async () => {
      const names = async (q: string, client = owner) =>
        (await client.get(`/workspaces?q=${encodeURIComponent(q)}`)).body.workspaces.map(
          (item: Json) => item.name,
        );
      await runningWorkspace(test, member, template.id, "searched");
      assert.deepEqual(await names("owner:mel name:search"), ["searched"]);
      assert.deepEqual(await names("mel/searched"), ["searched"]);
      assert.deepEqual(await names("owner:me searched", member), ["searched"]);
      assert.deepEqual(await names("owner:ada searched", member), []);
      assert.deepEqual(await names("name:searched template:base status:running"), ["searched"]);
      assert.deepEqual(await names("name:searched status:stopped"), []);
      assert.deepEqual(await names("name:searched has-agent:connecting"), ["searched"]);
      assert.deepEqual(await names("name:searched has-agent:connected"), []);
      assert.deepEqual(await names("name:searched has-agent:timeout"), []);
      assert.deepEqual(await names("name:searched has-agent:disconnected"), []);
      assert.deepEqual(await names("name:searched outdated:false"), ["searched"]);
      const page = await owner.get("/workspaces?limit=1&offset=1");
      assert.equal(page.body.workspaces.length, 1);
      assert.ok(page.body.count > 1);
      for (const q of ["colour:red", "status:strange", "has-agent:maybe"]) {
        const bad = await owner.get(`/workspaces?q=${q}`);
        assert.equal(bad.status, 400);
        assert.equal(bad.body.validations?.[0].field, q.split(":")[0]);
      }
    });

    it("a template with workspaces can't be deleted", async () => {
      const refused = await owner.delete(`/templates/${template.id}`);
      assert.equal(refused.status, 409);
      assert.match(refused.body.message, /workspaces must be deleted/);
    });
  });

  describe("agents", () => {
    it("reads its manifest, says what it does, and its token ends with its build", async () => {
      const { workspace, agentToken } = await runningWorkspace(test, member, template.id, "agent");
      const client = new TestClient(test.plane.url, agentToken);
      const manifest = (await client.get("/workspaceagents/me/manifest")).body;
      assert.deepEqual(
        [
          manifest.workspace_name,
          manifest.owner_username,
          manifest.agent_name,
          manifest.environment_variables,
        ],
        ["agent", "mel", "main", { EDITOR: "vim" }],
      );
      const [script] = manifest.scripts;
      assert.equal(script.script, "echo hello");
      const startup = {
        version: "v1",
        expanded_directory: "/home/mel",
        operating_system: "linux",
        architecture: "arm64",
      };
      assert.equal((await client.post("/workspaceagents/me/startup", startup)).status, 204);
      for (const state of ["starting", "ready"])
        await client.post("/workspaceagents/me/lifecycle", { state, changed_at: new Date().toISOString() });
      const line = { created_at: new Date().toISOString(), level: "info", output: "hello\u0000" };
      const send = (log_source_id: string) =>
        client.patch("/workspaceagents/me/logs", { log_source_id, logs: [line] });
      assert.equal((await send(script.log_source_id)).status, 204);
      assert.equal((await send(randomUUID())).status, 400);

      const path = `/workspaceagents/${manifest.agent_id}`;
      const shown = (await member.get(path)).body;
      assert.deepEqual(
        [shown.lifecycle_state, shown.expanded_directory, shown.architecture, shown.logs_length],
        ["ready", "/home/mel", "arm64", 5],
      );
      assert.ok(shown.ready_at >= shown.started_at);
      const logs = (await member.get(`${path}/logs`)).body;
      assert.deepEqual([logs.length, logs[0].output, logs[0].source_id], [1, "hello", script.log_source_id]);

      // A build anew hands the same token to the new build's agent; a stop ends it, once it has succeeded.
      await build(workspace.id, "start", {}, member);
      await test.plane.queue.complete((await nextBuild()).id, buildResult([agent(agentToken)]));
      const second = (await client.get("/workspaceagents/me/manifest")).body;
      assert.notEqual(second.agent_id, manifest.agent_id);
      await build(workspace.id, "stop", {}, member);
      const stop = await nextBuild();
      assert.equal((await client.get("/workspaceagents/me/manifest")).status, 200);
      await test.plane.queue.complete(stop.id, { ...buildResult(), resources: [] });
      assert.equal((await client.get("/workspaceagents/me/manifest")).status, 401);
    });

    it("a log over its limit is cut, and the agent is told to stop", async () => {
      const { agentToken } = await runningWorkspace(test, member, template.id, "noisy");
      const client = new TestClient(test.plane.url, agentToken);
      const { agent_id, scripts } = (await client.get("/workspaceagents/me/manifest")).body;
      const line = { created_at: new Date().toISOString(), level: "info", output: "x".repeat(60_000) };
      const batch = { log_source_id: scripts[0].log_source_id, logs: Array(10).fill(line) };
      assert.equal((await client.patch("/workspaceagents/me/logs", batch)).status, 204);
      assert.equal((await client.patch("/workspaceagents/me/logs", batch)).status, 413);
      const shown = (await member.get(`/workspaceagents/${agent_id}`)).body;
      assert.equal(shown.logs_overflowed, true);
      assert.equal((await member.get(`/workspaceagents/${agent_id}/logs`)).body.length, 17);
    });

    it("a user's key opens no agent route and an agent's token no user route", async () => {
      const { agentToken } = await runningWorkspace(test, member, template.id, "apart");
      assert.equal((await member.get("/workspaceagents/me/manifest")).status, 401);
      assert.equal((await new TestClient(test.plane.url, agentToken).get("/users/me")).status, 401);
    });

    it("status follows what is heard of it", async () => {
      const { knex } = test.database;
      const { workspace } = await runningWorkspace(test, member, template.id, "status");
      const { id } = workspace.latest_build.resources[0].agents[0];
      const status = async () => (await member.get(`/workspaceagents/${id}`)).body.status;
      assert.equal(await status(), "connecting");
      await setAgentsConnected(knex, [id], new Date());
      assert.equal(await status(), "connected");
      assert.equal((await member.get(`/workspaces/${workspace.id}`)).body.health.healthy, true);
      await setAgentsDisconnected(knex, [id], new Date());
      assert.equal(await status(), "disconnected");
      await setAgentsConnected(knex, [id], new Date());
      assert.equal(await status(), "connected");
    });

    it("sessions open for the owner of a running workspace, and for nobody else", async () => {
      const { knex } = test.database;
      const { workspace } = await runningWorkspace(test, member, template.id, "connect");
      const agentId = workspace.latest_build.resources[0].agents[0].id;
      const other = await addUser(owner, "eve");
      const admin = await addUser(owner, "tia", ["template-admin"]);
      const ask = async (client: TestClient, query: ReachQuery = { agentId }, agentName?: string) => {
        const rows = await reachRows(knex, await ownerOf(client), (client.token ?? "").split("-")[0], query);
        return judgeReach(rows, agentName, new Date());
      };
      for (const query of [
        { agentId },
        { owner: undefined, name: "Connect" },
        { owner: "MEL", name: "connect" },
      ]) {
        const allowed = await ask(member, query);
        assert.ok(allowed.ok);
        const { username, workspace_name, agent_name, agent_id } = allowed.row;
        assert.deepEqual(
          [username, workspace_name, agent_name, agent_id],
          ["mel", "connect", "main", agentId],
        );
      }
      const codeOf = async (verdict: ReturnType<typeof ask>) => {
        const { ok, ...rest } = await verdict;
        return "code" in rest ? rest.code : ok;
      };
      const byName = { owner: undefined, name: "connect" };
      assert.equal(await codeOf(ask(member, byName, "main")), true);
      assert.equal(await codeOf(ask(member, byName, "other")), "ERR_AGENT_NOT_FOUND");
      assert.equal(await codeOf(ask(other, byName)), "ERR_NOT_FOUND");
      assert.equal(await codeOf(ask(member, { owner: "nobody", name: "connect" })), "ERR_NOT_FOUND");
      assert.deepEqual(
        [await ask(other), await ask(admin)].map((verdict) => !verdict.ok && verdict.code),
        ["ERR_NOT_FOUND", "ERR_FORBIDDEN"],
      );
      await build(workspace.id, "stop", {}, member);
      await test.plane.queue.complete((await nextBuild()).id, { ...buildResult(), resources: [] });
      assert.equal(await codeOf(ask(member, byName)), "ERR_WORKSPACE_NOT_RUNNING");
      const stopped = await ask(member);
      assert.ok(!stopped.ok && stopped.code === "ERR_WORKSPACE_NOT_RUNNING");
      assert.match(stopped.reason, /coder start/);
      assert.equal((await agentById(knex, agentId))?.workspace.name, "connect");
    });
  });
});
