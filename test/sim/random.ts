// All chance of a run: one stream of numbers per purpose, each made from the seed and the purpose's name, so that what
// one part draws does not shift what another gets.
import { seededRandom } from "../../mesh/wire/testing.ts";

const FNV_PRIME = 0x01000193;

/** A 32-bit hash of a text, for seeds and for the log of a run. */
export function hash32(text: string, start = 0x811c9dc5): number {
  let hash = start;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), FNV_PRIME);
  return hash >>> 0;
}

export class Random {
  readonly #seed: number;
  readonly #next: () => number;

  constructor(seed: number) {
    this.#seed = seed >>> 0;
    this.#next = seededRandom(this.#seed);
  }

  /** Another stream of numbers, by what it is for. */
  fork(purpose: string): Random {
    return new Random(hash32(purpose, this.#seed ^ 0x9e3779b9));
  }

  /** 0 <= n < 1 */
  float(): number {
    return this.#next();
  }

  between(low: number, high: number): number {
    return low + this.#next() * (high - low);
  }

  /** Whole, both ends included. */
  int(low: number, high: number): number {
    return low + Math.floor(this.#next() * (high - low + 1));
  }

  /** Between both ends, small ones as likely as large ones: each order of magnitude gets its share. */
  logInt(low: number, high: number): number {
    const from = Math.log(low + 1);
    return Math.min(high, Math.floor(Math.exp(from + this.#next() * (Math.log(high + 2) - from)) - 1));
  }

  chance(probability: number): boolean {
    return this.#next() < probability;
  }

  pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.#next() * items.length)];
  }

  bytes(count: number): Uint8Array {
    const bytes = new Uint8Array(count);
    for (let i = 0; i < count; i += 4) {
      const word = Math.floor(this.#next() * 0x1_0000_0000);
      for (let j = 0; j < 4 && i + j < count; j++) bytes[i + j] = word >>> (8 * j);
    }
    return bytes;
  }

  /** Version 4, by its looks. */
  uuid(): string {
    const hex = Buffer.from(this.bytes(16)).toString("hex");
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20)}`;
  }
}
