// Processes of a hostile world, each with one part to play: started here, asked by name over IPC to do things, watched
// from outside (CPU, memory), frozen and killed as the tests like.
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

export type Role = "server" | "agent" | "rogue" | "reader" | "badRelay";

/** What parent and child say to each other. */
export interface Request {
  id: number;
  name: string;
  args: unknown[];
}
export interface Reply {
  id: number;
  result?: unknown;
  error?: string;
}

/** Linux's USER_HZ. */
const TICKS_PER_SECOND = 100;

let bundled: Promise<string> | undefined;

/** One file for all parts: a child starts from it in a fraction of the time that it takes to compile the sources. */
function bundle(): Promise<string> {
  bundled ??= (async () => {
    const folder = mkdtempSync(path.join(os.tmpdir(), "hostile-"));
    process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
    const outfile = path.join(folder, "part.mjs");
    await build({
      entryPoints: [fileURLToPath(new URL("part-main.ts", import.meta.url))],
      outfile,
      bundle: true,
      platform: "node",
      format: "esm",
      target: "node20",
      logLevel: "silent",
      banner: {
        js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);',
      },
    });
    return outfile;
  })();
  return bundled;
}

export class Part {
  /** For "never" only: far above what any call takes; ms. */
  static maxCallMs = 60_000;
  readonly #child: ChildProcess;
  readonly #calls = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  #nextId = 1;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.on("message", ({ id, result, error }: Reply) => {
      const call = this.#calls.get(id);
      this.#calls.delete(id);
      if (error === undefined) call?.resolve(result);
      else call?.reject(new Error(error));
    });
    child.on("exit", (code, signal) => {
      for (const { reject } of this.#calls.values()) reject(new Error(`the part ended: ${code ?? signal}`));
      this.#calls.clear();
    });
  }

  /** @param options what the role's function takes; resolves once it has run */
  static async start(role: Role, options: object = {}): Promise<Part> {
    const child = fork(await bundle(), [role], { execArgv: [], serialization: "advanced", stdio: "inherit" });
    child.on("error", () => undefined); // of messages to one that has ended
    const part = new Part(child);
    try {
      await part.call("start", options);
      return part;
    } catch (error) {
      await part.kill();
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** @throws what the part throws, as text */
  call<T = unknown>(name: string, ...args: unknown[]): Promise<T> {
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => settle(new Error(`${name} did not end`)), Part.maxCallMs);
      const settle = (error?: Error, value?: unknown) => {
        clearTimeout(timer);
        this.#calls.delete(id);
        if (error) reject(error);
        else resolve(value as T);
      };
      this.#calls.set(id, { resolve: (value) => settle(undefined, value), reject: settle });
      const request: Request = { id, name, args };
      this.#child.send(request, (error) => error && settle(error));
    });
  }

  /** CPU time that the process has used, user and system, in ms. */
  get cpuMs(): number {
    const fields = readFileSync(`/proc/${this.pid}/stat`, "utf8").split(") ")[1].split(" ");
    return ((Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND) * 1_000;
  }

  get residentBytes(): number {
    const [, kib] = /^VmRSS:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${this.pid}/status`, "utf8")) ?? [];
    return Number(kib) * 1_024;
  }

  /** It says nothing any more, and its connections stay. */
  freeze(): void {
    this.#child.kill("SIGSTOP");
  }

  thaw(): void {
    this.#child.kill("SIGCONT");
  }

  /** Without a word, as a crash ends it. */
  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exit = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await exit;
  }
}
