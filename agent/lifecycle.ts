import type { AgentLifecycleReport, AgentLifecycleState } from "../control/contract/agent.ts";
import { AgentApiError } from "./api.ts";
import { describe, type Logger } from "./logging.ts";
import { backoffMs, pause } from "./retry.ts";

const MIN_RETRY_MS = 500;
const MAX_RETRY_MS = 15_000;

/** Reports the agent's states in order, each with the time it was reached, however long the server is away. An
 * agent has at most seven, and one more for each build that keeps it, so the queue needs no other bound. */
export class LifecycleReporter {
  readonly #send: (report: AgentLifecycleReport) => Promise<void>;
  readonly #logger: Logger;
  readonly #closing = new AbortController();
  #queue: AgentLifecycleReport[] = [];
  #running: Promise<void> | undefined;
  #state: AgentLifecycleState | undefined;

  constructor(send: (report: AgentLifecycleReport) => Promise<void>, logger: Logger) {
    this.#send = send;
    this.#logger = logger;
  }

  get state(): AgentLifecycleState | undefined {
    return this.#state;
  }

  report(state: AgentLifecycleState, now = new Date()): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#logger.info({ state }, "lifecycle");
    this.#push(state, now);
  }

  /** Says the present state again, to a control plane that doesn't know it yet. */
  repeat(now = new Date()): void {
    if (this.#state) this.#push(this.#state, now);
  }

  #push(state: AgentLifecycleState, now: Date): void {
    this.#queue.push({ state, changed_at: now.toISOString() });
    this.#running ??= this.#run();
  }

  /** Waits until everything was reported, for at most `timeoutMs`. */
  async close(timeoutMs: number): Promise<void> {
    const timeout = new AbortController();
    await Promise.race([this.#running, pause(timeoutMs, timeout.signal)]);
    timeout.abort();
    this.#closing.abort();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    for (let attempt = 0; this.#queue.length > 0 && !signal.aborted; ) {
      try {
        await this.#send(this.#queue[0]);
        this.#queue.shift();
        attempt = 0;
      } catch (error) {
        if (error instanceof AgentApiError && !error.mayWorkLater) {
          this.#logger.warn({ reason: describe(error) }, "a lifecycle state was refused");
          this.#queue.shift();
        } else await pause(backoffMs(attempt++, MIN_RETRY_MS, MAX_RETRY_MS, Math.random()), signal);
      }
    }
    this.#running = undefined;
  }
}
