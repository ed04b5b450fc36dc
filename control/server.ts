// The control plane as one running thing: database, API, job queue, reaper, upgrades. The command that composes a
// server (client/commands/server.ts) attaches relay, coordinator and daemons through `upgrades` and `startDaemons`.
import http, { type IncomingMessage } from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import type { Knex } from "knex";
import type { Logger } from "pino";
import { MeshError } from "../mesh/wire/errors.ts";
import { createApi } from "./api/api.ts";
import { authenticateAny, type Identity } from "./api/authenticate.ts";
import type { ApiDeps, ApiLimits } from "./api/deps.ts";
import { ApiError, toApiError, toErrorBody } from "./api/errors.ts";
import { followServer, type Upgrade } from "./api/follow.ts";
import { MAX_TEMPLATE_ARCHIVE_BYTES } from "./contract/templates.ts";
import { DatabaseListener } from "./db/listen.ts";
import { migrate } from "./db/migrate.ts";
import { migrations } from "./db/migrations/index.ts";
import { errorText, errorTrace } from "./db/queries/error-text.ts";
import { deleteExpiredKeys, MAX_KEY_LIFETIME_MS } from "./db/queries/keys.ts";
import { Topics } from "./db/queries/topics.ts";
import type { JobQueue } from "./provisioner/protocol.ts";
import { PostgresJobQueue } from "./provisioner/queue.ts";
import { REAP_EVERY_MS, reapJobs } from "./provisioner/queue-reaper.ts";

export type { Identity, Upgrade };

/** A plain request that somebody else answers: binaries, relay probes, the dashboard. */
export interface Mount {
  /** Tried on the path, without the query, before the API. */
  path: RegExp;
  handle(req: IncomingMessage, res: http.ServerResponse): void;
}

export interface ControlPlaneOptions {
  knex: Knex;
  /** For LISTEN, which needs a connection of its own. */
  databaseUrl: string;
  listenHost: string;
  /** 0: any free one. */
  listenPort: number;
  /** Listens with TLS as well; plain HTTP stays, for what runs on this machine and behind a proxy. */
  tls?: { host: string; port: number; options: https.ServerOptions };
  /** No other server uses the database: jobs that were running when we start have nobody who works on them. */
  isDatabaseOurs?: boolean;
  /** The URL people and workspaces reach us at; default: where we listen. */
  accessUrl?: string;
  version: string;
  logger: Logger;
  upgrades?: Upgrade[];
  mounts?: Mount[];
  /** The relays there are, when the one at the access URL isn't all. */
  relayMap?: (accessUrl: string) => { Regions: Record<string, unknown> };
  /** Called once the server listens; stopped first. */
  startDaemons?: (plane: {
    queue: JobQueue;
    topics: Topics;
    accessUrl: string;
  }) => Promise<{ stop(): Promise<void> }>;
  limits?: Partial<ApiLimits>;
  maxTokenLifetimeMs?: number;
  now?: () => Date;
}

export interface ControlPlane {
  /** Where it listens, as a URL on this machine. */
  url: string;
  accessUrl: string;
  port: number;
  /** Where it listens with TLS, as a URL on this machine. */
  tlsUrl: string | undefined;
  /** New connections get these certificates; those that are open go on. */
  setTls(options: https.ServerOptions): void;
  queue: PostgresJobQueue;
  topics: Topics;
  deploymentId: string;
  /** Stops the daemons, which may take as long as running builds do. Everything else goes on meanwhile. */
  drain(): Promise<void>;
  /** Daemons first, then requests under way, at most `timeoutMs`; whatever is left is cut. The pool stays open. */
  stop(timeoutMs?: number): Promise<void>;
}

const DEFAULT_LIMITS: ApiLimits = {
  templateArchiveBytes: MAX_TEMPLATE_ARCHIVE_BYTES,
  bodyBytes: 1 << 20,
  agentLogBytes: 1 << 20,
};
/** For requests under way. Whoever waits for the next server waits for this one's last client. */
const STOP_TIMEOUT_MS = 3_000;
/** For WebSockets, which were told to close. */
const CLOSE_GRACE_MS = 1_000;
/** A TCP connection that doesn't get as far as TLS. */
const TLS_HANDSHAKE_MS = 10_000;
/** Upgrades that come between listening and the start of what serves them; all nodes are back within that moment. */
const MAX_EARLY_UPGRADES = 4_096;

export class ServerError extends MeshError {
  readonly code: "ERR_PORT_IN_USE" | "ERR_LISTEN";
  constructor(code: ServerError["code"], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/**
 * Migrates, listens, serves.
 *
 * @throws {ServerError} ERR_PORT_IN_USE, ERR_LISTEN
 * @throws {DatabaseError} see migrate()
 */
export async function startControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const { knex, logger, now = () => new Date() } = options;
  await migrate(knex, migrations);
  if (options.isDatabaseOurs) await reapJobs(knex, now(), { atStart: true });
  const listener = new DatabaseListener({ url: options.databaseUrl, logger });
  const topics = new Topics(listener);
  const closeTopics = async (): Promise<void> => {
    await topics.stop();
    await listener.close();
  };
  try {
    await topics.start(["provisioner_job_posted", "provisioner_job", "workspace_agent", "workspace", "user"]);
  } catch (error) {
    await closeTopics();
    throw error;
  }
  const { id: deploymentId } = await knex("deployment").first<{ id: string }>("id");

  let accessUrl = options.accessUrl?.replace(/\/+$/, "") ?? "";
  const { relayMap } = options;
  const deps: ApiDeps = {
    knex,
    topics,
    logger,
    accessUrl: () => accessUrl,
    version: options.version,
    deploymentId,
    limits: { ...DEFAULT_LIMITS, ...options.limits },
    ...(relayMap && { relayMap: () => relayMap(accessUrl) }),
    maxTokenLifetimeMs: options.maxTokenLifetimeMs ?? MAX_KEY_LIFETIME_MS,
    now,
  };
  const api = createApi(deps).callback();
  const follow = followServer(deps);
  const mounts = options.mounts ?? [];
  const upgrades = [...(options.upgrades ?? []), ...follow.upgrades];

  const onRequest = (req: IncomingMessage, res: http.ServerResponse): void => {
    const path = pathOf(req);
    const mount = mounts.find((candidate) => candidate.path.test(path));
    if (mount) mount.handle(req, res);
    else void api(req, res);
  };
  const logins = new Logins();
  const upgraded = new Set<Duplex>();
  /** Of all servers, those in a TLS handshake too, which no server counts among what it can close. */
  const connections = new Set<Duplex>();
  let early = 0;
  let setStarted = (): void => {};
  let started: Promise<void> | undefined = new Promise((resolve) => {
    setStarted = () => {
      started = undefined;
      resolve();
    };
  });
  const server = http.createServer(onRequest);
  const tlsServer =
    options.tls &&
    https.createServer({ handshakeTimeout: TLS_HANDSHAKE_MS, ...options.tls.options }, onRequest);
  const servers = tlsServer ? [server, tlsServer] : [server];
  for (const one of servers) {
    one.headersTimeout = 20_000;
    one.requestTimeout = 120_000;
    one.keepAliveTimeout = 65_000;
    one.on("connection", (socket: Duplex) => {
      connections.add(socket);
      socket.on("close", () => connections.delete(socket));
    });
    one.on("upgrade", (req: IncomingMessage, socket: Duplex, head: Buffer) => {
      upgraded.add(socket);
      socket.on("close", () => upgraded.delete(socket));
      socket.on("error", () => socket.destroy());
      void onUpgrade(req, socket, head);
    });
  }

  async function onUpgrade(req: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    if (started) {
      if (early >= MAX_EARLY_UPGRADES) return refuse(socket, STARTING);
      early++;
      await whileThere(socket, () => started);
      early--;
      if (socket.destroyed) return;
    }
    await upgrade(deps, upgrades, logins, req, socket, head);
  }

  let url: string;
  let tlsUrl: string | undefined;
  try {
    url = await listen(server, options.listenHost, options.listenPort, "http");
    if (options.tls && tlsServer) tlsUrl = await listen(tlsServer, options.tls.host, options.tls.port, "tls");
  } catch (error) {
    server.close();
    await closeTopics();
    throw error;
  }
  accessUrl ||= tlsUrl ?? url;
  const queue = new PostgresJobQueue({ knex, topics, coderUrl: () => accessUrl, now });
  const sweep = (): void => {
    Promise.all([reapJobs(knex, now()), deleteExpiredKeys(knex, now())]).then(
      ([reaped]) => reaped.length > 0 && logger.warn({ jobs: reaped }, "gave up jobs that nobody finishes"),
      (error: Error) => logger.error({ error: errorText(error) }, "sweeping jobs and keys failed"),
    );
  };
  const sweeper = setInterval(sweep, REAP_EVERY_MS);
  let daemons: { stop(): Promise<void> } | undefined;

  async function drain(): Promise<void> {
    await daemons?.stop();
  }

  async function stop(timeoutMs = STOP_TIMEOUT_MS): Promise<void> {
    clearInterval(sweeper);
    await drain();
    const closed = Promise.all(
      servers.map((one) => new Promise<void>((resolve) => one.close(() => resolve()))),
    );
    follow.close();
    for (const one of servers) one.closeIdleConnections();
    const hangUp = setTimeout(() => destroyAll(upgraded), Math.min(CLOSE_GRACE_MS, timeoutMs));
    const cut = setTimeout(() => {
      destroyAll(upgraded);
      destroyAll(connections);
    }, timeoutMs);
    await closed;
    clearTimeout(hangUp);
    clearTimeout(cut);
    await closeTopics();
  }

  try {
    daemons = await options.startDaemons?.({ queue, topics, accessUrl });
    setStarted();
  } catch (error) {
    await stop(0);
    throw error;
  }
  logger.info({ url, tlsUrl, accessUrl }, "control plane listening");
  const { port } = server.address() as AddressInfo;
  const setTls = (context: https.ServerOptions): void => tlsServer?.setSecureContext(context);
  return { url, tlsUrl, setTls, accessUrl, port, queue, topics, deploymentId, drain, stop };
}

/** Upgrades are no requests a user is counted by before it is known who asks, so no more look that up at once. */
const MAX_UPGRADE_LOGINS = 8;
/** Waiting for that: all nodes of a large deployment after a restart. */
const MAX_WAITING_LOGINS = 8_192;

/** While more wait than this, the newest goes first. */
const LONG_QUEUE = 64;

/**
 * Takes turns: a storm of upgrades, with good tokens or bad, leaves most of the database's connections to others. When
 * more come than can be served before they give up, the oldest are those about to: served in the order they came, all
 * the work would be done for nodes that are gone a moment later, and none would ever be back.
 */
class Logins {
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  /** @throws {ApiError} 503 */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#waiting.length >= MAX_WAITING_LOGINS) throw BUSY;
    if (this.#running >= MAX_UPGRADE_LOGINS)
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    try {
      return await work();
    } finally {
      const next = this.#waiting.length > LONG_QUEUE ? this.#waiting.pop() : this.#waiting.shift();
      if (next) next();
      else this.#running--;
    }
  }
}

/**
 * A client that hangs up while it waits says so by ending its half; HTTP's sockets stay open for writing then, and nobody
 * who takes upgrades listens yet.
 */
async function whileThere<T>(socket: Duplex, work: () => Promise<T> | undefined): Promise<T | undefined> {
  const onEnd = () => socket.destroy();
  socket.on("end", onEnd);
  try {
    return await work();
  } finally {
    socket.off("end", onEnd);
  }
}

const BUSY = new ApiError(503, "ERR_BUSY", "Too many connections are being opened. Try again.", {
  retryAfterSeconds: 1,
});
const STARTING = new ApiError(503, "ERR_STARTING", "The server is starting. Try again.", {
  retryAfterSeconds: 1,
});

function destroyAll(sockets: Iterable<Duplex>): void {
  for (const socket of sockets) socket.destroy();
}

const pathOf = (req: IncomingMessage): string => (req.url ?? "/").split("?", 1)[0];

async function upgrade(
  deps: ApiDeps,
  upgrades: Upgrade[],
  logins: Logins,
  req: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): Promise<void> {
  const path = pathOf(req);
  try {
    const found = upgrades.find((candidate) => candidate.path.test(path));
    if (!found) throw new ApiError(404, "ERR_NO_ROUTE", "Nothing here can be upgraded to.");
    await found.handle(req, socket, head, async () => {
      const identity = await whileThere(socket, () =>
        logins.run(async () =>
          // Whoever gave up meanwhile costs nothing.
          socket.destroyed ? undefined : authenticateAny(deps, req, deps.now()),
        ),
      );
      if (!identity)
        throw new ApiError(
          401,
          "ERR_SIGNED_OUT",
          "You are signed out or your session has expired. Please sign in again.",
        );
      return identity;
    });
  } catch (error) {
    const known = toApiError(error);
    if (!known || known.status >= 500)
      deps.logger.error({ path, error: errorTrace(error) }, "upgrade failed");
    refuse(socket, known ?? new ApiError(500, "ERR_INTERNAL", "An internal error occurred."));
  }
}

/** An upgrade's socket has no response object any more: the answer is written by hand. */
function refuse(socket: Duplex, error: ApiError): void {
  if (!socket.writable) return void socket.destroy();
  const body = Buffer.from(JSON.stringify(toErrorBody(error, "")));
  const retry = error.retryAfterSeconds ? `Retry-After: ${error.retryAfterSeconds}\r\n` : "";
  socket.end(
    Buffer.concat([
      Buffer.from(
        `HTTP/1.1 ${error.status} ${http.STATUS_CODES[error.status]}\r\nContent-Type: application/json\r\n` +
          `Content-Length: ${body.length}\r\n${retry}Connection: close\r\n\r\n`,
      ),
      body,
    ]),
    () => socket.destroy(),
  );
}

/**
 * Connections the kernel keeps until we take them. After a restart all nodes come within a second; of those that found no
 * room the kernel's own next tries come after 1, 3 and 7 s. Linux allows no more by default.
 */
const BACKLOG = 4_096;

/** @returns the address as a URL that works on this machine */
async function listen(
  server: http.Server | https.Server,
  host: string,
  port: number,
  kind: "http" | "tls",
): Promise<string> {
  await new Promise<void>((resolve, reject) => {
    const failed = (cause: NodeJS.ErrnoException) =>
      reject(
        cause.code === "EADDRINUSE"
          ? new ServerError(
              "ERR_PORT_IN_USE",
              `${host}:${port} is in use by another program. Stop that one, or choose another address with ` +
                `--${kind}-address or CODER_${kind.toUpperCase()}_ADDRESS (port 0 takes any free one).`,
              { cause },
            )
          : new ServerError("ERR_LISTEN", `Can't listen on ${host}:${port}: ${cause.message}`, { cause }),
      );
    server.once("error", failed);
    server.listen({ port, host, backlog: BACKLOG }, () => {
      server.off("error", failed);
      resolve();
    });
  });
  const address = server.address() as AddressInfo;
  const anywhere = ["0.0.0.0", "::"].includes(address.address);
  const name = anywhere ? "127.0.0.1" : address.family === "IPv6" ? `[${address.address}]` : address.address;
  return `${kind === "tls" ? "https" : "http"}://${name}:${address.port}`;
}
