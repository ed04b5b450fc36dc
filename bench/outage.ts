// npm run bench -- outage: how long nothing moves when a relay connection is cut or the server goes and comes back, in the
// middle of a shell that echoes a counter. The time of a restart counts from the moment the server listens again.
import { SshLab } from "../test/e2e/lab.ts";
import { Counter } from "../test/e2e/outage.ts";
import { hardware, median, percentile } from "./report.ts";

const ROUNDS = 10;
const MORE_LINES = 20;

const lab = await SshLab.start();
const report = (what: string, values: number[]) =>
  console.log(
    `  ${what}, n = ${values.length}: median ${median(values).toFixed(0)} ms, worst ${percentile(values, 1).toFixed(0)} ms`,
  );

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

async function series(what: string, rounds: number, event: () => Promise<unknown> | unknown): Promise<void> {
  const values: number[] = [];
  for (let i = 0; i < rounds; i++) values.push(await stall(event));
  report(what, values);
}

try {
  console.log(`a shell over one relay, loopback; nothing lost, in order\n${hardware()}`);
  await series("no event", ROUNDS, () => undefined);
  await series("relay connections cut", ROUNDS, () => lab.gate.cut("derp"));
  await series("coordinator connections cut", ROUNDS, () => lab.gate.cut("coordinator"));
  await series("relay connections fall silent", 3, () => lab.gate.freeze("derp"));
  await series("server restarted (SIGTERM)", 5, () => lab.restartServer({ signal: "SIGTERM", awayMs: 0 }));
  await series("server killed, back after 1 s", 5, () =>
    lab.restartServer({ signal: "SIGKILL", awayMs: 1_000 }),
  );
  await series("server killed, back after 10 s", 3, () =>
    lab.restartServer({ signal: "SIGKILL", awayMs: 10_000 }),
  );
} finally {
  await lab.close();
}
