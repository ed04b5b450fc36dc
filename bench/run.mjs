// npm run bench [-- GROUP...] [--quick] [--save]: runs groups of benchmarks one after the other, each in a process of its
// own, and compares each with its last committed result. --quick takes few rounds; --save replaces bench/results/GROUP.json
// and the tables in bench/README.md. Without a GROUP all of them run.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { register } from "tsx/esm/api";
import { build } from "../deploy/build.mjs";

register();
const { compare, withTables } = await import("./compare.ts");

const GROUPS = [
  "core",
  "relay",
  "ssh",
  "cold",
  "api",
  "builds",
  "coordinator",
  "memory",
  "cli",
  "outage",
  "peers",
];
const dir = path.dirname(fileURLToPath(import.meta.url));
const root = path.dirname(dir);
const results = path.join(dir, "results");
const readme = path.join(dir, "README.md");
const scriptOf = (group) =>
  [path.join(dir, `${group}.ts`), path.join(dir, group, "main.ts")].find((file) => existsSync(file));
const known = GROUPS.filter(scriptOf);

/** @returns {never} */
function usage(problem) {
  console.error(`${problem}\nUsage: npm run bench [-- GROUP... --quick --save], GROUP: ${known.join(", ")}`);
  process.exit(1);
}

function asked() {
  const options = { save: { type: "boolean" }, quick: { type: "boolean" } };
  try {
    return parseArgs({ options, allowPositionals: true });
  } catch (error) {
    return usage(error.message);
  }
}

const { values: flags, positionals } = asked();
const unknown = positionals.filter((name) => !known.includes(name));
if (unknown.length > 0) usage(`There is no group ${unknown.join(", ")}.`);
if (flags.quick && flags.save)
  usage("--quick takes too few rounds for a result to keep: leave out --quick or --save.");

const read = (file) => (existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : undefined);

/** @returns whether the group ran to its end */
function run(group, out) {
  const env = { ...process.env, BENCH_OUT: out, ...(flags.quick ? { BENCH_QUICK: "1" } : {}) };
  const args = ["--import", "tsx", scriptOf(group)];
  const { status, signal } = spawnSync(process.execPath, args, { cwd: root, env, stdio: "inherit" });
  if (signal) process.exit(130);
  const result = read(out);
  if (!result) {
    if (status === 0) console.log(`${group}: nothing measured`);
    else console.error(`${group}: ended with code ${status}, without a result`);
    return status === 0;
  }
  for (const line of compare(result, read(path.join(results, `${group}.json`)))) console.log(`  ${line}`);
  if (flags.save) {
    writeFileSync(path.join(results, `${group}.json`), readFileSync(out));
    const all = GROUPS.flatMap((name) => read(path.join(results, `${name}.json`)) ?? []);
    writeFileSync(readme, withTables(readFileSync(readme, "utf8"), all));
  }
  return status === 0;
}

await build();
const temporary = mkdtempSync(path.join(os.tmpdir(), "bench-"));
try {
  for (const group of positionals.length > 0 ? positionals : known) {
    if (!run(group, path.join(temporary, `${group}.json`))) process.exitCode = 1;
    console.log("");
  }
} finally {
  rmSync(temporary, { recursive: true, force: true });
}
