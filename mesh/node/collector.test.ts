import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const FLOOD_BYTES = 2 ** 30;

/** Makes and drops buffers as bulk does, some of them held for a while, in a process of its own. @returns whether V8 began such marking */
function marksStepByStep(isTuned: boolean): boolean {
  const collector = fileURLToPath(new URL("./collector.ts", import.meta.url));
  const program = `
    ${isTuned ? `(await import(${JSON.stringify(collector)})).markHeapAtOnce();` : ""}
    const held = [];
    for (let made = 0; made < ${FLOOD_BYTES}; made += 65536) {
      held.push(new Uint8Array(65536));
      if (held.length > 1000) held.splice(0, 500);
    }`;
  const args = ["--import", "tsx", "--trace-incremental-marking", "--input-type=module", "-e", program];
  return execFileSync(process.execPath, args, { encoding: "utf8" }).includes("[IncrementalMarking] Start");
}

describe("the collector", () => {
  it("never marks step by step under a flood of buffers, as V8 would by itself", () => {
    assert.equal(marksStepByStep(false), true, "this V8 has no need of it any more");
    assert.equal(marksStepByStep(true), false);
  }).timeout(20_000);
});
