// Agents as the control plane meets them: by token, and as what somebody wants to connect to.
import type { Knex } from "knex";
import type { Subject } from "../../auth/authorize.ts";
import { authorize } from "../../auth/authorize.ts";
import { hashAgentToken } from "../../provisioner/queue-result.ts";
import { connectProblem } from "../../templates/status.ts";
import type { AgentRow, UserRow } from "./rows.ts";
import { announce } from "./topics.ts";
import { lastSucceededBuild, latestBuildOf, type WorkspaceView, workspaceById } from "./workspaces.ts";

export interface AgentInWorkspace {
  agent: AgentRow;
  workspace: WorkspaceView;
  owner: UserRow;
}

/** One that a token could belong to: newest build first. */
const agentsQuery = (
  knex: Knex,
): Knex.QueryBuilder<AgentRow, (AgentRow & { build_id: string; workspace_id: string })[]> =>
  knex("workspace_agents as a")
    .join("workspace_resources as r", "r.id", "a.resource_id")
    .join("workspace_builds as b", "b.job_id", "r.job_id")
    .select("a.*", "b.id as build_id", "b.workspace_id");

/**
 * The living agent whose token this is. A token lives as long as its build is the workspace's newest successful
 * one: a stop or a delete ends it when it has succeeded, a build anew hands it to the new build's agent.
 */
export async function agentForToken(knex: Knex, token: string): Promise<AgentInWorkspace | undefined> {
  if (token.length < 16 || token.length > 256) return undefined;
  const candidates = await agentsQuery(knex)
    .where("a.token_hash", hashAgentToken(token))
    .orderBy("b.created_at", "desc")
    .limit(10);
  for (const agent of candidates) {
    const found = await inWorkspace(knex, agent);
    if (found && found.owner.status !== "suspended" && (await isLiving(knex, agent))) return found;
  }
  return undefined;
}

/** Of any build, deleted workspaces included. */
export async function agentById(knex: Knex, agentId: string): Promise<AgentInWorkspace | undefined> {
  const [agent] = await agentsQuery(knex).where("a.id", agentId);
  return agent && inWorkspace(knex, agent);
}

/** Whether the agent is one of its workspace's newest successful build. */
export async function isCurrentAgent(knex: Knex, agentId: string): Promise<boolean> {
  const [agent] = await agentsQuery(knex).where("a.id", agentId);
  return agent !== undefined && isLiving(knex, agent);
}

async function isLiving(knex: Knex, agent: { build_id: string; workspace_id: string }): Promise<boolean> {
  const build = await lastSucceededBuild(knex, agent.workspace_id);
  return build?.id === agent.build_id && build.transition !== "delete";
}

async function inWorkspace(
  knex: Knex,
  agent: AgentRow & { workspace_id: string },
): Promise<AgentInWorkspace | undefined> {
  const workspace = await workspaceById(knex, agent.workspace_id);
  const owner: UserRow | undefined =
    workspace && (await knex("users").where({ id: workspace.owner_id }).first());
  return workspace && owner && { agent, workspace, owner };
}

export type Connectable =
  | ({ ok: true; user: { id: string; username: string } } & AgentInWorkspace)
  /** `reason` is for people; "hidden": they may not know that it exists. */
  | {
      ok: false;
      code: "ERR_NOT_FOUND" | "ERR_FORBIDDEN" | "ERR_WORKSPACE_NOT_RUNNING" | "ERR_AGENT_GONE";
      reason: string;
    };

/** Whether `subject` may open sessions to the agent now. */
export async function canConnect(knex: Knex, subject: Subject, agentId: string): Promise<Connectable> {
  const hidden = { ok: false, code: "ERR_NOT_FOUND", reason: "No such agent, or not yours to see." } as const;
  const found = await agentById(knex, agentId);
  if (!found) return hidden;
  const { workspace } = found;
  const object = {
    type: "workspace",
    id: workspace.id,
    ownerId: workspace.owner_id,
    organizationId: workspace.organization_id,
  } as const;
  if (!authorize(subject, "read", object)) return hidden;
  if (!authorize(subject, "ssh", object))
    return {
      ok: false,
      code: "ERR_FORBIDDEN",
      reason: "You may see this workspace, but not open sessions to it.",
    };
  const user: Pick<UserRow, "id" | "username"> | undefined = await knex("users")
    .where({ id: subject.userId, deleted: false, status: "active" })
    .first("id", "username");
  if (!user) return hidden;

  const last = await lastSucceededBuild(knex, workspace.id);
  const problem = workspace.deleted
    ? "The workspace is deleted."
    : connectProblem(latestBuildOf(workspace), last?.transition);
  if (problem) return { ok: false, code: "ERR_WORKSPACE_NOT_RUNNING", reason: problem };
  if (!(await isCurrentAgent(knex, agentId)))
    return {
      ok: false,
      code: "ERR_AGENT_GONE",
      reason: "The agent belongs to an earlier build of the workspace. Look the workspace up again.",
    };
  return { ok: true, ...found, user };
}

/** Said at connect and then with each heartbeat (every 15 s or so; see AGENT_INACTIVE_MS). */
export async function setAgentConnected(knex: Knex, agentId: string, at: Date): Promise<void> {
  const { rows } = await knex.raw<{ rows: { changed: boolean }[] }>(
    `update workspace_agents a set
       first_connected_at = coalesce(a.first_connected_at, ?),
       last_connected_at = greatest(a.last_connected_at, ?), updated_at = ?
     from (select id, last_connected_at, disconnected_at from workspace_agents where id = ? for update) old
     where a.id = old.id
     returning old.last_connected_at is null or old.disconnected_at >= old.last_connected_at as changed`,
    [at, at, at, agentId],
  );
  // A heartbeat alone changes nothing that watchers show.
  if (rows[0]?.changed) await announce(knex, "workspace_agent", agentId);
}

export async function setAgentDisconnected(knex: Knex, agentId: string, at: Date): Promise<void> {
  await knex("workspace_agents").where({ id: agentId }).update({ disconnected_at: at, updated_at: at });
  await announce(knex, "workspace_agent", agentId);
}
