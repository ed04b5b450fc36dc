// Migrations are a list in the code (it bundles; no folder is read). They run forward only, all pending ones in
// one transaction under one advisory lock: however many replicas start at once, one does the work and the others
// find it done, and a migration that fails leaves the database as it was.
import type { Knex } from "knex";
import { DatabaseError } from "./errors.ts";

export interface Migration {
  /** Unique, never changed once released; by habit `0001_first_tables`. */
  name: string;
  /** Runs inside the transaction: no `create index concurrently` here. */
  up(knex: Knex): Promise<void>;
}

/** Two halves of an advisory lock's number: "code", "migr". */
const LOCK: [number, number] = [0x636f6465, 0x6d696772];
const LOCK_TIMEOUT_MS = 5 * 60_000;

/**
 * Brings the database to the state `migrations` describes.
 *
 * @returns names that ran now, oldest first
 * @throws {DatabaseError} ERR_DATABASE_NEWER when it holds a migration the list doesn't have;
 *   ERR_MIGRATION_FAILED; ERR_MIGRATION_LOCKED when another process migrates for longer than 5 minutes
 */
export async function migrate(knex: Knex, migrations: readonly Migration[]): Promise<string[]> {
  const names = migrations.map(({ name }) => name);
  if (new Set(names).size !== names.length) throw new RangeError("two migrations have the same name");
  return await knex.transaction(async (trx) => {
    await takeLock(trx);
    await trx.raw("set local statement_timeout = 0"); // a migration may rewrite a large table
    await trx.raw(
      "create table if not exists schema_migrations (" +
        "name text primary key, position integer not null unique, applied_at timestamptz not null default now())",
    );
    const rows: { name: string }[] = await trx("schema_migrations").select("name").orderBy("position");
    const applied = rows.map(({ name }) => name);
    checkHistory(applied, names);
    const pending = migrations.slice(applied.length);
    for (const [index, { name, up }] of pending.entries()) {
      try {
        await up(trx);
      } catch (cause) {
        throw new DatabaseError(
          "ERR_MIGRATION_FAILED",
          `migration ${name} failed, nothing was changed: ${(cause as Error).message}`,
          { cause },
        );
      }
      await trx("schema_migrations").insert({ name, position: applied.length + index });
    }
    return pending.map(({ name }) => name);
  });
}

async function takeLock(trx: Knex.Transaction): Promise<void> {
  await trx.raw(`set local lock_timeout = ${LOCK_TIMEOUT_MS}`);
  await trx.raw(`set local statement_timeout = ${LOCK_TIMEOUT_MS + 1_000}`);
  try {
    await trx.raw("select pg_advisory_xact_lock(?, ?)", LOCK);
  } catch (cause) {
    if ((cause as { code?: string }).code !== "55P03") throw cause;
    throw new DatabaseError(
      "ERR_MIGRATION_LOCKED",
      "another server has been migrating this database for 5 minutes: see what it waits for " +
        "(select * from pg_stat_activity), then start again",
      { cause },
    );
  }
}

/** The database's history must be the beginning of ours. */
function checkHistory(applied: string[], names: string[]): void {
  const unknown = applied.filter((name) => !names.includes(name));
  if (unknown.length > 0) {
    throw new DatabaseError(
      "ERR_DATABASE_NEWER",
      `the database was migrated by a newer version (it holds ${unknown.join(", ")}, unknown here): ` +
        "start that version or a later one, or restore a backup from before the upgrade",
    );
  }
  const misplaced = applied.find((name, index) => names[index] !== name);
  if (misplaced !== undefined) {
    throw new DatabaseError(
      "ERR_MIGRATION_FAILED",
      `migration ${misplaced} ran in another order than the list has it: new migrations go to the end of the list`,
    );
  }
}
