// What a build tells the provider, by the names the platform's provisioners have always used as environment
// variables. Here they are an object bound to one socket: no process inherits the secrets among them.
import { createHash } from "node:crypto";
import type { RichParameterValue, WorkspaceMetadata } from "../protocol.ts";

export interface ProviderContext {
  /** CODER_* names to values; see contextFromJob for the ones there are. */
  env: ReadonlyMap<string, string>;
  /**
   * What a refresh does to an agent's token. "keep": nothing, so that a second plan is empty. "rotate": a new
   * one every time, which also replaces or updates whatever has the token built in.
   */
  agentTokens: "keep" | "rotate";
  /** Report a parameter's invalid value as a warning, so that a form can show all of them at once. */
  collect?: boolean;
}

const hash = (text: string) => createHash("sha256").update(text).digest("hex");

export const parameterEnv = (name: string) => `CODER_PARAMETER_${hash(name)}`;
export const previousParameterEnv = (name: string) => `CODER_PARAMETER_PREVIOUS_${hash(name)}`;
export const agentScriptEnv = (os: string, arch: string) => `CODER_AGENT_SCRIPT_${os}_${arch}`;
/** An agent's token to go on using, when a workspace built ahead of time gets its owner. "" stands for the only agent. */
export const runningAgentTokenEnv = (agentId: string) =>
  `CODER_RUNNING_WORKSPACE_AGENT_TOKEN_${hash(agentId)}`;
export const secretFileEnv = (path: string) => `CODER_SECRET_FILE_${Buffer.from(path).toString("hex")}`;

/** An import has no workspace: `data.coder_workspace` then answers with placeholders. */
export type JobMetadata = Pick<
  WorkspaceMetadata,
  "coderUrl" | "ownerId" | "ownerName" | "ownerFullName" | "ownerEmail" | "ownerLoginType"
> &
  Partial<WorkspaceMetadata>;

export interface ContextOptions {
  /** Default: "keep". */
  agentTokens?: "keep" | "rotate";
  collect?: boolean;
  /** The text of coder_agent.init_script by "<os>_<arch>"; ${ACCESS_URL} and ${AUTH_TYPE} in it are filled in. */
  agentScripts?: ReadonlyMap<string, string>;
  /** Access tokens by external auth id. */
  externalAuthTokens?: ReadonlyMap<string, string>;
}

/** Everything the provider may be asked during a job. Empty values are left out, except parameters', which count. */
export function contextFromJob(
  metadata: JobMetadata,
  parameters: readonly RichParameterValue[] = [],
  previousParameters: readonly RichParameterValue[] = [],
  options: ContextOptions = {},
): ProviderContext {
  const text: [string, string | undefined][] = [
    ["CODER_AGENT_URL", metadata.coderUrl],
    // The provider's word for the last transition is Terraform's.
    ["CODER_WORKSPACE_TRANSITION", metadata.transition === "delete" ? "destroy" : metadata.transition],
    ["CODER_WORKSPACE_ID", metadata.workspaceId],
    ["CODER_WORKSPACE_NAME", metadata.workspaceName],
    ["CODER_WORKSPACE_BUILD_ID", metadata.workspaceBuildId],
    ["CODER_WORKSPACE_TEMPLATE_ID", metadata.templateId],
    ["CODER_WORKSPACE_TEMPLATE_NAME", metadata.templateName],
    ["CODER_WORKSPACE_TEMPLATE_VERSION", metadata.templateVersion],
    ["CODER_WORKSPACE_OWNER", metadata.ownerName],
    ["CODER_WORKSPACE_OWNER_ID", metadata.ownerId],
    ["CODER_WORKSPACE_OWNER_NAME", metadata.ownerFullName],
    ["CODER_WORKSPACE_OWNER_EMAIL", metadata.ownerEmail],
    ["CODER_WORKSPACE_OWNER_GROUPS", metadata.ownerGroups && JSON.stringify(metadata.ownerGroups)],
    ["CODER_WORKSPACE_OWNER_RBAC_ROLES", metadata.ownerRbacRoles && JSON.stringify(metadata.ownerRbacRoles)],
    ["CODER_WORKSPACE_OWNER_LOGIN_TYPE", metadata.ownerLoginType],
    ["CODER_WORKSPACE_OWNER_SSH_PUBLIC_KEY", metadata.ownerSshPublicKey],
    ["CODER_WORKSPACE_OWNER_SSH_PRIVATE_KEY", metadata.ownerSshPrivateKey],
    ["CODER_WORKSPACE_OWNER_SESSION_TOKEN", metadata.ownerSessionToken],
  ];
  const env = new Map(text.filter((entry): entry is [string, string] => Boolean(entry[1])));
  for (const { name, value } of parameters) env.set(parameterEnv(name), value);
  for (const { name, value } of previousParameters) env.set(previousParameterEnv(name), value);
  for (const [platform, script] of options.agentScripts ?? [])
    env.set(`CODER_AGENT_SCRIPT_${platform}`, script);
  for (const [id, token] of options.externalAuthTokens ?? [])
    env.set(`CODER_EXTERNAL_AUTH_ACCESS_TOKEN_${id}`, token);
  return { env, agentTokens: options.agentTokens ?? "keep", collect: options.collect ?? false };
}
