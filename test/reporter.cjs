// mocha's spec reporter, plus what test/mocha.mjs must know: how far the run came, in the file named by
// TEST_RESULT_FILE, written at every step so that it is true whenever and however this process ends.
const { renameSync, writeFileSync } = require("node:fs");
const { Spec } = require("mocha").reporters;

/** How long a finished run may take to let go of sockets, timers and children before that counts as a leak. */
const LEAK_GRACE_MS = Number(process.env["TEST_LEAK_GRACE_MS"] ?? 5_000);

module.exports = class RecordingSpec extends Spec {
  constructor(runner, options) {
    super(runner, options);
    const file = process.env["TEST_RESULT_FILE"];
    const skipped = [];
    const state = { pid: process.pid, finished: false, running: undefined, leaked: undefined };
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
    runner.on("test", (test) => record({ running: test.fullTitle() }));
    runner.on("hook", (hook) => record({ running: hook.fullTitle() }));
    runner.on("test end", () => record({ running: undefined }));
    runner.on("hook end", () => record({ running: undefined }));
    runner.on("pending", (test) => skipped.push(test.fullTitle()));
    runner.once("end", () => {
      record({ finished: true, running: undefined });
      if (skipped.length > 0)
        console.log(`Skipped (each says why above):\n${skipped.map((title) => `  - ${title}\n`).join("")}`);
      setTimeout(() => {
        record({ leaked: process.getActiveResourcesInfo() });
        process.exit(1);
      }, LEAK_GRACE_MS).unref();
    });
  }
};
