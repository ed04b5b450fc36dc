import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { createJobRunner, type JobOutcome } from "../../control/provisioner/jobs.ts";
import type { BuildResult } from "../../control/provisioner/protocol.ts";
import {
  buildJob,
  findTerraform,
  folderTar,
  importJob,
  isRunning,
  waitUntilGone,
} from "../../control/provisioner/testing.ts";

const template = path.join(path.dirname(fileURLToPath(import.meta.url)), "local");

// Stands in for the agent: writes down its environment, starts something that outlives it, and waits.
const AGENT = `#!/bin/sh
echo "$$" > "$HOME/agent-pid"
env > "$HOME/environment"
(cd /; exec sleep 300) & echo "$!" > "$HOME/child-pid"
mkdir -p "$HOME/cache/read-only" && touch "$HOME/cache/read-only/x" && chmod 500 "$HOME/cache/read-only"
: > "$HOME/ready"
sleep 300 &
wait
`;

describe("the starter template for local processes", function () {
  this.timeout(30_000);
  let terraform: { path: string; version: string };
  let archive: Uint8Array;
  let dir: string;
  let workspace: string;
  let text: string;
  before(async () => {
    terraform = await findTerraform();
    archive = await folderTar(template);
  });
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "local-template-"));
    workspace = path.join(dir, "workspaces", buildJob(archive, "start").metadata.workspaceId);
    text = "";
    await agentIs(AGENT);
  });
  afterEach(async () => {
    // A test that failed half-way must not leave its workspace running.
    const env = { ...process.env, WORKSPACE_DIR: workspace, WORKSPACE_ID: path.basename(workspace) };
    await promisify(execFile)("sh", [path.join(template, "agent.sh"), "stop"], { env });
    await promisify(execFile)("chmod", ["-R", "u+rwX", dir]);
    await rm(dir, { recursive: true, force: true });
  });

  async function agentIs(script: string): Promise<void> {
    await writeFile(path.join(dir, "agent"), script);
    await chmod(path.join(dir, "agent"), 0o755);
  }

  function run(transition: "start" | "stop" | "delete", state?: Uint8Array): Promise<JobOutcome> {
    const runJob = createJobRunner({
      terraform,
      env: { ...process.env, AWS_SECRET_ACCESS_KEY: "cloud-secret", TERM: "xterm" },
      agentCommand: [path.join(dir, "agent")],
      workParent: dir,
    });
    const variables = [{ name: "path", value: path.join(dir, "workspaces") }];
    return runJob(buildJob(archive, transition, { variables, ...(state && { state }) }), {
      signal: new AbortController().signal,
      log: (_stage, output) => {
        text += `${output}\n`;
      },
    });
  }
  const built = (outcome: JobOutcome): BuildResult => {
    assert.ok("result" in outcome, "failure" in outcome ? `${outcome.failure.message}\n${text}` : "");
    return outcome.result as BuildResult;
  };
  const home = (name: string) => readFile(path.join(workspace, "home", name), "utf8");
  const pids = async () => [Number(await home("agent-pid")), Number(await home("child-pid"))] as const;
  async function ready(): Promise<void> {
    for (const giveUpAt = Date.now() + 5_000; Date.now() < giveUpAt; ) {
      if (
        await home("ready").then(
          () => true,
          () => false,
        )
      )
        return;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.fail("the agent did not come up");
  }

  it("is imported with one agent on this machine's platform", async () => {
    const runJob = createJobRunner({ terraform, env: process.env, workParent: dir });
    const outcome = await runJob(importJob(archive), { log: () => {}, signal: new AbortController().signal });
    assert.ok("result" in outcome && outcome.result.type === "template_version_import");
    const shown = outcome.result.startResources.filter(({ hide }) => !hide);
    assert.deepEqual(
      shown.map(({ name, agents }) => [name, agents.length]),
      [
        ["agent", 1],
        ["folder", 0],
      ],
    );
    assert.match(shown[0]!.agents[0]!.scripts[0]!.script, /Hello/);
    assert.match(outcome.result.readme, /^# Local process/);
  });

  it("runs the agent apart from Terraform, with the token and without the provisioner's environment", async () => {
    const started = built(await run("start"));
    await ready();
    const [agentPid] = await pids();
    const [agent] = started.resources.flatMap(({ agents }) => agents);
    const token = agent!.auth.kind === "token" ? agent!.auth.token : "";
    const environment = new Map(
      (await home("environment"))
        .split("\n")
        .map((line) => [line.split("=", 1)[0]!, line.slice(line.indexOf("=") + 1)]),
    );
    assert.equal(environment.get("CODER_AGENT_TOKEN"), token);
    assert.equal(environment.get("CODER_AGENT_URL"), "http://127.0.0.1:3000/");
    assert.equal(environment.get("HOME"), path.join(workspace, "home"));
    const leaked = [...environment.keys()].filter((name) =>
      /^(TF_|GO|AWS_|CHECKPOINT|INIT_SCRIPT|AGENT_TOKEN|WORKSPACE_)/.test(name),
    );
    assert.deepEqual(leaked, []);
    assert.doesNotMatch(text, new RegExp(token));
    for (const name of await readdir(workspace))
      assert.equal((await stat(path.join(workspace, name))).mode & 0o077, 0, `${name} is open to others`);
    for (const name of ["init.sh", "agent.pid", "agent.log"])
      assert.doesNotMatch(await readFile(path.join(workspace, name), "utf8"), new RegExp(token));

    // A second start changes nothing: the same agent goes on.
    const again = built(await run("start", started.state));
    assert.equal(await isRunning(agentPid), true);
    assert.deepEqual(again.resources, started.resources);
    built(await run("delete", again.state));
    assert.deepEqual(await readdir(path.join(dir, "workspaces")), []);
    for (const pid of await Promise.all([agentPid].map(waitUntilGone))) assert.equal(pid, true);
  });

  it("leaves no process when stopped, keeps the home, and starts again", async () => {
    const started = built(await run("start"));
    await ready();
    const first = await pids();
    const stopped = built(await run("stop", started.state));
    for (const pid of first) assert.equal(await waitUntilGone(pid), true);
    assert.ok((await home("environment")).length > 0);
    const again = built(await run("start", stopped.state));
    built(await run("delete", again.state));
    assert.deepEqual(await readdir(path.join(dir, "workspaces")), []);
  });

  it("finds what a crashed agent left behind, and spares a process that got its number", async function () {
    if (process.platform !== "linux") {
      console.log("skipped: other systems don't show the environment of a process");
      this.skip();
    }
    await agentIs(AGENT.replace("(cd /;", "(trap '' TERM; cd /;"));
    const started = built(await run("start"));
    await ready();
    const [agentPid, childPid] = await pids();
    process.kill(agentPid, "SIGKILL");
    assert.equal(await waitUntilGone(agentPid), true);
    const pidFile = path.join(workspace, "agent.pid");
    const [, identity] = (await readFile(pidFile, "utf8")).split("\n");
    await writeFile(pidFile, `${process.pid}\n${identity}\n`); // our own number: it must not be signalled
    built(await run("stop", started.state));
    assert.equal(await waitUntilGone(childPid), true);
  });

  it("fails with the agent's own words when it can't start, and what it left is ended by a delete", async () => {
    await agentIs(`#!/bin/sh\nsleep 300 & echo $! > "$HOME/child-pid"\necho "no such server"\nexit 3\n`);
    const outcome = await run("start");
    assert.ok("failure" in outcome);
    assert.match(outcome.failure.message, /no such server/);
    const childPid = Number(await home("child-pid"));
    built(await run("delete", outcome.failure.state));
    assert.equal(await waitUntilGone(childPid), true);
    assert.deepEqual(await readdir(path.join(dir, "workspaces")), []);
  });

  it("never takes over or removes a folder that isn't its own", async () => {
    await mkdir(workspace, { recursive: true });
    await writeFile(path.join(workspace, "precious"), "mine");
    const outcome = await run("start");
    assert.ok("failure" in outcome);
    assert.match(outcome.failure.message, /isn't this workspace's/);
    built(await run("delete", outcome.failure.state));
    assert.equal(await readFile(path.join(workspace, "precious"), "utf8"), "mine");
  });
});
