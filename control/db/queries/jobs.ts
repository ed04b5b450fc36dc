import { randomUUID } from "node:crypto";
import type { Knex } from "knex";
import type { JobType } from "../../contract/jobs.ts";
import type { JobLogRow, JobRow } from "./rows.ts";
import { announce } from "./topics.ts";

export interface NewJob {
  organizationId: string;
  initiatorId: string;
  type: JobType;
  fileId: string;
  input?: JobRow["input"];
  /** Beside the implicit ones. */
  tags?: Record<string, string>;
  now: Date;
}

/** Inserts within the caller's transaction; daemons hear of it when that commits. @returns its id */
export async function insertJob(trx: Knex, job: NewJob): Promise<string> {
  const id = randomUUID();
  await trx("provisioner_jobs").insert({
    id,
    organization_id: job.organizationId,
    initiator_id: job.initiatorId,
    type: job.type,
    file_id: job.fileId,
    input: JSON.stringify(job.input ?? {}),
    tags: JSON.stringify({ scope: "organization", owner: "", ...job.tags }),
    created_at: job.now,
    updated_at: job.now,
  });
  await announce(trx, "provisioner_job_posted", id);
  return id;
}

/** A waiting job ends at once; a running one when its daemon has stopped. @returns false when it was over already */
export async function cancelJob(knex: Knex, id: string, now: Date): Promise<boolean> {
  return knex.transaction(async (trx) => {
    const count = await trx("provisioner_jobs")
      .where({ id })
      .whereNull("completed_at")
      .whereNull("canceled_at")
      .update({
        canceled_at: now,
        completed_at: trx.raw("case when started_at is null then ?::timestamptz end", [now]),
      });
    if (count > 0) await announce(trx, "provisioner_job", id);
    return count > 0;
  });
}

export interface JobView extends JobRow {
  /** 1 = next; both 0 when it isn't waiting. */
  queue_position: number;
  queue_size: number;
  template_version_id: string | null;
  workspace_build_id: string | null;
}

export async function jobsById(knex: Knex, ids: string[]): Promise<Map<string, JobView>> {
  const rows: Omit<JobView, "queue_position" | "queue_size">[] = await knex("provisioner_jobs as j")
    .leftJoin("workspace_builds as b", "b.job_id", "j.id")
    .leftJoin("template_versions as v", "v.job_id", "j.id")
    .whereIn("j.id", ids)
    .select("j.*", "b.id as workspace_build_id")
    .select({ template_version_id: knex.raw("coalesce(v.id, b.template_version_id)") });
  const queue = rows.some((row) => row.status === "pending") ? await waitingJobs(knex) : [];
  return new Map(
    rows.map((row) => {
      const place = queue.indexOf(row.id) + 1;
      return [row.id, { ...row, queue_position: place, queue_size: place > 0 ? queue.length : 0 }];
    }),
  );
}

/** Enough to tell where one stands; with more waiting than this the position shows as 0. */
const MAX_POSITIONS = 10_000;

function waitingJobs(knex: Knex): Promise<string[]> {
  return knex("provisioner_jobs")
    .whereNull("started_at")
    .whereNull("completed_at")
    .orderBy([{ column: "created_at" }, { column: "id" }])
    .limit(MAX_POSITIONS)
    .pluck("id");
}

/** @returns lines with ids above `after`, oldest first */
export function jobLogs(
  knex: Knex,
  jobId: string,
  { after = 0, before, limit }: { after?: number; before?: number; limit?: number } = {},
): Promise<JobLogRow[]> {
  return knex<JobLogRow>("provisioner_job_logs")
    .where({ job_id: jobId })
    .andWhere("id", ">", String(after))
    .modify((query) => {
      if (before) query.andWhere("id", "<", String(before));
      if (limit) query.limit(limit);
    })
    .orderBy("id");
}
