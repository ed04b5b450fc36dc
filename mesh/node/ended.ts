// Sessions an agent has served and forgotten. A client whose first HELLO was never answered says it again, with all that
// came with it; an agent that no longer knew the session would do everything a second time.
import { toHex } from "../wire/bytes.ts";

/** As long as a session may be silent: a client that slept through all of it still finds its session over, not anew. */
export const ENDED_KEPT_MS = 24 * 3_600_000;
/** Some 150 bytes each; the oldest go first. */
export const MAX_ENDED = 16_384;

export class EndedSessions {
  /** By peer and session, the oldest first; when it ended, monotonic ms. */
  readonly #endedAt = new Map<string, number>();

  get size(): number {
    return this.#endedAt.size;
  }

  /** @param peerKey base64 @param id as SessionLink has it; undefined: nobody was let in */
  add(peerKey: string, id: string | undefined, now: number): void {
    if (id === undefined) return;
    this.#endedAt.set(`${peerKey} ${id}`, now);
    for (const [key, at] of this.#endedAt) {
      if (this.#endedAt.size <= MAX_ENDED && now - at < ENDED_KEPT_MS) return;
      this.#endedAt.delete(key);
    }
  }

  /** @param id 16 bytes */
  has(peerKey: string, id: Uint8Array): boolean {
    return this.#endedAt.size > 0 && this.#endedAt.has(`${peerKey} ${toHex(id)}`);
  }
}
