/** As the agent's: RFC 4787 section 4.3 asks two minutes at least and recommends five. */
export const FLOW_IDLE_MS = 300_000;
/** Each is a stream of the session, of which there are 256 at once for everything. */
export const MAX_FLOWS = 128;

/**
 * Who talks through a UDP forward: one flow per source, forgotten when it was silent for long or when there are too
 * many. Pure: `now` is monotonic ms.
 */
export class Flows<T> {
  /** Least recently used first. */
  readonly #flows = new Map<string, { flow: T; usedAt: number }>();
  readonly #max: number;

  constructor(max = MAX_FLOWS) {
    this.#max = max;
  }

  get size(): number {
    return this.#flows.size;
  }

  /** The flow of `source`, if there is one; it counts as used now. */
  use(source: string, now: number): T | undefined {
    const known = this.#flows.get(source);
    if (!known) return undefined;
    this.#flows.delete(source);
    known.usedAt = now;
    this.#flows.set(source, known);
    return known.flow;
  }

  /** @returns the flow that had to go for it, if one had to */
  add(source: string, flow: T, now: number): T | undefined {
    const [oldest] = this.#flows;
    this.#flows.set(source, { flow, usedAt: now });
    if (this.#flows.size <= this.#max || !oldest) return undefined;
    this.#flows.delete(oldest[0]);
    return oldest[1].flow;
  }

  /** Forgets `source`, unless it has another flow by now. */
  remove(source: string, flow: T): void {
    if (this.#flows.get(source)?.flow === flow) this.#flows.delete(source);
  }

  /** Takes out what was silent for FLOW_IDLE_MS. */
  expire(now: number): T[] {
    const expired: T[] = [];
    for (const [source, { flow, usedAt }] of this.#flows) {
      if (now - usedAt < FLOW_IDLE_MS) break;
      this.#flows.delete(source);
      expired.push(flow);
    }
    return expired;
  }

  clear(): T[] {
    const all = [...this.#flows.values()].map(({ flow }) => flow);
    this.#flows.clear();
    return all;
  }
}
