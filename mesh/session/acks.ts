import { type Ack, MAX_ACK_RANGES } from "../wire/session.ts";
import { RangeSet } from "./ranges.ts";

/** A lone packet is acknowledged after this, so that an answer may carry the ACK. */
export const MAX_ACK_DELAY_MS = 5;
const ACK_EVERY = 2;
/**
 * A large packet is of a sender that has much more under way (lane.ts sizes both by the rate): an ACK for every second
 * one would cost all three processes more than it tells. So these wait for a fourth, or until the last ACK is this old.
 */
const LARGE_BYTES = 32_768;
const ACK_EVERY_LARGE = 4;
const ACK_GAP_MS = 1;

interface Pending {
  packets: number;
  dueAt: number;
  /** The time came (or it never had any): it goes with the next packet, no timer is needed. */
  isDue: boolean;
  echo: number;
  echoAt: number;
}

/** Receiver's side of ACK: which packet numbers came, and which lane owes an acknowledgement. */
export class AckTracker {
  readonly #received = new RangeSet();
  /** Numbers below this count as received: they were, or we no longer know. */
  #floor = 0;
  /** Ranges below this are known to the peer (it acknowledged an ACK that had them) and not repeated. */
  #reportFrom = 0;
  readonly #pending = new Map<number, Pending>();
  /** When the last ACK left, by lane. */
  readonly #sentAt = new Map<number, number>();

  /** Highest packet number received + 1. */
  get nextExpected(): number {
    return this.#received.count === 0 ? this.#floor : this.#received.end(this.#received.count - 1);
  }

  get rangeCount(): number {
    return this.#received.count;
  }

  isDuplicate(number: number): boolean {
    return number < this.#floor || this.#received.contains(number);
  }

  /**
   * Notes a packet, also a duplicate (its ACK may have been lost).
   *
   * @param lane where its ACK must travel; undefined: it wants none
   * @param isUrgent ask no delay: a PING, a gap
   * @param bytes of the packet
   */
  onPacket(number: number, lane: number | undefined, isUrgent: boolean, now: number, bytes = 0): void {
    const gapBefore = number > this.nextExpected;
    if (number >= this.#floor) {
      this.#received.add(number, number + 1);
      if (this.#received.count > MAX_ACK_RANGES) {
        this.#floor = this.#received.end(0);
        this.#received.dropLowest();
      }
    }
    this.#reportFrom = Math.min(this.#reportFrom, number);
    if (lane === undefined) return;
    const pending: Pending = this.#pending.get(lane) ?? {
      packets: 0,
      dueAt: now + MAX_ACK_DELAY_MS,
      isDue: false,
      echo: 0,
      echoAt: 0,
    };
    pending.packets++;
    pending.echo = number;
    pending.echoAt = now;
    if (isUrgent || gapBefore || pending.packets >= ACK_EVERY_LARGE) pending.isDue = true;
    else if (pending.packets >= ACK_EVERY) {
      const gapEndsAt = (this.#sentAt.get(lane) ?? Number.NEGATIVE_INFINITY) + ACK_GAP_MS;
      if (bytes < LARGE_BYTES || now >= gapEndsAt) pending.isDue = true;
      else pending.dueAt = Math.min(pending.dueAt, gapEndsAt);
    }
    this.#pending.set(lane, pending);
  }

  isDue(lane: number, now: number): boolean {
    const pending = this.#pending.get(lane);
    return pending !== undefined && (pending.isDue || pending.dueAt <= now);
  }

  /** The ACK a packet on `lane` should carry, if the lane owes one, due or not. Followed by onSent() when it does. */
  peek(lane: number, now: number): Ack | undefined {
    const pending = this.#pending.get(lane);
    if (pending === undefined) return undefined;
    const ranges: Ack["ranges"] = [];
    for (let i = this.#received.count - 1; i >= 0; i--) {
      if (this.#received.end(i) <= this.#reportFrom) break;
      ranges.push([this.#received.start(i), this.#received.end(i) - 1]);
    }
    const lowest = ranges.at(-1);
    if (lowest === undefined) {
      this.#pending.delete(lane); // only numbers we no longer keep: the peer sends their frames again
      return undefined;
    }
    const echo = Math.max(pending.echo, lowest[0]);
    return { kind: "ack", echo, delayUs: Math.max(Math.round((now - pending.echoAt) * 1_000), 0), ranges };
  }

  onSent(lane: number, now: number): void {
    this.#pending.delete(lane);
    this.#sentAt.set(lane, now);
  }

  handleTimeout(now: number): void {
    for (const pending of this.#pending.values()) if (pending.dueAt <= now) pending.isDue = true;
  }

  /** The peer has our ACK that reached up to `largest`. */
  onAckAcked(largest: number): void {
    this.#reportFrom = Math.max(this.#reportFrom, largest + 1);
  }

  /** Moves what a dead lane owes to another. */
  moveLane(from: number, to: number | undefined): void {
    const pending = this.#pending.get(from);
    this.#pending.delete(from);
    this.#sentAt.delete(from);
    if (pending && to !== undefined && !this.#pending.has(to))
      this.#pending.set(to, { ...pending, isDue: true });
  }

  /** When an acknowledgement becomes due on some lane; those due already wait for the lane, not for time. */
  nextTimeout(): number | undefined {
    let earliest: number | undefined;
    for (const { dueAt, isDue } of this.#pending.values())
      if (!isDue) earliest = Math.min(earliest ?? dueAt, dueAt);
    return earliest;
  }

  clear(): void {
    this.#pending.clear();
    this.#sentAt.clear();
    this.#received.clear();
  }
}
