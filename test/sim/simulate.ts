// One run: a town drawn from the seed, a time in which things go wrong, a time in which they are well again, and the
// end. Its digest is a function of the seed alone.
import { drawMischief, FAULTS } from "./faults.ts";
import { checkCredit, checkFlows, checkVoid, look } from "./invariants.ts";
import { Random } from "./random.ts";
import { Town, type TownOptions } from "./town.ts";
import { settled, type Violation, World } from "./world.ts";

const LOOK_MS = 1_000;
/** Once all is well, a flow that is not over gets on within this. */
const PROGRESS_WITHIN_MS = 60_000;
/** However slow its line and its readers are, it is over by then. */
const OVER_WITHIN_MS = 3_600_000;

export interface Outcome {
  seed: number;
  digest: string;
  virtualMs: number;
  steps: number;
  flows: { all: number; whole: number; excused: number; dialsFailed: number };
  faults: string[];
  counts: Record<string, number>;
  violations: Violation[];
}

export interface SimulateOptions {
  onLine?: (line: string) => void;
  /** Only faults of these kinds. */
  faults?: readonly string[];
}

export async function simulate(seed: number, options: SimulateOptions = {}): Promise<Outcome> {
  const world = new World(seed);
  world.onLine = options.onLine;
  const random = new Random(seed).fork("plan");
  const onRejection = (error: unknown) =>
    world.violated("no rejection is unhandled", String((error as Error)?.stack ?? error));
  process.on("unhandledRejection", onRejection);
  try {
    return await run(world, random, options);
  } finally {
    await settled();
    process.off("unhandledRejection", onRejection);
  }
}

async function run(world: World, random: Random, options: SimulateOptions): Promise<Outcome> {
  const town = new Town(world, drawTown(random));
  const troubledMs = random.logInt(3_000, 90_000);
  const names = drawFaults(town, random, troubledMs, options.faults ?? Object.keys(FAULTS));
  drawWork(town, random, troubledMs);
  if (random.chance(0.3)) for (const relay of town.relays.values()) relay.mischief = drawMischief(random);
  const looking = repeat(world, LOOK_MS, () => look(town));
  town.start();
  await world.run(troubledMs);
  heal(town);
  await world.run(world.now + 60_000);
  await finish(town);
  for (const client of town.clients)
    for (const agent of town.agents)
      void town.openFlow(client, agent, random.fork(`after ${client.name} ${agent.name}`));
  await finish(town);
  checkFlows(town);
  checkVoid(town);
  // The last acknowledgements and window updates.
  await world.run(world.now + 15_000);
  checkCredit(town);
  await end(town);
  looking();
  const flows = [...town.flows.values()];
  return {
    seed: world.seed,
    digest: world.digest,
    virtualMs: world.now,
    steps: world.steps,
    flows: {
      all: flows.length,
      whole: flows.filter(({ isWhole }) => isWhole).length,
      excused: flows.filter(({ excuse }) => excuse).length,
      dialsFailed: flows.filter(({ dialFailed }) => dialFailed).length,
    },
    faults: names,
    counts: { ...town.counts },
    violations: world.violations,
  };
}

function drawTown(random: Random): TownOptions {
  return {
    agents: random.int(1, 2),
    clients: random.int(1, 3),
    regions: random.int(1, 2),
    strangers: random.chance(0.3) ? 1 : 0,
    maxFlowBytes: random.chance(0.03) ? 4_000_000 : random.chance(0.3) ? 300_000 : 20_000,
    resumeWindowMs: random.chance(0.5) ? 300_000 : 3_600_000,
  };
}

function drawFaults(town: Town, random: Random, untilMs: number, kinds: readonly string[]): string[] {
  const { world } = town;
  const names: string[] = [];
  const count = random.chance(0.1) ? 0 : random.int(1, 7);
  for (let i = 0; i < count; i++) {
    const own = random.fork(`fault ${i}`);
    const kind = own.pick(kinds);
    const fault = FAULTS[kind](town, own);
    const at = own.between(0, untilMs);
    const lastsMs = own.logInt(50, 60_000);
    names.push(kind);
    world.at(at, () => {
      world.log(`fault ${fault.name} for ${lastsMs} ms`);
      town.faultsBegun++;
      fault.begin();
    });
    town.endings.push(fault);
    world.at(Math.min(at + lastsMs, untilMs), () => town.endFault(fault));
  }
  return names;
}

function drawWork(town: Town, random: Random, untilMs: number): void {
  const { world } = town;
  for (const client of town.clients) {
    const own = random.fork(`work of ${client.name}`);
    for (let i = own.int(1, 8); i > 0; i--) {
      const agent = own.pick(town.agents);
      const flow = own.fork(`flow ${i}`);
      world.at(own.between(0, untilMs), () =>
        client.machine.whenAwake(() => void town.openFlow(client, agent, flow)),
      );
    }
    for (let i = own.int(0, 3); i > 0; i--) {
      const agent = own.pick(town.agents);
      world.at(own.between(0, untilMs), () => client.machine.whenAwake(() => void town.ping(client, agent)));
    }
  }
  for (const stranger of town.strangers)
    for (let i = random.int(1, 3); i > 0; i--) {
      const agent = random.pick(town.agents);
      const own = random.fork(`trespass ${i}`);
      world.at(random.between(0, untilMs), () =>
        stranger.machine.whenAwake(() => void town.trespass(stranger, agent, own)),
      );
    }
}

/** Runs until all flows are over, or none gets on any more. */
async function finish(town: Town): Promise<void> {
  const { world } = town;
  const flows = () => [...town.flows.values()];
  const isOver = () => flows().every((flow) => flow.isOver);
  const progress = () =>
    flows().reduce((sum, { half }) => sum + half.client.received + half.agent.received, 0);
  const until = world.now + OVER_WITHIN_MS;
  for (let before = -1; !isOver() && world.now < until && progress() > before; ) {
    before = progress();
    await world.run(world.now + PROGRESS_WITHIN_MS, isOver);
  }
}

function heal(town: Town): void {
  town.world.log("all is well again");
  for (const fault of [...town.endings]) town.endFault(fault);
  town.makeWell();
}

/** Everybody leaves in order; nothing may be left of them. */
async function end(town: Town): Promise<void> {
  const { world } = town;
  world.log("the end");
  const nodes = town.nodes.filter(({ isRunning }) => isRunning);
  let left = nodes.length;
  for (const node of nodes)
    node.node.close().then(() =>
      // Whoever still waited for something hears of it in the same turn, but later.
      world.after(0, () => {
        left--;
        town.checkEmpty(node);
      }),
    );
  await world.run(world.now + 30_000, () => left === 0);
  if (left > 0) world.violated("close() ends", `${left} nodes did not`);
  for (const node of nodes) node.kill();
}

/** @returns what ends it */
function repeat(world: World, everyMs: number, run: () => void): () => void {
  let cancel: () => void = () => undefined;
  const next = () => {
    run();
    cancel = world.after(everyMs, next);
  };
  cancel = world.after(everyMs, next);
  return () => cancel();
}
