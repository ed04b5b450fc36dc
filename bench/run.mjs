// npm run bench -- GROUP: runs bench/GROUP.ts.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const dir = path.dirname(fileURLToPath(import.meta.url));
const groups = readdirSync(dir)
  .filter((name) => name.endsWith(".ts") && name !== "report.ts")
  .map((name) => name.slice(0, -3));
const [group] = process.argv.slice(2);
const script = path.join(dir, `${group}.ts`);
if (!group || !existsSync(script)) {
  console.error(`Usage: npm run bench -- GROUP, with GROUP one of: ${groups.join(", ")}`);
  process.exit(1);
}
process.exitCode = spawnSync(process.execPath, ["--import", "tsx", script], { stdio: "inherit" }).status ?? 1;
