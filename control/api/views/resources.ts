import type { WorkspaceAgent, WorkspaceApp, WorkspaceResource } from "../../contract/workspaces.ts";
import type { AgentTree, ResourceTree } from "../../db/queries/resources.ts";
import type { AppRow } from "../../db/queries/rows.ts";
import { agentHealth, agentStatus } from "../../templates/status.ts";
import { time, timeIfAny } from "./jobs.ts";

export function resourceView(resource: ResourceTree, now: Date): WorkspaceResource {
  return {
    id: resource.id,
    created_at: time(resource.created_at),
    job_id: resource.job_id,
    workspace_transition: resource.transition,
    type: resource.type,
    name: resource.name,
    hide: resource.hide,
    icon: resource.icon,
    agents: resource.agents.map((agent) => agentView(agent, now)),
    // A sensitive value is for the template's author to use, not to show.
    metadata: resource.metadata.map((item) => (item.sensitive ? { ...item, value: "" } : item)),
    daily_cost: resource.daily_cost,
  };
}

export function agentView(agent: AgentTree, now: Date): WorkspaceAgent {
  const status = agentStatus(agent, now.getTime());
  return {
    id: agent.id,
    parent_id: null,
    created_at: time(agent.created_at),
    updated_at: time(agent.updated_at),
    first_connected_at: timeIfAny(agent.first_connected_at),
    last_connected_at: timeIfAny(agent.last_connected_at),
    disconnected_at: timeIfAny(agent.disconnected_at),
    started_at: timeIfAny(agent.started_at),
    ready_at: timeIfAny(agent.ready_at),
    status,
    lifecycle_state: agent.lifecycle_state,
    name: agent.name,
    resource_id: agent.resource_id,
    ...(agent.instance_id ? { instance_id: agent.instance_id } : {}),
    architecture: agent.architecture,
    environment_variables: agent.env,
    operating_system: agent.operating_system,
    logs_length: agent.logs_bytes,
    logs_overflowed: agent.logs_overflowed,
    directory: agent.directory,
    expanded_directory: agent.expanded_directory,
    version: agent.version,
    api_version: "1.0",
    apps: agent.apps.map(appView),
    connection_timeout_seconds: agent.connection_timeout_seconds,
    troubleshooting_url: agent.troubleshooting_url,
    subsystems: [],
    health: agentHealth(status, agent.lifecycle_state),
    display_apps: agent.display_apps,
    log_sources: agent.logSources.map((source) => ({
      workspace_agent_id: source.agent_id,
      id: source.id,
      created_at: time(source.created_at),
      display_name: source.display_name,
      icon: source.icon,
    })),
    scripts: agent.scripts.map((script) => ({
      id: script.id,
      log_source_id: script.log_source_id,
      log_path: script.log_path,
      script: script.script,
      cron: script.cron,
      run_on_start: script.run_on_start,
      run_on_stop: script.run_on_stop,
      start_blocks_login: script.start_blocks_login,
      timeout: script.timeout_seconds * 1e9,
      display_name: script.display_name,
    })),
    startup_script_behavior: agent.startup_script_behavior,
  };
}

function appView({ id, slug, health, definition: app }: AppRow): WorkspaceApp {
  return {
    id,
    slug,
    display_name: app.displayName,
    url: app.url,
    external: app.external,
    ...(app.command ? { command: app.command } : {}),
    icon: app.icon,
    group: app.group,
    tooltip: app.tooltip,
    subdomain: app.subdomain,
    sharing_level: app.sharingLevel,
    health,
    healthcheck: {
      url: app.healthcheck?.url ?? "",
      interval: app.healthcheck?.intervalSeconds ?? 0,
      threshold: app.healthcheck?.threshold ?? 0,
    },
    hidden: app.hidden,
    open_in: app.openIn,
  };
}
