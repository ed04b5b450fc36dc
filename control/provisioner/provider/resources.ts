// The managed resources of `coder/coder` 2.17, as tables. They are records in Terraform's state and nothing else:
// creating one makes its ids, deleting does nothing, and every change of an argument replaces it.
import {
  atLeast,
  atMostCharacters,
  between,
  conflicts,
  duplicateKeys,
  every,
  isGiven,
  nonEmpty,
  oneOf,
  onlyItem,
  pattern,
  url,
  uuid,
} from "./checks.ts";
import { agentScriptEnv, runningAgentTokenEnv } from "./context.ts";
import { scriptCronProblem, standardCronProblem } from "./cron.ts";
import {
  bool,
  type Call,
  type Check,
  error,
  type Finding,
  implicitId,
  int,
  type Resource,
  str,
  strMap,
  warning,
} from "./schema.ts";
import { isWhollyKnown, knownItems, type ObjectValue, objectValue, textOf, UNKNOWN } from "./value.ts";

const DISPLAY_APPS = {
  vscode: true,
  vscode_insiders: false,
  web_terminal: true,
  port_forwarding_helper: true,
  ssh_helper: true,
};

const agent: Resource = {
  attributes: {
    id: implicitId(),
    os: str.required({ check: oneOf("linux", "darwin", "windows") }),
    arch: str.required({ check: oneOf("amd64", "armv7", "arm64") }),
    auth: str.optional({
      default: "token",
      check: oneOf("token", "google-instance-identity", "aws-instance-identity", "azure-instance-identity"),
    }),
    api_key_scope: str.optional({ default: "all", check: oneOf("all", "no_user_data") }),
    dir: str.optional({ check: deprecatedDirectory }),
    env: strMap.optional(),
    startup_script: str.optional(),
    shutdown_script: str.optional(),
    startup_script_behavior: str.optional({
      default: "non-blocking",
      check: oneOf("blocking", "non-blocking"),
    }),
    connection_timeout: int.optional({ default: 120, check: atLeast(0) }),
    troubleshooting_url: str.optional(),
    motd_file: str.optional(),
    order: int.optional(),
    token: str.computed({ sensitive: true }),
    init_script: str.computed(),
  },
  blocks: {
    metadata: {
      nesting: "list",
      block: {
        attributes: {
          key: str.required(),
          display_name: str.optional(),
          script: str.required(),
          interval: int.required(),
          timeout: int.optional(),
          order: int.optional(),
        },
      },
    },
    display_apps: {
      nesting: "set",
      maxItems: 1,
      // The original stores such a block when none is given. Terraform lets a provider do that only under a flag
      // that switches its checks off, so it stays away here, and counts as no change where an old state has it.
      assumed: objectValue(Object.entries(DISPLAY_APPS)),
      block: {
        attributes: Object.fromEntries(
          Object.entries(DISPLAY_APPS).map(([name, shown]) => [name, bool.optional({ default: shown })]),
        ),
      },
    },
    resources_monitoring: {
      nesting: "set",
      maxItems: 1,
      block: {
        attributes: {},
        blocks: {
          memory: {
            nesting: "set",
            maxItems: 1,
            block: {
              attributes: { enabled: bool.required(), threshold: int.required({ check: between(0, 100) }) },
            },
          },
          volume: {
            nesting: "set",
            block: {
              attributes: {
                path: str.required({ check: pattern(/^\//, "an absolute path") }),
                enabled: bool.required(),
                threshold: int.required({ check: between(0, 100) }),
              },
            },
          },
        },
      },
    },
  },
  validate: (config) => [...duplicateKeys(config, "metadata", "agent metadata key"), ...monitoring(config)],
  create(state, call) {
    state.token = call.env.get(runningAgentTokenEnv("")) || call.newId();
    state.init_script = initScript(state, call);
    return [];
  },
  refresh(state, call) {
    const running =
      call.env.get(runningAgentTokenEnv(textOf(state.id))) || call.env.get(runningAgentTokenEnv(""));
    if (running) state.token = running;
    else if (call.agentTokens === "rotate" || !textOf(state.token)) state.token = call.newId();
    // A job without scripts (a deletion, say) must not look as if every agent's had changed.
    state.init_script = initScript(state, call) || textOf(state.init_script);
  },
};

function initScript(state: ObjectValue, call: Call): string {
  const script = call.env.get(agentScriptEnv(textOf(state.os), textOf(state.arch))) ?? "";
  return script
    .replace(/\$\{ACCESS_URL\}/g, () => new URL("/", call.accessUrl).href)
    .replace(/\$\{AUTH_TYPE\}/g, () => textOf(state.auth));
}

function deprecatedDirectory(value: string | number): ReturnType<Check> {
  if (["", "$HOME", "~"].includes(String(value))) return [];
  return [
    {
      severity: "warning",
      detail:
        '"dir" is deprecated: leave it out, or change the directory in the startup script or the shell\'s profile.',
    },
  ];
}

function monitoring(config: ObjectValue): Finding[] {
  const block = onlyItem(config, "resources_monitoring");
  if (!block || !isWhollyKnown(block)) return [];
  const volumes = knownItems(block.volume).map((volume) => textOf(volume.path));
  const path = ["resources_monitoring"];
  if (volumes.length === 0 && knownItems(block.memory).length === 0)
    return [error("resources_monitoring needs at least one memory or volume block", path)];
  return volumes
    .filter((volume, i) => volumes.indexOf(volume) < i)
    .map((volume) => error(`volume ${JSON.stringify(volume)} is monitored twice`, path));
}

const agentInstance: Resource = {
  attributes: { id: implicitId(), agent_id: str.required(), instance_id: str.required() },
};

const app: Resource = {
  attributes: {
    id: implicitId(),
    agent_id: str.required(),
    slug: str.required({
      check: pattern(
        /^[a-z0-9](-?[a-z0-9])*$/,
        "lower-case letters and digits, with single hyphens between them (it becomes part of a host name)",
      ),
    }),
    display_name: str.optional({ check: atMostCharacters(64) }),
    url: str.optional(),
    command: str.optional(),
    icon: str.optional({ check: url }),
    share: str.optional({ default: "owner", check: oneOf("owner", "authenticated", "public") }),
    subdomain: bool.optional(),
    external: bool.optional({ default: false }),
    hidden: bool.optional({ default: false }),
    open_in: str.optional({ default: "slim-window", check: oneOf("tab", "slim-window") }),
    order: int.optional(),
    group: str.optional({ check: atMostCharacters(64) }),
    tooltip: str.optional({ check: atMostCharacters(2048) }),
  },
  blocks: {
    healthcheck: {
      nesting: "set",
      maxItems: 1,
      block: { attributes: { url: str.required(), interval: int.required(), threshold: int.required() } },
    },
  },
  validate: (config) => [
    ...conflicts(config, "command", ["url", "subdomain", "healthcheck"]),
    ...conflicts(config, "external", ["healthcheck", "command", "subdomain", "share"]),
  ],
  create(state) {
    if (state.hidden !== true) return [];
    return ["display_name", "icon", "order"]
      .filter((name) => isGiven(state, name))
      .map((name) => warning(`"${name}" has no effect on a hidden app`, [name]));
  },
};

const script: Resource = {
  attributes: {
    id: implicitId(),
    agent_id: str.required(),
    display_name: str.required(),
    script: str.required(),
    icon: str.optional(),
    log_path: str.optional(),
    cron: str.optional({ check: cron }),
    start_blocks_login: bool.optional({ default: false }),
    run_on_start: bool.optional({ default: false }),
    run_on_stop: bool.optional({ default: false }),
    timeout: int.optional({ default: 0, check: atLeast(1) }),
  },
  create(state) {
    const problems: Finding[] = [];
    if (state.run_on_start !== true && state.run_on_stop !== true && !textOf(state.cron))
      problems.push(error("at least one of run_on_start, run_on_stop or cron must be set"));
    if (state.start_blocks_login === true && state.run_on_start !== true)
      problems.push(
        error("start_blocks_login can only be set if run_on_start is true", ["start_blocks_login"]),
      );
    return problems;
  },
};

function cron(value: string | number): ReturnType<Check> {
  const spec = String(value);
  const problem = scriptCronProblem(spec);
  if (problem)
    return [{ severity: "error", detail: `${JSON.stringify(spec)} is not a cron expression: ${problem}` }];
  if (standardCronProblem(spec)) return [];
  return [
    {
      severity: "warning",
      detail:
        `${JSON.stringify(spec)} has five fields, and the first one is the seconds: write ` +
        `${JSON.stringify(`0 ${spec}`)} if you meant minutes.`,
    },
  ];
}

const env: Resource = {
  attributes: {
    id: implicitId(),
    agent_id: str.required(),
    name: str.required({
      check: pattern(
        /^[a-zA-Z_][a-zA-Z0-9_]*$/,
        "letters, digits and underscores, not beginning with a digit",
      ),
    }),
    value: str.optional(),
    merge_strategy: str.optional({
      default: "replace",
      check: oneOf("replace", "append", "prepend", "error"),
    }),
  },
};

const metadata: Resource = {
  attributes: {
    id: implicitId(),
    resource_id: str.required(),
    hide: bool.optional(),
    icon: str.optional({ check: url }),
    daily_cost: int.optional(),
  },
  blocks: {
    item: {
      nesting: "list",
      block: {
        attributes: {
          key: str.required(),
          value: str.optional(),
          sensitive: bool.optional({ default: false }),
          is_null: bool.computed({
            derive: ({ value }) => (value === UNKNOWN ? UNKNOWN : value === null),
          }),
        },
      },
    },
  },
  validate: (config) => duplicateKeys(config, "item", "resource metadata key"),
};

const devcontainer: Resource = {
  attributes: {
    id: implicitId(),
    agent_id: str.required(),
    workspace_folder: str.required({ check: nonEmpty }),
    config_path: str.optional(),
    subagent_id: str.computed(),
  },
  create(state, call) {
    state.subagent_id = call.newId();
    return [];
  },
};

const externalAgent: Resource = { attributes: { id: implicitId(), agent_id: str.required() } };

const NIL_UUID = "00000000-0000-0000-0000-000000000000";

/** The task this build belongs to, if any. */
export function taskId(call: Call): string | undefined {
  const id = call.env.get("CODER_TASK_ID") ?? "";
  return id !== NIL_UUID && every(nonEmpty, uuid)(id).length === 0 ? id : undefined;
}

const aiTask: Resource = {
  attributes: {
    id: str.computed(),
    app_id: str.optionalComputed({ check: uuid }),
    prompt: str.computed(),
    enabled: bool.computed(),
  },
  blocks: {
    sidebar_app: {
      nesting: "set",
      maxItems: 1,
      block: { attributes: { id: str.required({ check: uuid }) } },
    },
  },
  validate: (config) => [
    ...conflicts(config, "app_id", ["sidebar_app"]),
    ...(isGiven(config, "sidebar_app")
      ? [warning('"sidebar_app" is deprecated: set "app_id" to the app\'s id', ["sidebar_app"])]
      : []),
  ],
  create(state, call) {
    const task = taskId(call);
    if (task) state.id = task;
    state.enabled = task !== undefined;
    state.prompt = call.env.get("CODER_TASK_PROMPT") ?? null;
    const app = textOf(state.app_id) || textOf(onlyItem(state, "sidebar_app")?.id);
    state.app_id = app;
    return app ? [] : [error('"app_id" must be set', ["app_id"])];
  },
};

export const RESOURCES: ReadonlyMap<string, Resource> = new Map([
  ["coder_agent", agent],
  ["coder_agent_instance", agentInstance],
  ["coder_ai_task", aiTask],
  ["coder_app", app],
  ["coder_devcontainer", devcontainer],
  ["coder_env", env],
  ["coder_external_agent", externalAgent],
  ["coder_metadata", metadata],
  ["coder_script", script],
]);
