// The provider under the genuine terraform: what templates written for Coder rely on.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { agentScriptEnv, parameterEnv, previousParameterEnv } from "./context.ts";
import { contextFromJob } from "./index.ts";
import { type Build, build, context, FIXTURES, type Json, list, text, UUID, useBuilds } from "./testing.ts";

describe("the coder provider under terraform", function () {
  this.timeout(60_000);

  useBuilds();

  describe("a template with everything", () => {
    const env = {
      CODER_WORKSPACE_OWNER_GROUPS: '["admins","devs"]',
      CODER_WORKSPACE_OWNER_RBAC_ROLES: '[{"name":"member","org_id":"o1"}]',
      CODER_SECRET_ENV_API_TOKEN: "hunter2",
      CODER_EXTERNAL_AUTH_ACCESS_TOKEN_github: "gho_1",
    };
    let start: Build;
    let state: Map<string, Json>;
    before(async () => {
      start = await build("everything", context(env));
    });

    it("is valid, plans, applies, and leaves nothing for a second plan", async () => {
      await start.must("validate", "-no-color");
      const actions = await start.plan();
      assert.equal(Object.keys(actions).length, 11);
      assert.deepEqual(new Set(Object.values(actions)), new Set(["create"]));
      await start.apply();
      state = await start.state();
      const second = await start.run("plan", "-detailed-exitcode", "-no-color");
      assert.equal(second.code, 0, second.output);
    });

    it("gives the agent ids, a token and the init script, and every default", () => {
      const agent = state.get("coder_agent.main")!;
      assert.match(text(agent.id), UUID);
      assert.match(text(agent.token), UUID);
      assert.equal(agent.init_script, "curl http://127.0.0.1:3000/bin/coder # token");
      assert.equal(agent.connection_timeout, 120);
      assert.equal(agent.startup_script, "echo eu");
      assert.deepEqual(agent.env, { OWNER: "default" });
      assert.deepEqual(agent.display_apps, [
        {
          vscode: true,
          vscode_insiders: true,
          web_terminal: true,
          port_forwarding_helper: true,
          ssh_helper: true,
        },
      ]);
      assert.deepEqual(
        list(agent.metadata).map((block) => [block.key, block.timeout]),
        [
          ["cpu", 1],
          ["disk", null],
        ],
      );
      assert.deepEqual(
        list(agent.resources_monitoring[0].volume)
          .map(({ path }) => path)
          .sort(),
        ["/home", "/tmp"],
      );
      const app = state.get("coder_app.web")!;
      assert.equal(app.agent_id, agent.id);
      assert.deepEqual(
        [app.share, app.open_in, app.hidden, app.external],
        ["owner", "slim-window", false, false],
      );
      assert.equal(state.get("coder_ai_task.task")?.app_id, app.id);
      assert.match(text(state.get("coder_devcontainer.repo")?.subagent_id), UUID);
    });

    it("answers data sources from the build's context", async () => {
      assert.deepEqual((await start.outputs()).owner.value as unknown, {
        groups: ["admins", "devs"],
        port: 3000,
        roles: [{ name: "member", org_id: "o1" }],
      });
      assert.equal(state.get("data.coder_external_auth.github")?.access_token, "gho_1");
      assert.equal(state.get("data.coder_secret.token")?.value, "hunter2");
      assert.equal(state.get("data.coder_secret.token")?.id, "env:API_TOKEN");
      assert.equal(state.get("data.coder_workspace_preset.big")?.id, "Big");
      assert.deepEqual(state.get("data.coder_workspace_tags.me")?.tags as unknown, { zone: "eu" });
      assert.equal(state.get("data.coder_task.me")?.enabled, false);
      assert.deepEqual(
        ["name", "transition", "start_count"].map((name) => state.get("data.coder_workspace.me")?.[name]),
        ["default", "start", 1],
      );
      assert.deepEqual(
        list(state.get("coder_metadata.machine[0]")?.item).map(({ key, is_null }) => [key, is_null]),
        [
          ["size", false],
          ["nothing", true],
          ["secret", false],
        ],
      );
    });

    it("stops: what counts on start goes, the agent and its token stay", async () => {
      const stop = await build(start, context({ ...env, CODER_WORKSPACE_TRANSITION: "stop" }));
      assert.deepEqual(await stop.plan(), {
        "coder_metadata.machine[0]": "delete",
        "terraform_data.machine[0]": "delete",
      });
      await stop.apply();
      assert.equal((await stop.state()).get("coder_agent.main")?.token, state.get("coder_agent.main")?.token);
    });

    it("is destroyed without a trace", async () => {
      const destroy = await build(start, context({ CODER_WORKSPACE_TRANSITION: "destroy" }));
      await destroy.plan("-destroy");
      await destroy.apply();
      assert.equal((await destroy.state()).size, 0);
    });
  });

  it("replaces a resource whose argument changes, and brings a default back when the argument goes", async () => {
    const small = await build("small");
    await small.plan();
    await small.apply();
    const agent = (await small.state()).get("coder_agent.main");
    assert.deepEqual(await small.plan("-var=slug=other", "-var=share=public"), {
      "coder_app.app": "delete create",
    });
    await small.apply();
    assert.equal((await small.state()).get("coder_app.app")?.share, "public");
    assert.deepEqual(await small.plan("-var=slug=other"), { "coder_app.app": "delete create" });
    await small.apply();
    const after = await small.state();
    assert.equal(after.get("coder_app.app")?.share, "owner");
    assert.deepEqual(after.get("coder_agent.main"), agent);
  });

  it("makes a new token at every refresh when told to rotate, and uses a running agent's when given one", async () => {
    const first = await build("small");
    await first.plan();
    await first.apply();
    const token = (await first.state()).get("coder_agent.main")?.token;
    const rotating = await build(first, context({}, { agentTokens: "rotate" }));
    assert.deepEqual(await rotating.plan(), { "terraform_data.machine[0]": "update" });
    await rotating.apply();
    assert.notEqual((await rotating.state()).get("coder_agent.main")?.token, token);

    const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; // SHA-256 of nothing
    const claim = { [`CODER_RUNNING_WORKSPACE_AGENT_TOKEN_${hash}`]: "running" };
    const claimed = await build(first, context(claim, { agentTokens: "rotate" }));
    await claimed.plan();
    await claimed.apply();
    assert.equal((await claimed.state()).get("terraform_data.machine[0]")?.input, "running");
  });

  it("works in modules with for_each and dynamic blocks", async () => {
    const modules = await build("modules");
    await modules.must("init", "-input=false", "-no-color");
    await modules.plan();
    await modules.apply();
    const state = await modules.state();
    const agent = state.get('module.agents["a.b"].coder_agent.main')!;
    assert.deepEqual(
      list(agent.metadata).map(({ key, script }) => [key, script]),
      [
        ["x", "echo 0"],
        ["y", "echo 1"],
      ],
    );
    assert.deepEqual(
      list(agent.display_apps).map(({ vscode }) => vscode),
      [false],
    );
    assert.deepEqual(state.get('module.agents["c\\"d"].coder_agent.main')?.display_apps, []);
    assert.equal(state.get('module.agents["a.b"].coder_app.app["x"]')?.agent_id, agent.id);
    assert.equal((await modules.run("plan", "-detailed-exitcode")).code, 0);
  });

  it("plans with unknown values in every kind of place, and applies them", async () => {
    const late = await build("unknowns");
    await late.plan();
    const planned = await late.json("show", "-json", "plan");
    const app = list(planned.planned_values.root_module.resources).find(
      ({ address }) => text(address) === "coder_app.app",
    );
    assert.equal(app?.values.share, "owner");
    await late.apply();
    const state = await late.state();
    const agent = state.get("coder_agent.main")!;
    assert.deepEqual(
      list(agent.metadata).map(({ key, interval }) => [key, interval]),
      [
        ["k1", 5],
        ["k2", 5],
      ],
    );
    assert.deepEqual([agent.display_apps[0].vscode, agent.display_apps[0].web_terminal], [false, true]);
    assert.equal(agent.resources_monitoring[0].volume.length, 2);
    assert.equal(state.get("coder_app.app")?.healthcheck.length, 1);
    assert.deepEqual(
      list(state.get("coder_metadata.app")?.item).map(({ is_null }) => is_null),
      [true, false],
    );
    assert.equal((await late.outputs()).deferred.value, "late");
    assert.equal((await late.run("plan", "-detailed-exitcode")).code, 0);
  });

  it("refuses at apply what turned out wrong only then, and keeps no such resource", async () => {
    const late = await build("unknowns");
    const file = path.join(late.directory, "main.tf");
    writeFileSync(file, readFileSync(file, "utf8").replace('slug    = "late"', 'slug    = "Not Late"'));
    await late.plan();
    const applied = await late.run("apply", "-no-color", "plan");
    assert.equal(applied.code, 1);
    assert.match(
      applied.output,
      /on main\.tf line \d+, in resource "coder_app" "app"[\s\S]*"Not Late" is not valid/,
    );
    const state = await late.state();
    assert.equal(state.has("coder_app.app"), false);
    assert.equal(state.has("coder_agent.main"), true);
  });

  it("keeps the urls of aliased provider blocks apart", async () => {
    const aliases = await build("aliases");
    await aliases.plan();
    await aliases.apply();
    const script = (url: string, auth: string) => `curl ${url}bin/coder # ${auth}`;
    assert.deepEqual((await aliases.outputs()).seen.value as unknown, {
      default: ["http://127.0.0.1:3000", 3000],
      one: ["http://one.example:81/sub/path", 81, script("http://one.example:81/", "token")],
      two: ["https://two.example", 443, script("https://two.example/", "aws-instance-identity")],
    });
  });

  it("reports what is wrong with a configuration by file and line", async () => {
    const invalid = await build("invalid");
    const { diagnostics } = JSON.parse((await invalid.run("validate", "-json")).output);
    const reported = new Map<number, string[]>();
    for (const { severity, summary, detail, range } of diagnostics) {
      assert.equal(range?.filename, "main.tf", summary);
      const line = range.start.line;
      reported.set(line, [...(reported.get(line) ?? []), `${severity}: ${summary} ${detail}`]);
    }
    const lines = readFileSync(path.join(FIXTURES, "invalid/main.tf"), "utf8").split("\n");
    const missing = lines.flatMap((line, index) => {
      const wanted = /# (error|warning): (.*)$/.exec(line);
      const found = reported.get(index + 1) ?? [];
      reported.delete(index + 1);
      if (!wanted) return found;
      const ok = found.length === 1 && found[0].startsWith(wanted[1]) && found[0].includes(wanted[2]);
      return ok ? [] : [`line ${index + 1}: wanted ${wanted[0]}, got ${JSON.stringify(found)}`];
    });
    assert.deepEqual([...missing, ...reported.values()], []);
  });

  it("refuses a provider url that can't be used", async () => {
    const aliases = await build("aliases");
    const file = path.join(aliases.directory, "main.tf");
    writeFileSync(file, readFileSync(file, "utf8").replace("https://two.example", "http://two example"));
    const { code, output } = await aliases.run("plan", "-no-color");
    assert.equal(code, 1);
    assert.match(
      output,
      /Invalid provider url[\s\S]*on main\.tf line 16[\s\S]*host name contains a character/,
    );
  });

  it("refuses a script that would never run, and a hidden app's order only warns", async () => {
    const small = await build("small");
    writeFileSync(
      path.join(small.directory, "more.tf"),
      [
        'resource "coder_script" "idle" {',
        "  agent_id     = coder_agent.main.id",
        '  display_name = "idle"',
        '  script       = "true"',
        "}",
        'resource "coder_app" "hidden" {',
        "  agent_id = coder_agent.main.id",
        '  slug     = "hidden"',
        "  hidden   = true",
        "  order    = 1",
        "}",
      ].join("\n"),
    );
    await small.plan();
    const { code, output } = await small.run("apply", "-no-color", "plan");
    assert.equal(code, 1);
    assert.match(output, /with coder_script\.idle,[\s\S]*at least one of run_on_start, run_on_stop or cron/);
    assert.match(output, /Warning:[\s\S]*"order" has no effect on a hidden app/);
    assert.equal((await small.state()).has("coder_app.hidden"), true);
  });

  describe("parameters", () => {
    const values = (given: Record<string, string>, previous: Record<string, string> = {}) =>
      Object.fromEntries([
        ...Object.entries(given).map(([name, value]) => [parameterEnv(name), value]),
        ...Object.entries(previous).map(([name, value]) => [previousParameterEnv(name), value]),
      ]);

    it("take the build's values, and tell what they are", async () => {
      const given = values({ "Name & more": "Dev_1", cores: "4" }, { cores: "2" });
      const parameters = await build("parameters", context(given));
      await parameters.plan();
      await parameters.apply();
      assert.deepEqual((await parameters.outputs()).values.value as unknown, {
        name: "Dev_1",
        cores: "4",
        tools: '["git"]',
        forms: ["input", "input", "multi-select"],
        flags: {
          error: "{value} is not within {min} and {max}",
          max: 8,
          max_disabled: false,
          min: 1,
          min_disabled: false,
          monotonic: "increasing",
          regex: null,
        },
      });
      const { parameters: seen } = parameters.provider.observed;
      assert.deepEqual([...seen.keys()].sort(), ["Name & more", "cores", "tools"]);
      assert.deepEqual(
        [seen.get("Name & more")?.required, seen.get("cores")?.required, seen.get("cores")?.value],
        [true, false, "4"],
      );
    });

    const wrong = values({ "Name & more": "1st", cores: "1", tools: '["emacs"]' }, { cores: "2" });

    it("fail the plan when a value is not allowed", async () => {
      const { code, output } = await (await build("parameters", context(wrong))).run("plan", "-no-color");
      assert.equal(code, 1);
      assert.match(output, /letters first \(value "1st" does not match/);
      assert.match(output, /on main\.tf line 18, in data "coder_parameter" "cores"/);
      assert.match(output, /value 1 must be equal or greater than the previous\s+value 2/);
      assert.match(output, /Not among the options: "emacs"/);
    });

    it("only warn of such values when a form collects them", async () => {
      const form = await build("parameters", context(wrong, { collect: true }));
      const output = await form.must("plan", "-no-color");
      assert.match(output, /Warning:[\s\S]*letters first/);
      const problems = [...form.provider.observed.parameters.values()].map(({ name, problems }) => [
        name,
        problems.length,
      ]);
      assert.deepEqual(problems.sort(), [
        ["Name & more", 1],
        ["cores", 1],
        ["tools", 1],
      ]);
    });
  });

  it("serves builds side by side without mixing them up", async () => {
    const names = ["ann", "bob", "eve"];
    const seen = await Promise.all(
      names.map(async (name) => {
        const one = await build("small", context({ CODER_WORKSPACE_NAME: name }));
        await one.plan();
        await one.apply();
        return text((await one.outputs()).workspace.value);
      }),
    );
    assert.deepEqual(seen, names);
  });

  it("takes a state of another release: fills what is missing, drops what is gone, replaces nothing", async () => {
    const small = await build("small");
    await small.plan();
    await small.apply();
    small.editState((attributes) => {
      const { api_key_scope: _, startup_script_behavior: __, order: ___, ...agent } = attributes.coder_agent;
      for (const name of Object.keys(attributes.coder_agent)) delete attributes.coder_agent[name];
      Object.assign(attributes.coder_agent, agent, {
        login_before_ready: true,
        startup_script: "",
        // The original keeps this block in its state when none is configured.
        display_apps: [
          {
            vscode: true,
            vscode_insiders: false,
            web_terminal: true,
            port_forwarding_helper: true,
            ssh_helper: true,
          },
        ],
      });
      delete attributes.coder_app.tooltip;
      attributes.coder_app.relative_path = true;
    });
    const before = JSON.parse(readFileSync(path.join(small.directory, "terraform.tfstate"), "utf8"));
    assert.deepEqual(await small.plan(), { "coder_agent.main": "update" });
    await small.apply();
    const agent = (await small.state()).get("coder_agent.main")!;
    const old = before.resources.find(({ type }: Json) => text(type) === "coder_agent").instances[0]
      .attributes;
    assert.deepEqual([agent.id, agent.token, agent.display_apps], [old.id, old.token, []]);
    assert.equal((await small.run("plan", "-detailed-exitcode")).code, 0);
  });

  it("reads a job's metadata as its context", async () => {
    const job = contextFromJob(
      {
        coderUrl: "https://coder.example",
        transition: "delete",
        workspaceName: "dev",
        workspaceBuildId: "b1",
        ownerId: "u1",
        ownerName: "ann",
        ownerFullName: "",
        ownerEmail: "ann@example.com",
        ownerLoginType: "password",
        templateId: "t1",
        templateName: "local",
        templateVersion: "v1",
      },
      [{ name: "size", value: "" }],
      [{ name: "size", value: "2" }],
      { agentScripts: new Map([["linux_amd64", "sh"]]) },
    );
    assert.equal(job.env.get("CODER_WORKSPACE_TRANSITION"), "destroy");
    assert.equal(job.env.get("CODER_WORKSPACE_OWNER"), "ann");
    assert.equal(job.env.has("CODER_WORKSPACE_OWNER_NAME"), false);
    assert.equal(job.env.get(parameterEnv("size")), "");
    assert.equal(job.env.get(previousParameterEnv("size")), "2");
    assert.equal(job.env.get(agentScriptEnv("linux", "amd64")), "sh");
    const one = await build("small", job);
    await one.plan();
    assert.deepEqual(Object.keys((await one.json("show", "-json", "plan")).planned_values.outputs), [
      "workspace",
    ]);
  });
});
