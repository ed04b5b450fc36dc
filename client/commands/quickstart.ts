import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import type { Command } from "commander";
import type { Template, TemplateVersion, Workspace } from "../../control/contract/index.ts";
import { writeLogin } from "../config.ts";
import { connectToAgent, startMesh } from "../connect.ts";
import { EXIT, reportError } from "../errors.ts";
import { ApiClient } from "../http.ts";
import { say } from "../output.ts";
import { onPresses } from "../presses.ts";
import { runningWorkspace, waitForStartup } from "../ready.ts";
import { starterTemplatesDir } from "../resources.ts";
import { runInteractive } from "../session/interactive.ts";
import { findTemplate, pushTemplate, uploadTemplate } from "../templates.ts";
import { findWorkspace, runBuild } from "../workspace.ts";
import type { RunningServer } from "./server.ts";

const TEMPLATE = "local";
const WORKSPACE = "dev";
const FIRST_PORT = 3000;
/** How many ports above the first are tried when it is taken. */
const MAX_PORT_TRIES = 100;

export function register(program: Command): void {
  program
    .command("quickstart")
    .argument("[command...]", "run this in the workspace as ssh does, instead of a shell")
    .description("Server, user, template and workspace in one go, then a shell in it; everything stops after")
    .option("--keep", "stay in the foreground and print how to use the server from another terminal", false)
    .passThroughOptions()
    .action(async (words: string[], { keep }: { keep: boolean }) => {
      // npm hands on the `--` that a user wrote for our sake.
      const command = words[0] === "--" ? words.slice(1) : words;
      process.exitCode = await quickstart(command.length > 0 ? command.join(" ") : undefined, keep);
    });
}

function dataFolder(): string {
  const chosen = process.env["CODER_QUICKSTART_DIR"];
  if (chosen) return path.resolve(chosen);
  return path.join(process.env["XDG_DATA_HOME"] ?? path.join(homedir(), ".local/share"), "coder-quickstart");
}

const PARENT_CHECK_MS = 500;

/**
 * SIGINT and SIGTERM end whatever runs; a second one ends the process at once. So does the end of our parent: npm can be
 * killed without a word to us, and what was started for a person must not outlive their command.
 */
class Interrupt {
  readonly controller = new AbortController();
  signal: NodeJS.Signals | undefined;
  readonly #parent = process.ppid;
  readonly #watch = setInterval(() => {
    if (process.ppid !== this.#parent && !this.signal) this.#onSignal("SIGHUP");
  }, PARENT_CHECK_MS);
  readonly #onSignal = (signal: NodeJS.Signals) => {
    if (this.signal) process.exit(EXIT.interrupted);
    this.signal = signal;
    this.controller.abort(new Error(`stopped by ${signal}`));
  };

  readonly #release = onPresses(["SIGINT", "SIGTERM", "SIGHUP"], this.#onSignal);

  release(): void {
    clearInterval(this.#watch);
    this.#release();
  }
}

async function quickstart(command: string | undefined, keep: boolean): Promise<number> {
  const dir = dataFolder();
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const interrupt = new Interrupt();
  const { signal } = interrupt.controller;
  const startedAt = performance.now();
  let server: RunningServer | undefined;
  let api: ApiClient | undefined;
  let stopWorkspace = false;
  try {
    say("==> Starting PostgreSQL and the server");
    const { startServer } = await import("./server.ts");
    server = await startServer({
      dataDir: dir,
      host: "127.0.0.1",
      port: FIRST_PORT,
      portTries: MAX_PORT_TRIES,
      logFile: path.join(dir, "server.log"),
      signal,
    });
    const login = await server.operatorLogin({ newPassword: () => randomBytes(18).toString("base64url") });
    if (login.created)
      say(`    First user: ${login.email}, password ${login.created.password} (shown only now)`);
    const configDir = path.join(dir, "config");
    writeLogin(configDir, { url: server.url, token: login.token });
    api = new ApiClient(server.url, login.token);
    say(`    ${server.url}`);

    await ensureTemplate(api, path.join(dir, "workspaces"), signal);
    stopWorkspace = true;
    await ensureWorkspace(api, signal);
    const code = await useWorkspace(api, { command, keep, configDir, startedAt, signal });
    return interrupt.signal && !keep ? EXIT.interrupted : code;
  } catch (error) {
    if (interrupt.signal) {
      say(`Stopped by ${interrupt.signal}.`);
      return keep && interrupt.signal === "SIGINT" ? 0 : EXIT.interrupted;
    }
    return reportError(error);
  } finally {
    if (api && stopWorkspace) await stop(api).catch((error: unknown) => reportError(error));
    api?.close();
    await server?.stop();
    interrupt.release();
  }
}

/** Publishes the starter, unless the active version already holds the same files. */
async function ensureTemplate(api: ApiClient, workspacesDir: string, signal: AbortSignal): Promise<Template> {
  const directory = path.join(starterTemplatesDir(), TEMPLATE);
  const existing = await findTemplate(api, TEMPLATE);
  if (existing) {
    const active = await api.get<TemplateVersion>(`/templateversions/${existing.active_version_id}`);
    if ((await uploadTemplate(api, directory, signal)) === active.job.file_id) return existing;
  }
  say(`==> Publishing template ${TEMPLATE}`);
  return (
    await pushTemplate(api, {
      name: TEMPLATE,
      directory,
      variables: [{ name: "path", value: workspacesDir }],
      activate: true,
      signal,
    })
  ).template;
}

async function ensureWorkspace(api: ApiClient, signal: AbortSignal): Promise<void> {
  const template = await findTemplate(api, TEMPLATE);
  const existing = await settledWorkspace(api, signal);
  if (existing) {
    // A run that was killed left it running, with an agent that knows a server address of that run.
    if (existing.latest_build.transition === "start") {
      say(`==> Stopping workspace ${WORKSPACE}, which an earlier run left`);
      await runBuild(api, existing, { transition: "stop", reason: "cli" }, { signal, write: quiet });
    }
    say(`==> Starting workspace ${WORKSPACE}`);
    await runBuild(api, existing, { transition: "start", reason: "cli" }, { signal });
    return;
  }
  say(`==> Creating workspace ${WORKSPACE}`);
  const workspace = await api.post<Workspace>("/users/me/workspaces", {
    template_id: template?.id,
    name: WORKSPACE,
  });
  await runBuild(api, workspace, { follow: workspace.latest_build.id, transition: "start" }, { signal });
}

async function useWorkspace(
  api: ApiClient,
  options: {
    command: string | undefined;
    keep: boolean;
    configDir: string;
    startedAt: number;
    signal: AbortSignal;
  },
): Promise<number> {
  const { command, keep, configDir, startedAt, signal } = options;
  const mesh = startMesh(api);
  try {
    const { agent } = await runningWorkspace(api, WORKSPACE, { autostart: false, signal });
    const connection = await connectToAgent(mesh, {
      agentId: agent.id,
      what: `workspace ${WORKSPACE}`,
      signal,
    });
    await waitForStartup(api, agent, "auto", signal);
    const { via, rttMs } = await connection.ping();
    say(
      `==> Connected ${via}, round trip ${rttMs.toFixed(2)} ms, ready after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`,
    );
    if (keep) {
      say(
        "    Leave with Ctrl-C. In another terminal, in this folder, use `npx --no-install coder ...` after:",
      );
      process.stdout.write(`export CODER_URL=${api.url}\nexport CODER_CONFIG_DIR=${shellQuote(configDir)}\n`);
      await new Promise<void>((resolve) => {
        // Pending only on a signal: something must keep the loop alive if all sockets happen to be idle.
        const alive = setInterval(() => undefined, 60_000);
        const finish = () => {
          clearInterval(alive);
          resolve();
        };
        if (signal.aborted) finish();
        signal.addEventListener("abort", finish, { once: true });
      });
      return 0;
    }
    const withoutTerminal = command === undefined && !(process.stdin.isTTY && process.stdout.isTTY);
    return await runInteractive(connection, {
      command: withoutTerminal ? "uname -a" : command,
      abort: signal,
    });
  } finally {
    await mesh.close();
  }
}

const shellQuote = (text: string): string =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

const quiet = (): void => undefined;

/** The workspace with no build under way: one that an earlier run (or a client of it) left is canceled first. */
async function settledWorkspace(api: ApiClient, signal?: AbortSignal): Promise<Workspace | undefined> {
  for (;;) {
    const workspace = await findWorkspace(api, WORKSPACE).catch((error: { code?: string }) => {
      if (error.code === "ERR_WORKSPACE_NOT_FOUND") return undefined;
      throw error;
    });
    if (!workspace || !["pending", "running", "canceling"].includes(workspace.latest_build.job.status))
      return workspace;
    const { id, transition } = workspace.latest_build;
    await api.patch(`/workspacebuilds/${id}/cancel`, undefined).catch(() => undefined);
    await runBuild(api, workspace, { follow: id, transition }, { write: quiet, signal }).catch(
      (error: unknown) => {
        // How it ended is of no interest; that we were told to stop is.
        if (signal?.aborted) throw error;
      },
    );
  }
}

/** Ends the workspace's processes the way the platform does it: by a stop build. */
async function stop(api: ApiClient): Promise<void> {
  say("==> Stopping");
  const workspace = await settledWorkspace(api);
  if (workspace?.latest_build.transition !== "start") return;
  await runBuild(api, workspace, { transition: "stop", reason: "cli" }, { write: quiet });
}
