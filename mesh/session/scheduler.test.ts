import assert from "node:assert/strict";
import fc from "fast-check";
import { MAX_QUANTUM_BYTES, type Schedulable, Scheduler } from "./scheduler.ts";

interface Flow extends Schedulable {
  name: string;
  /** Bytes waiting. */
  queued: number;
  served: number;
}
const flow = (name: string, queued: number): Flow => ({
  name,
  queued,
  served: 0,
  scheduled: "no",
  deficitBytes: 0,
});

/** Serves one packet as the session does. @returns who got something, in order */
function servePacket(scheduler: Scheduler<Flow>, packetBytes: number): string[] {
  scheduler.setPacketBytes(packetBytes);
  const order: string[] = [];
  for (let room = packetBytes; room > 0; ) {
    const next = scheduler.next();
    if (next === undefined) break;
    const bytes = Math.min(next.queued, scheduler.share(next, room));
    if (bytes === 0) {
      scheduler.retire(next);
      continue;
    }
    next.queued -= bytes;
    next.served += bytes;
    room -= bytes;
    scheduler.charge(next, bytes);
    order.push(next.name);
  }
  return order;
}

describe("Scheduler", () => {
  it("serves what just became busy before what has been busy all along", () => {
    const scheduler = new Scheduler<Flow>();
    const bulk = [flow("copy", 1e6), flow("backup", 1e6)];
    for (const each of bulk) scheduler.activate(each);
    for (let i = 0; i < 5; i++) servePacket(scheduler, 9_000);
    const key = flow("keystroke", 1);
    scheduler.activate(key);
    assert.equal(servePacket(scheduler, 9_000)[0], "keystroke");
  });

  it("gives a flood of small writes its share and no more", () => {
    const scheduler = new Scheduler<Flow>();
    const copy = flow("copy", 1e9);
    const flood = flow("flood", 0);
    scheduler.activate(copy);
    for (let i = 0; i < 400; i++) {
      flood.queued += 4_000; // never idle
      scheduler.activate(flood);
      servePacket(scheduler, 5_000);
    }
    const share = flood.served / (flood.served + copy.served);
    assert.ok(share > 0.45 && share < 0.55, `the flood got ${share}`);
  });

  it("shares equally among streams that are always busy, whatever their number and the packet", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 20 }),
        fc.integer({ min: 1_200, max: 65_000 }),
        (count, packet) => {
          const scheduler = new Scheduler<Flow>();
          const flows = Array.from({ length: count }, (_, i) => flow(String(i), 1e9));
          for (const each of flows) scheduler.activate(each);
          for (let i = 0; i < 20 * count; i++) servePacket(scheduler, packet);
          const served = flows.map((each) => each.served);
          const spread = Math.max(...served) - Math.min(...served);
          assert.ok(spread <= 2 * MAX_QUANTUM_BYTES, `spread of ${spread}`);
        },
      ),
    );
  });

  it("strands nobody, however streams come, run dry, are parked and go", () => {
    const anyStep = fc.tuple(fc.constantFrom("feed", "serve", "remove", "park"), fc.nat(4), fc.nat(5_000));
    fc.assert(
      fc.property(fc.array(anyStep, { maxLength: 200 }), (steps) => {
        const scheduler = new Scheduler<Flow>();
        const flows = Array.from({ length: 5 }, (_, i) => flow(String(i), 0));
        const gone = new Set<Flow>();
        for (const [kind, which, bytes] of steps) {
          const chosen = flows[which];
          if (kind === "serve") servePacket(scheduler, 1_200 + bytes);
          if (kind === "park") {
            const next = scheduler.next();
            if (next) {
              scheduler.park(next);
              if (next.queued > 0) scheduler.activate(next);
            }
          }
          if (kind === "remove") {
            scheduler.remove(chosen);
            gone.add(chosen);
          }
          if (kind === "feed" && !gone.has(chosen)) {
            chosen.queued += bytes;
            scheduler.activate(chosen);
          }
        }
        for (let i = 0; i < 1_000 && scheduler.active > 0; i++) servePacket(scheduler, 10_000);
        assert.equal(scheduler.active, 0);
        for (const each of flows) if (!gone.has(each)) assert.equal(each.queued, 0);
      }),
    );
  });
});
