// Databases for tests: each test file gets one of its own on a server all of them share.
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import type { Knex } from "knex";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "./embedded.ts";
import { newClient, openDatabase } from "./open.ts";

export interface TestDatabase {
  url: string;
  knex: Knex;
  /** Closes the pool and removes the database, whoever is still connected. */
  drop(): Promise<void>;
}

const DEBIAN_BIN = "/usr/lib/postgresql/15/bin";
const ADMIN_URL = process.env["CODER_PG_CONNECTION_URL"];

interface SharedServer {
  url: string;
  stop(): Promise<void>;
}
let embedded: Promise<SharedServer> | undefined;
let debian: Promise<SharedServer> | undefined;

/** A fresh database on CODER_PG_CONNECTION_URL's server, else on an embedded one started for this process. */
export async function testDatabase(): Promise<TestDatabase> {
  if (ADMIN_URL) return await freshDatabase(ADMIN_URL);
  embedded ??= startShared();
  return await freshDatabase((await embedded).url);
}

/**
 * Debian's PostgreSQL 15 in a temporary folder, started once for this process.
 *
 * @returns its connection URL (of a superuser), or why there is none
 */
export async function debianPostgres(): Promise<{ url: string } | { skip: string }> {
  if (!existsSync(path.join(DEBIAN_BIN, "postgres"))) {
    return { skip: `${DEBIAN_BIN} isn't there: apt-get install postgresql-15` };
  }
  debian ??= startShared(DEBIAN_BIN);
  return { url: (await debian).url };
}

/**
 * Defines the same suite for each PostgreSQL at hand: the default one (see testDatabase) and Debian's 15, which
 * is skipped with a printed reason when it isn't installed. Every suite has a database of its own.
 */
export function describeDatabases(title: string, suite: (database: () => TestDatabase) => void): void {
  const define = (name: string, make: () => Promise<TestDatabase | { skip: string }>): void => {
    describe(`${title} (${name})`, () => {
      let database: TestDatabase | undefined;
      before(async function () {
        this.timeout(60_000); // the first one starts the server
        const made = await make();
        if ("skip" in made) {
          console.log(`      skipped: ${made.skip}`);
          this.skip();
        } else database = made;
      });
      after(async () => await database?.drop());
      suite(() => database!);
    });
  };
  define(ADMIN_URL ? "CODER_PG_CONNECTION_URL" : "embedded PostgreSQL", testDatabase);
  define("Debian's PostgreSQL 15", async () => {
    const found = await debianPostgres();
    return "skip" in found ? found : await freshDatabase(found.url);
  });
}

/** Stops what this process started and removes its data. Runs by itself at the end of a mocha run. */
export async function stopTestServers(): Promise<void> {
  const started = [embedded, debian];
  embedded = undefined;
  debian = undefined;
  for (const server of started) await (await server?.catch(() => undefined))?.stop();
}

// Registers with mocha's root suite, being outside every `describe`.
if (typeof after === "function") after(stopTestServers);

async function startShared(binDir?: string): Promise<SharedServer> {
  const dataDir = await mkdtemp(path.join(os.tmpdir(), "coder-test-db-"));
  let server: EmbeddedPostgres;
  try {
    server = await startEmbeddedPostgres({
      dataDir,
      unsafeNoSync: true,
      binaries: binDir
        ? {
            initdb: path.join(binDir, "initdb"),
            postgres: path.join(binDir, "postgres"),
            libraryPath: [],
          }
        : undefined,
    });
  } catch (error) {
    await rm(dataDir, { recursive: true, force: true });
    throw error;
  }
  return {
    url: server.connectionUrl,
    async stop() {
      await server.stop();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

async function freshDatabase(serverUrl: string): Promise<TestDatabase> {
  const name = `test_${randomBytes(8).toString("hex")}`;
  await administer(serverUrl, `create database ${name}`);
  const url = withDatabase(serverUrl, name);
  const knex = await openDatabase({ url, poolMax: 10 });
  return {
    url,
    knex,
    async drop() {
      await knex.destroy();
      await administer(serverUrl, `drop database if exists ${name} with (force)`);
    },
  };
}

async function administer(url: string, statement: string): Promise<void> {
  const client = newClient(url, "coder test");
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}

/** Puts another database's name into a connection URL, whose host may be empty. */
export function withDatabase(url: string, name: string): string {
  const found = /^(postgres(?:ql)?:\/\/[^/?]*)(?:\/[^?]*)?(\?.*)?$/.exec(url);
  if (!found) throw new RangeError("not a postgres:// URL");
  return `${found[1]}/${name}${found[2] ?? ""}`;
}
