// The data sources of `coder/coder` 2.17, as tables: what a template can ask about the build it is part of.
import { isGiven, nonEmpty, oneOf, onlyItem, url } from "./checks.ts";
import { parameterEnv, previousParameterEnv, secretFileEnv } from "./context.ts";
import { ALL_FORM_TYPES, declarationOf, evaluateParameter, observed, PARAMETER_TYPES } from "./parameter.ts";
import { workspacePreset } from "./preset.ts";
import { taskId } from "./resources.ts";
import {
  bool,
  type Call,
  type DataSource,
  error,
  type Finding,
  implicitId,
  int,
  str,
  strList,
  strMap,
} from "./schema.ts";
import { type ObjectValue, objectValue, textOf, type Value } from "./value.ts";

const workspace: DataSource = {
  attributes: {
    id: str.computed(),
    name: str.computed(),
    transition: str.computed(),
    start_count: int.computed(),
    prebuild_count: int.computed(),
    is_prebuild: bool.computed(),
    is_prebuild_claim: bool.computed(),
    access_url: str.computed(),
    access_port: int.computed(),
    template_id: str.computed(),
    template_name: str.computed(),
    template_version: str.computed(),
  },
  read(state, call) {
    const env = (name: string) => call.env.get(`CODER_WORKSPACE_${name}`) ?? "";
    const isTrue = (name: string) => env(name).toLowerCase() === "true";
    const isClaim = isTrue("IS_PREBUILD_CLAIM");
    const isPrebuild = isTrue("IS_PREBUILD") && !isClaim;
    const transition = env("TRANSITION") || "start";
    const accessUrl = new URL(call.accessUrl);
    Object.assign(state, {
      id: env("ID") || call.newId(),
      name: env("NAME") || "default",
      transition,
      start_count: transition === "start" ? 1 : 0,
      prebuild_count: isPrebuild ? 1 : 0,
      is_prebuild: isPrebuild,
      is_prebuild_claim: isClaim,
      access_url: call.accessUrl,
      access_port: Number(accessUrl.port || (accessUrl.protocol === "https:" ? 443 : 80)),
      template_id: env("TEMPLATE_ID"),
      template_name: env("TEMPLATE_NAME"),
      template_version: env("TEMPLATE_VERSION"),
    });
    if (!env("BUILD_ID")) return [];
    return ["TEMPLATE_ID", "TEMPLATE_NAME", "TEMPLATE_VERSION"]
      .filter((name) => !env(name))
      .map((name) =>
        error(`CODER_WORKSPACE_${name} must be set in a workspace build`, [], "Incomplete build context"),
      );
  },
};

const workspaceOwner: DataSource = {
  attributes: {
    id: str.computed(),
    name: str.computed(),
    full_name: str.computed(),
    email: str.computed(),
    ssh_public_key: str.computed(),
    ssh_private_key: str.computed({ sensitive: true }),
    groups: strList.computed(),
    session_token: str.computed({ sensitive: true }),
    oidc_access_token: str.computed({ sensitive: true }),
    login_type: str.computed(),
    rbac_roles: { type: ["list", ["object", { name: "string", org_id: "string" }]], mode: "computed" },
  },
  read(state, call) {
    const env = (name: string) => call.env.get(`CODER_WORKSPACE_OWNER${name}`) ?? "";
    const problems: Finding[] = [];
    const list = (name: string, toValue: (item: unknown) => Value | undefined): Value[] => {
      const items = parseJson(env(name) || "[]");
      const values = Array.isArray(items) ? items.map(toValue) : [undefined];
      if (!values.includes(undefined)) return values.map((value) => value ?? null);
      problems.push(error(`CODER_WORKSPACE_OWNER${name} is malformed`, [], "Malformed build context"));
      return [];
    };
    Object.assign(state, {
      id: env("_ID") || call.newId(),
      name: env("") || "default",
      full_name: env("_NAME") || "default",
      email: env("_EMAIL") || "default@example.com",
      ssh_public_key: env("_SSH_PUBLIC_KEY"),
      ssh_private_key: env("_SSH_PRIVATE_KEY"),
      groups: list("_GROUPS", (item) => (typeof item === "string" ? item : undefined)),
      session_token: env("_SESSION_TOKEN"),
      oidc_access_token: env("_OIDC_ACCESS_TOKEN"),
      login_type: env("_LOGIN_TYPE"),
      rbac_roles: list("_RBAC_ROLES", roleOf),
    });
    return problems;
  },
};

function roleOf(item: unknown): ObjectValue | undefined {
  if (typeof item !== "object" || item === null) return undefined;
  const { name, org_id: organization } = item as Record<string, unknown>;
  if (typeof name !== "string" || (organization !== undefined && typeof organization !== "string"))
    return undefined;
  return objectValue([
    ["name", name],
    ["org_id", organization ?? ""],
  ]);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Where Terraform runs, in Go's words. */
const OS: Record<string, string> = { win32: "windows", sunos: "solaris" };
const ARCH: Record<string, string> = { x64: "amd64", arm: "armv7", ia32: "386" };

const provisioner: DataSource = {
  attributes: { id: implicitId(), os: str.computed(), arch: str.computed() },
  read(state, call) {
    state.id = call.newId();
    state.os = OS[process.platform] ?? process.platform;
    state.arch = ARCH[process.arch] ?? process.arch;
    return [];
  },
};

const parameter: DataSource = {
  attributes: {
    id: implicitId(),
    value: str.computed(),
    optional: bool.computed({ derive: (config) => config.default !== null }),
    name: str.required(),
    display_name: str.optional(),
    description: str.optional(),
    type: str.optional({ default: "string", check: oneOf(...PARAMETER_TYPES) }),
    form_type: str.optional({ check: oneOf(...ALL_FORM_TYPES) }),
    styling: str.optional({ default: "{}" }),
    mutable: bool.optional({ default: false }),
    default: str.optional(),
    icon: str.optional({ check: url }),
    order: int.optional(),
    ephemeral: bool.optional({ default: false }),
  },
  blocks: {
    option: {
      nesting: "list",
      block: {
        attributes: {
          name: str.required(),
          value: str.required(),
          description: str.optional(),
          icon: str.optional({ check: url }),
        },
      },
    },
    validation: {
      nesting: "list",
      maxItems: 1,
      block: {
        attributes: {
          min: int.optional(),
          max: int.optional(),
          min_disabled: bool.computed({ derive: (config) => config.min === null }),
          max_disabled: bool.computed({ derive: (config) => config.max === null }),
          monotonic: str.optional(),
          regex: str.optional(),
          error: str.optional(),
        },
      },
    },
  },
  validate(config) {
    const block = onlyItem(config, "validation");
    if (!block || !isGiven(block, "regex")) return [];
    return ["min", "max", "monotonic"]
      .filter((name) => isGiven(block, name))
      .map((name) =>
        error(`"regex" conflicts with "${name}": give only one of them`, ["validation", 0, "regex"]),
      );
  },
  read(state, call) {
    const declared = declarationOf(state);
    const outcome = evaluateParameter(
      declared,
      call.env.get(parameterEnv(declared.name)),
      call.env.get(previousParameterEnv(declared.name)),
    );
    call.observe(observed(declared, outcome));
    state.id = call.newId();
    state.value = outcome.value;
    state.form_type = outcome.formType;
    if (!call.collect || !outcome.isValueProblem) return outcome.problems;
    return outcome.problems.map((problem) => ({ ...problem, severity: "warning" as const }));
  },
};

const workspaceTags: DataSource = {
  attributes: { id: implicitId(), tags: strMap.optional() },
  read(state, call) {
    state.id = call.newId();
    return [];
  },
};

const externalAuth: DataSource = {
  attributes: {
    id: str.required(),
    optional: bool.optional(),
    access_token: str.computed({ sensitive: true }),
  },
  read(state, { env }) {
    const id = textOf(state.id);
    state.access_token =
      env.get(`CODER_EXTERNAL_AUTH_ACCESS_TOKEN_${id}`) ?? env.get(`CODER_GIT_AUTH_ACCESS_TOKEN_${id}`) ?? "";
    return [];
  },
};

const task: DataSource = {
  attributes: { id: str.computed(), prompt: str.computed(), enabled: bool.computed() },
  read(state, call) {
    const id = taskId(call);
    state.id = id ?? call.newId();
    state.enabled = id !== undefined;
    state.prompt = call.env.get("CODER_TASK_PROMPT") ?? "";
    return [];
  },
};

const secret: DataSource = {
  attributes: {
    id: implicitId(),
    env: str.optional({ check: environmentName }),
    file: str.optional({ check: secretPath }),
    help_message: str.required({ check: nonEmpty }),
    value: str.computed({ sensitive: true }),
  },
  read(state, call) {
    const name = textOf(state.env);
    const path = textOf(state.file);
    if (!name === !path) return [error('exactly one of "env" and "file" must be set')];
    const value = call.env.get(name ? `CODER_SECRET_ENV_${name}` : secretFileEnv(path)) ?? "";
    state.id = name ? `env:${name}` : `file:${path}`;
    state.value = value;
    return value || !isStart(call) ? [] : [error(textOf(state.help_message), [], "Missing required secret")];
  },
};

/** A secret may only be demanded when a workspace starts: without it, one must still be able to stop and delete. */
const isStart = ({ env }: Call) =>
  Boolean(env.get("CODER_WORKSPACE_BUILD_ID")) && env.get("CODER_WORKSPACE_TRANSITION") === "start";

function environmentName(value: string | number) {
  const ok = /^[a-zA-Z_][a-zA-Z0-9_]*$/.test(String(value));
  return ok
    ? []
    : [{ severity: "error" as const, detail: "expected letters, digits and underscores, no digit first" }];
}

function secretPath(value: string | number) {
  const ok = /^(~\/|\/)/.test(String(value));
  return ok ? [] : [{ severity: "error" as const, detail: 'expected a path that begins with "/" or "~/"' }];
}

export const DATA_SOURCES: ReadonlyMap<string, DataSource> = new Map([
  ["coder_external_auth", externalAuth],
  ["coder_parameter", parameter],
  ["coder_provisioner", provisioner],
  ["coder_secret", secret],
  ["coder_task", task],
  ["coder_workspace", workspace],
  ["coder_workspace_owner", workspaceOwner],
  ["coder_workspace_preset", workspacePreset],
  ["coder_workspace_tags", workspaceTags],
]);
