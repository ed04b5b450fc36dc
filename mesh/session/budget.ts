/**
 * Memory that the sessions of a node share for what they hold beyond the share each has for certain (its first windows
 * and its smallest send buffer). When it is used up nothing grows any more; nothing waits for it either.
 */
export class MemoryBudget {
  readonly limitBytes: number;
  #usedBytes = 0;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** @returns false when that would be too much: nothing was taken */
  take(bytes: number): boolean {
    if (this.#usedBytes + bytes > this.limitBytes) return false;
    this.#usedBytes += bytes;
    return true;
  }

  /** For what was promised before: counts it, also beyond the limit. */
  takeAnyway(bytes: number): void {
    this.#usedBytes += bytes;
  }

  give(bytes: number): void {
    this.#usedBytes -= bytes;
  }
}
