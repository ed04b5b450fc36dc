// What state a template version, a build and an agent are in, and what may happen next. Pure: rows and `now` in,
// words and refusals out; the refusals are sentences people read.
import type { JobStatus } from "../contract/jobs.ts";
import type { AgentStatus, BuildStatus, Transition } from "../contract/workspaces.ts";

const BUILD_STATUS: Record<Transition, Record<JobStatus, BuildStatus>> = {
  start: {
    pending: "pending",
    running: "starting",
    succeeded: "running",
    canceling: "canceling",
    canceled: "canceled",
    failed: "failed",
  },
  stop: {
    pending: "pending",
    running: "stopping",
    succeeded: "stopped",
    canceling: "canceling",
    canceled: "canceled",
    failed: "failed",
  },
  delete: {
    pending: "pending",
    running: "deleting",
    succeeded: "deleted",
    canceling: "canceling",
    canceled: "canceled",
    failed: "failed",
  },
};

/** The status of a build; a workspace's is that of its latest build. */
export function buildStatus(transition: Transition, job: JobStatus): BuildStatus {
  return BUILD_STATUS[transition][job];
}

/** The other way round, for searches: every (transition, job) that shows as `status`. */
export function buildsThatAre(status: BuildStatus): { transition: Transition; job: JobStatus }[] {
  return (Object.keys(BUILD_STATUS) as Transition[]).flatMap((transition) =>
    (Object.keys(BUILD_STATUS[transition]) as JobStatus[])
      .filter((job) => BUILD_STATUS[transition][job] === status)
      .map((job) => ({ transition, job })),
  );
}

export const isFinished = (job: JobStatus): boolean =>
  job === "succeeded" || job === "failed" || job === "canceled";

/** Why a version can't be built from or made active, if it can't. */
export function versionProblem(job: JobStatus, archived = false): string | undefined {
  if (archived) return "The template version is archived. Unarchive it, or use another version.";
  switch (job) {
    case "succeeded":
      return undefined;
    case "failed":
      return "The import of this template version failed. Read its log, correct the template and push it again.";
    case "canceled":
    case "canceling":
      return "The import of this template version was canceled. Push the template again.";
    case "pending":
    case "running":
      return "The template version is still being imported. Wait until its job has completed.";
  }
}

export interface LatestBuild {
  transition: Transition;
  job: JobStatus;
}

/** Why the next build can't begin after `latest`, if it can't. A failed or canceled one never blocks the next. */
export function nextBuildProblem(latest: LatestBuild | undefined, next: Transition): string | undefined {
  if (!latest) return undefined;
  if (!isFinished(latest.job))
    return "Another build of this workspace is under way. Wait until it completes, or cancel it.";
  if (latest.transition === "delete" && latest.job === "succeeded" && next !== "delete")
    return "The workspace is deleted.";
  return undefined;
}

/** Why sessions to the workspace can't open, if they can't. `lastSucceeded`: transition of the newest succeeded build. */
export function connectProblem(
  latest: LatestBuild,
  lastSucceeded: Transition | undefined,
): string | undefined {
  const status = buildStatus(latest.transition, latest.job);
  if (status === "running") return undefined;
  const up = lastSucceeded === "start";
  // A start over a running workspace (an update), or a stop that failed or was canceled, leaves it running.
  if (up && (latest.transition === "start" || isFinished(latest.job)) && latest.transition !== "delete")
    return undefined;
  if (latest.transition === "start" && !isFinished(latest.job))
    return "The workspace is starting. Wait until its build has completed.";
  if (status === "stopping" || latest.transition === "stop")
    return "The workspace is stopped. Start it with `coder start`.";
  if (latest.transition === "delete") return "The workspace is being deleted.";
  return "The workspace isn't running: its last build did not succeed. Start it again with `coder start`.";
}

export interface AgentTimes {
  created_at: Date;
  first_connected_at: Date | null;
  last_connected_at: Date | null;
  disconnected_at: Date | null;
  connection_timeout_seconds: number;
}

/** An agent unheard of for so long is disconnected, though nobody said so: two missed pings of 15 s and slack. */
export const AGENT_INACTIVE_MS = 40_000;

/** @param now ms */
export function agentStatus(agent: AgentTimes, now: number): AgentStatus {
  if (!agent.first_connected_at) {
    const timeoutMs = agent.connection_timeout_seconds * 1000;
    return timeoutMs > 0 && now - agent.created_at.getTime() > timeoutMs ? "timeout" : "connecting";
  }
  const last = agent.last_connected_at?.getTime() ?? 0;
  if (agent.disconnected_at && agent.disconnected_at.getTime() > last) return "disconnected";
  return now - last > AGENT_INACTIVE_MS ? "disconnected" : "connected";
}

/** Health as people see it: something is wrong with the agent, and what. */
export function agentHealth(status: AgentStatus, lifecycle: string): { healthy: boolean; reason?: string } {
  if (status === "timeout") return { healthy: false, reason: "agent is taking too long to connect" };
  if (status === "disconnected") return { healthy: false, reason: "agent has lost connection" };
  if (status === "connecting") return { healthy: false, reason: "agent has not yet connected" };
  if (lifecycle === "start_error")
    return { healthy: false, reason: "agent startup script exited with an error" };
  if (lifecycle === "start_timeout") return { healthy: false, reason: "agent startup script timed out" };
  if (lifecycle.startsWith("shut") || lifecycle === "off")
    return { healthy: false, reason: "agent is shutting down" };
  return { healthy: true };
}
