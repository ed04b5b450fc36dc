// Which requests may run at the same time. Clients keep many outstanding and expect the outcome of one after the
// other; OpenSSH's server does run them so. Here those that can't see each other run side by side, and replies
// still leave in the order of the requests, since some clients count on it.

/** What a request touches. Offsets in bytes, `to` exclusive. */
export type Access =
  /** Nothing, or only what is fixed. */
  | { kind: "none" }
  /** Looks at paths and what they lead to. */
  | { kind: "look" }
  /** Changes paths, or files by their path, or more than one handle. */
  | { kind: "change" }
  | { kind: "read" | "write"; handle: number; from: number; to: number }
  /** A handle as a whole: CLOSE, FSETSTAT, READDIR. */
  | { kind: "handle"; handle: number };

/**
 * Whether `later` must wait for `earlier`. Two handles on one file are as two files: what is written through one
 * is in what the other reads once the write was answered, not before.
 */
export function conflicts(earlier: Access, later: Access): boolean {
  if (earlier.kind === "none" || later.kind === "none") return false;
  if (earlier.kind === "change" || later.kind === "change") return true;
  if (earlier.kind === "look" || later.kind === "look")
    // Reading changes nothing that a look would see (but the time of access, which may lag anyway).
    return !["look", "read"].includes(earlier.kind) || !["look", "read"].includes(later.kind);
  if (earlier.handle !== later.handle) return false;
  if (earlier.kind === "handle" || later.kind === "handle") return true;
  if (earlier.kind === "read" && later.kind === "read") return false;
  if (earlier.kind === "write" && later.kind === "write")
    return earlier.from < later.to && later.from < earlier.to;
  // A write behind a read's range may lengthen the file, and turn what was its end into zeros.
  const [reading, writing] = earlier.kind === "read" ? [earlier, later] : [later, earlier];
  return writing.to > reading.from;
}

interface Entry<Q, R> {
  request: Q;
  access: Access;
  costBytes: number;
  /** How many earlier ones it waits for. */
  waitsFor: number;
  blocks: Entry<Q, R>[];
  reply: R | undefined;
  done: boolean;
}
export type Ticket<Q, R> = Entry<Q, R>;

/** The requests of a session that are not answered yet, oldest first; bounded by number and by bytes. */
export class RequestQueue<Q, R> {
  readonly #limits: { requests: number; bytes: number };
  #entries: Entry<Q, R>[] = [];
  #ready: Entry<Q, R>[] = [];
  #bytes = 0;
  constructor(limits: { requests: number; bytes: number }) {
    this.#limits = limits;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** Whether no more should be added. One request is always taken, however much it costs. */
  get full(): boolean {
    return this.#entries.length >= this.#limits.requests || this.#bytes >= this.#limits.bytes;
  }

  /** `costBytes`: what it may hold in memory until its reply has left. */
  add(request: Q, access: Access, costBytes: number): void {
    const entry: Entry<Q, R> = {
      request,
      access,
      costBytes,
      waitsFor: 0,
      blocks: [],
      reply: undefined,
      done: false,
    };
    for (const earlier of this.#entries) {
      if (earlier.done || !conflicts(earlier.access, access)) continue;
      earlier.blocks.push(entry);
      entry.waitsFor++;
    }
    this.#entries.push(entry);
    this.#bytes += costBytes;
    if (entry.waitsFor === 0) this.#ready.push(entry);
  }

  /** @returns the oldest request that may start now; it counts as started */
  next(): Ticket<Q, R> | undefined {
    return this.#ready.shift();
  }

  /** To be called once for each started one. */
  finish(entry: Ticket<Q, R>, reply: R): void {
    entry.done = true;
    entry.reply = reply;
    for (const later of entry.blocks) {
      later.waitsFor--;
      if (later.waitsFor === 0) this.#ready.push(later);
    }
    entry.blocks = [];
  }

  /** @returns the replies that may leave now, in the order of their requests; they stop counting */
  takeReplies(): R[] {
    const replies: R[] = [];
    let count = 0;
    for (const entry of this.#entries) {
      if (!entry.done) break;
      replies.push(entry.reply as R);
      this.#bytes -= entry.costBytes;
      count++;
    }
    if (count > 0) this.#entries.splice(0, count);
    return replies;
  }

  /** Forgets what has not started. */
  dropWaiting(): void {
    this.#ready = [];
    for (const entry of this.#entries) entry.blocks = [];
  }
}
