import type { AgentScript } from "../control/contract/agent.ts";
import { CronError, nextDue, parseCron, type Schedule } from "./cron.ts";
import { describe, type Logger } from "./logging.ts";
import type { LogLine } from "./logs.ts";
import { pause } from "./retry.ts";

/** The clock may jump (sleep, NTP) and a timer holds at most 24 days, so the time left is looked at this often. */
const LOOK_MS = 60_000;

export interface ScheduleDeps {
  /** Runs it to its end; never rejects. */
  run(script: AgentScript): Promise<unknown>;
  log(sourceId: string, level: LogLine["level"], output: string): void;
  logger: Logger;
  signal: AbortSignal;
  /** Unix ms; Date.now by default. */
  wallClockMs?: () => number;
  wait?: (ms: number, signal: AbortSignal) => Promise<void>;
}

/**
 * Runs scripts on their schedules until `signal` aborts, and resolves when the last has ended. A script never runs
 * beside itself: what comes due meanwhile is left out. Never rejects.
 */
export async function runSchedules(scripts: readonly AgentScript[], deps: ScheduleDeps): Promise<void> {
  await Promise.all(
    scripts.filter(({ cron }) => cron.trim() !== "").map((script) => runSchedule(script, deps)),
  );
}

async function runSchedule(script: AgentScript, deps: ScheduleDeps): Promise<void> {
  const { signal, log, logger, wallClockMs = Date.now, wait = pause } = deps;
  let schedule: Schedule;
  try {
    schedule = parseCron(script.cron);
  } catch (error) {
    const why = error instanceof CronError ? error.message : describe(error);
    log(script.log_source_id, "error", `The schedule ${JSON.stringify(script.cron)} can't be read: ${why}`);
    logger.warn({ script: script.display_name, reason: why }, "a script's schedule can't be read");
    return;
  }
  let due = nextDue(schedule, wallClockMs());
  if (due === undefined)
    return log(script.log_source_id, "warn", `The schedule ${JSON.stringify(script.cron)} is never due.`);
  logger.info({ script: script.display_name, due: new Date(due).toISOString() }, "script scheduled");
  while (due !== undefined) {
    for (let leftMs = due - wallClockMs(); leftMs > 0; leftMs = due - wallClockMs()) {
      await wait(Math.min(leftMs, LOOK_MS), signal);
      if (signal.aborted) return;
    }
    if (signal.aborted) return;
    const startedAtMs = wallClockMs();
    await deps.run(script);
    const missed: number | undefined = nextDue(schedule, startedAtMs);
    const endedAtMs = wallClockMs();
    if (missed !== undefined && missed <= endedAtMs)
      log(script.log_source_id, "warn", "It was due again while it still ran; that run was left out.");
    due = nextDue(schedule, Math.max(endedAtMs, due));
  }
}
