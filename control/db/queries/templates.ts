import type { Knex } from "knex";
import type { JobStatus } from "../../contract/jobs.ts";
import type { ParameterRow, PresetRow, TemplateRow, TemplateVersionRow, VariableRow } from "./rows.ts";

export interface TemplateView extends TemplateRow {
  organization_name: string;
  organization_display_name: string;
  organization_icon: string;
  created_by_name: string;
  active_user_count: number;
}

/** Living templates, with what their JSON shows of other tables. Narrow it with `where` on alias `t`. */
export function templatesQuery(knex: Knex): Knex.QueryBuilder<TemplateView, TemplateView[]> {
  return knex("templates as t")
    .join("organizations as o", "o.id", "t.organization_id")
    .join("users as u", "u.id", "t.created_by")
    .where("t.deleted", false)
    .orderByRaw("lower(t.name)")
    .select<TemplateView[]>(
      "t.*",
      "o.name as organization_name",
      "o.display_name as organization_display_name",
      "o.icon as organization_icon",
      "u.username as created_by_name",
    )
    .select({
      active_user_count: knex.raw(
        "(select count(distinct w.owner_id)::int from workspaces w where w.template_id = t.id and not w.deleted)",
      ),
    });
}

export async function templateById(knex: Knex, id: string): Promise<TemplateView | undefined> {
  return (await templatesQuery(knex).where("t.id", id))[0];
}

export interface VersionView extends TemplateVersionRow {
  job_status: JobStatus;
  creator_username: string;
  creator_name: string;
  creator_avatar_url: string;
}

/** Alias `v`; newest first. */
export function versionsQuery(knex: Knex): Knex.QueryBuilder<VersionView, VersionView[]> {
  return knex("template_versions as v")
    .join("users as u", "u.id", "v.created_by")
    .join("provisioner_jobs as j", "j.id", "v.job_id")
    .orderBy([
      { column: "v.created_at", order: "desc" },
      { column: "v.id", order: "desc" },
    ])
    .select<VersionView[]>(
      "v.*",
      "j.status as job_status",
      "u.username as creator_username",
      "u.name as creator_name",
      "u.avatar_url as creator_avatar_url",
    );
}

export async function versionById(knex: Knex, id: string): Promise<VersionView | undefined> {
  return (await versionsQuery(knex).where("v.id", id))[0];
}

export const parametersOf = (knex: Knex, versionId: string): Promise<ParameterRow[]> =>
  knex("template_version_parameters").where({ template_version_id: versionId }).orderBy("position");

export const variablesOf = (knex: Knex, versionId: string): Promise<VariableRow[]> =>
  knex("template_version_variables").where({ template_version_id: versionId }).orderBy("position");

export const presetsOf = (knex: Knex, versionId: string): Promise<PresetRow[]> =>
  knex("template_version_presets").where({ template_version_id: versionId }).orderBy("position");
