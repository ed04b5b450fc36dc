// What was sent, on which lane, and what became of it. A packet is lost when a later one on the same lane was
// acknowledged (lanes keep order; a small allowance covers a lane that does not quite), or when its lane is gone.
// Time alone never makes a packet lost: the probe timeout only asks again.
import type { Ack } from "../wire/session.ts";
import { PeerViolation } from "./errors.ts";
import type { Lane } from "./lane.ts";
import { RangeSet } from "./ranges.ts";
import type { Stream } from "./stream.ts";

/** What a packet carried that must arrive: how to mark it as acknowledged or send it again. */
export type SentFrame =
  | { kind: "stream"; stream: Stream; offset: number; length: number; fin: boolean }
  | { kind: "open" | "reset" | "stop" | "max-stream-data"; stream: Stream }
  | { kind: "hello" | "max-data" | "max-streams" }
  | { kind: "ack"; largest: number }
  | { kind: "ping"; id: number; sentAt: number }
  | { kind: "signal"; seq: number };

/** An ack-eliciting packet under way. */
export interface SentPacket {
  number: number;
  lane: Lane;
  /** Position among the packets of its lane. */
  seq: number;
  bytes: number;
  sentAt: number;
  frames: SentFrame[];
  state: "sent" | "acked" | "lost";
  // For the delivery rate (lane.ts): how it stood when this packet left.
  deliveredBytes: number;
  deliveredAt: number;
  firstSentAt: number;
  isAppLimited: boolean;
}

/** This many later packets acknowledged on the lane: lost at once. Fewer: after REORDER_RTTS round trips. */
export const REORDER_PACKETS = 3;
const REORDER_RTTS = 1 / 8;
const MIN_REORDER_MS = 2;
/** Beyond this we forget what was acknowledged; a repeated acknowledgement then finds no packet, and does nothing. */
const MAX_ACKED_RANGES = 1_024;

export interface RecoveryEvents {
  onFrameAcked(frame: SentFrame, packet: SentPacket, now: number): void;
  onFrameLost(frame: SentFrame): void;
}

export class Recovery {
  readonly #packets = new Map<number, SentPacket>();
  readonly #acked = new RangeSet();
  readonly #events: RecoveryEvents;
  packetsLost = 0;

  constructor(events: RecoveryEvents) {
    this.#events = events;
  }

  get packetsInFlight(): number {
    return this.#packets.size;
  }

  onSent(lane: Lane, number: number, bytes: number, frames: SentFrame[], now: number): void {
    const packet: SentPacket = {
      number,
      lane,
      seq: 0,
      bytes,
      sentAt: now,
      frames,
      state: "sent",
      deliveredBytes: 0,
      deliveredAt: 0,
      firstSentAt: 0,
      isAppLimited: false,
    };
    lane.onSent(packet, now);
    this.#packets.set(number, packet);
  }

  /**
   * Takes in an ACK that arrived on `arrival`.
   *
   * @param nextNumber the first packet number never used
   * @returns whether it acknowledged anything new
   * @throws {PeerViolation} it acknowledges what was never sent
   */
  onAck(
    ack: Ack,
    arrival: Lane | undefined,
    lanes: Iterable<Lane>,
    nextNumber: number,
    now: number,
  ): boolean {
    if (ack.ranges[0][1] >= nextNumber)
      throw new PeerViolation("protocolViolation", "acknowledged a packet never sent");
    let floor = nextNumber;
    for (const lane of lanes) floor = Math.min(floor, lane.outstanding.at(0)?.number ?? nextNumber);
    const newest = new Map<Lane, SentPacket>();
    for (const [first, last] of ack.ranges) {
      if (last < floor) break;
      this.#acked.add(Math.max(first, floor), last + 1, (start, end) => {
        for (let number = start; number < end; number++) {
          const packet = this.#packets.get(number);
          if (packet === undefined) continue;
          if (number === ack.echo && packet.lane === arrival)
            arrival.onRtt(now - packet.sentAt - ack.delayUs / 1_000, now);
          this.#onPacketAcked(packet, now);
          const best = newest.get(packet.lane);
          if (best === undefined || packet.seq > best.seq) newest.set(packet.lane, packet);
        }
      });
    }
    this.#acked.removeBelow(floor);
    while (this.#acked.count > MAX_ACKED_RANGES) this.#acked.dropLowest();
    for (const [lane, packet] of newest) {
      lane.onDelivered(packet, now);
      this.detectLost(lane, now);
    }
    return newest.size > 0;
  }

  /** Declares lost what later packets on the lane have overtaken. */
  detectLost(lane: Lane, now: number): void {
    const { outstanding } = lane;
    const isLate = now >= this.#overdueAt(lane);
    const lostBelow = isLate ? lane.largestAckedSeq : lane.largestAckedSeq - REORDER_PACKETS + 1;
    for (let packet = outstanding.at(0); packet; packet = outstanding.at(0)) {
      if (packet.state === "sent") {
        if (packet.seq >= lostBelow) break;
        this.#onPacketLost(packet);
      }
      outstanding.shift();
    }
  }

  /** When a packet that was overtaken by only a few becomes lost; undefined when none was. */
  lossTimeout(lane: Lane): number | undefined {
    const oldest = lane.outstanding.at(0);
    return oldest && oldest.seq < lane.largestAckedSeq ? this.#overdueAt(lane) : undefined;
  }

  /** The lane is dead, or suspected to be: everything on it goes out again, elsewhere. */
  abandon(lane: Lane): void {
    for (let packet = lane.outstanding.shift(); packet; packet = lane.outstanding.shift()) {
      if (packet.state === "sent") this.#onPacketLost(packet);
    }
  }

  /**
   * Sends the frames of the lane's oldest packet again, without giving the packet up; and of each stream in it the
   * first bytes the peer lacks: those it takes even when it can hold no more gaps.
   */
  repeatOldest(lane: Lane): void {
    for (const frame of lane.outstanding.at(0)?.frames ?? []) {
      this.#events.onFrameLost(frame);
      if (frame.kind === "stream") frame.stream.send.repeatHead(frame.length);
    }
  }

  clear(): void {
    this.#packets.clear();
    this.#acked.clear();
  }

  #overdueAt(lane: Lane): number {
    return lane.largestAckedAt + Math.max((lane.rttMs ?? 0) * REORDER_RTTS, MIN_REORDER_MS);
  }

  #onPacketAcked(packet: SentPacket, now: number): void {
    packet.state = "acked";
    this.#packets.delete(packet.number);
    packet.lane.onAcked(packet, now);
    for (const frame of packet.frames) this.#events.onFrameAcked(frame, packet, now);
    packet.frames = [];
  }

  #onPacketLost(packet: SentPacket): void {
    packet.state = "lost";
    this.packetsLost++;
    this.#packets.delete(packet.number);
    packet.lane.onLost(packet);
    for (const frame of packet.frames) this.#events.onFrameLost(frame);
    packet.frames = [];
  }
}
