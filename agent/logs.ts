import { StringDecoder } from "node:string_decoder";
import type { AgentLogBatch } from "../control/contract/agent.ts";
import { AgentApiError } from "./api.ts";
import { describe, type Logger } from "./logging.ts";
import { backoffMs, pause } from "./retry.ts";

export type LogLine = AgentLogBatch["logs"][number];

/** How long lines gather before they are sent, and the least time between two requests. */
export const FLUSH_MS = 250;
export const MAX_BATCH_LINES = 500;
export const MAX_BATCH_CHARS = 256 * 1024;
/** What may wait for a control plane that is away. A script is never held up; lines beyond this are dropped. */
export const MAX_PENDING_CHARS = 1 << 20;
export const MAX_LINE_CHARS = 16 * 1024;
const MIN_RETRY_MS = 500;
const MAX_RETRY_MS = 15_000;

/** Cuts a byte stream into lines, however it arrives; a line longer than MAX_LINE_CHARS becomes several. */
export class LineSplitter {
  readonly #decoder = new StringDecoder("utf8");
  readonly #onLine: (line: string) => void;
  #rest = "";

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine;
  }

  push(chunk: Uint8Array): void {
    const lines = (this.#rest + this.#decoder.write(Buffer.from(chunk))).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#emit(line);
    while (this.#rest.length > MAX_LINE_CHARS) {
      this.#emit(this.#rest.slice(0, MAX_LINE_CHARS));
      this.#rest = this.#rest.slice(MAX_LINE_CHARS);
    }
  }

  end(): void {
    const rest = this.#rest + this.#decoder.end();
    this.#rest = "";
    if (rest !== "") this.#emit(rest);
  }

  #emit(line: string): void {
    // A progress bar rewrites its line with \r: what it showed last is the line.
    const text = line.replace(/\r+$/, "").replace(/^.*\r/s, "").replaceAll("\0", "");
    for (let at = 0; at === 0 || at < text.length; at += MAX_LINE_CHARS)
      this.#onLine(text.slice(at, at + MAX_LINE_CHARS));
  }
}

interface Pending extends LogLine {
  sourceId: string;
}

/** Sends log lines in order and in batches; bounded in memory, size and rate. */
export class LogQueue {
  readonly #send: (batch: AgentLogBatch) => Promise<void>;
  readonly #logger: Logger;
  readonly #closing = new AbortController();
  /** Aborted when there is no time left to gather lines. */
  readonly #hurry = new AbortController();
  #pending: Pending[] = [];
  #pendingChars = 0;
  #dropped = 0;
  #full = false;
  #running: Promise<void> | undefined;

  constructor(send: (batch: AgentLogBatch) => Promise<void>, logger: Logger) {
    this.#send = send;
    this.#logger = logger;
  }

  add(sourceId: string, level: LogLine["level"], output: string, now = new Date()): void {
    if (this.#full || this.#closing.signal.aborted) return;
    if (
      this.#pendingChars + output.length > MAX_PENDING_CHARS ||
      this.#pending.length > MAX_PENDING_CHARS / 64
    ) {
      this.#dropped++;
      return;
    }
    this.#pending.push({ sourceId, level, output, created_at: now.toISOString() });
    this.#pendingChars += output.length;
    this.#running ??= this.#run();
  }

  /** Sends what waits, for at most `timeoutMs`; afterwards nothing is taken any more. */
  async close(timeoutMs: number): Promise<void> {
    this.#hurry.abort();
    const timeout = new AbortController();
    await Promise.race([this.#running, pause(timeoutMs, timeout.signal)]);
    timeout.abort();
    this.#closing.abort();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    await pause(FLUSH_MS, this.#hurry.signal);
    while (this.#pending.length > 0 && !signal.aborted) {
      const { sourceId, logs } = this.#takeBatch();
      for (let attempt = 0; !signal.aborted; attempt++) {
        try {
          await this.#send({ log_source_id: sourceId, logs });
          break;
        } catch (error) {
          if (error instanceof AgentApiError && error.code === "ERR_LOGS_FULL") {
            this.#logger.warn(
              {},
              "the agent's log is full: script output is no longer sent, only written to files",
            );
            this.#full = true;
            this.#pending = [];
            return;
          }
          this.#logger.debug({ reason: describe(error) }, "log lines could not be sent");
          if (error instanceof AgentApiError && !error.mayWorkLater) break;
          await pause(backoffMs(attempt, MIN_RETRY_MS, MAX_RETRY_MS, Math.random()), signal);
        }
      }
      await pause(FLUSH_MS, this.#hurry.signal);
    }
    this.#running = undefined;
  }

  /** The oldest lines that share a source. */
  #takeBatch(): AgentLogBatch & { sourceId: string } {
    const { sourceId } = this.#pending[0];
    const logs: LogLine[] = [];
    const rest: Pending[] = [];
    let chars = 0;
    for (const line of this.#pending) {
      const { sourceId: from, ...log } = line;
      if (
        from === sourceId &&
        logs.length < MAX_BATCH_LINES &&
        chars + log.output.length <= MAX_BATCH_CHARS
      ) {
        logs.push(log);
        chars += log.output.length;
      } else rest.push(line);
    }
    this.#pending = rest;
    this.#pendingChars -= chars;
    if (this.#dropped > 0) {
      const output = `(${this.#dropped} lines left out here: the control plane could not be reached fast enough)`;
      logs.push({ created_at: logs.at(-1)!.created_at, level: "warn", output });
      this.#dropped = 0;
    }
    return { sourceId, log_source_id: sourceId, logs };
  }
}
