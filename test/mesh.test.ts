import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import type { Duplex } from "node:stream";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { RelayClient } from "../derp/client/regions.ts";
import { embeddedRelayMap } from "../derp/map.ts";
import { nodeCrypto } from "../mesh/node/crypto.ts";
import { type MeshNode, type MeshNodeError, type MeshStream, newIdentity } from "../mesh/node/node.ts";
import { fromBase64, toBase64 } from "../mesh/wire/bytes.ts";
import { encodeClosePacket, peekTag } from "../mesh/wire/session.ts";
import { encodeStatement } from "../mesh/wire/signed.ts";
import { WireGuardDevice } from "../mesh/wireguard/device.ts";
import { type MeshLab, meshLab } from "./mesh-lab.ts";

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

async function collect(stream: Duplex): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

function* pieces(bytes: Buffer, size = 64 * 1024): Generator<Buffer> {
  for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
}

/** An agent that is not there, unless a test brings it. */
const NOBODY = "3c0a3f34-5d1e-4d4c-9d39-2f8f6e0c7a11";

const echo = (stream: MeshStream): void => {
  stream.on("error", () => undefined);
  stream.pipe(stream);
};

describe("mesh over a relay", () => {
  let lab: MeshLab;
  let agent: MeshNode;
  let agentId: string;
  let client: MeshNode;

  beforeEach(async () => {
    lab = await meshLab();
    ({ node: agent, agentId } = await lab.agent());
    client = await lab.client();
    agent.listen("echo", echo);
  });
  afterEach(() => lab.close());

  it("a stream carries bytes both ways and ends each direction by itself", async () => {
    const stream = await client.dial(agentId, "echo", { metadata: Buffer.from("hi") });
    stream.end("hello");
    assert.equal((await collect(stream)).toString(), "hello");
  });

  it("the service sees the stream's metadata and who opened it", async () => {
    const seen = new Promise<[string, string]>((resolve) => {
      agent.listen("who", (stream, { grant, nodeKey }) => {
        stream.end(nodeKey);
        resolve([Buffer.from(stream.metadata).toString(), grant.username]);
      });
    });
    const stream = await client.dial(agentId, "who", { metadata: Buffer.from("details") });
    stream.end();
    assert.equal((await collect(stream)).toString(), client.nodeKey);
    assert.deepEqual(await seen, ["details", "alice"]);
  });

  it("a dial before the agent is there waits for it", async () => {
    const late = "3c0a3f34-5d1e-4d4c-9d39-2f8f6e0c7a11";
    const waits: string[] = [];
    const dialled = client.dial(late, "echo", { onWait: (what) => waits.push(what) });
    while (waits.length === 0) await new Promise(setImmediate);
    const { node } = await lab.agent(late);
    node.listen("echo", echo);
    const stream = await dialled;
    stream.end("x");
    assert.equal((await collect(stream)).toString(), "x");
    assert.deepEqual(waits, ["agent"]);
  });

  it("8 MB each way arrive whole, with back-pressure on a slow reader", async () => {
    const sent = randomBytes(8 << 20);
    const stream = await client.dial(agentId, "echo");
    const received = collect(stream);
    await pipeline(Readable.from(pieces(sent)), stream, { end: true });
    assert.equal(sha256(await received), sha256(sent));
  });

  it("a writer stops when nobody reads, and goes on when somebody does", async () => {
    const opened = new Promise<MeshStream>((resolve) => agent.listen("sink", resolve));
    const stream = await client.dial(agentId, "sink");
    const chunk = Buffer.alloc(64 * 1024);
    let written = 0;
    const limit = 64 << 20;
    while (written < limit && stream.write(chunk)) written += chunk.length;
    const far = await opened;
    assert.ok(written < limit, "the writer was never told to wait");
    const drained = once(stream, "drain");
    far.on("error", () => undefined);
    far.resume();
    await drained;
    stream.end();
    await once(far, "end");
  });

  it("many streams share a session without mixing", async () => {
    const payloads = Array.from({ length: 40 }, (_, i) => randomBytes(1000 + i * 777));
    const echoed = await Promise.all(
      payloads.map(async (payload) => {
        const stream = await client.dial(agentId, "echo");
        stream.end(payload);
        return collect(stream);
      }),
    );
    assert.deepEqual(echoed.map(sha256), payloads.map(sha256));
  });

  it("a cut relay connection is resumed: no byte lost, none doubled", async () => {
    const sent = randomBytes(12 << 20);
    const stream = await client.dial(agentId, "echo");
    const received = collect(stream);
    let cuts = 0;
    async function* withCuts(): AsyncGenerator<Buffer> {
      let position = 0;
      for (const piece of pieces(sent)) {
        position += piece.length;
        if (position > (cuts + 1) * (3 << 20)) {
          cuts++;
          lab.cutRelay();
        }
        yield piece;
      }
    }
    await pipeline(withCuts(), stream);
    assert.equal(sha256(await received), sha256(sent));
    assert.equal(cuts, 3);
  });

  it("ping measures the round trip through the session", async () => {
    const { rttMs, path } = await client.ping(agentId);
    assert.ok(rttMs > 0 && rttMs < 5_000);
    assert.deepEqual(path, { kind: "relay", region: 999 });
  });

  it("a service nobody offers, or that the grant leaves out, is refused", async () => {
    const missing = await client.dial(agentId, "nothing-there");
    await assert.rejects(collect(missing), { code: "ERR_STREAM_RESET" });
    lab.decision = { allowed: true, permissions: ["other"] };
    const limited = await (await lab.client()).dial(agentId, "echo");
    limited.end("secret");
    await assert.rejects(collect(limited), { code: "ERR_STREAM_RESET" });
  });

  it("a refused grant reaches the caller with the control plane's reason", async () => {
    lab.decision = { allowed: false, code: "ERR_WORKSPACE_STOPPED", message: "start it first" };
    await assert.rejects(client.dial(agentId, "echo"), {
      code: "ERR_WORKSPACE_STOPPED",
      message: "start it first",
    });
  });

  it("a grant for another agent opens nothing", async () => {
    const { node: other, agentId: otherId } = await lab.agent();
    other.listen("echo", echo);
    // The coordinator would have to lie for this: the grant names the first agent, the record the second's key.
    const stored = await lab.coordinator.store.getRecord(otherId);
    assert.ok(stored);
    const { node, coordinator } = await lab.clientParts();
    const reached = await coordinator.requestGrant(agentId);
    coordinator.requestGrant = async () => ({ ...reached, record: { ...stored.record, agentId } });
    await assert.rejects(node.connect(agentId), { code: "ERR_SESSION_CLOSED", message: /no permission/ });
  });

  it("revoking a grant ends the live session with its reason", async () => {
    const stream = await client.dial(agentId, "echo");
    stream.write("x");
    await once(stream, "data");
    const failed = once(stream, "error");
    assert.equal(await lab.coordinator.revoke(({ agentId: id }) => id === agentId), 1);
    const [error] = (await failed) as [MeshNodeError];
    assert.equal(error.code, "ERR_SESSION_CLOSED");
    assert.match(error.message, /revoked/);
  });

  it("an agent that shuts down says so; one that was restarted is dialled anew", async () => {
    const stream = await client.dial(agentId, "echo");
    stream.write("x");
    await once(stream, "data");
    const failed = once(stream, "error");
    await agent.close();
    const [error] = (await failed) as [MeshNodeError];
    assert.match(error.message, /shutting down/);
    const { node: restarted } = await lab.agent(agentId);
    restarted.listen("echo", echo);
    const again = await client.dial(agentId, "echo");
    again.end("again");
    assert.equal((await collect(again)).toString(), "again");
  });

  it("destroying a stream resets it at the other side, and the session lives on", async () => {
    const opened = new Promise<MeshStream>((resolve) => agent.listen("hold", resolve));
    const stream = await client.dial(agentId, "hold");
    stream.write("x");
    const far = await opened;
    const failed = once(far, "error");
    far.resume();
    stream.destroy();
    const [error] = (await failed) as [MeshNodeError];
    assert.equal(error.code, "ERR_STREAM_RESET");
    assert.ok((await client.ping(agentId)).rttMs > 0);
  });

  it("what was written before close() arrives, to the last byte", async () => {
    const received = new Promise<Buffer>((resolve) =>
      agent.listen("sink", (stream) => void collect(stream.end()).then(resolve)),
    );
    const sent = randomBytes(3 << 20);
    const stream = await client.dial(agentId, "sink");
    stream.end(sent);
    await client.close();
    assert.equal(sha256(await received), sha256(sent));
  });

  it("close() that need not deliver leaves at once: the agent hears it, not what was still to come", async () => {
    const opened = new Promise<MeshStream>((resolve) => agent.listen("hold", resolve));
    const stream = await client.dial(agentId, "hold");
    stream.on("error", () => undefined);
    stream.end(randomBytes(1 << 20)); // more than a stream's first window
    const far = await opened;
    const closing = client.close({ deliver: false });
    await assert.rejects(collect(far), { code: "ERR_SESSION_CLOSED" });
    await closing;
  });

  it("close() ends a dial that waits for its agent, and is the same call twice", async () => {
    const waits = new Promise<void>((resolve) => {
      void assert
        .rejects(client.dial(NOBODY, "echo", { onWait: () => resolve() }), { code: "ERR_NODE_CLOSED" })
        .then(() => (wasRejected = true));
    });
    let wasRejected = false;
    await waits;
    assert.equal(client.close(), client.close());
    await client.close();
    assert.equal(wasRejected, true);
    await assert.rejects(client.dial(agentId, "echo"), { code: "ERR_NODE_CLOSED" });
  });

  it("one caller's signal ends its own wait, not another's for the same agent", async () => {
    const hurried = new AbortController();
    const [first, second] = [
      client.dial(NOBODY, "echo", { signal: hurried.signal }),
      client.dial(NOBODY, "echo"),
    ];
    hurried.abort(new Error("enough"));
    await assert.rejects(first, /enough/);
    (await lab.agent(NOBODY)).node.listen("echo", echo);
    const stream = await second;
    stream.end("x");
    assert.equal((await collect(stream)).toString(), "x");
  });

  it("a connect given up before the agent answered leaves no rejection behind", async () => {
    const unhandled: unknown[] = [];
    const note = (reason: unknown) => unhandled.push(reason);
    process.on("unhandledRejection", note);
    const enough = new AbortController();
    const connected = client.connect(agentId, { signal: enough.signal });
    while ((await lab.coordinator.grants()).length === 0) await new Promise(setImmediate);
    enough.abort(new Error("enough"));
    await assert.rejects(connected, /enough/);
    await agent.close();
    await client.close();
    await new Promise(setImmediate);
    process.off("unhandledRejection", note);
    assert.deepEqual(unhandled, []);
  });

  it("a ping of an agent that is not there ends in time", async () => {
    await assert.rejects(client.ping(NOBODY, 50), { code: "ERR_TIMEOUT" });
  });

  it("an agent whose relay can't be reached fails every dial, not the first one alone", async () => {
    const issuedAt = Date.now();
    const record = {
      agentId: NOBODY,
      nodeKey: newIdentity().nodeKey,
      homeRegion: 7,
      issuedAt,
      expiresAt: issuedAt + 60_000,
    };
    const statement = encodeStatement("nodeRecord", record, lab.signer);
    await lab.coordinator.store.putRecord({ connectionId: "x", record, statement });
    for (let i = 0; i < 2; i++)
      await assert.rejects(client.dial(NOBODY, "echo"), { code: "ERR_RELAY_NO_REGION" });
  });

  it("a dial that waits survives the loss of the coordinator", async () => {
    const waits: string[] = [];
    const dialled = client.dial(NOBODY, "echo", { onWait: (what) => waits.push(what) });
    while (waits.length === 0) await new Promise(setImmediate);
    lab.cutCoordinator();
    (await lab.agent(NOBODY)).node.listen("echo", echo);
    const stream = await dialled;
    stream.end("x");
    assert.equal((await collect(stream)).toString(), "x");
  });

  it("after the coordinator was away, a session has a new grant and hears of a restarted agent", async () => {
    const grants: string[] = [];
    agent.listen("who", (stream, { grant }) => {
      grants.push(grant.id);
      stream.end();
    });
    const who = async () => collect((await client.dial(agentId, "who")).end());
    await who();
    const asked = lab.coordinator.grants();
    assert.equal((await asked).length, 1);
    lab.cutCoordinator();
    while ((await lab.coordinator.grants()).length < 2) await new Promise(setImmediate);
    while (grants.at(-1) === grants[0]) await who();
    const held = await client.dial(agentId, "echo");
    const failed = once(held, "error");
    await lab.agent(agentId);
    assert.match(((await failed) as [MeshNodeError])[0].message, /restarted/);
  });

  for (const away of [false, true])
    it(`a revoked grant opens nothing any more${away ? ", also one revoked while the agent was away" : ""}`, async () => {
      const { node, coordinator } = await lab.clientParts();
      const kept = await coordinator.requestGrant(agentId);
      coordinator.requestGrant = async () => kept;
      if (away) {
        lab.cutCoordinator();
        while (lab.coordinator.agents().length > 0) await new Promise(setImmediate);
      }
      await lab.coordinator.revoke(() => true);
      while (lab.coordinator.agents().length === 0) await new Promise(setImmediate);
      await assert.rejects(node.connect(agentId), { code: "ERR_SESSION_CLOSED", message: /revoked/ });
    });

  it("a server that dies and comes back on its port costs a running stream nothing", async () => {
    const sent = randomBytes(6 << 20);
    const stream = await client.dial(agentId, "echo");
    const received = collect(stream);
    let restarted: Promise<void> | undefined;
    async function* withRestart(): AsyncGenerator<Buffer> {
      for (const piece of pieces(sent)) {
        yield piece;
        restarted ??= lab.restart(100);
      }
    }
    await pipeline(withRestart(), stream);
    assert.equal(sha256(await received), sha256(sent));
    await restarted;
  });

  it("an agent that lost its relay alone is heard again as soon as it is back", async () => {
    const parts = await lab.agent(NOBODY);
    parts.node.listen("echo", echo);
    const stream = await client.dial(NOBODY, "echo");
    stream.write("a");
    await once(stream, "data");
    await client.ping(NOBODY); // now the agent knows that all it said arrived: it has no reason of its own to speak
    const key = parts.node.nodeKey;
    lab.unwanted.add(key);
    lab.relay.disconnect(fromBase64(key));
    stream.write("b");
    const { onState } = parts.relay;
    const isBack = new Promise<number>((resolve) => {
      parts.relay.onState = (state) => {
        onState?.(state);
        if (state.connected && !lab.unwanted.has(key)) resolve(performance.now());
      };
    });
    setTimeout(() => lab.unwanted.delete(key), 1_000);
    assert.equal(String((await once(stream, "data"))[0]), "b");
    const stallMs = performance.now() - (await isBack);
    assert.ok(stallMs < 120, `${stallMs.toFixed(0)} ms after the agent was back`);
  });

  it("a node that slept makes new keys, and its streams go on", async () => {
    const stream = await client.dial(agentId, "echo");
    for (const byte of ["a", "b", "c"]) {
      stream.write(byte);
      assert.equal(String((await once(stream, "data"))[0]), byte);
      // Initiations closer than 20 ms to each other are ignored, and nobody sleeps that short.
      for (const at = performance.now(); performance.now() - at < 25; ) await new Promise(setImmediate);
      client.resumed();
    }
  });

  it("a service that throws costs its caller the stream, nobody the session", async () => {
    agent.listen("broken", () => {
      throw new Error("bug");
    });
    await assert.rejects(collect(await client.dial(agentId, "broken")), { code: "ERR_STREAM_RESET" });
    assert.ok((await client.ping(agentId)).rttMs > 0);
  });

  it("a packet of an unknown session is answered with CLOSE, a CLOSE with nothing", async () => {
    const { privateKey } = newIdentity();
    const relay = new RelayClient({ privateKey, map: embeddedRelayMap(lab.url), accessUrl: lab.url });
    const device = new WireGuardDevice({
      privateKey,
      crypto: nodeCrypto,
      randomBytes: (n) => randomBytes(n),
    });
    const agentKey = fromBase64(agent.nodeKey);
    const answers: Uint8Array[] = [];
    const perform = () => {
      for (const output of device.takeOutputs()) {
        if (output.kind === "send") relay.send(agentKey, 999, output.message);
        if (output.kind === "packet") answers.push(output.packet);
      }
    };
    const ask = async (packet: Uint8Array): Promise<void> => {
      const message = device.seal(agentKey, packet, performance.now());
      assert.ok(message);
      relay.send(agentKey, 999, message);
    };
    const established = new Promise<void>((resolve) => {
      relay.onPacket = ({ data, src }) => {
        device.receive(data, { key: toBase64(src) }, performance.now(), Date.now());
        perform();
        if (device.hasSession(agentKey, performance.now())) resolve();
      };
    });
    await relay.connect(999);
    device.initiate(agentKey, performance.now(), Date.now());
    perform();
    await established;
    const stray = (tag: number) => Uint8Array.of(0, 0, 0, tag, 5, 1);
    await ask(encodeClosePacket(1, 0, "over"));
    await ask(stray(2));
    while (answers.length === 0) await new Promise(setImmediate);
    await ask(stray(3));
    while (answers.length < 2) await new Promise(setImmediate);
    assert.deepEqual(answers.map(peekTag), [2, 3]);
    await relay.close();
  });
});
