import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import type { MeshNode, MeshStream, PeerEvent } from "../mesh/node/node.ts";
import type { RelayPacket } from "../mesh/node/relay.ts";
import { type MeshLab, meshLab } from "./mesh-lab.ts";
import type { LabNode } from "./mesh-lab-node.ts";

const echo = (stream: MeshStream): void => {
  stream.on("error", () => undefined);
  stream.pipe(stream);
};

/** Writes one byte and waits for it to come back. @returns how long that took, in ms */
async function roundTrip(stream: MeshStream): Promise<number> {
  const startedAt = performance.now();
  stream.write("x");
  await once(stream, "data");
  return performance.now() - startedAt;
}

/** Resolves when the stream is over, whatever ended it. */
const over = (stream: MeshStream): Promise<void> =>
  new Promise((resolve) => {
    stream.on("error", () => undefined);
    stream.once("close", resolve);
  });

describe("sessions that never drop", () => {
  let lab: MeshLab;
  let agent: LabNode & { agentId: string };
  let client: MeshNode;

  beforeEach(async () => {
    lab = await meshLab();
    agent = await lab.agent();
    agent.node.listen("echo", echo);
    client = await lab.client();
  });
  afterEach(() => lab.close());

  /** The process is gone without a word. */
  async function kill({ relay, coordinator }: LabNode): Promise<void> {
    relay.send = () => false;
    await Promise.all([relay.close(), coordinator.close()]);
  }

  it("a path that goes silent is noticed within 4 s, tested, and replaced", async () => {
    const proxy = await lab.proxy();
    const { node } = await lab.clientParts(proxy.url);
    const stream = await node.dial(agent.agentId, "echo");
    await roundTrip(stream);
    const events: PeerEvent[] = [];
    node.watch(agent.agentId, (event) => events.push(event));
    const frozenAt = performance.now();
    proxy.freeze();
    const tripMs = await roundTrip(stream);
    assert.equal(events[0]?.kind, "stalled");
    assert.ok(events[0].forMs < 3_500, `told after ${events[0].forMs} ms`);
    assert.equal(events[1]?.kind, "resumed");
    // 3 s until it stalls, 3 s for the relay connection's test.
    assert.ok(tripMs < 7_500, `${tripMs} ms`);
    assert.ok(events[1].afterMs <= performance.now() - frozenAt);
    assert.equal(node.sessions()[0].resumedCount, 1);
  });

  it("a session opened as the last one ends is answered, also when the agent reads both in one go", async () => {
    await roundTrip(await client.dial(agent.agentId, "echo"));
    const { relay } = agent;
    const take = relay.onPacket!;
    const held: RelayPacket[] = [];
    const INITIATION = 1; // the first byte of such a message
    const both = new Promise<void>((resolve) => {
      relay.onPacket = (packet) => {
        held.push(packet);
        if (packet.data[0] === INITIATION) resolve();
      };
    });
    client.endSession(client.sessions()[0].id);
    const dialled = client.dial(agent.agentId, "echo");
    await both;
    assert.ok(held.length > 1, "the end of the first came before");
    relay.onPacket = take;
    for (const packet of held) take(packet);
    const stream = await dialled;
    stream.on("error", () => undefined);
    assert.ok((await roundTrip(stream)) < 10_000);
  }).timeout(40_000);

  it("after an outage of the whole server, bytes flow within 2 s of its return", async () => {
    const stream = await client.dial(agent.agentId, "echo");
    await roundTrip(stream);
    await lab.restart(4_000);
    const tripMs = await roundTrip(stream);
    assert.ok(tripMs < 2_000, `${tripMs.toFixed(0)} ms`);
    assert.equal(client.sessions().length, 1);
  });

  for (const late of ["client", "agent"] as const)
    it(`a server that restarts is nothing to a session, also when the ${late} is back second`, async () => {
      const parts = await lab.clientParts();
      const stream = await parts.node.dial(agent.agentId, "echo");
      await roundTrip(stream);
      const { node, relay } = late === "client" ? parts : agent;
      lab.unwanted.add(node.nodeKey);
      const isBack = new Promise<number>((resolve) => {
        const { onState } = relay;
        relay.onState = (state) => {
          onState?.(state);
          if (state.connected && !lab.unwanted.has(node.nodeKey)) resolve(performance.now());
        };
      });
      await lab.restart(50);
      stream.write("x");
      const answered = once(stream, "data").then(() => performance.now());
      setTimeout(() => lab.unwanted.delete(node.nodeKey), 600);
      const stallMs = (await answered) - (await isBack);
      assert.ok(stallMs < 300, `${stallMs.toFixed(0)} ms after both were back`);
    });

  it("an agent that was killed and started again is dialled anew, though nobody said goodbye", async () => {
    const stream = await client.dial(agent.agentId, "echo");
    await roundTrip(stream);
    stream.on("error", () => undefined);
    await kill(agent);
    const restarted = await lab.agent(agent.agentId);
    restarted.node.listen("echo", echo);
    const again = await client.dial(agent.agentId, "echo");
    again.on("error", (error) => assert.fail(String(error)));
    await roundTrip(again);
    assert.equal(stream.destroyed, true);
  });

  it("a dial whose record of the agent is old asks where it is before it trusts a session without a path", async () => {
    const { node, relay, coordinator } = await lab.clientParts();
    const stream = await node.dial(agent.agentId, "echo");
    await roundTrip(stream);
    coordinator.onRecord = undefined; // what the coordinator tells by itself gets lost
    coordinator.onRecordGone = undefined;
    const gone = over(stream);
    const absent = new Promise<void>((resolve) => {
      const { onPeerGone } = relay;
      relay.onPeerGone = (...args) => {
        onPeerGone?.(...args);
        resolve();
      };
    });
    await kill(agent);
    stream.write("x");
    await absent;
    const restarted = await lab.agent(agent.agentId);
    restarted.node.listen("echo", echo);
    await roundTrip(await node.dial(agent.agentId, "echo"));
    await gone;
  });

  it("a session that was ended is followed by a fresh one at once, from either side", async () => {
    for (const ending of [client, agent.node]) {
      const stream = await client.dial(agent.agentId, "echo");
      await roundTrip(stream);
      const ended = over(stream);
      ending.endSession(ending.sessions()[0].id);
      await ended;
      // Initiations closer than 20 ms to each other are ignored; loopback alone is that fast.
      for (const at = performance.now(); performance.now() - at < 25; ) await new Promise(setImmediate);
      const again = await client.dial(agent.agentId, "echo");
      const tripMs = await roundTrip(again);
      again.end();
      await over(again.resume());
      assert.ok(tripMs < 1_000, `${tripMs} ms`);
    }
  });

  it("an agent that left a session's client behind tells it why when its access is revoked, late or at once", async () => {
    const late = await lab.agent(randomUUID());
    late.node.listen("echo", echo);
    const stream = await client.dial(late.agentId, "echo");
    await roundTrip(stream);
    const failed = once(stream, "error");
    await lab.coordinator.revoke(({ agentId }) => agentId === late.agentId);
    assert.match(String((await failed)[0]), /access was revoked/);
    assert.deepEqual(late.node.sessions(), []);
  });
});
