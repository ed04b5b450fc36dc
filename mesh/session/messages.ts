// What travels beside the streams: signals (once, in order), datagrams, pings, probes.
import {
  MAX_PROBE_BYTES,
  MAX_SIGNAL_BYTES,
  MAX_SIGNALS_IN_FLIGHT,
  type PacketWriter,
} from "../wire/session.ts";
import { Deque } from "./deque.ts";
import { PeerViolation } from "./errors.ts";
import type { SentFrame } from "./recovery.ts";

/** Signals from one side to the other. */
export class SignalSender {
  readonly #unacked = new Map<number, { type: number; body: Uint8Array; isQueued: boolean }>();
  #nextSeq = 0;
  #queued = 0;

  get isEmpty(): boolean {
    return this.#unacked.size === 0;
  }

  get hasQueued(): boolean {
    return this.#queued > 0;
  }

  /** @returns false when too many are under way, or it is too large: nothing was queued */
  send(type: number, body: Uint8Array): boolean {
    const oldest = this.#unacked.keys().next().value ?? this.#nextSeq;
    if (this.#nextSeq - oldest >= MAX_SIGNALS_IN_FLIGHT || body.length > MAX_SIGNAL_BYTES) return false;
    this.#unacked.set(this.#nextSeq++, { type, body, isQueued: true });
    this.#queued++;
    return true;
  }

  fill(writer: PacketWriter, sent: SentFrame[]): void {
    if (this.#queued === 0) return;
    for (const [seq, signal] of this.#unacked) {
      if (!signal.isQueued) continue;
      if (!writer.tryFrame({ kind: "signal", type: signal.type, seq, body: signal.body })) return;
      signal.isQueued = false;
      this.#queued--;
      sent.push({ kind: "signal", seq });
    }
  }

  onAcked(seq: number): void {
    const signal = this.#unacked.get(seq);
    if (signal?.isQueued) this.#queued--;
    this.#unacked.delete(seq);
  }

  onLost(seq: number): void {
    const signal = this.#unacked.get(seq);
    if (signal === undefined || signal.isQueued) return;
    signal.isQueued = true;
    this.#queued++;
  }
}

/** Puts the peer's signals in order. */
export class SignalReceiver {
  readonly #early = new Map<number, { type: number; body: Uint8Array }>();
  #nextSeq = 0;

  /**
   * @returns those that are deliverable now, in order
   * @throws {PeerViolation} more than 32 ahead
   */
  receive(seq: number, type: number, body: Uint8Array): { type: number; body: Uint8Array }[] {
    if (seq < this.#nextSeq || this.#early.has(seq)) return [];
    if (seq >= this.#nextSeq + MAX_SIGNALS_IN_FLIGHT)
      throw new PeerViolation("resourceLimit", "too many signals at once");
    this.#early.set(seq, { type, body: body.slice() });
    const ready: { type: number; body: Uint8Array }[] = [];
    for (let next = this.#early.get(this.#nextSeq); next; next = this.#early.get(this.#nextSeq)) {
      this.#early.delete(this.#nextSeq++);
      ready.push(next);
    }
    return ready;
  }
}

/** Older than this, a datagram of a live conversation is worth less than the next one. */
export const DATAGRAM_VALID_MS = 100;
const MAX_QUEUED_DATAGRAMS = 256;
const MAX_QUEUED_DATAGRAM_BYTES = 256 << 10;
/** What may stand before a datagram in a packet: header, HELLO with a grant, ACK. */
const HEADROOM_BYTES = 9_000;
export const MAX_DATAGRAM_BYTES = 56_000;

export class DatagramQueue {
  readonly #queue = new Deque<{ stream: number; data: Uint8Array; expiresAt: number }>();
  #queuedBytes = 0;
  dropped = 0;

  get isEmpty(): boolean {
    return this.#queue.length === 0;
  }

  /** @returns false when it is too large, or displaced an older one */
  send(stream: number, data: Uint8Array, now: number): boolean {
    if (data.length > MAX_DATAGRAM_BYTES) {
      this.dropped++;
      return false;
    }
    this.#queue.push({ stream, data, expiresAt: now + DATAGRAM_VALID_MS });
    this.#queuedBytes += data.length;
    let isClean = true;
    while (this.#queue.length > MAX_QUEUED_DATAGRAMS || this.#queuedBytes > MAX_QUEUED_DATAGRAM_BYTES) {
      this.#drop();
      isClean = false;
    }
    return isClean;
  }

  /** Drops what waited too long. */
  expire(now: number): void {
    for (let oldest = this.#queue.at(0); oldest && oldest.expiresAt <= now; oldest = this.#queue.at(0))
      this.#drop();
  }

  fill(writer: PacketWriter): void {
    for (let next = this.#queue.at(0); next; next = this.#queue.at(0)) {
      const { stream, data } = next;
      if (writer.tryFrame({ kind: "datagram", stream, data })) {
        this.#queuedBytes -= data.length;
        this.#queue.shift();
      } else if (data.length + HEADROOM_BYTES > writer.limit)
        this.#drop(); // no packet of this lane holds it
      else return;
    }
  }

  clear(): void {
    this.#queue.clear();
    this.#queuedBytes = 0;
  }

  #drop(): void {
    this.#queuedBytes -= this.#queue.shift()?.data.length ?? 0;
    this.dropped++;
  }
}

const MAX_QUEUED_PROBES = 16;

/** Path challenges and responses, each bound to the lane it must travel on. */
export class ProbeQueue {
  readonly #byLane = new Map<number, { type: number; body: Uint8Array }[]>();

  has(lane: number): boolean {
    return this.#byLane.has(lane);
  }

  send(lane: number, type: number, body: Uint8Array): boolean {
    const queue = this.#byLane.get(lane) ?? [];
    if (queue.length >= MAX_QUEUED_PROBES || body.length > MAX_PROBE_BYTES) return false;
    queue.push({ type, body });
    this.#byLane.set(lane, queue);
    return true;
  }

  fill(lane: number, writer: PacketWriter): void {
    const queue = this.#byLane.get(lane);
    while (queue && queue.length > 0 && writer.tryFrame({ kind: "probe", ...queue[0] })) queue.shift();
    if (queue?.length === 0) this.#byLane.delete(lane);
  }

  removeLane(lane: number): void {
    this.#byLane.delete(lane);
  }
}

const MAX_PINGS = 16;

/** Pings of the application: each is answered once, resent when lost. */
export class Pings {
  #queue: { id: number; lane: number | undefined }[] = [];
  readonly #waiting = new Map<number, number | undefined>();
  #nextId = 1;

  hasFor(lane: number, isStandby: boolean): boolean {
    return this.#queue.some((ping) => ping.lane === lane || (ping.lane === undefined && !isStandby));
  }

  /** @returns its id; undefined when too many are unanswered */
  send(lane: number | undefined): number | undefined {
    if (this.#waiting.size >= MAX_PINGS) return undefined;
    const id = this.#nextId++;
    this.#waiting.set(id, lane);
    this.#queue.push({ id, lane });
    return id;
  }

  fill(lane: number, isStandby: boolean, writer: PacketWriter, sent: SentFrame[], now: number): void {
    this.#queue = this.#queue.filter((ping) => {
      const isHere = ping.lane === lane || (ping.lane === undefined && !isStandby);
      if (!isHere || !writer.tryFrame({ kind: "ping" })) return true;
      sent.push({ kind: "ping", id: ping.id, sentAt: now });
      return false;
    });
  }

  /** @returns whether this is the first answer */
  onAcked(id: number): boolean {
    this.#queue = this.#queue.filter((ping) => ping.id !== id);
    return this.#waiting.delete(id);
  }

  onLost(id: number): void {
    if (!this.#waiting.has(id) || this.#queue.some((ping) => ping.id === id)) return;
    this.#queue.push({ id, lane: this.#waiting.get(id) });
  }

  /** Pings about a lane that is gone get no answer. */
  removeLane(lane: number): void {
    for (const [id, pinged] of this.#waiting) if (pinged === lane) this.#waiting.delete(id);
    this.#queue = this.#queue.filter((ping) => ping.lane !== lane);
  }
}
