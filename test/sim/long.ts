// One long run: sessions that are idle or lightly used for weeks, with an outage now and then. What a node holds must
// be as flat at the end as after the first day.
import { FAULTS } from "./faults.ts";
import { checkCredit, checkFlows, checkVoid, look } from "./invariants.ts";
import { Random } from "./random.ts";
import { Town } from "./town.ts";
import { type Violation, World } from "./world.ts";

const HOUR_MS = 3_600_000;
/** Outages that cost time only: what ends sessions is for the short runs. */
const OUTAGES = [
  "cutRelay",
  "cutOne",
  "freezeRelay",
  "restartRelay",
  "partitionAll",
  "partitionControl",
  "stopControl",
  "badRelay",
  "sleep",
];
const OUTAGE_EVERY_MS = 4 * HOUR_MS;
const USED_EVERY_MS = HOUR_MS / 2;

export interface LongOutcome {
  digest: string;
  /** Taken once a virtual day. */
  samples: Sample[];
  violations: Violation[];
}

interface Sample {
  hours: number;
  timers: number;
  sessions: number;
  devicePeers: number;
  indices: number;
  budgetBytes: number;
  heapBytes: number;
}

/** @param onLine told once a virtual day */
export async function longRun(
  seed: number,
  hours: number,
  onLine: (line: string) => void,
): Promise<LongOutcome> {
  const world = new World(seed);
  const random = new Random(seed).fork("long");
  const town = new Town(world, {
    agents: 2,
    clients: 2,
    regions: 2,
    strangers: 0,
    maxFlowBytes: 20_000,
    resumeWindowMs: 24 * HOUR_MS,
  });
  const samples: Sample[] = [];
  town.start();
  const untilMs = hours * HOUR_MS;
  const every = (ms: number, run: () => void) => {
    const next = () => {
      if (world.now > untilMs) return;
      run();
      world.after(ms * random.between(0.5, 1.5), next);
    };
    world.after(ms * random.float(), next);
  };
  every(60_000, () => look(town));
  for (const client of town.clients)
    every(USED_EVERY_MS, () => {
      for (const [id, flow] of town.flows) if (flow.isOver) town.retire(id);
      void town.openFlow(client, random.pick(town.agents), random.fork(`flow ${world.now}`));
    });
  every(OUTAGE_EVERY_MS, () => {
    const fault = FAULTS[random.pick(OUTAGES)](town, random.fork(`fault ${world.now}`));
    town.faultsBegun++;
    fault.begin();
    town.endings.push(fault);
    world.after(random.logInt(100, HOUR_MS), () => town.endFault(fault));
  });
  for (let day = 24; day <= hours + 23; day += 24) {
    await world.run(Math.min(day, hours) * HOUR_MS);
    samples.push(sample(town));
    onLine(`${JSON.stringify(samples.at(-1))} ${world.digest} ${world.violations.length} violations`);
  }
  for (const fault of [...town.endings]) town.endFault(fault);
  town.makeWell();
  await world.run(world.now + 10 * 60_000);
  checkFlows(town);
  checkVoid(town);
  checkCredit(town);
  const first = samples[0];
  const last = sample(town);
  for (const name of ["timers", "sessions", "devicePeers", "indices"] as const)
    if (last[name] > first[name] + 8)
      world.violated(
        "a long run holds no more than a short one",
        `${name}: ${first[name]} became ${last[name]}`,
      );
  onLine(`${JSON.stringify(last)} at the end; ${JSON.stringify(town.counts)}`);
  for (const { atMs, invariant, detail } of world.violations)
    onLine(`at ${atMs.toFixed(0)} ms: ${invariant}: ${detail}`);
  return { digest: world.digest, samples, violations: world.violations };
}

function sample(town: Town): Sample {
  const total: Sample = {
    hours: Math.round(town.world.now / HOUR_MS),
    timers: 0,
    sessions: 0,
    devicePeers: 0,
    indices: 0,
    budgetBytes: 0,
    heapBytes: process.memoryUsage().heapUsed,
  };
  for (const { node, process, isRunning } of town.nodes) {
    if (!isRunning) continue;
    const { sessions, device, budgetBytes } = node.held;
    total.timers += process.armedTimers;
    total.sessions += sessions.length;
    total.devicePeers += device.peers;
    total.indices += device.indices;
    total.budgetBytes += budgetBytes;
  }
  return total;
}
