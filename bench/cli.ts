// npm run bench -- cli: how long the `coder` command takes to answer what needs no server, beside a Node that does nothing.
import { spawnSync } from "node:child_process";
import { bundle } from "../test/e2e/sandbox.ts";
import { report, rounds, row } from "./report.ts";

const ROUNDS = rounds(40, 5);
const COMMANDS = {
  version: ["version"],
  help: ["--help"],
  "ssh-help": ["ssh", "--help"],
};
const NODE = "node -e 0";

/** @returns ms from the start to the end of the process */
function timed(args: readonly string[]): number {
  const startedAt = performance.now();
  const { status, stderr } = spawnSync(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  const ms = performance.now() - startedAt;
  if (status !== 0) throw new Error(`${args.join(" ")} ended with ${status}: ${stderr}`);
  return ms;
}

const bare: number[] = [];
const times = new Map(Object.keys(COMMANDS).map((id) => [id, [] as number[]]));
for (let round = -1; round < ROUNDS; round++) {
  const nothing = timed(["-e", "0"]);
  if (round >= 0) bare.push(nothing);
  for (const [id, args] of Object.entries(COMMANDS)) {
    const ms = timed([bundle, ...args]);
    if (round >= 0) times.get(id)?.push(ms);
  }
}
report({
  group: "cli",
  title: "commands that need no server",
  rows: Object.entries(COMMANDS).map(([id, args]) =>
    row({
      id,
      what: `coder ${args.join(" ")}`,
      unit: "ms",
      ours: times.get(id) ?? [],
      control: { name: NODE, values: bare },
      ...(id === "version" && {
        goal: { text: "<= 1.8 x control", holds: (_ours, _control, ratio = Infinity) => ratio <= 1.8 },
      }),
    }),
  ),
});
