// Rows as the driver returns them: timestamptz = Date, jsonb = parsed, bytea = Buffer, bigint = decimal text.

import type { AgentLifecycleState } from "../../contract/agent.ts";
import type { JobStatus, JobType } from "../../contract/jobs.ts";
import type { LoginType, UserStatus } from "../../contract/users.ts";
import type { BuildReason, Transition } from "../../contract/workspaces.ts";
import type {
  LogLevel,
  LogSource,
  ProvisionedApp,
  RichParameterValue,
  TemplateParameter,
  TemplateVariableValue,
} from "../../provisioner/protocol.ts";

export interface OrganizationRow {
  id: string;
  name: string;
  display_name: string;
  description: string;
  icon: string;
  is_default: boolean;
  created_at: Date;
  updated_at: Date;
}

export interface UserRow {
  id: string;
  username: string;
  email: string;
  name: string;
  avatar_url: string;
  password_hash: string | null;
  status: UserStatus;
  login_type: LoginType;
  roles: string[];
  is_service_account: boolean;
  deleted: boolean;
  last_seen_at: Date | null;
  created_at: Date;
  updated_at: Date;
}

export interface ApiKeyRow {
  id: string;
  secret_hash: Buffer;
  user_id: string;
  login_type: LoginType;
  scope: "all" | "application_connect";
  token_name: string;
  lifetime_seconds: string;
  last_used_at: Date;
  expires_at: Date;
  created_at: Date;
  updated_at: Date;
}

export interface JobRow {
  id: string;
  organization_id: string;
  initiator_id: string;
  type: JobType;
  file_id: string;
  input: { user_variable_values?: TemplateVariableValue[] };
  tags: Record<string, string>;
  worker_id: string | null;
  worker_name: string;
  created_at: Date;
  updated_at: Date;
  started_at: Date | null;
  canceled_at: Date | null;
  completed_at: Date | null;
  error: string;
  error_code: string;
  logs_bytes: number;
  logs_overflowed: boolean;
  status: JobStatus;
}

export interface JobLogRow {
  id: string;
  job_id: string;
  created_at: Date;
  source: LogSource;
  level: LogLevel;
  stage: string;
  output: string;
}

export interface TemplateRow {
  id: string;
  organization_id: string;
  name: string;
  display_name: string;
  description: string;
  icon: string;
  active_version_id: string;
  created_by: string;
  default_ttl_ms: string;
  activity_bump_ms: string;
  failure_ttl_ms: string;
  time_til_dormant_ms: string;
  time_til_dormant_autodelete_ms: string;
  allow_user_autostart: boolean;
  allow_user_autostop: boolean;
  allow_user_cancel_workspace_jobs: boolean;
  require_active_version: boolean;
  deprecation_message: string;
  deleted: boolean;
  created_at: Date;
  updated_at: Date;
}

export interface TemplateVersionRow {
  id: string;
  template_id: string | null;
  organization_id: string;
  name: string;
  message: string;
  readme: string;
  job_id: string;
  created_by: string;
  archived: boolean;
  external_auth: { id: string; optional: boolean }[];
  workspace_tags: Record<string, string>;
  created_at: Date;
  updated_at: Date;
}

export interface ParameterRow {
  template_version_id: string;
  name: string;
  position: number;
  definition: TemplateParameter;
}

export interface VariableRow {
  template_version_id: string;
  name: string;
  position: number;
  description: string;
  type: string;
  value: string;
  default_value: string;
  required: boolean;
  sensitive: boolean;
}

export interface PresetRow {
  id: string;
  template_version_id: string;
  name: string;
  description: string;
  icon: string;
  is_default: boolean;
  position: number;
  parameters: RichParameterValue[];
}

export interface WorkspaceRow {
  id: string;
  owner_id: string;
  organization_id: string;
  template_id: string;
  name: string;
  latest_build_id: string;
  autostart_schedule: string | null;
  ttl_ms: string | null;
  automatic_updates: "always" | "never";
  last_used_at: Date;
  dormant_at: Date | null;
  deleting_at: Date | null;
  deleted: boolean;
  created_at: Date;
  updated_at: Date;
}

/** Without `state`: read that by itself, it may be megabytes. */
export interface BuildRow {
  id: string;
  workspace_id: string;
  template_version_id: string;
  build_number: number;
  transition: Transition;
  initiator_id: string;
  job_id: string;
  reason: BuildReason;
  template_version_preset_id: string | null;
  deadline: Date | null;
  max_deadline: Date | null;
  daily_cost: number;
  created_at: Date;
  updated_at: Date;
}

export interface ResourceRow {
  id: string;
  job_id: string;
  transition: Transition;
  type: string;
  name: string;
  hide: boolean;
  icon: string;
  instance_type: string;
  daily_cost: number;
  metadata: { key: string; value: string; sensitive: boolean }[];
  position: number;
  created_at: Date;
}

export interface AgentRow {
  id: string;
  resource_id: string;
  name: string;
  token_hash: Buffer | null;
  instance_id: string | null;
  operating_system: string;
  architecture: string;
  directory: string;
  expanded_directory: string;
  env: Record<string, string>;
  motd_file: string;
  troubleshooting_url: string;
  connection_timeout_seconds: number;
  startup_script_behavior: "blocking" | "non-blocking";
  api_key_scope: string;
  display_order: number;
  display_apps: string[];
  version: string;
  lifecycle_state: AgentLifecycleState;
  started_at: Date | null;
  ready_at: Date | null;
  first_connected_at: Date | null;
  last_connected_at: Date | null;
  disconnected_at: Date | null;
  logs_bytes: number;
  logs_overflowed: boolean;
  created_at: Date;
  updated_at: Date;
}

export interface LogSourceRow {
  id: string;
  agent_id: string;
  display_name: string;
  icon: string;
  created_at: Date;
}

export interface ScriptRow {
  id: string;
  agent_id: string;
  log_source_id: string;
  position: number;
  display_name: string;
  icon: string;
  script: string;
  log_path: string;
  cron: string;
  run_on_start: boolean;
  run_on_stop: boolean;
  start_blocks_login: boolean;
  timeout_seconds: number;
}

export interface AppRow {
  id: string;
  agent_id: string;
  slug: string;
  health: "disabled" | "initializing" | "healthy" | "unhealthy";
  display_order: number;
  definition: ProvisionedApp;
}

export interface AgentLogRow {
  id: string;
  agent_id: string;
  log_source_id: string;
  created_at: Date;
  level: LogLevel;
  output: string;
}
