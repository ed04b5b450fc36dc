// What a job made: resources, their agents, and the agents' scripts, apps and log sources. One query a table,
// whatever the number of jobs.
import type { Knex } from "knex";
import type { AgentRow, AppRow, LogSourceRow, ResourceRow, ScriptRow } from "./rows.ts";

export interface AgentTree extends AgentRow {
  scripts: ScriptRow[];
  apps: AppRow[];
  logSources: LogSourceRow[];
}

export interface ResourceTree extends ResourceRow {
  agents: AgentTree[];
}

/** @returns by job id; jobs without any are absent */
export async function resourcesOfJobs(knex: Knex, jobIds: string[]): Promise<Map<string, ResourceTree[]>> {
  const resources: ResourceRow[] = await knex("workspace_resources")
    .whereIn("job_id", jobIds)
    .orderBy([{ column: "transition" }, { column: "position" }]);
  const agents: AgentRow[] = await knex("workspace_agents")
    .whereIn(
      "resource_id",
      resources.map(({ id }) => id),
    )
    .orderBy([{ column: "display_order" }, { column: "name" }, { column: "id" }]);
  const agentsOf = groupBy(await agentTrees(knex, agents), ({ resource_id }) => resource_id);
  return groupBy(
    resources.map((resource) => ({ ...resource, agents: agentsOf.get(resource.id) ?? [] })),
    ({ job_id }) => job_id,
  );
}

export async function agentTrees(knex: Knex, agents: AgentRow[]): Promise<AgentTree[]> {
  if (agents.length === 0) return [];
  const ids = agents.map(({ id }) => id);
  const scripts: ScriptRow[] = await knex("workspace_agent_scripts")
    .whereIn("agent_id", ids)
    .orderBy("position");
  const apps: AppRow[] = await knex("workspace_apps")
    .whereIn("agent_id", ids)
    .orderBy([{ column: "display_order" }, { column: "slug" }]);
  const logSources: LogSourceRow[] = await knex("workspace_agent_log_sources")
    .whereIn("agent_id", ids)
    .orderBy([{ column: "created_at" }, { column: "id" }]);
  const scriptsOf = groupBy(scripts, ({ agent_id }) => agent_id);
  const appsOf = groupBy(apps, ({ agent_id }) => agent_id);
  const logSourcesOf = groupBy(logSources, ({ agent_id }) => agent_id);
  return agents.map((agent) => ({
    ...agent,
    scripts: scriptsOf.get(agent.id) ?? [],
    apps: appsOf.get(agent.id) ?? [],
    logSources: logSourcesOf.get(agent.id) ?? [],
  }));
}

export function groupBy<T>(items: T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(keyOf(item));
    if (group) group.push(item);
    else groups.set(keyOf(item), [item]);
  }
  return groups;
}
