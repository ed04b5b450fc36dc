import { setTimeout as delay } from "node:timers/promises";
import knexLibrary, { type Knex } from "knex";
import pg from "pg";
import { DatabaseError } from "./errors.ts";

/** Oldest PostgreSQL we run on: 13 brought gen_random_uuid() and `drop database … with (force)`. */
export const MIN_SERVER_VERSION = 13;
const CONNECT_TIMEOUT_MS = 10_000;
const ACQUIRE_TIMEOUT_MS = 15_000;
const IDLE_TIMEOUT_MS = 30_000;
/** A forgotten transaction holds locks, and an endless statement a connection, for all replicas. */
const STATEMENT_TIMEOUT_MS = 60_000;
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 60_000;
const DEFAULT_POOL_MAX = 20;
const RETRY_EVERY_MS = 500;

export interface OpenOptions {
  /** postgres://user:password@host:port/database, or …/database?host=/folder/of/the/socket */
  url: string;
  /** Connections at most. */
  poolMax?: number;
  /** How long to keep trying while the server is still coming up (compose files start both at once). */
  waitMs?: number;
}

/**
 * Opens a pool and proves it with one query.
 *
 * @throws {DatabaseError} ERR_DATABASE_UNREACHABLE (host, cause and next step; never the password),
 *   ERR_DATABASE_TOO_OLD
 */
export async function openDatabase({
  url,
  poolMax = DEFAULT_POOL_MAX,
  waitMs = 0,
}: OpenOptions): Promise<Knex> {
  await proveReachable(url, waitMs);
  return knexLibrary({
    client: "pg",
    // Else an error's message holds the statement with its values, password hashes among them.
    compileSqlOnError: false,
    connection: { connectionString: url, ...sessionSettings("coder") },
    // min 0: knex never replaces idle connections that died, it only makes new ones when asked.
    pool: { min: 0, max: poolMax, idleTimeoutMillis: IDLE_TIMEOUT_MS },
    acquireConnectionTimeout: ACQUIRE_TIMEOUT_MS,
  });
}

/** Connection settings all our connections share; `name` shows in pg_stat_activity. */
function sessionSettings(name: string) {
  return {
    application_name: name,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    statement_timeout: STATEMENT_TIMEOUT_MS,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_TIMEOUT_MS,
    keepAlive: true,
  };
}

/** A client outside the pool, for LISTEN and administration. Not yet connected. */
export function newClient(url: string, name = "coder"): pg.Client {
  try {
    return new pg.Client({ connectionString: url, ...sessionSettings(name) });
  } catch (cause) {
    throw unreachable(url, cause);
  }
}

async function proveReachable(url: string, waitMs: number): Promise<void> {
  // pg reads other texts as host names of its own making; and the text may be a password in the wrong place.
  if (!/^postgres(ql)?:\/\//.test(url))
    throw new DatabaseError(
      "ERR_DATABASE_UNREACHABLE",
      "the address of PostgreSQL doesn't start with postgres://. " +
        "Write CODER_PG_CONNECTION_URL as postgres://user:password@host:5432/database.",
    );
  const startedAt = performance.now();
  for (;;) {
    try {
      return await checkServer(url);
    } catch (error) {
      const { code } = error as { code?: string };
      if (error instanceof DatabaseError) throw error;
      if (!STARTING.has(code ?? "") || performance.now() - startedAt + RETRY_EVERY_MS > waitMs) {
        throw unreachable(url, error);
      }
    }
    await delay(RETRY_EVERY_MS);
  }
}

/** What a server that isn't up yet answers. 57P03: "the database system is starting up". */
const STARTING = new Set(["ECONNREFUSED", "ENOENT", "ENOTFOUND", "EAI_AGAIN", "57P03"]);

async function checkServer(url: string): Promise<void> {
  const client = newClient(url);
  client.on("error", () => undefined); // a connection lost after the answer is no failure of the check
  try {
    await client.connect();
    const { rows } = await client.query<{ version: string }>(
      "select current_setting('server_version_num') as version",
    );
    const version = Number(rows[0]?.version);
    if (version < MIN_SERVER_VERSION * 10_000) {
      throw new DatabaseError(
        "ERR_DATABASE_TOO_OLD",
        `PostgreSQL at ${where(url)} is version ${Math.floor(version / 10_000)}: ` +
          `${MIN_SERVER_VERSION} or newer is needed, upgrade the server`,
      );
    }
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Wraps whatever pg or the system said. */
export function unreachable(url: string, cause: unknown): DatabaseError {
  const { code = "", message } = cause as { code?: string; message: string };
  // An address with several results fails as an AggregateError, whose own message is empty.
  const inner = cause instanceof AggregateError ? (cause.errors[0] as Error | undefined) : undefined;
  const text = withoutSecrets(message || inner?.message || code || "unknown error", url);
  return new DatabaseError(
    "ERR_DATABASE_UNREACHABLE",
    `can't use PostgreSQL at ${where(url)}: ${text}. ${nextStep(code)}`,
    {
      // The original error is kept only when it can't carry the URL.
      cause: text === message ? cause : undefined,
    },
  );
}

function nextStep(code: string): string {
  if (code === "28P01" || code === "28000")
    return "Check user, password and pg_hba.conf, then CODER_PG_CONNECTION_URL.";
  if (code === "3D000") return "Create that database, or correct its name in CODER_PG_CONNECTION_URL.";
  if (code === "53300") return "Raise max_connections there, or lower the pool of every replica.";
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return "Check the host name in CODER_PG_CONNECTION_URL.";
  return (
    "Check that it runs and that CODER_PG_CONNECTION_URL names it " +
    "(postgres://user:password@host:5432/database); unset it to use the embedded database."
  );
}

/** `host:port, database "x", user "y"`, as far as the URL tells. */
function where(url: string): string {
  let parsed: URL;
  try {
    // A URL without a host isn't valid to everybody's taste.
    parsed = new URL(url.replace("@/", "@localhost/").replace(":///", "://localhost/"));
  } catch {
    return "(the connection URL can't be parsed)";
  }
  if (!/^postgres(ql)?:$/.test(parsed.protocol)) return "(the connection URL doesn't start with postgres://)";
  const host = parsed.searchParams.get("host") ?? parsed.hostname;
  const address = host.startsWith("/") ? host : `${host}:${parsed.port || 5432}`;
  const database = decodeURIComponent(parsed.pathname.slice(1)) || "(none named)";
  return `${address}, database "${database}", user "${decodeURIComponent(parsed.username) || "(none named)"}"`;
}

function withoutSecrets(text: string, url: string): string {
  let clean = text.replaceAll(url, "(connection URL)");
  const password = /:\/\/[^:/?#]*:(.*)@/.exec(url)?.[1];
  for (const secret of [password, password && safeDecode(password)]) {
    if (secret) clean = clean.replaceAll(secret, "***");
  }
  return clean;
}

function safeDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
