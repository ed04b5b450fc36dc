// Which counters of one keypair were received (RFC 6479): a ring of 32-bit words that moves with the newest.
// A reliable path keeps order, but two paths at once interleave far more than one UDP flow would.

/** How far behind the newest a packet may be: 8,192 of 65 KB are half a second at 8 Gbit/s. */
export const REPLAY_WINDOW_PACKETS = 8_192;
const WORDS = REPLAY_WINDOW_PACKETS / 32 + 1; // the newest word is only partly filled, so one more keeps the window whole

export class ReplayWindow {
  #words = new Int32Array(WORDS);
  #newest = -1;

  /** Whether `counter` (0..2^53 - 1) is new and not too old. Changes nothing: the packet is not authenticated yet. */
  accepts(counter: number): boolean {
    if (counter > this.#newest) return true;
    if (counter <= this.#newest - REPLAY_WINDOW_PACKETS) return false;
    return (this.#words[Math.floor(counter / 32) % WORDS] & (1 << (counter % 32))) === 0;
  }

  /** Marks an accepted counter whose packet authenticated. */
  record(counter: number): void {
    const word = Math.floor(counter / 32);
    if (counter > this.#newest) {
      const newestWord = Math.floor(this.#newest / 32); // -1 at the start
      const clear = Math.min(word - newestWord, WORDS);
      for (let i = 1; i <= clear; i++) this.#words[(newestWord + i) % WORDS] = 0;
      this.#newest = counter;
    }
    this.#words[word % WORDS] |= 1 << (counter % 32);
  }
}
