// One mocha run that always ends, and a result that tells the truth about it. A test that calls process.exit(),
// loops for ever, or leaves a handle open must not pass for a run in which everything passed.
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const folder = path.dirname(fileURLToPath(import.meta.url));
const mochaBin = path.join(folder, "../node_modules/mocha/bin/mocha.js");

/** After the limit, mocha has this long to end its hooks before it is killed. */
const ABORT_GRACE_MS = 30_000;

/**
 * @param {readonly string[]} args mocha's, specs included
 * @param {object} options
 * @param {string} options.cwd
 * @param {NodeJS.ProcessEnv} options.env
 * @param {string} options.resultFile a path of our own; mocha's process writes it
 * @param {number} options.limitMs for the whole run
 * @param {number} [options.abortGraceMs]
 * @param {"inherit" | "ignore" | number} [options.output] where mocha's own output goes; a number is an open file
 * @param {(stop: () => void) => void} [options.onStart] receives what ends the run early; a second call kills it
 * @returns {Promise<MochaResult>} mocha's counts; a run that did not end as it should counts as one more failure, and
 *   `remarks` says how it ended
 *
 * @typedef {{ file: string, title: string, message: string }} Failure
 * @typedef {{ files: { file: string, wallMs: number, cpuMs: number }[],
 *   slowest: { file: string, title: string, wallMs: number }[] }} Times
 * @typedef {{ passed: number, failed: number, skipped: number, ok: boolean, remarks: string[], failures: Failure[],
 *   times: Times }} MochaResult
 */
export async function runMocha(args, options) {
  const { cwd, env, resultFile, limitMs, abortGraceMs = ABORT_GRACE_MS, output = "inherit" } = options;
  const child = spawn(
    process.execPath,
    [mochaBin, "--reporter", path.join(folder, "reporter.cjs"), ...args],
    // A process group of its own: mocha starts a node of its own, and both must go when killed.
    {
      cwd,
      env: { ...env, TEST_RESULT_FILE: resultFile },
      stdio: ["ignore", output, output],
      detached: true,
    },
  );
  const remarks = [];
  let stops = 0;
  let killer;
  const kill = () => signal(-child.pid, "SIGKILL");
  const stop = () => {
    if (++stops > 1) return kill();
    const pid = readResult(resultFile)?.pid;
    if (pid === undefined) return kill();
    signal(pid, "SIGTERM");
    killer = setTimeout(kill, abortGraceMs);
  };
  const limit = setTimeout(() => {
    const running = readResult(resultFile)?.running;
    remarks.push(
      `the tests took longer than ${limitMs / 1000} s and were stopped${running ? `, in: ${running}` : ""}`,
    );
    stop();
  }, limitMs);
  options.onStart?.(stop);
  const ended = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, by) => resolve({ code, by }));
  });
  clearTimeout(limit);
  clearTimeout(killer);
  return judge(readResult(resultFile), ended, { stopped: stops > 0, remarks });
}

function judge(result, { code, by }, { stopped, remarks }) {
  const { passed = 0, failed = 0, skipped = 0, finished = false, running, leaked } = result ?? {};
  const { failures = [], times = { files: [], slowest: [] } } = result ?? {};
  const how = by ? `was ended by ${by}` : `ended with code ${code}`;
  if (!finished)
    remarks.push(
      !result
        ? `mocha ${how} before any test ran, see above`
        : `mocha ${how} before its last test${running ? `, in: ${running}` : ""}`,
    );
  else if (leaked) remarks.push(`after the last test something kept the process alive: ${leaked.join(", ")}`);
  else if (stopped && remarks.length === 0) remarks.push("stopped by a signal");
  else if (code !== 0 && failed === 0) remarks.push(`mocha ${how} after its last test, see above`);
  else if (passed + failed + skipped === 0) remarks.push("no test ran");
  const broken = remarks.length > 0 ? 1 : 0;
  const ok = code === 0 && failed + broken === 0;
  return { passed, failed: failed + broken, skipped, ok, remarks, failures, times };
}

/**
 * Batches of spec files, several at a time, each a mocha run of its own. What a batch prints appears in one piece when it
 * has ended.
 *
 * @param {readonly { name: string, files: readonly string[] }[]} batches taken in this order
 * @param {object} options as for `runMocha`, and:
 * @param {string} options.folder for files of this run
 * @param {number} options.lanes how many at a time
 * @param {readonly string[]} [options.args] mocha's, for every batch
 * @param {(text: string) => void} options.print
 * @returns {Promise<MochaResult>} the sum; a batch that did not run, because the run was stopped, counts as a failure
 */
export async function runBatches(batches, options) {
  const { folder, lanes, print, args = [], limitMs, onStart, ...rest } = options;
  const endAt = performance.now() + limitMs;
  const waiting = [...batches.entries()];
  const stops = new Set();
  const results = [];
  let isStopped = false;
  onStart?.(() => {
    isStopped = true;
    for (const stop of stops) stop();
  });
  const runOne = async ([index, { name, files }]) => {
    const outputFile = path.join(folder, `output-${index}`);
    const output = openSync(outputFile, "w");
    const startedAt = performance.now();
    let stopThis;
    const result = await runMocha([...args, ...files], {
      ...rest,
      output,
      resultFile: path.join(folder, `result-${index}.json`),
      limitMs: Math.max(1, endAt - startedAt),
      onStart: (stop) => {
        stopThis = stop;
        stops.add(stop);
      },
    });
    stops.delete(stopThis);
    closeSync(output);
    results.push({ ...result, remarks: result.remarks.map((remark) => `${name}: ${remark}`) });
    const seconds = ((performance.now() - startedAt) / 1_000).toFixed(1);
    print(
      `== tests: ${name} (${results.length} of ${batches.length}, ${seconds} s)\n${readFileSync(outputFile, "utf8")}`,
    );
  };
  const lane = async () => {
    while (!isStopped && performance.now() < endAt) {
      const next = waiting.shift();
      if (!next) return;
      await runOne(next);
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  return sumUp(results, waiting);
}

/** @param {readonly MochaResult[]} results */
function sumUp(results, missed) {
  const sum = (of) => results.reduce((total, result) => total + of(result), 0);
  return {
    passed: sum((result) => result.passed),
    failed: sum((result) => result.failed) + missed.length,
    skipped: sum((result) => result.skipped),
    ok: missed.length === 0 && results.length > 0 && results.every((result) => result.ok),
    remarks: [
      ...results.flatMap((result) => result.remarks),
      ...missed.map(([, { name }]) => `${name}: did not run, the tests were stopped before`),
    ],
    failures: results.flatMap((result) => result.failures),
    times: {
      files: results.flatMap((result) => result.times.files),
      slowest: results.flatMap((result) => result.times.slowest),
    },
  };
}

function readResult(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return undefined; // not yet
  }
}

function signal(pid, name) {
  try {
    process.kill(pid, name);
  } catch {
    // ended meanwhile
  }
}
