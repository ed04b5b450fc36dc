// A job's log on its way to the control plane: batched, in order, at most a moment late, and bounded.
import type { JobLog } from "./protocol.ts";

/** Lines wait this long for company: long enough to batch a plan's output, too short for people to notice. */
export const FLUSH_DELAY_MS = 50;
const MAX_BATCH_LINES = 500;
/** While the control plane is away. Beyond it lines are dropped and counted. */
const MAX_PENDING_LINES = 10_000;
/** One job's whole log; a script that prints for ever must not fill the database. */
export const MAX_JOB_LOG_CHARS = 8 << 20;
const MAX_LINE_CHARS = 16 * 1024;
const RETRY_MS = 500;

export interface JobLogOptions {
  send: (lines: JobLog[]) => Promise<void>;
  now?: () => number;
  flushDelayMs?: number;
}

export class JobLogWriter {
  #send: JobLogOptions["send"];
  #now: () => number;
  #flushDelayMs: number;
  #pending: JobLog[] = [];
  #dropped = 0;
  #chars = 0;
  #full = false;
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<void> | undefined;
  #closed = false;

  constructor({ send, now = Date.now, flushDelayMs = FLUSH_DELAY_MS }: JobLogOptions) {
    this.#send = send;
    this.#now = now;
    this.#flushDelayMs = flushDelayMs;
  }

  write(line: Omit<JobLog, "createdAt">): void {
    if (this.#closed || this.#full) return;
    if (this.#pending.length >= MAX_PENDING_LINES) {
      this.#dropped++;
      return;
    }
    const output =
      line.output.length > MAX_LINE_CHARS ? `${line.output.slice(0, MAX_LINE_CHARS)}... (cut)` : line.output;
    this.#chars += output.length;
    this.#full = this.#chars > MAX_JOB_LOG_CHARS;
    this.#push({
      ...line,
      output: this.#full ? "the log of this job is full; further lines are dropped" : output,
    });
  }

  /** Sends what is left; gives up after `timeoutMs`, as a job's result must not wait for its log. */
  async close(timeoutMs: number): Promise<void> {
    const giveUpAt = this.#now() + timeoutMs;
    while (this.#pending.length > 0 || this.#sending) {
      const left = giveUpAt - this.#now();
      if (left <= 0) break;
      this.#flush();
      let timer: NodeJS.Timeout | undefined;
      const timeout = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, left);
      });
      await Promise.race([this.#sending, timeout]);
      clearTimeout(timer);
    }
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #push(line: Omit<JobLog, "createdAt">): void {
    if (this.#dropped > 0) {
      const output = `${this.#dropped} lines were dropped while the control plane could not be reached`;
      this.#dropped = 0;
      this.#pending.push({
        ...line,
        source: "provisioner_daemon",
        level: "warn",
        output,
        createdAt: this.#date(),
      });
    }
    this.#pending.push({ ...line, createdAt: this.#date() });
    this.#arm(this.#flushDelayMs);
  }

  #arm(delayMs: number): void {
    if (this.#timer || this.#sending || this.#closed) return;
    this.#timer = setTimeout(() => this.#flush(), delayMs);
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#sending || this.#pending.length === 0) return;
    const batch = this.#pending.slice(0, MAX_BATCH_LINES);
    this.#sending = this.#send(batch).then(
      () => {
        this.#pending.splice(0, batch.length);
        this.#sending = undefined;
        if (this.#pending.length > 0) this.#arm(0);
      },
      async () => {
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        this.#sending = undefined;
        this.#arm(0);
      },
    );
  }

  #date(): Date {
    return new Date(this.#now());
  }
}
