import type { Knex } from "knex";

// Conventions: ids are UUIDs made by the server; instants are timestamptz; a thing people delete keeps its row
// (`deleted`), so that builds and the audit log still resolve, and its name is unique among the living only.
// Whatever two requests could race for is a unique index here, never a check in code.

const PEOPLE = `
create table deployment (
  singleton boolean primary key default true check (singleton),
  id uuid not null default gen_random_uuid(),
  created_at timestamptz not null default now()
);
insert into deployment default values;

create table organizations (
  id uuid primary key,
  name text not null,
  display_name text not null,
  description text not null default '',
  icon text not null default '',
  is_default boolean not null default false,
  deleted boolean not null default false,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index organizations_name_key on organizations (lower(name)) where not deleted;
create unique index organizations_default_key on organizations (is_default) where is_default;
insert into organizations (id, name, display_name, description, is_default)
  values (gen_random_uuid(), 'coder', 'Coder', 'Builtin default organization.', true);

create table users (
  id uuid primary key,
  username text not null,
  email text not null,
  name text not null default '',
  avatar_url text not null default '',
  -- PHC string; null for people who don't sign in with a password
  password_hash text,
  status text not null check (status in ('active', 'dormant', 'suspended')),
  login_type text not null check (login_type in ('password', 'github', 'oidc', 'token', 'none')),
  -- site roles besides the implied 'member'
  roles text[] not null default '{}',
  is_service_account boolean not null default false,
  deleted boolean not null default false,
  last_seen_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index users_username_key on users (lower(username)) where not deleted;
create unique index users_email_key on users (lower(email)) where not deleted and email <> '';

create table organization_members (
  organization_id uuid not null references organizations on delete cascade,
  user_id uuid not null references users on delete cascade,
  roles text[] not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (organization_id, user_id)
);
create index organization_members_user on organization_members (user_id);

create table api_keys (
  id text primary key,
  -- SHA-256 of the secret half of the token
  secret_hash bytea not null,
  user_id uuid not null references users on delete cascade,
  login_type text not null,
  scope text not null check (scope in ('all', 'application_connect')),
  -- '' for a session
  token_name text not null default '',
  lifetime_seconds bigint not null,
  last_used_at timestamptz not null,
  expires_at timestamptz not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index api_keys_name_key on api_keys (user_id, token_name) where token_name <> '';
create index api_keys_user on api_keys (user_id);
create index api_keys_expires on api_keys (expires_at);

-- Keys the coordinator signs grants and node records with.
create table signing_keys (
  id text primary key,
  algorithm text not null check (algorithm = 'ed25519'),
  public_key bytea not null,
  private_key bytea not null,
  created_at timestamptz not null default now(),
  -- still verified until then, no longer signed with
  retired_at timestamptz
);

create table audit_logs (
  id uuid primary key,
  time timestamptz not null,
  organization_id uuid,
  user_id uuid,
  ip inet,
  user_agent text,
  resource_type text not null,
  resource_id uuid not null,
  resource_target text not null default '',
  resource_icon text not null default '',
  action text not null,
  diff jsonb not null default '{}',
  status_code integer not null,
  additional_fields jsonb not null default '{}',
  request_id uuid
);
create index audit_logs_time on audit_logs (time desc);
`;

const TEMPLATES = `
create table files (
  id uuid primary key,
  -- hex SHA-256 of data
  hash text not null,
  created_by uuid not null references users,
  mime_type text not null,
  data bytea not null,
  created_at timestamptz not null default now()
);
create unique index files_hash_key on files (hash, created_by);

create table provisioner_daemons (
  id uuid primary key,
  organization_id uuid not null references organizations,
  name text not null,
  tags jsonb not null,
  created_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now()
);

create table provisioner_jobs (
  id uuid primary key,
  organization_id uuid not null references organizations,
  initiator_id uuid not null references users,
  type text not null check (type in ('template_version_import', 'workspace_build', 'template_version_dry_run')),
  file_id uuid not null references files,
  -- user_variable_values of an import
  input jsonb not null default '{}',
  tags jsonb not null,
  worker_id uuid,
  worker_name text not null default '',
  created_at timestamptz not null default now(),
  -- the last sign of life of the daemon
  updated_at timestamptz not null default now(),
  started_at timestamptz,
  canceled_at timestamptz,
  completed_at timestamptz,
  error text not null default '',
  error_code text not null default '',
  logs_bytes integer not null default 0,
  logs_overflowed boolean not null default false,
  status text not null generated always as (
    case
      when completed_at is not null and canceled_at is not null then 'canceled'
      when completed_at is not null and error <> '' then 'failed'
      when completed_at is not null then 'succeeded'
      when canceled_at is not null then 'canceling'
      when started_at is not null then 'running'
      else 'pending'
    end
  ) stored
);
create index provisioner_jobs_pending on provisioner_jobs (created_at, id) where started_at is null and completed_at is null;
create index provisioner_jobs_running on provisioner_jobs (updated_at) where started_at is not null and completed_at is null;

create table provisioner_job_logs (
  id bigint primary key generated always as identity,
  job_id uuid not null references provisioner_jobs on delete cascade,
  created_at timestamptz not null,
  source text not null,
  level text not null,
  stage text not null,
  output text not null
);
create index provisioner_job_logs_job on provisioner_job_logs (job_id, id);

create table templates (
  id uuid primary key,
  organization_id uuid not null references organizations,
  name text not null,
  display_name text not null default '',
  description text not null default '',
  icon text not null default '',
  active_version_id uuid not null,
  created_by uuid not null references users,
  default_ttl_ms bigint not null default 0,
  activity_bump_ms bigint not null default 3600000,
  failure_ttl_ms bigint not null default 0,
  time_til_dormant_ms bigint not null default 0,
  time_til_dormant_autodelete_ms bigint not null default 0,
  allow_user_autostart boolean not null default true,
  allow_user_autostop boolean not null default true,
  allow_user_cancel_workspace_jobs boolean not null default true,
  require_active_version boolean not null default false,
  deprecation_message text not null default '',
  deleted boolean not null default false,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index templates_name_key on templates (organization_id, lower(name)) where not deleted;

create table template_versions (
  id uuid primary key,
  -- null until a template is made of it
  template_id uuid references templates,
  organization_id uuid not null references organizations,
  name text not null,
  message text not null default '',
  readme text not null default '',
  job_id uuid not null unique references provisioner_jobs,
  created_by uuid not null references users,
  archived boolean not null default false,
  external_auth jsonb not null default '[]',
  workspace_tags jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index template_versions_name_key on template_versions (template_id, lower(name));
alter table templates add constraint templates_active_version foreign key (active_version_id)
  references template_versions deferrable initially deferred;

create table template_version_parameters (
  template_version_id uuid not null references template_versions on delete cascade,
  name text not null,
  position integer not null,
  -- a TemplateParameter of provisioner/protocol.ts
  definition jsonb not null,
  primary key (template_version_id, name)
);

create table template_version_variables (
  template_version_id uuid not null references template_versions on delete cascade,
  name text not null,
  position integer not null,
  description text not null,
  type text not null,
  value text not null,
  default_value text not null,
  required boolean not null,
  sensitive boolean not null,
  primary key (template_version_id, name)
);

create table template_version_presets (
  id uuid primary key,
  template_version_id uuid not null references template_versions on delete cascade,
  name text not null,
  description text not null,
  icon text not null,
  is_default boolean not null,
  position integer not null,
  -- [{name, value}]
  parameters jsonb not null
);
create unique index template_version_presets_name_key on template_version_presets (template_version_id, name);
`;

const WORKSPACES = `
create table workspaces (
  id uuid primary key,
  owner_id uuid not null references users,
  organization_id uuid not null references organizations,
  template_id uuid not null references templates,
  name text not null,
  -- written with each new build, in its transaction: lists need no search for the newest
  latest_build_id uuid not null,
  autostart_schedule text,
  ttl_ms bigint,
  automatic_updates text not null default 'never' check (automatic_updates in ('always', 'never')),
  last_used_at timestamptz not null default now(),
  dormant_at timestamptz,
  deleting_at timestamptz,
  deleted boolean not null default false,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index workspaces_name_key on workspaces (owner_id, lower(name)) where not deleted;
create index workspaces_template on workspaces (template_id) where not deleted;

create table workspace_builds (
  id uuid primary key,
  workspace_id uuid not null references workspaces deferrable initially deferred,
  template_version_id uuid not null references template_versions,
  build_number integer not null,
  transition text not null check (transition in ('start', 'stop', 'delete')),
  initiator_id uuid not null references users,
  job_id uuid not null unique references provisioner_jobs,
  reason text not null,
  template_version_preset_id uuid references template_version_presets,
  -- Terraform's, after this build; begins as the state of the build before
  state bytea,
  deadline timestamptz,
  max_deadline timestamptz,
  daily_cost integer not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index workspace_builds_number_key on workspace_builds (workspace_id, build_number);
create index workspace_builds_version on workspace_builds (template_version_id);
alter table workspaces add constraint workspaces_latest_build foreign key (latest_build_id)
  references workspace_builds deferrable initially deferred;

create table workspace_build_parameters (
  workspace_build_id uuid not null references workspace_builds on delete cascade,
  name text not null,
  value text not null,
  primary key (workspace_build_id, name)
);

create table workspace_resources (
  id uuid primary key,
  job_id uuid not null references provisioner_jobs on delete cascade,
  transition text not null check (transition in ('start', 'stop', 'delete')),
  type text not null,
  name text not null,
  hide boolean not null,
  icon text not null,
  instance_type text not null,
  daily_cost integer not null,
  -- [{key, value, sensitive}]
  metadata jsonb not null,
  position integer not null,
  created_at timestamptz not null default now()
);
create index workspace_resources_job on workspace_resources (job_id);

create table workspace_agents (
  id uuid primary key,
  resource_id uuid not null references workspace_resources on delete cascade,
  name text not null,
  -- SHA-256 of the token; null for a template's plan and for cloud identity. Not unique: a token that
  -- Terraform keeps over several builds belongs to the agent of the newest.
  token_hash bytea,
  instance_id text,
  operating_system text not null,
  architecture text not null,
  directory text not null,
  expanded_directory text not null default '',
  env jsonb not null,
  motd_file text not null,
  troubleshooting_url text not null,
  connection_timeout_seconds integer not null,
  startup_script_behavior text not null,
  api_key_scope text not null,
  display_order integer not null,
  display_apps text[] not null,
  -- definitions of the metadata scripts
  metadata jsonb not null,
  version text not null default '',
  lifecycle_state text not null default 'created',
  started_at timestamptz,
  ready_at timestamptz,
  first_connected_at timestamptz,
  last_connected_at timestamptz,
  disconnected_at timestamptz,
  logs_bytes integer not null default 0,
  logs_overflowed boolean not null default false,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index workspace_agents_resource on workspace_agents (resource_id);
create index workspace_agents_token on workspace_agents (token_hash) where token_hash is not null;
create index workspace_agents_instance on workspace_agents (instance_id) where instance_id is not null;

create table workspace_agent_log_sources (
  id uuid primary key,
  agent_id uuid not null references workspace_agents on delete cascade,
  display_name text not null,
  icon text not null,
  created_at timestamptz not null default now()
);
create index workspace_agent_log_sources_agent on workspace_agent_log_sources (agent_id);

create table workspace_agent_scripts (
  id uuid primary key,
  agent_id uuid not null references workspace_agents on delete cascade,
  log_source_id uuid not null references workspace_agent_log_sources on delete cascade,
  position integer not null,
  display_name text not null,
  icon text not null,
  script text not null,
  log_path text not null,
  cron text not null,
  run_on_start boolean not null,
  run_on_stop boolean not null,
  start_blocks_login boolean not null,
  timeout_seconds integer not null
);
create index workspace_agent_scripts_agent on workspace_agent_scripts (agent_id);

create table workspace_apps (
  id uuid primary key,
  agent_id uuid not null references workspace_agents on delete cascade,
  slug text not null,
  health text not null,
  display_order integer not null,
  -- a ProvisionedApp of provisioner/protocol.ts
  definition jsonb not null
);
create unique index workspace_apps_slug_key on workspace_apps (agent_id, slug);

create table workspace_agent_logs (
  id bigint primary key generated always as identity,
  agent_id uuid not null references workspace_agents on delete cascade,
  log_source_id uuid not null,
  created_at timestamptz not null,
  level text not null,
  output text not null
);
create index workspace_agent_logs_agent on workspace_agent_logs (agent_id, id);
`;

export async function initial(knex: Knex): Promise<void> {
  for (const sql of [PEOPLE, TEMPLATES, WORKSPACES]) await knex.raw(sql);
}
