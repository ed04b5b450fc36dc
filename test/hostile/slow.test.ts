// Who stops reading: what is held for it is bounded, and the others are served as before.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { MeshStream } from "../../mesh/node/node.ts";
import { needsProc } from "../skip.ts";
import type { Part } from "./part.ts";
import { costOf, MIB, roundTrip, World } from "./world.ts";

describe("slow readers", function () {
  this.timeout(60_000);
  let world: World;
  let reader: Part;
  let honest: MeshStream;

  before(async function () {
    needsProc(this);
    world = await World.begin();
    reader = await world.part("reader");
    honest = await world.echo();
  });
  afterEach(async () => {
    await roundTrip(honest);
    await reader.call("leave");
  });
  after(() => world?.end());

  /** While `work` runs, the honest session must get its turns. */
  async function beside<T>(work: Promise<T>): Promise<T> {
    let over = false;
    const done = work.finally(() => {
      over = true;
    });
    done.catch(() => undefined); // told below
    while (!over) await roundTrip(honest);
    return done;
  }

  it("of relay connections: 16 that are sent 4 MiB each are held 1 MiB each at most", async () => {
    const { bytes } = await costOf(world.server, () =>
      beside(reader.call("stuffRelay", { connections: 16, bytes: 4 * MIB })),
    );
    const { relay } = await world.server.call<{ relay: { queuedBytes: number } }>("stats");
    assert.ok(relay.queuedBytes <= 16 * MIB, `${relay.queuedBytes} bytes queued`);
    assert.ok(bytes < 96 * MIB, `the relay grew by ${(bytes / MIB).toFixed(0)} MiB`);
  });

  it("of streams: an agent that pours into 32 of them holds its windows, and no more", async () => {
    const client = await world.client();
    const { bytes } = await costOf(world.agent, async () => {
      // Never read: their windows are what the agent may send, and its own buffers what it may hold besides.
      const streams = await Promise.all(Array.from({ length: 32 }, () => client.dial(world.agentId, "pour")));
      for (const stream of streams) stream.on("error", () => undefined);
      for (let i = 0; i < 50; i++) await roundTrip(honest);
      for (const stream of streams) stream.destroy();
    });
    assert.ok(bytes < 96 * MIB, `the agent grew by ${(bytes / MIB).toFixed(0)} MiB`);
  });

  it("of the coordinator: 2,000 questions and no answer read are held within bounds, and others are answered", async () => {
    const { bytes } = await costOf(world.server, async () => {
      await reader.call("stuffCoordinator", { agentId: world.agentId, userId: randomUUID(), count: 2_000 });
      await world.echo();
    });
    assert.ok(bytes < 48 * MIB, `the coordinator grew by ${(bytes / MIB).toFixed(0)} MiB`);
  });
});
