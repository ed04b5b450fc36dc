// Variable-length integers: RFC 9000 section 16. 1, 2, 4 or 8 bytes, big-endian, the top two bits say which.
// Values here stay at or below Number.MAX_SAFE_INTEGER (2^53 - 1); larger ones are a protocol error.
import { WireError } from "./errors.ts";

export function varintBytes(value: number): 1 | 2 | 4 | 8 {
  if (value < 0x40) return 1;
  if (value < 0x4000) return 2;
  if (value < 0x40000000) return 4;
  return 8;
}

/** Writes `value` (0..2^53 - 1) at `offset`. @returns the offset behind it */
export function writeVarint(out: Uint8Array, offset: number, value: number): number {
  switch (varintBytes(value)) {
    case 1:
      out[offset] = value;
      return offset + 1;
    case 2:
      out[offset] = 0x40 | (value >>> 8);
      out[offset + 1] = value & 0xff;
      return offset + 2;
    case 4:
      out[offset] = 0x80 | (value >>> 24);
      out[offset + 1] = (value >>> 16) & 0xff;
      out[offset + 2] = (value >>> 8) & 0xff;
      out[offset + 3] = value & 0xff;
      return offset + 4;
    case 8: {
      const high = Math.floor(value / 0x100000000);
      out[offset] = 0xc0 | (high >>> 24);
      out[offset + 1] = (high >>> 16) & 0xff;
      out[offset + 2] = (high >>> 8) & 0xff;
      out[offset + 3] = high & 0xff;
      out[offset + 4] = (value >>> 24) & 0xff;
      out[offset + 5] = (value >>> 16) & 0xff;
      out[offset + 6] = (value >>> 8) & 0xff;
      out[offset + 7] = value & 0xff;
      return offset + 8;
    }
  }
}

/** Reads front to back and never past the end. Every method throws {WireError} ERR_FRAME_TRUNCATED when short. */
export class ByteReader {
  readonly bytes: Uint8Array;
  offset: number;
  constructor(bytes: Uint8Array, offset = 0) {
    this.bytes = bytes;
    this.offset = offset;
  }

  get remaining(): number {
    return this.bytes.length - this.offset;
  }

  #need(count: number): void {
    if (this.remaining < count)
      throw new WireError("ERR_FRAME_TRUNCATED", `${count} bytes wanted, ${this.remaining} left`);
  }

  u8(): number {
    this.#need(1);
    return this.bytes[this.offset++];
  }

  u16(): number {
    this.#need(2);
    const value = (this.bytes[this.offset] << 8) | this.bytes[this.offset + 1];
    this.offset += 2;
    return value;
  }

  u32(): number {
    this.#need(4);
    const { bytes, offset } = this;
    this.offset += 4;
    return (
      bytes[offset] * 0x1000000 + ((bytes[offset + 1] << 16) | (bytes[offset + 2] << 8) | bytes[offset + 3])
    );
  }

  /** @throws {WireError} ERR_BAD_VALUE above 2^53 - 1 */
  varint(): number {
    this.#need(1);
    const first = this.bytes[this.offset];
    const length = 1 << (first >>> 6);
    this.#need(length);
    let value = first & 0x3f;
    for (let i = 1; i < length; i++) value = value * 256 + this.bytes[this.offset + i];
    if (value > Number.MAX_SAFE_INTEGER) throw new WireError("ERR_BAD_VALUE", "integer above 2^53 - 1");
    this.offset += length;
    return value;
  }

  /** A view, not a copy. */
  take(count: number): Uint8Array {
    this.#need(count);
    const out = this.bytes.subarray(this.offset, this.offset + count);
    this.offset += count;
    return out;
  }
}
