import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { Knex } from "knex";
import { agent, buildResult, importResult, until } from "../api/testing.ts";
import { DatabaseListener } from "../db/listen.ts";
import { migrate } from "../db/migrate.ts";
import { migrations } from "../db/migrations/index.ts";
import { openDatabase } from "../db/open.ts";
import { cancelJob, insertJob, jobLogs, jobsById } from "../db/queries/jobs.ts";
import { loadSigningKeys } from "../db/queries/signing.ts";
import { Topics } from "../db/queries/topics.ts";
import { describeDatabases } from "../db/testing.ts";
import type { Job, JobLog } from "./protocol.ts";
import { MAX_JOB_LOG_BYTES, MAX_LOG_LINE_CHARS, PostgresJobQueue, type QueueError } from "./queue.ts";
import { HUNG_AFTER_MS, PENDING_AFTER_MS, reapJobs } from "./queue-reaper.ts";

describeDatabases("job queue", (database) => {
  let knex: Knex;
  let listener: DatabaseListener;
  let topics: Topics;
  let queue: PostgresJobQueue;
  let organizationId: string;
  let userId: string;
  let fileId: string;

  before(async () => {
    ({ knex } = database());
    // Many at once: what two servers starting together do.
    await Promise.all(Array.from({ length: 4 }, () => migrate(knex, migrations)));
    assert.deepEqual(await migrate(knex, migrations), []);
    listener = new DatabaseListener({ url: database().url });
    topics = new Topics(listener);
    await topics.start(["provisioner_job_posted", "provisioner_job"]);
    queue = new PostgresJobQueue({ knex, topics, coderUrl: () => "http://coder.test" });
    ({ id: organizationId } = await knex("organizations").where({ is_default: true }).first());
    userId = randomUUID();
    fileId = randomUUID();
    await knex("users").insert({
      id: userId,
      username: "ada",
      email: "ada@example.com",
      status: "active",
      login_type: "password",
    });
    const file = { id: fileId, hash: "h", created_by: userId, mime_type: "application/x-tar" };
    await knex("files").insert({ ...file, data: Buffer.from("tar") });
  });
  after(async () => {
    await topics?.stop();
    await listener?.close();
  });
  afterEach(() => knex("provisioner_jobs").whereNull("completed_at").update({ completed_at: new Date() }));

  const daemon = (tags: Record<string, string> = {}) => ({ id: randomUUID(), name: "daemon", tags });
  const soon = () => AbortSignal.timeout(10_000);

  async function post(tags: Record<string, string> = {}, now = new Date()): Promise<string> {
    return knex.transaction(async (trx) => {
      const job = await insertJob(trx, {
        organizationId,
        initiatorId: userId,
        type: "template_version_import",
        fileId,
        tags,
        now,
      });
      await trx("template_versions").insert({
        id: randomUUID(),
        organization_id: organizationId,
        name: randomUUID(),
        job_id: job,
        created_by: userId,
      });
      return job;
    });
  }

  async function one(id: string) {
    return (await jobsById(knex, [id])).get(id)!;
  }

  const line = (output: string, level: JobLog["level"] = "info"): JobLog => ({
    createdAt: new Date(),
    source: "provisioner",
    level,
    stage: "Planning",
    output,
  });

  it("many daemons on many connections take each job exactly once, oldest first", async () => {
    const posted: string[] = [];
    for (let i = 0; i < 20; i++) posted.push(await post({}, new Date(Date.now() + i)));
    const other = await openDatabase({ url: database().url, poolMax: 4 });
    try {
      const queues = [queue, new PostgresJobQueue({ knex: other, topics, coderUrl: () => "" })];
      const taken = await Promise.all(
        Array.from({ length: 20 }, (_, i) => queues[i % 2].acquire(daemon(), soon())),
      );
      assert.deepEqual(taken.map((job) => job?.id).sort(), [...posted].sort());
    } finally {
      await other.destroy();
    }
    const first = await post();
    await post({}, new Date(Date.now() + 1000));
    assert.equal((await queue.acquire(daemon(), soon()))?.id, first);
  });

  it("a job another daemon is just taking holds nobody up", async () => {
    const [first, second] = [await post(), await post({}, new Date(Date.now() + 1000))];
    await knex.transaction(async (trx) => {
      await trx("provisioner_jobs").where({ id: first }).forUpdate();
      const taken = queue.acquire(daemon(), soon()).then((job) => job?.id);
      // Not awaited alone: a queue that does wait waits for this very transaction.
      const blocked = new Promise<string>((resolve) => setTimeout(resolve, 3_000, "blocked").unref());
      assert.equal(await Promise.race([taken, blocked]), second);
    });
  });

  it("a waiting daemon is woken by a new job, and an aborted wait takes none", async () => {
    const gone = new AbortController();
    const abandoned = queue.acquire(daemon(), gone.signal);
    gone.abort();
    assert.equal(await abandoned, undefined);
    const startedAt = performance.now();
    const waiting = queue.acquire(daemon(), soon());
    const id = await post();
    assert.equal((await waiting)?.id, id);
    assert.ok(performance.now() - startedAt < 4000, "woken, not polled");
  });

  it("tags: a tagged job wants a daemon with all of them, an untagged one a daemon without", async () => {
    const tagged = await post({ gpu: "yes" });
    const plain = await post();
    const none = () => queue.acquire(daemon({ cpu: "yes" }), AbortSignal.timeout(50));
    assert.equal(await none(), undefined);
    assert.equal((await queue.acquire(daemon({ gpu: "yes", zone: "b" }), soon()))?.id, tagged);
    assert.equal((await queue.acquire(daemon(), soon()))?.id, plain);
  });

  it("position and size tell where a job stands", async () => {
    const [first, second] = [await post(), await post({}, new Date(Date.now() + 1000))];
    const place = async (id: string) => [(await one(id)).queue_position, (await one(id)).queue_size];
    assert.deepEqual(
      [await place(first), await place(second)],
      [
        [1, 2],
        [2, 2],
      ],
    );
    await queue.acquire(daemon(), soon());
    assert.deepEqual(
      [await place(first), await place(second)],
      [
        [0, 0],
        [1, 1],
      ],
    );
  });

  it("a job is completed once; a late second result is refused and changes nothing", async () => {
    const id = await post();
    const result = importResult({ readme: "first" });
    const refused = (promise: Promise<void>) =>
      assert.rejects(promise, (error: QueueError) => error.code === "ERR_JOB_NOT_RUNNING");
    await refused(queue.complete(id, result));
    await queue.acquire(daemon(), soon());
    await queue.complete(id, result);
    assert.equal((await one(id)).status, "succeeded");
    await refused(queue.complete(id, importResult({ readme: "second" })));
    await refused(queue.fail(id, { message: "late", errorCode: "" }));
    assert.equal((await knex("template_versions").where({ job_id: id }).first()).readme, "first");
    assert.deepEqual(await queue.heartbeat(id), { canceled: true });
    await assert.rejects(queue.complete(randomUUID(), result), /no job/);
  });

  it("a result that can't be stored fails the job instead of blocking its daemon for ever", async () => {
    const id = await post();
    await queue.acquire(daemon(), soon());
    await queue.complete(id, importResult({ readme: "zero \u0000 byte" }));
    const job = await one(id);
    assert.deepEqual([job.status, job.error_code], ["failed", "ERR_JOB_RESULT"]);
    // PostgreSQL's words, not the statement with all its values.
    assert.match(job.error, /can't be stored: invalid byte sequence.*SQLSTATE 22021/);
    assert.ok(!job.error.includes("update") && !job.error.includes("zero"));
    const resources = await knex("workspace_resources").where({ job_id: id });
    assert.equal(resources.length, 0);
    const other = await post();
    await queue.acquire(daemon(), soon());
    await assert.rejects(queue.complete(other, buildResult()), /workspace_build/);
  });

  it("a cancel that comes too late doesn't hide that the work was done", async () => {
    const id = await post();
    await queue.acquire(daemon(), soon());
    assert.equal(await cancelJob(knex, id, new Date()), true);
    assert.equal((await one(id)).status, "canceling");
    assert.deepEqual(await queue.heartbeat(id), { canceled: true });
    await queue.complete(id, importResult());
    assert.equal((await one(id)).status, "succeeded");
    assert.equal(await cancelJob(knex, id, new Date()), false);
  });

  it("only the hash of an agent's token is kept", async () => {
    const id = await post();
    await queue.acquire(daemon(), soon());
    const token = randomUUID();
    await queue.complete(id, importResult({ startResources: buildResult([agent(token)]).resources }));
    const rows = await knex("workspace_agents").whereNotNull("token_hash");
    assert.equal(rows.at(-1).token_hash.length, 32);
    assert.ok(!JSON.stringify(rows).includes(token));
  });

  it("a log is kept in order and cut at its limit, with a last line that says so", async () => {
    const id = await post();
    await queue.acquire(daemon(), soon());
    await queue.log(id, [line("one"), line(`zero \u0000${"x".repeat(MAX_LOG_LINE_CHARS)}`)]);
    const before = await jobLogs(knex, id);
    assert.deepEqual(
      [before.length, before[0].output, before[1].output.length],
      [2, "one", MAX_LOG_LINE_CHARS],
    );
    const many = Array.from({ length: 50 }, () => line("y".repeat(MAX_LOG_LINE_CHARS)));
    await queue.log(id, many);
    await queue.log(id, many);
    const rows = await jobLogs(knex, id);
    assert.match(rows.at(-1)?.output ?? "", /The log is full/);
    const bytes = rows.reduce((sum, row) => sum + row.output.length, 0);
    assert.ok(bytes <= MAX_JOB_LOG_BYTES + 200);
    assert.equal((await one(id)).logs_overflowed, true);
    await queue.log(id, [line("more")]);
    assert.equal((await jobLogs(knex, id)).length, rows.length);
    assert.deepEqual((await jobLogs(knex, id, { after: Number(rows[0].id), limit: 1 }))[0].id, rows[1].id);
  });

  it("a job that can't be prepared fails and lets the next one pass", async () => {
    const broken = await knex.transaction((trx) =>
      insertJob(trx, {
        organizationId,
        initiatorId: userId,
        type: "workspace_build", // without a build
        fileId,
        now: new Date(0),
      }),
    );
    const good = await post();
    const job: Job | undefined = await queue.acquire(daemon(), soon());
    assert.equal(job?.id ?? (await queue.acquire(daemon(), soon()))?.id, good);
    assert.equal((await one(broken)).error_code, "ERR_JOB_PAYLOAD");
  });

  it("jobs that nobody finishes are given up, with the reason in job and log", async () => {
    const now = Date.now();
    const pending = await post({ gpu: "yes" }, new Date(now - PENDING_AFTER_MS - 1));
    const recent = await post({}, new Date(now - PENDING_AFTER_MS + 60_000));
    await queue.acquire(daemon(), soon());
    const hung = await post();
    await queue.acquire(daemon(), soon());
    await knex("provisioner_jobs")
      .where({ id: hung })
      .update({ updated_at: new Date(now - HUNG_AFTER_MS - 1) });
    const rounds = await Promise.all([1, 2, 3].map(() => reapJobs(knex, new Date(now))));
    assert.deepEqual(rounds.flat().sort(), [pending, hung].sort());
    assert.match((await one(pending)).error, /gpu=yes/);
    assert.match((await one(hung)).error, /not been heard of for 5 minutes/);
    assert.equal((await one(hung)).status, "failed");
    assert.equal((await jobLogs(knex, hung)).at(-1)?.level, "error");
    assert.equal((await one(recent)).status, "running");
    assert.deepEqual(await queue.heartbeat(hung), { canceled: true });
  });

  it("at the start of the only server, running jobs are given up at once, waiting ones are not", async () => {
    const cutOff = await post();
    await queue.acquire(daemon(), soon());
    const waiting = await post();
    assert.deepEqual(await reapJobs(knex, new Date(), { atStart: true }), [cutOff]);
    assert.equal((await one(cutOff)).error_code, "ERR_JOB_CUT_OFF");
    assert.equal((await one(waiting)).status, "pending");
  });

  it("watchers hear of each change, and one that looks away misses none", async () => {
    const id = await post();
    await queue.acquire(daemon(), soon());
    const waiter = topics.waiter([["provisioner_job", id]], 60_000);
    let heard = 0;
    const off = topics.watch("provisioner_job", id, () => heard++);
    await queue.log(id, [line("one")]);
    await until("the notification", async () => heard > 0);
    await waiter.next(soon()); // already changed: at once
    off();
    waiter.close();
  });

  it("signing keys are made once, however many replicas start at the same moment", async () => {
    const loaded = await Promise.all(Array.from({ length: 5 }, () => loadSigningKeys(knex)));
    assert.deepEqual(new Set(loaded.map((keys) => keys[0].keyId)).size, 1);
    const [key] = loaded[0];
    assert.deepEqual([key.publicKey.length, key.privateKey?.length], [32, 32]);
    await knex("signing_keys").update({ retired_at: new Date() });
    const next = await loadSigningKeys(knex);
    assert.equal(next.length, 2);
    assert.ok(next[0].privateKey && !next[1].privateKey && next[1].keyId === key.keyId);
  });

  it("a replica whose clock is behind signs with the key that another has just made", async () => {
    await knex("signing_keys").delete();
    const now = new Date();
    const [made] = await loadSigningKeys(knex, now);
    const behind = await loadSigningKeys(knex, new Date(now.getTime() - 5_000));
    assert.deepEqual(behind, [made]);
    assert.ok(made.privateKey);
  });
});
