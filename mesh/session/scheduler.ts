// Deficit round robin over two lists, as FQ-CoDel (RFC 8290 section 4.2). A stream that just became busy is served
// before those that have been busy all along, for one quantum; then it queues with them. So a keystroke, or the
// first bytes of anything, never waits behind a copy; while a flood of small writes, which is never idle, gets
// no more than its share. One that runs dry passes through the old list once before it counts as new again.
import { Deque } from "./deque.ts";

/** What the scheduler keeps with each entry; nobody else writes it. */
export interface Schedulable {
  scheduled: "no" | "new" | "old";
  deficitBytes: number;
}

export const MIN_QUANTUM_BYTES = 1_200;
export const MAX_QUANTUM_BYTES = 16_384;

export class Scheduler<T extends Schedulable> {
  readonly #fresh = new Deque<T>();
  readonly #old = new Deque<T>();
  #quantumBytes = MIN_QUANTUM_BYTES;
  #active = 0;

  /** Entries that are queued; some may have run dry meanwhile. */
  get active(): number {
    return this.#active;
  }

  /** Half of what one packet carries, so that two busy streams share each packet. */
  setPacketBytes(bytes: number): void {
    this.#quantumBytes = Math.min(Math.max(bytes >>> 1, MIN_QUANTUM_BYTES), MAX_QUANTUM_BYTES);
  }

  /** `entry` has something to send. */
  activate(entry: T): void {
    if (entry.scheduled !== "no") return;
    entry.scheduled = "new";
    entry.deficitBytes = this.#quantumBytes;
    this.#active++;
    this.#fresh.push(entry);
  }

  /** Whose turn it is; it stays at its place until charged, retired or removed. */
  next(): T | undefined {
    for (;;) {
      const list = this.#fresh.length > 0 ? this.#fresh : this.#old;
      const entry = list.at(0);
      if (entry === undefined) return undefined;
      const name = list === this.#fresh ? "new" : "old";
      if (entry.scheduled !== name) {
        list.shift(); // was removed while it queued
        continue;
      }
      if (entry.deficitBytes > 0) return entry;
      entry.deficitBytes += this.#quantumBytes;
      entry.scheduled = "old";
      list.shift();
      this.#old.push(entry);
    }
  }

  /** How much `entry`, the one from next(), may take now: everything when it is alone. */
  share(entry: T, roomBytes: number): number {
    return this.#active === 1 ? roomBytes : Math.min(roomBytes, Math.max(entry.deficitBytes, 256));
  }

  charge(entry: T, bytes: number): void {
    // Alone, it owes nothing to anybody.
    if (this.#active > 1) entry.deficitBytes -= bytes;
  }

  /** The entry from next() has nothing to send. */
  retire(entry: T): void {
    if (entry.scheduled === "new") {
      this.#fresh.shift();
      entry.scheduled = "old";
      this.#old.push(entry);
    } else this.park(entry);
  }

  /** The entry from next() may not send, whatever it has, until activated again. */
  park(entry: T): void {
    (entry.scheduled === "new" ? this.#fresh : this.#old).shift();
    this.remove(entry);
  }

  /** Takes an entry out for good, wherever it is; its place in the list is found empty later. */
  remove(entry: T): void {
    if (entry.scheduled === "no") return;
    entry.scheduled = "no";
    this.#active--;
  }
}
