import type { ProvisionerJob, ProvisionerJobLog } from "../../contract/jobs.ts";
import type { JobView } from "../../db/queries/jobs.ts";
import type { JobLogRow } from "../../db/queries/rows.ts";

export const time = (date: Date): string => date.toISOString();
export const timeOrNull = (date: Date | null): string | null => date && time(date);
export const timeIfAny = (date: Date | null): string | undefined => (date ? time(date) : undefined);

export function jobView(job: JobView): ProvisionerJob {
  return {
    id: job.id,
    created_at: time(job.created_at),
    started_at: timeIfAny(job.started_at),
    completed_at: timeIfAny(job.completed_at),
    canceled_at: timeIfAny(job.canceled_at),
    ...(job.error ? { error: job.error } : {}),
    ...(job.error_code ? { error_code: job.error_code } : {}),
    status: job.status,
    ...(job.worker_id ? { worker_id: job.worker_id } : {}),
    worker_name: job.worker_name,
    file_id: job.file_id,
    tags: job.tags,
    queue_position: job.queue_position,
    queue_size: job.queue_size,
    organization_id: job.organization_id,
    initiator_id: job.initiator_id,
    type: job.type,
    input: {
      ...(job.template_version_id ? { template_version_id: job.template_version_id } : {}),
      ...(job.workspace_build_id ? { workspace_build_id: job.workspace_build_id } : {}),
    },
    logs_overflowed: job.logs_overflowed,
  };
}

export function jobLogView(line: JobLogRow): ProvisionerJobLog {
  return {
    id: Number(line.id),
    created_at: time(line.created_at),
    log_source: line.source,
    log_level: line.level,
    stage: line.stage,
    output: line.output,
  };
}
