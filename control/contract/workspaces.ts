import * as z from "zod";
import { AgentLifecycleState } from "./agent.ts";
import { Name, Paging, Timestamp, Uuid } from "./common.ts";
import { LogLevel, ProvisionerJob } from "./jobs.ts";
import { VariableValue } from "./templates.ts";

export const Transition = z.enum(["start", "stop", "delete"]);
export type Transition = z.infer<typeof Transition>;

export const BuildStatus = z.enum([
  "pending",
  "starting",
  "running",
  "stopping",
  "stopped",
  "failed",
  "canceling",
  "canceled",
  "deleting",
  "deleted",
]);
export type BuildStatus = z.infer<typeof BuildStatus>;

export const BuildReason = z.enum([
  "initiator",
  "autostart",
  "autostop",
  "dormancy",
  "dashboard",
  "cli",
  "ssh_connection",
  "vscode_connection",
  "jetbrains_connection",
]);
export type BuildReason = z.infer<typeof BuildReason>;

/** Value of a template parameter for one build. */
export const BuildParameter = VariableValue;
export type BuildParameter = z.infer<typeof BuildParameter>;
export const BuildParameters = z.array(BuildParameter);

export const WorkspaceApp = z.object({
  id: Uuid,
  slug: z.string(),
  display_name: z.string(),
  url: z.string(),
  external: z.boolean(),
  command: z.string().optional(),
  icon: z.string(),
  group: z.string().optional(),
  tooltip: z.string().optional(),
  subdomain: z.boolean(),
  subdomain_name: z.string().optional(),
  sharing_level: z.enum(["owner", "authenticated", "organization", "public"]),
  health: z.enum(["disabled", "initializing", "healthy", "unhealthy"]),
  healthcheck: z.object({ url: z.string(), interval: z.number().int(), threshold: z.number().int() }),
  hidden: z.boolean(),
  open_in: z.enum(["slim-window", "tab"]),
});
export type WorkspaceApp = z.infer<typeof WorkspaceApp>;

export const AgentStatus = z.enum(["connecting", "connected", "disconnected", "timeout"]);
export type AgentStatus = z.infer<typeof AgentStatus>;

export const AgentLogSource = z.object({
  workspace_agent_id: Uuid,
  id: Uuid,
  created_at: Timestamp,
  display_name: z.string(),
  icon: z.string(),
});
export type AgentLogSource = z.infer<typeof AgentLogSource>;

export const WorkspaceAgentScript = z.object({
  id: Uuid,
  log_source_id: Uuid,
  log_path: z.string(),
  script: z.string(),
  cron: z.string(),
  run_on_start: z.boolean(),
  run_on_stop: z.boolean(),
  start_blocks_login: z.boolean(),
  /** Nanoseconds, as Coder sends it. */
  timeout: z.number().int(),
  display_name: z.string(),
});
export type WorkspaceAgentScript = z.infer<typeof WorkspaceAgentScript>;

export const WorkspaceAgent = z.object({
  id: Uuid,
  parent_id: Uuid.nullable(),
  created_at: Timestamp,
  updated_at: Timestamp,
  first_connected_at: Timestamp.optional(),
  last_connected_at: Timestamp.optional(),
  disconnected_at: Timestamp.optional(),
  started_at: Timestamp.optional(),
  ready_at: Timestamp.optional(),
  status: AgentStatus,
  lifecycle_state: AgentLifecycleState,
  name: z.string(),
  resource_id: Uuid,
  instance_id: z.string().optional(),
  architecture: z.string(),
  environment_variables: z.record(z.string(), z.string()),
  operating_system: z.string(),
  logs_length: z.number().int(),
  logs_overflowed: z.boolean(),
  directory: z.string().optional(),
  expanded_directory: z.string().optional(),
  version: z.string(),
  api_version: z.string(),
  apps: z.array(WorkspaceApp),
  latency: z.record(z.string(), z.object({ preferred: z.boolean(), latency_ms: z.number() })).optional(),
  connection_timeout_seconds: z.number().int(),
  troubleshooting_url: z.string(),
  subsystems: z.array(z.string()),
  health: z.object({ healthy: z.boolean(), reason: z.string().optional() }),
  display_apps: z.array(z.string()),
  log_sources: z.array(AgentLogSource),
  scripts: z.array(WorkspaceAgentScript),
  startup_script_behavior: z.enum(["blocking", "non-blocking"]),
});
export type WorkspaceAgent = z.infer<typeof WorkspaceAgent>;

/** GET workspaceagents/{id}/logs: 200 array. With `follow`: one JSON array of new lines per WebSocket message. */
export const WorkspaceAgentLog = z.object({
  id: z.number().int(),
  created_at: Timestamp,
  output: z.string(),
  level: LogLevel,
  source_id: Uuid,
});
export type WorkspaceAgentLog = z.infer<typeof WorkspaceAgentLog>;
export const WorkspaceAgentLogs = z.array(WorkspaceAgentLog);

export const WorkspaceResource = z.object({
  id: Uuid,
  created_at: Timestamp,
  job_id: Uuid,
  workspace_transition: Transition,
  type: z.string(),
  name: z.string(),
  hide: z.boolean(),
  icon: z.string(),
  agents: z.array(WorkspaceAgent),
  metadata: z.array(z.object({ key: z.string(), value: z.string(), sensitive: z.boolean() })),
  daily_cost: z.number().int(),
});
export type WorkspaceResource = z.infer<typeof WorkspaceResource>;
export const WorkspaceResources = z.array(WorkspaceResource);

export const WorkspaceBuild = z.object({
  id: Uuid,
  created_at: Timestamp,
  updated_at: Timestamp,
  workspace_id: Uuid,
  workspace_name: z.string(),
  workspace_owner_id: Uuid,
  workspace_owner_name: z.string(),
  workspace_owner_avatar_url: z.string().optional(),
  template_version_id: Uuid,
  template_version_name: z.string(),
  build_number: z.number().int(),
  transition: Transition,
  initiator_id: Uuid,
  initiator_name: z.string(),
  job: ProvisionerJob,
  reason: BuildReason,
  resources: z.array(WorkspaceResource),
  deadline: Timestamp.nullable(),
  max_deadline: Timestamp.nullable(),
  status: BuildStatus,
  daily_cost: z.number().int(),
  template_version_preset_id: Uuid.nullable(),
});
export type WorkspaceBuild = z.infer<typeof WorkspaceBuild>;
export const WorkspaceBuilds = z.array(WorkspaceBuild);

export const Workspace = z.object({
  id: Uuid,
  created_at: Timestamp,
  updated_at: Timestamp,
  owner_id: Uuid,
  owner_name: z.string(),
  owner_avatar_url: z.string(),
  organization_id: Uuid,
  organization_name: z.string(),
  template_id: Uuid,
  template_name: z.string(),
  template_display_name: z.string(),
  template_icon: z.string(),
  template_allow_user_cancel_workspace_jobs: z.boolean(),
  template_active_version_id: Uuid,
  template_require_active_version: z.boolean(),
  template_use_classic_parameter_flow: z.boolean(),
  latest_build: WorkspaceBuild,
  latest_app_status: z.null(),
  outdated: z.boolean(),
  name: z.string(),
  autostart_schedule: z.string().optional(),
  ttl_ms: z.number().int().nullable(),
  last_used_at: Timestamp,
  deleting_at: Timestamp.nullable(),
  dormant_at: Timestamp.nullable(),
  health: z.object({ healthy: z.boolean(), failing_agents: z.array(Uuid) }),
  automatic_updates: z.enum(["always", "never"]),
  allow_renames: z.boolean(),
  favorite: z.boolean(),
  next_start_at: Timestamp.nullable(),
  is_prebuild: z.boolean(),
});
export type Workspace = z.infer<typeof Workspace>;

/** `q`: `owner:me name:dev template:docker status:running`, bare `name` or `owner/name`; unknown key → 400 */
export const WorkspacesQuery = Paging.extend({ q: z.string().max(1024).optional() });
export const WorkspacesResponse = z.object({ workspaces: z.array(Workspace), count: z.number().int() });
export type WorkspacesResponse = z.infer<typeof WorkspacesResponse>;

/** POST users/{u}/workspaces: 201 Workspace with its first build | 400 parameters | 404 template | 409 name taken */
export const CreateWorkspaceRequest = z
  .object({
    template_id: Uuid.optional(),
    template_version_id: Uuid.optional(),
    name: Name,
    autostart_schedule: z.string().max(256).optional(),
    ttl_ms: z.number().int().min(0).nullish(),
    rich_parameter_values: z.array(BuildParameter).max(200).default([]),
    automatic_updates: z.enum(["always", "never"]).default("never"),
    template_version_preset_id: Uuid.nullish(),
  })
  .refine((body) => (body.template_id === undefined) !== (body.template_version_id === undefined), {
    error: "exactly one of template_id and template_version_id is wanted",
    path: ["template_id"],
  });
export type CreateWorkspaceRequest = z.input<typeof CreateWorkspaceRequest>;

/** POST workspaces/{id}/builds: 201 WorkspaceBuild | 400 | 409 while another build is under way */
export const CreateWorkspaceBuildRequest = z.object({
  template_version_id: Uuid.optional(),
  transition: Transition,
  /** With transition delete: forget the workspace without destroying what Terraform made. Template admins only. */
  orphan: z.boolean().optional(),
  rich_parameter_values: z.array(BuildParameter).max(200).default([]),
  log_level: z.enum(["", "debug"]).optional(),
  template_version_preset_id: Uuid.nullish(),
  reason: BuildReason.optional(),
});
export type CreateWorkspaceBuildRequest = z.input<typeof CreateWorkspaceBuildRequest>;

/** PATCH workspaces/{id}: 204 | 409 name taken */
export const UpdateWorkspaceRequest = z.object({ name: Name.optional() });

/** GET users/{u}/workspace/{name}?include_deleted */
export const IncludeDeletedQuery = z.object({
  include_deleted: z
    .enum(["true", "false"])
    .transform((value) => value === "true")
    .optional(),
});
