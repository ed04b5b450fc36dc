import assert from "node:assert/strict";
import fc from "fast-check";
import { DatabaseError } from "./errors.ts";
import { DatabaseListener, MAX_PAYLOAD_BYTES, notify, retryDelayMs } from "./listen.ts";
import { describeDatabases } from "./testing.ts";

/** Collects what arrives and lets a test wait for the n-th. */
function inbox() {
  const got: string[] = [];
  let wake = (): void => undefined;
  return {
    got,
    push: (payload: string): void => {
      got.push(payload);
      wake();
    },
    /** @throws when fewer than `count` have arrived after 10 s */
    async until(count: number): Promise<string[]> {
      const deadline = AbortSignal.timeout(10_000);
      while (got.length < count) {
        await new Promise<void>((resolve, reject) => {
          wake = resolve;
          deadline.onabort = () => reject(new Error(`only ${got.length} of ${count} arrived`));
        });
      }
      return got;
    },
  };
}

describeDatabases("listener", (database) => {
  let listener: DatabaseListener;
  const warnings: string[] = [];
  beforeEach(() => {
    warnings.length = 0;
    const logger = { warn: (message: string) => void warnings.push(message) };
    listener = new DatabaseListener({ url: database().url, logger, random: () => 0 });
  });
  afterEach(async () => await listener.close());

  it("delivers what is sent to its channel, to every subscriber, in order", async () => {
    const [one, two, other] = [inbox(), inbox(), inbox()];
    await Promise.all([
      listener.subscribe("jobs", one.push),
      listener.subscribe("jobs", two.push),
      listener.subscribe('odd "name"', other.push),
    ]);
    for (const payload of ["1", "2", "3"]) await notify(database().knex, "jobs", payload);
    await notify(database().knex, 'odd "name"', "");
    assert.deepEqual(await one.until(3), ["1", "2", "3"]);
    assert.deepEqual(await two.until(3), ["1", "2", "3"]);
    assert.deepEqual(await other.until(1), [""]);
  });

  it("delivers what a transaction sends when it commits, and nothing when it doesn't", async () => {
    const box = inbox();
    await listener.subscribe("jobs", box.push);
    const { knex } = database();
    await assert.rejects(
      knex.transaction(async (trx) => {
        await notify(trx, "jobs", "rolled back");
        throw new Error("no");
      }),
    );
    await knex.transaction(async (trx) => await notify(trx, "jobs", "committed"));
    assert.deepEqual(await box.until(1), ["committed"]);
  });

  it("stops delivering to who has unsubscribed", async () => {
    const [gone, stays] = [inbox(), inbox()];
    const unsubscribe = await listener.subscribe("jobs", gone.push);
    await listener.subscribe("done", stays.push);
    await unsubscribe();
    await notify(database().knex, "jobs", "1");
    await notify(database().knex, "done", "2");
    await stays.until(1);
    assert.deepEqual(gone.got, []);
  });

  it("connects again after the server has cut the connection, and says that something may be missing", async () => {
    const [box, gaps] = [inbox(), inbox()];
    await listener.subscribe("jobs", box.push, () => gaps.push("gap"));
    const { knex } = database();
    await knex.raw(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'coder listen' " +
        "and datname = current_database()",
    );
    await gaps.until(1);
    await notify(knex, "jobs", "after");
    assert.deepEqual(await box.until(1), ["after"]);
  });

  it("keeps going when a subscriber throws", async () => {
    const box = inbox();
    await listener.subscribe("jobs", () => {
      throw new Error("subscriber's bug");
    });
    await listener.subscribe("jobs", box.push);
    await notify(database().knex, "jobs", "1");
    assert.deepEqual(await box.until(1), ["1"]);
    assert.match(warnings.join(), /subscriber's bug/);
  });

  it("refuses a payload or a channel that PostgreSQL would refuse", async () => {
    const invalid = (error: unknown): boolean =>
      error instanceof DatabaseError && error.code === "ERR_NOTIFY_INVALID";
    const { knex } = database();
    await notify(knex, "jobs", "x".repeat(MAX_PAYLOAD_BYTES));
    await assert.rejects(notify(knex, "jobs", "ü".repeat(MAX_PAYLOAD_BYTES / 2 + 1)), invalid);
    await assert.rejects(
      listener.subscribe("c".repeat(64), () => undefined),
      invalid,
    );
    await assert.rejects(
      listener.subscribe("", () => undefined),
      invalid,
    );
  });

  it("refuses new subscribers once closed", async () => {
    await listener.close();
    await assert.rejects(
      listener.subscribe("jobs", () => undefined),
      /closed/,
    );
  });
});

describe("listener's retries", () => {
  it("wait longer each time, up to 10 s, and never all at the same moment", () => {
    assert.equal(retryDelayMs(0, 0), 50);
    fc.assert(
      fc.property(fc.nat(10_000), fc.double({ min: 0, max: 0.999, noNaN: true }), (attempt, random) => {
        const delay = retryDelayMs(attempt, random);
        assert.ok(delay >= 50 && delay <= 10_000);
        assert.ok(retryDelayMs(attempt + 1, random) >= delay);
      }),
    );
  });
});
