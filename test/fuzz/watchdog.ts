// Names the input that never came back: a parser in an endless loop can't be interrupted from its own thread, and one that
// waits for nothing lets the process end, with code 13.
import { writeSync } from "node:fs";
import { Worker } from "node:worker_threads";

const STUCK_MS = 30_000;
const MAX_NAMED_BYTES = 65_536;

const WATCH = `
const { workerData } = require("node:worker_threads");
const counters = new Int32Array(workerData.shared, 0, 3);
const bytes = new Uint8Array(workerData.shared, 12);
let last = -1;
let since = Date.now();
setInterval(() => {
  const now = Atomics.load(counters, 0);
  if (now !== last) { last = now; since = Date.now(); return; }
  if (Atomics.load(counters, 2) === 0 || Date.now() - since < workerData.stuckMs) return;
  const hex = Buffer.from(bytes.slice(0, Atomics.load(counters, 1))).toString("hex");
  require("node:fs").writeSync(2, "an input never came back (target number " + Atomics.load(counters, 2) + "): " + hex + "\\n");
  process.kill(process.pid, "SIGKILL");
}, 1000);
`;

export interface Watchdog {
  /** A new target begins. */
  target(name: string): void;
  input: (input: Uint8Array) => void;
  stop(): void;
}

export function startWatchdog(): Watchdog {
  const shared = new SharedArrayBuffer(12 + MAX_NAMED_BYTES);
  const counters = new Int32Array(shared, 0, 3);
  const bytes = new Uint8Array(shared, 12);
  const worker = new Worker(WATCH, { eval: true, workerData: { shared, stuckMs: STUCK_MS } });
  worker.unref();
  let isStopped = false;
  process.once("exit", () => {
    if (isStopped || Atomics.load(counters, 0) === 0) return;
    const hex = Buffer.from(bytes.slice(0, Atomics.load(counters, 1))).toString("hex");
    writeSync(2, `an input never came back, with nothing under way: ${hex}\n`);
  });
  return {
    target: () => void Atomics.add(counters, 2, 1),
    input(input) {
      const named = input.length > MAX_NAMED_BYTES ? input.subarray(0, MAX_NAMED_BYTES) : input;
      bytes.set(named);
      Atomics.store(counters, 1, named.length);
      Atomics.add(counters, 0, 1);
    },
    stop() {
      isStopped = true;
      void worker.terminate();
    },
  };
}
