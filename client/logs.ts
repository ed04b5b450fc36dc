import { WebSocket } from "ws";
import type { ProvisionerJob, ProvisionerJobLog, WorkspaceAgentLog } from "../control/contract/index.ts";
import { CliError } from "./errors.ts";
import type { ApiClient } from "./http.ts";

const HANDSHAKE_TIMEOUT_MS = 10_000;
/** Close code the server sends once the log is complete. */
const NORMAL_CLOSE = 1000;

/**
 * Streams a log while it is written. Reconnects after the last line seen when the connection drops.
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
  for (let failures = 0; failures < 8 && !signal?.aborted; failures++) {
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
      socket.on("close", (code) => {
        signal?.removeEventListener("abort", abort);
        resolve(code);
      });
    });
    if (code === NORMAL_CLOSE || signal?.aborted) return;
    await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** failures * (0.5 + Math.random())));
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

/**
 * Follows a job to its end. `poll` reads it again, for its result.
 *
 * @throws {CliError} ERR_JOB_FAILED, ERR_JOB_CANCELED with the job's own reason
 */
export async function waitForJob<T extends { job: ProvisionerJob }>(
  api: ApiClient,
  logsPath: string,
  poll: () => Promise<T>,
  options: { what: string; write: (line: string) => void; signal?: AbortSignal },
): Promise<T> {
  let subject = await poll();
  if (subject.job.status === "pending" && subject.job.queue_size > 0)
    options.write(
      `==> Waiting for a provisioner (${subject.job.queue_position} of ${subject.job.queue_size} in the queue)`,
    );
  await followJobLogs(api, logsPath, jobLogPrinter(options.write), options.signal);
  const isOver = () => ["succeeded", "failed", "canceled"].includes(subject.job.status);
  // The log closes when the job completes, so this loop turns more than once only after lost connections.
  for (let waitMs = 50; ; waitMs = Math.min(1000, waitMs * 2)) {
    subject = await poll();
    if (isOver()) break;
    options.signal?.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
  const { status, error, error_code } = subject.job;
  if (status === "failed")
    throw new CliError(
      (error_code as `ERR_${string}` | undefined) || "ERR_JOB_FAILED",
      `${options.what} failed: ${error}`,
    );
  if (status === "canceled") throw new CliError("ERR_JOB_CANCELED", `${options.what} was canceled`);
  return subject;
}
