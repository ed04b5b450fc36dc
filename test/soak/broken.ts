// Breaks the code in one place after the other, and demands that a test notices. The checkout stays as it is: the tree is
// copied to a temporary folder, and changed there.
//
//   npx tsx test/soak/broken.ts [words ...]     only those whose name or file holds one of the words
//
// Prints a table; ends with 1 when a fault was not noticed, when the tests fail without any, or when an entry of
// mutations.ts no longer fits the code.
import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { type MochaResult, runMocha } from "../mocha.mjs";
import { changed, type Mutation, mutations } from "./mutations.ts";

const RUN_LIMIT_MS = 180_000;
/** For all the specs without a fault, one after the other. */
const WHOLE_LIMIT_MS = 1_200_000;
const MAX_TITLE_CHARS = 100;

const root = path.dirname(path.dirname(path.dirname(fileURLToPath(import.meta.url))));

class Copy {
  readonly dir = mkdtempSync(path.join(os.tmpdir(), "broken-"));
  readonly tree = path.join(this.dir, "tree");
  /** For what the tests put into the temporary folder; a fault may keep them from cleaning up. */
  readonly #tmp = path.join(this.dir, "tmp");

  /** Tracked files and new ones, as they are now. */
  constructor() {
    const list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    const names = execFileSync("git", list, { cwd: root, encoding: "utf8" }).split("\0");
    for (const name of names.filter((text) => text !== "")) {
      const target = path.join(this.tree, name);
      mkdirSync(path.dirname(target), { recursive: true });
      try {
        copyFileSync(path.join(root, name), target);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error; // deleted, not yet committed
      }
    }
    for (const name of ["node_modules", "dist"])
      symlinkSync(path.join(root, name), path.join(this.tree, name));
  }

  /** @throws when a change's text is not there, or there more than once @returns undoes it */
  change({ changes }: Mutation): () => void {
    const before = new Map<string, string>();
    for (const change of changes) {
      const file = path.join(this.tree, change.file);
      const text = readFileSync(file, "utf8");
      if (!before.has(file)) before.set(file, text);
      writeFileSync(file, changed(text, change));
    }
    return () => {
      for (const [file, text] of before) writeFileSync(file, text);
    };
  }

  async test(specs: readonly string[], limitMs: number, bail: boolean): Promise<MochaResult> {
    mkdirSync(this.#tmp, { recursive: true });
    try {
      return await runMocha([...(bail ? ["--bail"] : []), ...specs], {
        cwd: this.tree,
        env: { ...process.env, TMPDIR: this.#tmp, TSX_DISABLE_CACHE: "1" },
        resultFile: path.join(this.dir, "result.json"),
        limitMs,
        abortGraceMs: 5_000,
        output: "ignore",
      });
    } finally {
      rmSync(this.#tmp, { recursive: true, force: true, maxRetries: 3 });
      rmSync(path.join(this.dir, "result.json"), { force: true });
    }
  }

  remove(): void {
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Which test noticed; undefined: none did. A run that did not get as far as a test has noticed nothing. */
function noticedBy({ failures, remarks }: MochaResult): string | undefined {
  if (failures[0]) return `${failures[0].file}: ${failures[0].title}`;
  const endless = remarks.find((remark) => remark.includes("were stopped, in:"));
  return endless?.replace(/^.*, in: /, "never ends: ");
}

async function main(): Promise<number> {
  const words = process.argv.slice(2);
  const chosen = mutations.filter(
    ({ name, changes }) =>
      words.length === 0 ||
      words.some((word) => name.includes(word) || changes.some(({ file }) => file.includes(word))),
  );
  const copy = new Copy();
  process.once("exit", () => copy.remove());
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130));

  // Before an hour is spent on it: does every entry fit?
  for (const mutation of chosen) copy.change(mutation)();

  const specs = [...new Set(chosen.flatMap((mutation) => mutation.specs))].sort();
  const whole = await copy.test(specs, WHOLE_LIMIT_MS, false);
  for (const { file, title, message } of whole.failures) console.log(`${file}: ${title}\n${message}\n`);
  console.log(`unbroken: ${whole.passed} passed, ${whole.failed} failed, ${whole.skipped} skipped`);
  if (!whole.ok) {
    console.log(
      [...whole.remarks, "the tests fail without a fault: nothing to be learnt from them"].join("\n"),
    );
    return 1;
  }

  let unnoticed = 0;
  console.log("\n| fault | noticed by |\n|---|---|");
  for (const mutation of chosen) {
    const undo = copy.change(mutation);
    const result = await copy.test(mutation.specs, RUN_LIMIT_MS, true);
    undo();
    const by = noticedBy(result);
    if (by === undefined) unnoticed++;
    const shown = by === undefined ? `NOBODY ${result.remarks.join("; ")}` : by;
    console.log(`| ${mutation.name} | ${shown.replaceAll("|", "\\|").slice(0, MAX_TITLE_CHARS + 60)} |`);
  }
  console.log(`\n${chosen.length} faults, ${chosen.length - unnoticed} noticed, ${unnoticed} not`);
  return unnoticed === 0 ? 0 : 1;
}

process.exit(await main());
