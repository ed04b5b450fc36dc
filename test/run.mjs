// `npm test`: types, lint and format first (fast, and their failures explain later ones), then every test.
// The last line is counted from mocha's own result: "N passed, N failed, N skipped".
import { spawnSync } from "node:child_process";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "../deploy/build.mjs";
import { TestFolder } from "./leftovers.mjs";
import { runMocha } from "./mocha.mjs";

const SPECS = "{mesh,coordinator,derp,agent,client,control,deploy,test}/**/*.test.ts";
const CHECK_LIMIT_MS = 5 * 60_000;
/** Some ten times what the tests take on two cores. */
const TESTS_LIMIT_MS = 20 * 60_000;

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const bin = (name) => path.join(root, "node_modules/.bin", name);

const temporary = new TestFolder();
// Whatever ends this process takes its folder and what was started along; the first signal lets the tests clean up.
let stopTests = () => process.exit(130);
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => stopTests());
process.on("exit", () => temporary.clear());

/** @returns whether it went well */
function check(name, command, args) {
  console.log(`== ${name}`);
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...temporary.environment, XDG_CACHE_HOME: temporary.own },
    stdio: ["ignore", "inherit", "inherit"],
    timeout: CHECK_LIMIT_MS,
    killSignal: "SIGKILL",
  });
  if (error) console.log(`${name}: ${error.message}`);
  else if (signal) console.log(`${name}: ended by ${signal}`);
  return status === 0;
}

async function bundle() {
  try {
    await build();
    return true;
  } catch (error) {
    console.log(`the bundle can't be built, and many tests need it: ${error.message}`);
    return false;
  }
}

async function runTests() {
  const requested = process.argv.slice(2);
  const specs = requested.some((arg) => arg.endsWith(".test.ts")) ? [] : [SPECS];
  console.log("== tests");
  const result = await runMocha([...requested, ...specs], {
    cwd: root,
    env: { ...process.env, ...temporary.environment },
    resultFile: path.join(temporary.own, "result.json"),
    limitMs: TESTS_LIMIT_MS,
    onStart: (stop) => {
      stopTests = stop;
    },
  });
  for (const remark of result.remarks) console.log(`FAILED: ${remark}`);
  return result;
}

const built = await bundle();
const failedChecks = [
  ...(built ? [] : ["bundle"]),
  ...(check("types", bin("tsc"), ["--noEmit"]) ? [] : ["types"]),
  ...(check("lint and format", bin("biome"), ["check", "--error-on-warnings", "."])
    ? []
    : ["lint and format"]),
];
const result = built ? await runTests() : { passed: 0, failed: 0, skipped: 0, ok: false };
const left = temporary.clear();
if (left.length > 0) console.log(`FAILED: the tests left something behind:\n  ${left.join("\n  ")}`);
if (failedChecks.length > 0) console.log(`FAILED before the tests, see above: ${failedChecks.join(", ")}`);
console.log(
  `${result.passed} passed, ${result.failed + (left.length > 0 ? 1 : 0)} failed, ${result.skipped} skipped`,
);
// exit, not exitCode: nothing may keep this process waiting any more.
process.exit(result.ok && failedChecks.length === 0 && left.length === 0 ? 0 : 1);
