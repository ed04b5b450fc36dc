import type { Knex } from "knex";
import type { JobStatus } from "../../contract/jobs.ts";
import type { Transition } from "../../contract/workspaces.ts";
import type { LatestBuild } from "../../templates/status.ts";
import type { BuildRow, WorkspaceRow } from "./rows.ts";

export interface WorkspaceView extends WorkspaceRow {
  owner_name: string;
  owner_avatar_url: string;
  organization_name: string;
  template_name: string;
  template_display_name: string;
  template_icon: string;
  template_active_version_id: string;
  template_allow_user_cancel_workspace_jobs: boolean;
  template_require_active_version: boolean;
  latest_version_id: string;
  latest_transition: Transition;
  latest_job_status: JobStatus;
}

/** Aliases: w workspace, u owner, t template, b its latest build, j that build's job. Deleted ones included. */
export function workspacesQuery(knex: Knex): Knex.QueryBuilder<WorkspaceView, WorkspaceView[]> {
  return knex("workspaces as w")
    .join("users as u", "u.id", "w.owner_id")
    .join("organizations as o", "o.id", "w.organization_id")
    .join("templates as t", "t.id", "w.template_id")
    .join("workspace_builds as b", "b.id", "w.latest_build_id")
    .join("provisioner_jobs as j", "j.id", "b.job_id")
    .select<WorkspaceView[]>(
      "w.*",
      "u.username as owner_name",
      "u.avatar_url as owner_avatar_url",
      "o.name as organization_name",
      "t.name as template_name",
      "t.display_name as template_display_name",
      "t.icon as template_icon",
      "t.active_version_id as template_active_version_id",
      "t.allow_user_cancel_workspace_jobs as template_allow_user_cancel_workspace_jobs",
      "t.require_active_version as template_require_active_version",
      "b.template_version_id as latest_version_id",
      "b.transition as latest_transition",
      "j.status as latest_job_status",
    );
}

export async function workspaceById(knex: Knex, id: string): Promise<WorkspaceView | undefined> {
  return (await workspacesQuery(knex).where("w.id", id))[0];
}

export interface BuildView extends BuildRow {
  workspace_name: string;
  workspace_owner_id: string;
  workspace_owner_name: string;
  template_version_name: string;
  initiator_name: string;
  job_status: JobStatus;
}

/** Alias `b`; newest first; never the state. */
export function buildsQuery(knex: Knex): Knex.QueryBuilder<BuildView, BuildView[]> {
  return knex("workspace_builds as b")
    .join("workspaces as w", "w.id", "b.workspace_id")
    .join("users as u", "u.id", "w.owner_id")
    .join("users as i", "i.id", "b.initiator_id")
    .join("template_versions as v", "v.id", "b.template_version_id")
    .join("provisioner_jobs as j", "j.id", "b.job_id")
    .orderBy("b.build_number", "desc")
    .select<BuildView[]>(
      "b.id",
      "b.workspace_id",
      "b.template_version_id",
      "b.build_number",
      "b.transition",
      "b.initiator_id",
      "b.job_id",
      "b.reason",
      "b.template_version_preset_id",
      "b.deadline",
      "b.max_deadline",
      "b.daily_cost",
      "b.created_at",
      "b.updated_at",
      "w.name as workspace_name",
      "w.owner_id as workspace_owner_id",
      "u.username as workspace_owner_name",
      "v.name as template_version_name",
      "i.username as initiator_name",
      "j.status as job_status",
    );
}

export async function buildById(knex: Knex, id: string): Promise<BuildView | undefined> {
  return (await buildsQuery(knex).where("b.id", id))[0];
}

/** The newest build that succeeded, whose agents are the living ones. */
export async function lastSucceededBuild(
  knex: Knex,
  workspaceId: string,
): Promise<{ id: string; transition: Transition } | undefined> {
  return knex("workspace_builds as b")
    .join("provisioner_jobs as j", "j.id", "b.job_id")
    .where({ "b.workspace_id": workspaceId, "j.status": "succeeded" })
    .orderBy("b.build_number", "desc")
    .first("b.id", "b.transition");
}

export const latestBuildOf = (workspace: WorkspaceView): LatestBuild => ({
  transition: workspace.latest_transition,
  job: workspace.latest_job_status,
});
