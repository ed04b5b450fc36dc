// Opens and closes sessions on one agent over one relay, 100,000 of them, and looks after each tenth whether anything
// of them is left: in the node, its WireGuard device, the relay, the coordinator, and in the clients' process.
//
//   npx tsx test/soak/sessions.ts [--count 100000] [--parallel 12] [--seed N]
//
// Clients run in a process of their own; those that are killed leave their session for 40 s, as the shortest
// resume window has it. A look comes when all clients of a tenth are gone and the windows of the killed are over.
import { fork } from "node:child_process";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type MeshLab, meshLab } from "../mesh-lab.ts";
import { ForgetfulStore, type LoadResult, leftOver, offer, openAndClose, settled } from "./session-load.ts";
import { judge, look, MIB } from "./watch.ts";

const { values: flags } = parseArgs({
  options: {
    count: { type: "string", default: "100000" },
    parallel: { type: "string", default: "12" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    clients: { type: "string" },
    agent: { type: "string" },
  },
});
const PARTS = 10;
const COUNT = Number(flags.count);
/** The shortest resume window there is, and a sweep. */
const WINDOW_MS = 42_000;
const SETTLE_MS = 90_000;
/** Heap that may be added by each session; an entry of a map takes more. */
const MAX_BYTES_PER_SESSION = 20;

interface Held {
  sessions: number;
  heapBytes: number;
  bufferBytes: number;
  rssBytes: number;
  fds: number;
  resources: Record<string, number>;
}

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

async function held(sessions: number): Promise<Held> {
  // What a collection finds only after finalizers ran.
  for (let i = 0; i < 3; i++) {
    collect();
    await delay(20);
  }
  const { heapUsed, external, rss } = process.memoryUsage();
  const resources: Record<string, number> = {};
  for (const kind of process.getActiveResourcesInfo()) resources[kind] = (resources[kind] ?? 0) + 1;
  const fds = look(process.pid)?.fds ?? 0;
  return { sessions, heapBytes: heapUsed, bufferBytes: external, rssBytes: rss, fds, resources };
}

/** The clients' process: runs a part when told, and says what it holds after. */
async function clients(url: string, agentId: string): Promise<void> {
  let done = 0;
  process.on("disconnect", () => process.exit(1));
  for (let part = 0; part < PARTS; part++) {
    await once(process, "message");
    const result = await openAndClose(url, agentId, {
      sessions: COUNT / PARTS,
      parallel: Number(flags.parallel),
      seed: Number(flags.seed) + part,
    });
    done += result.sessions;
    const now = await held(done);
    process.send?.({ ...result, held: now });
  }
  process.disconnect();
}

async function relayGauges(lab: MeshLab): Promise<Record<string, number>> {
  const metrics = await lab.relay.metrics();
  return Object.fromEntries(
    metrics.flatMap(({ name, type, values }) =>
      type === "gauge" ? [[name, values.reduce((all, { value }) => all + value, 0)]] : [],
    ),
  );
}

function print(name: string, all: readonly Held[]): boolean {
  const half = all.slice(all.length >> 1);
  const [from, to] = [half[0], half[half.length - 1]];
  // Per million, as "hours" of the judge.
  const points = (pick: (one: Held) => number) =>
    all.map((one) => ({ hours: one.sessions / 1_000_000, value: pick(one) }));
  const heap = judge(
    points((one) => one.heapBytes),
    { perHour: MAX_BYTES_PER_SESSION * 1_000_000 },
  );
  const buffers = judge(
    points((one) => one.bufferBytes),
    { perHour: MAX_BYTES_PER_SESSION * 1_000_000 },
  );
  const count = (one: Held): number => Object.values(one.resources).reduce((a, b) => a + b, 0);
  const fds = judge(
    points((one) => one.fds),
    { rise: 2 },
  );
  const handles = judge(points(count), { rise: 2 });
  console.log(`\n${name}, second half: ${from.sessions} to ${to.sessions} sessions`);
  console.table(
    all.map((one) => ({
      sessions: one.sessions,
      "heap, MiB": (one.heapBytes / MIB).toFixed(2),
      "buffers, MiB": (one.bufferBytes / MIB).toFixed(2),
      "resident, MiB": (one.rssBytes / MIB).toFixed(1),
      descriptors: one.fds,
      ...one.resources,
    })),
  );
  const perSession = (it: { secondHalfPerHour: number }): string =>
    (it.secondHalfPerHour / 1_000_000).toFixed(1);
  console.log(
    `heap ${perSession(heap)}, buffers ${perSession(buffers)} bytes a session (at most ${MAX_BYTES_PER_SESSION})`,
  );
  const verdicts = { heap, buffers, descriptors: fds, handles };
  for (const [what, { verdict }] of Object.entries(verdicts)) console.log(`${what}: ${verdict}`);
  return Object.values(verdicts).every(({ verdict }) => verdict === "flat");
}

async function main(): Promise<void> {
  console.log(`seed ${flags.seed}, ${COUNT} sessions, ${flags.parallel} nodes at a time`);
  const lab = await meshLab({ makeStore: () => new ForgetfulStore() });
  const agent = await lab.agent(undefined, { maxResumeWindowMs: WINDOW_MS - 2_000 });
  offer(agent.node);
  const args = ["--count", String(COUNT), "--parallel", flags.parallel, "--seed", flags.seed];
  const child = fork(
    fileURLToPath(import.meta.url),
    [...args, "--clients", lab.url, "--agent", agent.agentId],
    {
      execArgv: process.execArgv,
    },
  );
  const [here, there]: Held[][] = [[], []];
  const startedAt = performance.now();
  let busyMs = 0;
  let [nodes, killed, failed] = [0, 0, 0];
  try {
    for (let part = 0; part < PARTS; part++) {
      const partAt = performance.now();
      child.send("go");
      const [result] = (await Promise.race([
        once(child, "message"),
        once(child, "exit").then(() => Promise.reject(new Error("the clients' process ended"))),
      ])) as [LoadResult & { held: Held }];
      busyMs += performance.now() - partAt;
      nodes += result.nodes;
      killed += result.killed;
      for (const [what, n] of Object.entries(result.failures)) {
        failed += n;
        console.log(`FAILED ${n} times: ${what}`);
      }
      await settled(() => leftOver(agent.node), SETTLE_MS);
      await delay(ForgetfulStore.KEPT_MS);
      there.push(result.held);
      here.push(await held(result.held.sessions));
      const rate = (result.sessions / (performance.now() - partAt)) * 1_000;
      console.log(
        `${result.held.sessions} sessions, ${rate.toFixed(0)} a second with the wait for the killed`,
      );
    }
    if (child.connected) await once(child, "exit");
    console.log(
      `\n${COUNT} sessions of ${nodes} nodes, ${killed} killed, ${failed} failures, in ${((performance.now() - startedAt) / 1_000).toFixed(0)} s; ` +
        `${((COUNT / busyMs) * 1_000).toFixed(0)} a second while clients ran; relay at the end: ${JSON.stringify(await relayGauges(lab))}`,
    );
    const isFlat = [print("Agent, relay and coordinator", here), print("Clients", there)].every(Boolean);
    if (!isFlat || failed > 0) process.exitCode = 1;
  } finally {
    child.kill();
    await lab.close();
  }
}

if (flags.clients && flags.agent) await clients(flags.clients, flags.agent);
else await main();
