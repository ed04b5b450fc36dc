import { Deque } from "./deque.ts";
import { PeerViolation } from "./errors.ts";
import { ReceiveWindow } from "./window.ts";

/** Unread chunks below this are gathered: a peer that sends single bytes may not make us hold an object for each. */
const GATHER_BELOW_BYTES = 1_024;
const GATHER_BYTES = 4_096;

interface Segment {
  start: number;
  bytes: Uint8Array;
}

/** One direction of one stream, receiver's side: puts bytes in order, holds them until read. No I/O, no clock. */
export class ReceiveHalf {
  readonly window: ReceiveWindow;
  /** Highest offset heard of; what flow control counts. */
  highest = 0;
  finalSize: number | undefined;
  resetCode: number | undefined;
  #contiguousEnd = 0;
  #unreadBytes = 0;
  #isDiscarding = false;
  /** FIN came: the final size is an end, not the point where the peer gave up. */
  #isEnded = false;
  readonly #ready = new Deque<Uint8Array>();
  /** Bytes used in the last ready chunk, when it is a gathering buffer of ours. */
  #tailUsed: number | undefined;
  /** Out of order, sorted, disjoint, all above #contiguousEnd. */
  #segments: Segment[] = [];

  constructor(initialBytes: number, maxBytes: number) {
    this.window = new ReceiveWindow(initialBytes, maxBytes);
  }

  get reorderRanges(): number {
    return this.#segments.length;
  }

  get hasUnread(): boolean {
    return this.#unreadBytes > 0;
  }

  /** Everything up to the end was read (or thrown away), or the peer gave up. */
  get isDone(): boolean {
    return this.resetCode !== undefined || (this.#isEnded && this.window.consumed === this.finalSize);
  }

  /** Would these bytes have to wait for others? */
  isOutOfOrder(offset: number): boolean {
    return offset > this.#contiguousEnd && !this.#isDiscarding;
  }

  /**
   * Takes in one STREAM frame. `data` may be a view of the packet; it is kept as it is only when it makes up most
   * of the memory it would pin.
   *
   * @returns by how much `highest` rose
   * @throws {PeerViolation} flow control or final size broken
   */
  receive(offset: number, data: Uint8Array, fin: boolean): number {
    const end = offset + data.length;
    const rise = this.#extend(end, fin ? end : undefined);
    this.#isEnded ||= fin;
    if (this.resetCode !== undefined) return rise;
    if (this.#isDiscarding) {
      this.window.consumed = this.highest;
      return rise;
    }
    if (end <= this.#contiguousEnd) return rise;
    if (offset > this.#contiguousEnd) this.#hold(offset, data);
    else {
      this.#append(data.subarray(this.#contiguousEnd - offset));
      this.#joinSegments();
    }
    return rise;
  }

  /**
   * RESET_STREAM: what was not read is dropped, unless the stream is here to its end.
   *
   * @returns by how much `highest` rose
   */
  receiveReset(code: number, finalSize: number): number {
    const rise = this.#extend(finalSize, finalSize);
    if (!this.#isEnded || this.#contiguousEnd < finalSize) {
      this.resetCode ??= code;
      this.#drop();
    }
    return rise;
  }

  /** The application wants no more: what is here and what comes is thrown away, and counts as consumed. */
  discard(): void {
    this.#isDiscarding = true;
    this.#drop();
  }

  /** The next bytes in order, at most `maxBytes` of them; undefined when there are none. They are the caller's. */
  read(maxBytes: number): Uint8Array | undefined {
    let chunk = this.#ready.at(0);
    if (chunk === undefined) return undefined;
    if (this.#ready.length === 1 && this.#tailUsed !== undefined) {
      chunk = chunk.subarray(0, this.#tailUsed); // what is behind has not come yet
      this.#tailUsed = undefined;
    }
    this.#ready.shift();
    if (chunk.length > maxBytes) {
      this.#ready.unshift(chunk.subarray(maxBytes));
      chunk = chunk.subarray(0, maxBytes);
    }
    this.#unreadBytes -= chunk.length;
    this.window.consumed += chunk.length;
    return chunk;
  }

  #extend(end: number, finalSize: number | undefined): number {
    if (end > (this.finalSize ?? end))
      throw new PeerViolation("protocolViolation", "stream data beyond its end");
    if (finalSize !== undefined) {
      if (finalSize !== (this.finalSize ?? finalSize) || finalSize < this.highest)
        throw new PeerViolation("protocolViolation", "the end of a stream moved");
      this.finalSize = finalSize;
    }
    if (end > this.window.limit)
      throw new PeerViolation("flowControl", "more stream data than the window allows");
    const rise = Math.max(end - this.highest, 0);
    this.highest += rise;
    return rise;
  }

  #drop(): void {
    this.#ready.clear();
    this.#segments = [];
    this.#unreadBytes = 0;
    this.#tailUsed = undefined;
    this.#contiguousEnd = this.highest;
    this.window.consumed = this.highest;
  }

  #append(data: Uint8Array): void {
    this.#contiguousEnd += data.length;
    this.#unreadBytes += data.length;
    if (data.length >= GATHER_BELOW_BYTES) {
      this.#sealTail();
      this.#ready.push(frugal(data));
      return;
    }
    const tail = this.#ready.last;
    if (tail && this.#tailUsed !== undefined && tail.length - this.#tailUsed >= data.length) {
      tail.set(data, this.#tailUsed);
      this.#tailUsed += data.length;
      return;
    }
    this.#sealTail();
    if (tail === undefined) {
      this.#ready.push(data.slice()); // a keystroke needs no buffer
      return;
    }
    const own = new Uint8Array(GATHER_BYTES);
    own.set(data);
    this.#ready.push(own);
    this.#tailUsed = data.length;
  }

  /** The gathering buffer at the end gets no more: cut it to what it holds. */
  #sealTail(): void {
    if (this.#tailUsed === undefined) return;
    this.#ready.replaceLast(this.#ready.last!.subarray(0, this.#tailUsed));
    this.#tailUsed = undefined;
  }

  #joinSegments(): void {
    let joined = 0;
    for (const { start, bytes } of this.#segments) {
      if (start > this.#contiguousEnd) break;
      joined++;
      if (start + bytes.length > this.#contiguousEnd)
        this.#append(bytes.subarray(this.#contiguousEnd - start));
    }
    if (joined > 0) this.#segments.splice(0, joined);
  }

  /** Keeps what is new of [offset, offset + data.length), cut to the gaps between what is held already. */
  #hold(offset: number, data: Uint8Array): void {
    let index = this.#segmentAfter(offset);
    const before = this.#segments[index - 1];
    if (before) {
      const overlap = before.start + before.bytes.length - offset;
      if (overlap >= data.length) return;
      if (overlap > 0) {
        offset += overlap;
        data = data.subarray(overlap);
      }
    }
    while (data.length > 0) {
      const after = this.#segments[index];
      const room = after ? after.start - offset : data.length;
      if (room > 0) {
        this.#segments.splice(index++, 0, { start: offset, bytes: frugal(data.subarray(0, room)) });
      }
      if (!after) return;
      const skip = Math.min(room + after.bytes.length, data.length);
      offset += skip;
      data = data.subarray(skip);
      index++;
    }
  }

  /** Index of the first segment that starts above `offset`. */
  #segmentAfter(offset: number): number {
    let low = 0;
    let high = this.#segments.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#segments[middle].start > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** A view that pins more than twice its size is copied. */
function frugal(view: Uint8Array): Uint8Array {
  return view.length * 2 < view.buffer.byteLength ? view.slice() : view;
}
