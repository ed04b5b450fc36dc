// npm run bench -- coordinator: thousands of agents connected to one real server that has, with its relay and PostgreSQL, one core
// of this machine; the agents and whoever measures have the other. Agents hold what real ones hold towards the coordinator
// (WebSocket, pings, records, resume tokens), and the server does for each what it always does (presence, sweeps).
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Agents, instant } from "./agents.ts";
import { Farm } from "./farm.ts";
import { look, probed } from "./probe.ts";
import { percentile, quick, type Row, report, rounds, row } from "./report.ts";

const AGENTS = Number(process.env["BENCH_AGENTS"] ?? rounds(5_000, 1_000));
/** Four rounds of pings, and one of each sweep. */
const WATCH_MS = quick ? 20_000 : 65_000;
const SAMPLE_MS = 5_000;
/** What the server closes and opens meanwhile is over. */
const SETTLE_MS = 5_000;
const JOIN_LIMIT_MS = 180_000;
/** As many as one user may make for long. */
const REQUESTS_PER_SECOND = 8;
const SERVER_CORE = 0;
const OTHER_CORE = 1;
const PRESENT_MS = 40_000;

/** This process and what it starts from now on. @returns whether it worked */
const pin = (core: number): boolean =>
  spawnSync("taskset", ["-acp", String(core), String(process.pid)], { stdio: "ignore" }).status === 0;

/** Requests at an even pace, whether or not the last one is answered. @returns ms of each */
async function requests(farm: Farm, ms: number): Promise<number[]> {
  const times: Promise<number>[] = [];
  const headers = { "coder-session-token": farm.owner.token };
  const endAt = performance.now() + ms;
  for (let at = performance.now(); at < endAt; at += 1000 / REQUESTS_PER_SECOND) {
    await delay(Math.max(0, at - performance.now()));
    const startedAt = performance.now();
    times.push(
      fetch(`${farm.server.url}/api/v2/users/me`, { headers }).then(async (answer) => {
        await answer.arrayBuffer();
        if (answer.status !== 200) throw new Error(`users/me: ${answer.status}`);
        return performance.now() - startedAt;
      }),
    );
  }
  return Promise.all(times);
}

const rows: Row[] = [];
const pinned = pin(SERVER_CORE);
if (!pinned) console.log("taskset can't pin processes here: server and agents share all cores");

async function watch(farm: Farm, agents: Agents, before: readonly number[], probe: string): Promise<void> {
  await look(probe, farm.pid); // forgets the delays so far
  const use = {
    all: [] as number[],
    server: [] as number[],
    postgres: [] as number[],
    relay: [] as number[],
  };
  const asking = requests(farm, WATCH_MS);
  let [cpu, at] = [farm.cpu(), performance.now()];
  while (use.all.length < WATCH_MS / SAMPLE_MS) {
    await delay(SAMPLE_MS);
    const [now, nowAt] = [farm.cpu(), performance.now()];
    const share = (of: keyof typeof cpu) => ((now[of] - cpu[of]) / (nowAt - at)) * 1e3;
    for (const of of ["server", "postgres", "relay"] as const) use[of].push(share(of));
    use.all.push(share("server") + share("postgres") + share("relay"));
    [cpu, at] = [now, nowAt];
  }
  const during = await asking;
  const { loop } = await look(probe, farm.pid);
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const status = await agents.status();
  const { rows: present } = await farm.knex.raw<{ rows: { count: string }[] }>(
    "select count(*) from workspace_agents where last_connected_at > ? and coalesce(disconnected_at < last_connected_at, true)",
    [new Date(Date.now() - PRESENT_MS)],
  );
  const live = Math.min(status.connected, Number(present[0].count));
  const cores = (id: string, what: string, ours: number) =>
    row({
      id,
      what: `${what}, mean over ${WATCH_MS / 1000} s`,
      unit: "cores",
      ours: [ours],
      ...(id === "cpu" && { goal: { text: "<= 0.7 of its core", holds: (all) => all.median <= 0.7 } }),
    });
  rows.push(
    row({
      id: "live",
      what: "agents live on the server's core at the end",
      unit: "agents",
      better: "higher",
      ours: [live],
      goal: { text: `all ${AGENTS}, none lost meanwhile`, holds: () => live === AGENTS && status.lost === 0 },
    }),
    cores("cpu", "CPU of server, relay and PostgreSQL", mean(use.all)),
    cores("cpu-server", "CPU of the server alone", mean(use.server)),
    cores("cpu-postgres", "CPU of PostgreSQL alone", mean(use.postgres)),
    row({
      id: "cpu-worst",
      what: `the same of all, ${SAMPLE_MS / 1000} s at a time`,
      unit: "cores",
      ours: use.all,
    }),
    row({ id: "loop-p99", what: "the server's event loop is late, p99", unit: "ms", ours: [loop.p99] }),
    row({ id: "loop-max", what: "the server's event loop is late, worst", unit: "ms", ours: [loop.max] }),
    row({
      id: "api",
      what: `GET users/me meanwhile, ${REQUESTS_PER_SECOND} a second`,
      unit: "ms",
      ours: during,
      control: { name: "no agents", values: before },
      goal: {
        text: "p99 <= 2 x control + 5 ms",
        holds: (ours) => ours.p99 <= 2 * percentile(before, 0.99) + 5,
      },
    }),
  );
}

const farm = await Farm.start({ copies: AGENTS });
// The probe's folder lies in the farm's, so the server is started once more, with it.
const probe = path.join(farm.sandbox.dir, "probe");
mkdirSync(probe, { mode: 0o700 });
farm.serverEnv = probed(probe);
await farm.restart("SIGTERM");
const prefix = pinned ? ["taskset", "-c", String(OTHER_CORE)] : [];
if (pinned) pin(OTHER_CORE);
let agents: Agents | undefined;
try {
  await requests(farm, 1_000);
  const before = await requests(farm, quick ? 5_000 : 15_000);
  const cpuBefore = farm.cpu();
  const startedAt = instant();
  agents = Agents.start(farm.server.url, farm.agents, path.join(farm.sandbox.dir, "agents.json"), prefix);
  const joinMs = await agents.allConnected(startedAt, JOIN_LIMIT_MS);
  const cpu = farm.cpu();
  const joinCpuMs = ((cpu.server + cpu.postgres - cpuBefore.server - cpuBefore.postgres) * 1000) / AGENTS;
  await delay(SETTLE_MS);
  rows.push(
    row({
      id: "join",
      what: `${AGENTS} agents join that were never here, until all are connected`,
      unit: "s",
      ours: [joinMs / 1000],
    }),
    row({
      id: "join-cpu",
      what: "CPU of server and PostgreSQL for one that joins",
      unit: "ms",
      ours: [joinCpuMs],
    }),
  );
  const { lost } = await agents.status();
  if (lost > 0) console.log(`${lost} connections were lost while they joined`);
  await watch(farm, agents, before, probe);

  if (pinned) pin(SERVER_CORE);
  await farm.restart("SIGKILL");
  const backAt = instant();
  if (pinned) pin(OTHER_CORE);
  const stormMs = await agents.allConnected(backAt, JOIN_LIMIT_MS);
  rows.push(
    row({
      id: "storm",
      what: `the server is killed and started: from serving until all ${AGENTS} are back`,
      unit: "s",
      ours: [stormMs / 1000],
    }),
  );
  report({
    group: "coordinator",
    title: "agents of one server, which has one core with its PostgreSQL",
    rows,
  });
} finally {
  await agents?.stop();
  await farm.close();
}
