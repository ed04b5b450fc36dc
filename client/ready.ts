import type { Workspace, WorkspaceAgent } from "../control/contract/index.ts";
import { CliError, EXIT } from "./errors.ts";
import type { ApiClient } from "./http.ts";
import { followAgentLogs } from "./logs.ts";
import { say } from "./output.ts";
import { chooseAgent, findWorkspace, parseWorkspaceName, runBuild } from "./workspace.ts";

export type WaitMode = "yes" | "no" | "auto";

const failed = (message: string, hint?: string) =>
  new CliError("ERR_WORKSPACE_NOT_READY", message, { hint, exitCode: EXIT.connection });

function stateOf({ name, latest_build: { status } }: Workspace): string {
  if (status === "failed") return `The last build of workspace ${name} failed`;
  if (status === "canceled") return `The last build of workspace ${name} was canceled`;
  return `Workspace ${name} is ${status}`;
}

/**
 * The workspace with a finished start build: follows one under way, starts a stopped one (unless told not to).
 *
 * @throws {CliError} ERR_WORKSPACE_STOPPED, ERR_WORKSPACE_NOT_READY, or the build's own failure
 */
export async function runningWorkspace(
  api: ApiClient,
  text: string,
  options: { autostart: boolean; signal?: AbortSignal },
): Promise<{ workspace: Workspace; agent: WorkspaceAgent }> {
  let workspace = await findWorkspace(api, text);
  const { latest_build: build } = workspace;
  if (build.transition === "delete") throw failed(`${stateOf(workspace)}.`);
  if (build.status === "starting" || (build.status === "pending" && build.transition === "start")) {
    await runBuild(api, workspace, { follow: build.id, transition: "start" }, { signal: options.signal });
    workspace = await findWorkspace(api, text);
  } else if (build.status !== "running") {
    if (!options.autostart)
      throw new CliError("ERR_WORKSPACE_STOPPED", `${stateOf(workspace)}.`, {
        hint: `Start it with \`coder start ${text}\`.`,
        exitCode: EXIT.connection,
      });
    if (build.status === "stopping" || (build.status === "pending" && build.transition === "stop"))
      await runBuild(api, workspace, { follow: build.id, transition: "stop" }, { signal: options.signal });
    say(`${stateOf(workspace)}; starting it.`);
    await runBuild(
      api,
      workspace,
      { transition: "start", reason: "ssh_connection" },
      { signal: options.signal },
    );
    workspace = await findWorkspace(api, text);
  }
  return { workspace, agent: chooseAgent(workspace, parseWorkspaceName(text).agent) };
}

const IN_PROGRESS = new Set(["created", "starting"]);

/** What is asked of an agent to know whether its startup scripts hold a login up. */
export type StartingAgent = Pick<WorkspaceAgent, "id"> & {
  lifecycle_state: string;
  startup_script_behavior: string;
};

/** Whether a login in this mode has to wait for startup scripts. */
export function isStarting(agent: StartingAgent, mode: WaitMode): boolean {
  const blocks = mode === "yes" || (mode === "auto" && agent.startup_script_behavior === "blocking");
  return blocks && IN_PROGRESS.has(agent.lifecycle_state);
}

/** Waits for startup scripts that block login (or for all, with "yes"), showing their output meanwhile. */
export async function waitForStartup(
  api: ApiClient,
  agent: StartingAgent,
  mode: WaitMode,
  signal?: AbortSignal,
): Promise<void> {
  let current = agent;
  if (isStarting(current, mode)) {
    say("==> Waiting for the startup scripts (skip with --wait=no)");
    const over = new AbortController();
    const logs = followAgentLogs(api, agent.id, ({ output }) => say(`    ${output}`), over.signal);
    try {
      for (let waitMs = 50; IN_PROGRESS.has(current.lifecycle_state); waitMs = Math.min(1000, waitMs * 2)) {
        signal?.throwIfAborted();
        await new Promise((resolve) => setTimeout(resolve, waitMs));
        current = await api.get<WorkspaceAgent>(`/workspaceagents/${agent.id}`, { signal });
      }
    } finally {
      over.abort();
      await logs;
    }
  }
  if (current.lifecycle_state === "start_error")
    say("warning: a startup script failed; the workspace may be incomplete");
  if (current.lifecycle_state === "start_timeout")
    say("warning: a startup script ran into its time limit; the workspace may be incomplete");
}
