// Numbers that look random and are the same for the same seed, and the choices made with them.
import { seededRandom } from "../../mesh/wire/testing.ts";

export class Random {
  /** In [0, 1). */
  readonly next: () => number;

  /** `seed`: any integer; its low 32 bits count. */
  constructor(seed: number) {
    this.next = seededRandom(seed);
  }

  /** An integer in 0..limit - 1; 0 for a limit of 0. */
  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }

  bytes(count: number): Uint8Array {
    const out = new Uint8Array(count);
    for (let i = 0; i < count; i++) out[i] = this.below(256);
    return out;
  }
}

/** FNV-1a over the bytes: what a target draws while it runs an input follows from the input alone. */
export function hashOf(bytes: Uint8Array): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < bytes.length; i++) hash = Math.imul(hash ^ bytes[i], 0x01000193);
  return hash >>> 0;
}

/** Cuts `bytes` into 1 to 25 pieces, as a transport might. */
export function pieces(bytes: Uint8Array, random: Random): Uint8Array[] {
  const out: Uint8Array[] = [];
  const most = random.pick([1, 3, 16, 64, 1_024]);
  for (let at = 0; at < bytes.length; ) {
    // Many tiny pieces of a long input would only cost time.
    const size = out.length >= 24 ? bytes.length - at : 1 + random.below(most);
    out.push(bytes.slice(at, at + size));
    at += size;
  }
  return out;
}
