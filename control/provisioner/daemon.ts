// Provisioner daemons: each takes one job at a time from the queue, runs it, and reports what came of it. They
// see only the JobQueue, so they run inside the server or far from it.
import { randomUUID } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { JobLogWriter } from "./job-log.ts";
import { createJobRunner, type JobOutcome, type JobRunnerOptions, type RunJob, rescueName } from "./jobs.ts";
import type { Job, JobFailure, JobQueue } from "./protocol.ts";
import { removeAbandoned } from "./terraform/abandoned.ts";
import { workBase } from "./terraform/workdir.ts";

export const HEARTBEAT_INTERVAL_MS = 5_000;
/** One answer of the queue, apart from `acquire`, which waits by design. */
export const CALL_TIMEOUT_MS = 15_000;
const BACKOFF_FIRST_MS = 250;
const BACKOFF_MAX_MS = 30_000;
/** How long a result is offered again while the queue can't be reached. */
const REPORT_RETRY_MS = 15 * 60_000;
/** When stopping: after that the state is kept in a file. */
const FINAL_REPORT_MS = 10_000;
const LOG_CLOSE_MS = 10_000;
/** No build takes longer; one that hangs must not hold a daemon for ever. */
const MAX_JOB_MS = 12 * 3_600_000;
export const DRAIN_MS = 60_000;

export interface DaemonLogger {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface DaemonOptions {
  queue: JobQueue;
  /** How many jobs may run at once. */
  count?: number;
  name?: string;
  tags?: Record<string, string>;
  logger?: DaemonLogger;
  heartbeatIntervalMs?: number;
  /** Where state goes that the control plane would not take; without it such state is lost. */
  rescueDir?: string;
  /** 0..1, for jitter. */
  random?: () => number;
}

export interface RunningDaemons {
  /**
   * Takes no more jobs and waits for those that run; after `drainMs` they are canceled, which keeps their state.
   * Resolves when all have ended. 0 cancels at once.
   */
  stop(options?: { drainMs?: number }): Promise<void>;
}

/** Starts `count` daemons that run jobs with Terraform. */
export function startDaemons(options: DaemonOptions & JobRunnerOptions): RunningDaemons {
  const { workParent: base = workBase(), rescueDir, logger } = options;
  const run = createJobRunner(options);
  const sweep = async () => {
    for (const { root, file, error } of await removeAbandoned(base, rescueDir))
      if (error)
        logger?.error({ err: error, folder: root }, "the folder of a job whose provisioner was killed stays");
      else
        logger?.warn(
          { folder: root, ...(file && { state: file }) },
          "removed what a killed provisioner left",
        );
  };
  void sweep();
  return startDaemonsWith(async (job, io) => {
    await sweep(); // what its own Terraform still worked in before
    return run(job, io);
  }, options);
}

/** As `startDaemons`, with any way of running a job. */
export function startDaemonsWith(run: RunJob, options: DaemonOptions): RunningDaemons {
  const { count = 3, name = hostname() } = options;
  const stopping = new AbortController();
  const expired = new AbortController();
  const daemons = Array.from({ length: count }, (_, index) =>
    new Daemon(run, options, `${name}-${index}`, stopping.signal, expired.signal).loop(),
  );
  const ended = Promise.all(daemons);
  return {
    async stop({ drainMs = DRAIN_MS } = {}) {
      stopping.abort();
      if (drainMs === 0) expired.abort();
      const timer = setTimeout(() => expired.abort(), drainMs);
      await ended;
      clearTimeout(timer);
    },
  };
}

type CancelReason = "canceled" | "stopped" | "lost" | "too long";

const CANCEL_FAILURES: Record<CancelReason, Pick<JobFailure, "errorCode" | "message">> = {
  canceled: { errorCode: "ERR_JOB_CANCELED", message: "the job was canceled" },
  stopped: {
    errorCode: "ERR_PROVISIONER_STOPPED",
    message: "the provisioner was stopped while the job ran; start the job again",
  },
  lost: { errorCode: "ERR_JOB_LOST", message: "the control plane had given the job up" },
  "too long": {
    errorCode: "ERR_JOB_TIMEOUT",
    message: `the job ran longer than ${MAX_JOB_MS / 3_600_000} hours`,
  },
};

class Daemon {
  #run: RunJob;
  #options: DaemonOptions;
  #identity: { id: string; name: string; tags: Record<string, string> };
  #stopping: AbortSignal;
  #expired: AbortSignal;
  #random: () => number;

  constructor(
    run: RunJob,
    options: DaemonOptions,
    name: string,
    stopping: AbortSignal,
    expired: AbortSignal,
  ) {
    this.#run = run;
    this.#options = options;
    this.#identity = { id: randomUUID(), name, tags: options.tags ?? {} };
    this.#stopping = stopping;
    this.#expired = expired;
    this.#random = options.random ?? Math.random;
  }

  async loop(): Promise<void> {
    for (let failures = 0; !this.#stopping.aborted; ) {
      let job: Job | undefined;
      try {
        job = await this.#options.queue.acquire(this.#identity, this.#stopping);
        failures = job ? 0 : failures + 1;
      } catch (error) {
        if (this.#stopping.aborted) return;
        this.#options.logger?.warn({ err: error, daemon: this.#identity.name }, "no job could be acquired");
        failures++;
      }
      if (job) await this.#work(job);
      else await this.#backOff(failures);
    }
  }

  async #work(job: Job): Promise<void> {
    const { queue, logger } = this.#options;
    const canceling = new AbortController();
    const cancel = (reason: CancelReason) => {
      if (!canceling.signal.aborted) canceling.abort(reason);
    };
    const onExpired = () => cancel("stopped");
    if (this.#expired.aborted) onExpired();
    this.#expired.addEventListener("abort", onExpired, { once: true });
    const tooLong = setTimeout(() => cancel("too long"), MAX_JOB_MS);
    const done = new AbortController();
    const heart = this.#beat(job.id, cancel, done.signal);
    const writer = new JobLogWriter({ send: (lines) => withTimeout(queue.log(job.id, lines)) });
    logger?.info({ job: job.id, type: job.type, daemon: this.#identity.name }, "job started");

    let outcome: JobOutcome;
    try {
      outcome = await this.#run(job, {
        signal: canceling.signal,
        log: (stage, output, level = "info", source = "provisioner_daemon") =>
          writer.write({ source, level, stage, output }),
      });
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      outcome = { failure: { message, errorCode: "ERR_PROVISIONER_INTERNAL" } };
    }
    if ("failure" in outcome) {
      if (canceling.signal.aborted) {
        const why = CANCEL_FAILURES[canceling.signal.reason as CancelReason];
        outcome = { failure: { ...outcome.failure, ...why } };
      }
      const output = outcome.failure.message;
      writer.write({ source: "provisioner_daemon", level: "error", stage: "Failed", output });
    }
    await writer.close(LOG_CLOSE_MS);
    // The heart beats on until the result has arrived, or the job would be reaped while we retry.
    await this.#report(job, outcome);
    done.abort();
    await heart;
    clearTimeout(tooLong);
    this.#expired.removeEventListener("abort", onExpired);
  }

  async #beat(jobId: string, cancel: (reason: CancelReason) => void, done: AbortSignal): Promise<void> {
    const { queue, logger, heartbeatIntervalMs = HEARTBEAT_INTERVAL_MS } = this.#options;
    for (;;) {
      await sleep(heartbeatIntervalMs, undefined, { signal: done }).catch(() => {});
      if (done.aborted) return;
      try {
        if ((await withTimeout(queue.heartbeat(jobId))).canceled) cancel("canceled");
      } catch (error) {
        if (isRefused(error)) cancel("lost");
        if (!done.aborted) logger?.warn({ err: error, job: jobId }, "heartbeat failed");
      }
    }
  }

  /** Offers the result until it is taken or refused; state that nobody takes goes to a file. */
  async #report(job: Job, outcome: JobOutcome): Promise<void> {
    const { queue, logger } = this.#options;
    const startedAt = Date.now();
    for (let failures = 1; ; failures++) {
      try {
        if ("result" in outcome) await withTimeout(queue.complete(job.id, outcome.result));
        else await withTimeout(queue.fail(job.id, outcome.failure));
        const code = "failure" in outcome ? outcome.failure.errorCode : undefined;
        logger?.info({ job: job.id, code }, code ? "job failed" : "job completed");
        return;
      } catch (error) {
        const limitMs = this.#stopping.aborted ? FINAL_REPORT_MS : REPORT_RETRY_MS;
        if (isRefused(error) || Date.now() - startedAt > limitMs) {
          logger?.error({ err: error, job: job.id }, "the job's result could not be delivered");
          await this.#rescue(job, outcome);
          return;
        }
        logger?.warn({ err: error, job: job.id }, "the job's result could not be delivered yet");
        await this.#backOff(failures);
        if (this.#stopping.aborted) await sleep(BACKOFF_FIRST_MS);
      }
    }
  }

  async #rescue(job: Job, outcome: JobOutcome): Promise<void> {
    const { logger, rescueDir } = this.#options;
    const state = stateOf(outcome);
    if (!state?.length || !rescueDir || job.type !== "workspace_build") return;
    const file = path.join(rescueDir, rescueName(job));
    try {
      await mkdir(rescueDir, { recursive: true, mode: 0o700 });
      await writeFile(file, state, { mode: 0o600 });
      logger?.error({ job: job.id, file }, "kept the Terraform state of a build nobody took in a file");
    } catch (error) {
      logger?.error({ err: error, job: job.id, file }, "the Terraform state of a build is lost");
    }
  }

  /** A doubling delay, each between half and all of it; cut short by a stop. */
  async #backOff(failures: number): Promise<void> {
    const fullMs = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** Math.min(failures - 1, 10));
    const delayMs = fullMs * (0.5 + this.#random() / 2);
    await sleep(delayMs, undefined, { signal: this.#stopping }).catch(() => {});
  }
}

function stateOf(outcome: JobOutcome): Uint8Array | undefined {
  if ("failure" in outcome) return outcome.failure.state;
  return outcome.result.type === "workspace_build" ? outcome.result.state : undefined;
}

/** The queue answered, and the answer was no: the job is not ours any more. Asking again can't help. */
function isRefused(error: unknown): boolean {
  return error instanceof Error && "code" in error && String(error.code).startsWith("ERR_JOB_");
}

async function withTimeout<T>(call: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`the control plane gave no answer within ${CALL_TIMEOUT_MS / 1000} s`)),
      CALL_TIMEOUT_MS,
    );
  });
  try {
    return await Promise.race([call, timeout]);
  } finally {
    clearTimeout(timer);
  }
}
