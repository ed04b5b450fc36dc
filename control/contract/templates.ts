import * as z from "zod";
import { DisplayName, Name, Paging, TemplateVersionName, Timestamp, Uuid } from "./common.ts";
import { ProvisionerJob } from "./jobs.ts";
import { MinimalUser } from "./users.ts";

/** POST files, body = tar, Content-Type application/x-tar: 201 new, 200 known | 413 over the limit | 415 */
export const UploadResponse = z.object({ hash: Uuid });
export type UploadResponse = z.infer<typeof UploadResponse>;
export const TAR_CONTENT_TYPE = "application/x-tar";
/** Of a template archive, before the server's own setting. */
export const MAX_TEMPLATE_ARCHIVE_BYTES = 1 << 20;

export const VariableValue = z.object({ name: z.string().min(1).max(256), value: z.string().max(65_536) });
export type VariableValue = z.infer<typeof VariableValue>;

/** POST organizations/{o}/templateversions: 201 TemplateVersion | 404 file or template | 409 name taken */
export const CreateTemplateVersionRequest = z.object({
  name: TemplateVersionName.optional(),
  message: z.string().max(1_048_576).optional(),
  template_id: Uuid.optional(),
  storage_method: z.literal("file").default("file"),
  file_id: Uuid,
  provisioner: z.literal("terraform").default("terraform"),
  tags: z.record(z.string().max(128), z.string().max(256)).default({}),
  user_variable_values: z.array(VariableValue).max(200).default([]),
});
export type CreateTemplateVersionRequest = z.input<typeof CreateTemplateVersionRequest>;

export const TemplateVersion = z.object({
  id: Uuid,
  template_id: Uuid.optional(),
  organization_id: Uuid,
  created_at: Timestamp,
  updated_at: Timestamp,
  name: z.string(),
  message: z.string(),
  readme: z.string(),
  job: ProvisionerJob,
  created_by: MinimalUser,
  archived: z.boolean(),
  warnings: z.array(z.string()).optional(),
});
export type TemplateVersion = z.infer<typeof TemplateVersion>;
export const TemplateVersions = z.array(TemplateVersion);

/** PATCH templateversions/{id}: 200 TemplateVersion */
export const PatchTemplateVersionRequest = z.object({
  name: TemplateVersionName.optional(),
  message: z.string().max(1_048_576).optional(),
});

export const TemplateVersionParameter = z.object({
  name: z.string(),
  display_name: z.string(),
  description: z.string(),
  description_plaintext: z.string(),
  type: z.enum(["string", "number", "bool", "list(string)"]),
  form_type: z.string(),
  mutable: z.boolean(),
  default_value: z.string(),
  icon: z.string(),
  options: z.array(
    z.object({ name: z.string(), description: z.string(), value: z.string(), icon: z.string() }),
  ),
  validation_error: z.string().optional(),
  validation_regex: z.string().optional(),
  validation_min: z.number().optional(),
  validation_max: z.number().optional(),
  validation_monotonic: z.enum(["increasing", "decreasing"]).optional(),
  required: z.boolean(),
  ephemeral: z.boolean(),
});
export type TemplateVersionParameter = z.infer<typeof TemplateVersionParameter>;
export const TemplateVersionParameters = z.array(TemplateVersionParameter);

/** A sensitive variable's `value` and `default_value` are always empty. */
export const TemplateVersionVariable = z.object({
  name: z.string(),
  description: z.string(),
  type: z.string(),
  value: z.string(),
  default_value: z.string(),
  required: z.boolean(),
  sensitive: z.boolean(),
});
export type TemplateVersionVariable = z.infer<typeof TemplateVersionVariable>;
export const TemplateVersionVariables = z.array(TemplateVersionVariable);

export const Preset = z.object({
  ID: Uuid,
  Name: z.string(),
  Parameters: z.array(z.object({ Name: z.string(), Value: z.string() })),
  Default: z.boolean(),
  Description: z.string(),
  Icon: z.string(),
});
export type Preset = z.infer<typeof Preset>;
export const Presets = z.array(Preset);

export const TemplateVersionExternalAuth = z.object({
  id: z.string(),
  type: z.string(),
  display_name: z.string(),
  display_icon: z.string(),
  authenticate_url: z.string(),
  authenticated: z.boolean(),
  optional: z.boolean().optional(),
});
export const TemplateVersionExternalAuths = z.array(TemplateVersionExternalAuth);

const TransitionStats = z.object({ P50: z.number().nullable(), P95: z.number().nullable() });

export const Template = z.object({
  id: Uuid,
  created_at: Timestamp,
  updated_at: Timestamp,
  organization_id: Uuid,
  organization_name: z.string(),
  organization_display_name: z.string(),
  organization_icon: z.string(),
  name: z.string(),
  display_name: z.string(),
  provisioner: z.literal("terraform"),
  active_version_id: Uuid,
  /** -1 = not counted yet. */
  active_user_count: z.number().int(),
  build_time_stats: z.record(z.string(), TransitionStats),
  description: z.string(),
  deprecated: z.boolean(),
  deprecation_message: z.string(),
  icon: z.string(),
  default_ttl_ms: z.number().int(),
  activity_bump_ms: z.number().int(),
  autostop_requirement: z.object({ days_of_week: z.array(z.string()), weeks: z.number().int() }),
  autostart_requirement: z.object({ days_of_week: z.array(z.string()) }),
  created_by_id: Uuid,
  created_by_name: z.string(),
  allow_user_autostart: z.boolean(),
  allow_user_autostop: z.boolean(),
  allow_user_cancel_workspace_jobs: z.boolean(),
  failure_ttl_ms: z.number().int(),
  time_til_dormant_ms: z.number().int(),
  time_til_dormant_autodelete_ms: z.number().int(),
  require_active_version: z.boolean(),
  max_port_share_level: z.enum(["owner", "authenticated", "organization", "public"]),
  cors_behavior: z.enum(["simple", "passthru"]),
  use_classic_parameter_flow: z.boolean(),
});
export type Template = z.infer<typeof Template>;
export const Templates = z.array(Template);

export const TemplatesQuery = Paging.extend({ q: z.string().max(1024).optional() });

/** 30 days, Coder's maximum for a default autostop. */
const Ttl = z
  .number()
  .int()
  .min(0)
  .max(30 * 24 * 3600_000);

/** POST organizations/{o}/templates: 201 Template | 404 version | 409 name taken */
export const CreateTemplateRequest = z.object({
  name: Name,
  display_name: DisplayName.default(""),
  description: z.string().max(128).default(""),
  icon: z.string().max(256).default(""),
  template_version_id: Uuid,
  default_ttl_ms: Ttl.optional(),
  activity_bump_ms: Ttl.optional(),
  allow_user_cancel_workspace_jobs: z.boolean().optional(),
  allow_user_autostart: z.boolean().optional(),
  allow_user_autostop: z.boolean().optional(),
  require_active_version: z.boolean().optional(),
});
export type CreateTemplateRequest = z.input<typeof CreateTemplateRequest>;

/** PATCH templates/{id}: 200 Template; absent fields stay | 409 name taken */
export const UpdateTemplateRequest = z.object({
  name: Name.optional(),
  display_name: DisplayName.optional(),
  description: z.string().max(128).optional(),
  icon: z.string().max(256).optional(),
  default_ttl_ms: Ttl.optional(),
  activity_bump_ms: Ttl.optional(),
  allow_user_cancel_workspace_jobs: z.boolean().optional(),
  allow_user_autostart: z.boolean().optional(),
  allow_user_autostop: z.boolean().optional(),
  require_active_version: z.boolean().optional(),
  deprecation_message: z.string().max(512).optional(),
});
export type UpdateTemplateRequest = z.infer<typeof UpdateTemplateRequest>;

/** PATCH templates/{id}/versions: 200 MessageBody. Makes version `id` the active one. */
export const UpdateActiveTemplateVersionRequest = z.object({ id: Uuid });
