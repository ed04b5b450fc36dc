// Whole sessions over bad networks: every byte arrives once and in order, and nothing is left behind.
import assert from "node:assert/strict";
import fc from "fast-check";
import { seededRandom } from "../wire/testing.ts";
import type { SessionEvent } from "./events.ts";
import { type LinkOptions, type Side, SimulatedNetwork } from "./testing.ts";

const pattern = Uint8Array.from({ length: 65_521 }, seededByte(99));

function seededByte(seed: number): () => number {
  const random = seededRandom(seed);
  return () => random() * 256;
}

/** What direction `key` of a stream carries at `offset`. */
function bytesAt(key: number, offset: number, length: number): Uint8Array {
  const out = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const from = (offset + done + key * 977) % pattern.length;
    const part = pattern.subarray(from, from + length - done);
    out.set(part, done);
    done += part.length;
  }
  return out;
}

const keyOf = (stream: number, sender: Side): number => 2 * stream + (sender === "client" ? 0 : 1);

interface Plan {
  /** Bytes each side sends on its stream; the answer is as long as the question. */
  sizes: number[];
  writeBytes: number;
  readBytes: number;
}

/** An application at each end: opens streams, writes, reads, compares, ends. */
class Transfer {
  readonly net: SimulatedNetwork;
  readonly plan: Plan;
  readonly written = new Map<string, number>();
  readonly read = new Map<string, number>();
  readonly sizes = new Map<number, number>();
  finished = 0;
  closedStreams = 0;
  maxBuffered = 0;

  constructor(net: SimulatedNetwork, plan: Plan) {
    this.net = net;
    this.plan = plan;
    net.onEvent = (side, event) => this.#onEvent(side, event);
  }

  open(side: Side): void {
    for (const size of this.plan.sizes) {
      const metadata = new TextEncoder().encode(String(size));
      const stream = this.net.session(side).openStream("echo", metadata, this.net.now);
      this.sizes.set(stream, size);
      this.#write(side, stream);
    }
  }

  #onEvent(side: Side, event: SessionEvent): void {
    const buffered = this.net.client.stats.bufferedBytes + this.net.agent.stats.bufferedBytes;
    this.maxBuffered = Math.max(this.maxBuffered, buffered);
    if (event.kind === "closed") assert.fail(`${side} closed: ${event.reason}`);
    if (event.kind === "open") {
      this.sizes.set(event.stream, Number(new TextDecoder().decode(event.metadata)));
      this.#write(side, event.stream);
    }
    if (event.kind === "writable") this.#write(side, event.stream);
    if (event.kind === "readable") this.#read(side, event.stream);
    if (event.kind === "stream-closed") this.closedStreams++;
    if (event.kind === "fin") {
      this.finished++;
      assert.equal(this.read.get(`${side} ${event.stream}`) ?? 0, this.sizes.get(event.stream));
    }
  }

  #write(side: Side, stream: number): void {
    const session = this.net.session(side);
    const key = `${side} ${stream}`;
    const size = this.sizes.get(stream)!;
    let done = this.written.get(key) ?? 0;
    while (done < size) {
      const bytes = bytesAt(keyOf(stream, side), done, Math.min(this.plan.writeBytes, size - done));
      const taken = session.write(stream, bytes);
      done += taken;
      if (taken < bytes.length) break;
    }
    this.written.set(key, done);
    if (done === size) session.end(stream);
  }

  #read(side: Side, stream: number): void {
    const session = this.net.session(side);
    const key = `${side} ${stream}`;
    const sender = side === "client" ? "agent" : "client";
    for (
      let bytes = session.read(stream, this.plan.readBytes);
      bytes;
      bytes = session.read(stream, this.plan.readBytes)
    ) {
      const offset = this.read.get(key) ?? 0;
      const expected = bytesAt(keyOf(stream, sender), offset, bytes.length);
      assert.ok(Buffer.compare(bytes, expected) === 0, `${key}: wrong bytes at ${offset}`);
      this.read.set(key, offset + bytes.length);
    }
  }
}

const anyLink: fc.Arbitrary<LinkOptions> = fc.record({
  delayMs: fc.constantFrom(0, 1, 10, 50, 200),
  jitterMs: fc.constantFrom(0, 0, 3, 30),
  loss: fc.constantFrom(0, 0, 0.01, 0.1, 0.3),
  duplicate: fc.constantFrom(0, 0, 0.05),
  reorder: fc.constantFrom(0, 0, 0.05, 0.3),
  bytesPerMs: fc.constantFrom(0, 125, 1_250, 12_500),
  queueBytes: fc.constantFrom(20_000, 200_000, 1 << 20),
});
const anyPlan: fc.Arbitrary<Plan> = fc.record({
  sizes: fc.array(fc.oneof(fc.nat(200), fc.nat(20_000), fc.nat(300_000)), { minLength: 1, maxLength: 6 }),
  writeBytes: fc.constantFrom(37, 1_000, 20_000, 100_000),
  readBytes: fc.constantFrom(50, 5_000, Number.MAX_SAFE_INTEGER),
});
type Trouble = { at: number; kind: "cut" | "silent" | "suspect" | "partition" };
const anyTrouble: fc.Arbitrary<Trouble[]> = fc.array(
  fc.record({ at: fc.nat(8_000), kind: fc.constantFrom("cut", "silent", "suspect", "partition") }),
  { maxLength: 5 },
);

const HOUR_MS = 3_600_000;

function makeTrouble(net: SimulatedNetwork, trouble: Trouble, link: LinkOptions, lanes: number[]): void {
  net.at(net.now + trouble.at, () => {
    const lane = lanes[Math.floor(net.random() * lanes.length)];
    const renew = (): void => {
      net.cut(lane);
      lanes.splice(lanes.indexOf(lane), 1, net.addLink(link));
    };
    if (trouble.kind === "cut") renew();
    if (trouble.kind === "suspect") for (const side of [net.client, net.agent]) side.suspectLane(lane);
    if (trouble.kind === "silent") {
      net.setSilent(lane, true);
      net.at(net.now + 1_000, () => {
        if (lanes.includes(lane)) renew();
      });
    }
    if (trouble.kind === "partition") {
      // No path at all for hours, then a new one.
      for (const dead of lanes.splice(0)) net.cut(dead);
      net.at(net.now + 5 * HOUR_MS, () => lanes.push(net.addLink(link)));
    }
  });
}

describe("sessions over bad networks", () => {
  it("bring every byte once and in order, both ways, and leave nothing behind", () => {
    fc.assert(
      fc.property(
        fc.integer(),
        anyLink,
        anyPlan,
        anyTrouble,
        fc.boolean(),
        (seed, link, plan, troubles, two) => {
          const net = new SimulatedNetwork({ seed, client: { grant: new Uint8Array(700).fill(3) } });
          const transfer = new Transfer(net, plan);
          const lanes = [net.addLink(link)];
          if (two) lanes.push(net.addLink({ ...link, delayMs: 5 }));
          for (const trouble of troubles) makeTrouble(net, trouble, link, lanes);
          transfer.open("client");
          let opened = false;
          const run = net.onEvent;
          net.onEvent = (side, event) => {
            if (side === "agent" && event.kind === "ready" && !opened) {
              opened = true;
              transfer.open("agent");
            }
            run(side, event);
          };
          const streams = 2 * plan.sizes.length;
          const end = net.run(() => transfer.closedStreams === 2 * streams, net.now + 60 * HOUR_MS);
          assert.equal(end, "done", `stopped ${end}: ${transfer.finished} of ${2 * streams} directions`);
          for (const session of [net.client, net.agent]) {
            assert.equal(session.stats.streams, 0);
            assert.equal(session.stats.bufferedBytes, 0);
            assert.equal(session.stats.reorderRanges, 0);
            assert.equal(session.hasUndelivered, false);
          }
        },
      ),
      { numRuns: 60 },
    );
  });
});
