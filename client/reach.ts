// From a workspace's name to its agent, by the shortest way that the workspace's state allows.
import {
  type AgentConnection,
  type AgentTarget,
  agentConnection,
  connectToAgent,
  type Mesh,
  type MeshOptions,
  startMesh,
} from "./connect.ts";
import type { ApiClient } from "./http.ts";
import { isStarting, runningWorkspace, type StartingAgent, type WaitMode, waitForStartup } from "./ready.ts";
import { parseWorkspaceName } from "./workspace.ts";

export interface ReachOptions {
  /** Start a workspace that is stopped. */
  autostart: boolean;
  /** Whether to wait for startup scripts; by default not. */
  wait?: WaitMode;
  /** Don't wait for the agent's first answer: what is dialled next travels with the hello. */
  eager?: boolean;
  /** How long the agent keeps the session while we are silent. */
  resumeWindowMs?: number;
  signal?: AbortSignal;
}

export interface Reached {
  connection: AgentConnection;
  /** The workspace's own name, without owner and agent. */
  name: string;
}

/** Starts this process's node and asks at once for the agent of the workspace that `text` names. @throws {CliError} ERR_BAD_NAME */
export function startMeshFor(api: ApiClient, text: string, options: Omit<MeshOptions, "ask"> = {}): Mesh {
  const { owner, name, agent } = parseWorkspaceName(text);
  return startMesh(api, { ...options, ask: { workspace: `${owner}/${name}`, agent } });
}

interface Found {
  name: string;
  agent: StartingAgent & { connection_timeout_seconds: number };
}

/**
 * What the coordinator said of the workspace in its first answer, if that is all there is to know: it runs, and its agent
 * is there. Everything else (stopped, building, not found, several agents) is for the API to tell, with its messages.
 */
async function foundAtOnce(mesh: Mesh): Promise<Found | undefined> {
  try {
    const grant = await mesh.asked;
    if (!grant?.workspace || !grant.agent) return undefined;
    const { status, transition } = grant.workspace.latest_build;
    return status === "running" && transition === "start"
      ? { name: grant.workspace.name, agent: grant.agent }
      : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Reaches the agent of a workspace that `mesh` was started for, and gets it ready as the options say: a stopped one is
 * started, a starting one waited for.
 *
 * @throws {CliError} why it can't be reached, with exit code 255 for what concerns the connection
 */
export async function reachWorkspace(
  api: ApiClient,
  mesh: Mesh,
  text: string,
  options: ReachOptions,
): Promise<Reached> {
  const { signal, resumeWindowMs } = options;
  let found = await foundAtOnce(mesh);
  if (!found) {
    const { workspace, agent } = await runningWorkspace(api, text, { autostart: options.autostart, signal });
    found = { name: workspace.name, agent };
  }
  const { name, agent } = found;
  const target: AgentTarget = {
    agentId: agent.id,
    what: `workspace ${name}`,
    resumeWindowMs,
    waitSeconds: agent.connection_timeout_seconds,
    signal,
  };
  const mustWait = options.wait !== undefined && isStarting(agent, options.wait);
  const connection = await (options.eager && !mustWait ? agentConnection : connectToAgent)(mesh, target);
  if (options.wait) await waitForStartup(api, agent, options.wait, signal);
  return { connection, name };
}
