// mocha's spec reporter, plus what test/mocha.mjs must know: how far the run came, in the file named by
// TEST_RESULT_FILE, written at every step so that it is true whenever and however this process ends.
const { readFileSync, renameSync, writeFileSync } = require("node:fs");
const path = require("node:path");
const { Spec } = require("mocha").reporters;

/** How long a finished run may take to let go of sockets, timers and children before that counts as a leak. */
const LEAK_GRACE_MS = Number(process.env["TEST_LEAK_GRACE_MS"] ?? 5_000);

/** Bounds of what the result file repeats of a failure and lists of what was slow. */
const MAX_MESSAGE_CHARS = 2_000;
const MAX_SLOW = 20;
/** Of Linux's clock ticks in /proc, whose number per second is the same everywhere. */
const TICK_MS = 10;

/** CPU time so far, user and system, ms: of this process and of the children that it has seen end. */
function cpuMs() {
  try {
    const fields = readFileSync("/proc/self/stat", "utf8").split(") ").at(-1).split(" ");
    return [11, 12, 13, 14].reduce((sum, at) => sum + Number(fields[at]), 0) * TICK_MS;
  } catch {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1_000;
  }
}

/** Where the time goes: wall and CPU time of tests and hooks, by file and one by one. */
class Times {
  #startedAt = 0;
  #startedCpuMs = 0;
  #files = new Map();
  #slowest = [];
  start() {
    this.#startedAt = performance.now();
    this.#startedCpuMs = cpuMs();
  }
  end({ file = "", title }) {
    const wallMs = performance.now() - this.#startedAt;
    const sums = this.#files.get(file) ?? { wallMs: 0, cpuMs: 0 };
    sums.wallMs += wallMs;
    sums.cpuMs += cpuMs() - this.#startedCpuMs;
    this.#files.set(file, sums);
    this.#slowest.push({ file: path.relative(process.cwd(), file), title, wallMs: Math.round(wallMs) });
    this.#slowest = this.#slowest.sort((a, b) => b.wallMs - a.wallMs).slice(0, MAX_SLOW);
  }
  toJSON() {
    const files = [...this.#files].map(([file, sums]) => ({
      file: path.relative(process.cwd(), file),
      wallMs: Math.round(sums.wallMs),
      cpuMs: Math.round(sums.cpuMs),
    }));
    return { files, slowest: this.#slowest };
  }
}

module.exports = class RecordingSpec extends Spec {
  constructor(runner, options) {
    super(runner, options);
    const file = process.env["TEST_RESULT_FILE"];
    const skipped = [];
    const times = new Times();
    const failures = [];
    const state = { pid: process.pid, finished: false, running: undefined, leaked: undefined, failures };
    const record = (changes) => {
      const { passes = 0, failures = 0, pending = 0 } = this.stats;
      Object.assign(state, { passed: passes, failed: failures, skipped: pending }, changes);
      if (!file) return;
      writeFileSync(`${file}.new`, JSON.stringify(state));
      renameSync(`${file}.new`, file);
    };
    record({});
    // Ends after the test that is running, hooks included, so that servers are stopped and folders removed.
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => runner.abort());
    for (const kind of ["test", "hook"]) {
      runner.on(kind, (runnable) => {
        times.start();
        record({ running: runnable.fullTitle() });
      });
      runner.on(`${kind} end`, (runnable) => {
        if (!runnable.isPending()) times.end({ file: runnable.file, title: runnable.fullTitle() });
        record({ running: undefined });
      });
    }
    runner.on("fail", (test, error) => {
      const message = String(error?.stack ?? error).slice(0, MAX_MESSAGE_CHARS);
      failures.push({
        file: path.relative(process.cwd(), test.file ?? ""),
        title: test.fullTitle(),
        message,
      });
    });
    runner.on("pending", (test) => skipped.push(test.fullTitle()));
    runner.once("end", () => {
      record({ finished: true, running: undefined, times });
      if (skipped.length > 0)
        console.log(`Skipped (each says why above):\n${skipped.map((title) => `  - ${title}\n`).join("")}`);
      setTimeout(() => {
        record({ leaked: process.getActiveResourcesInfo() });
        process.exit(1);
      }, LEAK_GRACE_MS).unref();
    });
  }
};
