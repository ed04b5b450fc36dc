// The simulator at length: `tsx test/soak/sim.ts [--seeds N] [--from S] [--workers W]` runs N seeds from S on, a worker
// a core, and prints those that break an invariant with the command that replays one. `--seed S --log` is that replay.
// `--hours H [--seed S]` is one long run instead. Exit code 1 when anything broke.
import { fork } from "node:child_process";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { longRun } from "../sim/long.ts";
import { type Outcome, simulate } from "../sim/simulate.ts";

const PROGRESS_EVERY = 1_000;
/** First argument of a worker. */
const SHARE = "share";

interface Share {
  from: number;
  step: number;
  until: number;
}

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    seeds: { type: "string", default: "10000" },
    from: { type: "string", default: "1" },
    workers: { type: "string", default: String(availableParallelism()) },
    seed: { type: "string" },
    log: { type: "boolean", default: false },
    hours: { type: "string" },
  },
});

function describe({ seed, violations, faults, digest }: Outcome): string {
  return [
    `seed ${seed} (${faults.join(", ") || "no faults"}; ${digest})`,
    ...violations.map(({ atMs, invariant, detail }) => `  at ${atMs.toFixed(0)} ms: ${invariant}: ${detail}`),
    `  replay: npx tsx test/soak/sim.ts --seed ${seed} --log`,
  ].join("\n");
}

async function replay(seed: number): Promise<void> {
  const outcome = await simulate(seed, values.log ? { onLine: (line) => console.log(line) } : {});
  console.log(describe(outcome));
  process.exitCode = outcome.violations.length > 0 ? 1 : 0;
}

async function manySeeds(): Promise<void> {
  const from = Number(values.from);
  const until = from + Number(values.seeds);
  const workers = Number(values.workers);
  const startedAt = performance.now();
  const total = { runs: 0, failed: 0, virtualMs: 0, steps: 0, flows: 0, whole: 0 };
  const faults = new Map<string, number>();
  const take = (outcome: Outcome) => {
    total.runs++;
    total.virtualMs += outcome.virtualMs;
    total.steps += outcome.steps;
    total.flows += outcome.flows.all;
    total.whole += outcome.flows.whole;
    for (const fault of outcome.faults) faults.set(fault, (faults.get(fault) ?? 0) + 1);
    if (outcome.violations.length > 0) {
      total.failed++;
      console.log(describe(outcome));
    }
    if (total.runs % PROGRESS_EVERY === 0) console.log(`${total.runs} seeds, ${total.failed} failed`);
  };
  await Promise.all(
    Array.from({ length: workers }, (_, i) => {
      const own: Share = { from: from + i, step: workers, until };
      const worker = fork(fileURLToPath(import.meta.url), [SHARE, JSON.stringify(own)]);
      return new Promise<void>((resolve, reject) => {
        worker.on("message", (outcome) => take(outcome as Outcome));
        worker.on("error", reject);
        worker.on("exit", () => resolve());
      });
    }),
  );
  const seconds = (performance.now() - startedAt) / 1_000;
  console.log(
    `seeds ${from}..${until - 1}: ${total.runs} runs, ${total.failed} failed; ${(total.virtualMs / 3.6e6).toFixed(1)} virtual hours, ` +
      `${total.steps} steps, ${total.flows} flows (${total.whole} whole), in ${seconds.toFixed(0)} s`,
  );
  console.log([...faults].map(([name, count]) => `${name} ${count}`).join(", "));
  process.exitCode = total.failed > 0 || total.runs < until - from ? 1 : 0;
}

async function runShare({ from, step, until }: Share): Promise<void> {
  for (let seed = from; seed < until; seed += step) {
    const outcome = await simulate(seed);
    await new Promise((resolve) => process.send?.(outcome, resolve));
  }
  process.disconnect();
}

if (process.argv[2] === SHARE) await runShare(JSON.parse(process.argv[3]) as Share);
else if (values.hours !== undefined) {
  const outcome = await longRun(Number(values.seed ?? 1), Number(values.hours), (line) => console.log(line));
  process.exitCode = outcome.violations.length > 0 ? 1 : 0;
} else if (values.seed !== undefined) await replay(Number(values.seed));
else await manySeeds();
