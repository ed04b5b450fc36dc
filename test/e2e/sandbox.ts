// A private home, temporary folder and data folder for commands under test, and a look at what they left behind.
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const root = path.dirname(path.dirname(path.dirname(fileURLToPath(import.meta.url))));
/** What every sandbox starts as `coder`: a whole run of the tests has a copy of its own. */
export let bundle = path.join(process.env["TEST_INSTALLATION"] ?? root, "dist/coder.js");

/** Has sandboxes use another copy of the installation than this checkout. */
export function useInstallation(dir: string): void {
  bundle = path.join(dir, "dist/coder.js");
}

export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface Running {
  child: ChildProcess;
  stdout: string;
  stderr: string;
  finished: Promise<Finished>;
}

/** An account to run as; only root can choose another. */
export interface Account {
  uid: number;
  gid: number;
}

export class Sandbox {
  readonly dir: string;
  readonly home: string;
  readonly tmp: string;
  readonly data: string;
  readonly env: NodeJS.ProcessEnv;
  readonly account: Account | undefined;
  readonly #mark = randomUUID();
  readonly #children = new Set<ChildProcess>();

  /** The folder has a short name: unix sockets below it must stay under 108 bytes. */
  constructor(account?: Account) {
    this.account = account;
    this.dir = mkdtempSync(path.join(os.tmpdir(), "e2e-"));
    this.home = path.join(this.dir, "home");
    this.tmp = path.join(this.dir, "tmp");
    this.data = path.join(this.home, ".local/share/coder-quickstart");
    for (const folder of [this.home, this.tmp]) {
      mkdirSync(folder, { mode: 0o700 });
      if (account) chownSync(folder, account.uid, account.gid);
    }
    // Root's home is 0700; what runs below it must manage.
    if (account) chownSync(this.dir, account.uid, account.gid);
    chmodSync(this.dir, 0o700);
    const { CODER_PG_CONNECTION_URL: _, TF_CLI_CONFIG_FILE: __, ...inherited } = process.env;
    this.env = {
      ...Object.fromEntries(Object.entries(inherited).filter(([name]) => !/^(CODER_|npm_|XDG_)/.test(name))),
      HOME: this.home,
      TMPDIR: this.tmp,
      E2E_MARK: this.#mark,
      // npm's own code cache, which Node 22 and newer keep in the temporary folder.
      NODE_DISABLE_COMPILE_CACHE: "1",
      PATH: `${path.dirname(process.execPath)}:${process.env["PATH"]}`,
    };
  }

  start(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}, detached = false): Running {
    const child = spawn(command, args, {
      cwd: root,
      env: { ...this.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached,
      ...(this.account ?? {}),
    });
    this.#children.add(child);
    const running: Running = {
      child,
      stdout: "",
      stderr: "",
      finished: new Promise((resolve, reject) => {
        child.on("error", reject);
        child.on("close", (code, signal) => {
          this.#children.delete(child);
          resolve({ code, signal, stdout: running.stdout, stderr: running.stderr });
        });
      }),
    };
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      running.stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      running.stderr += text;
    });
    return running;
  }

  run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Finished> {
    return this.start(command, args, env).finished;
  }

  coder(...args: string[]): Promise<Finished> {
    return this.run(process.execPath, [bundle, ...args]);
  }

  /** Resolves once the output so far matches. @throws when the command ends first */
  async until(running: Running, stream: "stdout" | "stderr", pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const match = pattern.exec(running[stream]);
      if (match) return match;
      const source = running.child[stream];
      const ended = await Promise.race([
        running.finished,
        new Promise<undefined>((resolve) => source?.once("data", () => resolve(undefined))),
      ]);
      if (ended && !pattern.test(running[stream]))
        throw new Error(`ended with ${ended.code} before ${pattern}:\n${ended.stdout}\n${ended.stderr}`);
    }
  }

  /** Command lines of processes that were started from here and still run. */
  processes(): string[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .flatMap((pid) => {
        try {
          if (!readFileSync(`/proc/${pid}/environ`, "utf8").includes(this.#mark)) return [];
          return [`${pid} ${readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ")}`];
        } catch {
          return []; // ended meanwhile, or another user's
        }
      });
  }

  /** Files in the temporary folder, and in the home outside the data folder and npm's cache. */
  strayFiles(): string[] {
    const walk = (folder: string): string[] =>
      existsSync(folder)
        ? readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
            const full = path.join(folder, entry.name);
            if (full === this.data || full === path.join(this.home, ".npm")) return [];
            return entry.isDirectory() ? [...walk(full), `${full}/`] : [full];
          })
        : [];
    const parents = [path.join(this.home, ".local"), path.join(this.home, ".local/share")].map(
      (dir) => `${dir}/`,
    );
    return [...walk(this.home), ...walk(this.tmp)].filter((file) => !parents.includes(file));
  }

  dispose(): void {
    for (const child of this.#children) child.kill("SIGKILL");
    rmSync(this.dir, { recursive: true, force: true });
  }
}
