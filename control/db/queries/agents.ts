// Agents as the control plane meets them: by token, and as what somebody wants to connect to.
import type { Knex } from "knex";
import { hashAgentToken } from "../../provisioner/queue-result.ts";
import type { AgentRow, UserRow } from "./rows.ts";
import { announceAll } from "./topics.ts";
import { lastSucceededBuild, type WorkspaceView, workspaceById } from "./workspaces.ts";

export interface AgentInWorkspace {
  agent: AgentRow;
  workspace: WorkspaceView;
  owner: UserRow;
}

const agentsQuery = (
  knex: Knex,
): Knex.QueryBuilder<AgentRow, (AgentRow & { build_id: string; workspace_id: string })[]> =>
  knex("workspace_agents as a")
    .join("workspace_resources as r", "r.id", "a.resource_id")
    .join("workspace_builds as b", "b.job_id", "r.job_id")
    .select("a.*", "b.id as build_id", "b.workspace_id");

const BY_TOKEN = `select a.id as agent_id, a.name as agent_name, w.id as workspace_id, w.owner_id
  from workspace_agents a
  join workspace_resources r on r.id = a.resource_id
  join workspace_builds b on b.job_id = r.job_id
  join workspaces w on w.id = b.workspace_id
  join lateral (
    select b2.id, b2.transition from workspace_builds b2 join provisioner_jobs j2 on j2.id = b2.job_id
    where b2.workspace_id = w.id and j2.status = 'succeeded'
    order by b2.build_number desc limit 1) last on last.id = b.id and last.transition <> 'delete'
  where a.token_hash = ? order by b.created_at desc limit 1`;

export interface AgentByToken {
  agent_id: string;
  agent_name: string;
  workspace_id: string;
  owner_id: string;
}

/**
 * The living agent whose token this is. A token lives as long as its build is the workspace's newest successful
 * one: a stop or a delete ends it when it has succeeded, a build anew hands it to the new build's agent. It lives also
 * while the workspace's owner is suspended: who may still reach the workspace needs it, and the owner may not.
 *
 * One statement, planned once a connection: after a restart every agent asks at once.
 */
export async function agentForToken(knex: Knex, token: string): Promise<AgentByToken | undefined> {
  if (token.length < 16 || token.length > 256) return undefined;
  const { rows } = await knex
    .raw<{ rows: AgentByToken[] }>(BY_TOKEN, [hashAgentToken(token)])
    .options({ name: "agent_by_token" });
  return rows[0];
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

/** Rows of many agents, locked in one order, so that two replicas can't wait for each other. */
const LOCKED = `(select id, last_connected_at, disconnected_at from workspace_agents
  where id = any(?) order by id for update)`;

/** Said at connect. */
export async function setAgentsConnected(knex: Knex, agentIds: readonly string[], at: Date): Promise<void> {
  const { rows } = await knex.raw<{ rows: { id: string; changed: boolean }[] }>(
    `update workspace_agents a set
       first_connected_at = coalesce(a.first_connected_at, ?),
       last_connected_at = greatest(a.last_connected_at, ?), updated_at = ?
     from ${LOCKED} old where a.id = old.id
     returning a.id, old.last_connected_at is null or old.disconnected_at >= old.last_connected_at as changed`,
    [at, at, at, [...agentIds]] as never,
  );
  // A heartbeat alone changes nothing that watchers show.
  const changed = rows.filter((row) => row.changed).map(({ id }) => id);
  await announceAll(knex, "workspace_agent", changed);
}

/** With each heartbeat (every 15 s or so; see AGENT_INACTIVE_MS) of those known to be connected: nothing changes that watchers show. */
export async function setAgentsHeard(knex: Knex, agentIds: readonly string[], at: Date): Promise<void> {
  await knex.raw(
    `update workspace_agents a set last_connected_at = greatest(a.last_connected_at, ?), updated_at = ?
     from ${LOCKED} old where a.id = old.id`,
    [at, at, [...agentIds]] as never,
  );
}

/**
 * What became of connected agents. "current": of their workspace's newest successful build. "replaced": not, but that build
 * has an agent with the same token, as whom the process comes back. Missing: over.
 */
export async function areKeptAgents(
  knex: Knex,
  agentIds: readonly string[],
): Promise<Map<string, "current" | "replaced">> {
  const { rows } = await knex.raw<{ rows: { id: string; is_current: boolean }[] }>(
    `select a.id, last.job_id = r.job_id as is_current
     from workspace_agents a
     join workspace_resources r on r.id = a.resource_id
     join workspace_builds b on b.job_id = r.job_id
     join lateral (
       select b2.job_id, b2.transition from workspace_builds b2 join provisioner_jobs j2 on j2.id = b2.job_id
       where b2.workspace_id = b.workspace_id and j2.status = 'succeeded'
       order by b2.build_number desc limit 1) last on last.transition <> 'delete'
     where a.id = any(?) and (last.job_id = r.job_id or exists (
       select 1 from workspace_resources r3 join workspace_agents a3 on a3.resource_id = r3.id
       where r3.job_id = last.job_id and a3.token_hash = a.token_hash))`,
    [[...agentIds]] as never,
  );
  return new Map(rows.map(({ id, is_current }) => [id, is_current ? "current" : "replaced"]));
}

export async function setAgentsDisconnected(
  knex: Knex,
  agentIds: readonly string[],
  at: Date,
): Promise<void> {
  await knex.raw(
    `update workspace_agents a set disconnected_at = ?, updated_at = ? from ${LOCKED} old where a.id = old.id`,
    [at, at, [...agentIds]] as never,
  );
  await announceAll(knex, "workspace_agent", agentIds);
}
