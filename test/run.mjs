// `npm test`: types, lint and format first (fast, and their failures explain later ones), then every test.
// The last line is counted from mocha's own result: "N passed, N failed, N skipped".
import { spawnSync } from "node:child_process";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "../deploy/build.mjs";

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const bin = (name) => path.join(root, "node_modules/.bin", name);

function step(name, command, args) {
  console.log(`== ${name}`);
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (error) console.error(`${name}: ${error.message}`);
  return status ?? 1;
}

await build();
const failedChecks = [
  ["types", bin("tsc"), ["--noEmit"]],
  ["lint and format", bin("biome"), ["check", "--error-on-warnings", "."]],
].filter(([name, command, args]) => step(name, command, args) !== 0).length;

const requested = process.argv.slice(2);
const specs = requested.some((arg) => arg.endsWith(".test.ts"))
  ? []
  : ["{mesh,coordinator,derp,agent,client,control,deploy,test}/**/*.test.ts"];
const mocha = step("tests", bin("mocha"), [
  "--reporter",
  path.join(root, "test/reporter.cjs"),
  ...requested,
  ...specs,
]);
// A failed check fails the run even if every test passed; mocha's line stays the last one.
process.exitCode = mocha !== 0 ? mocha : failedChecks > 0 ? 1 : 0;
if (failedChecks > 0) console.error(`${failedChecks} check(s) before the tests failed, see above`);
