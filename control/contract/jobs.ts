import * as z from "zod";
import { Timestamp, Uuid } from "./common.ts";

export const JobStatus = z.enum(["pending", "running", "succeeded", "canceling", "canceled", "failed"]);
export type JobStatus = z.infer<typeof JobStatus>;
export const JobType = z.enum(["template_version_import", "workspace_build", "template_version_dry_run"]);
export type JobType = z.infer<typeof JobType>;

export const ProvisionerJob = z.object({
  id: Uuid,
  created_at: Timestamp,
  started_at: Timestamp.optional(),
  completed_at: Timestamp.optional(),
  /** When cancel was asked for; the job may still be running. */
  canceled_at: Timestamp.optional(),
  error: z.string().optional(),
  /** `REQUIRED_TEMPLATE_VARIABLES` or one of our `ERR_...`. */
  error_code: z.string().optional(),
  status: JobStatus,
  worker_id: Uuid.optional(),
  worker_name: z.string(),
  file_id: Uuid,
  tags: z.record(z.string(), z.string()),
  /** 1 = next; 0 when it isn't waiting. */
  queue_position: z.number().int(),
  queue_size: z.number().int(),
  organization_id: Uuid,
  initiator_id: Uuid,
  type: JobType,
  input: z.object({
    template_version_id: Uuid.optional(),
    workspace_build_id: Uuid.optional(),
    error: z.string().optional(),
  }),
  logs_overflowed: z.boolean(),
});
export type ProvisionerJob = z.infer<typeof ProvisionerJob>;

export const LogLevel = z.enum(["trace", "debug", "info", "warn", "error"]);
export type LogLevel = z.infer<typeof LogLevel>;

export const ProvisionerJobLog = z.object({
  id: z.number().int(),
  created_at: Timestamp,
  log_source: z.enum(["provisioner_daemon", "provisioner"]),
  log_level: LogLevel,
  stage: z.string(),
  output: z.string(),
});
export type ProvisionerJobLog = z.infer<typeof ProvisionerJobLog>;
export const ProvisionerJobLogs = z.array(ProvisionerJobLog);

/** A flag in a query: present without a value, or "true", or "1". */
export const QueryFlag = z
  .enum(["", "true", "false", "1", "0"])
  .transform((value) => value === "" || value === "true" || value === "1");

/**
 * GET .../logs: 200, an array, oldest first, ids above `after`.
 * With `follow` (a WebSocket): one text message per line, what exists first; closed with 1000 once the job has
 * completed and its last line was sent.
 */
export const LogsQuery = z.object({
  follow: QueryFlag.optional(),
  after: z.coerce.number().int().min(-1).optional(),
  before: z.coerce.number().int().min(0).optional(),
});

/** One-way WebSocket (`.../watch-ws`): text messages of this shape. */
export const ServerSentEvent = z.object({ type: z.enum(["data", "ping", "error"]), data: z.unknown() });
export type ServerSentEvent = z.infer<typeof ServerSentEvent>;
