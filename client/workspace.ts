import type {
  BuildReason,
  Transition,
  VariableValue,
  Workspace,
  WorkspaceAgent,
  WorkspaceBuild,
} from "../control/contract/index.ts";
import { ApiError, CliError, EXIT } from "./errors.ts";
import type { ApiClient } from "./http.ts";
import { waitForJob } from "./logs.ts";
import { say } from "./output.ts";
import { onPresses } from "./presses.ts";

export interface WorkspaceName {
  /** "me": whoever asks. */
  owner: string;
  name: string;
  agent: string | undefined;
}

const OWNER_FIRST = new Set(["/--", "/.", "----", "--."]);

/**
 * Splits "name", "owner/name" or "owner--name", each with ".agent" or "--agent" behind.
 *
 * @throws {CliError} ERR_BAD_NAME
 */
export function parseWorkspaceName(text: string): WorkspaceName {
  const parts = text.split(/\/|--|\./);
  const separators = (text.match(/\/|--|\./g) ?? []).join("");
  const [a, b, c] = parts;
  if (!parts.includes("")) {
    if (parts.length === 1) return { owner: "me", name: a, agent: undefined };
    if (parts.length === 2)
      return separators === "."
        ? { owner: "me", name: a, agent: b }
        : { owner: a, name: b, agent: undefined };
    if (parts.length === 3 && OWNER_FIRST.has(separators)) return { owner: a, name: b, agent: c };
  }
  throw new CliError("ERR_BAD_NAME", `"${text}" names no workspace`, {
    hint: "Write it as `name` or `owner/name`, with `.agent` behind it if it has several.",
  });
}

/**
 * The workspace that an ssh host name stands for: "coder.dev" with prefix "coder.", "dev.coder" or "agent.dev.owner.coder"
 * with suffix "coder". A name that has neither stands for itself.
 */
export function workspaceOfHost(host: string, affix: { prefix?: string; suffix?: string }): string {
  const { prefix } = affix;
  const suffix = affix.suffix ? `.${affix.suffix.replace(/^\.+/, "")}` : undefined;
  if (suffix && host.length > suffix.length && host.endsWith(suffix)) {
    const labels = host.slice(0, -suffix.length).split(".");
    // As in the domain name system: the widest comes last.
    return labels.length === 3 ? `${labels[2]}/${labels[1]}.${labels[0]}` : labels.join(".");
  }
  if (prefix && host.length > prefix.length && host.startsWith(prefix)) return host.slice(prefix.length);
  return host;
}

/** @throws {CliError} ERR_WORKSPACE_NOT_FOUND */
export async function findWorkspace(api: ApiClient, text: string): Promise<Workspace> {
  const { owner, name } = parseWorkspaceName(text);
  try {
    return await api.get<Workspace>(
      `/users/${encodeURIComponent(owner)}/workspace/${encodeURIComponent(name)}`,
    );
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404)) throw error;
    throw new CliError("ERR_WORKSPACE_NOT_FOUND", `There is no workspace "${text}", or you may not see it.`, {
      cause: error,
      hint: "`coder list` shows yours.",
    });
  }
}

/** @throws {CliError} ERR_AGENT_NOT_FOUND, ERR_AGENT_AMBIGUOUS */
export function chooseAgent(workspace: Workspace, name: string | undefined): WorkspaceAgent {
  const agents = workspace.latest_build.resources.flatMap((resource) => resource.agents);
  const names = agents.map((agent) => agent.name).join(", ");
  if (name !== undefined) {
    const found = agents.find((agent) => agent.name === name);
    if (found) return found;
    throw new CliError("ERR_AGENT_NOT_FOUND", `Workspace ${workspace.name} has no agent "${name}".`, {
      hint: names ? `It has: ${names}.` : undefined,
    });
  }
  if (agents.length === 0)
    throw new CliError("ERR_AGENT_NOT_FOUND", `Workspace ${workspace.name} has no agent to connect to.`, {
      hint: "Its template has no coder_agent with a running resource.",
    });
  if (agents.length > 1)
    throw new CliError("ERR_AGENT_AMBIGUOUS", `Workspace ${workspace.name} has several agents: ${names}.`, {
      hint: `Name one: ${workspace.name}.${agents[0].name}`,
    });
  return agents[0];
}

/** "name=value" pairs; a value may hold further "=". @throws {CliError} ERR_BAD_PARAMETER */
export function collectParameters(pairs: readonly string[]): VariableValue[] {
  return pairs.map((pair) => {
    const at = pair.indexOf("=");
    if (at < 1)
      throw new CliError("ERR_BAD_PARAMETER", `"${pair}" is not name=value`, {
        hint: "Write --parameter region=eu",
      });
    return { name: pair.slice(0, at), value: pair.slice(at + 1) };
  });
}

const afterFailure = (transition: Transition, { name }: Workspace): string =>
  transition === "start"
    ? `What it made is kept: try again with \`coder start ${name}\`, or remove it with \`coder delete ${name}\`.`
    : `What is left is kept: try again with \`coder ${transition} ${name}\`.`;

export type BuildRequest =
  | { follow: string; transition: Transition }
  | { transition: Transition; parameters?: VariableValue[]; orphan?: boolean; reason?: BuildReason };

/**
 * Meanwhile an interrupt cancels the build, so that Terraform winds down and its state is kept; a second one leaves
 * it to itself.
 */
export async function cancelOnInterrupt<T>(
  api: ApiClient,
  buildId: string,
  act: () => Promise<T>,
): Promise<T> {
  let canceled = false;
  const onInterrupt = () => {
    if (canceled) process.exit(EXIT.interrupted);
    canceled = true;
    say("==> Canceling the build; interrupt again to leave it to itself");
    api
      .patch(`/workspacebuilds/${buildId}/cancel`, undefined)
      .catch((error: Error) => say(`warning: ${error.message}`));
  };
  const release = onPresses(["SIGINT"], onInterrupt);
  try {
    return await act();
  } catch (error) {
    if (!(canceled && error instanceof CliError)) throw error;
    throw new CliError(error.code, error.message, {
      cause: error,
      hint: error.hint,
      exitCode: EXIT.interrupted,
    });
  } finally {
    release();
  }
}

/** Starts a build (or follows one that is under way) and shows its log on stderr until it ends. */
export async function runBuild(
  api: ApiClient,
  workspace: Workspace,
  request: BuildRequest,
  options: { signal?: AbortSignal; write?: (line: string) => void } = {},
): Promise<WorkspaceBuild> {
  const { signal, write = say } = options;
  let id: string;
  if ("follow" in request) id = request.follow;
  else {
    const { transition, parameters = [], orphan, reason } = request;
    const build = await api.post<WorkspaceBuild>(`/workspaces/${workspace.id}/builds`, {
      transition,
      rich_parameter_values: parameters,
      ...(orphan ? { orphan } : {}),
      ...(reason ? { reason } : {}),
    });
    id = build.id;
  }
  const wait = () =>
    waitForJob(api, `/workspacebuilds/${id}/logs`, () => api.get<WorkspaceBuild>(`/workspacebuilds/${id}`), {
      what: `The ${request.transition} build of ${workspace.name}`,
      hint: afterFailure(request.transition, workspace),
      write,
      signal,
    });
  // Whoever has a signal decides what an interrupt means; and another's build is not ours to cancel.
  return "follow" in request || signal ? await wait() : await cancelOnInterrupt(api, id, wait);
}
