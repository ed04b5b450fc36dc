import assert from "node:assert/strict";
import { extractResources } from "./extract.ts";
import { extractInputs } from "./extract-inputs.ts";
import { DependencyGraph, lastKey, withoutKeys } from "./graph.ts";
import { type JsonResource, planResources } from "./plan-json.ts";

/** Edges as `terraform graph -type=plan` writes them: "a -> b" means a needs b. */
function graphOf(...edges: string[]): DependencyGraph {
  const node = (label: string) => `"[root] ${label.replaceAll('"', '\\"')} (expand)"`;
  const lines = edges.map((edge) => edge.split(" -> ").map(node).join(" -> "));
  return DependencyGraph.parse(
    `digraph {\n\tcompound = "true"\n\tsubgraph "root" {\n${lines.join("\n")}\n\t}\n}\n`,
  );
}

function resource(address: string, values: Record<string, unknown> = {}): JsonResource {
  const [type, name] = withoutKeys(address).split(".").slice(-2);
  const mode = /(^|\.)data\./.test(address) ? "data" : "managed";
  return { address, mode, type: type!, name: name!, values };
}

const agent = (address = "coder_agent.main", values: Record<string, unknown> = {}) =>
  resource(address, { os: "linux", arch: "amd64", ...values });

function agentsByResource(input: JsonResource[], graph: DependencyGraph): Record<string, string[]> {
  return Object.fromEntries(
    extractResources(input, graph)
      .resources.filter(({ agents }) => agents.length > 0)
      .map(({ type, name, agents }) => [`${type}.${name}`, agents.map((each) => each.name)]),
  );
}

describe("addresses", () => {
  for (const [address, bare, key] of [
    ["coder_agent.main", "coder_agent.main", ""],
    ["coder_agent.main[0]", "coder_agent.main", "[0]"],
    ['module.m["a.b[0]"].x.y["\\"]"]', "module.m.x.y", '["\\"]"]'],
    ['module.m["]"].x.y', "module.m.x.y", ""],
  ] as const)
    it(`of ${address} lose their keys`, () =>
      assert.deepEqual([withoutKeys(address), lastKey(address)], [bare, key]));
});

describe("an agent's resource", () => {
  it("is the nearest managed one that depends on it, whatever lies between", () => {
    const graph = graphOf(
      "docker_container.dev -> local.entry",
      "local.entry -> coder_agent.main",
      "null_resource.later -> docker_container.dev",
      "coder_app.code -> coder_agent.main",
      "aws_instance.a -> data.cloudinit_config.c",
      "data.cloudinit_config.c -> coder_agent.main",
      "docker_container.dev -> docker_volume.home",
    );
    const names = ["docker_container.dev", "null_resource.later", "aws_instance.a", "docker_volume.home"];
    const input = [
      agent(),
      resource("coder_app.code", { slug: "code" }),
      ...names.map((name) => resource(name)),
    ];
    assert.deepEqual(agentsByResource(input, graph), { "docker_container.dev": ["main"] });
  });

  it("is the first by name among equals, and must exist in this plan", () => {
    const graph = graphOf("b_b.two -> coder_agent.main", "a_a.one -> coder_agent.main", "c_c.far -> b_b.two");
    assert.deepEqual(agentsByResource([agent(), resource("b_b.two"), resource("a_a.one")], graph), {
      "a_a.one": ["main"],
    });
    assert.deepEqual(agentsByResource([agent(), resource("c_c.far")], graph), { "c_c.far": ["main"] });
  });

  it("is never found through a provider or the root", () => {
    const text = `
      "[root] provider[\\"registry.terraform.io/coder/coder\\"] (close)" -> "[root] coder_agent.main (expand)"
      "[root] x_x.other (expand)" -> "[root] provider[\\"registry.terraform.io/coder/coder\\"] (close)"
      "[root] root" -> "[root] coder_agent.main (expand)"
      "[root] x_x.other (expand)" -> "[root] root"`;
    const { resources, warnings } = extractResources(
      [agent(), resource("x_x.other")],
      DependencyGraph.parse(text),
    );
    assert.deepEqual(
      resources.map(({ agents }) => agents),
      [[]],
    );
    assert.match(warnings[0]!, /coder_agent\.main is left out/);
  });

  it("is the instance with the same key when both have several", () => {
    const graph = graphOf("d_d.vm -> coder_agent.dev");
    const instances = ["a", "b"].map((key) => resource(`d_d.vm["${key}"]`));
    const keyed = [...instances, agent('coder_agent.dev["b"]')];
    const { resources } = extractResources(keyed, graph);
    assert.deepEqual(
      resources.map(({ agents }) => agents.length),
      [0, 1],
    );
  });

  it("lends its id to an agent that proves itself by a cloud's identity, and shows its size", () => {
    const graph = graphOf("aws_instance.dev -> coder_agent.main");
    const instance = resource("aws_instance.dev", { id: "i-1", instance_type: "t3.large" });
    const main = agent("coder_agent.main", { auth: "aws-instance-identity" });
    const [found] = extractResources([main, instance], graph).resources;
    assert.equal(found!.instanceType, "t3.large");
    assert.deepEqual(found!.agents[0]!.auth, { kind: "instance", instanceId: "i-1" });
    const explicit = resource("coder_agent_instance.x", { instance_id: "given" });
    const both = graphOf(
      "aws_instance.dev -> coder_agent.main",
      "coder_agent_instance.x -> coder_agent.main",
    );
    assert.deepEqual(extractResources([main, instance, explicit], both).resources[0]!.agents[0]!.auth, {
      kind: "instance",
      instanceId: "given",
    });
  });
});

describe("what belongs to an agent", () => {
  const owner = "docker_container.dev -> coder_agent.main";

  it("is found along module variables in a plan, and by id in a build", () => {
    const graph = graphOf(
      owner,
      "module.ide.coder_app.code -> module.ide.var.agent_id",
      "module.ide.var.agent_id -> coder_agent.main",
    );
    const app = 'module.ide["x"].coder_app.code';
    const planned = [agent(), resource("docker_container.dev"), resource(app, { slug: "code" })];
    assert.equal(extractResources(planned, graph).resources[0]!.agents[0]!.apps[0]!.slug, "code");
    const built = [
      agent("coder_agent.main", { id: "1" }),
      agent("coder_agent.other", { id: "2" }),
      resource("docker_container.dev"),
      resource(app, { slug: "code", agent_id: "2" }),
    ];
    const both = graphOf(owner, "docker_container.dev -> coder_agent.other");
    const agents = extractResources(built, both).resources[0]!.agents;
    assert.deepEqual(
      agents.map(({ name, apps }) => [name, apps.length]),
      [
        ["main", 0],
        ["other", 1],
      ],
    );
  });

  it("has the documented defaults", () => {
    const graph = graphOf(owner, "coder_app.a -> coder_agent.main");
    const input = [agent(), resource("docker_container.dev"), resource("coder_app.a", { slug: "a" })];
    const found = extractResources(input, graph).resources[0]!.agents[0]!;
    assert.deepEqual(found.displayApps, ["vscode", "web_terminal", "port_forwarding_helper", "ssh_helper"]);
    const { displayName, openIn, sharingLevel, healthcheck } = found.apps[0]!;
    assert.deepEqual(
      [displayName, openIn, sharingLevel, healthcheck],
      ["a", "slim-window", "owner", undefined],
    );
  });

  it("includes its startup and shutdown scripts as scripts", () => {
    const main = agent("coder_agent.main", {
      startup_script: "echo a",
      shutdown_script: "echo b",
      startup_script_behavior: "blocking",
    });
    const { scripts } = extractResources([main, resource("docker_container.dev")], graphOf(owner))
      .resources[0]!.agents[0]!;
    assert.deepEqual(
      scripts.map((each) => [
        each.displayName,
        each.logPath,
        each.runOnStart,
        each.runOnStop,
        each.startBlocksLogin,
      ]),
      [
        ["Startup Script", "coder-startup-script.log", true, false, true],
        ["Shutdown Script", "coder-shutdown-script.log", false, true, false],
      ],
    );
  });

  it("merges coder_env by strategy in address order, and its own env wins", () => {
    const env = (name: string, values: Record<string, string>) =>
      resource(`coder_env.${name}`, { agent_id: "1", ...values });
    const input = [
      agent("coder_agent.main", { id: "1", env: { OWN: "agent" } }),
      resource("docker_container.dev"),
      env("c", { name: "PATH", value: "/c", merge_strategy: "prepend" }),
      env("a", { name: "PATH", value: "/a" }),
      env("b", { name: "PATH", value: "/b", merge_strategy: "append" }),
      env("d", { name: "OWN", value: "env" }),
    ];
    assert.deepEqual(extractResources(input, graphOf(owner)).resources[0]!.agents[0]!.env, {
      PATH: "/c:/a:/b",
      OWN: "agent",
    });
    const clash = env("e", { name: "PATH", value: "/e", merge_strategy: "error" });
    assert.throws(() => extractResources([...input, clash], graphOf(owner)), {
      code: "ERR_TEMPLATE_INVALID",
    });
  });
});

describe("a template is refused", () => {
  const app = (name: string) => resource(`coder_app.${name}`, { slug: "same", agent_id: "1" });
  const cases: [string, JsonResource[], RegExp][] = [
    [
      "for two agents whose names differ only in case",
      [agent("coder_agent.dev"), agent("module.m.coder_agent.DEV")],
      /same name/,
    ],
    ["for an agent name that can't be a host name", [agent("coder_agent.my_dev")], /host names/],
    ["for two apps of one slug", [app("a"), app("b")], /both have the slug "same"/],
    ["for a bad slug", [resource("coder_app.a", { slug: "Bad_" })], /joined by hyphens/],
    [
      "for two metadata on one resource",
      [
        resource("d_d.vm", { id: "7" }),
        ...["a", "b"].map((name) => resource(`coder_metadata.${name}`, { resource_id: "7" })),
      ],
      /both describe d_d\.vm/,
    ],
  ];
  for (const [what, input, message] of cases)
    it(what, () =>
      assert.throws(() => extractResources(input, graphOf()), { code: "ERR_TEMPLATE_INVALID", message }),
    );
});

describe("metadata", () => {
  it("describes the resource it names, found by id or along the graph, and adds up costs", () => {
    const graph = graphOf("coder_metadata.vm -> d_d.vm", "d_d.vm -> d_d.disk");
    const input = [
      resource("d_d.disk", { id: "d" }),
      resource("d_d.vm"),
      resource("coder_metadata.vm", {
        icon: "/i.svg",
        daily_cost: 5,
        item: [{ key: "k", value: null, sensitive: true }],
      }),
      resource("coder_metadata.disk", { resource_id: "d", hide: true, daily_cost: 2 }),
    ];
    const { resources, dailyCost } = extractResources(input, graph);
    assert.equal(dailyCost, 7);
    assert.deepEqual(
      resources.map(({ name, hide, icon, dailyCost: cost, metadata }) => [name, hide, icon, cost, metadata]),
      [
        ["disk", true, "", 2, []],
        ["vm", false, "/i.svg", 5, [{ key: "k", value: "", sensitive: true, isNull: true }]],
      ],
    );
  });
});

describe("a template's inputs", () => {
  it("are read from data sources, wherever a plan keeps them", () => {
    const parameter = resource("data.coder_parameter.size", {
      name: "size",
      type: "number",
      optional: true,
      default: "2",
      order: 2,
      validation: [{ min: 1, max: 8, max_disabled: true, monotonic: "increasing" }],
    });
    const late = resource("module.m.data.coder_parameter.late", {
      name: "late",
      order: 1,
      option: [{ name: "A", value: "a" }],
    });
    const preset = resource("data.coder_workspace_preset.p", {
      name: "P",
      default: true,
      parameters: { size: "4", gone: "1" },
    });
    const auth = [true, false].map((optional, index) =>
      resource(`data.coder_external_auth.g[${index}]`, { id: "github", optional }),
    );
    const tags = resource("data.coder_workspace_tags.t", { tags: { zone: "eu" } });
    const input = planResources({
      prior_state: {
        values: { root_module: { resources: [parameter, preset, ...auth, tags, resource("x_x.old")] } },
      },
      planned_values: { root_module: { child_modules: [{ resources: [late] }] } },
    });
    const found = extractInputs(input);
    assert.deepEqual(
      found.parameters.map(({ name, type, required, defaultValue, validation }) => [
        name,
        type,
        required,
        defaultValue,
        validation,
      ]),
      [
        ["late", "string", true, "", { regex: "", error: "", monotonic: "" }],
        ["size", "number", false, "2", { regex: "", error: "", monotonic: "increasing", min: 1 }],
      ],
    );
    assert.deepEqual(found.externalAuth, [{ id: "github", optional: false }]);
    assert.deepEqual(found.workspaceTags, { zone: "eu" });
    assert.deepEqual(found.presets[0]!.parameters, [
      { name: "size", value: "4" },
      { name: "gone", value: "1" },
    ]);
    assert.match(found.warnings[0]!, /"gone", which is no parameter/);
  });

  it("must not clash", () => {
    const twice = ["a", "b"].map((name) => resource(`data.coder_parameter.${name}`, { name: "same" }));
    const presets = ["a", "b"].map((name) =>
      resource(`data.coder_workspace_preset.${name}`, { name, default: true }),
    );
    assert.throws(() => extractInputs(twice), { code: "ERR_TEMPLATE_INVALID" });
    assert.throws(() => extractInputs(presets), /keep one/);
  });
});
