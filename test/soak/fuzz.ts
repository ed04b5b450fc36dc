// Fuzzes every parser a stranger can reach, a million changed inputs each, and prints a table.
//
//   npx tsx test/soak/fuzz.ts [--target NAME[,NAME...]] [--inputs 1000000] [--seed 1] [--seconds MAX_PER_TARGET]
//   npx tsx test/soak/fuzz.ts --list
//   npx tsx test/soak/fuzz.ts --target NAME --replay HEX[,HEX...]
//
// Exit code 1 when anything was found. An input that never returns is printed by a watchdog, which ends the process.
import { parseArgs } from "node:util";
import { fuzz, type Report, replay, reproduction } from "../fuzz/engine.ts";
import { targets } from "../fuzz/index.ts";
import { startWatchdog } from "../fuzz/watchdog.ts";

const { values } = parseArgs({
  options: {
    target: { type: "string" },
    inputs: { type: "string", default: "1000000" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    seconds: { type: "string", default: "3600" },
    replay: { type: "string" },
    list: { type: "boolean" },
    outcomes: { type: "boolean" },
  },
});

function wanted() {
  if (values.target === undefined) return [...targets];
  return values.target.split(",").map((name) => {
    const target = targets.find((one) => one.name === name);
    if (!target) throw new Error(`no target ${name}; --list names them all`);
    return target;
  });
}

async function main(): Promise<void> {
  if (values.list) return console.log(targets.map(({ name }) => name).join("\n"));
  if (values.replay !== undefined) {
    const inputs = values.replay
      .split(",")
      .map((hex) => Uint8Array.from(Buffer.from(hex === "-" ? "" : hex, "hex")));
    const error = await replay(wanted()[0], inputs);
    console.log(error ?? "nothing was wrong");
    process.exitCode = error === undefined ? 0 : 1;
    return;
  }
  const watchdog = startWatchdog();
  console.log(`seed ${values.seed}`);
  console.log(row("target", "inputs", "seconds", "cpu s", "inputs/cpu s", "outcomes", "failures"));
  for (const target of wanted()) {
    watchdog.target(target.name);
    const report = await fuzz(target, {
      seed: Number(values.seed),
      inputs: Number(values.inputs),
      maxSeconds: Number(values.seconds),
      onInput: watchdog.input,
    });
    print(report);
  }
  watchdog.stop();
}

function print({ target, inputs, seconds, cpuSeconds, outcomes, failures }: Report): void {
  const rate = Math.round(inputs / cpuSeconds);
  const cells = [inputs, seconds.toFixed(1), cpuSeconds.toFixed(1), rate, outcomes.size, failures.length];
  console.log(row(target, ...cells));
  if (values.outcomes)
    for (const [word, count] of [...outcomes].sort((a, b) => b[1] - a[1]).slice(0, 30))
      console.log(`  ${count} ${word}`);
  for (const failure of failures) {
    process.exitCode = 1;
    console.log(`\n${failure.message}\n  ${reproduction(failure)}\n`);
  }
}

function row(name: string, ...cells: (string | number)[]): string {
  return name.padEnd(28) + cells.map((cell) => String(cell).padStart(13)).join("");
}

await main();
