import assert from "node:assert/strict";
import { DATA_SOURCES } from "./data-sources.ts";
import { applyResource, planResource, planValue, readDataSource, upgradeState, validate } from "./engine.ts";
import { encodeMsgpack } from "./msgpack.ts";
import { RESOURCES } from "./resources.ts";
import { type Block, blockType, bool, type Call, str } from "./schema.ts";
import { ExactNumber, isWhollyKnown, type ObjectValue, objectValue, UNKNOWN, type Value } from "./value.ts";

const resource = (name: string) => RESOURCES.get(name)!;
const source = (name: string) => DATA_SOURCES.get(name)!;

/** A configuration with everything null or empty but what is given. */
function config(block: Block, given: { [name: string]: Value } = {}): ObjectValue {
  const out = objectValue(Object.keys(block.attributes).map((name) => [name, null]));
  for (const name of Object.keys(block.blocks ?? {})) out[name] = [];
  return Object.assign(out, given);
}

let ids = 0;
const call = (env: Record<string, string> = {}, more: Partial<Call> = {}): Call => ({
  env: new Map(Object.entries(env)),
  accessUrl: "http://localhost:3000",
  agentTokens: "keep",
  collect: false,
  newId: () => `id-${++ids}`,
  observe() {},
  ...more,
});

describe("planning", () => {
  const app = resource("coder_app");
  const given = { agent_id: "a", slug: "s" };

  it("a new resource has its configuration, its defaults, and unknown computed attributes", () => {
    const { planned, replace } = planResource(app, null, config(app), config(app, given));
    assert.deepEqual(
      [planned?.slug, planned?.share, planned?.id, planned?.url],
      ["s", "owner", UNKNOWN, null],
    );
    assert.deepEqual(replace, []);
  });

  it("unknown stays unknown: an attribute, a block's attribute, a whole list of blocks", () => {
    const agent = resource("coder_agent");
    const block = config(agent.blocks!.display_apps.block, { vscode: UNKNOWN });
    const planned = planValue(
      agent,
      config(agent, { os: UNKNOWN, metadata: UNKNOWN, display_apps: [block] }),
      null,
    );
    assert.deepEqual([planned.os, planned.metadata], [UNKNOWN, UNKNOWN]);
    const [apps] = planned.display_apps as ObjectValue[];
    assert.deepEqual([apps.vscode, apps.ssh_helper], [UNKNOWN, true]);
  });

  it("a change of an argument or a block replaces; of a zero value for null it does not", () => {
    const prior = { ...planValue(app, config(app, { ...given, subdomain: false }), null), id: "i" };
    const replaced = (changes: { [name: string]: Value }) =>
      planResource(app, prior, prior, config(app, { ...given, ...changes })).replace;
    assert.deepEqual(replaced({}), []);
    assert.deepEqual(replaced({ tooltip: "", order: 0 }), []);
    assert.deepEqual(replaced({ slug: "t", share: "public" }), ["slug", "share"]);
    assert.deepEqual(replaced({ agent_id: UNKNOWN }), ["agent_id"]);
    const check = objectValue([
      ["url", "u"],
      ["interval", 1],
      ["threshold", 1],
    ]);
    assert.deepEqual(replaced({ healthcheck: [check] }), ["healthcheck"]);
  });

  it("keeps an id that the configuration does not give", () => {
    const prior = { ...planValue(app, config(app, given), null), id: "i" };
    assert.equal(planResource(app, prior, prior, config(app, given)).planned?.id, "i");
  });

  it("destruction plans nothing", () => {
    assert.deepEqual(planResource(app, config(app), null, config(app)), { planned: null, replace: [] });
  });
});

describe("applying", () => {
  it("every resource comes out wholly known and of its type", () => {
    const required: Record<string, { [name: string]: Value }> = {
      coder_ai_task: { app_id: "8e2f6a4e-5a1c-4c5e-9d5e-0a6e3c0f5b11" },
      coder_script: { run_on_start: true },
      coder_app: { slug: "s" },
      coder_agent: { os: "linux", arch: "amd64" },
      coder_env: { name: "N" },
    };
    for (const [name, type] of RESOURCES) {
      const given: ObjectValue = objectValue();
      for (const [attribute, { mode }] of Object.entries(type.attributes))
        if (mode === "required") given[attribute] = "x";
      const full = config(type, { ...given, ...required[name] });
      const planned = planValue(type, full, null);
      const { state, findings } = applyResource(type, null, planned, full, call());
      assert.deepEqual(findings, [], name);
      assert.ok(state && isWhollyKnown(state), name);
      encodeMsgpack(state, blockType(type));
    }
  });

  it("every data source comes out wholly known and of its type", () => {
    const required: Record<string, { [name: string]: Value }> = { coder_secret: { env: "N" } };
    for (const [name, type] of DATA_SOURCES) {
      const given: ObjectValue = objectValue();
      for (const [attribute, { mode }] of Object.entries(type.attributes))
        if (mode === "required") given[attribute] = "x";
      const { state, findings } = readDataSource(type, config(type, { ...given, ...required[name] }), call());
      assert.deepEqual(findings, [], name);
      assert.ok(state && isWhollyKnown(state), name);
      encodeMsgpack(state, blockType(type));
    }
  });

  it("a task is taken from the build, and its app from the older block", () => {
    const type = resource("coder_ai_task");
    const app = "8e2f6a4e-5a1c-4c5e-9d5e-0a6e3c0f5b11";
    const task = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";
    const full = config(type, { sidebar_app: [objectValue([["id", app]])] });
    const env = { CODER_TASK_ID: task, CODER_TASK_PROMPT: "do it" };
    const { state } = applyResource(type, null, planValue(type, full, null), full, call(env));
    assert.deepEqual([state?.id, state?.enabled, state?.app_id, state?.prompt], [task, true, app, "do it"]);
    const bare = config(type);
    assert.match(
      applyResource(type, null, planValue(type, bare, null), bare, call()).findings[0].detail,
      /must be set/,
    );
  });
});

describe("reading data sources", () => {
  it("a claimed prebuild is none any more", () => {
    const workspace = source("coder_workspace");
    const counts = (env: Record<string, string>) => {
      const { state } = readDataSource(workspace, config(workspace), call(env));
      return [state?.prebuild_count, state?.is_prebuild, state?.is_prebuild_claim];
    };
    assert.deepEqual(counts({ CODER_WORKSPACE_IS_PREBUILD: "TRUE" }), [1, true, false]);
    assert.deepEqual(
      counts({ CODER_WORKSPACE_IS_PREBUILD: "true", CODER_WORKSPACE_IS_PREBUILD_CLAIM: "true" }),
      [0, false, true],
    );
  });

  it("a workspace build must say which template it is of", () => {
    const workspace = source("coder_workspace");
    const { state, findings } = readDataSource(
      workspace,
      config(workspace),
      call({ CODER_WORKSPACE_BUILD_ID: "b", CODER_WORKSPACE_TEMPLATE_ID: "t" }),
    );
    assert.equal(state, null);
    assert.deepEqual(
      findings.map(({ detail }) => detail.split(" ")[0]),
      ["CODER_WORKSPACE_TEMPLATE_NAME", "CODER_WORKSPACE_TEMPLATE_VERSION"],
    );
  });

  it("malformed groups are an error, not a crash", () => {
    const owner = source("coder_workspace_owner");
    for (const groups of ["x", "{}", "[1]"])
      assert.match(
        readDataSource(owner, config(owner), call({ CODER_WORKSPACE_OWNER_GROUPS: groups })).findings[0]
          .detail,
        /GROUPS is malformed/,
      );
  });

  it("a missing secret fails only the start of a workspace", () => {
    const secret = source("coder_secret");
    const full = config(secret, { file: "~/.token", help_message: "Store one." });
    const build = { CODER_WORKSPACE_BUILD_ID: "b" };
    const read = (env: Record<string, string>) => readDataSource(secret, full, call(env));
    assert.equal(read({ ...build, CODER_WORKSPACE_TRANSITION: "start" }).findings[0].detail, "Store one.");
    assert.equal(read({ ...build, CODER_WORKSPACE_TRANSITION: "stop" }).state?.value, "");
    assert.equal(read({ CODER_SECRET_FILE_7e2f2e746f6b656e: "s" }).state?.value, "s");
  });

  it("an external auth token is found under its old name too", () => {
    const auth = source("coder_external_auth");
    const { state } = readDataSource(
      auth,
      config(auth, { id: "gh" }),
      call({ CODER_GIT_AUTH_ACCESS_TOKEN_gh: "t" }),
    );
    assert.equal(state?.access_token, "t");
  });
});

describe("validation", () => {
  it("passes over what is not known yet", () => {
    const agent = resource("coder_agent");
    const unknown = objectValue(Object.keys(config(agent)).map((name) => [name, UNKNOWN]));
    assert.deepEqual(validate(agent, unknown), []);
  });

  it("a number too large to be exact is no whole number", () => {
    const app = resource("coder_app");
    const found = validate(
      app,
      config(app, { agent_id: "a", slug: "s", order: new ExactNumber("9007199254740993") }),
    );
    assert.deepEqual(
      found.map(({ detail }) => detail),
      ['expected a whole number for "order", got 9007199254740993'],
    );
  });
});

describe("upgrading a state", () => {
  const block: Block = {
    attributes: { name: str.required(), share: str.optional({ default: "owner" }) },
    blocks: {
      part: {
        nesting: "list",
        block: { attributes: { on: bool.optional({ default: true }), note: str.optional() } },
      },
    },
  };

  it("drops what is unknown, adds what is missing, and takes defaults for absent arguments", () => {
    const upgraded = upgradeState(block, { name: "n", old: 1, part: [{ on: null }] });
    const part = objectValue([
      ["on", true],
      ["note", null],
    ]);
    assert.deepEqual(
      upgraded,
      objectValue([
        ["name", "n"],
        ["share", "owner"],
        ["part", [part]],
      ]),
    );
    assert.deepEqual(upgradeState(block, { name: "n" })?.part, []);
    assert.equal(upgradeState(block, null), null);
  });

  it("converts as Terraform does, and refuses what it can't, naming the place", () => {
    assert.equal(upgradeState(block, { name: 5 })?.name, "5");
    for (const bad of [{ name: [] }, { part: [{ on: "maybe" }] }, { part: {} }])
      assert.throws(() => upgradeState(block, bad), {
        code: "ERR_PROVIDER_VALUE",
        message: /^state\.(name|part)/,
      });
  });
});
