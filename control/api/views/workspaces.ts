import type { Knex } from "knex";
import type { Workspace, WorkspaceBuild } from "../../contract/workspaces.ts";
import { jobsById } from "../../db/queries/jobs.ts";
import { resourcesOfJobs } from "../../db/queries/resources.ts";
import { type BuildView, buildsQuery, type WorkspaceView } from "../../db/queries/workspaces.ts";
import { buildStatus } from "../../templates/status.ts";
import { jobView, time, timeOrNull } from "./jobs.ts";
import { resourceView } from "./resources.ts";

export async function buildViews(knex: Knex, builds: BuildView[], now: Date): Promise<WorkspaceBuild[]> {
  const jobIds = builds.map(({ job_id }) => job_id);
  const jobs = await jobsById(knex, jobIds);
  const resources = await resourcesOfJobs(knex, jobIds);
  return builds.map((build) => ({
    id: build.id,
    created_at: time(build.created_at),
    updated_at: time(build.updated_at),
    workspace_id: build.workspace_id,
    workspace_name: build.workspace_name,
    workspace_owner_id: build.workspace_owner_id,
    workspace_owner_name: build.workspace_owner_name,
    template_version_id: build.template_version_id,
    template_version_name: build.template_version_name,
    build_number: build.build_number,
    transition: build.transition,
    initiator_id: build.initiator_id,
    initiator_name: build.initiator_name,
    job: jobView(jobs.get(build.job_id)!),
    reason: build.reason,
    resources: (resources.get(build.job_id) ?? []).map((resource) => resourceView(resource, now)),
    deadline: timeOrNull(build.deadline),
    max_deadline: timeOrNull(build.max_deadline),
    status: buildStatus(build.transition, build.job_status),
    daily_cost: build.daily_cost,
    template_version_preset_id: build.template_version_preset_id,
  }));
}

export async function workspaceViews(knex: Knex, rows: WorkspaceView[], now: Date): Promise<Workspace[]> {
  const latest = await buildsQuery(knex).whereIn(
    "b.id",
    rows.map(({ latest_build_id }) => latest_build_id),
  );
  const builds = new Map((await buildViews(knex, latest, now)).map((build) => [build.id, build]));
  return rows.map((row) => {
    const build = builds.get(row.latest_build_id)!;
    const failing =
      build.status === "running"
        ? build.resources.flatMap(({ agents }) => agents).filter(({ health }) => !health.healthy)
        : [];
    return {
      id: row.id,
      created_at: time(row.created_at),
      updated_at: time(row.updated_at),
      owner_id: row.owner_id,
      owner_name: row.owner_name,
      owner_avatar_url: row.owner_avatar_url,
      organization_id: row.organization_id,
      organization_name: row.organization_name,
      template_id: row.template_id,
      template_name: row.template_name,
      template_display_name: row.template_display_name,
      template_icon: row.template_icon,
      template_allow_user_cancel_workspace_jobs: row.template_allow_user_cancel_workspace_jobs,
      template_active_version_id: row.template_active_version_id,
      template_require_active_version: row.template_require_active_version,
      template_use_classic_parameter_flow: true,
      latest_build: build,
      latest_app_status: null,
      outdated: build.template_version_id !== row.template_active_version_id,
      name: row.name,
      ...(row.autostart_schedule ? { autostart_schedule: row.autostart_schedule } : {}),
      ttl_ms: row.ttl_ms === null ? null : Number(row.ttl_ms),
      last_used_at: time(row.last_used_at),
      deleting_at: timeOrNull(row.deleting_at),
      dormant_at: timeOrNull(row.dormant_at),
      health: {
        healthy: failing.length === 0,
        failing_agents: failing.map(({ id }) => id),
      },
      automatic_updates: row.automatic_updates,
      allow_renames: true,
      favorite: false,
      next_start_at: null,
      is_prebuild: false,
    };
  });
}
