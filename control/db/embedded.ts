// A private PostgreSQL server for installations that don't bring their own.
//
//   dataDir/           0700
//     password         0600, made once, never printed
//     pgdata/          the cluster; made beside its place and renamed, so a half-made one is never started
//     lib/             library links, only when the npm package's folder is read-only
//   <tmp>/coder-pg-*/  0700, the unix socket; removed when the server stops
//
// The server must not outlive us, however we end. It therefore runs under a small `sh` (WATCHDOG) that reads a
// pipe whose other end only we hold: when we end, by SIGKILL too, the pipe closes and sh asks PostgreSQL for a
// fast shutdown. stop() closes the same pipe, so the path a crash takes is the one every run takes.
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chown,
  link,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  unlink,
  writeFile,
} from "node:fs/promises";
import { createServer } from "node:net";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import pg from "pg";
import { type PostgresBinaries, packagedBinaries } from "./embedded-binaries.ts";
import { findLauncher, type Launcher } from "./embedded-privilege.ts";
import { DatabaseError } from "./errors.ts";

export interface DatabaseLogger {
  debug(message: string): void;
  warn(message: string): void;
  error(message: string): void;
}

export interface EmbeddedOptions {
  /** Made when missing. One server at a time. */
  dataDir: string;
  logger?: DatabaseLogger;
  /** How long a start may take, crash recovery included. */
  startTimeoutMs?: number;
  /** Other programs than the packaged ones. */
  binaries?: PostgresBinaries;
  /** "auto": a unix socket where its path fits, else loopback with a random port. */
  listen?: "auto" | "loopback";
  /** Only for throw-away data: doesn't wait for the disk. */
  unsafeNoSync?: boolean;
  /** Forces one way of not being root (for tests). */
  launcher?: Launcher["kind"];
}

export interface EmbeddedPostgres {
  /** Holds the password: don't log it. */
  connectionUrl: string;
  /** Major version. */
  major: number;
  /** Settles when the server has ended, asked or not; `log` holds its last lines. */
  ended: Promise<{ code: number | null; log: string[] }>;
  /** Fast shutdown, at most STOP_TIMEOUT_MS + KILL_TIMEOUT_MS. May be called twice. */
  stop(): Promise<void>;
}

const DATABASE = "coder";
const PORT = 5432; // only a part of the socket's name
/** sun_path holds 108 bytes with its final zero (104 on macOS). */
const MAX_SOCKET_PATH_BYTES = process.platform === "darwin" ? 103 : 107;
const START_TIMEOUT_MS = 60_000;
const INITDB_TIMEOUT_MS = 120_000;
/** A fast shutdown writes a checkpoint; then no more patience: SIGQUIT (recovery at the next start), SIGKILL. */
const STOP_TIMEOUT_MS = 15_000;
const KILL_TIMEOUT_MS = 5_000;
/** A server whose owner crashed is still writing its last checkpoint: give it this long. */
const LEFTOVER_TIMEOUT_MS = 20_000;
/** ... but one that is ready and doesn't begin to stop within this time has a living owner. */
const LEFTOVER_READY_MS = 1_000;
const STALE_INITDB_MS = 10 * 60_000;
const KEPT_LOG_LINES = 20;
const MAX_LOG_LINE_CHARS = 2_000;

// $1: the socket's folder; the rest: PostgreSQL. Everything shares one process group of its own (spawned
// detached), so that Ctrl-C in our terminal reaches us alone, and `kill 0` reaches exactly these.
// - SIGINT is "fast shutdown". It is repeated because the first may come before PostgreSQL has started.
// - sh itself only notes the signals (`trap :`); children get the default action back, as `trap ''` would not.
// - The watcher is a background job, which POSIX makes immune to SIGINT. It ends by SIGKILL, since a SIGTERM that
//   comes before it has reset its traps would be lost; SIGTERM is for its sleep. It ends too when sh ($$) is gone.
/** Exported for its test. */
export const WATCHDOG = `
dir=$1; shift
trap : INT TERM HUP QUIT
exec 3<&0 </dev/null
{ read -r _ <&3; while kill -INT 0; kill -0 $$; do sleep 1; done; } 2>/dev/null &
"$@" 3<&-
code=$?
kill -KILL $!
kill -TERM 0
if [ -n "$dir" ]; then rm -f "$dir"/.s.PGSQL.*; rmdir "$dir"; fi
exit $code
`;

/** Sized for one small server; what isn't here is PostgreSQL's default. */
function settings(major: number): Record<string, string> {
  return {
    max_connections: "100",
    shared_buffers: "64MB",
    max_wal_size: "256MB",
    min_wal_size: "32MB",
    timezone: "UTC",
    log_timezone: "UTC",
    log_line_prefix: "",
    log_checkpoints: "off",
    // Failed statements may hold secrets; the client gets the error anyway.
    log_min_error_statement: "panic",
    logging_collector: "off",
    jit: "off", // compiling costs more than our short queries
    huge_pages: "off",
    cluster_name: "coder",
    // Three worker processes less; 18 brought them.
    ...(major >= 18 ? { io_method: "sync" } : {}),
  };
}

/**
 * Starts the server, making its data on the first start.
 *
 * @throws {DatabaseError} ERR_DATABASE_IN_USE, ERR_DATABASE_PLATFORM, ERR_DATABASE_START (with the last lines of
 *   PostgreSQL's log)
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  if (process.platform === "win32") {
    throw new DatabaseError(
      "ERR_DATABASE_PLATFORM",
      "the embedded PostgreSQL isn't supported on Windows: install PostgreSQL 13 or newer and set CODER_PG_CONNECTION_URL",
    );
  }
  const dataDir = await ownDirectory(options.dataDir);
  const binaries = options.binaries ?? (await packagedBinaries(path.join(dataDir, "lib")));
  const env = serverEnv(binaries);
  const launcher = await findLauncher(binaries.postgres, dataDir, env, options.launcher);
  const password = await ownPassword(path.join(dataDir, "password"));
  const pgdata = path.join(dataDir, "pgdata");
  const setup = { dataDir, pgdata, binaries, env, launcher, noSync: options.unsafeNoSync === true };
  await ensureCluster(setup);
  await waitForLeftover(pgdata);

  const socketDir = options.listen === "loopback" ? undefined : await makeSocketDir();
  const port = socketDir === undefined ? await freePort() : PORT;
  const values = {
    ...settings(launcher.major),
    port: String(port),
    listen_addresses: socketDir === undefined ? "127.0.0.1" : "",
    unix_socket_directories: socketDir ?? "",
    unix_socket_permissions: "0700",
    ...(setup.noSync ? { fsync: "off", synchronous_commit: "off", full_page_writes: "off" } : {}),
  };
  const flags = Object.entries(values).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
  const child = spawn(
    "/bin/sh",
    ["-c", WATCHDOG, "sh", socketDir ?? "", ...launcher.prefix, binaries.postgres, "-D", pgdata, ...flags],
    { cwd: "/", env, detached: true, stdio: ["pipe", "ignore", "pipe"] },
  );
  child.stdin!.on("error", () => undefined); // the watchdog is gone; `exit` says so
  const server = watch(child, options.logger);
  const urlFor = (database: string): string => {
    const auth = `postgres://coder:${password}@`;
    if (socketDir === undefined) return `${auth}127.0.0.1:${port}/${database}`;
    return `${auth}/${database}?host=${encodeURIComponent(socketDir)}`;
  };
  let stopping: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopping ??= shutDown(child, server.ended).then(async () => {
      if (socketDir !== undefined) await rm(socketDir, { recursive: true, force: true });
    });
    return stopping;
  };
  try {
    await ready(server, options.startTimeoutMs ?? START_TIMEOUT_MS, dataDir);
    await ensureDatabase(urlFor);
  } catch (error) {
    await stop();
    throw error;
  }
  return { connectionUrl: urlFor(DATABASE), major: launcher.major, ended: server.ended, stop };
}

interface Setup {
  dataDir: string;
  pgdata: string;
  binaries: PostgresBinaries;
  env: NodeJS.ProcessEnv;
  launcher: Launcher;
  noSync: boolean;
}

/** Nothing of our environment reaches the server: it holds secrets, and PG* variables would change what it does. */
function serverEnv({ libraryPath }: PostgresBinaries): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = { PATH: process.env["PATH"], LC_ALL: "C", TZ: "UTC" };
  const variable = process.platform === "darwin" ? "DYLD_LIBRARY_PATH" : "LD_LIBRARY_PATH";
  if (libraryPath.length > 0) env[variable] = libraryPath.join(":");
  return env;
}

async function ownDirectory(dataDir: string): Promise<string> {
  try {
    await mkdir(dataDir, { recursive: true, mode: 0o700 });
    return await realpath(dataDir);
  } catch (cause) {
    throw new DatabaseError(
      "ERR_DATABASE_START",
      `can't use the database folder ${dataDir}: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** Two first starts at once must agree on one password: the link's name is taken only once, with all its bytes. */
async function ownPassword(file: string): Promise<string> {
  const read = (): Promise<string> => readFile(file, "utf8");
  const known = await read().catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw new DatabaseError("ERR_DATABASE_START", `can't read ${file}: ${error.message}`, { cause: error });
  });
  if (known) return known.trim();
  const fresh = `${file}.${randomBytes(6).toString("hex")}`;
  await writeFile(fresh, `${randomBytes(24).toString("base64url")}\n`, { mode: 0o600, flag: "wx" });
  try {
    await link(fresh, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  } finally {
    await unlink(fresh);
  }
  return (await read()).trim();
}

async function ensureCluster(setup: Setup): Promise<void> {
  const { dataDir, pgdata, launcher } = setup;
  const version = await readFile(path.join(pgdata, "PG_VERSION"), "utf8").catch(() => undefined);
  if (version === undefined) {
    if (await lstat(pgdata).catch(() => undefined)) {
      throw new DatabaseError(
        "ERR_DATABASE_START",
        `${pgdata} is there but holds no PostgreSQL data that can be read. Look at its owner and content; move it ` +
          "away to start with an empty database",
      );
    }
    await removeStaleInitdb(dataDir);
    await initdb(setup);
  } else if (Number(version) !== launcher.major) {
    throw new DatabaseError(
      "ERR_DATABASE_START",
      `${pgdata} was made by PostgreSQL ${version.trim()}, this installation carries ${launcher.major}: dump it with ` +
        "the old version (pg_dump), move the folder away and restore into the new one",
    );
  }
  await ensureOwner(pgdata, launcher.owner);
}

async function initdb({ dataDir, pgdata, binaries, env, launcher, noSync }: Setup): Promise<void> {
  const fresh = `${pgdata}.new-${randomBytes(6).toString("hex")}`;
  await mkdir(fresh, { mode: 0o700 });
  if (launcher.owner) await chown(fresh, launcher.owner.uid, launcher.owner.gid);
  const locale =
    // The built-in C.UTF-8 sorts the same on every machine and after every libc upgrade. 17 brought it.
    launcher.major >= 17
      ? ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
      : [process.platform === "darwin" ? "--locale=C" : "--locale=C.UTF-8"];
  const args = [
    ...launcher.prefix.slice(1),
    binaries.initdb,
    ...["-D", fresh, "--username=coder", `--pwfile=${path.join(dataDir, "password")}`],
    ...["--auth=scram-sha-256", "--encoding=UTF8", ...locale, ...(noSync ? ["--no-sync"] : [])],
  ];
  const command = launcher.prefix[0] ?? args.shift()!;
  try {
    await promisify(execFile)(command, args, { cwd: "/", env, timeout: INITDB_TIMEOUT_MS });
    await rename(fresh, pgdata);
  } catch (cause) {
    await rm(fresh, { recursive: true, force: true });
    const { code, stderr, message } = cause as NodeJS.ErrnoException & { stderr?: string };
    if (code === "ENOTEMPTY" || code === "EEXIST") return; // another first start was faster
    const text = stderr?.trim() || message;
    const hint = /could not look up effective user ID/.test(text)
      ? `\nUser id ${process.getuid?.()} has no entry in /etc/passwd: add one, or set CODER_PG_CONNECTION_URL.`
      : "";
    throw new DatabaseError("ERR_DATABASE_START", `initdb failed in ${dataDir}:\n${text}${hint}`, { cause });
  }
}

/** What a crash in the middle of initdb left. Only old ones: a fresh one may belong to a start beside us. */
async function removeStaleInitdb(dataDir: string): Promise<void> {
  for (const name of await readdir(dataDir)) {
    if (!name.startsWith("pgdata.new-")) continue;
    const full = path.join(dataDir, name);
    const found = await lstat(full).catch(() => undefined);
    if (found && Date.now() - found.mtimeMs > STALE_INITDB_MS)
      await rm(full, { recursive: true, force: true });
  }
}

/** PostgreSQL starts only on data its own uid owns, and which uid that is depends on what the machine allows. */
async function ensureOwner(folder: string, owner: Launcher["owner"]): Promise<void> {
  if (!owner || (await lstat(folder)).uid === owner.uid) return;
  for (const name of await readdir(folder, { recursive: true })) {
    const full = path.join(folder, name);
    if (!(await lstat(full)).isSymbolicLink()) await chown(full, owner.uid, owner.gid);
  }
  await chown(folder, owner.uid, owner.gid); // last: it marks the work as done
}

/**
 * Sees to the server of a run that crashed. One that still stops is waited for; a lock file whose process number
 * now belongs to somebody else is removed (PostgreSQL would refuse for as long as that process lives); one whose
 * process is gone is left to PostgreSQL, which also checks the shared memory.
 */
async function waitForLeftover(pgdata: string): Promise<void> {
  const lock = path.join(pgdata, "postmaster.pid");
  const startedAt = performance.now();
  for (;;) {
    const lines = (await readFile(lock, "utf8").catch(() => "")).split("\n");
    const pid = Number(lines[0]);
    if (!(pid > 0) || !isAlive(pid)) return;
    if (!(await worksIn(pid, pgdata))) return await rm(lock, { force: true });
    const waitedMs = performance.now() - startedAt;
    const limitMs = lines[7]?.trim() === "stopping" ? LEFTOVER_TIMEOUT_MS : LEFTOVER_READY_MS;
    if (waitedMs > limitMs) throw inUse(pgdata, pid);
    await delay(50);
  }
}

function inUse(folder: string, pid?: number): DatabaseError {
  return new DatabaseError(
    "ERR_DATABASE_IN_USE",
    `another server uses the database in ${folder}${pid === undefined ? "" : ` (PostgreSQL is process ${pid})`}: ` +
      "stop it first, or give this one a folder of its own",
  );
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** PostgreSQL's working directory is its data folder. */
async function worksIn(pid: number, pgdata: string): Promise<boolean> {
  if (process.platform === "linux") {
    return (await readlink(`/proc/${pid}/cwd`).catch(() => undefined)) === pgdata;
  }
  const { stdout } = await promisify(execFile)("ps", ["-o", "command=", "-p", String(pid)]).catch(() => ({
    stdout: "",
  }));
  return stdout.includes(pgdata);
}

/** @returns undefined when no temporary folder's path is short enough */
async function makeSocketDir(): Promise<string | undefined> {
  for (const parent of [os.tmpdir(), process.env["XDG_RUNTIME_DIR"], "/tmp"]) {
    if (
      !parent ||
      Buffer.byteLength(path.join(parent, `coder-pg-XXXXXX/.s.PGSQL.${PORT}`)) > MAX_SOCKET_PATH_BYTES
    ) {
      continue;
    }
    const made = await mkdtemp(path.join(parent, "coder-pg-")).catch(() => undefined);
    if (made !== undefined) return made; // mkdtemp makes it 0700
  }
  return undefined;
}

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve, reject) => {
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", resolve);
  });
  const { port } = probe.address() as { port: number };
  await new Promise((resolve) => probe.close(resolve));
  return port;
}

interface Watched {
  ended: EmbeddedPostgres["ended"];
  /** Settles at "ready to accept connections". */
  accepting: Promise<void>;
}

function watch(child: ChildProcess, logger?: DatabaseLogger): Watched {
  const log: string[] = [];
  let accept: () => void;
  const accepting = new Promise<void>((resolve) => {
    accept = resolve;
  });
  createInterface({ input: child.stderr! }).on("line", (text) => {
    const line = text.slice(0, MAX_LOG_LINE_CHARS);
    log.push(line);
    if (log.length > KEPT_LOG_LINES) log.shift();
    if (line.includes("database system is ready to accept connections")) accept();
    // FATAL ends one connection, often the client's fault; PANIC ends the server.
    if (line.startsWith("PANIC:")) logger?.error(`postgres: ${line}`);
    else if (/^(WARNING|FATAL):/.test(line)) logger?.warn(`postgres: ${line}`);
    else logger?.debug(`postgres: ${line}`);
  });
  const ended = new Promise<{ code: number | null; log: string[] }>((resolve) => {
    child.once("error", (error) => {
      log.push(error.message);
      resolve({ code: null, log });
    });
    child.once("close", (code) => resolve({ code, log }));
  });
  return { ended, accepting };
}

async function ready({ ended, accepting }: Watched, timeoutMs: number, dataDir: string): Promise<void> {
  const timer = new AbortController();
  const outcome = await Promise.race([
    accepting.then(() => "ready" as const),
    ended,
    delay(timeoutMs, "late" as const, { signal: timer.signal }).catch(() => "late" as const),
  ]);
  timer.abort();
  if (outcome === "ready") return;
  if (outcome === "late") {
    throw new DatabaseError(
      "ERR_DATABASE_START",
      `PostgreSQL in ${dataDir} wasn't ready after ${timeoutMs} ms`,
    );
  }
  const text = outcome.log.join("\n");
  if (/lock file ".*" already exists|pre-existing shared memory block/.test(text)) throw inUse(dataDir);
  throw new DatabaseError(
    "ERR_DATABASE_START",
    `PostgreSQL in ${dataDir} ended with code ${outcome.code}. Its last lines:\n${text}`,
  );
}

async function shutDown(child: ChildProcess, ended: EmbeddedPostgres["ended"]): Promise<void> {
  child.stdin?.destroy();
  if (await settles(ended, STOP_TIMEOUT_MS)) return;
  signalGroup(child, "SIGQUIT");
  if (await settles(ended, KILL_TIMEOUT_MS)) return;
  signalGroup(child, "SIGKILL");
  await settles(ended, KILL_TIMEOUT_MS);
}

async function settles(promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  const timer = new AbortController();
  const late = delay(timeoutMs, false, { signal: timer.signal }).catch(() => false);
  const settled = await Promise.race([promise.then(() => true), late]);
  timer.abort();
  return settled;
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, signal);
  } catch {
    // ended meanwhile
  }
}

/** Our database is made on the first start; asking for it on every start also proves that logins work. */
async function ensureDatabase(urlFor: (database: string) => string): Promise<void> {
  const admin = new pg.Client({ connectionString: urlFor("postgres"), connectionTimeoutMillis: 10_000 });
  try {
    await admin.connect();
    const { rowCount } = await admin.query("select 1 from pg_database where datname = $1", [DATABASE]);
    if (rowCount === 0) await admin.query(`create database ${DATABASE}`);
  } catch (cause) {
    const { code, message } = cause as { code?: string; message: string };
    throw new DatabaseError(
      "ERR_DATABASE_START",
      code === "28P01"
        ? "the embedded PostgreSQL doesn't accept the password kept beside its data: restore the file `password`"
        : `the embedded PostgreSQL refused us: ${message}`,
      { cause },
    );
  } finally {
    await admin.end().catch(() => undefined);
  }
}
