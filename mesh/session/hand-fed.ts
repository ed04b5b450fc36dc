// For tests: an agent's session that is fed packets made by hand, as a hostile or broken client would send them.
import { decodePacket, encodePacket, type Frame, sessionTag } from "../wire/session.ts";
import type { SessionEvent } from "./events.ts";
import { Session } from "./session.ts";
import { eventsOf, type NetworkOptions } from "./testing.ts";

export const NONE = new Uint8Array();
export const ID = Uint8Array.from({ length: 16 }, (_, i) => i + 1);
export const TAG = sessionTag(ID);
export type Encodable = Exclude<Frame, { kind: "skipped" }>;
export const hello = (change: Partial<Extract<Frame, { kind: "hello" }>["hello"]> = {}): Encodable => ({
  kind: "hello",
  hello: {
    minVersion: 1,
    maxVersion: 1,
    resume: false,
    sessionId: ID,
    maxPacketBytes: 65_000,
    maxDataBytes: 1 << 20,
    maxStreamDataBytes: 1 << 18,
    maxStreams: 100,
    resumeWindowMs: 0,
    resumePosition: 0,
    grant: NONE,
    ...change,
  },
});

/** An agent that was sent these packets by hand, by a client of ours that has an opinion of its own. */
export class HandFed {
  readonly agent: Session;
  readonly events: SessionEvent[] = [];
  /** Numbers of the packets that `said` saw. */
  readonly sentNumbers: number[] = [];
  #number = 0;
  now = 0;

  constructor(limits: NetworkOptions["agent"] = {}) {
    this.agent = new Session({ role: "agent", now: 0, ...limits });
    this.agent.addLane(1, 0);
  }

  feed(...frames: Encodable[]): this {
    return this.feedBytes(encodePacket(TAG, this.#number++, frames));
  }

  feedBytes(packet: Uint8Array): this {
    this.agent.receivePacket(packet, 1, this.now);
    this.events.push(...this.agent.takeEvents());
    return this;
  }

  accept(): this {
    this.agent.accept();
    this.events.push(...this.agent.takeEvents());
    return this;
  }

  /** Everything it has to say now. */
  said(): Frame[] {
    const frames: Frame[] = [];
    for (
      let p = this.agent.nextPacket(1, 65_000, this.now);
      p;
      p = this.agent.nextPacket(1, 65_000, this.now)
    ) {
      const packet = decodePacket(p.slice());
      this.sentNumbers.push(packet.number);
      frames.push(...packet.frames);
    }
    return frames;
  }

  get closed(): Extract<SessionEvent, { kind: "closed" }> | undefined {
    return eventsOf(this.events, "closed")[0];
  }
}

export const admitted = (limits?: NetworkOptions["agent"]): HandFed =>
  new HandFed(limits).feed(hello()).accept();
