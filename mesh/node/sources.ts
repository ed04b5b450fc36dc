import { equalBytes, toBase64 } from "../wire/bytes.ts";
import type { Source } from "../wireguard/device.ts";

/** Names where messages came from, "REGION KEY". Most come from where the last one did, which then costs nothing. */
export class Sources {
  #last: { src: Uint8Array; region: number; source: Source } | undefined;

  /** @param src the sender's node key as the relay says, 32 bytes */
  of(src: Uint8Array, region: number): Source {
    const last = this.#last;
    if (last && last.region === region && equalBytes(last.src, src)) return last.source;
    const source = { key: `${region} ${toBase64(src)}` };
    this.#last = { src: src.slice(), region, source };
    return source;
  }
}

export const regionOf = (source: Source): number => Number.parseInt(source.key, 10);
