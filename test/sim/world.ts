// Virtual time: one clock, one list of what happens when. After each happening everything that it set off by promises
// and by Node's streams runs to its end before the next one, so a run is a function of its seed alone.
import { hash32, Random } from "./random.ts";

interface Happening {
  at: number;
  order: number;
  run: (() => void) | undefined;
}

/** A violated invariant, or a throw where nobody catches. */
export interface Violation {
  atMs: number;
  invariant: string;
  detail: string;
}

export class World {
  /** Virtual ms since the run began. */
  now = 0;
  steps = 0;
  readonly seed: number;
  readonly random: Random;
  readonly violations: Violation[] = [];
  /** Called with each line of the log; only then lines are kept as text. */
  onLine: ((line: string) => void) | undefined;
  #heap: Happening[] = [];
  #order = 0;
  #hash = [0x811c9dc5, 0x2f0b4c47];
  #lines = 0;

  constructor(seed: number) {
    this.seed = seed;
    this.random = new Random(seed);
  }

  /** Of all lines so far: equal for equal runs. */
  get digest(): string {
    return `${this.#lines}-${this.#hash.map((part) => part.toString(16).padStart(8, "0")).join("")}`;
  }

  log(line: string): void {
    const text = `${this.now.toFixed(3)} ${line}`;
    this.#lines++;
    this.#hash[0] = hash32(text, this.#hash[0]);
    this.#hash[1] = hash32(text, this.#hash[1] ^ this.#hash[0]);
    this.onLine?.(text);
  }

  /** For who reads the log; no part of what runs are compared by. */
  note(line: string): void {
    this.onLine?.(`${this.now.toFixed(3)}   ${line}`);
  }

  violated(invariant: string, detail: string): void {
    // One broken thing shows at every look: the first ones tell.
    if (this.violations.length < 20) this.violations.push({ atMs: this.now, invariant, detail });
    this.log(`VIOLATED ${invariant}: ${detail}`);
  }

  /** @returns what takes it back */
  at(at: number, run: () => void): () => void {
    const happening: Happening = { at: Math.max(at, this.now), order: this.#order++, run };
    this.#push(happening);
    return () => {
      happening.run = undefined;
    };
  }

  after(ms: number, run: () => void): () => void {
    return this.at(this.now + ms, run);
  }

  /** Runs what happens up to `untilMs`, or until `isOver` says so. */
  async run(untilMs: number, isOver: () => boolean = () => false): Promise<void> {
    while (this.#heap.length > 0 && this.#heap[0].at <= untilMs) {
      const next = this.#pop();
      if (!next.run) continue;
      this.now = next.at;
      this.steps++;
      try {
        next.run();
      } catch (error) {
        this.violated("nothing throws", String((error as Error).stack ?? error));
      }
      await settled();
      if (isOver()) return;
    }
    this.now = Math.max(this.now, untilMs);
  }

  #push(happening: Happening): void {
    const heap = this.#heap;
    let at = heap.push(happening) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(heap[at], heap[parent])) return;
      [heap[at], heap[parent]] = [heap[parent], heap[at]];
      at = parent;
    }
  }

  #pop(): Happening {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    heap[0] = last;
    for (let at = 0; ; ) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2])
        if (child < heap.length && isBefore(heap[child], heap[least])) least = child;
      if (least === at) return first;
      [heap[at], heap[least]] = [heap[least], heap[at]];
      at = least;
    }
  }
}

const isBefore = (a: Happening, b: Happening): boolean => a.at < b.at || (a.at === b.at && a.order < b.order);

/** Everything that promises and nextTick had in store has run. */
export const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
