import assert from "node:assert/strict";
import fc from "fast-check";
import { nodeCrypto } from "../node/crypto.ts";
import { fromUtf8, utf8 } from "../wire/bytes.ts";
import { seededRandom } from "../wire/testing.ts";
import { WireGuardDevice } from "./device.ts";
import { CALM, EPOCH_MS, type Node, SimulatedNetwork, seededBytes } from "./testing.ts";

const seed = 77_001;
const STORM_MS = 400_000; // over two lifetimes of keys

const texts = (node: Node): string[] =>
  node.events.filter((e) => e.kind === "packet").map(({ packet }) => fromUtf8(packet).replace(/\0+$/, ""));

/** Both sides send, initiate, sleep and forget each other at random for STORM_MS; then the weather clears. */
function storm(runSeed: number, loss: number, duplication: number, maxDelayMs: number) {
  const net = new SimulatedNetwork(runSeed);
  const random = seededRandom(runSeed ^ 0x5eed);
  const nodes = [1, 2].map((i) => {
    const randomBytes = seededBytes(runSeed * 2 + i);
    return net.add(
      new WireGuardDevice({
        privateKey: randomBytes(32),
        crypto: nodeCrypto,
        randomBytes,
        acceptUnknown: i === 2,
      }),
    );
  });
  const [client, agent] = nodes;
  client.device.addPeer(agent.device.publicKey);
  agent.device.addPeer(client.device.publicKey);
  net.weather = { loss, duplication, minDelayMs: 1, maxDelayMs };
  const sent = new Map<Node, Set<string>>(nodes.map((node) => [node, new Set()]));
  for (let i = 0; net.now < STORM_MS; i++) {
    const [from, to] = random() < 0.5 ? [client, agent] : [agent, client];
    const dice = random();
    if (dice < 0.03) from.device.initiate(to.device.publicKey, net.now, EPOCH_MS + net.now);
    else if (dice < 0.035) from.device.resumed(net.now, EPOCH_MS + net.now);
    else if (dice < 0.04) {
      from.device.removePeer(to.device.publicKey);
      from.device.addPeer(to.device.publicKey);
    } else if (net.send(from, to, utf8(`packet ${i}`))) sent.get(from)!.add(`packet ${i}`);
    net.run(net.now + random() * 3_000);
    for (const { device } of nodes) {
      const { peers, indices } = device.size;
      assert.ok(peers === 1 && indices <= 4, `${peers} peers, ${indices} indices`);
    }
  }
  return { net, client, agent, sent };
}

describe("WireGuard on a bad network", () => {
  it(`delivers each packet at most once and unchanged, and recovers when it clears (seed ${seed})`, () => {
    let delivered = 0;
    fc.assert(
      fc.property(
        fc.nat(),
        fc.double({ min: 0, max: 0.6, noNaN: true }),
        fc.double({ min: 0, max: 0.5, noNaN: true }),
        fc.integer({ min: 1, max: 3_000 }),
        (runSeed, loss, duplication, maxDelayMs) => {
          const { net, client, agent, sent } = storm(runSeed, loss, duplication, maxDelayMs);
          for (const [from, to] of [
            [client, agent],
            [agent, client],
          ]) {
            const received = texts(to);
            assert.equal(new Set(received).size, received.length, "something came twice");
            for (const text of received) assert.ok(sent.get(from)!.has(text), `${text} was never sent`);
            delivered += received.length;
          }
          net.weather = CALM;
          // Keys that only one side has are doubted after 15 s; a retry may be 5 s away.
          for (const untilAt = net.now + 45_000; net.now < untilAt; net.run(net.now + 1_000)) {
            net.send(client, agent, utf8("are you there?"));
            net.send(agent, client, utf8("are you there?"));
          }
          for (const node of [client, agent]) node.events.length = 0;
          assert.ok(net.send(client, agent, utf8("calm")) && net.send(agent, client, utf8("calm")));
          net.run(net.now + 100);
          assert.deepEqual([texts(client), texts(agent)], [["calm"], ["calm"]]);
        },
      ),
      { seed, numRuns: 25 },
    );
    assert.ok(delivered > 1_000, `${delivered} delivered`);
  });

  it("connects over a path whose round trip is longer than the first retry", () => {
    for (const oneWayMs of [400, 900, 2_000]) {
      const net = new SimulatedNetwork(oneWayMs);
      const [client, agent] = [1, 2].map((i) => {
        const randomBytes = seededBytes(i);
        return net.add(
          new WireGuardDevice({
            privateKey: randomBytes(32),
            crypto: nodeCrypto,
            randomBytes,
            acceptUnknown: true,
          }),
        );
      });
      net.weather = { ...CALM, minDelayMs: oneWayMs, maxDelayMs: oneWayMs };
      net.initiate(client, agent);
      net.run(20_000);
      assert.equal(client.device.hasSession(agent.device.publicKey, net.now), true, `${oneWayMs} ms one way`);
    }
  });
});
