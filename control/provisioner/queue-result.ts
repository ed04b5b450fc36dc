// From what a daemon hands back to rows. All of it runs in the one transaction that completes the job.
import { createHash, randomUUID } from "node:crypto";
import type { Knex } from "knex";
import type { Transition } from "../contract/workspaces.ts";
import type { BuildRow, JobRow } from "../db/queries/rows.ts";
import type { BuildResult, ImportResult, ProvisionedAgent, ProvisionedResource } from "./protocol.ts";

const MAX_README_CHARS = 1 << 20;

/** What is kept of an agent's token: it is long and random, so a plain hash can't be guessed from. */
export const hashAgentToken = (token: string): Buffer => createHash("sha256").update(token).digest();

export async function storeImport(trx: Knex, job: JobRow, result: ImportResult, now: Date): Promise<void> {
  const [version]: { id: string; template_id: string | null }[] = await trx("template_versions")
    .where({ job_id: job.id })
    .update({
      readme: result.readme.slice(0, MAX_README_CHARS),
      external_auth: JSON.stringify(result.externalAuth),
      workspace_tags: JSON.stringify(result.workspaceTags),
      updated_at: now,
    })
    .returning(["id", "template_id"]);
  const template_version_id = version.id;
  const given = new Map((job.input.user_variable_values ?? []).map(({ name, value }) => [name, value]));
  await insertAll(
    trx,
    "template_version_parameters",
    result.parameters.map((definition, position) => ({
      template_version_id,
      name: definition.name,
      position,
      definition: JSON.stringify(definition),
    })),
  );
  await insertAll(
    trx,
    "template_version_variables",
    result.variables.map((variable, position) => ({
      template_version_id,
      name: variable.name,
      position,
      description: variable.description,
      type: variable.type,
      value: given.get(variable.name) ?? variable.defaultValue,
      default_value: variable.defaultValue,
      required: variable.required,
      sensitive: variable.sensitive,
    })),
  );
  await insertAll(
    trx,
    "template_version_presets",
    result.presets.map((preset, position) => ({
      id: randomUUID(),
      template_version_id,
      name: preset.name,
      description: preset.description,
      icon: preset.icon,
      is_default: preset.default,
      position,
      parameters: JSON.stringify(preset.parameters),
    })),
  );
  await storeResources(trx, job.id, "start", result.startResources, now);
  await storeResources(trx, job.id, "stop", result.stopResources, now);
}

/** @returns the workspace built */
export async function storeBuild(trx: Knex, job: JobRow, result: BuildResult, now: Date): Promise<string> {
  const [build]: BuildRow[] = await trx("workspace_builds")
    .where({ job_id: job.id })
    .update({ state: Buffer.from(result.state), daily_cost: result.dailyCost, updated_at: now })
    .returning(["id", "workspace_id", "transition"]);
  await storeResources(trx, job.id, build.transition, result.resources, now);
  await trx("workspaces")
    .where({ id: build.workspace_id })
    .update({ updated_at: now, ...(build.transition === "delete" ? { deleted: true } : {}) });
  return build.workspace_id;
}

async function storeResources(
  trx: Knex,
  jobId: string,
  transition: Transition,
  resources: ProvisionedResource[],
  now: Date,
): Promise<void> {
  for (const [position, resource] of resources.entries()) {
    const id = randomUUID();
    await trx("workspace_resources").insert({
      id,
      job_id: jobId,
      transition,
      type: resource.type,
      name: resource.name,
      hide: resource.hide,
      icon: resource.icon,
      instance_type: resource.instanceType,
      daily_cost: resource.dailyCost,
      metadata: JSON.stringify(
        resource.metadata
          .filter(({ isNull }) => !isNull)
          .map(({ key, value, sensitive }) => ({ key, value, sensitive })),
      ),
      position,
      created_at: now,
    });
    for (const agent of resource.agents) await storeAgent(trx, id, agent, now);
  }
}

/**
 * An agent gets a new id with each build, as its scripts, apps and logs do: a row is one build's, and what an
 * earlier build's agent said stays readable. Terraform's own id of it is not kept.
 */
async function storeAgent(trx: Knex, resourceId: string, agent: ProvisionedAgent, now: Date): Promise<void> {
  const id = randomUUID();
  await trx("workspace_agents").insert({
    id,
    resource_id: resourceId,
    name: agent.name,
    token_hash: agent.auth.kind === "token" && agent.auth.token ? hashAgentToken(agent.auth.token) : null,
    instance_id: agent.auth.kind === "instance" ? agent.auth.instanceId : null,
    operating_system: agent.operatingSystem,
    architecture: agent.architecture,
    directory: agent.directory,
    env: JSON.stringify(agent.env),
    motd_file: agent.motdFile,
    troubleshooting_url: agent.troubleshootingUrl,
    connection_timeout_seconds: agent.connectionTimeoutSeconds,
    startup_script_behavior: agent.startupScriptBehavior,
    api_key_scope: agent.apiKeyScope,
    display_order: agent.order,
    display_apps: agent.displayApps,
    metadata: JSON.stringify(agent.metadata),
    created_at: now,
    updated_at: now,
  });
  for (const [position, script] of agent.scripts.entries()) {
    const log_source_id = randomUUID();
    await trx("workspace_agent_log_sources").insert({
      id: log_source_id,
      agent_id: id,
      display_name: script.displayName,
      icon: script.icon,
      created_at: now,
    });
    await trx("workspace_agent_scripts").insert({
      id: randomUUID(),
      agent_id: id,
      log_source_id,
      position,
      display_name: script.displayName,
      icon: script.icon,
      script: script.script,
      log_path: script.logPath,
      cron: script.cron,
      run_on_start: script.runOnStart,
      run_on_stop: script.runOnStop,
      start_blocks_login: script.startBlocksLogin,
      timeout_seconds: script.timeoutSeconds,
    });
  }
  await insertAll(
    trx,
    "workspace_apps",
    agent.apps.map((app) => ({
      id: randomUUID(),
      agent_id: id,
      slug: app.slug,
      health: app.healthcheck ? "initializing" : "disabled",
      display_order: app.order,
      definition: JSON.stringify(app),
    })),
  );
}

async function insertAll(trx: Knex, table: string, rows: Record<string, unknown>[]): Promise<void> {
  if (rows.length > 0) await trx(table).insert(rows);
}
