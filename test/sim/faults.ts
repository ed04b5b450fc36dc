// What goes wrong in a run, drawn from the seed: each fault begins, lasts, and ends by itself. A fault that may cost a
// flow its life says so to the flows concerned; all others must cost nothing but time.
import { setBlocked } from "./line.ts";
import type { SimNode } from "./node.ts";
import type { Random } from "./random.ts";
import { HONEST, type Mischief } from "./relay.ts";
import { CONTROL, type Town } from "./town.ts";

export interface Fault {
  name: string;
  begin(): void;
  end(): void;
}

type MakeFault = (town: Town, random: Random) => Fault;

/** Ends the flows of a node in either role; `why` says what they may blame. */
function excuse(town: Town, name: string, why: string): void {
  for (const flow of town.flows.values())
    if ((flow.client === name || flow.agent === name) && !flow.isOver) flow.excuseBy(why);
}

const relayOf = (town: Town, random: Random) => random.pick([...town.relays.values()]);
const nodeOf = (town: Town, random: Random): SimNode => random.pick([...town.agents, ...town.clients]);

function blocking(town: Town, random: Random, places: (random: Random) => number[], name: string): Fault {
  const node = nodeOf(town, random);
  const chosen = places(random);
  const set = (isBlocked: boolean) => {
    for (const place of chosen) {
      const line = node.lines.get(place);
      if (line) setBlocked(line, isBlocked);
    }
  };
  return { name: `${name} ${node.name}`, begin: () => set(true), end: () => set(false) };
}

function restartNode(town: Town, node: SimNode, keepsKey: boolean): void {
  const agent = town.agents.find((one) => one === node);
  if (agent) town.startAgent(agent, { keepsKey });
  else node.start({ keepsKey });
}

const none = (): void => undefined;

export const FAULTS: Record<string, MakeFault> = {
  cutRelay: (town, random) => {
    const relay = relayOf(town, random);
    return { name: `cut all of relay ${relay.region}`, begin: () => relay.cutAll(), end: none };
  },
  cutOne: (town, random) => {
    const relay = relayOf(town, random);
    const node = nodeOf(town, random);
    return {
      name: `cut ${node.name} off relay ${relay.region}`,
      begin: () => relay.cut(Buffer.from(node.keyText, "latin1")),
      end: none,
    };
  },
  freezeRelay: (town, random) => {
    const relay = relayOf(town, random);
    return {
      name: `freeze relay ${relay.region}`,
      begin: () => relay.setFrozen(true),
      end: () => relay.setFrozen(false),
    };
  },
  restartRelay: (town, random) => {
    const relay = relayOf(town, random);
    const hint = random.chance(0.5) ? random.int(100, 3_000) : undefined;
    return { name: `stop relay ${relay.region}`, begin: () => relay.stop(hint), end: () => relay.start() };
  },
  refuseNode: (town, random) => {
    const relay = relayOf(town, random);
    const node = nodeOf(town, random);
    let key = "";
    return {
      name: `relay ${relay.region} turns ${node.name} away`,
      begin: () => {
        key = node.keyText;
        relay.unwanted.add(key);
        relay.cut(Buffer.from(key, "latin1"));
      },
      end: () => relay.unwanted.delete(key),
    };
  },
  badRelay: (town, random) => {
    const relay = relayOf(town, random);
    const mischief = drawMischief(random);
    return {
      name: `relay ${relay.region} misbehaves`,
      begin: () => {
        relay.mischief = mischief;
      },
      end: () => {
        relay.mischief = HONEST;
      },
    };
  },
  partitionRelays: (town, random) =>
    blocking(town, random, () => [...town.relays.keys()], "no way to relays for"),
  partitionControl: (town, random) =>
    blocking(town, random, () => [CONTROL], "no way to the coordinator for"),
  partitionAll: (town, random) =>
    blocking(town, random, () => [CONTROL, ...town.relays.keys()], "no network for"),
  slowLine: (town, random) => {
    const node = nodeOf(town, random);
    const place = random.pick([...town.relays.keys()]);
    const before = { ...node.lines.get(place)! };
    const worse = {
      delayMs: random.between(0, 800),
      jitterMs: random.between(0, 400),
      bytesPerMs: random.logInt(20, 2_000),
    };
    return {
      name: `a bad line for ${node.name}`,
      begin: () => void Object.assign(node.lines.get(place)!, worse),
      end: () =>
        void Object.assign(node.lines.get(place)!, {
          delayMs: before.delayMs,
          jitterMs: before.jitterMs,
          bytesPerMs: before.bytesPerMs,
        }),
    };
  },
  stopControl: (town, random) => {
    const isOrderly = random.chance(0.5);
    return {
      name: `the control plane ${isOrderly ? "stops" : "dies"}`,
      begin: () => town.coordination.stop(isOrderly),
      end: () => {
        if (!town.coordination.isUp) town.coordination.start();
      },
    };
  },
  loseStore: (town, random) => {
    const isOrderly = random.chance(0.5);
    return {
      name: "the control plane loses its store",
      begin: () => {
        town.coordination.stop(isOrderly);
        town.hasLostStore = true;
      },
      end: () => {
        if (!town.coordination.isUp) town.coordination.start({ keepsStore: false });
      },
    };
  },
  slowDecisions: (town, random) => {
    const ms = random.int(10, 3_000);
    return {
      name: `decisions take ${ms} ms`,
      begin: () => {
        town.coordination.decideMs = ms;
      },
      end: () => {
        town.coordination.decideMs = 0;
      },
    };
  },
  setClock: (town, random) => {
    const machine = random.chance(0.3) ? town.coordination.machine : nodeOf(town, random).machine;
    const byMs = (random.chance(0.5) ? 1 : -1) * random.logInt(100, 7_200_000);
    // A grant lives for an hour: the coordinator's clock set by more voids them all, as it should.
    const isFar = machine === town.coordination.machine && Math.abs(byMs) > 60_000;
    return {
      name: `the clock of ${machine.name} is set by ${byMs} ms`,
      begin: () => {
        machine.setWallClock(byMs);
        if (isFar) for (const flow of town.flows.values()) flow.excuseBy("the coordinator's clock was set");
        if (isFar) town.isClockFar = true;
      },
      end: none,
    };
  },
  sleep: (town, random) => {
    const { machine, name } = nodeOf(town, random);
    return { name: `${name} sleeps`, begin: () => machine.sleep(), end: () => machine.wake() };
  },
  killNode: (town, random) => {
    const node = nodeOf(town, random);
    const keepsKey = random.chance(0.3);
    return {
      name: `${node.name} dies${keepsKey ? ", keeps its key" : ""}`,
      begin: () => {
        excuse(town, node.name, `${node.name} died`);
        node.kill();
      },
      end: () => restartNode(town, node, keepsKey),
    };
  },
  closeNode: (town, random) => {
    const node = nodeOf(town, random);
    let closing = Promise.resolve();
    return {
      name: `${node.name} shuts down`,
      begin: () => {
        if (!node.isRunning || node.machine.isAsleep) return;
        excuse(town, node.name, `${node.name} shut down`);
        node.lostAt = town.world.now;
        const { process } = node;
        closing = node.node.close().then(
          () =>
            new Promise((resolve) =>
              town.world.after(0, () => {
                if (!process.isDead) town.checkEmpty(node);
                if (!process.isDead) node.kill();
                resolve();
              }),
            ),
        );
      },
      end: () => void closing.then(() => restartNode(town, node, false)),
    };
  },
  endSession: (town, random) => {
    const node = nodeOf(town, random);
    return {
      name: `${node.name} ends a session`,
      begin: () => {
        const [session] = node.isRunning && !node.machine.isAsleep ? node.node.sessions() : [];
        if (!session) return;
        excuse(town, node.name, `${node.name} ended a session`);
        town.endedBy.add(node.name);
        node.node.endSession(session.id);
      },
      end: none,
    };
  },
  revoke: (town, random) => {
    const client = random.pick(town.clients);
    const isForGood = random.chance(0.5);
    return {
      name: `${client.name} is revoked${isForGood ? " and denied" : ""}`,
      begin: () => {
        if (isForGood) town.coordination.denied.add(client.userId);
        town.revoke(client.userId);
      },
      end: () => town.coordination.denied.delete(client.userId),
    };
  },
  moveHome: (town, random) => {
    const region = random.pick([...town.relays.keys()]);
    return {
      name: `region ${region} is no home`,
      begin: () => {
        if (town.relays.size < 2 || town.coordination.noHome.size > 0) return;
        town.coordination.noHome.add(region);
        if (town.coordination.isUp) town.coordination.coordinator.pushRelayMap();
      },
      end: () => {
        if (!town.coordination.noHome.delete(region)) return;
        if (town.coordination.isUp) town.coordination.coordinator.pushRelayMap();
      },
    };
  },
};

export function drawMischief(random: Random): Mischief {
  const draw = (most: number) => (random.chance(0.4) ? random.between(0, most) : 0);
  return {
    loss: draw(0.3),
    burst: draw(0.02),
    burstMs: random.logInt(10, 5_000),
    duplicate: draw(0.3),
    reorder: draw(0.3),
    reorderMs: random.logInt(1, 500),
    replay: draw(0.2),
    alter: draw(0.1),
    forge: draw(0.1),
  };
}
