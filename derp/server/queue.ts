// What waits for one slow receiver: bounded in bytes and in time, fair between senders, oldest dropped first.
import type { Lost } from "./metrics.ts";

export interface QueueLimits {
  /** Never more than this waits. */
  maxBytes: number;
  /** A sender's packets older than this give way to its newer ones, as long as more than `keepBytes` wait. */
  maxAgeMs: number;
  /** Waits however old it is: bursts and single large packets pass a short stall. */
  keepBytes: number;
}

/** Sent per sender and round; one packet of full size, so that no sender waits for more than one of each other. */
const QUANTUM_BYTES = 65_573;

/** Whole packets of one sender that lay beside each other. */
export interface Item {
  bytes: Uint8Array;
  frames: number;
  /** How many of the frames are path discovery. */
  disco: number;
  /** Since when it waits. */
  at: number;
}

/** First in, first out, without moving what is left. */
class Fifo<T> {
  #items: (T | undefined)[] = [];
  #head = 0;

  get size(): number {
    return this.#items.length - this.#head;
  }

  first(): T | undefined {
    return this.#items[this.#head];
  }

  push(item: T): void {
    this.#items.push(item);
  }

  shift(): T | undefined {
    const item = this.#items[this.#head];
    if (item === undefined) return undefined;
    this.#items[this.#head++] = undefined;
    if (this.#head > 32 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }
}

interface Flow<S> {
  source: S;
  items: Fifo<Item>;
  bytes: number;
  deficit: number;
}

/** Deficit round robin over senders `S`. Order is kept within a sender. `now`: ms. */
export class FairQueue<S> {
  #limits: QueueLimits;
  #flows = new Map<S, Flow<S>>();
  #round = new Fifo<Flow<S>>();
  #bytes = 0;
  #frames = 0;
  #onDrop: (lost: Lost) => void;

  /** `onDrop` hears of what the bounds made us drop; its `bytes` are those of whole frames. */
  constructor(limits: QueueLimits, onDrop: (lost: Lost) => void = () => {}) {
    this.#limits = limits;
    this.#onDrop = onDrop;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get frames(): number {
    return this.#frames;
  }

  /** Adds `bytes`, which hold `frames` whole frames, and drops what the bounds then ask for. */
  push(source: S, bytes: Uint8Array, frames: number, now: number, disco = 0): void {
    let flow = this.#flows.get(source);
    if (!flow) {
      flow = { source, items: new Fifo(), bytes: 0, deficit: 0 };
      this.#flows.set(source, flow);
      this.#round.push(flow);
    }
    // A small frame may lie in a large read buffer, all of which it would keep alive uncounted.
    const counted = bytes.length * 2 < bytes.buffer.byteLength ? bytes.slice() : bytes;
    flow.items.push({ bytes: counted, frames, disco, at: now });
    flow.bytes += counted.length;
    this.#bytes += counted.length;
    this.#frames += frames;

    const { maxBytes, maxAgeMs, keepBytes } = this.#limits;
    while (this.#bytes > keepBytes && flow.items.size > 1 && now - flow.items.first()!.at > maxAgeMs)
      this.#drop(flow);
    while (this.#bytes > maxBytes) this.#drop(this.#fattest());
  }

  /** The next to send; a sender's in the order it sent them. */
  shift(): Item | undefined {
    for (let flow = this.#round.first(); flow; flow = this.#round.first()) {
      const item = flow.items.first();
      if (!item) {
        this.#round.shift();
        this.#flows.delete(flow.source);
        continue;
      }
      if (flow.deficit >= item.bytes.length) {
        flow.deficit -= item.bytes.length;
        return this.#take(flow);
      }
      flow.deficit += QUANTUM_BYTES;
      this.#round.shift();
      this.#round.push(flow);
    }
    return undefined;
  }

  #fattest(): Flow<S> {
    let fattest = this.#round.first()!;
    for (const flow of this.#flows.values()) if (flow.bytes > fattest.bytes) fattest = flow;
    return fattest;
  }

  /** Forgets everything. */
  clear(onLost: (lost: Lost) => void): void {
    for (const flow of this.#flows.values()) while (flow.items.size > 0) onLost(lostBy(this.#take(flow)));
    this.#flows.clear();
    this.#round = new Fifo();
  }

  #drop(flow: Flow<S>): void {
    this.#onDrop(lostBy(this.#take(flow)));
  }

  #take(flow: Flow<S>): Item {
    const item = flow.items.shift()!;
    flow.bytes -= item.bytes.length;
    this.#bytes -= item.bytes.length;
    this.#frames -= item.frames;
    return item;
  }
}

function lostBy({ bytes, frames, disco }: Item): Lost {
  return { frames, disco, bytes: bytes.length };
}
