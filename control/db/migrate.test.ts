import assert from "node:assert/strict";
import type { Knex } from "knex";
import { DatabaseError } from "./errors.ts";
import { type Migration, migrate } from "./migrate.ts";
import { openDatabase } from "./open.ts";
import { describeDatabases } from "./testing.ts";

const first: Migration = {
  name: "0001_notes",
  up: async (knex) => {
    await knex.schema.createTable("notes", (t) => t.text("body"));
    await knex("notes").insert({ body: "from the first migration" });
  },
};
const second: Migration = {
  name: "0002_stars",
  up: async (knex) => await knex.schema.alterTable("notes", (t) => void t.integer("stars")),
};

function fails(code: DatabaseError["code"], pattern: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof DatabaseError);
    assert.equal(error.code, code);
    assert.match(error.message, pattern);
    return true;
  };
}

describeDatabases("migrations", (database) => {
  beforeEach(async () => {
    await database().knex.raw("drop table if exists notes, schema_migrations");
  });
  const names = async (knex: Knex): Promise<string[]> =>
    await knex("schema_migrations").orderBy("position").pluck("name");

  it("run once, in the order of the list, and only what is new the next time", async () => {
    const { knex } = database();
    assert.deepEqual(await migrate(knex, [first]), ["0001_notes"]);
    assert.deepEqual(await migrate(knex, [first]), []);
    assert.deepEqual(await migrate(knex, [first, second]), ["0002_stars"]);
    assert.deepEqual(await names(knex), ["0001_notes", "0002_stars"]);
  });

  it("run once however many servers start at the same moment", async () => {
    const { knex, url } = database();
    const others = await Promise.all([1, 2, 3].map(() => openDatabase({ url, poolMax: 2 })));
    try {
      const starts = [knex, ...others].flatMap((one) => [one, one]);
      const ran = await Promise.all(starts.map((one) => migrate(one, [first, second])));
      assert.deepEqual(
        ran.filter((list) => list.length > 0),
        [["0001_notes", "0002_stars"]],
      );
      assert.deepEqual(await knex("notes").pluck("body"), ["from the first migration"]);
    } finally {
      await Promise.all(others.map((one) => one.destroy()));
    }
  });

  it("leave nothing behind when one fails, and name it", async () => {
    const { knex } = database();
    const broken: Migration = {
      name: "0002_broken",
      up: async (trx) => {
        await trx.schema.createTable("half_done", (t) => t.text("body"));
        await trx.raw("select * from missing_table");
      },
    };
    await assert.rejects(
      migrate(knex, [first, broken]),
      fails("ERR_MIGRATION_FAILED", /0002_broken.*missing_table/),
    );
    for (const table of ["notes", "half_done", "schema_migrations"]) {
      assert.equal(await knex.schema.hasTable(table), false, table);
    }
    assert.deepEqual(await migrate(knex, [first, second]), ["0001_notes", "0002_stars"]);
  });

  it("refuse a database that a newer version has migrated", async () => {
    const { knex } = database();
    await migrate(knex, [first, second]);
    await assert.rejects(
      migrate(knex, [first]),
      fails("ERR_DATABASE_NEWER", /0002_stars.*start that version/),
    );
    assert.deepEqual(await names(knex), ["0001_notes", "0002_stars"]);
  });

  it("refuse a migration slipped in before one that already ran", async () => {
    const { knex } = database();
    await migrate(knex, [first, second]);
    const late: Migration = { name: "0001a_late", up: async () => undefined };
    await assert.rejects(
      migrate(knex, [first, late, second]),
      fails("ERR_MIGRATION_FAILED", /end of the list/),
    );
  });

  it("refuse a list with a name twice", async () => {
    await assert.rejects(migrate(database().knex, [first, first]), RangeError);
  });
});
