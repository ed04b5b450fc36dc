import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import type { Duplex } from "node:stream";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { MeshNode, MeshNodeError, MeshStream } from "../mesh/node/node.ts";
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
    await lab.coordinator.store.putRecord({ ...stored, record: { ...stored.record, agentId } });
    await assert.rejects(client.connect(agentId), { code: "ERR_SESSION_CLOSED", message: /no permission/ });
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
});
