import { Deque } from "./deque.ts";
import { RangeSet } from "./ranges.ts";

/** Writes below this are gathered in buffers of our own: a million one-byte writes may not be a million objects. */
const GATHER_BELOW_BYTES = 2_048;
const GATHER_BYTES = 4_096;

interface Chunk {
  start: number;
  /** A view of what the caller wrote, or a buffer of ours with room behind `length`. */
  bytes: Uint8Array;
  length: number;
  isOurs: boolean;
}

/** What to put into one STREAM frame. */
export interface Piece {
  offset: number;
  length: number;
  fin: boolean;
  /** Sent for the first time: counts against the session's credit. */
  isFresh: boolean;
}

/** One direction of one stream, sender's side: what was written, sent, acknowledged, lost. No I/O, no clock. */
export class SendHalf {
  /** Highest offset the peer allows. */
  maxOffset: number;
  /** First byte never sent. */
  nextOffset = 0;
  writtenEnd = 0;
  #ackedEnd = 0;
  readonly #chunks = new Deque<Chunk>();
  readonly #acked = new RangeSet(); // above #ackedEnd
  readonly #lost = new RangeSet();
  #fin: "open" | "queued" | "sent" | "acked" = "open";
  #reset: { code: number; state: "queued" | "sent" | "acked" } | undefined;

  constructor(maxOffset: number) {
    this.maxOffset = maxOffset;
  }

  get unsentBytes(): number {
    return this.writtenEnd - this.nextOffset;
  }

  /** Bytes held: written and not yet acknowledged without a gap. */
  get bufferedBytes(): number {
    return this.writtenEnd - this.#ackedEnd;
  }

  /** No further write is possible. */
  get isEnded(): boolean {
    return this.#fin !== "open" || this.#reset !== undefined;
  }

  get isReset(): boolean {
    return this.#reset !== undefined;
  }

  /** The peer has everything, or knows that it won't get it. */
  get isDone(): boolean {
    if (this.#reset) return this.#reset.state === "acked";
    return this.#fin === "acked" && this.#ackedEnd === this.writtenEnd;
  }

  /** Something can go out now, were there room in the session's window. */
  get hasWork(): boolean {
    if (this.#reset) return false;
    return this.#lost.count > 0 || this.#freshBytes > 0 || this.#finIsDue;
  }

  get hasLost(): boolean {
    return this.#lost.count > 0;
  }

  get #freshBytes(): number {
    return Math.min(this.writtenEnd, this.maxOffset) - this.nextOffset;
  }

  get #finIsDue(): boolean {
    return this.#fin === "queued" && this.nextOffset === this.writtenEnd;
  }

  /** Takes over `bytes` (the caller must not change them any more); small ones are copied. */
  write(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const start = this.writtenEnd;
    this.writtenEnd += bytes.length;
    if (bytes.length >= GATHER_BELOW_BYTES) {
      this.#chunks.push({ start, bytes, length: bytes.length, isOurs: false });
      return;
    }
    const tail = this.#chunks.last;
    if (tail?.isOurs && tail.bytes.length - tail.length >= bytes.length) {
      tail.bytes.set(bytes, tail.length);
      tail.length += bytes.length;
      return;
    }
    // A lone small write (a keystroke) gets just its bytes; only a run of them gets a buffer.
    const own = new Uint8Array(tail ? GATHER_BYTES : bytes.length);
    own.set(bytes);
    this.#chunks.push({ start, bytes: own, length: bytes.length, isOurs: true });
  }

  end(): void {
    if (this.#fin === "open") this.#fin = "queued";
  }

  /** Gives up the rest. @returns bytes freed */
  reset(code: number): number {
    if (this.#reset || this.isDone) return 0;
    const freed = this.bufferedBytes;
    this.#reset = { code, state: "queued" };
    this.#chunks.clear();
    this.#lost.clear();
    this.#acked.clear();
    this.#ackedEnd = this.writtenEnd;
    return freed;
  }

  /** RESET_STREAM when it is to be sent (again). */
  get resetToSend(): { code: number; finalSize: number } | undefined {
    if (this.#reset?.state !== "queued") return undefined;
    return { code: this.#reset.code, finalSize: this.nextOffset };
  }

  onResetSent(): void {
    if (this.#reset) this.#reset.state = "sent";
  }

  onResetAcked(): void {
    if (this.#reset) this.#reset.state = "acked";
  }

  onResetLost(): void {
    if (this.#reset?.state === "sent") this.#reset.state = "queued";
  }

  /**
   * What to send next, lost bytes first.
   *
   * @param room bytes of data that fit in the packet
   * @param credit bytes the session's window still has for data never sent before
   */
  nextPiece(room: number, credit: number): Piece | undefined {
    if (this.#reset) return undefined;
    if (this.#lost.count > 0) {
      const offset = this.#lost.start(0);
      const length = Math.min(this.#lost.end(0) - offset, room);
      if (length <= 0) return undefined;
      const fin = this.#fin !== "open" && offset + length === this.writtenEnd;
      return { offset, length, fin, isFresh: false };
    }
    const length = Math.max(Math.min(this.#freshBytes, credit, room), 0);
    const fin = this.#fin === "queued" && this.nextOffset + length === this.writtenEnd;
    if (length === 0 && !fin) return undefined;
    return { offset: this.nextOffset, length, fin, isFresh: true };
  }

  /** Marks a piece as sent. */
  take({ offset, length, fin, isFresh }: Piece): void {
    if (isFresh) this.nextOffset += length;
    else this.#lost.remove(offset, offset + length);
    if (fin && this.#fin === "queued") this.#fin = "sent";
  }

  /** Copies [offset, offset + length) to `out` at `at`: the one copy on the way out. */
  copy(out: Uint8Array, at: number, offset: number, length: number): void {
    const end = offset + length;
    for (let i = this.#chunkAt(offset); offset < end; i++) {
      const chunk = this.#chunks.at(i)!;
      const from = offset - chunk.start;
      const to = Math.min(chunk.length, end - chunk.start);
      out.set(chunk.bytes.subarray(from, to), at);
      at += to - from;
      offset += to - from;
    }
  }

  /** @returns bytes of buffer freed */
  onAcked(offset: number, length: number, fin: boolean): number {
    if (this.#reset) return 0;
    if (fin) this.#fin = "acked";
    const end = offset + length;
    if (end <= this.#ackedEnd) return 0;
    this.#lost.remove(offset, end); // an earlier copy arrived after all
    const before = this.#ackedEnd;
    if (offset > this.#ackedEnd) {
      this.#acked.add(offset, end);
      return 0;
    }
    this.#ackedEnd = end;
    while (this.#acked.count > 0 && this.#acked.start(0) <= this.#ackedEnd) {
      this.#ackedEnd = Math.max(this.#ackedEnd, this.#acked.end(0));
      this.#acked.dropLowest();
    }
    for (let chunk = this.#chunks.at(0); chunk; chunk = this.#chunks.at(0)) {
      if (chunk.start + chunk.length > this.#ackedEnd) break;
      this.#chunks.shift();
    }
    return this.#ackedEnd - before;
  }

  onLost(offset: number, length: number, fin: boolean): void {
    if (this.#reset) return;
    if (fin && this.#fin === "sent") this.#fin = "queued";
    const end = offset + length;
    const from = Math.max(offset, this.#ackedEnd);
    if (from >= end) return;
    this.#lost.add(from, end);
    for (let i = 0; i < this.#acked.count && this.#acked.start(i) < end; i++) {
      this.#lost.remove(this.#acked.start(i), this.#acked.end(i));
    }
  }

  /** Sends the first `length` bytes the peer is not known to have again, be they under way or not. */
  repeatHead(length: number): void {
    this.onLost(this.#ackedEnd, Math.min(length, this.nextOffset - this.#ackedEnd), false);
  }

  #chunkAt(offset: number): number {
    let low = 0;
    let high = this.#chunks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#chunks.at(middle)!.start <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
