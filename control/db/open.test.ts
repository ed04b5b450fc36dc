import assert from "node:assert/strict";
import { createServer, type Server } from "node:net";
import { DatabaseError } from "./errors.ts";
import { openDatabase, unreachable } from "./open.ts";
import { describeDatabases, withDatabase } from "./testing.ts";

const PASSWORD = "s3cret/+word";

async function refusal(url: string, waitMs?: number): Promise<DatabaseError> {
  const error = await openDatabase({ url, waitMs }).then(
    () => assert.fail("it opened"),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof DatabaseError, String(error));
  assert.equal(error.code, "ERR_DATABASE_UNREACHABLE");
  for (let e: unknown = error; e instanceof Error; e = e.cause) {
    assert.ok(!`${e.message}${e.stack}`.includes(PASSWORD), "the password shows");
  }
  return error;
}

describeDatabases("opening a database", (database) => {
  it("gives a pool that works over the URL", async () => {
    const knex = await openDatabase({ url: database().url });
    try {
      const one = await knex.raw(
        "select current_database() as name, current_setting('statement_timeout') as most",
      );
      const other = await database().knex.raw("select current_database() as name");
      assert.deepEqual(one.rows, [{ ...other.rows[0], most: "1min" }]);
    } finally {
      await knex.destroy();
    }
  });

  it("says which database is missing", async () => {
    const { message } = await refusal(withDatabase(database().url, "nowhere"));
    assert.match(message, /database "nowhere".*Create that database/s);
  });

  it("says that user or password is wrong", async () => {
    const url = new URL(database().url.replace("@/", "@localhost/"));
    url.password = encodeURIComponent(PASSWORD);
    const error = await refusal(url.href.replace("@localhost/", "@/"));
    assert.match(error.message, /user "[^"]+".*password authentication failed.*Check user, password/s);
  });
});

describe("opening a database that can't be reached", () => {
  let server: Server;
  let port: number;
  beforeEach((done) => {
    server = createServer((socket) => socket.destroy()).listen(0, "127.0.0.1", () => {
      ({ port } = server.address() as { port: number });
      done();
    });
  });
  afterEach((done) => void server.close(() => done()));
  const url = (at: number | string) => `postgres://me:${encodeURIComponent(PASSWORD)}@127.0.0.1:${at}/app`;

  it("names host, port, database, user and what to do, but not the password", async () => {
    const { message } = await refusal(url(1));
    assert.match(message, /127\.0\.0\.1:1, database "app", user "me": connect ECONNREFUSED/);
    assert.match(message, /CODER_PG_CONNECTION_URL/);
  });

  it("reports a server that hangs up", async () => {
    assert.match((await refusal(url(port))).message, /127\.0\.0\.1:\d+.*terminated/s);
  });

  it("reports a URL it can't parse without repeating it", async () => {
    assert.match((await refusal(url("12x34"))).message, /can't be parsed/);
    assert.match((await refusal(`mysql://me:secret@127.0.0.1:1/app`)).message, /doesn't start with postgres/);
  });

  it("tries again while it waits for a server that is starting", async () => {
    const startedAt = performance.now();
    await refusal(url(1), 700);
    assert.ok(performance.now() - startedAt >= 450, "it gave up at the first refusal");
  });

  it("takes the password out of whatever the driver says", () => {
    const address = url(1);
    const error = unreachable(address, new Error(`bad ${address} ${PASSWORD}`));
    assert.ok(!error.message.includes(PASSWORD) && !error.message.includes(address));
    assert.equal(error.cause, undefined);
  });
});
