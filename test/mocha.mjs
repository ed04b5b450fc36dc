// One mocha run that always ends, and a result that tells the truth about it. A test that calls process.exit(),
// loops for ever, or leaves a handle open must not pass for a run in which everything passed.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
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
 * @param {"inherit" | "ignore"} [options.output] where mocha's own output goes
 * @param {(stop: () => void) => void} [options.onStart] receives what ends the run early; a second call kills it
 * @returns {Promise<{ passed: number, failed: number, skipped: number, ok: boolean, remarks: string[] }>} mocha's
 *   counts; a run that did not end as it should counts as one more failure, and `remarks` says how it ended
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
  return { passed, failed: failed + broken, skipped, ok: code === 0 && failed + broken === 0, remarks };
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
