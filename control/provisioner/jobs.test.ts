// biome-ignore-all lint/suspicious/noTemplateCurlyInString: Terraform's own syntax
import assert from "node:assert/strict";
import { access, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { startDaemonsWith } from "./daemon.ts";
import { createJobRunner, type JobOutcome, type JobRunnerOptions } from "./jobs.ts";
import type { BuildResult, ImportResult, Job, JobFailure, LogLevel } from "./protocol.ts";
import { buildJob, findTerraform, importJob, MemoryQueue, templateTar, waitUntilGone } from "./testing.ts";

const CODER = `
terraform {
  required_providers {
    coder = { source = "coder/coder" }
  }
}
data "coder_workspace" "me" {}
data "coder_workspace_owner" "me" {}
`;
const AGENT = `
resource "coder_agent" "main" {
  os   = "linux"
  arch = "amd64"
}
`;

interface Said {
  stage: string;
  output: string;
  level: LogLevel;
}

describe("jobs with the genuine terraform", function () {
  this.timeout(30_000);
  let terraform: { path: string; version: string };
  let dir: string;
  let said: Said[];
  let onSaid: (line: Said) => void;
  before(async () => {
    terraform = await findTerraform();
  });
  beforeEach(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "jobs-"));
    said = [];
    onSaid = () => {};
  });
  afterEach(async () => {
    const left = (await readdir(dir)).filter((name) => name.startsWith("coder-job-"));
    await rm(dir, { recursive: true });
    assert.deepEqual(left, [], "a job's folder was left behind");
  });

  const runner = (more: Partial<JobRunnerOptions> = {}) =>
    createJobRunner({ terraform, env: process.env, workParent: dir, ...more });

  function run(job: Job, more: Partial<JobRunnerOptions> = {}): Promise<JobOutcome> {
    const log = (stage: string, output: string, level: LogLevel = "info") => {
      said.push({ stage, output, level });
      onSaid({ stage, output, level });
    };
    return runner(more)(job, { log, signal: new AbortController().signal });
  }
  const text = () => said.map(({ output }) => output).join("\n");
  const built = (outcome: JobOutcome): BuildResult => {
    assert.ok("result" in outcome, "failure" in outcome ? outcome.failure.message : "");
    assert.ok(outcome.result.type === "workspace_build");
    return outcome.result;
  };
  const failed = (outcome: JobOutcome): JobFailure => {
    assert.ok("failure" in outcome, "the job should have failed");
    return outcome.failure;
  };

  it("import a template: inputs, README, and what a workspace has started and stopped", async () => {
    const archive = await templateTar({
      "README.md": "# Rich\n",
      "main.tf": `${CODER}
        variable "region" {
          description = "where"
          type        = string
          default     = "eu"
        }
        data "coder_parameter" "cpu" {
          name    = "cpu"
          type    = "number"
          default = 2
          mutable = true
          validation {
            min = 1
            max = 8
          }
        }
        data "coder_parameter" "repo" {
          name         = "repo"
          display_name = "Repository"
        }
        resource "coder_agent" "main" {
          os             = "linux"
          arch           = "amd64"
          startup_script = "echo hi"
          env            = { REGION = var.region }
          metadata {
            key      = "load"
            script   = "uptime"
            interval = 10
          }
        }
        locals { token = coder_agent.main.token }
        module "ide" {
          for_each = toset(["a.b[0]"])
          source   = "./ide"
          agent_id = coder_agent.main.id
        }
        resource "coder_env" "e" {
          agent_id = coder_agent.main.id
          name     = "FROM"
          value    = "env"
        }
        resource "terraform_data" "vm" {
          count            = data.coder_workspace.me.start_count
          triggers_replace = local.token
        }
        resource "terraform_data" "disk" {}
        resource "coder_metadata" "disk" {
          resource_id = terraform_data.disk.id
          daily_cost  = 3
          item {
            key   = "size"
            value = data.coder_parameter.cpu.value
          }
        }
      `,
      "ide/main.tf": `
        terraform {
          required_providers {
            coder = { source = "coder/coder" }
          }
        }
        variable "agent_id" {}
        resource "coder_app" "code" {
          agent_id = var.agent_id
          slug     = "code"
          url      = "http://localhost:8080"
        }
        resource "coder_script" "setup" {
          agent_id     = var.agent_id
          display_name = "Setup"
          script       = "true"
          run_on_start = true
        }
      `,
    });
    const outcome = await run(importJob(archive));
    assert.ok("result" in outcome, "failure" in outcome ? outcome.failure.message : "");
    const result = outcome.result as ImportResult;
    assert.equal(result.readme, "# Rich\n");
    assert.deepEqual(result.variables, [
      {
        name: "region",
        description: "where",
        type: "string",
        defaultValue: "eu",
        required: false,
        sensitive: false,
      },
    ]);
    assert.deepEqual(
      result.parameters.map(({ name, type, required, defaultValue, formType, validation }) => [
        name,
        type,
        required,
        defaultValue,
        formType,
        validation.min,
        validation.max,
      ]),
      [
        ["cpu", "number", false, "2", "input", 1, 8],
        ["repo", "string", true, "", "input", undefined, undefined],
      ],
    );
    assert.deepEqual(
      result.startResources.map(({ type, name, agents }) => [type, name, agents.length]),
      [
        ["terraform_data", "disk", 0],
        ["terraform_data", "vm", 1],
      ],
    );
    const [agent] = result.startResources[1]!.agents;
    assert.deepEqual(
      agent!.apps.map(({ slug }) => slug),
      ["code"],
    );
    assert.deepEqual(
      agent!.scripts.map(({ displayName }) => displayName),
      ["Startup Script", "Setup"],
    );
    assert.deepEqual(agent!.env, { REGION: "eu", FROM: "env" });
    assert.deepEqual(
      agent!.metadata.map(({ key, intervalSeconds }) => [key, intervalSeconds]),
      [["load", 10]],
    );
    assert.deepEqual(result.startResources[0]!.metadata, [
      { key: "size", value: "2", sensitive: false, isNull: false },
    ]);
    assert.deepEqual(
      result.stopResources.map(({ name, agents }) => [name, agents.length]),
      [["disk", 0]],
    );
  });

  it("name every variable without a value, so that a client can ask for them", async () => {
    const archive = await templateTar({
      "main.tf": `${CODER}
        variable "a" {
          description = "The first"
          type        = number
        }
        variable "b" { sensitive = true }
        variable "c" { default = "c" }`,
    });
    const failure = failed(await run(importJob(archive, { variables: [{ name: "c", value: "given" }] })));
    assert.equal(failure.errorCode, "REQUIRED_TEMPLATE_VARIABLES");
    assert.match(failure.message, /a, b/);
    assert.deepEqual(
      failure.variables!.map(({ name, type, required }) => [name, type, required]),
      [
        ["a", "number", true],
        ["b", "", true],
        ["c", "", false],
      ],
    );
  });

  it("show the file and line of a template that can't be parsed", async () => {
    const archive = await templateTar({
      "main.tf": CODER,
      "bad.tf": '\n\nresource "terraform_data" "x" {\n  input = \n}\n',
    });
    const failure = failed(await run(importJob(archive)));
    assert.equal(failure.errorCode, "ERR_TERRAFORM_FAILED");
    assert.match(failure.message, /bad\.tf line 4: Invalid expression/);
    assert.match(text(), /on bad\.tf line 4/);
    assert.ok(said.some(({ output, level }) => output.includes("Invalid expression") && level === "error"));
  });

  it("refuse an archive without Terraform files, and say so when there is no terraform", async () => {
    assert.equal(
      failed(await run(importJob(await templateTar({ "sub/main.tf": "" })))).errorCode,
      "ERR_TEMPLATE_ARCHIVE",
    );
    const missing = Object.assign(new Error("install terraform"), { code: "ERR_TERRAFORM_MISSING" });
    const failure = failed(
      await run(importJob(await templateTar({})), { terraform: () => Promise.reject(missing) }),
    );
    assert.deepEqual([failure.errorCode, failure.message], ["ERR_TERRAFORM_MISSING", "install terraform"]);
  });

  it("start, stop, start again and delete a workspace, whose agent keeps its identity", async () => {
    const archive = await templateTar({
      "main.tf": `${CODER}${AGENT}
        data "coder_parameter" "word" { name = "word" }
        resource "terraform_data" "vm" {
          count = data.coder_workspace.me.start_count
          input = [coder_agent.main.id, data.coder_parameter.word.value, data.coder_workspace_owner.me.name]
        }`,
    });
    const parameters = [{ name: "word", value: "" }];
    const started = built(await run(buildJob(archive, "start", { parameters })));
    const [agent] = started.resources[0]!.agents;
    assert.match(agent!.id, /^[0-9a-f-]{36}$/);
    assert.match(agent!.auth.kind === "token" ? agent!.auth.token : "", /^[0-9a-f-]{36}$/);

    const stopped = built(await run(buildJob(archive, "stop", { parameters, state: started.state })));
    assert.deepEqual(stopped.resources, []);
    const again = built(await run(buildJob(archive, "start", { parameters, state: stopped.state })));
    assert.deepEqual(again.resources[0]!.agents[0], agent);
    const deleted = built(await run(buildJob(archive, "delete", { parameters, state: again.state })));
    assert.deepEqual([deleted.state.length, deleted.resources], [0, []]);
  });

  it("delete without state succeeds without terraform", async () => {
    const nowhere = { path: "/nonexistent/terraform", version: "1.11.4" };
    const outcome = await run(buildJob(await templateTar({ "main.tf": "" }), "delete"), {
      terraform: nowhere,
    });
    assert.equal(built(outcome).state.length, 0);
  });

  it("a build that fails half-way keeps its state, with which it can be deleted", async () => {
    const file = path.join(dir, "made");
    const archive = await templateTar({
      "main.tf": `${CODER}${AGENT}
        resource "terraform_data" "made" {
          input = ${JSON.stringify(file)}
          provisioner "local-exec" { command = "touch ${file}" }
          provisioner "local-exec" {
            when    = destroy
            command = "rm \${self.input}"
          }
        }
        resource "terraform_data" "broken" {
          input = [terraform_data.made.id, coder_agent.main.id]
          provisioner "local-exec" { command = "echo going down >&2; exit 9" }
        }`,
    });
    const failure = failed(await run(buildJob(archive, "start")));
    assert.match(failure.message, /main\.tf line \d+: local-exec provisioner error: .*exit status 9/);
    assert.match(text(), /going down/);
    await access(file);
    assert.ok(failure.state!.length > 0);
    assert.equal(built(await run(buildJob(archive, "delete", { state: failure.state! }))).state.length, 0);
    await assert.rejects(access(file));
  });

  it("stream what a script prints while it still runs", async () => {
    const go = path.join(dir, "go");
    const archive = await templateTar({
      "main.tf": `resource "terraform_data" "x" {
        provisioner "local-exec" { command = "echo working; while [ ! -e ${go} ]; do sleep 0.05; done" }
      }`,
    });
    onSaid = ({ output }) => {
      if (output.endsWith(": working")) void writeFile(go, ""); // without this line the script would not end
    };
    built(await run(buildJob(archive, "start")));
  });

  it("keep secrets out of the log, and the server's environment out of scripts", async () => {
    const archive = await templateTar({
      "main.tf": `${CODER}
        variable "password" { sensitive = true }
        resource "terraform_data" "leaky" {
          provisioner "local-exec" {
            command = "env; echo token=$T password=$P"
            environment = {
              T = nonsensitive(data.coder_workspace_owner.me.session_token)
              P = nonsensitive(var.password)
            }
          }
        }`,
    });
    const env = { ...process.env, CODER_PG_CONNECTION_URL: "postgres://u:hunter22@db" };
    const variables = [{ name: "password", value: "correct horse" }];
    built(await run(buildJob(archive, "start", { variables }), { env }));
    assert.match(text(), /token=\[hidden\] password=\[hidden\]/);
    assert.doesNotMatch(text(), /session-token-of-alice|correct horse|hunter22|CODER_PG_CONNECTION_URL/);
  });

  it("a cancel in the middle of a script ends it, keeps the state, and the rest can be deleted", async () => {
    const pidFile = path.join(dir, "pid");
    const archive = await templateTar({
      "main.tf": `
        resource "terraform_data" "first" {}
        resource "terraform_data" "slow" {
          input = terraform_data.first.id
          provisioner "local-exec" { command = "sleep 300 & echo $! > ${pidFile}; echo waiting; wait" }
        }`,
    });
    const queue = new MemoryQueue();
    const daemons = startDaemonsWith(runner(), { queue, count: 1, heartbeatIntervalMs: 20 });
    queue.add(buildJob(archive, "start"));
    await queue.until(() => queue.text.includes(": waiting"));
    queue.canceled.add("build-start");
    await queue.settled("build-start");
    const failure = queue.failed.get("build-start")!;
    assert.equal(failure.errorCode, "ERR_JOB_CANCELED");
    assert.equal(await waitUntilGone(Number(await readFile(pidFile, "utf8"))), true);
    const state = JSON.parse(new TextDecoder().decode(failure.state!)) as { resources: { name: string }[] };
    assert.deepEqual(state.resources.map(({ name }) => name).sort(), ["first", "slow"]);

    queue.add(buildJob(archive, "delete", { state: failure.state! }));
    await queue.settled("build-delete");
    await daemons.stop();
    assert.ok(queue.completed.has("build-delete"));
  });

  it("several builds at once do not get into each other's way", async () => {
    const archive = await templateTar({
      "main.tf": `${CODER}${AGENT}
        data "coder_parameter" "n" { name = "n" }
        resource "terraform_data" "vm" { input = [coder_agent.main.id] }
        resource "coder_metadata" "m" {
          resource_id = terraform_data.vm.id
          item {
            key   = "n"
            value = data.coder_parameter.n.value
          }
        }`,
    });
    const results = await Promise.all(
      ["1", "2", "3", "4"].map(async (value) =>
        built(await run(buildJob(archive, "start", { parameters: [{ name: "n", value }] }))),
      ),
    );
    assert.deepEqual(
      results.map(({ resources }) => resources[0]!.metadata[0]!.value),
      ["1", "2", "3", "4"],
    );
    assert.equal(new Set(results.map(({ resources }) => resources[0]!.agents[0]!.id)).size, 4);
  });
});
