// The way out through one socket, of a client's connection and of one to a sibling server alike: what the socket takes
// is written at once, what it doesn't take waits, bounded.
import type { Duplex } from "node:stream";
import { PACKET_OVERHEAD_BYTES } from "../../mesh/wire/derp.ts";
import type { Counters, DropReason, Lost } from "./metrics.ts";
import { FairQueue, type QueueLimits } from "./queue.ts";

/** Most that lies in one write: its time limit must not depend on how much waits. */
const BATCH_BYTES = 128 << 10;
/** Control frames that may wait for a receiver's socket; each under 1 KiB. */
const MAX_WAITING_CONTROL = 256;

/** `S`: what identifies a sender, for fairness between them. */
export class Outlet<S> {
  /** Since when the socket has not taken what was written; undefined when it took all. */
  blockedAt: number | undefined;
  /** How often the socket took what waited. */
  flushes = 0;
  /** Asked for more control frames whenever the socket has room; undefined: there are none. */
  more: (() => Uint8Array | undefined) | undefined;

  #socket: Duplex;
  #counters: Counters;
  #now: () => number;
  #queue: FairQueue<S>;
  #control: Uint8Array[] = [];
  #overheadBytes: number;
  #closed = false;

  /** `overheadBytes`: of header and keys in front of each packet, which don't count as payload. */
  constructor(
    socket: Duplex,
    limits: QueueLimits,
    counters: Counters,
    now: () => number,
    overheadBytes = PACKET_OVERHEAD_BYTES,
  ) {
    this.#socket = socket;
    this.#counters = counters;
    this.#now = now;
    this.#overheadBytes = overheadBytes;
    this.#queue = new FairQueue(limits, (lost) => this.#lose("queue_head", lost));
  }

  get queuedBytes(): number {
    return this.#queue.bytes;
  }

  /** Nothing is written any more. What waits is lost, and counted as such. */
  close(reason: "gone_disconnected" | "write_error"): void {
    this.#closed = true;
    this.#control.length = 0;
    this.#queue.clear((lost) => this.#lose(reason, lost));
  }

  /** Sends a small frame of our own, before any packet that waits. @returns false: dropped, too many wait */
  control(frame: Uint8Array): boolean {
    if (this.#closed) return false;
    if (this.blockedAt === undefined) this.#write(frame);
    else if (this.#control.length >= MAX_WAITING_CONTROL) return false;
    else this.#control.push(frame);
    return true;
  }

  /** Passes on `frames` whole packets from `source`, `disco` of them path discovery. Never waits. */
  packets(source: S, bytes: Uint8Array, frames: number, disco: number): void {
    if (this.#closed) return;
    const { hot } = this.#counters;
    hot.packetsSent += frames;
    hot.bytesSent += bytes.length - frames * this.#overheadBytes;
    this.#counters.framesPerWrite.add(frames);
    if (this.blockedAt === undefined) {
      hot.queueMs *= 0.9; // it waited for 0 ms
      this.#write(bytes);
    } else this.#queue.push(source, bytes, frames, this.#now(), disco);
  }

  /** `more` may have something now. */
  pull(): void {
    while (!this.#closed && this.blockedAt === undefined) {
      const frame = this.more?.();
      if (!frame) return;
      this.#write(frame);
    }
  }

  #lose(reason: DropReason, { frames, disco, bytes }: Lost): void {
    this.#counters.dropped(reason, { frames, disco, bytes: bytes - frames * this.#overheadBytes });
  }

  #write(bytes: Uint8Array): void {
    this.#socket.write(bytes, this.#onWritten);
    this.#noteBlocked();
  }

  #noteBlocked(): void {
    // Node hands a write to the kernel at once; what is left over shows as writableLength.
    if (this.#socket.writableLength > 0 && this.blockedAt === undefined) this.blockedAt = this.#now();
  }

  #onWritten = (): void => {
    if (this.blockedAt === undefined || this.#socket.writableLength > 0) return;
    this.blockedAt = undefined;
    let more = true;
    while (more && !this.#closed && this.blockedAt === undefined) more = this.#flushBatch();
    this.pull();
  };

  /** @returns whether there was anything to send */
  #flushBatch(): boolean {
    const { hot } = this.#counters;
    const now = this.#now();
    let bytes = 0;
    this.flushes++;
    this.#socket.cork();
    for (const frame of this.#control) {
      this.#socket.write(frame, this.#onWritten);
      bytes += frame.length;
    }
    this.#control.length = 0;
    while (bytes < BATCH_BYTES) {
      const item = this.#queue.shift();
      if (!item) break;
      hot.queueMs += (now - item.at - hot.queueMs) * 0.1;
      this.#socket.write(item.bytes, this.#onWritten);
      bytes += item.bytes.length;
    }
    this.#socket.uncork();
    this.#noteBlocked();
    return bytes > 0;
  }
}
