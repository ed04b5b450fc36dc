// What runs while something is cut: a transfer that can be held half-way, and a shell that echoes a counter.

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import net from "node:net";
import type { SshLab } from "./lab.ts";

const REACH_MS = 30_000;

async function until(done: () => boolean, what: () => string, limitMs: number): Promise<void> {
  const giveUpAt = performance.now() + limitMs;
  while (!done()) {
    if (performance.now() > giveUpAt) throw new Error(`not within ${limitMs} ms: ${what()}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function ssh(lab: SshLab, command: string): ChildProcess {
  return spawn("ssh", ["-F", lab.sshConfig, "coder.dev", command], {
    env: { ...lab.sandbox.env, CODER_CONFIG_DIR: lab.alice.configDir },
    stdio: ["pipe", "pipe", "pipe"],
  });
}

/** Output of a command in the workspace, counted and hashed. */
export class Transfer {
  bytes = 0;
  /** When bytes last came. */
  lastAt = performance.now();
  readonly #child: ChildProcess;
  readonly #hash = createHash("sha256");
  readonly #ended: Promise<number | null>;
  #stderr = "";

  constructor(lab: SshLab, command: string) {
    this.#child = ssh(lab, command);
    this.#child.stdin?.end();
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.#child.stdout?.on("data", (chunk: Buffer) => {
      this.bytes += chunk.length;
      this.lastAt = performance.now();
      this.#hash.update(chunk);
    });
    this.#ended = once(this.#child, "close").then(([code]) => code as number | null);
  }

  async reached(bytes: number): Promise<void> {
    await until(
      () => this.bytes >= bytes || this.#child.exitCode !== null,
      () => `${bytes} bytes, there are ${this.bytes}\n${this.#stderr}`,
      REACH_MS,
    );
  }

  /** Stops reading, so that the event to come finds a transfer in its middle. */
  hold(): void {
    this.#child.stdout?.pause();
  }

  release(): void {
    this.#child.stdout?.resume();
  }

  async finished(): Promise<{ code: number | null; bytes: number; sha256: string }> {
    const code = await this.#ended;
    if (code !== 0) throw new Error(`ended with ${code} after ${this.bytes} bytes\n${this.#stderr}`);
    return { code, bytes: this.bytes, sha256: this.#hash.digest("hex") };
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }
}

const COUNT_EVERY_MS = 20;

/** Numbered lines through a shell in the workspace and back. */
export class Counter {
  sent = 0;
  /** Lines that came back, in order. */
  received = 0;
  /** The first line that was not the next one. */
  disorder: string | undefined;
  /** Longest time between two lines that came back, ms. */
  longestGapMs = 0;
  /** When the last line came back. */
  lastAt = performance.now();
  readonly #child: ChildProcess;
  readonly #timer: NodeJS.Timeout;
  readonly #ended: Promise<number | null>;
  #stderr = "";

  constructor(lab: SshLab) {
    this.#child = ssh(lab, 'while read -r line; do echo "$line"; done');
    this.#child.stdin?.on("error", () => undefined);
    let rest = "";
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() as string;
      for (const line of lines) this.#take(line);
    });
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.#ended = once(this.#child, "close").then(([code]) => code as number | null);
    this.#timer = setInterval(() => this.#child.stdin?.write(`${++this.sent}\n`), COUNT_EVERY_MS);
  }

  #take(line: string): void {
    const now = performance.now();
    if (this.received > 0) this.longestGapMs = Math.max(this.longestGapMs, now - this.lastAt);
    this.lastAt = now;
    if (line === String(this.received + 1)) this.received++;
    else this.disorder ??= `${line} after ${this.received}`;
  }

  async reached(count: number, limitMs = REACH_MS): Promise<void> {
    await until(
      () => this.received >= count || this.disorder !== undefined || this.#child.exitCode !== null,
      () => `${count} lines back, there are ${this.received} of ${this.sent}\n${this.#stderr}`,
      limitMs,
    );
  }

  /** Ends the input and waits for the rest. @returns the exit code */
  async finished(): Promise<number | null> {
    clearInterval(this.#timer);
    this.#child.stdin?.end();
    const code = await this.#ended;
    if (this.received !== this.sent)
      throw new Error(`${this.received} of ${this.sent} lines came back\n${this.#stderr}`);
    return code;
  }

  kill(): void {
    clearInterval(this.#timer);
    this.#child.kill("SIGKILL");
  }
}

/** Below the ports that systems give to outgoing connections (32,768 on Linux), so that nobody takes one meanwhile. */
const PORTS = { first: 20_000, count: 10_000 };
let nextPort = Math.floor(Math.random() * PORTS.count);

/** A port of 127.0.0.1 on which nobody listens, for a program that is told where to. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = PORTS.first + (nextPort++ % PORTS.count);
    const server = net.createServer();
    const isFree = await new Promise<boolean>((resolve) =>
      server.once("error", () => resolve(false)).listen(port, "127.0.0.1", () => resolve(true)),
    );
    if (!isFree) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}
