// WireGuard: a whole device that waits, is in the middle of a handshake, has a session or is under load, and gets what a
// stranger, a relay or its own peer made. Macs and tags are made right again in half of the inputs, as anybody who
// knows the public key (or is the peer) can.
import assert from "node:assert/strict";
import { nodeCrypto } from "../../../mesh/node/crypto.ts";
import { equalBytes, toHex, utf8 } from "../../../mesh/wire/bytes.ts";
import {
  beforeMac1,
  encodeInitiation,
  INITIATION_BYTES,
  mac1Of,
  messageType,
  RESPONSE_BYTES,
} from "../../../mesh/wire/wireguard.ts";
import { type DeviceOutput, WireGuardDevice } from "../../../mesh/wireguard/device.ts";
import { type NoiseContext, writeInitiation } from "../../../mesh/wireguard/noise.ts";
import { EPOCH_MS, seededBytes } from "../../../mesh/wireguard/testing.ts";
import type { Instance, Target } from "../engine.ts";
import type { Random } from "../random.ts";

type Stage = "idle" | "initiating" | "established" | "loaded";

const PEER = { key: "peer" };
const IDENTIFIER = utf8("WireGuard v1 zx2c4 Jason@zx2c4.com");
const MAC1_LABEL = utf8("mac1----");
const DATA = utf8("some bytes that only the peer can have sent".padEnd(48));

function devices(stage: Stage) {
  const agentBytes = seededBytes(1);
  const clientBytes = seededBytes(2);
  const agent = new WireGuardDevice({
    privateKey: agentBytes(32),
    crypto: nodeCrypto,
    randomBytes: agentBytes,
    acceptUnknown: true,
    maxPeers: 64,
    maxUnadmittedHandshakes: 16,
    // Under load at once, or (for the others) never: the load itself has tests of its own.
    maxHandshakesPerSecond: stage === "loaded" ? 1 : 1e9,
  });
  const client = new WireGuardDevice({
    privateKey: clientBytes(32),
    crypto: nodeCrypto,
    randomBytes: clientBytes,
  });
  return { agent, client, clientBytes };
}

const sent = (outputs: readonly DeviceOutput[]): Uint8Array[] =>
  outputs.flatMap((output) =>
    output.kind === "send" || output.kind === "cookie-reply" ? [output.message] : [],
  );

/** Brings both to the stage. @returns what the peer would say next, and has said */
function arrange(stage: Stage) {
  const { agent, client, clientBytes } = devices(stage);
  const now = 1_000;
  const wall = EPOCH_MS + now;
  const seeds: Uint8Array[] = [];
  // A stranger to the client's side answers what the agent begins.
  if (stage === "initiating") {
    client.addPeer(agent.publicKey);
    agent.initiate(client.publicKey, now, wall);
    for (const message of sent(agent.takeOutputs())) client.receive(message, PEER, now, wall);
    seeds.push(...sent(client.takeOutputs()));
  } else {
    client.initiate(agent.publicKey, now, wall);
    const [initiation] = sent(client.takeOutputs());
    seeds.push(initiation);
    if (stage === "established") {
      agent.receive(initiation, PEER, now, wall);
      for (const message of sent(agent.takeOutputs())) {
        seeds.push(message);
        client.receive(message, PEER, now, wall);
      }
      const first = client.seal(agent.publicKey, DATA, now);
      assert.ok(first);
      agent.receive(first, PEER, now, wall);
      agent.admit(client.publicKey);
      agent.takeOutputs();
      for (let i = 0; i < 4; i++) {
        const message = client.seal(agent.publicKey, i === 0 ? new Uint8Array() : DATA, now);
        if (message) seeds.push(message);
      }
    }
    if (stage === "loaded") {
      for (let i = 0; i < 4; i++) agent.receive(initiation, PEER, now, wall);
      seeds.push(...sent(agent.takeOutputs()));
    }
  }
  return { agent, client, clientBytes, seeds, now, wall };
}

/**
 * What of a message is authenticated. The protocol leaves out a handshake's macs and its sender's index: whoever stands
 * on the path can put another index there, and what is sent to it then is lost until the next handshake.
 */
const meaning = (message: Uint8Array): string => {
  const type = messageType(message);
  return type === 1 || type === 2 ? `${type} ${toHex(beforeMac1(message).subarray(8))}` : toHex(message);
};

const HANDSHAKES = new Set([INITIATION_BYTES, RESPONSE_BYTES]);
const mac1Key = (publicKey: Uint8Array): Uint8Array => nodeCrypto.hash(MAC1_LABEL, publicKey);

function wireGuardTarget(stage: Stage): Target {
  const { agent, client, seeds } = arrange(stage);
  const genuine = new Set(seeds.map(meaning));
  const key = mac1Key(agent.publicKey);
  const noise: NoiseContext = {
    crypto: nodeCrypto,
    prologue: IDENTIFIER,
    identity: nodeCrypto.keyPair(seededBytes(2)(32)),
  };
  const shared = noise.identity.shared(agent.publicKey);
  assert.ok(shared && equalBytes(noise.identity.publicKey, client.publicKey));
  return {
    name: `wireguard-${stage}`,
    format: "bytes",
    seeds,
    maxBytes: 400,
    inputsPerInstance: 500,
    repair(input, random) {
      const out = input.slice();
      if (random.chance(0.5) && out.length > 4) out.fill(0, 1, 4);
      if (random.chance(0.1)) return resealed(noise, agent.publicKey, shared, random, key);
      // Half a message, made whole.
      const wanted =
        random.chance(0.5) && !HANDSHAKES.has(out.length) ? random.pick([...HANDSHAKES]) : out.length;
      const sized = new Uint8Array(wanted);
      sized.set(out.subarray(0, wanted));
      if (!HANDSHAKES.has(wanted)) return sized;
      sized[0] = wanted === INITIATION_BYTES ? 1 : 2;
      sized.fill(0, 1, 4);
      mac1Of(sized).set(nodeCrypto.mac(key, beforeMac1(sized)));
      return sized;
    },
    open: () => wireGuardInstance(stage, genuine, key),
  };
}

/** An initiation that authenticates: its timestamp, indices and age are the fuzzer's. */
function resealed(
  noise: NoiseContext,
  publicKey: Uint8Array,
  shared: Uint8Array,
  random: Random,
  key: Uint8Array,
): Uint8Array {
  const ephemeral = nodeCrypto.keyPair(random.bytes(32));
  const payload = random.bytes(12);
  const written = writeInitiation(noise, { publicKey, shared }, ephemeral, payload);
  assert.ok(written);
  const message = encodeInitiation({
    sender: random.below(2 ** 32),
    ephemeral: ephemeral.publicKey,
    sealedStatic: written.sealedStatic,
    sealedTimestamp: written.sealedPayload,
  });
  mac1Of(message).set(nodeCrypto.mac(key, beforeMac1(message)));
  return message;
}

/** `key`: of mac1, which everybody who knows the agent can compute. */
function wireGuardInstance(stage: Stage, genuine: ReadonlySet<string>, key: Uint8Array): Instance {
  const { agent, now, wall } = arrange(stage);
  agent.takeOutputs();
  let time = now;
  let last = { ...agent.counters };
  return {
    run(input, random) {
      time += random.pick([0, 0, 1, 20]);
      const copy = input.slice();
      agent.receive(copy, { key: `source-${random.below(40)}` }, time, wall + time - now);
      const type = messageType(input);
      const outputs = agent.takeOutputs();
      for (const output of outputs) {
        if (output.kind === "packet" || output.kind === "established")
          assert.ok(genuine.has(meaning(input)), `${output.kind} out of a message nobody sent`);
        if (output.kind === "packet") assert.ok(equalBytes(output.packet, DATA));
        if (output.kind === "cookie-reply") assert.ok(stage === "loaded" && (type === 1 || type === 2));
        // Nothing is answered with more than it took to ask.
        if (output.kind === "send" || output.kind === "cookie-reply")
          assert.ok(output.message.length <= input.length || output.replyTo === undefined, "an amplifier");
      }
      assert.ok(outputs.length <= 2, `${outputs.length} outputs for one message`);
      const { peers, unadmitted, indices } = agent.size;
      assert.ok(peers <= 64 && unadmitted <= 16 && indices <= 4 * 64, "handshakes pile up");
      const changed = Object.entries(agent.counters).find(
        ([name, count]) => count !== last[name as keyof typeof last],
      );
      if ((type === 1 || type === 2) && !equalBytes(mac1Of(input), nodeCrypto.mac(key, beforeMac1(input))))
        assert.ok(changed?.[0] === "badMac1" && outputs.length === 0, "a wrong mac1 cost more than a hash");
      if (random.chance(0.05)) agent.handleTimeout(time, wall + time - now);
      agent.takeOutputs();
      last = { ...agent.counters };
      return `${type} ${changed?.[0]} ${outputs.map(({ kind }) => kind).join()}`;
    },
  };
}

export const wireGuardTargets: Target[] = (["idle", "initiating", "established", "loaded"] as const).map(
  wireGuardTarget,
);
