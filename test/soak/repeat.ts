// Runs `npm test`, or some spec files, again and again, and says which tests fail now and then.
//
//   npx tsx test/soak/repeat.ts [options]
//     --runs 10          how many runs the file should hold in the end; what it holds already counts
//     --out FILE         one line of JSON per run is appended here (default: repeat.jsonl in the temporary folder), so
//                        that a series can be broken off and go on another day
//     --spec FILE        these spec files instead of all, without types and lint; may be given several times
//     --load N           N processes that do nothing but use a core each, to bring timing flakes out
//     --list             runs nothing, prints what the file holds
//
// Ends with 0 when every run of the file passed. A series is about one state of the code and one set of options: runs of
// another commit or of other options than the present ones are named and don't count. Files changed meanwhile, not
// committed, go unnoticed.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = path.dirname(path.dirname(path.dirname(fileURLToPath(import.meta.url))));

interface Run {
  at: string;
  commit: string;
  specs: string[];
  load: number;
  wallMs: number;
  passed: number;
  failed: number;
  skipped: number;
  code: number | null;
  /** Of tests that failed: "file: title". */
  failures: string[];
  /** What else went wrong: checks, leftovers, a process that died. */
  remarks: string[];
}

/** As test/run.mjs writes them for TEST_RESULTS. */
interface Results {
  passed: number;
  failed: number;
  skipped: number;
  failedChecks: string[];
  left: string[];
  remarks: string[];
  failures: { file: string; title: string; message: string }[];
}

/** A core's worth of arithmetic, which ends with us. */
function startLoad(count: number): () => void {
  const program =
    "process.once('disconnect', () => process.exit()); setInterval(() => { const end = Date.now() + 45; while (Date.now() < end); }, 50);";
  const hogs = Array.from({ length: count }, () =>
    spawn(process.execPath, ["-e", program], { stdio: ["ignore", "ignore", "inherit", "ipc"] }),
  );
  return () => {
    for (const hog of hogs) hog.kill("SIGKILL");
  };
}

let running: ChildProcess | undefined;

async function runOnce(specs: string[], load: number, commit: string): Promise<Run> {
  const dir = mkdtempSync(path.join(os.tmpdir(), "repeat-"));
  const resultsFile = path.join(dir, "results.json");
  const at = new Date().toISOString();
  const startedAt = performance.now();
  const stopLoad = startLoad(load);
  try {
    let output = "";
    const child = spawn(process.execPath, [path.join(root, "test/run.mjs"), ...specs], {
      cwd: root,
      env: { ...process.env, TEST_RESULTS: resultsFile, ...(specs.length > 0 ? { TEST_CHECKS: "0" } : {}) },
      stdio: ["ignore", "pipe", "inherit"],
    });
    running = child;
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-4_000_000);
    });
    const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
    const wallMs = Math.round(performance.now() - startedAt);
    const results: Results | undefined = existsSync(resultsFile)
      ? (JSON.parse(readFileSync(resultsFile, "utf8")) as Results)
      : undefined;
    for (const { file, title, message } of results?.failures ?? [])
      console.log(`  ${file}: ${title}\n${message}`);
    if (!results) console.log(output.slice(-4_000));
    return {
      ...{ at, commit, specs, load, wallMs, code },
      passed: results?.passed ?? 0,
      failed: results?.failed ?? 1,
      skipped: results?.skipped ?? 0,
      failures: results?.failures.map(({ file, title }) => `${file}: ${title}`) ?? [],
      remarks: results
        ? [...results.remarks, ...results.failedChecks, ...results.left]
        : ["the run wrote no results"],
    };
  } finally {
    stopLoad();
    rmSync(dir, { recursive: true, force: true });
  }
}

function describeRun(run: Run, index: number): string {
  const counts = `${run.passed} passed, ${run.failed} failed, ${run.skipped} skipped`;
  const wrong = [...run.failures, ...run.remarks].map((text) => `\n    ${text}`).join("");
  return `run ${index + 1}, ${run.at}: ${counts} in ${Math.round(run.wallMs / 1_000)} s${wrong}`;
}

function readRuns(file: string): Run[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, "utf8").split("\n");
  return lines.filter((line) => line !== "").map((line) => JSON.parse(line) as Run);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      runs: { type: "string", default: "10" },
      out: { type: "string", default: path.join(os.tmpdir(), "repeat.jsonl") },
      spec: { type: "string", multiple: true, default: [] },
      load: { type: "string", default: "0" },
      list: { type: "boolean", default: false },
    },
  });
  const { out, spec: specs } = values;
  const [wanted, load] = [Number(values.runs), Number(values.load)];
  if (!Number.isInteger(wanted) || wanted < 1 || !Number.isInteger(load) || load < 0)
    throw new Error("--runs and --load take whole numbers");
  const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], {
    cwd: root,
    encoding: "utf8",
  }).trim();
  const isOfSeries = (run: Run): boolean =>
    run.commit === commit && run.load === load && run.specs.join("\0") === specs.join("\0");

  const before = readRuns(out);
  const others = before.filter((run) => !isOfSeries(run)).length;
  if (others > 0) console.log(`${others} runs of another commit or with other options in ${out} don't count`);
  const runs = before.filter(isOfSeries);
  for (const [index, run] of runs.entries()) console.log(describeRun(run, index));

  let isStopped = false;
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.on(signal, () => {
      isStopped = true;
      running?.kill("SIGTERM");
    });
  while (!values.list && !isStopped && runs.length < wanted) {
    const run = await runOnce(specs, load, commit);
    if (isStopped) break;
    appendFileSync(out, `${JSON.stringify(run)}\n`);
    runs.push(run);
    console.log(describeRun(run, runs.length - 1));
  }

  const bad = runs.filter(({ code }) => code !== 0);
  const names = new Map<string, number>();
  for (const name of bad.flatMap((run) => [...run.failures, ...run.remarks]))
    names.set(name, (names.get(name) ?? 0) + 1);
  console.log(`\n${runs.length} runs of ${commit}, ${bad.length} failed; recorded in ${out}`);
  for (const [name, count] of [...names].sort(([, a], [, b]) => b - a)) console.log(`  ${count}x ${name}`);
  return bad.length === 0 && runs.length >= wanted ? 0 : 1;
}

process.exit(await main());
