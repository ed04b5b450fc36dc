import os from "node:os";
import path from "node:path";
import type { AgentLifecycleState, AgentManifest } from "../control/contract/agent.ts";
import { SESSION_SERVICE } from "../mesh/wire/channel.ts";
import { MeshError } from "../mesh/wire/errors.ts";
import { LISTEN_SERVICE, SESSIONS_SERVICE, SPEEDTEST_SERVICE } from "../mesh/wire/forward.ts";
import { AgentApi, AgentApiError } from "./api.ts";
import { installCli } from "./cli.ts";
import { ForwardService } from "./forward/serve.ts";
import { LifecycleReporter } from "./lifecycle.ts";
import { describe, type Logger } from "./logging.ts";
import { LogQueue } from "./logs.ts";
import { pause, retry } from "./retry.ts";
import { runSchedules } from "./schedule.ts";
import {
  binDirOf,
  claimDataDir,
  runScript,
  runScripts,
  type ScriptDeps,
  type ScriptOutcome,
} from "./scripts.ts";
import { type SessionDirectory, serveSessionList } from "./session-list.ts";
import {
  type Account,
  baseEnvironment,
  currentAccount,
  type Environment,
  expandedDirectory,
  expandPath,
  workingDirectory,
} from "./sessions/environment.ts";
import { PipePool } from "./sessions/pipes.ts";
import { preparingShell } from "./sessions/sealed.ts";
import { SessionService } from "./sessions/serve.ts";
import { SpeedtestService } from "./speedtest.ts";
import type { DatagramStream, IncomingStream, Peer } from "./streams.ts";

/** How long a rejected token is tried again: builds that go on after the agent's start take that long. */
export const TOKEN_PATIENCE_MS = 60 * 60_000;
const MIN_RETRY_MS = 250;
const MAX_RETRY_MS = 15_000;
/** While the build is still under way the token turns valid any moment, and the user waits for us. */
const MAX_TOKEN_RETRY_MS = 3_000;
/** Stop scripts without a limit of their own. */
const STOP_SCRIPTS_MS = 5 * 60_000;
const STARTUP_PATIENCE_MS = 30_000;
const LAST_WORDS_MS = 3_000;

export type { IncomingStream };

/** The agent's place in the mesh. A service that ends in ":" is a prefix of those it takes. */
export interface MeshConnection extends SessionDirectory {
  listen(service: string, handler: (stream: DatagramStream, peer: Peer) => void): void;
  close(): Promise<void> | void;
  /** Resolves when the connection is over for good; it mends what can be mended itself. */
  readonly closed?: Promise<unknown>;
}

export interface AgentOptions {
  /** The control plane's address. */
  url: string;
  token: string;
  logger: Logger;
  connectMesh(manifest: AgentManifest): Promise<MeshConnection>;
  /** Default: the process's own, without what sessions must not see. */
  env?: NodeJS.ProcessEnv;
  account?: Account;
  version?: string;
  /** Private folder for scripts' files. Default: in the temporary folder. */
  dataDir?: string;
  /** Where scripts' relative log paths lie. Default: the temporary folder, as in Coder. */
  logDir?: string;
  /** argv of the `coder` command, to be put on the PATH of sessions. Default: this process, if it is one. */
  cli?: readonly string[];
  tokenPatienceMs?: number;
  fetch?: typeof fetch;
}

export class AgentError extends MeshError {
  readonly code = "ERR_TOKEN_REJECTED";
}

const START_STATES: Record<ScriptOutcome, AgentLifecycleState | undefined> = {
  ok: "ready",
  failed: "start_error",
  timedOut: "start_timeout",
  stopped: undefined,
};
const STOP_STATES: Record<ScriptOutcome, AgentLifecycleState> = {
  ok: "off",
  failed: "shutdown_error",
  timedOut: "shutdown_timeout",
  stopped: "shutdown_timeout",
};

/** The workspace's end of everything: reports to the control plane, runs scripts, serves sessions over the mesh. */
export class Agent {
  readonly #options: AgentOptions;
  readonly #api: AgentApi;
  readonly #logger: Logger;
  readonly #account: Account;
  #workspace: Workspace | undefined;
  #signal: AbortSignal | undefined;

  constructor(options: AgentOptions) {
    this.#options = options;
    this.#api = new AgentApi({ url: options.url, token: options.token, fetch: options.fetch });
    this.#logger = options.logger;
    this.#account = options.account ?? currentAccount(options.env);
  }

  /**
   * Runs until `signal` aborts and everything is shut down in order. A control plane that is away, or a mesh that
   * can't be joined, is tried again for ever.
   *
   * @throws {AgentError} ERR_TOKEN_REJECTED when the token was refused for TOKEN_PATIENCE_MS on end
   */
  async run(signal: AbortSignal): Promise<void> {
    const manifest = await this.#fetchManifest(signal);
    if (!manifest) return;
    this.#logger.info(
      { agent: manifest.agent_name, workspace: manifest.workspace_name, scripts: manifest.scripts.length },
      "agent started",
    );
    const workspace = this.#prepare(manifest);
    this.#workspace = workspace;
    this.#signal = signal;
    const { lifecycle, logs, sessions, forwards, pipes } = workspace;
    lifecycle.report("created");
    const started = this.#start(workspace, signal);
    await this.#serve(workspace, signal);
    await started;
    lifecycle.report("shutting_down");
    const outcome = await this.#runScripts(workspace, "stop", AbortSignal.timeout(STOP_SCRIPTS_MS));
    await sessions.close();
    forwards.close();
    lifecycle.report(STOP_STATES[outcome]);
    await Promise.all([lifecycle.close(LAST_WORDS_MS), logs.close(LAST_WORDS_MS)]);
    await this.#closeMesh(workspace);
    pipes.close();
    this.#logger.info({}, "agent stopped");
  }

  /**
   * Who the token makes this agent, as the coordinator says on every connect. A build that kept agent and token made a
   * new one of it, which knows nothing yet of what runs here. Scripts don't run again. Never rejects.
   */
  async identify(agentId: string): Promise<void> {
    const [workspace, signal] = [this.#workspace, this.#signal];
    if (!workspace || !signal || workspace.manifest.agent_id === agentId) return;
    try {
      const manifest = await this.#fetchManifest(signal);
      if (!manifest) return;
      this.#logger.info({ agentId: manifest.agent_id }, "a newer build kept this agent");
      workspace.manifest = manifest;
      await this.#announce(workspace, signal);
      workspace.lifecycle.repeat();
    } catch (error) {
      this.#logger.warn({ reason: describe(error) }, "could not take the place of the newer build's agent");
    }
  }

  async #fetchManifest(signal: AbortSignal): Promise<AgentManifest | undefined> {
    const patienceMs = this.#options.tokenPatienceMs ?? TOKEN_PATIENCE_MS;
    let rejectedSince: number | undefined;
    let last = "";
    return retry(() => this.#api.manifest(signal), {
      minMs: MIN_RETRY_MS,
      maxMs: () => (rejectedSince === undefined ? MAX_RETRY_MS : MAX_TOKEN_RETRY_MS),
      signal,
      onFailure: (error) => {
        const now = performance.now();
        const rejected = error instanceof AgentApiError && error.code === "ERR_TOKEN_REJECTED";
        rejectedSince = rejected ? (rejectedSince ?? now) : undefined;
        if (rejectedSince !== undefined && now - rejectedSince > patienceMs)
          throw new AgentError(`${describe(error)}. Giving up; start the workspace to get a new agent.`);
        // Each reason once: an hour of the same line tells nothing more.
        if (describe(error) !== last)
          this.#logger.warn({ reason: describe(error) }, "no manifest yet, trying again");
        last = describe(error);
      },
    });
  }

  #prepare(manifest: AgentManifest): Workspace {
    const { url, env = process.env, dataDir, logDir } = this.#options;
    const account = this.#account;
    const directory =
      dataDir ?? path.join(os.tmpdir(), `coder-agent-${process.getuid?.() ?? account.username}`);
    const logger = this.#logger;
    const owned = claimDataDir(directory, logger);
    const environment = baseEnvironment({
      inherited: env,
      account,
      manifest,
      agentUrl: url,
      binDir: owned && binDirOf(owned),
    });
    const pipes = new PipePool();
    const cwd = () => workingDirectory(manifest, environment, account.homeDir);
    void pipes.warm();
    preparingShell(); // tried once, here and not in somebody's first session
    if (owned) installCli(owned, this.#options.cli, logger);
    const motdFile = () =>
      manifest.motd_file.trim() === "" ? "" : expandPath(manifest.motd_file, environment, account.homeDir);
    return {
      manifest,
      environment,
      pipes,
      cwd,
      dataDir: owned ?? directory,
      logDir: logDir ?? os.tmpdir(),
      lifecycle: new LifecycleReporter((report) => this.#api.lifecycle(report), logger),
      logs: new LogQueue((batch) => this.#api.logs(batch), logger),
      sessions: new SessionService({ account, environment, directory: cwd, pipes, logger, motdFile }),
      forwards: new ForwardService({ logger, resolvePath: (file) => path.resolve(cwd(), file) }),
      speedtests: new SpeedtestService(),
      mesh: undefined,
    };
  }

  /** Says what runs here. */
  async #announce({ manifest, environment }: Workspace, signal: AbortSignal): Promise<void> {
    const body = {
      version: this.#options.version ?? "0.0.0",
      expanded_directory: expandedDirectory(manifest, environment, this.#account.homeDir),
      operating_system: process.platform === "win32" ? "windows" : process.platform,
      architecture: process.arch === "x64" ? "amd64" : process.arch,
    };
    // Scripts don't wait for long for a server that went away meanwhile.
    const patience = AbortSignal.any([signal, AbortSignal.timeout(STARTUP_PATIENCE_MS)]);
    await retry(() => this.#api.startup(body, patience), {
      minMs: MIN_RETRY_MS,
      maxMs: MAX_RETRY_MS,
      signal: patience,
      onFailure: (error) => {
        if (error instanceof AgentApiError && !error.mayWorkLater) throw error;
      },
    }).catch((error: unknown) => this.#logger.warn({ reason: describe(error) }, "startup was refused"));
  }

  /** Announces this agent, runs the start scripts, then those on a schedule; sessions wait for none of it. */
  async #start(workspace: Workspace, signal: AbortSignal): Promise<void> {
    const { lifecycle } = workspace;
    await this.#announce(workspace, signal);
    if (signal.aborted) return;
    lifecycle.report("starting");
    const state = START_STATES[await this.#runScripts(workspace, "start", signal)];
    if (state) lifecycle.report(state);
    const deps = this.#scriptDeps(workspace, signal);
    await runSchedules(workspace.manifest.scripts, {
      run: (script) => runScript(script, deps),
      log: deps.log,
      logger: this.#logger,
      signal,
    });
  }

  #runScripts(workspace: Workspace, when: "start" | "stop", signal: AbortSignal): Promise<ScriptOutcome> {
    const scripts = workspace.manifest.scripts.filter((script) =>
      when === "start" ? script.run_on_start : script.run_on_stop,
    );
    return runScripts(scripts, this.#scriptDeps(workspace, signal));
  }

  #scriptDeps(workspace: Workspace, signal: AbortSignal): ScriptDeps {
    const { environment, pipes, cwd, logs, dataDir, logDir } = workspace;
    return {
      shell: this.#account.shell,
      homeDir: this.#account.homeDir,
      environment,
      directory: cwd,
      dataDir,
      logDir,
      pipes,
      logger: this.#logger,
      log: (sourceId, level, output) => logs.add(sourceId, level, output),
      signal,
    };
  }

  /** Keeps a mesh connection until `signal` aborts. */
  async #serve(workspace: Workspace, signal: AbortSignal): Promise<void> {
    const aborted = new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    while (!signal.aborted) {
      const connecting = retry(() => this.#options.connectMesh(workspace.manifest), {
        minMs: MIN_RETRY_MS,
        maxMs: MAX_RETRY_MS,
        signal,
        onFailure: (error) =>
          this.#logger.warn({ reason: describe(error) }, "the mesh can't be joined, trying again"),
      });
      const mesh = await Promise.race([connecting, aborted]);
      if (!mesh) {
        // Aborted while connecting: what still comes of it is closed, not used.
        void connecting.then((late) => late?.close());
        return;
      }
      workspace.mesh = mesh;
      this.#offer(mesh, workspace);
      this.#logger.info({}, "joined the mesh");
      await Promise.race([mesh.closed ?? aborted, aborted]);
      if (signal.aborted) return;
      workspace.mesh = undefined;
      this.#logger.warn({}, "left the mesh, joining again");
      await pause(MIN_RETRY_MS, signal);
    }
  }

  /** Every service of this agent. */
  #offer(mesh: MeshConnection, { sessions, forwards, speedtests }: Workspace): void {
    const serve = (service: string, handler: (stream: DatagramStream, peer: Peer) => Promise<void>) =>
      mesh.listen(service, (stream, peer) => {
        handler(stream, peer).catch((error: unknown) => {
          // None should: one stream's defect must not end everybody's sessions.
          this.#logger.error({ service: service.slice(0, 64), reason: describe(error) }, "a service failed");
          stream.destroy();
        });
      });
    serve(SESSION_SERVICE, (stream, peer) => sessions.handle(stream, stream.metadata, peer));
    serve("tcp:", (stream) => forwards.tcp(stream));
    serve("unix:", (stream) => forwards.unix(stream));
    serve("udp:", (stream) => forwards.udp(stream));
    serve(LISTEN_SERVICE, (stream, peer) => forwards.listen(stream, peer));
    serve(SPEEDTEST_SERVICE, (stream) => speedtests.handle(stream));
    serve(SESSIONS_SERVICE, (stream, peer) => serveSessionList(stream, peer, mesh, this.#logger));
  }

  async #closeMesh({ mesh }: Workspace): Promise<void> {
    if (!mesh) return;
    const limit = new AbortController();
    const closed = Promise.resolve(mesh.close()).catch((error: unknown) =>
      this.#logger.debug({ reason: describe(error) }, "the mesh did not close cleanly"),
    );
    await Promise.race([closed, pause(LAST_WORDS_MS, limit.signal)]);
    limit.abort();
  }
}

interface Workspace {
  manifest: AgentManifest;
  environment: Environment;
  pipes: PipePool;
  cwd(): string;
  dataDir: string;
  logDir: string;
  lifecycle: LifecycleReporter;
  logs: LogQueue;
  sessions: SessionService;
  forwards: ForwardService;
  speedtests: SpeedtestService;
  mesh: MeshConnection | undefined;
}
