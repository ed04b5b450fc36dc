import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { type MochaResult, runMocha } from "./mocha.mjs";

describe("a run of the tests", () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(path.join(os.tmpdir(), "run-test-"));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  async function run(body: string, limitMs = 15_000): Promise<MochaResult> {
    const file = path.join(dir, "some.test.cjs");
    writeFileSync(file, `it("passes", () => {});\nit.skip("is skipped", () => {});\n${body}`);
    return await runMocha([file], {
      cwd: dir,
      env: { ...process.env, TEST_LEAK_GRACE_MS: "300" },
      resultFile: path.join(dir, "result.json"),
      limitMs,
      abortGraceMs: 200,
      output: "ignore",
    });
  }

  it("in which all is well says so", async () => {
    const result = await run("");
    assert.deepEqual(result, { passed: 1, failed: 0, skipped: 1, ok: true, remarks: [] });
  });

  it("counts a test that fails", async () => {
    const result = await run('it("fails", () => { throw new Error("no"); });');
    assert.deepEqual(result, { passed: 1, failed: 1, skipped: 1, ok: false, remarks: [] });
  });

  it("fails when a test ends the process, even with code 0, and names the test", async () => {
    const result = await run('it("ends it all", () => process.exit(0));');
    assert.deepEqual(result, {
      ...{ passed: 1, failed: 1, skipped: 1, ok: false },
      remarks: ["mocha ended with code 0 before its last test, in: ends it all"],
    });
  });

  it("fails when a file can't be loaded", async () => {
    const { ok, failed, remarks } = await run("this is not JavaScript");
    assert.deepEqual([ok, failed], [false, 1]);
    assert.match(remarks.join(), /before any test ran/);
  });

  it("fails when no test is found, or none is left to run", async () => {
    const options = { cwd: dir, env: process.env, limitMs: 15_000, output: "ignore" } as const;
    const none = path.join(dir, "none.test.cjs");
    const missing = await runMocha([none], { ...options, resultFile: path.join(dir, "a.json") });
    assert.deepEqual([missing.ok, missing.passed, missing.failed], [false, 0, 1]);
    writeFileSync(none, "");
    const empty = await runMocha([none], { ...options, resultFile: path.join(dir, "b.json") });
    assert.deepEqual([empty.ok, empty.passed, empty.remarks], [false, 0, ["no test ran"]]);
  });

  it("ends a test that loops for ever, and names it", async () => {
    const result = await run('it("loops", () => { for (;;); });', 2_000);
    assert.deepEqual([result.ok, result.passed, result.failed], [false, 1, 1]);
    assert.match(result.remarks.join(), /longer than 2 s and were stopped, in: loops/);
  });

  it("over its limit runs the hooks that clean up", async () => {
    const kept = path.join(dir, "kept");
    const result = await run(
      `const fs = require("node:fs");
      before(() => fs.writeFileSync(${JSON.stringify(kept)}, ""));
      after(() => fs.rmSync(${JSON.stringify(kept)}));
      for (let i = 0; i < 1000; i++) it("is slow " + i, (done) => setTimeout(done, 50));`,
      2_000,
    );
    assert.deepEqual([result.ok, result.failed], [false, 1]);
    assert.throws(() => rmSync(kept), { code: "ENOENT" });
  });

  it("fails when something keeps the process alive, and says what", async () => {
    const result = await run('it("leaks", () => void setInterval(() => {}, 1000));');
    assert.deepEqual([result.ok, result.passed, result.failed], [false, 2, 1]);
    assert.match(result.remarks.join(), /kept the process alive: .*Timeout/);
  });
});
