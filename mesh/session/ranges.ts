/** A set of integers kept as sorted, disjoint, non-touching half-open ranges [start, end). */
export class RangeSet {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  get count(): number {
    return this.#starts.length;
  }

  /** @param index 0 is the lowest range, count - 1 the highest */
  start(index: number): number {
    return this.#starts[index];
  }

  end(index: number): number {
    return this.#ends[index];
  }

  contains(value: number): boolean {
    const i = this.#firstEndingAtOrAfter(value + 1);
    return i < this.count && this.#starts[i] <= value;
  }

  /**
   * Adds [start, end).
   *
   * @param onNew called, lowest first, for each part that was not in the set before
   * @returns how many integers are new
   */
  add(start: number, end: number, onNew?: (start: number, end: number) => void): number {
    if (end <= start) return 0;
    const from = this.#firstEndingAtOrAfter(start);
    let to = from;
    let fresh = 0;
    let cursor = start;
    let mergedStart = start;
    let mergedEnd = end;
    for (; to < this.count && this.#starts[to] <= end; to++) {
      const gapEnd = this.#starts[to];
      if (gapEnd > cursor) {
        fresh += gapEnd - cursor;
        onNew?.(cursor, gapEnd);
      }
      cursor = Math.max(cursor, this.#ends[to]);
      mergedStart = Math.min(mergedStart, this.#starts[to]);
      mergedEnd = Math.max(mergedEnd, this.#ends[to]);
    }
    if (cursor < end) {
      fresh += end - cursor;
      onNew?.(cursor, end);
    }
    if (to === from + 1) {
      this.#starts[from] = mergedStart;
      this.#ends[from] = mergedEnd;
    } else {
      this.#starts.splice(from, to - from, mergedStart);
      this.#ends.splice(from, to - from, mergedEnd);
    }
    return fresh;
  }

  /** Takes [start, end) out, splitting a range when it lies inside one. */
  remove(start: number, end: number): void {
    if (end <= start) return;
    const from = this.#firstEndingAtOrAfter(start + 1);
    let to = from;
    const starts: number[] = [];
    const ends: number[] = [];
    for (; to < this.count && this.#starts[to] < end; to++) {
      if (this.#starts[to] < start) {
        starts.push(this.#starts[to]);
        ends.push(start);
      }
      if (this.#ends[to] > end) {
        starts.push(end);
        ends.push(this.#ends[to]);
      }
    }
    if (to === from) return;
    this.#starts.splice(from, to - from, ...starts);
    this.#ends.splice(from, to - from, ...ends);
  }

  removeBelow(value: number): void {
    if (this.count > 0 && this.#starts[0] < value) this.remove(this.#starts[0], value);
  }

  dropLowest(): void {
    this.#starts.shift();
    this.#ends.shift();
  }

  clear(): void {
    this.#starts.length = 0;
    this.#ends.length = 0;
  }

  #firstEndingAtOrAfter(value: number): number {
    let low = 0;
    let high = this.count;
    // Nearly every call concerns the highest range.
    if (high > 0 && this.#ends[high - 1] < value) return high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ends[middle] >= value) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
