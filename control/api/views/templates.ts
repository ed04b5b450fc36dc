import type { Knex } from "knex";
import type {
  Preset,
  Template,
  TemplateVersion,
  TemplateVersionParameter,
  TemplateVersionVariable,
} from "../../contract/templates.ts";
import { jobsById } from "../../db/queries/jobs.ts";
import type { ParameterRow, PresetRow, VariableRow } from "../../db/queries/rows.ts";
import type { TemplateView, VersionView } from "../../db/queries/templates.ts";
import { jobView, time } from "./jobs.ts";

const EVERY_DAY = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

export function templateView(template: TemplateView): Template {
  const noStats = { P50: null, P95: null };
  return {
    id: template.id,
    created_at: time(template.created_at),
    updated_at: time(template.updated_at),
    organization_id: template.organization_id,
    organization_name: template.organization_name,
    organization_display_name: template.organization_display_name,
    organization_icon: template.organization_icon,
    name: template.name,
    display_name: template.display_name,
    provisioner: "terraform",
    active_version_id: template.active_version_id,
    active_user_count: template.active_user_count,
    build_time_stats: { start: noStats, stop: noStats, delete: noStats },
    description: template.description,
    deprecated: template.deprecation_message !== "",
    deprecation_message: template.deprecation_message,
    icon: template.icon,
    default_ttl_ms: Number(template.default_ttl_ms),
    activity_bump_ms: Number(template.activity_bump_ms),
    autostop_requirement: { days_of_week: [], weeks: 1 },
    autostart_requirement: { days_of_week: EVERY_DAY },
    created_by_id: template.created_by,
    created_by_name: template.created_by_name,
    allow_user_autostart: template.allow_user_autostart,
    allow_user_autostop: template.allow_user_autostop,
    allow_user_cancel_workspace_jobs: template.allow_user_cancel_workspace_jobs,
    failure_ttl_ms: Number(template.failure_ttl_ms),
    time_til_dormant_ms: Number(template.time_til_dormant_ms),
    time_til_dormant_autodelete_ms: Number(template.time_til_dormant_autodelete_ms),
    require_active_version: template.require_active_version,
    max_port_share_level: "owner",
    cors_behavior: "simple",
    use_classic_parameter_flow: true,
  };
}

export async function versionViews(knex: Knex, versions: VersionView[]): Promise<TemplateVersion[]> {
  const jobs = await jobsById(
    knex,
    versions.map(({ job_id }) => job_id),
  );
  return versions.map((version) => ({
    id: version.id,
    ...(version.template_id ? { template_id: version.template_id } : {}),
    organization_id: version.organization_id,
    created_at: time(version.created_at),
    updated_at: time(version.updated_at),
    name: version.name,
    message: version.message,
    readme: version.readme,
    job: jobView(jobs.get(version.job_id)!),
    created_by: {
      id: version.created_by,
      username: version.creator_username,
      name: version.creator_name,
      avatar_url: version.creator_avatar_url,
    },
    archived: version.archived,
    warnings: [],
  }));
}

export function parameterView({ definition: parameter }: ParameterRow): TemplateVersionParameter {
  const { regex, error, monotonic, min, max } = parameter.validation;
  return {
    name: parameter.name,
    display_name: parameter.displayName,
    description: parameter.description,
    description_plaintext: plainText(parameter.description),
    type: parameter.type,
    form_type: parameter.formType,
    mutable: parameter.mutable,
    default_value: parameter.defaultValue,
    icon: parameter.icon,
    options: parameter.options,
    ...(error ? { validation_error: error } : {}),
    ...(regex ? { validation_regex: regex } : {}),
    ...(min === undefined ? {} : { validation_min: min }),
    ...(max === undefined ? {} : { validation_max: max }),
    ...(monotonic === "increasing" || monotonic === "decreasing" ? { validation_monotonic: monotonic } : {}),
    required: parameter.required,
    ephemeral: parameter.ephemeral,
  };
}

/** Markdown's commonest marks taken off, for terminals. */
const plainText = (markdown: string): string =>
  markdown.replace(/\[([^\]]*)\]\([^)]*\)/g, "$1").replace(/[*_`#]+/g, "");

export function variableView(variable: VariableRow): TemplateVersionVariable {
  const shown = (value: string) => (variable.sensitive ? "" : value);
  return {
    name: variable.name,
    description: variable.description,
    type: variable.type,
    value: shown(variable.value),
    default_value: shown(variable.default_value),
    required: variable.required,
    sensitive: variable.sensitive,
  };
}

export function presetView(preset: PresetRow): Preset {
  return {
    ID: preset.id,
    Name: preset.name,
    Parameters: preset.parameters.map(({ name, value }) => ({ Name: name, Value: value })),
    Default: preset.is_default,
    Description: preset.description,
    Icon: preset.icon,
  };
}
