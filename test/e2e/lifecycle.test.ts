import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { newClient } from "../../control/db/open.ts";
import { debianPostgres, withDatabase } from "../../control/db/testing.ts";
import { bundle, type Running, Sandbox } from "./sandbox.ts";
import { assertRefused, Person, TestServer, templates } from "./server.ts";

describe("lives of workspaces", function () {
  this.timeout(60_000);
  let sandbox: Sandbox;
  let server: TestServer;
  let alice: Person;
  /** What the template `waiting` waits for. */
  let gate: string;
  before(async () => {
    sandbox = new Sandbox();
    gate = path.join(sandbox.dir, "gate");
    server = await TestServer.start(sandbox);
    alice = await Person.first(sandbox, server.url, "alice");
    await alice.mustPush("empty", templates.empty);
    await alice.mustPush("waiting", templates.waiting(gate));
  });
  after(async () => {
    await server?.stop();
    const left = sandbox.processes();
    const files = readdirSync(sandbox.tmp);
    sandbox.dispose();
    assert.deepEqual(left, [], "processes left behind");
    assert.deepEqual(files, [], "temporary files left behind");
  });
  const open = () => writeFileSync(gate, "");
  const close = () => rmSync(gate, { force: true });
  /** A start that has come to its waiting resource. */
  async function begin(name: string): Promise<Running> {
    close();
    const running = alice.start("create", name, "--template", "waiting", "--yes");
    await sandbox.until(running, "stderr", /local-exec\): begun$/m);
    return running;
  }

  it("coder create shows the build's log while it happens, and nothing on stdout", async () => {
    const running = await begin("streamed");
    assert.equal((await alice.build("streamed")).status, "starting");
    assert.doesNotMatch(running.stderr, /Creation complete .*\n.*done|is running/);
    open();
    const done = await running.finished;
    assert.equal(done.code, 0, done.stderr);
    assert.equal(done.stdout, "");
    assert.match(
      done.stderr,
      /local-exec\): done\n[\s\S]*Workspace streamed is running.*coder ssh streamed\n$/,
    );
  });

  it("a second build waits its turn: refused with the reason, or the same one followed", async () => {
    const running = await begin("busy");
    const { id } = await alice.json<{ id: string }>("show", "busy");
    const under = /Another build .* under way\. Wait until it completes, or cancel it/;
    assertRefused(await alice.coder("stop", "busy", "--yes"), 1, under);
    assertRefused(await alice.coder("delete", "busy", "--yes"), 1, under);
    assertRefused(await alice.coder("delete", "busy", "--orphan", "--yes"), 1, under);
    const raw = await alice.api("POST", `/workspaces/${id}/builds`, { transition: "stop" });
    assert.equal(raw.status, 409);
    assert.equal((JSON.parse(raw.body) as { code: string }).code, "ERR_BUILD_ACTIVE");
    const follower = alice.start("start", "busy");
    await sandbox.until(follower, "stderr", /already starting; following build 1[\s\S]*begun/);
    open();
    assert.equal((await running.finished).code, 0);
    assert.equal((await follower.finished).code, 0, follower.stderr);
    const { status, number } = await alice.build("busy");
    assert.deepEqual({ status, number }, { status: "running", number: 1 });
  });

  it("two builds asked for at the same moment are one build and one 409", async () => {
    await alice.must("create", "raced", "--template", "empty", "--yes");
    const { id } = await alice.json<{ id: string }>("show", "raced");
    const ask = () => alice.api("POST", `/workspaces/${id}/builds`, { transition: "stop" });
    const statuses = (await Promise.all([ask(), ask(), ask()])).map(({ status }) => status).sort();
    assert.deepEqual(statuses, [201, 409, 409]);
    // Follows the one that is under way, or hears that it is over.
    await alice.must("stop", "raced", "--yes");
    assert.equal((await alice.build("raced")).number, 2);
  });

  it("an interrupt of coder create cancels the build; its state is kept and can be deleted", async () => {
    const running = await begin("canceled");
    running.child.kill("SIGINT");
    const done = await running.finished;
    assertRefused(
      done,
      130,
      /^==> Canceling the build/m,
      /^error: .* was canceled\n.*coder delete canceled/m,
    );
    assert.equal((await alice.build("canceled")).status, "canceled");
    assert.ok((await alice.state("canceled")).includes("terraform_data.kept"));
    assert.match((await alice.must("delete", "canceled", "--yes")).stderr, /\d destroyed/);
  });

  it("start and stop may be repeated; delete says that nothing is left", async () => {
    await alice.must("create", "again", "--template", "empty", "--yes");
    const number = async () => (await alice.build("again")).number;
    assert.match((await alice.must("start", "again")).stderr, /already running/);
    assert.equal(await number(), 1, "no build for nothing");
    await alice.must("stop", "again", "--yes");
    assert.match((await alice.must("stop", "again", "--yes")).stderr, /already stopped/);
    assert.equal(await number(), 2);
    await alice.must("start", "again");
    await alice.must("delete", "again", "--yes");
    assertRefused(await alice.coder("delete", "again", "--yes"), 1, /no workspace "again"/);
    await alice.must("create", "again", "--template", "empty", "--yes");
    await alice.must("delete", "again", "--yes");
  });

  it("delete --orphan forgets a workspace without touching what it made", async () => {
    const marker = path.join(sandbox.dir, "marker");
    await alice.mustPush(
      "marked",
      `${templates.empty}
resource "terraform_data" "marker" {
  input = "${marker}"
  provisioner "local-exec" { command = "touch '\${self.input}'" }
  provisioner "local-exec" {
    when    = destroy
    command = "rm '\${self.input}'"
  }
}
`,
    );
    await alice.must("create", "kept", "--template", "marked", "--yes");
    await alice.must("delete", "kept", "--orphan", "--yes");
    assertRefused(await alice.coder("show", "kept"), 1, /no workspace/);
    assert.ok(existsSync(marker), "its resource is still there");
    await alice.must("create", "gone", "--template", "marked", "--yes");
    await alice.must("delete", "gone", "--yes");
    assert.equal(existsSync(marker), false);
  });

  it("a new version of the template makes its workspaces outdated, until it is the one they are built from", async () => {
    await alice.mustPush("versions", templates.empty, "--name", "one");
    await alice.must("create", "old", "--template", "versions", "--yes");
    assert.doesNotMatch((await alice.must("show", "old")).stdout, /outdated/);
    const changed = `${templates.empty}# changed\n`;
    await alice.mustPush("versions", changed, "--name", "aside", "--no-activate");
    assert.equal((await alice.json<{ outdated: boolean }>("show", "old")).outdated, false);
    await alice.mustPush("versions", `${changed}# again\n`, "--name", "two");
    assert.match((await alice.must("show", "old")).stdout, /versions one\n +outdated/);
    assert.equal((await alice.json<{ outdated: boolean }>("show", "old")).outdated, true);
    const taken = await alice.push("versions", `${changed}# more\n`, "--name", "two");
    assertRefused(taken, 1, /version with this name already exists/);
    await alice.must("create", "new", "--template", "versions", "--yes");
    assert.match((await alice.must("show", "new")).stdout, /versions two\n/);
  });

  it("after a logout the token opens nothing, wherever it was copied to", async () => {
    const bob = await alice.invite("bob");
    const { token } = bob;
    const withToken = () => alice.coder("whoami", "--token", token);
    assert.match((await withToken()).stdout, /^bob /);
    await bob.must("logout", "--yes");
    assert.equal(existsSync(path.join(bob.configDir, "session")), false);
    assertRefused(await withToken(), 1, /signed out.*\n.*coder login/);
    assertRefused(await bob.coder("list"), 1, /not logged in/);
    assert.match((await alice.must("whoami")).stdout, /^alice /, "hers stays");
  });

  describe("a server that is stopped in the middle of a build", () => {
    /** At the same address, so that who waited for it finds it again. */
    async function restart(): Promise<void> {
      server = await TestServer.start(sandbox, { port: new URL(server.url).port });
    }

    it("lets the build complete, and whoever follows it hears the end from the next server", async () => {
      const running = await begin("drained");
      server.running.child.kill("SIGTERM");
      await sandbox.until(server.running, "stderr", /Stopping: running builds have a minute/);
      open();
      assert.equal((await server.running.finished).code, 0, server.running.stderr);
      await restart();
      const client = await running.finished;
      assert.equal(client.code, 0, client.stderr);
      assert.match(client.stderr, /Workspace drained is running/);
      await alice.must("delete", "drained", "--yes");
    });

    it("cancels it on a second signal, within seconds; the state is kept and the next start goes on", async () => {
      const running = await begin("cut");
      const { child } = server.running;
      child.kill("SIGTERM");
      await sandbox.until(server.running, "stderr", /Stopping/);
      const signaledAt = performance.now();
      child.kill("SIGTERM");
      assert.equal((await server.running.finished).code, 0, server.running.stderr);
      assert.ok(performance.now() - signaledAt < 20_000, "ends in bounded time");
      await restart();
      assertRefused(await running.finished, 1, /^error: .*provisioner was stopped.*\n.*coder start cut/m);
      assert.equal((await alice.build("cut")).status, "failed");
      assert.ok((await alice.state("cut")).includes("terraform_data.kept"));
      open();
      await alice.must("start", "cut");
      await alice.must("delete", "cut", "--yes");
    });
  });
});

describe("a server on Debian's PostgreSQL", function () {
  this.timeout(60_000);

  it("builds, keeps everything over a restart, and says so when its database goes away", async function () {
    const found = await debianPostgres();
    if ("skip" in found) {
      console.log(`      skipped: ${found.skip}`);
      return this.skip();
    }
    const name = `e2e_${randomBytes(6).toString("hex")}`;
    const admin = newClient(found.url);
    await admin.connect();
    await admin.query(`create database ${name}`);
    const env = { CODER_PG_CONNECTION_URL: withDatabase(found.url, name) };
    const sandbox = new Sandbox();
    try {
      let server = await TestServer.start(sandbox, { env });
      const alice = await Person.first(sandbox, server.url, "alice");
      await alice.mustPush("empty", templates.empty);
      await alice.must("create", "dev", "--template", "empty", "--yes");
      await alice.must("stop", "dev", "--yes");
      assert.equal((await server.stop()).code, 0);
      assert.equal(existsSync(path.join(server.dir, "postgres")), false, "no embedded database beside it");

      server = await TestServer.start(sandbox, { env });
      alice.moveTo(server.url);
      await alice.must("start", "dev");
      await alice.must("delete", "dev", "--yes");

      await admin.query(`drop database ${name} with (force)`);
      assertRefused(await alice.coder("list"), 1, /database isn't reachable/);
      assert.equal((await server.stop()).code, 0, server.running.stderr);
      const args = ["server", "--http-address", "127.0.0.1:0", "--global-config", server.dir];
      const refused = await sandbox.run(process.execPath, [bundle, ...args], env);
      assertRefused(refused, 1, /Create that database/);
      assert.deepEqual(sandbox.processes(), []);
    } finally {
      await admin.query(`drop database if exists ${name} with (force)`);
      await admin.end();
      sandbox.dispose();
    }
  });
});
