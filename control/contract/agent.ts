// What an agent and the control plane exchange over HTTP, under /api/v2/workspaceagents/me, authenticated by
// the agent's token in `Coder-Session-Token`. The mesh side (node keys, grants, relay map) is the
// coordinator's WebSocket, `/api/v2/mesh/coordinate`.
import * as z from "zod";

export const AGENT_LIFECYCLE_STATES = [
  "created",
  "starting",
  "ready",
  "start_timeout",
  "start_error",
  "shutting_down",
  "off",
  "shutdown_timeout",
  "shutdown_error",
] as const;
export const AgentLifecycleState = z.enum(AGENT_LIFECYCLE_STATES);
export type AgentLifecycleState = z.infer<typeof AgentLifecycleState>;

export const AgentScript = z.object({
  id: z.uuid(),
  log_source_id: z.uuid(),
  display_name: z.string(),
  script: z.string(),
  log_path: z.string(),
  cron: z.string(),
  run_on_start: z.boolean(),
  run_on_stop: z.boolean(),
  start_blocks_login: z.boolean(),
  /** 0 = no limit. */
  timeout_seconds: z.number().int().min(0),
});
export type AgentScript = z.infer<typeof AgentScript>;

/** GET manifest: 200 AgentManifest | 401 */
export const AgentManifest = z.object({
  agent_id: z.uuid(),
  agent_name: z.string(),
  workspace_id: z.uuid(),
  workspace_name: z.string(),
  owner_id: z.uuid(),
  owner_username: z.string(),
  directory: z.string(),
  environment_variables: z.record(z.string(), z.string()),
  motd_file: z.string(),
  startup_script_behavior: z.enum(["blocking", "non-blocking"]),
  scripts: z.array(AgentScript),
  disable_direct_connections: z.boolean(),
});
export type AgentManifest = z.infer<typeof AgentManifest>;

/** PATCH logs: 204 | 413 once the agent's log limit is reached (the agent then stops sending) */
export const AgentLogBatch = z.object({
  log_source_id: z.uuid(),
  logs: z
    .array(
      z.object({
        created_at: z.iso.datetime(),
        level: z.enum(["trace", "debug", "info", "warn", "error"]),
        // A program may print what the database can't keep; its log is worth more without than not at all.
        output: z
          .string()
          .max(64 * 1024)
          .overwrite((text) => text.replace(/[\u0000\ud800-\udfff]/gu, "")),
      }),
    )
    .max(1000),
});
export type AgentLogBatch = z.infer<typeof AgentLogBatch>;

/** POST lifecycle: 204 */
export const AgentLifecycleReport = z.object({ state: AgentLifecycleState, changed_at: z.iso.datetime() });
export type AgentLifecycleReport = z.infer<typeof AgentLifecycleReport>;

/** POST startup: 204. Said once per connect, before scripts run. */
export const AgentStartup = z.object({
  version: z.string().max(64),
  expanded_directory: z.string().max(4096),
  operating_system: z.string().max(32),
  architecture: z.string().max(32),
});
export type AgentStartup = z.infer<typeof AgentStartup>;
