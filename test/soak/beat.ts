// A session that lives as long as a run: numbered lines to the workspace and back, each checked.
import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { Corrupt, lastLine } from "./load.ts";

const EVERY_MS = 500;
const KEPT_CHARS = 2_000;

export class Beat {
  readonly name: string;
  sent = 0;
  received = 0;
  longestGapMs = 0;
  readonly child: ChildProcess;
  readonly #timer: NodeJS.Timeout;
  readonly #ended: Promise<unknown>;
  #lastAt = performance.now();
  #wrong: string | undefined;
  #hasEnded = false;
  #stderr = "";

  /** @param command what runs `while read -r line; do echo "$line"; done` in the workspace */
  constructor(name: string, command: readonly string[], env: NodeJS.ProcessEnv) {
    this.name = name;
    this.child = spawn(command[0], command.slice(1), { env, stdio: ["pipe", "pipe", "pipe"] });
    this.child.stdin?.on("error", () => undefined);
    let rest = "";
    this.child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() as string;
      for (const line of lines) this.#take(line);
    });
    this.child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-KEPT_CHARS);
    });
    this.#ended = once(this.child, "close").then(() => {
      this.#hasEnded = true;
    });
    this.#timer = setInterval(() => this.child.stdin?.write(`${++this.sent}\n`), EVERY_MS);
  }

  #take(line: string): void {
    const now = performance.now();
    if (this.received > 0) this.longestGapMs = Math.max(this.longestGapMs, now - this.#lastAt);
    this.#lastAt = now;
    if (line === String(this.received + 1)) this.received++;
    else this.#wrong ??= `${line} after ${this.received}`;
  }

  /** @throws when a line is missing, doubled or out of order, or when it ended */
  check(): void {
    if (this.#wrong) throw new Corrupt(`${this.name}: ${this.#wrong}`);
    if (this.#hasEnded) throw new Error(`${this.name} ended: ${lastLine(this.#stderr)}`);
    if (this.sent - this.received > 60_000 / EVERY_MS)
      throw new Error(`${this.name} stands still: ${this.received} of ${this.sent} lines are back`);
  }

  /** Ends the input and waits for the rest. @throws when lines are missing */
  async stop(limitMs: number): Promise<void> {
    clearInterval(this.#timer);
    this.child.stdin?.end();
    const timer = setTimeout(() => this.child.kill("SIGKILL"), limitMs);
    await this.#ended;
    clearTimeout(timer);
    if (this.#wrong || this.received !== this.sent)
      throw new Corrupt(
        `${this.name}: ${this.received} of ${this.sent} lines came back; ${this.#wrong ?? ""}`,
      );
  }
}
