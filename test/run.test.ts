import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { makeBatches } from "./batches.mjs";
import { type MochaResult, runBatches, runMocha } from "./mocha.mjs";

/** Without what differs from run to run. */
function counts({ passed, failed, skipped, ok, remarks }: MochaResult): Partial<MochaResult> {
  return { passed, failed, skipped, ok, remarks };
}

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
    assert.deepEqual(counts(result), { passed: 1, failed: 0, skipped: 1, ok: true, remarks: [] });
  });

  it("counts a test that fails", async () => {
    const result = await run('it("fails", () => { throw new Error("no"); });');
    assert.deepEqual(counts(result), { passed: 1, failed: 1, skipped: 1, ok: false, remarks: [] });
    assert.deepEqual(
      result.failures.map(({ title, message }) => [title, message.split("\n")[0]]),
      [["fails", "Error: no"]],
    );
  });

  it("says how long each file took, hooks included", async () => {
    const result = await run(
      'describe("s", () => { before((done) => setTimeout(done, 120)); it("x", (done) => setTimeout(done, 80)); });',
    );
    const file = result.times.files.find((one) => path.basename(one.file) === "some.test.cjs");
    assert.ok((file?.wallMs ?? 0) >= 190, JSON.stringify(result.times.files));
    assert.deepEqual(
      result.times.slowest.slice(0, 2).map(({ title }) => title),
      ['s "before all" hook for "x"', "s x"],
    );
  });

  it("fails when a test ends the process, even with code 0, and names the test", async () => {
    const result = await run('it("ends it all", () => process.exit(0));');
    assert.deepEqual(counts(result), {
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

describe("a run in batches", () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(path.join(os.tmpdir(), "batches-test-"));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  const passes = 'it("passes", () => {});';

  function batch(name: string, body: string): { name: string; files: string[] } {
    const file = path.join(dir, `${name}.test.cjs`);
    writeFileSync(file, body);
    return { name, files: [file] };
  }

  async function run(
    batches: { name: string; files: string[] }[],
    more: { lanes?: number; limitMs?: number; onStart?: (stop: () => void) => void } = {},
  ): Promise<MochaResult & { printed: string[] }> {
    const printed: string[] = [];
    const result = await runBatches(batches, {
      cwd: dir,
      env: { ...process.env, TEST_LEAK_GRACE_MS: "300" },
      folder: dir,
      lanes: 2,
      limitMs: 15_000,
      abortGraceMs: 10_000,
      print: (text) => printed.push(text),
      ...more,
    });
    return { ...result, printed };
  }

  it("adds their results up", async () => {
    const result = await run([
      batch("a", `${passes}\nit.skip("is skipped", () => {});`),
      batch("b", `${passes}\nit("fails", () => { throw new Error("no"); });`),
      batch("c", passes),
    ]);
    assert.deepEqual(counts(result), { passed: 3, failed: 1, skipped: 1, ok: false, remarks: [] });
    assert.deepEqual(
      result.failures.map(({ title }) => title),
      ["fails"],
    );
    assert.equal(result.times.files.length, 3);
  });

  it("in which all is well says so", async () => {
    const result = await run([batch("a", passes), batch("b", passes)]);
    assert.deepEqual(counts(result), { passed: 2, failed: 0, skipped: 0, ok: true, remarks: [] });
  });

  it("of none is no success", async () => assert.equal((await run([])).ok, false));

  it("counts a batch that dies as a failure and finishes the others", async () => {
    const result = await run([
      batch("dies", `${passes}\nit("ends it all", () => process.exit(0));`),
      batch("killed", `${passes}\nit("is killed", () => process.kill(process.pid, "SIGKILL"));`),
      batch("c", passes),
    ]);
    assert.deepEqual([result.passed, result.failed, result.ok], [3, 2, false]);
    assert.deepEqual(result.remarks.toSorted(), [
      "dies: mocha ended with code 0 before its last test, in: ends it all",
      "killed: mocha was ended by SIGKILL before its last test, in: is killed",
    ]);
  });

  it("goes on in several processes, and prints each one's output in one piece", async () => {
    // Each waits for the other: one after the other, neither would end.
    const meets = (own: string, other: string): string => `
      const fs = require("node:fs");
      it("meets", (done) => {
        console.log("${own} begins");
        fs.writeFileSync(${JSON.stringify(path.join(dir, "x-"))} + "${own}", "");
        (function look() {
          if (!fs.existsSync(${JSON.stringify(path.join(dir, "x-"))} + "${other}")) return setTimeout(look, 5);
          console.log("${own} ends");
          done();
        })();
      }).timeout(10_000);`;
    const result = await run([batch("a", meets("a", "b")), batch("b", meets("b", "a"))]);
    assert.deepEqual(counts(result), { passed: 2, failed: 0, skipped: 0, ok: true, remarks: [] });
    assert.deepEqual(result.printed.map((text) => /== tests: (.) /.exec(text)?.[1]).sort(), ["a", "b"]);
    for (const text of result.printed) {
      const [, name] = /== tests: (.) /.exec(text) ?? [];
      assert.deepEqual(text.match(/[ab] (begins|ends)/g), [`${name} begins`, `${name} ends`]);
    }
  });

  it("that is stopped counts what did not run as failures", async () => {
    const stopIt = path.join(dir, "go");
    let stop = (): void => undefined;
    const running = run(
      [
        batch(
          "a",
          `it("waits", (done) => { process.once("SIGTERM", () => done()); require("node:fs").writeFileSync(${JSON.stringify(stopIt)}, ""); });\nit("comes later", () => {});`,
        ),
        batch("b", passes),
      ],
      {
        lanes: 1,
        onStart: (given) => {
          stop = given;
        },
      },
    );
    while (!existsSync(stopIt)) await new Promise((resolve) => setTimeout(resolve, 5));
    stop();
    const result = await running;
    assert.deepEqual([result.ok, result.failed], [false, 2]);
    assert.deepEqual(result.remarks, [
      "a: stopped by a signal",
      "b: did not run, the tests were stopped before",
    ]);
  });
});

describe("batches", () => {
  it("hold every file once, those of a folder together, up to a length, the longest first", () => {
    const times = { "a/1.test.ts": 9_000, "a/2.test.ts": 2_000, "b/1.test.ts": 30_000, "b/2.test.ts": 5_000 };
    const specs = [...Object.keys(times), "a/new.test.ts"];
    assert.deepEqual(
      makeBatches(specs, times, 12_000).map(({ files }) => files),
      [["b/1.test.ts"], ["a/1.test.ts", "a/2.test.ts"], ["b/2.test.ts"], ["a/new.test.ts"]],
    );
  });
});
