// A relay can drop and delay, nothing else: whatever one does to packets between two nodes, each byte arrives once and
// in order, and what it makes up has no effect.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import type { MeshStream } from "../../mesh/node/node.ts";
import type { Badness } from "./bad-relay.ts";
import { Part } from "./part.ts";
import { MIB, roundTrip, World } from "./world.ts";

const SEED = Number(process.env.HOSTILE_SEED ?? 4);

const digest = (...chunks: Uint8Array[]) => {
  const hash = createHash("sha256");
  for (const chunk of chunks) hash.update(chunk);
  return hash.digest("hex");
};

/** Sends `bytes` through the echo service. @throws unless each comes back once and in order */
async function transfer(stream: MeshStream, bytes: number): Promise<void> {
  const sent = randomBytes(bytes);
  const chunks: Uint8Array[] = [];
  let got = 0;
  const back = new Promise<void>((resolve, reject) => {
    stream.on("data", (chunk: Buffer) => {
      chunks.push(chunk);
      got += chunk.length;
      if (got >= bytes) resolve();
    });
    stream.once("close", () => reject(new Error(`the stream ended after ${got} of ${bytes} bytes`)));
  });
  for (let at = 0; at < bytes; at += 16_384)
    if (!stream.write(sent.subarray(at, at + 16_384))) await once(stream, "drain");
  await back;
  assert.equal(got, bytes);
  assert.equal(digest(...chunks), digest(sent));
  stream.removeAllListeners("data");
}

describe(`a relay that can't be trusted (seed ${SEED})`, function () {
  this.timeout(60_000);
  let world: World;
  let stream: MeshStream;

  before(async () => {
    world = await World.begin(["badRelay", { seed: SEED }]);
    stream = await world.echo();
  });
  afterEach(async () => {
    await world.server.call("be", {});
    await roundTrip(stream, "and again");
  });
  after(() => world?.end());

  for (const [what, badness, bytes] of [
    ["drops a twentieth of all packets", { drop: 0.05 }, MIB],
    ["delivers one in ten twice", { repeat: 0.1 }, 2 * MIB],
    ["holds one in ten back until eight others have passed", { reorder: 0.1 }, MIB],
    ["changes a bit in one of twenty", { alter: 0.05 }, MIB],
    ["names another sender for one in ten", { lieAboutSource: 0.1 }, 2 * MIB],
    ["puts junk of the sender's between packets", { junk: 0.5 }, 2 * MIB],
    ["says of one sender in fifty packets that it is gone", { gone: 0.02 }, MIB],
    [
      "does all of it",
      { drop: 0.02, repeat: 0.02, alter: 0.02, reorder: 0.02, lieAboutSource: 0.02, junk: 0.02, gone: 0.005 },
      MIB,
    ],
  ] as [string, Badness, number][])
    it(`${what}: each byte arrives once and in order`, async () => {
      await world.server.call("be", badness);
      // How many packets carry it depends on the machine: until each deed was done at least once.
      let deeds: Record<string, number>;
      do {
        await transfer(stream, bytes);
        deeds = await world.server.call<Record<string, number>>("deeds");
      } while (Object.keys(badness).some((deed) => !deeds[deed]));
    });

  it("cuts every connection five times in a row: the session goes on", async () => {
    for (let i = 0; i < 5; i++) {
      await world.server.call("cut");
      await roundTrip(stream, `after cut ${i}`);
    }
  });
});

describe("a coordinator that vanishes", function () {
  this.timeout(60_000);
  it("frozen or killed: sessions that live go on, and a new dial fails with a reason", async () => {
    const relay = await Part.start("server");
    const world = await World.begin(["server", {}], relay);
    try {
      const client = await world.client();
      const stream = await client.dial(world.agentId, "echo");
      stream.on("error", () => undefined);
      await roundTrip(stream);
      world.server.freeze();
      await roundTrip(stream, "while it is frozen");
      const second = await client.dial(world.agentId, "echo");
      await roundTrip(second, "a new stream of the session");
      await world.server.kill();
      await roundTrip(stream, "when it is gone");
      await assert.rejects(
        client.dial("00000000-0000-4000-8000-000000000000", "echo", { signal: AbortSignal.timeout(1_000) }),
      );
    } finally {
      await world.end();
    }
  });
});
