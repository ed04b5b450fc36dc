import assert from "node:assert/strict";
import fc from "fast-check";
import { nodeCrypto } from "../node/crypto.ts";
import { concatBytes, fromUtf8, toHex, utf8 } from "../wire/bytes.ts";
import { MAX_PLAINTEXT_BYTES } from "../wire/wireguard.ts";
import { MacWriter } from "./cookie.ts";
import { type WireGuardCrypto, WireGuardError } from "./crypto.ts";
import {
  type DeviceOptions,
  type DeviceOutput,
  DOUBT_AFTER_MS,
  GIVE_UP_AFTER_MS,
  MAX_JITTER_MS,
  UNADMITTED_MS,
  WireGuardDevice,
} from "./device.ts";
import { KEEPALIVE_AFTER_MS, REJECT_AFTER_MS, REKEY_AFTER_MS, REKEY_ON_RECEIVE_MS } from "./keypair.ts";
import { CALM, EPOCH_MS, type Node, SimulatedNetwork, seededBytes } from "./testing.ts";

const seed = 1_337;
const HERE = { key: "here" };

let nextSeed = seed;
function device(options: Partial<DeviceOptions> = {}): WireGuardDevice {
  const randomBytes = seededBytes(nextSeed++);
  return new WireGuardDevice({ privateKey: randomBytes(32), crypto: nodeCrypto, randomBytes, ...options });
}

type Kind = DeviceOutput["kind"];
const messagesOf = (outputs: DeviceOutput[]) =>
  outputs.filter((output) => output.kind === "send").map(({ message }) => message);
const kinds = (outputs: DeviceOutput[]): Kind[] => outputs.map(({ kind }) => kind);
const packets = (node: Node): string[] =>
  node.events
    .filter((event) => event.kind === "packet")
    .map(({ packet }) => fromUtf8(packet).replace(/\0+$/, ""));
const establishedAt = (node: Node): number[] =>
  node.events.filter((event) => event.kind === "established").map(({ at }) => at);

function setup(options: { client?: Partial<DeviceOptions>; agent?: Partial<DeviceOptions> } = {}) {
  nextSeed = seed;
  const net = new SimulatedNetwork(seed);
  const client = net.add(device(options.client));
  const agent = net.add(device({ acceptUnknown: true, ...options.agent }));
  return { net, client, agent };
}

/** A client and an agent that has admitted it, at 1 s, with `client` as the initiator. */
function connected() {
  const all = setup();
  all.net.initiate(all.client, all.agent);
  all.net.run(1_000);
  all.agent.device.admit(all.client.device.publicKey);
  for (const node of [all.client, all.agent]) node.events.length = 0;
  return all;
}

describe("WireGuard device: handshake", () => {
  it("takes one round trip, then data goes each way, zero-padded to 16 bytes", () => {
    const { net, client, agent } = setup();
    assert.equal(net.send(client, agent, utf8("too early")), false);
    net.initiate(client, agent);
    net.run(40);
    assert.deepEqual(kinds(client.events), ["established"]);
    assert.equal(agent.events.length, 0);
    assert.equal(agent.device.hasSession(client.device.publicKey, net.now), false);
    net.run(60);
    assert.deepEqual(kinds(agent.events), ["established"]);
    assert.equal(agent.device.hasSession(client.device.publicKey, net.now), true);

    assert.equal(net.send(client, agent, utf8("from the client, longer than 16")), true);
    assert.equal(net.send(agent, client, utf8("from the agent")), true);
    net.run(100);
    assert.deepEqual(packets(agent), ["from the client, longer than 16"]);
    assert.deepEqual(packets(client), ["from the agent"]);
    const event = agent.events.at(-1)!;
    assert.ok(event.kind === "packet" && event.packet.length === 32 && event.from === client.source);
    assert.equal(toHex(event.peer), toHex(client.device.publicKey));
  });

  it("seals in pieces what seals whole: the peer opens them joined, counters and deadlines go on", () => {
    const { net, client, agent } = connected();
    const { publicKey } = agent.device;
    const { sent } = client.device.counters;
    for (const size of [1, 16, 8_191, MAX_PLAINTEXT_BYTES]) {
      const plaintext = new Uint8Array(size).fill(size);
      const pieces = client.device.sealPieces(publicKey, plaintext, net.now)!;
      const whole = client.device.seal(publicKey, plaintext, net.now)!;
      assert.equal(concatBytes(...pieces).length, whole.length);
      for (const message of [concatBytes(...pieces), whole]) {
        agent.device.receive(message, HERE, net.now, EPOCH_MS);
        const [output] = agent.device.takeOutputs();
        assert.ok(output.kind === "packet");
        assert.equal(toHex(output.packet.subarray(0, size)), toHex(plaintext));
        assert.ok(output.packet.slice(size).every((byte) => byte === 0));
      }
    }
    assert.equal(client.device.counters.sent, sent + 8);
    assert.equal(agent.device.counters.replayedPackets, 0);
    const tooLarge = new Uint8Array(MAX_PLAINTEXT_BYTES + 1);
    assert.throws(() => client.device.sealPieces(publicKey, tooLarge, net.now), WireGuardError);
    assert.equal(client.device.sealPieces(new Uint8Array(32).fill(9), tooLarge, net.now), undefined);
  });

  it("needs no keepalive when data follows at once", () => {
    const { client, agent } = setup();
    client.device.initiate(agent.device.publicKey, 0, EPOCH_MS);
    const [first] = messagesOf(client.device.takeOutputs());
    agent.device.receive(first, HERE, 0, EPOCH_MS);
    client.device.receive(messagesOf(agent.device.takeOutputs())[0], HERE, 0, EPOCH_MS);
    assert.equal(client.device.nextTimeout(), 0);
    const data = client.device.seal(agent.device.publicKey, utf8("hello"), 0)!;
    client.device.handleTimeout(0, EPOCH_MS);
    assert.deepEqual(kinds(client.device.takeOutputs()), ["established"]);
    agent.device.receive(data, HERE, 0, EPOCH_MS);
    assert.deepEqual(kinds(agent.device.takeOutputs()), ["established", "packet"]);
  });

  it("answers to where the initiation came from", () => {
    const { client, agent } = setup();
    client.device.initiate(agent.device.publicKey, 0, EPOCH_MS);
    const [output] = client.device.takeOutputs();
    assert.ok(output.kind === "send" && output.replyTo === undefined);
    agent.device.receive(output.message, HERE, 0, EPOCH_MS);
    const [answer] = agent.device.takeOutputs();
    assert.ok(answer.kind === "send" && answer.replyTo === HERE);
  });

  it("is retried after 1, 2, 4 and then every 5 s, and given up after 90 s", () => {
    const { net, client, agent } = setup();
    net.weather = { ...net.weather, loss: 1 };
    client.device.initiate(agent.device.publicKey, 0, EPOCH_MS);
    const sentAt: number[] = [];
    for (let now = 0; now <= GIVE_UP_AFTER_MS + 1_000; now = client.device.nextTimeout() ?? 1e9) {
      client.device.handleTimeout(now, EPOCH_MS + now);
      const outputs = client.device.takeOutputs();
      for (const _ of messagesOf(outputs)) sentAt.push(now);
      if (outputs.some(({ kind }) => kind === "handshake-failed")) assert.equal(now, GIVE_UP_AFTER_MS);
    }
    const gaps = sentAt.slice(1).map((at, i) => at - sentAt[i]);
    gaps.forEach((gap, i) => {
      const expected = [1_000, 2_000, 4_000][i] ?? 5_000;
      assert.ok(gap >= expected && gap < expected + MAX_JITTER_MS, `retry ${i} after ${gap} ms`);
    });
    assert.ok(sentAt.length >= 17, `${sentAt.length} tries`);
    assert.equal(client.device.nextTimeout(), undefined);
    assert.equal(client.device.size.indices, 0);
    // The next packet to send starts over.
    assert.equal(client.device.seal(agent.device.publicKey, utf8("x"), 200_000), undefined);
    client.device.handleTimeout(client.device.nextTimeout()!, EPOCH_MS);
    assert.deepEqual(kinds(client.device.takeOutputs()), ["send"]);
  });

  it("does not start a second one while one is under way", () => {
    const { client, agent } = setup();
    for (const now of [0, 10, 500]) client.device.initiate(agent.device.publicKey, now, EPOCH_MS + now);
    assert.equal(client.device.takeOutputs().length, 1);
  });

  it("completes on both sides when both initiate at once", () => {
    const { net, client, agent } = setup();
    client.device.initiate(agent.device.publicKey, 0, EPOCH_MS);
    agent.device.initiate(client.device.publicKey, 0, EPOCH_MS);
    net.run(200);
    for (const [from, to] of [
      [client, agent],
      [agent, client],
    ]) {
      assert.equal(net.send(from, to, utf8("hello")), true);
      net.run(net.now + 50);
      assert.deepEqual(packets(to), ["hello"]);
    }
    const { delivered } = net;
    net.run(9_000);
    assert.equal(net.delivered, delivered, "nothing is left to retry");
  });

  it("a responder stops trying itself once the initiator's keys work", () => {
    const { net, client, agent } = setup();
    agent.device.initiate(client.device.publicKey, 0, EPOCH_MS);
    agent.device.takeOutputs(); // lost
    net.initiate(client, agent);
    net.run(20_000);
    assert.deepEqual(kinds(agent.events), ["established"]);
    assert.deepEqual(kinds(client.events), ["established"]);
  });

  it("refuses an initiation it has seen, and any that is older than the latest", () => {
    const { client, agent } = setup();
    const initiations = [0, 2_000, 4_000].map((now) => {
      client.device.removePeer(agent.device.publicKey);
      client.device.initiate(agent.device.publicKey, now, EPOCH_MS + now);
      return messagesOf(client.device.takeOutputs())[0];
    });
    const take = (message: Uint8Array, now: number) => {
      agent.device.receive(message, HERE, now, EPOCH_MS + now);
      return kinds(agent.device.takeOutputs());
    };
    assert.deepEqual(take(initiations[1], 5_000), ["send"]);
    assert.deepEqual(take(initiations[1], 6_000), []);
    assert.deepEqual(take(initiations[0], 7_000), []);
    assert.equal(agent.device.counters.replayedHandshakes, 2);
    assert.deepEqual(take(initiations[2], 8_000), ["send"]);
  });

  it("still works after the initiator's wall clock went back", () => {
    const { net, client, agent } = connected();
    client.device.initiate(agent.device.publicKey, net.now, EPOCH_MS - 86_400_000);
    net.run(net.now + 100);
    assert.deepEqual(kinds(client.events), ["established"]);
  });

  it("needs the same preshared key on both sides", () => {
    for (const agentsKey of [7, 8]) {
      const { net, client, agent } = setup();
      const presharedKey = new Uint8Array(32).fill(7);
      client.device.addPeer(agent.device.publicKey, { presharedKey });
      agent.device.addPeer(client.device.publicKey, { presharedKey: new Uint8Array(32).fill(agentsKey) });
      net.initiate(client, agent);
      net.run(500);
      assert.equal(client.device.hasSession(agent.device.publicKey, net.now), agentsKey === 7);
    }
  });

  it("is refused for an unknown node unless unknown nodes are accepted", () => {
    const { net, client, agent } = setup({ agent: { acceptUnknown: false } });
    net.initiate(client, agent);
    net.run(500);
    assert.deepEqual(agent.device.size, { peers: 0, unadmitted: 0, indices: 0 });
    assert.equal(agent.device.counters.refusedHandshakes, 1);
    agent.device.addPeer(client.device.publicKey);
    net.run(2_000);
    assert.deepEqual(kinds(client.events), ["established"]);
  });
});

describe("WireGuard device: keys and time", () => {
  it("the initiator makes new keys when it sends after 120 s, and no packet is lost over it", () => {
    const { net, client, agent } = connected();
    for (let i = 0; net.now < 150_000; i++) {
      assert.equal(net.send(client, agent, utf8(`c${i}`)), true);
      assert.equal(net.send(agent, client, utf8(`a${i}`)), true);
      net.run(net.now + 500);
    }
    const [at, ...more] = establishedAt(client);
    assert.ok(at >= REKEY_AFTER_MS && at < REKEY_AFTER_MS + 1_000, `${at}`);
    assert.deepEqual(more, []);
    assert.deepEqual(
      packets(agent),
      Array.from(packets(agent), (_, i) => `c${i}`),
    );
    assert.deepEqual(
      packets(client),
      Array.from(packets(agent), (_, i) => `a${i}`),
    );
    assert.equal(client.device.counters.unknownIndex + agent.device.counters.unknownIndex, 0);
  });

  it("the responder leaves that to the initiator", () => {
    const { net, client, agent } = connected();
    while (net.now < 175_000) {
      assert.equal(net.send(agent, client, utf8("x")), true);
      net.run(net.now + 500);
    }
    const initiators = agent.events.filter((e) => e.kind === "established").map(({ initiator }) => initiator);
    assert.deepEqual(initiators, [false]);
  });

  it("the initiator makes new keys when it receives after 165 s", () => {
    const { net, client, agent } = connected();
    net.run(REKEY_ON_RECEIVE_MS - 1_000);
    net.send(agent, client, utf8("x"));
    net.run(net.now + 100);
    assert.deepEqual(establishedAt(client), []);
    net.run(REKEY_ON_RECEIVE_MS + 100);
    net.send(agent, client, utf8("x"));
    net.run(net.now + 100);
    assert.deepEqual(establishedAt(client), [REKEY_ON_RECEIVE_MS + 160]);
  });

  it("keys older than 180 s neither send nor receive, and are dropped", () => {
    const { net, client, agent } = connected();
    const late = client.device.seal(agent.device.publicKey, utf8("late"), net.now)!;
    const rejectAt = REJECT_AFTER_MS + 40; // the client has had them since 40 ms
    assert.equal(client.device.hasSession(agent.device.publicKey, rejectAt - 1), true);
    assert.equal(client.device.hasSession(agent.device.publicKey, rejectAt), false);
    assert.equal(client.device.seal(agent.device.publicKey, utf8("x"), rejectAt), undefined);
    agent.device.receive(late, HERE, rejectAt, EPOCH_MS);
    assert.equal(agent.device.counters.expiredPackets, 1);
    agent.device.handleTimeout(rejectAt, EPOCH_MS);
    assert.equal(agent.device.size.indices, 0);
  });

  it("says that it lives 10 s after it received something and had nothing to send", () => {
    const { net, client, agent } = connected();
    const { keepalivesReceived } = client.device.counters;
    net.send(client, agent, utf8("hello"));
    net.run(net.now + 20 + KEEPALIVE_AFTER_MS + 19);
    assert.equal(client.device.counters.keepalivesReceived, keepalivesReceived);
    net.run(net.now + 1);
    assert.equal(client.device.counters.keepalivesReceived, keepalivesReceived + 1);
    const { delivered } = net;
    net.run(net.now + 60_000);
    assert.equal(net.delivered, delivered, "a keepalive is not answered");
  });

  it("doubts its keys when what it sent has no answer for 15 s", () => {
    const { net, client, agent } = connected();
    agent.device.removePeer(client.device.publicKey); // it restarted, say
    net.send(client, agent, utf8("hello?"));
    net.run(net.now + DOUBT_AFTER_MS + MAX_JITTER_MS + 100);
    assert.deepEqual(kinds(client.events), ["established"]);
    net.send(client, agent, utf8("hello!"));
    net.run(net.now + 50);
    assert.deepEqual(packets(agent), ["hello!"]);
  });

  it("forgets all keys after sleep and makes new ones at once", () => {
    const { net, client, agent } = connected();
    client.device.resumed(net.now, EPOCH_MS + net.now);
    assert.equal(client.device.hasSession(agent.device.publicKey, net.now), false);
    net.run(net.now + 40);
    assert.equal(client.device.hasSession(agent.device.publicKey, net.now), true);
  });

  it("asks for no wake-up when there is nothing to do", () => {
    const { net, client, agent } = connected();
    net.run(400_000);
    assert.equal(client.device.nextTimeout(), undefined);
    assert.equal(agent.device.nextTimeout(), undefined);
    assert.equal(client.device.size.indices, 0);
  });
});

describe("WireGuard device: what others send", () => {
  it("delivers a packet once, however often it comes", () => {
    const { net, client, agent } = connected();
    const message = client.device.seal(agent.device.publicKey, utf8("once"), net.now)!;
    for (let i = 0; i < 3; i++) agent.device.receive(Uint8Array.from(message), HERE, net.now, EPOCH_MS);
    assert.deepEqual(kinds(agent.device.takeOutputs()), ["packet"]);
    assert.equal(agent.device.counters.replayedPackets, 2);
  });

  it("a changed or cut message has no effect, and the true one still counts", () => {
    const { net, client, agent } = connected();
    client.device.initiate(agent.device.publicKey, net.now, EPOCH_MS + net.now);
    const [initiation] = messagesOf(client.device.takeOutputs());
    const damage = (to: WireGuardDevice, message: Uint8Array, spare: (offset: number) => boolean) => {
      const sizeBefore = to.size;
      for (let i = 0; i < message.length; i++) {
        if (spare(i)) continue;
        const changed = Uint8Array.from(message);
        changed[i] ^= 1 << (i % 8);
        to.receive(changed, HERE, net.now, EPOCH_MS + net.now);
        to.receive(message.slice(0, i), HERE, net.now, EPOCH_MS + net.now);
      }
      to.receive(Uint8Array.of(...message, 0), HERE, net.now, EPOCH_MS + net.now);
      assert.deepEqual(to.takeOutputs(), []);
      assert.deepEqual(to.size, sizeBefore);
    };
    // mac2 is not looked at without load; everything else is covered by mac1.
    const isMac2 = (message: Uint8Array) => (offset: number) => offset >= message.length - 16;
    damage(agent.device, initiation, isMac2(initiation));
    agent.device.receive(initiation, HERE, net.now, EPOCH_MS + net.now);
    const [response] = messagesOf(agent.device.takeOutputs());
    damage(client.device, response, isMac2(response));
    client.device.receive(response, HERE, net.now, EPOCH_MS + net.now);
    assert.deepEqual(kinds(client.device.takeOutputs()), ["established"]);
    const data = client.device.seal(agent.device.publicKey, utf8("hello"), net.now)!;
    damage(agent.device, data, () => false);
    agent.device.receive(data, HERE, net.now, EPOCH_MS + net.now);
    assert.deepEqual(kinds(agent.device.takeOutputs()), ["established", "packet"]);
  });

  it("another spelling of a public key is no second peer", () => {
    const other = (key: Uint8Array) => Uint8Array.from(key, (byte, i) => (i === 31 ? byte | 0x80 : byte));
    const keyPair: WireGuardCrypto["keyPair"] = (privateKey) => {
      const { publicKey, shared } = nodeCrypto.keyPair(privateKey);
      return { publicKey: other(publicKey), shared };
    };
    const { net, client, agent } = setup({ client: { crypto: { ...nodeCrypto, keyPair } } });
    net.initiate(client, agent);
    net.run(1_000);
    assert.ok(agent.device.counters.forgedHandshakes > 0);
    assert.deepEqual([agent.device.size.peers, agent.events], [0, []]);
    assert.throws(() => agent.device.initiate(client.device.publicKey, net.now, EPOCH_MS), WireGuardError);
  });

  it("arbitrary bytes do nothing", () => {
    const { net, agent } = connected();
    const typed = fc
      .tuple(fc.constantFrom(1, 2, 3, 4), fc.constantFrom(148, 92, 64, 32, 48, 1_000), fc.uint8Array())
      .map(([type, length, bytes]) => {
        const message = new Uint8Array(length);
        message.set(bytes.subarray(0, length));
        message.set([type, 0, 0, 0]);
        return message;
      });
    fc.assert(
      fc.property(fc.oneof(typed, fc.uint8Array({ maxLength: 200 })), (message) => {
        const { size } = agent.device;
        agent.device.receive(message, HERE, net.now, EPOCH_MS);
        assert.deepEqual(agent.device.takeOutputs(), []);
        assert.deepEqual(agent.device.size, size);
      }),
      { seed, numRuns: 500 },
    );
  });

  describe("strangers", () => {
    const knock = (agent: Node, source: string, now: number): WireGuardDevice => {
      const stranger = device();
      stranger.initiate(agent.device.publicKey, now, EPOCH_MS);
      const [initiation] = messagesOf(stranger.takeOutputs());
      agent.device.receive(initiation, { key: source }, now, EPOCH_MS);
      return stranger;
    };
    const crowded = () => setup({ agent: { maxHandshakesPerSecond: 10_000 } });

    it("are kept for ten seconds, 256 at most, 32 of one source; then the oldest go", () => {
      const { agent } = crowded();
      const [admitted, first] = Array.from({ length: 33 }, () => knock(agent, "one", 0));
      assert.equal(agent.device.size.peers, 32);
      assert.equal(agent.device.hasPeer(admitted.publicKey), false);
      agent.device.admit(first.publicKey);
      for (let i = 0; i < 300; i++) knock(agent, `other-${i}`, 1);
      assert.deepEqual(agent.device.size, { peers: 257, unadmitted: 256, indices: 257 });
      assert.equal(agent.device.counters.evictedHandshakes, 1 + 31 + 300 - 256);
      assert.equal(agent.device.counters.refusedHandshakes, 0);
      agent.device.handleTimeout(UNADMITTED_MS, EPOCH_MS);
      agent.device.handleTimeout(UNADMITTED_MS + 1, EPOCH_MS);
      assert.deepEqual(agent.device.size, { peers: 1, unadmitted: 0, indices: 1 });
      assert.equal(agent.device.hasPeer(first.publicKey), true);
    });

    it("who fill every place keep nobody out, nor does a crowd of one source push out others", () => {
      const { net, client, agent } = crowded();
      for (let i = 0; i < 256; i++) knock(agent, `other-${i}`, 0);
      net.initiate(client, agent);
      net.run(30);
      for (let i = 0; i < 200; i++) knock(agent, "one", net.now);
      net.run(60);
      assert.deepEqual(kinds(client.events), ["established"]);
      assert.deepEqual(kinds(agent.events), ["established"]);
      agent.device.admit(client.device.publicKey);
      for (let i = 0; i < 300; i++) knock(agent, `more-${i}`, net.now);
      assert.equal(net.send(agent, client, utf8("still here")), true);
    });

    it("whose message does not authenticate push nobody out", () => {
      const { net, client, agent } = setup({
        agent: { maxHandshakesPerSecond: 10_000, maxUnadmittedHandshakes: 8 },
      });
      net.initiate(client, agent);
      net.run(60);
      const stranger = device();
      for (let i = 0; i < 20; i++) {
        stranger.removePeer(agent.device.publicKey);
        stranger.initiate(agent.device.publicKey, 1_000 * i, EPOCH_MS);
        const [initiation] = messagesOf(stranger.takeOutputs());
        initiation[100] ^= 1; // within the sealed timestamp; mac1 is made anew
        const macs = new MacWriter(nodeCrypto, agent.device.publicKey);
        macs.write(initiation, 0);
        agent.device.receive(initiation, { key: `other-${i}` }, net.now, EPOCH_MS);
      }
      assert.equal(agent.device.counters.forgedHandshakes, 20);
      assert.equal(agent.device.hasPeer(client.device.publicKey), true);
    });
  });

  it("asks for cookies under load, and lets in who brings one", () => {
    const { net, client, agent } = setup({ agent: { maxHandshakesPerSecond: 10 } });
    const flood = device();
    const floodAt = (now: number) => {
      for (let i = 0; i < 20; i++) {
        flood.removePeer(agent.device.publicKey);
        flood.initiate(agent.device.publicKey, now, EPOCH_MS);
        // A forger writes any source it likes, but never sees the answer.
        const [initiation] = messagesOf(flood.takeOutputs());
        agent.device.receive(initiation, { key: `forged-${i}` }, now, EPOCH_MS);
      }
      return kinds(agent.device.takeOutputs());
    };
    const outputs = floodAt(0);
    assert.equal(outputs.filter((kind) => kind === "cookie-reply").length, 10);
    net.initiate(client, agent);
    net.run(990);
    assert.deepEqual(client.events, []);
    floodAt(net.now);
    net.run(1_500);
    assert.deepEqual(kinds(client.events), ["established"]);
    assert.equal(agent.device.counters.cookieRepliesSent > 10, true);
  });

  it("takes no cookie that answers another message", () => {
    const { client, agent } = setup({ agent: { maxHandshakesPerSecond: 0 } });
    const ask = (now: number): Uint8Array => {
      client.device.removePeer(agent.device.publicKey);
      client.device.initiate(agent.device.publicKey, now, EPOCH_MS);
      agent.device.receive(messagesOf(client.device.takeOutputs())[0], HERE, now, EPOCH_MS);
      const [reply] = agent.device.takeOutputs();
      assert.equal(reply.kind, "cookie-reply");
      return (reply as Extract<DeviceOutput, { kind: "cookie-reply" }>).message;
    };
    const old = ask(0);
    const latest = ask(1);
    const mixed = Uint8Array.from(old);
    mixed.set(latest.subarray(4, 8), 4); // addressed to the new one
    client.device.receive(mixed, HERE, 2, EPOCH_MS);
    assert.equal(client.device.counters.forgedHandshakes, 1);
    client.device.receive(latest, HERE, 2, EPOCH_MS);
    assert.equal(client.device.counters.forgedHandshakes, 1);
  });
});

describe("WireGuard device: outages", () => {
  for (const [what, ms] of [
    ["three minutes", REJECT_AFTER_MS + 1],
    ["half an hour", 30 * 60_000],
    ["a day", 24 * 3_600_000],
  ] as const)
    for (const first of ["client", "agent"] as const)
      it(`after ${what} of silence, whoever has something to say is heard within two round trips (${first})`, () => {
        const all = connected();
        const { net } = all;
        const [from, to] = first === "client" ? [all.client, all.agent] : [all.agent, all.client];
        net.run(net.now + ms);
        const startedAt = net.now;
        if (!net.send(from, to, utf8("x"))) {
          net.run(startedAt + 50);
          assert.equal(net.send(from, to, utf8("x")), true);
        }
        net.run(startedAt + 80);
        assert.deepEqual(packets(to), ["x"]);
      });

  it("while nothing arrives, it is tried for 90 s, and again as soon as somebody wants it", () => {
    const { net, client, agent } = connected();
    net.weather = { ...CALM, loss: 1 };
    net.run(net.now + REJECT_AFTER_MS);
    assert.equal(net.send(client, agent, utf8("x")), false);
    net.run(net.now + GIVE_UP_AFTER_MS + MAX_JITTER_MS);
    assert.deepEqual(kinds(client.events), ["handshake-failed"]);
    assert.equal(client.device.isTrying(agent.device.publicKey), false);
    net.weather = CALM;
    assert.equal(net.send(client, agent, utf8("x")), false);
    net.run(net.now + 50);
    assert.equal(net.send(client, agent, utf8("x")), true);
  });

  it("a new path gets a handshake at once, and what a cookie proved is still worth something", () => {
    const { net, client, agent } = setup({ agent: { maxHandshakesPerSecond: 0 } });
    net.initiate(client, agent);
    net.run(50);
    assert.equal(agent.device.counters.cookieRepliesSent, 1);
    client.device.initiateAnew(agent.device.publicKey, net.now, EPOCH_MS + net.now);
    net.run(100);
    assert.deepEqual(kinds(client.events), ["established"]);
    assert.equal(agent.device.counters.cookieRepliesSent, 1);
  });
});

describe("WireGuard device: what its caller does wrong", () => {
  const code = (expected: string) => (error: unknown) =>
    error instanceof WireGuardError && error.code === expected;

  it("has a code each", () => {
    const { net, client, agent } = connected();
    const { device: it } = client;
    assert.throws(() => device({ privateKey: new Uint8Array(31) }), code("ERR_BAD_KEY"));
    assert.throws(() => it.addPeer(new Uint8Array(33)), code("ERR_BAD_KEY"));
    assert.throws(() => it.addPeer(new Uint8Array(32)), code("ERR_BAD_KEY"));
    assert.throws(() => it.initiate(it.publicKey, 0, 0), code("ERR_BAD_KEY"));
    const badKey = { presharedKey: new Uint8Array(5) };
    assert.throws(() => it.addPeer(agent.device.publicKey, badKey), code("ERR_BAD_KEY"));
    const large = new Uint8Array(MAX_PLAINTEXT_BYTES + 1);
    assert.throws(() => it.seal(agent.device.publicKey, large, net.now), code("ERR_PACKET_TOO_LARGE"));
    assert.equal(it.seal(agent.device.publicKey, large.subarray(1), net.now)!.length, 65_536);
    const full = device({ maxPeers: 1 });
    full.addPeer(agent.device.publicKey);
    assert.throws(() => full.addPeer(it.publicKey), code("ERR_TOO_MANY_PEERS"));
  });

  it("a node that was removed is forgotten whole", () => {
    const { net, client, agent } = connected();
    client.device.initiate(agent.device.publicKey, net.now, EPOCH_MS);
    client.device.removePeer(agent.device.publicKey);
    assert.deepEqual(client.device.size, { peers: 0, unadmitted: 0, indices: 0 });
    assert.equal(client.device.seal(agent.device.publicKey, utf8("x"), net.now), undefined);
    client.device.removePeer(agent.device.publicKey);
  });

  it("a node that is dismissed keeps the handshake it has begun anew, as a stranger, and nothing else", () => {
    const { net, client, agent } = connected();
    agent.device.admit(client.device.publicKey);
    client.device.removePeer(agent.device.publicKey);
    const now = net.now + 1_000;
    client.device.initiate(agent.device.publicKey, now, EPOCH_MS + now);
    agent.device.receive(messagesOf(client.device.takeOutputs())[0], HERE, now, EPOCH_MS + now);
    const [response] = messagesOf(agent.device.takeOutputs());
    agent.device.dismissPeer(client.device.publicKey, now);
    assert.deepEqual(agent.device.size, { peers: 1, unadmitted: 1, indices: 1 });
    client.device.receive(response, HERE, now, EPOCH_MS + now);
    client.device.takeOutputs();
    const data = client.device.seal(agent.device.publicKey, utf8("hello"), now)!;
    agent.device.receive(data, HERE, now, EPOCH_MS + now);
    assert.deepEqual(kinds(agent.device.takeOutputs()), ["established", "packet"]);
    agent.device.handleTimeout(now + UNADMITTED_MS, EPOCH_MS);
    assert.deepEqual(agent.device.size, { peers: 0, unadmitted: 0, indices: 0 });
  });

  it("a node that is dismissed and has begun nothing is forgotten whole", () => {
    const { net, client, agent } = connected();
    agent.device.dismissPeer(client.device.publicKey, net.now);
    assert.deepEqual(agent.device.size, { peers: 0, unadmitted: 0, indices: 0 });
  });

  it("a stranger that begins again has its ten seconds again", () => {
    const { client, agent } = setup();
    const knock = (now: number): void => {
      client.device.initiateAnew(agent.device.publicKey, now, EPOCH_MS + now);
      agent.device.receive(messagesOf(client.device.takeOutputs())[0], HERE, now, EPOCH_MS + now);
    };
    knock(0);
    knock(UNADMITTED_MS - 10);
    agent.device.handleTimeout(UNADMITTED_MS + 10, EPOCH_MS);
    assert.equal(agent.device.size.unadmitted, 1);
    agent.device.handleTimeout(2 * UNADMITTED_MS, EPOCH_MS);
    assert.equal(agent.device.size.peers, 0);
  });
});
