import { WebSocket } from "ws";
import type { ProvisionerJob, ProvisionerJobLog, WorkspaceAgentLog } from "../control/contract/index.ts";
import { CliError } from "./errors.ts";
import type { ApiClient } from "./http.ts";

const HANDSHAKE_TIMEOUT_MS = 10_000;
/** Close code the server sends once the log is complete. */
const NORMAL_CLOSE = 1000;

/** Tries in a row before a lost server is given up; with their pauses some 25 s, enough for it to restart. */
const MAX_FAILURES = 8;
const pauseMs = (failures: number): number => 100 * 2 ** failures * (0.5 + Math.random());

/**
 * Streams a log while it is written. Reconnects after the last line seen when the connection drops; returns early when
 * the server refuses or stays away, which the caller's next request tells better.
 *
 * @param onMessage a parsed message; returns the id of the last line in it
 */
async function follow(
  api: ApiClient,
  path: string,
  onMessage: (message: unknown) => number,
  signal?: AbortSignal,
): Promise<void> {
  let after = -1;
  for (let failures = 0; failures < MAX_FAILURES && !signal?.aborted; failures++) {
    let refused = false;
    const code = await new Promise<number>((resolve) => {
      const socket = new WebSocket(
        api.webSocketUrl(`${path}?follow=true${after >= 0 ? `&after=${after}` : ""}`),
        {
          headers: { "Coder-Session-Token": api.token },
          handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
          perMessageDeflate: false,
        },
      );
      const abort = () => socket.terminate();
      signal?.addEventListener("abort", abort, { once: true });
      socket.on("message", (data) => {
        failures = 0;
        after = Math.max(after, onMessage(JSON.parse(String(data))));
      });
      socket.on("error", () => undefined);
      socket.on("unexpected-response", (request, { statusCode = 0 }) => {
        refused = statusCode >= 400 && statusCode < 500 && statusCode !== 429;
        request.destroy();
        socket.terminate();
      });
      socket.on("close", (code) => {
        signal?.removeEventListener("abort", abort);
        resolve(code);
      });
    });
    if (code === NORMAL_CLOSE || refused || signal?.aborted) return;
    await new Promise((resolve) => setTimeout(resolve, pauseMs(failures)));
  }
}

export async function followJobLogs(
  api: ApiClient,
  path: string,
  onLine: (line: ProvisionerJobLog) => void,
  signal?: AbortSignal,
): Promise<void> {
  await follow(
    api,
    path,
    (message) => {
      const line = message as ProvisionerJobLog;
      onLine(line);
      return line.id;
    },
    signal,
  );
}

export async function followAgentLogs(
  api: ApiClient,
  agentId: string,
  onLine: (line: WorkspaceAgentLog) => void,
  signal?: AbortSignal,
): Promise<void> {
  await follow(
    api,
    `/workspaceagents/${agentId}/logs`,
    (message) => {
      const lines = message as WorkspaceAgentLog[];
      for (const line of lines) onLine(line);
      return lines.at(-1)?.id ?? -1;
    },
    signal,
  );
}

/** Writes a job's log for people: a heading per stage, its lines below. */
export function jobLogPrinter(write: (line: string) => void): (line: ProvisionerJobLog) => void {
  let stage = "";
  return ({ stage: now, output, log_level }) => {
    if (now !== stage) {
      stage = now;
      write(`==> ${now}`);
    }
    if (output === "" || log_level === "trace" || log_level === "debug") return;
    const mark = log_level === "error" ? "error: " : log_level === "warn" ? "warning: " : "";
    for (const [i, text] of output.split("\n").entries()) write(`    ${i === 0 ? mark : ""}${text}`);
  };
}

const isAway = (error: unknown): boolean =>
  error instanceof CliError && ["ERR_SERVER_UNREACHABLE", "ERR_DATABASE_UNREACHABLE"].includes(error.code);

/**
 * Follows a job to its end. `poll` reads it again, for its result.
 *
 * @throws {CliError} ERR_JOB_FAILED, ERR_JOB_CANCELED with the job's own reason
 */
export async function waitForJob<T extends { job: ProvisionerJob }>(
  api: ApiClient,
  logsPath: string,
  poll: () => Promise<T>,
  options: { what: string; hint?: string; write: (line: string) => void; signal?: AbortSignal },
): Promise<T> {
  let subject = await poll();
  if (subject.job.status === "pending" && subject.job.queue_size > 0)
    options.write(
      `==> Waiting for a provisioner (${subject.job.queue_position} of ${subject.job.queue_size} in the queue)`,
    );
  await followJobLogs(api, logsPath, jobLogPrinter(options.write), options.signal);
  const isOver = () => ["succeeded", "failed", "canceled"].includes(subject.job.status);
  // The log closes when the job completes, so this loop turns more than once only after lost connections.
  let failures = 0;
  for (let waitMs = 50; ; waitMs = Math.min(1000, waitMs * 2)) {
    try {
      subject = await poll();
      failures = 0;
    } catch (error) {
      // A server that ends right after its last line may be back in a moment.
      if (!isAway(error) || ++failures >= MAX_FAILURES) throw error;
      if (failures === 1) options.write("==> The server went away; waiting for it to come back");
      waitMs = pauseMs(failures);
    }
    if (failures === 0 && isOver()) break;
    options.signal?.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
  const { status, error, error_code } = subject.job;
  if (status === "failed")
    throw new CliError(
      (error_code as `ERR_${string}` | undefined) || "ERR_JOB_FAILED",
      `${options.what} failed: ${error}`,
      { hint: options.hint },
    );
  if (status === "canceled")
    throw new CliError("ERR_JOB_CANCELED", `${options.what} was canceled`, { hint: options.hint });
  return subject;
}
