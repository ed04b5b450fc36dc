import assert from "node:assert/strict";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import type { Duplex } from "node:stream";
import type { MeshNode, MeshStream, PeerEvent, StreamPeer } from "../mesh/node/node.ts";
import { CALLBACK_SERVICE, encodeMetadata } from "../mesh/wire/forward.ts";
import { type MeshLab, meshLab } from "./mesh-lab.ts";

const newToken = (): string => randomBytes(16).toString("base64");
const text = async (stream: Duplex): Promise<string> => {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
};
const until = async (isDone: () => boolean): Promise<void> => {
  while (!isDone()) await new Promise(setImmediate);
};

describe("what the ends of a session may open", () => {
  let lab: MeshLab;
  let agent: MeshNode;
  let agentId: string;
  let client: MeshNode;

  beforeEach(async () => {
    lab = await meshLab();
    ({ node: agent, agentId } = await lab.agent());
    client = await lab.client();
  });
  afterEach(() => lab.close());

  /** The agent's view of the client, once that has opened a stream of `service`. */
  function peerOf(service: string): Promise<{ stream: MeshStream; peer: StreamPeer }> {
    return new Promise((resolve) => agent.listen(service, (stream, peer) => resolve({ stream, peer })));
  }

  it("a service whose name ends in a colon gets all that begin so; a longer name goes first", async () => {
    agent.listen("tcp:", (stream) => stream.end(`any ${stream.service}`));
    agent.listen("tcp:[::1]:", (stream) => stream.end(`own ${stream.service}`));
    agent.listen("tcp:localhost:1", (stream) => stream.end("exactly that"));
    const ask = async (service: string) => text((await client.dial(agentId, service)).end());
    assert.equal(await ask("tcp:localhost:80"), "any tcp:localhost:80");
    assert.equal(await ask("tcp:[::1]:80"), "own tcp:[::1]:80");
    assert.equal(await ask("tcp:localhost:1"), "exactly that");
    await assert.rejects(ask("tcp"), { code: "ERR_STREAM_RESET" });
    await assert.rejects(ask("tcpx:80"), { code: "ERR_STREAM_RESET" });
  });

  it("an agent opens a callback with the token that this client gave it, and says who came", async () => {
    const token = newToken();
    const arrived = peerOf("listen");
    const called = new Promise<[MeshStream, string | undefined]>((resolve) => {
      client.accept(agentId, token, (stream, { origin }) => resolve([stream, origin?.address]));
    });
    await client.dial(agentId, "listen");
    const { peer } = await arrived;
    const back = peer.open(CALLBACK_SERVICE, encodeMetadata({ token, origin: { address: "::1", port: 5 } }));
    back.end("from the workspace");
    const [stream, address] = await called;
    assert.equal(await text(stream.end("from the laptop")), "from the workspace");
    assert.equal(await text(back), "from the laptop");
    assert.equal(address, "::1");
  });

  for (const [what, open] of [
    ["another service", (peer: StreamPeer) => peer.open("session", new Uint8Array())],
    [
      "a token nobody gave",
      (peer: StreamPeer) => peer.open(CALLBACK_SERVICE, encodeMetadata({ token: newToken() })),
    ],
    ["metadata that is none", (peer: StreamPeer) => peer.open(CALLBACK_SERVICE, Buffer.from("{"))],
  ] as const)
    it(`an agent that opens ${what} at a client is refused`, async () => {
      const opened: string[] = [];
      client.accept(agentId, newToken(), ({ service }) => opened.push(service));
      const arrived = peerOf("listen");
      await client.dial(agentId, "listen");
      const back = open((await arrived).peer);
      back.write("x");
      await assert.rejects(text(back), { code: "ERR_STREAM_RESET" });
      assert.deepEqual(opened, []);
    });

  it("a token is good for the agent it was given to, and until it is taken back", async () => {
    const { agentId: otherId } = await lab.agent();
    const token = newToken();
    const wrong: string[] = [];
    const undo = [
      client.accept(otherId, token, () => wrong.push("another agent's")),
      client.accept(agentId, newToken(), () => wrong.push("another token")),
    ];
    const arrived = peerOf("listen");
    await client.dial(agentId, "listen");
    const { peer } = await arrived;
    const call = () => peer.open(CALLBACK_SERVICE, encodeMetadata({ token }));
    await assert.rejects(text(call()), { code: "ERR_STREAM_RESET" });
    const close = client.accept(agentId, token, (stream) => stream.end("hello"));
    assert.equal(await text(call().end()), "hello");
    close();
    await assert.rejects(text(call()), { code: "ERR_STREAM_RESET" });
    for (const one of undo) one();
    assert.deepEqual(wrong, []);
  });

  it("datagrams travel both ways beside a stream, and those of a closed one are dropped", async () => {
    const arrived = peerOf("udp:");
    const stream = await client.dial(agentId, "udp:localhost:53");
    const { stream: far } = await arrived;
    far.onDatagram = (bytes) => far.sendDatagram(Buffer.concat([Buffer.from("re: "), bytes]));
    const answers: string[] = [];
    stream.onDatagram = (bytes) => answers.push(Buffer.from(bytes).toString());
    assert.equal(stream.sendDatagram(Buffer.from("one")), true);
    assert.equal(stream.sendDatagram(Buffer.from("two")), true);
    assert.equal(stream.sendDatagram(new Uint8Array(56_001)), false);
    await until(() => answers.length === 2);
    assert.deepEqual(answers, ["re: one", "re: two"]);
    stream.destroy();
    assert.equal(stream.sendDatagram(Buffer.from("three")), false);
  });

  it("sessions are listed on both sides, and one that is ended tells its streams why", async () => {
    const arrived = peerOf("shell");
    const stream = await client.dial(agentId, "shell", { metadata: Buffer.from("details") });
    await arrived;
    await client.connect(agentId);
    const [there] = agent.sessions();
    const [here] = client.sessions();
    assert.equal(there.id, here.id);
    assert.match(there.id, /^[0-9a-f]{32}$/);
    assert.equal(there.peerKey, client.nodeKey);
    assert.equal(there.grant?.username, "alice");
    assert.equal(here.agentId, agentId);
    assert.deepEqual(
      there.streams.map(({ service, metadata }) => [service, Buffer.from(metadata).toString()]),
      [["shell", "details"]],
    );
    assert.ok(Math.abs(Date.now() - there.startedAtMs) < 10_000);
    assert.ok(there.lastHeardAtMs >= there.startedAtMs && there.streams[0].openedAtMs >= there.startedAtMs);
    assert.deepEqual(there.path, { kind: "relay", region: 999 });
    assert.equal(agent.endSession("00"), false);
    const failed = once(stream, "error");
    assert.equal(agent.endSession(there.id), true);
    assert.match(String((await failed)[0]), /ended by its user/);
    assert.deepEqual(agent.sessions(), []);
    assert.deepEqual(client.sessions(), []);
  });

  it("the largest resume window asked for holds, up to the agent's own limit, also in a session under way", async () => {
    const kept = () => agent.sessions()[0].resumeWindowMs;
    agent.listen("x", () => undefined);
    await client.dial(agentId, "x");
    await until(() => agent.sessions().length === 1);
    assert.equal(kept(), 300_000);
    await client.dial(agentId, "x", { resumeWindowMs: 3_600_000 });
    await until(() => kept() === 3_600_000);
    await client.dial(agentId, "x", { resumeWindowMs: 1_000 });
    await client.ping(agentId);
    assert.equal(kept(), 3_600_000);
    await client.dial(agentId, "x", { resumeWindowMs: 1e12 });
    await until(() => kept() === 24 * 3_600_000);

    const strict = await lab.agent(randomUUID(), { maxResumeWindowMs: 60_000 });
    strict.node.listen("x", () => undefined);
    const other = await lab.client();
    await other.dial(strict.agentId, "x", { resumeWindowMs: 3_600_000 });
    await until(() => strict.node.sessions().length === 1);
    assert.equal(strict.node.sessions()[0].resumeWindowMs, 60_000);
    await other.connect(strict.agentId);
    assert.equal(other.sessions()[0].resumeWindowMs, 60_000);
  });

  it("a watcher hears of the path, one that throws harms nobody, and none hears after its undo", async () => {
    const events: PeerEvent[] = [];
    const undo = client.watch(agentId, (event) => events.push(event));
    client.watch(agentId, () => {
      throw new Error("bug");
    });
    await client.connect(agentId);
    assert.deepEqual(events, [{ kind: "path", path: { kind: "relay", region: 999 } }]);
    undo();
    client.endSession(client.sessions()[0].id);
    await client.connect(agentId);
    assert.equal(events.length, 1);
  });
});
