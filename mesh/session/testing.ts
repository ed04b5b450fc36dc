// A client and an agent session on a simulated network and virtual time, for tests: links with delay, jitter, rate,
// a bounded queue, loss, duplication, reordering; cut, replaced, gone silent. Everything random comes from the seed.

import { seededRandom } from "../wire/testing.ts";
import { DEFAULT_LIMITS, type SessionEvent } from "./events.ts";
import type { LaneOptions } from "./lane.ts";
import { Session, type SessionOptions } from "./session.ts";

export type Side = "client" | "agent";
export const other = (side: Side): Side => (side === "client" ? "agent" : "client");

export interface LinkOptions {
  delayMs?: number;
  jitterMs?: number;
  /** Probabilities, 0..1, per packet. */
  loss?: number;
  duplicate?: number;
  reorder?: number;
  /** 0: no limit. */
  bytesPerMs?: number;
  /** What the link's queue holds before it drops; only with a rate. */
  queueBytes?: number;
  maxPacketBytes?: number;
}

interface Link extends Required<LinkOptions> {
  lane: number;
  /** Swallows everything, and nobody is told. */
  isSilent: boolean;
  freeAt: Record<Side, number>;
  lastArrivalAt: Record<Side, number>;
}

interface Delivery {
  at: number;
  run: () => void;
}

export interface NetworkOptions {
  seed?: number;
  client?: Partial<SessionOptions>;
  agent?: Partial<SessionOptions>;
  /** What the agent's shell does with a grant; accept() unless given. */
  judge?: (agent: Session, now: number) => void;
}

export class SimulatedNetwork {
  now = 1_000;
  readonly random: () => number;
  readonly client: Session;
  readonly agent: Session;
  readonly events: Record<Side, SessionEvent[]> = { client: [], agent: [] };
  /** Called for each event, as a shell would act on it. */
  onEvent: (side: Side, event: SessionEvent) => void = () => {};
  /** Called for each packet sent; what it returns travels instead. */
  onPacket: (side: Side, packet: Uint8Array) => Uint8Array | undefined = (_side, packet) => packet;
  packets: Record<Side, number> = { client: 0, agent: 0 };
  dropped = 0;
  readonly #links = new Map<number, Link>();
  readonly #deliveries: Delivery[] = []; // sorted, next one last
  readonly #judge: (agent: Session, now: number) => void;
  #nextLane = 1;

  constructor({ seed = 1, client, agent, judge }: NetworkOptions = {}) {
    this.random = seededRandom(seed);
    this.#judge = judge ?? ((session) => session.accept());
    const sessionId = Uint8Array.from({ length: 16 }, () => this.random() * 256);
    this.client = new Session({ role: "client", sessionId, now: this.now, ...client });
    this.agent = new Session({ role: "agent", now: this.now, ...agent });
  }

  session(side: Side): Session {
    return side === "client" ? this.client : this.agent;
  }

  /** Adds a link and a lane over it at both ends. @returns the lane's number */
  addLink(options: LinkOptions = {}, lane: LaneOptions = {}): number {
    const id = this.#nextLane++;
    this.#links.set(id, {
      delayMs: 10,
      jitterMs: 0,
      loss: 0,
      duplicate: 0,
      reorder: 0,
      bytesPerMs: 0,
      queueBytes: 1 << 20,
      maxPacketBytes: DEFAULT_LIMITS.maxPacketBytes,
      ...options,
      lane: id,
      isSilent: false,
      freeAt: { client: 0, agent: 0 },
      lastArrivalAt: { client: 0, agent: 0 },
    });
    for (const session of [this.client, this.agent]) session.addLane(id, this.now, lane);
    return id;
  }

  /** The link breaks; both ends notice. What is under way on it is gone. */
  cut(lane: number): void {
    this.#links.delete(lane);
    for (const session of [this.client, this.agent]) session.removeLane(lane, this.now);
  }

  setSilent(lane: number, isSilent: boolean): void {
    const link = this.#links.get(lane);
    if (link) link.isSilent = isSilent;
  }

  /** Does something at a later time. */
  at(time: number, run: () => void): void {
    let index = this.#deliveries.length;
    while (index > 0 && this.#deliveries[index - 1].at <= time) index--;
    this.#deliveries.splice(index, 0, { at: time, run });
  }

  /**
   * Runs until `isDone`, or nothing is left to happen, or `untilAt`.
   *
   * @returns why it stopped
   */
  run(isDone: () => boolean = () => false, untilAt = Number.POSITIVE_INFINITY): "done" | "idle" | "late" {
    for (let turns = 0, lastAt = -1; ; turns++) {
      this.#settle();
      if (isDone()) return "done";
      const next = this.#nextAt();
      if (next === undefined) return "idle";
      if (next > untilAt) {
        this.now = untilAt;
        return "late";
      }
      if (next > lastAt) turns = 0;
      if (turns > 100_000) throw new Error(`time stands still at ${this.now}`);
      lastAt = Math.max(next, lastAt);
      this.now = Math.max(this.now, next);
      for (let due = this.#deliveries.at(-1); due && due.at <= this.now; due = this.#deliveries.at(-1)) {
        this.#deliveries.pop();
        due.run();
      }
      for (const session of [this.client, this.agent]) {
        if ((session.nextTimeout() ?? Number.POSITIVE_INFINITY) <= this.now && !session.isClosed)
          session.handleTimeout(this.now);
      }
    }
  }

  /** Sends what can be sent and tells what is to be told, until both sides are quiet. */
  #settle(): void {
    for (let isBusy = true; isBusy; ) {
      isBusy = false;
      for (const side of ["client", "agent"] as const) {
        const session = this.session(side);
        for (const link of this.#links.values()) {
          for (;;) {
            const packet = session.nextPacket(link.lane, link.maxPacketBytes, this.now);
            if (packet === undefined) break;
            isBusy = true;
            this.#send(link, side, packet);
          }
        }
        for (const event of session.takeEvents()) {
          isBusy = true;
          this.events[side].push(event);
          if (event.kind === "hello" && side === "agent") this.#judge(session, this.now);
          this.onEvent(side, event);
        }
      }
    }
  }

  #nextAt(): number | undefined {
    const times = [this.#deliveries.at(-1)?.at];
    for (const session of [this.client, this.agent]) if (!session.isClosed) times.push(session.nextTimeout());
    const known = times.filter((at) => at !== undefined);
    return known.length > 0 ? Math.min(...known) : undefined;
  }

  #send(link: Link, from: Side, packet: Uint8Array): void {
    this.packets[from]++;
    const padded = new Uint8Array(Math.ceil(packet.length / 16) * 16); // as WireGuard does
    padded.set(packet);
    const sent = this.onPacket(from, padded);
    if (sent === undefined || link.isSilent || this.random() < link.loss) {
      this.dropped++;
      return;
    }
    const copies = this.random() < link.duplicate ? 2 : 1;
    for (let i = 0; i < copies; i++) this.#carry(link, from, sent.slice());
  }

  #carry(link: Link, from: Side, packet: Uint8Array): void {
    let leavesAt = this.now;
    if (link.bytesPerMs > 0) {
      const queued = Math.max(link.freeAt[from] - this.now, 0) * link.bytesPerMs;
      if (queued > 0 && queued + packet.length > link.queueBytes) {
        this.dropped++;
        return;
      }
      leavesAt = Math.max(link.freeAt[from], this.now) + packet.length / link.bytesPerMs;
      link.freeAt[from] = leavesAt;
    }
    let arrivesAt = leavesAt + link.delayMs + this.random() * link.jitterMs;
    if (this.random() < link.reorder) arrivesAt += link.delayMs * this.random();
    else {
      arrivesAt = Math.max(arrivesAt, link.lastArrivalAt[from]); // lanes keep order
      link.lastArrivalAt[from] = arrivesAt;
    }
    this.at(arrivesAt, () => {
      if (this.#links.get(link.lane) !== link || link.isSilent) return;
      this.session(other(from)).receivePacket(packet, link.lane, this.now);
    });
  }
}

/** The events of one kind. */
export function eventsOf<K extends SessionEvent["kind"]>(
  events: SessionEvent[],
  kind: K,
): Extract<SessionEvent, { kind: K }>[] {
  return events.filter((event): event is Extract<SessionEvent, { kind: K }> => event.kind === kind);
}

/** Reads what is there. @returns how many bytes it was */
export function readAll(session: Session, stream: number): number {
  let bytes = 0;
  for (let part = session.read(stream); part; part = session.read(stream)) bytes += part.length;
  return bytes;
}

/** Lets `ms` of virtual time pass. */
export const settle = (net: SimulatedNetwork, ms = 2_000): void => void net.run(() => false, net.now + ms);

/** A network of one link on which everything went well so far, and one stream of the client. */
export function connected(options: NetworkOptions = {}): {
  net: SimulatedNetwork;
  stream: number;
  lane: number;
} {
  const net = new SimulatedNetwork(options);
  const lane = net.addLink();
  const stream = net.client.openStream("exec", new Uint8Array(), net.now);
  settle(net);
  if (eventsOf(net.events.agent, "open").length !== 1) throw new Error("the session did not start");
  return { net, stream, lane };
}
