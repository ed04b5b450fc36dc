import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { type DaemonOptions, type RunningDaemons, startDaemonsWith } from "./daemon.ts";
import { JobLogWriter, MAX_JOB_LOG_CHARS } from "./job-log.ts";
import type { RunJob } from "./jobs.ts";
import { Limiter } from "./limiter.ts";
import type { BuildResult, JobLog } from "./protocol.ts";
import { buildJob, MemoryQueue } from "./testing.ts";

const tar = new Uint8Array();
const job = (id: string) => buildJob(tar, "start", { id });
const result: BuildResult = {
  type: "workspace_build",
  state: new Uint8Array([1]),
  resources: [],
  dailyCost: 0,
};
const done: RunJob = async () => ({ result });
const untilCanceled: RunJob = (_job, { signal, log }) =>
  new Promise((resolve) => {
    log("Waiting", "running");
    const end = () =>
      resolve({
        failure: { message: "interrupted", errorCode: "ERR_TERRAFORM_FAILED", state: new Uint8Array([7]) },
      });
    if (signal.aborted) end();
    else signal.addEventListener("abort", end, { once: true });
  });

class Refusal extends Error {
  code = "ERR_JOB_GONE";
}

describe("provisioner daemons", () => {
  let daemons: RunningDaemons | undefined;
  let queue: MemoryQueue;
  const start = (run: RunJob, options: Partial<DaemonOptions> = {}) => {
    daemons = startDaemonsWith(run, {
      queue,
      count: 1,
      heartbeatIntervalMs: 10,
      random: () => 0,
      ...options,
    });
    return daemons;
  };
  beforeEach(() => {
    queue = new MemoryQueue();
  });
  afterEach(() => daemons?.stop({ drainMs: 0 }));

  it("run as many jobs at once as there are daemons, each once", async () => {
    let running = 0;
    let most = 0;
    const gates: (() => void)[] = [];
    start(
      async () => {
        most = Math.max(most, ++running);
        await new Promise<void>((resolve) => {
          gates.push(resolve);
          if (gates.length === 3) for (const open of gates) open();
        });
        running--;
        return { result };
      },
      { count: 3 },
    );
    for (const id of ["a", "b", "c"]) queue.add(job(id));
    await Promise.all(["a", "b", "c"].map((id) => queue.settled(id)));
    assert.equal(most, 3);
    assert.deepEqual([...queue.completed.keys()].sort(), ["a", "b", "c"]);
  });

  it("stream the log while a job runs, and say they are alive", async () => {
    start(untilCanceled);
    queue.add(job("a"));
    await queue.until(() => queue.logs.some(({ output }) => output === "running") && queue.heartbeats > 2);
    assert.equal(queue.failed.size, 0);
  });

  it("stop a job that was canceled and hand over the state it left", async () => {
    start(untilCanceled);
    queue.add(job("a"));
    await queue.until(() => queue.heartbeats > 0);
    queue.canceled.add("a");
    await queue.settled("a");
    const failure = queue.failed.get("a")!;
    assert.deepEqual([failure.errorCode, failure.state], ["ERR_JOB_CANCELED", new Uint8Array([7])]);
    assert.equal(queue.logs.at(-1)!.output, "the job was canceled");
  });

  it("go on after the queue could not be reached, for jobs and for results", async () => {
    queue.errors.acquire = [new Error("away")];
    queue.errors.complete = [new Error("away")];
    queue.errors.log = [new Error("away")];
    queue.errors.heartbeat = [new Error("away")];
    start(async (_job, { log }) => {
      log("s", "said once");
      return { result };
    });
    queue.add(job("a"));
    await queue.settled("a");
    assert.deepEqual(queue.completed.get("a"), result);
    assert.equal(queue.logs.filter(({ output }) => output === "said once").length, 1);
  });

  it("turn an exception of a job into its failure and take the next", async () => {
    start(async ({ id }) => {
      if (id === "bad") throw new Error("boom");
      return { result };
    });
    queue.add(job("bad"));
    queue.add(job("good"));
    await queue.settled("good");
    assert.deepEqual(queue.failed.get("bad"), { message: "boom", errorCode: "ERR_PROVISIONER_INTERNAL" });
  });

  it("finish a running job when stopped, and take no other", async () => {
    let finish = () => {};
    start(async () => {
      await new Promise<void>((resolve) => {
        finish = resolve;
      });
      return { result };
    });
    queue.add(job("a"));
    await queue.until(() => queue.heartbeats > 0);
    const stopped = daemons!.stop();
    queue.add(job("b"));
    finish();
    await stopped;
    assert.deepEqual([...queue.completed.keys()], ["a"]);
  });

  it("cancel a running job when stopped and out of time", async () => {
    start(untilCanceled);
    queue.add(job("a"));
    await queue.until(() => queue.heartbeats > 0);
    await daemons!.stop({ drainMs: 1 });
    assert.equal(queue.failed.get("a")!.errorCode, "ERR_PROVISIONER_STOPPED");
  });

  describe("with a folder for rescued state", () => {
    let dir: string;
    beforeEach(async () => {
      dir = await mkdtemp(path.join(tmpdir(), "rescue-"));
    });
    afterEach(() => rm(dir, { recursive: true }));

    it("keep state in a private file when the result is refused", async () => {
      queue.errors.complete = [new Refusal("the job was reaped")];
      const rescueDir = path.join(dir, "states");
      start(done, { rescueDir });
      queue.add(job("a"));
      queue.add(job("b"));
      await queue.settled("b");
      const [name] = await readdir(rescueDir);
      assert.equal(name, `${job("a").metadata.workspaceId}-a.tfstate`);
      assert.deepEqual(new Uint8Array(await readFile(path.join(rescueDir, name!))), result.state);
      assert.equal((await stat(path.join(rescueDir, name!))).mode & 0o777, 0o600);
    });
  });

  it("cancel a job that the control plane has given up", async () => {
    queue.errors.heartbeat = [new Refusal("reaped")];
    start(untilCanceled);
    queue.add(job("a"));
    await queue.settled("a");
    assert.equal(queue.failed.get("a")!.errorCode, "ERR_JOB_LOST");
  });
});

describe("a job's log", () => {
  const line = (output: string) => ({
    source: "provisioner" as const,
    level: "info" as const,
    stage: "s",
    output,
  });

  it("arrives in order and complete, in batches", async () => {
    const batches: JobLog[][] = [];
    const writer = new JobLogWriter({ send: async (lines) => void batches.push(lines), now: () => 0 });
    const expected = Array.from({ length: 1234 }, (_, index) => `line ${index}`);
    for (const text of expected) writer.write(line(text));
    await writer.close(1000);
    assert.deepEqual(
      batches.flat().map(({ output }) => output),
      expected,
    );
    assert.equal(batches.length, 3);
  });

  it("is bounded in all", async () => {
    const sent: JobLog[] = [];
    const writer = new JobLogWriter({ send: async (lines) => void sent.push(...lines) });
    const long = "x".repeat(16 * 1024);
    for (let chars = 0; chars < 2 * MAX_JOB_LOG_CHARS; chars += long.length) writer.write(line(long));
    await writer.close(1000);
    assert.ok(sent.length <= MAX_JOB_LOG_CHARS / long.length + 1);
    assert.match(sent.at(-1)!.output, /log of this job is full/);
  });

  it("does not hold up a result for ever", async () => {
    const writer = new JobLogWriter({ send: () => new Promise(() => {}) });
    writer.write(line("a"));
    await writer.close(20);
  });
});

describe("a limiter", () => {
  it("never runs more tasks than it should, and all of them, in order", async () => {
    const limiter = new Limiter(2);
    let running = 0;
    const finished: number[] = [];
    await Promise.all(
      [0, 1, 2, 3, 4].map((id) =>
        limiter.run(async () => {
          assert.ok(++running <= 2);
          await null;
          running--;
          finished.push(id);
        }),
      ),
    );
    assert.deepEqual(finished, [0, 1, 2, 3, 4]);
  });
});
