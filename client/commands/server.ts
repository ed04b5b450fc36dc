// Composition of a server: database, control plane, coordinator, relay and built-in provisioner daemons. One of the
// few files that may load them, and only when a server is what was asked for.
import path from "node:path";
import { type Command, Option } from "commander";
import { contextOf } from "../context.ts";
import { CliError } from "../errors.ts";
import { say } from "../output.ts";
import { onPresses } from "../presses.ts";
import { installRoot } from "../resources.ts";
import { VERSION } from "../version.ts";
import { parseAddress } from "./address.ts";
import { addRelayFlags, type RelayFlags, type RelaySettings, relaySettings } from "./server-relay.ts";

export { parseAddress } from "./address.ts";

export interface ServerOptions {
  /** Holds the embedded database, fetched programs and local workspaces. 0700. */
  dataDir: string;
  host: string;
  port: number;
  /** How many further ports to try when the first is taken. */
  portTries?: number;
  accessUrl?: string;
  /** PostgreSQL to use instead of the embedded one. */
  databaseUrl?: string;
  cacheDir?: string;
  provisionerDaemons?: number;
  /** Never fetch anything. */
  airGapped?: boolean;
  /** JSON lines; stderr by default. */
  logFile?: string;
  logLevel?: string;
  signal?: AbortSignal;
  /** Aborted, a stop waits for running builds no longer: it cancels them, which keeps their state. */
  hurry?: AbortSignal;
  onProgress?: (message: string) => void;
  /** Relay, TLS and metrics; by default a relay in this process, without TLS and STUN. */
  relay?: RelaySettings;
}

export interface RunningServer {
  url: string;
  /** Where it listens with TLS. */
  tlsUrl: string | undefined;
  /** Where it serves metrics. */
  prometheusPort: number | undefined;
  /** Reads certificates and rate limits again. */
  reload(): void;
  accessUrl: string;
  /** Settles when the embedded database has ended by itself. */
  failed: Promise<Error>;
  /** A session for the first user, who is made if there is none; for the operator's own commands. */
  operatorLogin(options: { newPassword(): string }): Promise<{
    token: string;
    email: string;
    created?: { password: string };
  }>;
  stop(): Promise<void>;
}

const DEFAULT_ADDRESS = "127.0.0.1:3000";
const COORDINATOR_PATH = /^\/api\/v2\/mesh\/coordinate$/;
const RELAY_PATH = /^\/derp$/;
const RELAY_HTTP_PATH = /^\/(derp(\/probe|\/latency-check)?|generate_204)$/;

export function register(program: Command): void {
  const command = program.command("server");
  command
    .description("Run the server: API, coordinator, relay and provisioner daemons")
    .option(
      "--http-address <host:port>",
      "where to listen (CODER_HTTP_ADDRESS)",
      process.env["CODER_HTTP_ADDRESS"],
    )
    .option(
      "--access-url <url>",
      "address people and workspaces use (CODER_ACCESS_URL)",
      process.env["CODER_ACCESS_URL"],
    )
    .option("--postgres-url <url>", "PostgreSQL to use; embedded by default (CODER_PG_CONNECTION_URL)")
    .option(
      "--cache-dir <dir>",
      "where fetched programs are kept (CODER_CACHE_DIRECTORY)",
      process.env["CODER_CACHE_DIRECTORY"],
    )
    .option(
      "--provisioner-daemons <count>",
      "built-in provisioner daemons (CODER_PROVISIONER_DAEMONS)",
      process.env["CODER_PROVISIONER_DAEMONS"] ?? "3",
    )
    .option(
      "--air-gapped",
      "never fetch anything (CODER_AIR_GAPPED)",
      process.env["CODER_AIR_GAPPED"] === "true",
    )
    .addOption(
      new Option("--log-level <level>", "how much to log")
        .choices(["debug", "info", "warn", "error"])
        .default("info")
        .env("CODER_LOG_LEVEL"),
    )
    .action((options: ServerFlags, self: Command) => serve(options, self));
  addRelayFlags(command).addHelpText(
    "after",
    "\nExample:\n  coder server --access-url https://coder.example.com --http-address 0.0.0.0:3000",
  );
}

interface ServerFlags extends RelayFlags {
  httpAddress?: string;
  accessUrl?: string;
  postgresUrl?: string;
  cacheDir?: string;
  provisionerDaemons: string;
  airGapped: boolean;
  logLevel: string;
}

async function serve(flags: ServerFlags, command: Command): Promise<void> {
  const { configDir } = contextOf(command);
  const count = Number(flags.provisionerDaemons);
  if (!Number.isInteger(count) || count < 0 || count > 100)
    throw new CliError("ERR_BAD_COUNT", `"${flags.provisionerDaemons}" is no count of daemons`, {
      hint: "Write 0 to 100.",
    });
  const http = parseAddress(flags.httpAddress ?? DEFAULT_ADDRESS);
  const relay = relaySettings(flags, http);
  const stopping = new AbortController();
  const hurry = new AbortController();
  const onSignal = () => {
    if (hurry.signal.aborted) process.exit(1);
    if (stopping.signal.aborted) {
      say("Canceling running builds; a third signal ends at once and may lose what they made.");
      hurry.abort();
    }
    stopping.abort(new Error("stopped by a signal"));
  };
  const release = onPresses(["SIGINT", "SIGTERM"], onSignal);
  // What has files to read again takes the signal for that; else it ends the server, as a terminal that closes should.
  const reloads = relay.relay.tls !== undefined || relay.relay.rateConfigPath !== undefined;
  let reload: (() => void) | undefined;
  const onHangup = () => reload?.();
  if (reloads) process.on("SIGHUP", onHangup);
  try {
    const server = await startServer({
      ...http,
      relay,
      dataDir: configDir,
      accessUrl: flags.accessUrl,
      databaseUrl: flags.postgresUrl ?? process.env["CODER_PG_CONNECTION_URL"],
      cacheDir: flags.cacheDir,
      provisionerDaemons: count,
      airGapped: flags.airGapped,
      logLevel: flags.logLevel,
      signal: stopping.signal,
      hurry: hurry.signal,
      onProgress: say,
    });
    reload = server.reload;
    say(`Serving ${server.accessUrl}. On your machine: coder login ${server.accessUrl}`);
    const failure = await Promise.race([server.failed, aborted(stopping.signal)]);
    if (!failure) say("Stopping: running builds have a minute to complete; a second signal cancels them.");
    await server.stop();
    if (failure) throw failure;
  } catch (error) {
    // Asked to stop before it had started: that is what it did.
    if (!stopping.signal.aborted || error !== stopping.signal.reason) throw error;
  } finally {
    release();
    process.off("SIGHUP", onHangup);
  }
}

function aborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined);
    else signal.addEventListener("abort", () => resolve(undefined), { once: true });
  });
}

/** What was started, ended in reverse order, each step once and whatever the others do. */
class Cleanup {
  readonly #steps: (() => Promise<unknown> | unknown)[] = [];

  add(step: () => Promise<unknown> | unknown): void {
    this.#steps.push(step);
  }

  async run(): Promise<void> {
    let failure: unknown;
    for (let step = this.#steps.pop(); step; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        failure ??= error;
      }
    }
    if (failure) throw failure;
  }
}

/** @throws MeshErrors that say what to do: no terraform, port in use, database unreachable, ... */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const cleanup = new Cleanup();
  try {
    return await start(options, cleanup);
  } catch (error) {
    await cleanup.run().catch(() => undefined);
    throw error;
  }
}

async function start(options: ServerOptions, cleanup: Cleanup): Promise<RunningServer> {
  const { dataDir, signal } = options;
  const { pino } = await import("pino");
  const control = await import("../../control/compose.ts");
  const logger = pino(
    { base: undefined, level: options.logLevel ?? "info", timestamp: pino.stdTimeFunctions.isoTime },
    pino.destination({ dest: options.logFile ?? 2, sync: true, mkdir: true, mode: 0o600 }),
  );

  const cacheDir = options.cacheDir ?? path.join(dataDir, "cache");
  const daemons = options.provisionerDaemons ?? 3;
  const terraform =
    daemons > 0
      ? await control.locateTerraform({
          env: process.env,
          cacheDir,
          fetchAllowed: options.airGapped !== true,
          onProgress: options.onProgress,
          signal,
        })
      : undefined;
  signal?.throwIfAborted();

  let databaseUrl = options.databaseUrl;
  let databaseEnded: Promise<Error> = new Promise(() => undefined);
  if (!databaseUrl) {
    const embedded = await control.startEmbeddedPostgres({ dataDir: path.join(dataDir, "postgres"), logger });
    let stopping = false;
    cleanup.add(() => {
      stopping = true;
      return embedded.stop();
    });
    databaseEnded = new Promise((resolve) => {
      void embedded.ended.then(({ log }) => {
        if (!stopping)
          resolve(
            new CliError(
              "ERR_DATABASE_ENDED",
              `the embedded PostgreSQL ended by itself:\n  ${log.slice(-5).join("\n  ")}`,
            ),
          );
      });
    });
    databaseUrl = embedded.connectionUrl;
  }
  const knex = await control.openDatabase({ url: databaseUrl });
  cleanup.add(() => knex.destroy());
  signal?.throwIfAborted();

  const settings = options.relay;
  const services =
    settings &&
    (await import("../../control/relay.ts").then((it) => it.startRelayServices(settings.relay, logger)));
  cleanup.add(() => services?.stop());

  // What the upgrades need exists only once migrations ran and the address is known; nobody can ask before.
  let mesh: Awaited<ReturnType<typeof control.startMeshServices>> | undefined;
  const listen = (port: number) =>
    control.startControlPlane({
      knex,
      databaseUrl,
      isDatabaseOurs: options.databaseUrl === undefined || options.databaseUrl === "",
      listenHost: options.host,
      listenPort: port,
      accessUrl: options.accessUrl,
      tls: settings?.tls && { ...settings.tls, options: services?.readTls() ?? {} },
      version: VERSION.slice(1),
      logger,
      ...(services && { relayMap: (accessUrl: string) => services.relayMap(accessUrl) }),
      mounts: [{ path: RELAY_HTTP_PATH, handle: control.handleDerpRequest }],
      upgrades: [
        { path: RELAY_PATH, handle: (req, socket, head) => mesh?.relay.handleUpgrade(req, socket, head) },
        {
          path: COORDINATOR_PATH,
          handle: (req, socket, head, authenticate) => mesh?.handleUpgrade(req, socket, head, authenticate),
        },
      ],
      startDaemons: async ({ queue, topics, accessUrl }) => {
        mesh = await control.startMeshServices({
          knex,
          topics,
          accessUrl: () => accessUrl,
          logger,
          ...(services && { makeRelay: services.makeRelay, relayMap: () => services.relayMap(accessUrl) }),
        });
        await services?.ready();
        if (!terraform) return { stop: async () => undefined };
        const running = control.startDaemons({
          queue,
          count: daemons,
          terraform,
          env: process.env,
          agentCommand: [process.execPath, path.join(installRoot(), "dist/coder.js")],
          cacheDir,
          rescueDir: path.join(dataDir, "rescued-states"),
          logger,
        });
        options.hurry?.addEventListener("abort", () => void running.stop({ drainMs: 0 }), { once: true });
        return running;
      },
    });

  const controlPlane = await firstFreePort(options, listen);
  cleanup.add(() => controlPlane.stop());
  if (services) services.onTls = controlPlane.setTls;
  // Before the HTTP server closes, so that nodes hear why.
  cleanup.add(() => mesh?.stop());
  // Before that: nodes keep relay and coordinator while running builds complete.
  cleanup.add(() => controlPlane.drain());
  const metrics =
    settings?.prometheus &&
    services &&
    (await import("../../control/relay.ts").then((it) =>
      it.startMetricsListener(settings.prometheus!, () => services.metrics()),
    ));
  cleanup.add(() => metrics?.close());
  return {
    url: controlPlane.url,
    tlsUrl: controlPlane.tlsUrl,
    prometheusPort: metrics?.port,
    reload: () => services?.reload(),
    accessUrl: controlPlane.accessUrl,
    failed: databaseEnded,
    operatorLogin: ({ newPassword }) => control.operatorLogin(knex, newPassword),
    stop: () => cleanup.run(),
  };
}

async function firstFreePort<T>(options: ServerOptions, listen: (port: number) => Promise<T>): Promise<T> {
  const tries = options.portTries ?? 0;
  for (let i = 0; ; i++) {
    try {
      return await listen(options.port + i);
    } catch (error) {
      if ((error as { code?: string }).code !== "ERR_PORT_IN_USE" || i >= tries) throw error;
    }
  }
}
