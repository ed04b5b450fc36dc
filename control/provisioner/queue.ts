// The job queue: rows in Postgres, taken with `for update skip locked`, so that any number of daemons on any
// number of replicas share it and none waits for another. LISTEN wakes daemons and watchers; both also poll.
import type { Knex } from "knex";
import { MeshError } from "../../mesh/wire/errors.ts";
import { errorText } from "../db/queries/error-text.ts";
import type { JobRow } from "../db/queries/rows.ts";
import { announce, type Topics } from "../db/queries/topics.ts";
import type { Job, JobFailure, JobLog, JobQueue, JobResult } from "./protocol.ts";
import { loadPayload } from "./queue-payload.ts";
import { storeBuild, storeImport } from "./queue-result.ts";

/** Of one job's log; later lines are dropped and the job says so (`logs_overflowed`). */
export const MAX_JOB_LOG_BYTES = 1 << 20;
/** Of one line; the rest of it is cut off. */
export const MAX_LOG_LINE_CHARS = 16 * 1024;

/** Every job and daemon carries these two; a job with no others runs only on a daemon with no others. */
export const IMPLICIT_TAGS = { scope: "organization", owner: "" };

export class QueueError extends MeshError {
  readonly code: "ERR_JOB_NOT_FOUND" | "ERR_JOB_NOT_RUNNING" | "ERR_JOB_RESULT";
  constructor(code: QueueError["code"], message: string) {
    super(message);
    this.code = code;
  }
}

export interface QueueOptions {
  knex: Knex;
  /** Started with "provisioner_job_posted". */
  topics: Topics;
  /** Read for each job: the server may only know it once it listens. */
  coderUrl: () => string;
  now?: () => Date;
}

export class PostgresJobQueue implements JobQueue {
  #knex: Knex;
  #topics: Topics;
  #coderUrl: () => string;
  #now: () => Date;
  constructor({ knex, topics, coderUrl, now = () => new Date() }: QueueOptions) {
    this.#knex = knex;
    this.#topics = topics;
    this.#coderUrl = coderUrl;
    this.#now = now;
  }

  async acquire(daemon: Parameters<JobQueue["acquire"]>[0], signal: AbortSignal): Promise<Job | undefined> {
    const waiter = this.#topics.waiter([["provisioner_job_posted", "*"]]);
    try {
      while (!signal.aborted) {
        const job = await this.#take(daemon);
        if (job === "unpreparable") continue;
        if (job && signal.aborted) await this.#giveBack(job.id);
        else if (job) return job;
        else await waiter.next(signal);
      }
      return undefined;
    } finally {
      waiter.close();
    }
  }

  /** @returns "unpreparable" when the next job was failed for its own data's sake: another may wait behind it */
  async #take(daemon: Parameters<JobQueue["acquire"]>[0]): Promise<Job | "unpreparable" | undefined> {
    const now = this.#now();
    const tags = JSON.stringify({ ...IMPLICIT_TAGS, ...daemon.tags });
    const implicit = JSON.stringify(IMPLICIT_TAGS);
    await this.#knex.raw(
      `insert into provisioner_daemons (id, organization_id, name, tags, created_at, last_seen_at)
       select ?, id, ?, ?::jsonb, ?, ? from organizations where is_default
       on conflict (id) do update set name = excluded.name, tags = excluded.tags, last_seen_at = excluded.last_seen_at`,
      [daemon.id, daemon.name, tags, now, now],
    );
    let taken: JobRow | undefined;
    try {
      return await this.#knex.transaction(async (trx) => {
        const { rows } = await trx.raw<{ rows: JobRow[] }>(
          `update provisioner_jobs set started_at = ?, updated_at = ?, worker_id = ?, worker_name = ?
           where id = (
             select id from provisioner_jobs
             where started_at is null and completed_at is null
               and case when tags = ?::jsonb then ?::jsonb = ?::jsonb else tags <@ ?::jsonb end
             order by created_at, id limit 1 for update skip locked
           ) returning *`,
          [now, now, daemon.id, daemon.name, implicit, tags, implicit, tags],
        );
        taken = rows[0];
        if (!taken) return undefined;
        const job = await loadPayload(trx, taken, { coderUrl: this.#coderUrl(), now });
        await announceJob(trx, taken.id);
        return job;
      });
    } catch (error) {
      // With the job's row read, only its own data can be at fault: were it left waiting, it would block the rest.
      if (!taken || isConnectionTrouble(error)) throw error;
      await this.#knex("provisioner_jobs")
        .where({ id: taken.id })
        .whereNull("completed_at")
        .update({
          started_at: now,
          completed_at: now,
          updated_at: now,
          error: `The job can't be prepared: ${errorText(error)}`,
          error_code: "ERR_JOB_PAYLOAD",
        });
      await announceJob(this.#knex, taken.id);
      return "unpreparable";
    }
  }

  /** The daemon went away while the job was being taken: the next one gets it. */
  async #giveBack(jobId: string): Promise<void> {
    await this.#knex("provisioner_jobs")
      .where({ id: jobId })
      .whereNull("completed_at")
      .update({ started_at: null, worker_id: null, worker_name: "" });
    await announce(this.#knex, "provisioner_job_posted", jobId);
  }

  async log(jobId: string, lines: JobLog[]): Promise<void> {
    if (lines.length === 0) return;
    await this.#knex.transaction(async (trx) => appendJobLog(trx, jobId, lines, this.#now()));
  }

  async heartbeat(jobId: string): Promise<{ canceled: boolean }> {
    const [job]: Pick<JobRow, "canceled_at">[] = await this.#knex("provisioner_jobs")
      .where({ id: jobId })
      .whereNotNull("started_at")
      .whereNull("completed_at")
      .update({ updated_at: this.#now() })
      .returning("canceled_at");
    // Reaped, or unknown: whatever the daemon is doing for it is of no use any more.
    return { canceled: !job || job.canceled_at !== null };
  }

  async complete(jobId: string, result: JobResult): Promise<void> {
    try {
      await this.#knex.transaction(async (trx) => {
        const now = this.#now();
        const job = await lockRunning(trx, jobId);
        if (job.type !== result.type)
          throw new QueueError("ERR_JOB_RESULT", `a ${job.type} job was completed with a ${result.type}`);
        if (result.type === "template_version_import") await storeImport(trx, job, result, now);
        else await announce(trx, "workspace", await storeBuild(trx, job, result, now));
        await trx("provisioner_jobs")
          .where({ id: jobId })
          // A cancel that came too late: the work is done, and the status says what is.
          .update({ completed_at: now, updated_at: now, canceled_at: null });
        await announceJob(trx, jobId);
      });
    } catch (error) {
      if (!isBadData(error)) throw error;
      // The result can't be stored (a zero byte in a text, two apps with one name): no retry can help, but the
      // state must not be lost.
      await this.fail(jobId, {
        message: `The result of the job can't be stored: ${errorText(error)}`,
        errorCode: "ERR_JOB_RESULT",
        ...(result.type === "workspace_build" ? { state: result.state } : {}),
      });
    }
  }

  async fail(jobId: string, failure: JobFailure): Promise<void> {
    await this.#knex.transaction(async (trx) => {
      const now = this.#now();
      const job = await lockRunning(trx, jobId);
      if (job.type === "workspace_build") {
        const [build]: { workspace_id: string }[] = await trx("workspace_builds")
          .where({ job_id: jobId })
          .update({ updated_at: now, ...(failure.state ? { state: Buffer.from(failure.state) } : {}) })
          .returning("workspace_id");
        await announce(trx, "workspace", build.workspace_id);
      }
      await trx("provisioner_jobs")
        .where({ id: jobId })
        .update({
          completed_at: now,
          updated_at: now,
          error: cleanText(failure.message) || "The job failed without saying why.",
          error_code: failure.errorCode,
        });
      await announceJob(trx, jobId);
    });
  }
}

async function lockRunning(trx: Knex, jobId: string): Promise<JobRow> {
  const job: JobRow | undefined = await trx("provisioner_jobs").where({ id: jobId }).forUpdate().first();
  if (!job) throw new QueueError("ERR_JOB_NOT_FOUND", `no job ${jobId}`);
  if (!job.started_at || job.completed_at)
    throw new QueueError("ERR_JOB_NOT_RUNNING", `job ${jobId} is ${job.status}; its result is dropped`);
  return job;
}

const announceJob = (knex: Knex, jobId: string): Promise<void> => announce(knex, "provisioner_job", jobId);

/**
 * Appends within `trx`. The lock on the job's row orders writers, so that a reader who saw an id has seen every
 * lower one. Lines of a job that is over are dropped.
 *
 * @throws {QueueError} ERR_JOB_NOT_FOUND
 */
export async function appendJobLog(trx: Knex, jobId: string, lines: JobLog[], now: Date): Promise<void> {
  const job: JobRow | undefined = await trx("provisioner_jobs").where({ id: jobId }).forUpdate().first();
  if (!job) throw new QueueError("ERR_JOB_NOT_FOUND", `no job ${jobId}`);
  if (job.completed_at) return;
  let bytes = job.logs_bytes;
  let overflowed = job.logs_overflowed;
  const rows: Record<string, unknown>[] = [];
  for (const line of overflowed ? [] : lines) {
    const output = cleanText(line.output).slice(0, MAX_LOG_LINE_CHARS);
    bytes += Buffer.byteLength(output) + line.stage.length;
    if (bytes > MAX_JOB_LOG_BYTES) overflowed = true;
    rows.push({
      job_id: jobId,
      created_at: line.createdAt,
      source: overflowed ? "provisioner_daemon" : line.source,
      level: overflowed ? "warn" : line.level,
      stage: cleanText(line.stage).slice(0, 256),
      output: overflowed ? `The log is full (${MAX_JOB_LOG_BYTES} bytes); the rest is not kept.` : output,
    });
    if (overflowed) break;
  }
  // 6 bindings a row; Postgres takes 65535.
  for (let i = 0; i < rows.length; i += 1000)
    await trx("provisioner_job_logs").insert(rows.slice(i, i + 1000));
  await trx("provisioner_jobs")
    .where({ id: jobId })
    .update({ updated_at: now, logs_bytes: Math.min(bytes, MAX_JOB_LOG_BYTES), logs_overflowed: overflowed });
  await announceJob(trx, jobId);
}

/** Postgres text holds no zero byte. */
const cleanText = (text: string): string => text.replaceAll("\u0000", "");

const sqlState = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";

const isBadData = (error: unknown): boolean => /^2[23]...$/.test(sqlState(error));

const isConnectionTrouble = (error: unknown): boolean =>
  /^(08...|57...|53...|40...|E[A-Z]+)$/.test(sqlState(error)) ||
  (error instanceof Error && error.name === "KnexTimeoutError");
