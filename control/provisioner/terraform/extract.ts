// What a plan or a state means to the platform: resources with their agents, apps, scripts and metadata. Pure.
import type {
  ProvisionedAgent,
  ProvisionedApp,
  ProvisionedResource,
  ProvisionedScript,
} from "../protocol.ts";
import { TerraformError } from "./errors.ts";
import { type DependencyGraph, lastKey, withoutKeys } from "./graph.ts";
import { type JsonResource, Values } from "./plan-json.ts";

export interface ExtractedResources {
  resources: ProvisionedResource[];
  /** Sum of coder_metadata.daily_cost. */
  dailyCost: number;
  /** For the job's log: an agent nothing depends on, say. */
  warnings: string[];
}

/** Ours, about other resources; not things a workspace consists of. */
const UNLISTED = new Set([
  "coder_agent",
  "coder_agent_instance",
  "coder_app",
  "coder_script",
  "coder_env",
  "coder_metadata",
  "coder_devcontainer",
  "coder_ai_task",
]);

const AGENT_NAME = /^[a-z0-9](-?[a-z0-9])*$/i;
const APP_SLUG = /^[a-z0-9](-?[a-z0-9])*$/;
const MAX_AGENT_NAME_CHARS = 63;

/** display_apps when a template says nothing; the names clients know them by. */
const DISPLAY_APPS: { attribute: string; name: string; byDefault: boolean }[] = [
  { attribute: "vscode", name: "vscode", byDefault: true },
  { attribute: "vscode_insiders", name: "vscode_insiders", byDefault: false },
  { attribute: "web_terminal", name: "web_terminal", byDefault: true },
  { attribute: "port_forwarding_helper", name: "port_forwarding_helper", byDefault: true },
  { attribute: "ssh_helper", name: "ssh_helper", byDefault: true },
];

/** Where a cloud resource carries the id that an agent's cloud identity is checked against. */
const INSTANCE_ID: Record<string, string> = {
  google_compute_instance: "instance_id",
  aws_instance: "id",
  aws_spot_instance_request: "spot_instance_id",
  azurerm_linux_virtual_machine: "virtual_machine_id",
  azurerm_windows_virtual_machine: "virtual_machine_id",
};

const INSTANCE_TYPE: Record<string, string> = {
  google_compute_instance: "machine_type",
  aws_instance: "instance_type",
  aws_spot_instance_request: "instance_type",
  azurerm_linux_virtual_machine: "size",
  azurerm_windows_virtual_machine: "size",
};

interface AgentNode {
  resource: JsonResource;
  agent: ProvisionedAgent;
  usesToken: boolean;
  /** coder_agent.env, which wins over any coder_env. */
  ownEnv: Record<string, string>;
}

/**
 * @param input resources of a plan or of a state (`planResources`, `stateResources`)
 * @param graph of the configuration both come from
 * @throws {TerraformError} ERR_TEMPLATE_INVALID: names that clash or can't be used, two metadata on one resource
 */
export function extractResources(input: JsonResource[], graph: DependencyGraph): ExtractedResources {
  const managed = [...input.filter(({ mode }) => mode === "managed")].sort((a, b) =>
    a.address < b.address ? -1 : 1,
  );
  const ofType = (type: string) => managed.filter((resource) => resource.type === type);
  const warnings: string[] = [];
  const agents = ofType("coder_agent").map(readAgent);
  checkAgentNames(agents);

  const slugs = new Map<string, string>();
  for (const resource of ofType("coder_app")) {
    const app = readApp(resource);
    const other = slugs.get(app.slug);
    if (other !== undefined)
      throw invalid(`the apps ${other} and ${resource.address} both have the slug "${app.slug}"`);
    slugs.set(app.slug, resource.address);
    agentOf(resource, agents, graph)?.agent.apps.push(app);
  }
  for (const { agent } of agents) agent.apps.sort((a, b) => a.order - b.order);
  for (const resource of ofType("coder_script"))
    agentOf(resource, agents, graph)?.agent.scripts.push(readScript(new Values(resource.values)));
  mergeEnv(ofType("coder_env"), agents, graph);
  for (const resource of ofType("coder_agent_instance")) {
    const node = agentOf(resource, agents, graph);
    if (node && !node.usesToken)
      node.agent.auth = { kind: "instance", instanceId: new Values(resource.values).string("instance_id") };
  }

  const listed = managed.filter(({ type }) => !UNLISTED.has(type));
  const byAddress = new Map(listed.map((resource) => [resource.address, toResource(resource)]));
  for (const node of agents) {
    const owner = relatedInstance(node.resource, "up", listed, graph);
    if (!owner) {
      warnings.push(
        `${node.resource.address} is left out: no resource depends on it ` +
          "(a resource that runs the agent refers to its init_script or token)",
      );
      continue;
    }
    linkInstance(node, owner);
    byAddress.get(owner.address)!.agents.push(node.agent);
  }

  let dailyCost = 0;
  const described = new Map<string, string>();
  for (const resource of ofType("coder_metadata")) {
    const values = new Values(resource.values);
    dailyCost += values.number("daily_cost");
    const target =
      listed.find((other) => hasId(other, values.string("resource_id"))) ??
      relatedInstance(resource, "down", listed, graph);
    if (!target) continue;
    const other = described.get(target.address);
    if (other !== undefined)
      throw invalid(`${other} and ${resource.address} both describe ${target.address}; keep one`);
    described.set(target.address, resource.address);
    describe(byAddress.get(target.address)!, values);
  }
  return { resources: [...byAddress.values()], dailyCost, warnings };
}

function readAgent(resource: JsonResource): AgentNode {
  const values = new Values(resource.values);
  const scripts: ProvisionedScript[] = [];
  const blocking = values.string("startup_script_behavior") === "blocking";
  if (values.string("startup_script"))
    scripts.push({
      ...EMPTY_SCRIPT,
      displayName: "Startup Script",
      icon: "/emojis/25b6-fe0f.png",
      script: values.string("startup_script"),
      logPath: "coder-startup-script.log",
      runOnStart: true,
      startBlocksLogin: blocking,
    });
  if (values.string("shutdown_script"))
    scripts.push({
      ...EMPTY_SCRIPT,
      displayName: "Shutdown Script",
      icon: "/emojis/25c0.png",
      script: values.string("shutdown_script"),
      logPath: "coder-shutdown-script.log",
      runOnStop: true,
    });
  const display = values.blocks("display_apps")[0] ?? new Values({});
  const ownEnv = values.strings("env");
  const usesToken = values.string("auth", "token") === "token";
  return {
    resource,
    usesToken,
    ownEnv,
    agent: {
      id: values.string("id"),
      name: resource.name,
      operatingSystem: values.string("os"),
      architecture: values.string("arch"),
      auth: usesToken
        ? { kind: "token", token: values.string("token") }
        : { kind: "instance", instanceId: "" },
      directory: values.string("dir"),
      env: { ...ownEnv },
      motdFile: values.string("motd_file"),
      troubleshootingUrl: values.string("troubleshooting_url"),
      connectionTimeoutSeconds: values.number("connection_timeout", 120),
      startupScriptBehavior: blocking ? "blocking" : "non-blocking",
      apiKeyScope: values.string("api_key_scope") === "no_user_data" ? "no_user_data" : "all",
      order: values.number("order"),
      displayApps: DISPLAY_APPS.filter(({ attribute, byDefault }) =>
        display.boolean(attribute, byDefault),
      ).map(({ name }) => name),
      apps: [],
      scripts,
      metadata: values.blocks("metadata").map((block) => ({
        key: block.string("key"),
        displayName: block.string("display_name"),
        script: block.string("script"),
        intervalSeconds: block.number("interval"),
        timeoutSeconds: block.number("timeout"),
        order: block.number("order"),
      })),
    },
  };
}

const EMPTY_SCRIPT: ProvisionedScript = {
  displayName: "",
  icon: "",
  script: "",
  logPath: "",
  cron: "",
  runOnStart: false,
  runOnStop: false,
  startBlocksLogin: false,
  timeoutSeconds: 0,
};

function readScript(values: Values): ProvisionedScript {
  return {
    displayName: values.string("display_name"),
    icon: values.string("icon"),
    script: values.string("script"),
    logPath: values.string("log_path"),
    cron: values.string("cron"),
    runOnStart: values.boolean("run_on_start"),
    runOnStop: values.boolean("run_on_stop"),
    startBlocksLogin: values.boolean("start_blocks_login"),
    timeoutSeconds: values.number("timeout"),
  };
}

function readApp(resource: JsonResource): ProvisionedApp {
  const values = new Values(resource.values);
  const slug = values.string("slug");
  if (!APP_SLUG.test(slug))
    throw invalid(`${resource.address}: the slug "${slug}" must be lower-case words joined by hyphens`);
  const healthcheck = values.blocks("healthcheck")[0];
  const share = values.string("share", "owner");
  return {
    slug,
    displayName: values.string("display_name") || slug,
    url: values.string("url"),
    command: values.string("command"),
    icon: values.string("icon"),
    group: values.string("group"),
    tooltip: values.string("tooltip"),
    subdomain: values.boolean("subdomain"),
    external: values.boolean("external"),
    hidden: values.boolean("hidden"),
    openIn: values.string("open_in") === "tab" ? "tab" : "slim-window",
    order: values.number("order"),
    sharingLevel: share === "authenticated" || share === "public" ? share : "owner",
    ...(healthcheck && {
      healthcheck: {
        url: healthcheck.string("url"),
        intervalSeconds: healthcheck.number("interval"),
        threshold: healthcheck.number("threshold"),
      },
    }),
  };
}

function checkAgentNames(agents: AgentNode[]): void {
  const seen = new Map<string, string>();
  for (const { agent, resource } of agents) {
    if (!AGENT_NAME.test(agent.name) || agent.name.length > MAX_AGENT_NAME_CHARS)
      throw invalid(
        `${resource.address}: an agent's name is part of host names; use letters, digits and single hyphens`,
      );
    const other = seen.get(agent.name.toLowerCase());
    if (other !== undefined)
      throw invalid(`the agents ${other} and ${resource.address} have the same name; rename one`);
    seen.set(agent.name.toLowerCase(), resource.address);
  }
}

/**
 * The agent that an app, script or env belongs to: by id when it is known (a build), else along the graph (a
 * plan), where modules put variables in between.
 */
function agentOf(resource: JsonResource, agents: AgentNode[], graph: DependencyGraph): AgentNode | undefined {
  const id = new Values(resource.values).string("agent_id");
  if (id) return agents.find(({ agent }) => agent.id === id);
  const instances = agents.map((node) => node.resource);
  const found = relatedInstance(resource, "down", instances, graph);
  return agents.find((node) => node.resource === found);
}

/** The nearest of `candidates`; among instances of one resource the one with our own key, else the first. */
function relatedInstance(
  resource: JsonResource,
  direction: "up" | "down",
  candidates: JsonResource[],
  graph: DependencyGraph,
): JsonResource | undefined {
  const byLabel = new Map<string, JsonResource[]>();
  for (const candidate of candidates) {
    const label = withoutKeys(candidate.address);
    const instances = byLabel.get(label);
    if (instances) instances.push(candidate);
    else byLabel.set(label, [candidate]);
  }
  const [nearest] = graph.nearest(withoutKeys(resource.address), direction, (label) => byLabel.has(label));
  const instances = nearest ? byLabel.get(nearest.label)! : [];
  const key = lastKey(resource.address);
  return instances.find((candidate) => lastKey(candidate.address) === key) ?? instances[0];
}

/** coder_env in address order; the agent's own env always wins. */
function mergeEnv(resources: JsonResource[], agents: AgentNode[], graph: DependencyGraph): void {
  const merged = new Map<AgentNode, Map<string, string>>();
  for (const resource of resources) {
    const node = agentOf(resource, agents, graph);
    if (!node) continue;
    const values = new Values(resource.values);
    const [name, value] = [values.string("name"), values.string("value")];
    const env = merged.get(node) ?? new Map<string, string>();
    merged.set(node, env);
    const before = env.get(name);
    switch (before === undefined ? "replace" : values.string("merge_strategy", "replace")) {
      case "append":
        env.set(name, `${before}:${value}`);
        break;
      case "prepend":
        env.set(name, `${value}:${before}`);
        break;
      case "error":
        throw invalid(`${resource.address}: the variable ${name} is already set by another coder_env`);
      default:
        env.set(name, value);
    }
  }
  for (const [node, env] of merged) node.agent.env = { ...Object.fromEntries(env), ...node.ownEnv };
}

function linkInstance(node: AgentNode, owner: JsonResource): void {
  const attribute = INSTANCE_ID[owner.type];
  if (node.usesToken || !attribute) return;
  if (node.agent.auth.kind === "instance" && node.agent.auth.instanceId === "")
    node.agent.auth = { kind: "instance", instanceId: new Values(owner.values).string(attribute) };
}

function toResource(resource: JsonResource): ProvisionedResource {
  const instanceType = INSTANCE_TYPE[resource.type];
  return {
    type: resource.type,
    name: resource.name,
    hide: false,
    icon: "",
    instanceType: instanceType ? new Values(resource.values).string(instanceType) : "",
    dailyCost: 0,
    metadata: [],
    agents: [],
  };
}

function describe(resource: ProvisionedResource, values: Values): void {
  resource.hide = values.boolean("hide");
  resource.icon = values.string("icon");
  resource.dailyCost = values.number("daily_cost");
  resource.metadata = values.blocks("item").map((item) => ({
    key: item.string("key"),
    value: item.string("value"),
    sensitive: item.boolean("sensitive"),
    isNull: item.boolean("is_null", !item.has("value")),
  }));
}

function hasId(resource: JsonResource, id: string): boolean {
  return id !== "" && new Values(resource.values).string("id") === id;
}

function invalid(message: string): TerraformError {
  return new TerraformError("ERR_TEMPLATE_INVALID", message);
}
