// A lane is one path, or one stream on a path: reliable and ordered while it lives, except that a relay may drop.
// This file says how much may be in flight on it ("short queues"), how large a packet should be, and what its
// round trip is. Nothing here resends or declares loss: that is recovery.ts.
import { MAX_PACKET_BYTES } from "../wire/session.ts";
import { Deque } from "./deque.ts";
import type { SentPacket } from "./recovery.ts";

/** A queue this long on top of the base round trip: enough to find more bandwidth, too short to feel. */
export const QUEUE_MS = 10;
/**
 * The same where the round trip is next to nothing: what has to be covered there is a pause of an event loop. Half a
 * round trip is added, so that from 10 ms on it is QUEUE_MS.
 */
const NEAR_QUEUE_MS = 5;
/** A packet takes this long on the wire at the measured rate: a keystroke behind it waits no longer. */
export const PACKET_MS = 3;
const MIN_PACKET_BYTES = 1_200;
const START_PACKET_BYTES = 4_096;
const START_IN_FLIGHT_BYTES = 32_768;
export const MAX_IN_FLIGHT_BYTES = 16 << 20;
export const MAX_PACKETS_IN_FLIGHT = 8_192;
/** A lost packet means that this share of what was in flight is enough; without loss it grows again, by round. */
const LOSS_FACTOR = 0.85;
const CAP_GROWTH = 1.01;
/** While there is hardly a queue: the loss was a stray one, or the crowd is gone. */
const FAST_CAP_GROWTH = 1.05;
/** Rounds the highest rate is remembered, as BBR does. */
const RATE_ROUNDS = 10;
const MIN_RTT_VALID_MS = 10_000;
/** Kernel TCP resends after >= 200 ms, udx after >= 1 s: a shorter timer would only double what they resend. */
const MIN_PTO_MS = 300;
const FIRST_PTO_MS = 1_000;
const MAX_PTO_MS = 10_000;
export const DEFAULT_RTT_MS = 100;

export interface LaneOptions {
  /** Carries ACKs and probes only, until made the one in use. */
  standby?: boolean;
  /** The path below resends after loss (udx on a lossy line): up to 3 x BDP, so that a stall does not drain it. */
  lossy?: boolean;
}

export interface LaneStats {
  lane: number;
  standby: boolean;
  /** Smoothed; undefined before the first sample. */
  rttMs: number | undefined;
  minRttMs: number | undefined;
  /** Measured delivery rate, bytes a second; 0 before the first sample. */
  rateBytesPerSecond: number;
  inFlightBytes: number;
  maxInFlightBytes: number;
  packetBytes: number;
  /** When the oldest unacknowledged packet was sent: how long the path has been quiet. */
  oldestUnackedAt: number | undefined;
  lastReceivedAt: number | undefined;
  packetsLost: number;
}

export class Lane {
  readonly id: number;
  standby: boolean;
  lossy: boolean;
  /** Ack-eliciting packets in the order sent; acknowledged ones are dropped once they reach the front. */
  readonly outstanding = new Deque<SentPacket>();
  inFlightBytes = 0;
  nextSeq = 0;
  largestAckedSeq = -1;
  largestAckedAt = 0;
  /** A probe (PING and the oldest packet's frames) is to go out, whatever is in flight. */
  probeDue = false;
  /** A PING is to go out, so that the lane does not fall silent. */
  keepaliveDue = false;
  packetsLost = 0;
  lastReceivedAt: number | undefined;
  lastSentAt: number;
  #ptoCount = 0;
  #smoothedRttMs: number | undefined;
  #rttVarMs = 0;
  #minRttMs: number | undefined;
  #minRttAt = 0;
  /** The next sample replaces the minimum, whatever it is. */
  #isMinRttOld = false;

  #deliveredBytes = 0;
  #deliveredAt: number;
  #firstSentAt: number;
  /** While fewer bytes than this are delivered, samples say what we sent, not what the lane can do. */
  #appLimitedUntil = 0;
  #roundEndsAtDelivered = 0;
  #roundRates: number[] = [0]; // bytes per ms, highest per round, newest last
  /** The highest of them: what the lane can do. */
  #rate = 0;
  /** Their mean: how fast a queue drains, which the best moment says nothing about. */
  #meanRate = 0;
  #phase: "start" | "steady" | "drain" = "start";
  #startBytes = START_IN_FLIGHT_BYTES;
  #fullRate = 0;
  #roundsWithoutGrowth = 0;
  #drainEndsAt = 0;
  #drainBytes = 0;
  /** In flight at most, after loss; grows back slowly. */
  #capBytes = MAX_IN_FLIGHT_BYTES;
  #hadLossInRound = false;

  constructor(id: number, now: number, { standby = false, lossy = false }: LaneOptions = {}) {
    this.id = id;
    this.standby = standby;
    this.lossy = lossy;
    this.#deliveredAt = now;
    this.#firstSentAt = now;
    this.lastSentAt = now;
  }

  get rttMs(): number | undefined {
    return this.#smoothedRttMs;
  }

  /** Bytes that may be in flight now. */
  get maxInFlightBytes(): number {
    if (this.#phase === "start") return Math.min(this.#startBytes, MAX_IN_FLIGHT_BYTES);
    if (this.#phase === "drain") return this.#drainBytes;
    const minRttMs = this.#minRttMs ?? DEFAULT_RTT_MS;
    const queueMs = Math.min(NEAR_QUEUE_MS + minRttMs / 2, QUEUE_MS);
    let bytes = this.#rate * minRttMs + (this.#meanRate || this.#rate) * queueMs;
    if (this.lossy) bytes = Math.max(bytes, this.#rate * minRttMs * 3);
    else bytes = Math.min(bytes, this.#capBytes);
    return Math.min(Math.max(bytes, 2 * this.packetBytes, 4 * MIN_PACKET_BYTES), MAX_IN_FLIGHT_BYTES);
  }

  /** What a packet of bulk data should carry at most; frames that cannot be split may exceed it. */
  get packetBytes(): number {
    const floor = this.#phase === "start" ? START_PACKET_BYTES : MIN_PACKET_BYTES;
    return Math.min(Math.max(Math.floor(this.#rate * PACKET_MS), floor), MAX_PACKET_BYTES);
  }

  get hasRoom(): boolean {
    return this.inFlightBytes < this.maxInFlightBytes && this.outstanding.length < MAX_PACKETS_IN_FLIGHT;
  }

  /** Fills in what the rate measurement needs; the packet is ack-eliciting. */
  onSent(packet: SentPacket, now: number): void {
    if (this.inFlightBytes === 0) {
      this.#firstSentAt = now;
      this.#deliveredAt = now;
    }
    packet.seq = this.nextSeq++;
    packet.deliveredBytes = this.#deliveredBytes;
    packet.deliveredAt = this.#deliveredAt;
    packet.firstSentAt = this.#firstSentAt;
    packet.isAppLimited = this.#appLimitedUntil > this.#deliveredBytes;
    this.inFlightBytes += packet.bytes;
    this.outstanding.push(packet);
    this.lastSentAt = now;
  }

  /** There was room, but nothing to send. */
  onAppLimited(): void {
    this.#appLimitedUntil = this.#deliveredBytes + this.inFlightBytes + 1;
  }

  /** A packet left the flight. */
  onAcked(packet: SentPacket, now: number): void {
    this.inFlightBytes -= packet.bytes;
    this.#deliveredBytes += packet.bytes;
    this.#deliveredAt = now;
    this.#firstSentAt = packet.sentAt;
    this.#ptoCount = 0;
    this.probeDue = false;
    if (packet.seq > this.largestAckedSeq) {
      this.largestAckedSeq = packet.seq;
      this.largestAckedAt = now;
    }
    if (this.#phase === "start" && !packet.isAppLimited) this.#startBytes += packet.bytes;
  }

  /** Once per ACK, after onAcked for each packet: `newest` is the last sent of them. */
  onDelivered(newest: SentPacket, now: number): void {
    const intervalMs = Math.max(newest.sentAt - newest.firstSentAt, now - newest.deliveredAt);
    const rate = intervalMs > 0 ? (this.#deliveredBytes - newest.deliveredBytes) / intervalMs : 0;
    if (newest.deliveredBytes >= this.#roundEndsAtDelivered) {
      this.#roundEndsAtDelivered = this.#deliveredBytes;
      this.#endRound(newest.isAppLimited);
    }
    const last = this.#roundRates.length - 1;
    if (!newest.isAppLimited || rate > this.#rate) {
      this.#roundRates[last] = Math.max(this.#roundRates[last], rate);
      this.#rate = Math.max(this.#rate, rate);
    }
    if (this.#phase === "drain" && now >= this.#drainEndsAt) this.#phase = "steady";
    else if (this.#phase === "steady" && now - this.#minRttAt > MIN_RTT_VALID_MS) this.#measureAnew(now);
  }

  onRtt(sampleMs: number, now: number): void {
    const value = Math.max(sampleMs, 0);
    const smoothed = this.#smoothedRttMs;
    if (smoothed === undefined) {
      this.#smoothedRttMs = value;
      this.#rttVarMs = value / 2;
    } else {
      this.#rttVarMs = 0.75 * this.#rttVarMs + 0.25 * Math.abs(smoothed - value);
      this.#smoothedRttMs = 0.875 * smoothed + 0.125 * value;
    }
    if (this.#minRttMs === undefined || this.#isMinRttOld || value <= this.#minRttMs) {
      this.#minRttMs = value;
      this.#isMinRttOld = false;
      this.#minRttAt = now;
    }
    // The queue is longer than it may get: more would not be faster.
    const bound = this.#minRttMs + Math.max(QUEUE_MS, this.#minRttMs / 4);
    if (this.#phase === "start" && this.#rate > 0 && value > bound) this.#phase = "steady";
  }

  onLost(packet: SentPacket): void {
    this.inFlightBytes -= packet.bytes;
    this.packetsLost++;
    if (this.#phase === "start" && this.#rate > 0) this.#phase = "steady";
    if (this.lossy || this.#hadLossInRound) return;
    // Only a relay drops, and only when its queue is full: keep less in flight, but no less than the line itself
    // holds, so that a stray loss costs no rate.
    this.#hadLossInRound = true;
    const held = Math.min(this.inFlightBytes + packet.bytes, this.#capBytes);
    this.#capBytes = Math.max(held * LOSS_FACTOR, this.#rate * (this.#minRttMs ?? DEFAULT_RTT_MS));
  }

  /** When the oldest packet is overdue; undefined with nothing in flight. */
  get ptoAt(): number | undefined {
    const { length } = this.outstanding;
    if (length === 0 || length >= MAX_PACKETS_IN_FLIGHT || this.probeDue) return undefined;
    const { lastSentAt } = this;
    return lastSentAt + Math.min(this.ptoMs * 2 ** this.#ptoCount, MAX_PTO_MS);
  }

  get ptoMs(): number {
    if (this.#smoothedRttMs === undefined) return FIRST_PTO_MS;
    return Math.max(2 * this.#smoothedRttMs + 4 * this.#rttVarMs, MIN_PTO_MS);
  }

  onPto(): void {
    this.#ptoCount = Math.min(this.#ptoCount + 1, 16);
    this.probeDue = true;
  }

  stats(): LaneStats {
    return {
      lane: this.id,
      standby: this.standby,
      rttMs: this.#smoothedRttMs,
      minRttMs: this.#minRttMs,
      rateBytesPerSecond: this.#rate * 1_000,
      inFlightBytes: this.inFlightBytes,
      maxInFlightBytes: this.maxInFlightBytes,
      packetBytes: this.packetBytes,
      oldestUnackedAt: this.outstanding.at(0)?.sentAt,
      lastReceivedAt: this.lastReceivedAt,
      packetsLost: this.packetsLost,
    };
  }

  #endRound(isAppLimited: boolean): void {
    if (!this.#hadLossInRound) this.#growCap();
    this.#hadLossInRound = false;
    if (isAppLimited) return; // what the lane can do is not forgotten while nobody asks for it
    if (this.#phase === "start" && this.#rate > 0) {
      if (this.#rate >= this.#fullRate * 1.25) {
        this.#fullRate = this.#rate;
        this.#roundsWithoutGrowth = 0;
      } else if (++this.#roundsWithoutGrowth >= 3) this.#phase = "steady";
    }
    let sum = 0;
    for (const rate of this.#roundRates) sum += rate;
    this.#meanRate = sum / this.#roundRates.length;
    this.#roundRates.push(0);
    if (this.#roundRates.length > RATE_ROUNDS) {
      this.#roundRates.shift();
      this.#rate = Math.max(...this.#roundRates);
    }
  }

  #growCap(): void {
    const halfQueue = this.#rate * ((this.#minRttMs ?? DEFAULT_RTT_MS) + QUEUE_MS / 2);
    const growth = this.#capBytes < halfQueue ? FAST_CAP_GROWTH : CAP_GROWTH;
    this.#capBytes = Math.min(this.#capBytes * growth, MAX_IN_FLIGHT_BYTES);
  }

  /** Our own short queue hides in every sample: let it drain for a moment to see the base round trip again. */
  #measureAnew(now: number): void {
    const minRttMs = this.#minRttMs ?? DEFAULT_RTT_MS;
    this.#phase = "drain";
    this.#drainBytes = Math.min(Math.max((this.#rate * minRttMs) / 2, 1), MAX_IN_FLIGHT_BYTES);
    // What is under way has to arrive first; what is sent then comes back after the base round trip.
    this.#drainEndsAt = now + Math.max((this.#smoothedRttMs ?? 0) + minRttMs, QUEUE_MS);
    this.#isMinRttOld = true;
    this.#minRttAt = now;
  }
}
