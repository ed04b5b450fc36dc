// npm run bench -- outage: how long nothing moves when a relay connection is cut or the server goes and comes back, in the
// middle of a shell that echoes a counter. The time of a restart counts from the moment the server listens again.
import { SshLab } from "../test/e2e/lab.ts";
import { Counter } from "../test/e2e/outage.ts";
import { type Row, report, rounds, row } from "./report.ts";

const ROUNDS = rounds(10, 2);
const FEW_ROUNDS = rounds(5, 1);
const MORE_LINES = 20;

const lab = await SshLab.start();
const rows: Row[] = [];

/** How long after `event` has happened the first line comes back that was sent after it. */
async function stall(event: () => Promise<unknown> | unknown): Promise<number> {
  const counter = new Counter(lab);
  try {
    await counter.reached(MORE_LINES);
    await event();
    const at = performance.now();
    await counter.reached(counter.sent + 1);
    const ms = performance.now() - at;
    await counter.finished();
    if (counter.disorder) throw new Error(counter.disorder);
    return ms;
  } finally {
    counter.kill();
  }
}

async function series(
  id: string,
  what: string,
  count: number,
  event: () => Promise<unknown> | unknown,
): Promise<void> {
  const values: number[] = [];
  for (let i = 0; i < count; i++) values.push(await stall(event));
  rows.push(row({ id, what, unit: "ms", ours: values }));
}

const restart = (signal: "SIGTERM" | "SIGKILL", awayMs: number) => () =>
  lab.restartServer({ signal, awayMs });

try {
  await series("none", "no event", ROUNDS, () => undefined);
  await series("relay-cut", "relay connections cut", ROUNDS, () => lab.gate.cut("derp"));
  await series("coordinator-cut", "coordinator connections cut", ROUNDS, () => lab.gate.cut("coordinator"));
  await series("relay-silent", "relay connections fall silent, without an end", FEW_ROUNDS, () =>
    lab.gate.freeze("derp"),
  );
  await series("restart", "server restarted (SIGTERM)", FEW_ROUNDS, restart("SIGTERM", 0));
  await series("kill-1", "server killed, back after 1 s", FEW_ROUNDS, restart("SIGKILL", 1_000));
  await series("kill-10", "server killed, back after 10 s", FEW_ROUNDS, restart("SIGKILL", 10_000));
  report({
    group: "outage",
    title: "a shell over one relay stands still for how long; nothing lost, in order",
    rows,
  });
} finally {
  await lab.close();
}
