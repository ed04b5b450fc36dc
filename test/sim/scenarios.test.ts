// What the seeds found, each as a course of events of its own.
import assert from "node:assert/strict";
import { Town, type TownOptions } from "./town.ts";
import { World } from "./world.ts";

const SMALL: TownOptions = {
  agents: 1,
  clients: 1,
  regions: 2,
  strangers: 0,
  maxFlowBytes: 1,
  resumeWindowMs: 300_000,
};

/** A town in which one client has one stream open, on which both sides write a byte now and then. */
async function talking(seed: number) {
  const world = new World(seed);
  const town = new Town(world, SMALL);
  const [[agent], [client]] = [town.agents, town.clients];
  let echoed = 0;
  const listen = () =>
    agent.node.listen("echo", (stream) => {
      stream.on("error", () => undefined);
      stream.on("data", (bytes: Buffer) => stream.write(bytes));
    });
  town.start();
  listen();
  await world.run(2_000);
  const dialing = client.node.dial(agent.agentId, "echo");
  await world.run(4_000);
  const stream = await dialing;
  let error: Error | undefined;
  stream.on("error", (failure) => {
    error = failure;
  });
  stream.on("data", (bytes: Buffer) => {
    echoed += bytes.length;
  });
  let isQuiet = false;
  const say = () => {
    if (stream.destroyed || isQuiet) return;
    stream.write("x");
    world.after(37, say);
  };
  say();
  await world.run(6_000);
  assert.ok(echoed > 10, "it never talked");
  const lane = () => client.node.held.sessions[0]?.stats.lanes[0]?.lane ?? 0;
  const lastWord = () => {
    isQuiet = true;
    stream.write("x");
  };
  return { world, town, agent, client, lane, lastWord, echoed: () => echoed, failed: () => error };
}

describe("courses of events that once went wrong", function () {
  this.timeout(60_000);
  for (const seed of [1, 4, 5])
    it(`an agent whose home moves there and back under traffic keeps its sessions going (seed ${seed})`, async () => {
      const { world, town, lane, echoed } = await talking(seed);
      const { coordination } = town;
      for (let i = 0; i < 4; i++) {
        coordination.noHome.add(1);
        coordination.coordinator.pushRelayMap();
        await world.run(world.now + 150);
        coordination.noHome.clear();
        coordination.noHome.add(2);
        coordination.coordinator.pushRelayMap();
        await world.run(world.now + 150);
        coordination.noHome.clear();
      }
      await world.run(world.now + 5_000);
      const [laneThen, echoedThen] = [lane(), echoed()];
      await world.run(world.now + 10_000);
      assert.ok(lane() - laneThen <= 2, `${lane() - laneThen} paths in 10 s`);
      assert.ok(echoed() - echoedThen > 100, `${echoed() - echoedThen} bytes in 10 s`);
      assert.deepEqual(world.violations, []);
    });

  it("a region whose relay is gone for good is left, by the coordinator's word alone, within seconds", async () => {
    const { world, town, echoed, client, agent } = await talking(8);
    const home = agent.relay.homeRegion as number;
    town.relays.get(home)?.stop();
    await world.run(world.now + 2_000);
    const then = echoed();
    town.coordination.noHome.add(home);
    town.coordination.coordinator.pushRelayMap();
    await world.run(world.now + 5_000);
    assert.notDeepEqual(client.node.sessions()[0].path, { kind: "relay", region: home });
    assert.ok(echoed() - then > 50, `${echoed() - then} bytes`);
    assert.deepEqual(world.violations, []);
  });

  it("a session that was over before its client heard of it is not begun a second time", async () => {
    const { world, town, client, agent } = await talking(9);
    client.node.endSession(client.node.sessions()[0].id);
    await world.run(world.now + 5_000);
    let served = 0;
    agent.node.listen("once", (stream) => {
      served++;
      stream.on("error", () => undefined);
      stream.resume();
    });
    const { onPacket } = client.relay;
    const TRANSPORT = 4;
    client.relay.onPacket = (packet) => packet.data[0] !== TRANSPORT && onPacket?.(packet);
    const dialing = client.node.dial(agent.agentId, "once");
    await world.run(world.now + 2_000);
    const stream = await dialing;
    let failure = "";
    stream.on("error", (error) => {
      failure = String(error);
    });
    stream.write("do this once");
    await world.run(world.now + 2_000);
    assert.equal(served, 1);
    assert.ok(agent.node.endSession(agent.node.sessions()[0].id));
    await world.run(world.now + 12_000, () => agent.node.held.sessions.length === 0);
    assert.deepEqual(agent.node.held.sessions, [], "the agent still knows the session");
    client.relay.onPacket = onPacket;
    await world.run(world.now + 15_000, () => failure !== "");
    assert.equal(served, 1);
    assert.match(failure, /no longer knows this session|ended by its user/);
    assert.deepEqual(town.world.violations, []);
  });

  it("an agent that naps again and again, its connections alive, still knows what time it is", async () => {
    const { world, town, client, agent } = await talking(12);
    const { accepted } = town.coordination.coordinator.stats;
    for (let i = 0; i < 10; i++) {
      agent.machine.sleep();
      await world.run(world.now + 10_000);
      agent.machine.wake();
      await world.run(world.now + 20_000);
    }
    assert.equal(town.coordination.coordinator.stats.accepted, accepted, "it has connected anew");
    assert.equal(agent.machine.clockCountsSleep, false, "choose a seed whose machine's clock stands still");
    const behindMs = town.coordination.process.wallClockMs() - agent.coordinator.nowMs();
    assert.ok(Math.abs(behindMs) < 2_000, `${behindMs} ms behind`);
    client.node.endSession(client.node.sessions()[0].id);
    await world.run(world.now + 5_000);
    const dialing = client.node.connect(agent.agentId);
    await world.run(world.now + 5_000);
    await dialing;
    assert.deepEqual(world.violations, []);
  });

  it("a session whose peer lost keys and memory hears of it with the first new keys, however long it was silent", async () => {
    const { world, town, agent, failed, lastWord } = await talking(7);
    agent.kill();
    lastWord();
    town.startAgent(agent, { keepsKey: true });
    const backAt = world.now;
    await world.run(world.now + 60_000, () => failed() !== undefined);
    assert.match(String(failed()), /no longer knows this session/);
    // 15 s until the old keys are doubted, and a retry.
    assert.ok(world.now - backAt < 25_000, `${world.now - backAt} ms`);
  });
});
