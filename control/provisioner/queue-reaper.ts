// Jobs nobody will ever finish: a daemon that died in the middle, or a queue that nothing serves.
import type { Knex } from "knex";
import type { JobRow } from "../db/queries/rows.ts";
import { announce } from "../db/queries/topics.ts";
import { appendJobLog, IMPLICIT_TAGS } from "./queue.ts";

/** A running job without a sign of life for this long is dead: daemons say one every few seconds. */
export const HUNG_AFTER_MS = 5 * 60_000;
/** A job nobody took for this long. */
export const PENDING_AFTER_MS = 30 * 60_000;
export const REAP_EVERY_MS = 60_000;
/** One round's worth; the next takes the rest. */
const BATCH = 100;

export interface ReapOptions {
  /**
   * The database is ours alone and no daemon of ours runs yet (a start): whoever worked on a running job is gone, so
   * nobody has to wait for its silence to be long enough.
   */
  atStart?: boolean;
}

/** Fails every such job and says why, in the job and in its log. Safe on several replicas at once. @returns their ids */
export async function reapJobs(
  knex: Knex,
  now: Date,
  { atStart = false }: ReapOptions = {},
): Promise<string[]> {
  const before = (ms: number) => new Date(now.getTime() - ms);
  return knex.transaction(async (trx) => {
    const dead: JobRow[] = await trx("provisioner_jobs")
      .whereNull("completed_at")
      .andWhere((where) =>
        where
          .where((running) =>
            running
              .whereNotNull("started_at")
              .andWhere("updated_at", "<=", before(atStart ? 0 : HUNG_AFTER_MS)),
          )
          .orWhere((pending) =>
            pending.whereNull("started_at").andWhere("created_at", "<", before(PENDING_AFTER_MS)),
          ),
      )
      .orderBy("created_at")
      .limit(BATCH)
      .forUpdate()
      .skipLocked();
    for (const job of dead) {
      const { message, errorCode } = !job.started_at ? neverTaken(job) : atStart ? CUT_OFF : hung(job);
      await appendJobLog(
        trx,
        job.id,
        [
          {
            createdAt: now,
            source: "provisioner_daemon",
            level: "error",
            stage: "Giving up",
            output: message,
          },
        ],
        now,
      );
      await trx("provisioner_jobs")
        .where({ id: job.id })
        .update({
          started_at: job.started_at ?? now,
          completed_at: now,
          updated_at: now,
          error: message,
          error_code: errorCode,
        });
      await announce(trx, "provisioner_job", job.id);
      const build = await trx("workspace_builds").where({ job_id: job.id }).first<{ workspace_id: string }>();
      if (build) await announce(trx, "workspace", build.workspace_id);
    }
    return dead.map(({ id }) => id);
  });
}

const CUT_OFF = {
  errorCode: "ERR_JOB_CUT_OFF",
  message:
    "The server stopped while the job ran. What it had made so far may still exist. Look at its log, then start the " +
    "build again.",
};

const minutes = (ms: number): number => ms / 60_000;

function hung(job: JobRow): { message: string; errorCode: string } {
  return {
    errorCode: "ERR_JOB_HUNG",
    message:
      `The provisioner daemon "${job.worker_name}" has not been heard of for ${minutes(HUNG_AFTER_MS)} minutes, ` +
      "so the job was given up. It may have been killed or lost its network; what it had made so far may still " +
      "exist. Look at its log, then start the build again.",
  };
}

function neverTaken(job: JobRow): { message: string; errorCode: string } {
  const own = Object.entries(job.tags).filter(([key]) => !(key in IMPLICIT_TAGS));
  const tags = own.map(([key, value]) => `${key}=${value}`).join(", ");
  return {
    errorCode: "ERR_JOB_NOT_TAKEN",
    message:
      `No provisioner daemon took the job within ${minutes(PENDING_AFTER_MS)} minutes. ` +
      (tags
        ? `It needs a daemon with the tags ${tags}: start one, or remove the tags.`
        : "Start one, or raise CODER_PROVISIONER_DAEMONS if all of them are busy."),
  };
}
