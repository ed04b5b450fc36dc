// What streams carry: byte n of a stream's direction is a function of the stream, the direction and n, so a byte that
// is lost, doubled, out of place or another stream's shows at once.
import { Random } from "./random.ts";

const TABLE_BYTES = 1 << 16;
const TABLE = new Random(0x5eed).bytes(TABLE_BYTES);

export class Content {
  readonly #start: number;
  readonly #step: number;

  /** @param name of the stream and the direction */
  constructor(random: Random) {
    this.#start = random.int(0, TABLE_BYTES - 1);
    this.#step = random.int(1, 255);
  }

  at(offset: number): number {
    // Each turn through the table differs, so that a slip by a whole table shows as well.
    return TABLE[(this.#start + offset) & (TABLE_BYTES - 1)] ^ (((offset >>> 16) * this.#step) & 0xff);
  }

  make(offset: number, length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    for (let i = 0; i < length; i++) bytes[i] = this.at(offset + i);
    return bytes;
  }

  /** @returns the first offset that is wrong; undefined: all is as it should be */
  check(offset: number, bytes: Uint8Array): number | undefined {
    for (let i = 0; i < bytes.length; i++) if (bytes[i] !== this.at(offset + i)) return offset + i;
    return undefined;
  }
}
