// `npm test`: bundle, types, lint and format, and every test, in several processes at a time (see batches.mjs).
// The last line is counted from mocha's own results: "N passed, N failed, N skipped"; a check that fails is one failure more.
//
//   npm test -- 'coordinator/*.test.ts'   some files, in one process
//   TEST_LANES=1 npm test                 how many processes at a time
//   TEST_TIMES=1 npm test                 lists the slowest files and tests at the end
//   TEST_TIMES=save npm test              and keeps the files' times for the batches of later runs
//   TEST_CHECKS=0 npm test                without types, lint and format
//   TEST_RESULTS=FILE npm test            writes counts, failures and times to FILE, as JSON
import { spawn } from "node:child_process";
import { chmodSync, copyFileSync, cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "../deploy/build.mjs";
import { listSpecs, makeBatches, readTimes } from "./batches.mjs";
import { TestFolder } from "./leftovers.mjs";
import { runBatches, runMocha } from "./mocha.mjs";

const CHECK_LIMIT_MS = 5 * 60_000;
/** Some ten times what the tests take on two cores. */
const TESTS_LIMIT_MS = 20 * 60_000;
/** More would only make timers late: the programs under test bring processes of their own. */
const MAX_LANES = 3;
const MAX_LISTED = 20;

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const timesFile = path.join(root, "test/times.json");
const bin = (name) => path.join(root, "node_modules/.bin", name);
const seconds = (ms) => `${(ms / 1_000).toFixed(1).padStart(6)} s`;

const startedAt = performance.now();
const temporary = new TestFolder();
// Whatever ends this process takes its folder and what was started along; the first signal lets the tests clean up.
let stopTests = () => process.exit(130);
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => stopTests());
process.on("exit", () => temporary.clear());

/** Runs beside the tests; what it prints comes in one piece. @returns whether it went well */
async function check(name, command, args) {
  let output = "";
  const child = spawn(command, args, {
    cwd: root,
    env: { ...process.env, ...temporary.environment, XDG_CACHE_HOME: temporary.own },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: CHECK_LIMIT_MS,
    killSignal: "SIGKILL",
  });
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (text) => {
      output += text;
    });
  return await new Promise((resolve) => {
    const end = (how, isWell) => {
      console.log(`== ${name}\n${output}${how}`);
      resolve(isWell);
    };
    child.once("error", (error) => end(`${name}: ${error.message}\n`, false));
    child.once("close", (code, signal) => end(signal ? `${name}: ended by ${signal}\n` : "", code === 0));
  });
}

/**
 * Builds, and copies what was built to a place where no later build replaces it under the tests' feet.
 *
 * @returns the copy's folder, for TEST_INSTALLATION; undefined when it can't be built
 */
async function bundle() {
  const dir = path.join(temporary.own, "app");
  try {
    await build();
    mkdirSync(dir);
    chmodSync(temporary.own, 0o711); // one test runs it as another user
    for (const name of ["dist", "deploy"])
      cpSync(path.join(root, name), path.join(dir, name), { recursive: true });
    copyFileSync(path.join(root, "package.json"), path.join(dir, "package.json"));
    symlinkSync(path.join(root, "node_modules"), path.join(dir, "node_modules"));
    return dir;
  } catch (error) {
    console.log(`the bundle can't be built, and many tests need it: ${error.message}`);
    return undefined;
  }
}

async function runTests(installation) {
  const requested = process.argv.slice(2);
  const options = {
    cwd: root,
    env: { ...process.env, ...temporary.environment, TEST_INSTALLATION: installation },
    limitMs: TESTS_LIMIT_MS,
    onStart: (stop) => {
      stopTests = stop;
    },
  };
  if (requested.some((arg) => arg.endsWith(".test.ts")))
    return await runMocha(requested, { ...options, resultFile: path.join(temporary.own, "result.json") });
  return await runBatches(makeBatches(listSpecs(root), readTimes(timesFile)), {
    ...options,
    folder: temporary.own,
    lanes: Number(process.env["TEST_LANES"]) || Math.min(os.availableParallelism(), MAX_LANES),
    args: requested,
    print: (text) => console.log(text.trimEnd()),
  });
}

function listTimes({ files, slowest }) {
  const bySize = (a, b) => b.wallMs - a.wallMs;
  const rows = (items, line) => [...items].sort(bySize).slice(0, MAX_LISTED).map(line).join("\n");
  console.log(
    `\nSlowest files (wall, CPU):\n${rows(files, (one) => `  ${seconds(one.wallMs)} ${seconds(one.cpuMs)}  ${one.file}`)}`,
  );
  console.log(
    `\nSlowest tests and hooks:\n${rows(slowest, (one) => `  ${seconds(one.wallMs)}  ${one.file}: ${one.title}`)}`,
  );
}

const installation = await bundle();
const nothing = {
  passed: 0,
  failed: 0,
  skipped: 0,
  ok: false,
  remarks: [],
  failures: [],
  times: { files: [], slowest: [] },
};
const isChecked = process.env["TEST_CHECKS"] !== "0";
const [typesOk, lintOk, result] = await Promise.all([
  !isChecked || check("types", bin("tsc"), ["--noEmit"]),
  !isChecked || check("lint and format", bin("biome"), ["check", "--error-on-warnings", "."]),
  installation ? runTests(installation) : nothing,
]);
const failedChecks = [
  ...(installation ? [] : ["bundle"]),
  ...(typesOk ? [] : ["types"]),
  ...(lintOk ? [] : ["lint and format"]),
];
const left = temporary.clear();
const wallMs = performance.now() - startedAt;
if (process.env["TEST_TIMES"]) listTimes(result.times);
if (process.env["TEST_TIMES"] === "save") {
  const sorted = result.times.files
    .map(({ file, wallMs: ms }) => [file, ms])
    .sort(([a], [b]) => (a < b ? -1 : 1));
  writeFileSync(
    timesFile,
    `${JSON.stringify({ ...readTimes(timesFile), ...Object.fromEntries(sorted) }, null, 2)}\n`,
  );
}
for (const { file, title } of result.failures) console.log(`FAILED: ${file}: ${title}`);
for (const remark of result.remarks) console.log(`FAILED: ${remark}`);
if (left.length > 0) console.log(`FAILED: the tests left something behind:\n  ${left.join("\n  ")}`);
if (failedChecks.length > 0) console.log(`FAILED beside the tests, see above: ${failedChecks.join(", ")}`);
const counts = {
  passed: result.passed,
  failed: result.failed + failedChecks.length + (left.length > 0 ? 1 : 0),
  skipped: result.skipped,
};
if (process.env["TEST_RESULTS"])
  writeFileSync(
    process.env["TEST_RESULTS"],
    JSON.stringify({
      ...counts,
      wallMs,
      failedChecks,
      left,
      remarks: result.remarks,
      failures: result.failures,
      times: result.times,
    }),
  );
console.log(`in ${Math.round(wallMs / 1_000)} s`);
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
// exit, not exitCode: nothing may keep this process waiting any more.
process.exit(result.ok && failedChecks.length === 0 && left.length === 0 ? 0 : 1);
