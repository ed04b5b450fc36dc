// Agents: what people see of them, and what they say themselves (workspaceagents/me).
import type { Knex } from "knex";
import * as z from "zod";
import { AgentLifecycleReport, AgentLogBatch, AgentManifest, AgentStartup } from "../contract/agent.ts";
import { Uuid } from "../contract/common.ts";
import { LogsQuery } from "../contract/jobs.ts";
import { WorkspaceAgent, type WorkspaceAgentLog, WorkspaceAgentLogs } from "../contract/workspaces.ts";
import { type AgentInWorkspace, agentById } from "../db/queries/agents.ts";
import { agentTrees } from "../db/queries/resources.ts";
import type { AgentLogRow, AgentRow, ScriptRow } from "../db/queries/rows.ts";
import { announce } from "../db/queries/topics.ts";
import { must } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, notFound } from "./errors.ts";
import { agentRoute, type Route, userRoute } from "./route.ts";
import { wantsWebSocket } from "./template-versions.ts";
import { time } from "./views/jobs.ts";
import { agentView } from "./views/resources.ts";
import { workspaceObject } from "./workspaces.ts";

const Id = z.object({ id: Uuid });

/** @throws {ApiError} 404 also when `user` may not read its workspace */
export async function readableAgent(
  { knex }: Pick<ApiDeps, "knex">,
  user: UserIdentity,
  id: string,
): Promise<AgentInWorkspace> {
  const found = await agentById(knex, id);
  if (!found) throw notFound("Workspace agent");
  must(user, "read", workspaceObject(found.workspace), "Workspace agent");
  return found;
}

/** @returns lines with ids above `after`, oldest first */
export async function agentLogs(
  knex: Knex,
  agentId: string,
  { after = 0, before, limit }: { after?: number; before?: number; limit?: number } = {},
): Promise<WorkspaceAgentLog[]> {
  const rows: AgentLogRow[] = await knex("workspace_agent_logs")
    .where({ agent_id: agentId })
    .andWhere("id", ">", String(after))
    .modify((query) => {
      if (before) query.andWhere("id", "<", String(before));
      if (limit) query.limit(limit);
    })
    .orderBy("id");
  return rows.map((row) => ({
    id: Number(row.id),
    created_at: time(row.created_at),
    output: row.output,
    level: row.level,
    source_id: row.log_source_id,
  }));
}

export function agentRoutes(deps: ApiDeps): Route[] {
  const { knex, limits } = deps;
  return [
    userRoute({
      method: "get",
      path: "/workspaceagents/:id",
      params: Id,
      out: WorkspaceAgent,
      async handle({ user, params, now }) {
        const { agent } = await readableAgent(deps, user, params.id);
        return agentView((await agentTrees(knex, [agent]))[0], now);
      },
    }),
    userRoute({
      method: "get",
      path: "/workspaceagents/:id/logs",
      params: Id,
      query: LogsQuery,
      out: WorkspaceAgentLogs,
      async handle({ user, params, query }) {
        if (query.follow) throw wantsWebSocket();
        const { agent } = await readableAgent(deps, user, params.id);
        return agentLogs(knex, agent.id, query);
      },
    }),
    agentRoute({
      method: "get",
      path: "/workspaceagents/me/manifest",
      out: AgentManifest,
      async handle({ agent: { agentId } }) {
        const found = await agentById(knex, agentId);
        if (!found) throw notFound("Workspace agent");
        const scripts: ScriptRow[] = await knex("workspace_agent_scripts")
          .where({ agent_id: agentId })
          .orderBy("position");
        const { agent, workspace, owner } = found;
        return {
          agent_id: agent.id,
          agent_name: agent.name,
          workspace_id: workspace.id,
          workspace_name: workspace.name,
          owner_id: owner.id,
          owner_username: owner.username,
          directory: agent.directory,
          environment_variables: agent.env,
          motd_file: agent.motd_file,
          startup_script_behavior: agent.startup_script_behavior,
          scripts,
          disable_direct_connections: false,
        };
      },
    }),
    agentRoute({
      method: "patch",
      path: "/workspaceagents/me/logs",
      body: AgentLogBatch,
      async handle({ agent, body, now }) {
        const full = await knex.transaction((trx) =>
          appendAgentLogs(trx, agent.agentId, body, limits.agentLogBytes, now),
        );
        if (full)
          throw new ApiError(
            413,
            "ERR_AGENT_LOGS_FULL",
            "The agent's log has reached its limit; no more is kept.",
          );
      },
    }),
    agentRoute({
      method: "post",
      path: "/workspaceagents/me/lifecycle",
      body: AgentLifecycleReport,
      async handle({ agent, body, now }) {
        const at = new Date(body.changed_at);
        const times: Partial<Pick<AgentRow, "started_at" | "ready_at">> = {};
        if (body.state === "created") {
          times.started_at = null;
          times.ready_at = null;
        }
        if (body.state === "starting") {
          times.started_at = at;
          times.ready_at = null;
        }
        if (["ready", "start_timeout", "start_error"].includes(body.state)) times.ready_at = at;
        await knex.transaction(async (trx) => {
          await trx("workspace_agents")
            .where({ id: agent.agentId })
            .update({ lifecycle_state: body.state, updated_at: now, ...times });
          await announce(trx, "workspace_agent", agent.agentId);
        });
      },
    }),
    agentRoute({
      method: "post",
      path: "/workspaceagents/me/startup",
      body: AgentStartup,
      async handle({ agent, body, now }) {
        await knex.transaction(async (trx) => {
          await trx("workspace_agents").where({ id: agent.agentId }).update({
            version: body.version,
            expanded_directory: body.expanded_directory,
            operating_system: body.operating_system,
            architecture: body.architecture,
            updated_at: now,
          });
          await announce(trx, "workspace_agent", agent.agentId);
        });
      },
    }),
  ];
}

/** @returns true when the log was or became full */
async function appendAgentLogs(
  trx: Knex,
  agentId: string,
  batch: AgentLogBatch,
  maxBytes: number,
  now: Date,
): Promise<boolean> {
  // The lock orders writers: a reader who saw an id has seen every lower one.
  const agent: AgentRow = await trx("workspace_agents").where({ id: agentId }).forUpdate().first();
  if (agent.logs_overflowed) return true;
  const source = await trx("workspace_agent_log_sources")
    .where({ id: batch.log_source_id, agent_id: agentId })
    .first("id");
  if (!source)
    throw badRequest("The log source is none of this agent's.", [
      { field: "log_source_id", detail: "is none of this agent's; read the manifest again" },
    ]);
  let bytes = agent.logs_bytes;
  const rows: Omit<AgentLogRow, "id">[] = [];
  for (const line of batch.logs) {
    const { output } = line;
    bytes += Buffer.byteLength(output);
    if (bytes > maxBytes) break;
    rows.push({
      agent_id: agentId,
      log_source_id: batch.log_source_id,
      created_at: new Date(line.created_at),
      level: line.level,
      output,
    });
  }
  const logs_overflowed = bytes > maxBytes;
  if (rows.length > 0) await trx("workspace_agent_logs").insert(rows);
  await trx("workspace_agents")
    .where({ id: agentId })
    .update({ logs_bytes: Math.min(bytes, maxBytes), logs_overflowed, updated_at: now });
  await announce(trx, "workspace_agent", agentId);
  return logs_overflowed;
}
