// What one who was let in can do to the agent: break the rules of the session, and keep them while taking all it can get.
// A breach ends the session of who did it; what is held is bounded; the others don't notice.
import assert from "node:assert/strict";
import type { MeshStream } from "../../mesh/node/node.ts";
import { CLOSE_CODES } from "../../mesh/wire/session.ts";
import { needsProc } from "../skip.ts";
import type { Part } from "./part.ts";
import type { Outcome } from "./rogue.ts";
import { costOf, MIB, roundTrip, World } from "./world.ts";

/** A session's own windows are 1 MiB and what the node's budget, 64 MiB in this world, gives; V8 lets garbage lie. */
const MAX_GROWTH_BYTES = 160 * MIB;

describe("hostile peers of an agent", function () {
  this.timeout(60_000);
  let world: World;
  let rogue: Part;
  let honest: MeshStream;

  before(async function () {
    needsProc(this);
    world = await World.begin();
    rogue = await world.part("rogue");
    honest = await world.echo();
    await rogue.call("polite");
  });
  afterEach(async () => {
    await roundTrip(honest);
    await rogue.call("leave");
  });
  after(() => world?.end());

  async function attack(name: string, ...args: unknown[]): Promise<Outcome> {
    let over = false;
    const { result, bytes, cpuMs } = await costOf(world.agent, async () => {
      const work = rogue.call<Outcome>(name, ...args).finally(() => {
        over = true;
      });
      work.catch(() => undefined); // told below
      while (!over) {
        await roundTrip(honest);
        await new Promise(setImmediate);
      }
      return work;
    });
    assert.ok(bytes < MAX_GROWTH_BYTES, `the agent grew by ${(bytes / MIB).toFixed(0)} MiB`);
    if (process.env.HOSTILE_COSTS)
      console.log(`        ${cpuMs.toFixed(0)} ms of CPU, ${(bytes / MIB).toFixed(1)} MiB more`, result);
    return result;
  }

  for (const [what, name, args, end] of [
    ["10,000 streams", "openTooMany", [10_000], "resourceLimit"],
    ["data beyond its credit", "sendBeyondCredit", [], "flowControl"],
    ["an acknowledgement of what was never sent", "ackUnsent", [], "protocolViolation"],
    ["signals beyond those that may be under way", "babble", [1_000], undefined],
    ["a fifth session with one key", "hoardSessions", [6], "resourceLimit"],
  ] as const)
    it(`${what}: ${end ? `answered with CLOSE (${end})` : "changes nothing"}, and the others' streams go on`, async () => {
      const { code } = await attack(name, ...args);
      assert.equal(code, end && CLOSE_CODES[end].code);
    });

  for (const [what, name, args] of [
    ["256 streams, half-open, with 16 KB of description each", "hoardStreams", []],
    ["a flood of acknowledgements of every other packet, 256 ranges each", "floodAcks", [1_000]],
    ["windows without end and acknowledgements ahead of reading", "optimist", []],
    ["windows without end on 64 streams, and no acknowledgement", "neverAck", [64]],
  ] as const)
    it(`${what}: are held within bounds, and the others' streams go on`, async () => {
      const { code } = await attack(name, ...args);
      assert.equal(code, undefined);
    });
});
