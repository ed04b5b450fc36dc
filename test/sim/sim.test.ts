import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { FAULTS } from "./faults.ts";
import { type Outcome, simulate } from "./simulate.ts";

/** Others than the soak script begins with would be as good; these are always the same. */
const FIRST_SEED = 1_000_000;
const SEEDS = 140;
const PER_TEST = 20;
/** Each takes a second or two of a core; no promise is about that. */
const NEVER_MS = 120_000;
const root = fileURLToPath(new URL("../../", import.meta.url));

function broken({ seed, violations, faults }: Outcome): string[] {
  return violations.map(
    ({ atMs, invariant, detail }) =>
      `seed ${seed}, step at ${atMs.toFixed(3)} ms, "${invariant}": ${detail} (${faults.join(", ")}); ` +
      `replay: npx tsx test/soak/sim.ts --seed ${seed} --log`,
  );
}

describe("whole nodes on a virtual network", function () {
  this.timeout(NEVER_MS);
  const seen = new Set<string>();
  const total = { flows: 0, whole: 0, excused: 0 };

  for (let from = FIRST_SEED; from < FIRST_SEED + SEEDS; from += PER_TEST)
    it(`break no promise, whatever the seeds ${from} to ${from + PER_TEST - 1} do to them`, async () => {
      for (let seed = from; seed < from + PER_TEST; seed++) {
        const outcome = await simulate(seed);
        assert.deepEqual(broken(outcome), []);
        for (const fault of outcome.faults) seen.add(fault);
        total.flows += outcome.flows.all;
        total.whole += outcome.flows.whole;
        total.excused += outcome.flows.excused;
      }
    });

  it("met every fault there is, and most streams were whole at both ends all the same", () => {
    assert.deepEqual(
      Object.keys(FAULTS).filter((fault) => !seen.has(fault)),
      [],
    );
    assert.ok(total.whole > total.flows / 2, JSON.stringify(total));
  });

  it("run the same way again for the same seed, also in another process, and another way for another", async () => {
    const seed = FIRST_SEED + 7;
    const { digest } = await simulate(seed);
    const lines: string[] = [];
    const again = await simulate(seed, { onLine: (line) => lines.push(line) });
    assert.equal(again.digest, digest, "with a log it is the same run");
    assert.ok(lines.length > 10);
    const { stdout } = await promisify(execFile)(
      process.execPath,
      ["--import", "tsx", "test/soak/sim.ts", "--seed", String(seed)],
      { cwd: root },
    );
    assert.ok(stdout.includes(digest), `${digest} here, there: ${stdout}`);
    assert.notEqual((await simulate(seed + 1)).digest, digest);
  });
});
