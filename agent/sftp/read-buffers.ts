// Clients ask for as much as a packet may hold, whatever the file has: 255 KB, also for the end of a file of 100 bytes.
// A fresh buffer of that size for each such request would cost more than all else of it, mostly in garbage collection.

/** Up to this a request gets a buffer of its own: clients that ask for 32 KiB have 64 such requests outstanding. */
const SMALL_BYTES = 64 * 1024;

/** Buffers to read into, shared by all sessions. Their content is whatever was read last. */
export class ReadBuffers {
  readonly #capacityBytes: number;
  readonly #maxSpare: number;
  readonly #spare: Buffer[] = [];

  /** @param maxSpare how many unused ones are kept for the next request */
  constructor(capacityBytes: number, maxSpare: number) {
    this.#capacityBytes = capacityBytes;
    this.#maxSpare = maxSpare;
  }

  get spare(): number {
    return this.#spare.length;
  }

  /** @returns at least `bytes` (up to the capacity); give it to `settle` once it is filled */
  take(bytes: number): Buffer {
    if (bytes <= SMALL_BYTES) return Buffer.allocUnsafeSlow(bytes);
    return this.#spare.pop() ?? Buffer.allocUnsafeSlow(this.#capacityBytes);
  }

  /**
   * What to send of a buffer whose first `used` bytes were filled: itself, when they are most of it, else a copy; then,
   * or with 0, it is used again.
   */
  settle(buffer: Buffer, used: number): Buffer {
    if (buffer.length <= SMALL_BYTES || used * 2 >= buffer.length) return buffer;
    const copy = Buffer.from(buffer.subarray(0, used));
    if (this.#spare.length < this.#maxSpare) this.#spare.push(buffer);
    return copy;
  }
}
