// A terminal as a person has it: a program on a tmux pane, keys typed into it, and what its screen shows.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";
import type { Sandbox } from "./sandbox.ts";

const POLL_MS = 25;
const DEADLINE_MS = 15_000;

/** Resolves with the first result that is neither undefined nor false. @throws with `describe()` at the deadline */
export async function poll<T>(
  look: () => T | undefined | false,
  describe: () => string,
  deadlineMs = DEADLINE_MS,
): Promise<T> {
  const until = performance.now() + deadlineMs;
  for (;;) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > until) throw new Error(`not within ${deadlineMs} ms: ${describe()}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** One tmux server of its own, with one session for each terminal. */
export class Tmux {
  readonly #sandbox: Sandbox;
  readonly #env: NodeJS.ProcessEnv;
  readonly #config: string;
  #opened = 0;

  constructor(sandbox: Sandbox, env: NodeJS.ProcessEnv) {
    const { TMUX: _, TMUX_PANE: __, ...inherited } = { ...sandbox.env, ...env };
    this.#sandbox = sandbox;
    this.#config = path.join(sandbox.dir, "tmux.conf");
    // A server that goes with its last terminal may be on its way out just when the next one is to be opened.
    writeFileSync(this.#config, "set -s exit-empty off\n");
    this.#env = { ...inherited, LANG: "C.UTF-8", LC_ALL: "C.UTF-8" };
  }

  run(...args: string[]): string {
    const socket = path.join(this.#sandbox.dir, "tmux");
    return execFileSync("tmux", ["-u", "-S", socket, "-f", this.#config, ...args], {
      env: this.#env,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
  }

  /** A new terminal of 100 x 30 with `shell` (a POSIX shell's command line) on it. */
  open(shell: string): Terminal {
    const name = `t${++this.#opened}`;
    this.run("new-session", "-d", "-s", name, "-x", "100", "-y", "30", shell);
    return new Terminal(this, name);
  }

  close(): void {
    try {
      this.run("kill-server");
    } catch {
      // none was started, or its last session is gone
    }
  }
}

export class Terminal {
  readonly #tmux: Tmux;
  readonly #name: string;

  constructor(tmux: Tmux, name: string) {
    this.#tmux = tmux;
    this.#name = name;
  }

  /** Types `text` as it is. */
  type(text: string): void {
    this.#tmux.run("send-keys", "-t", this.#name, "-l", text);
  }

  /** Types keys by tmux's names: Enter, Escape, BSpace, C-c. */
  press(...keys: string[]): void {
    this.#tmux.run("send-keys", "-t", this.#name, ...keys);
  }

  enter(line: string): void {
    this.type(line);
    this.press("Enter");
  }

  /** The lines now shown, without empty ones at the end. */
  screen(): string {
    return this.#tmux.run("capture-pane", "-p", "-t", this.#name).trimEnd();
  }

  /** Waits until the screen matches. */
  sees(pattern: RegExp, deadlineMs?: number): Promise<RegExpExecArray> {
    return poll(
      () => pattern.exec(this.screen()) ?? undefined,
      () => `${pattern} on the screen, which shows\n${this.screen()}`,
      deadlineMs,
    );
  }

  resize(columns: number, rows: number): void {
    this.#tmux.run("resize-window", "-t", this.#name, "-x", String(columns), "-y", String(rows));
  }

  /** Closes the window, as a person does with the mouse: what runs on it gets SIGHUP. */
  close(): void {
    this.#tmux.run("kill-session", "-t", this.#name);
  }
}
