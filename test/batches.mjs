// The spec files of a full run, cut into batches: mocha runs that go on beside each other, in processes of their own. Most
// of what the tests do is wait, for programs, databases and deadlines, so two at a time are nearly twice as fast.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";

const FOLDERS = ["mesh", "coordinator", "derp", "agent", "client", "control", "deploy", "test"];
/** What a batch should take: much longer than mocha's start and the loading of modules, much shorter than the run. */
const BATCH_MS = 30_000;
/** Of a file that has not been timed yet. */
const UNKNOWN_MS = 2_000;

/** @param {string} root @returns {string[]} all spec files, relative to the root, sorted */
export function listSpecs(root) {
  return FOLDERS.flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".test.ts") && !name.split(path.sep).includes("node_modules"))
      .map((name) => path.join(folder, name)),
  ).sort();
}

/** @param {string} file @returns {Record<string, number>} ms by spec file; empty when there is none */
export function readTimes(file) {
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
}

/**
 * Files of one folder share what they start (a database server) and what they load, and stay together up to the length of
 * a batch. The longest come first, so that no lane is left alone with one at the end.
 *
 * @param {readonly string[]} specs
 * @param {Record<string, number>} times ms by file; they only decide how well the lanes are filled
 * @param {number} [batchMs]
 * @returns {{ name: string, files: string[], expectedMs: number }[]}
 */
export function makeBatches(specs, times, batchMs = BATCH_MS) {
  const timed = specs
    .map((file) => ({ file, folder: file.split(path.sep)[0], ms: times[file] ?? UNKNOWN_MS }))
    .sort((a, b) => b.ms - a.ms);
  const done = [];
  for (const { file, folder, ms } of timed) {
    let batch = done.find((one) => one.folder === folder && one.expectedMs + ms <= batchMs);
    if (!batch) {
      batch = { folder, files: [], expectedMs: 0 };
      done.push(batch);
    }
    batch.files.push(file);
    batch.expectedMs += ms;
  }
  return done
    .sort((a, b) => b.expectedMs - a.expectedMs)
    .map(({ folder, files, expectedMs }) => ({
      name: files.length === 1 ? files[0] : `${folder}, ${files.length} files from ${files[0]}`,
      files: files.sort(),
      expectedMs,
    }));
}
