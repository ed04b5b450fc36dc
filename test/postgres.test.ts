import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { debianPostgres } from "../control/db/testing.ts";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** Every test that talks to a database, in a mocha of its own: the address is read from the environment. */
const SUITES = [
  "control/api/*.test.ts",
  "control/db/{listen,migrate,open}.test.ts",
  "control/provisioner/queue.test.ts",
];

describe("PostgreSQL 15 through CODER_PG_CONNECTION_URL", function () {
  this.timeout(180_000);

  it("passes every database test", async function () {
    const found = await debianPostgres();
    if ("skip" in found) {
      console.log(`      skipped: ${found.skip}`);
      return this.skip();
    }
    const mocha = path.join(root, "node_modules/mocha/bin/mocha.js");
    const child = spawn(process.execPath, [mocha, "--reporter", "json", ...SUITES], {
      cwd: root,
      env: { ...process.env, CODER_PG_CONNECTION_URL: found.url },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
    const start = stdout.indexOf('{\n  "stats"');
    assert.ok(start >= 0, `${stdout}\n${stderr}`);
    const { stats, failures } = JSON.parse(stdout.slice(start)) as {
      stats: { passes: number; suites: number };
      failures: { fullTitle: string; err: { message: string } }[];
    };
    assert.deepEqual(
      failures.map(({ fullTitle, err }) => `${fullTitle}: ${err.message}`),
      [],
    );
    assert.equal(code, 0);
    assert.ok(stats.passes > 80, `only ${stats.passes} tests ran`);
  });
});
