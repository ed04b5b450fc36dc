const TILDE = 0x7e;
const DOT = 0x2e;
const CR = 0x0d;
const LF = 0x0a;

/**
 * OpenSSH's escape keys, which work only at the start of a line: `~.` leaves, `~~` types one `~`. In raw mode every other
 * key belongs to the program at the far end, so without them nobody could leave a session whose agent is silent.
 */
export class EscapeKeys {
  #atLineStart = true;
  /** A `~` was typed at the start of a line; what it means depends on the next key. */
  #held = false;

  /** @returns `bytes`: to be sent on, a part of `chunk` or a copy; `leave`: the rest of `chunk` is dropped */
  push(chunk: Uint8Array): { bytes: Uint8Array; leave: boolean } {
    if (!this.#held && !chunk.includes(TILDE)) {
      if (chunk.length > 0) this.#atLineStart = isLineEnd(chunk[chunk.length - 1]);
      return { bytes: chunk, leave: false };
    }
    const bytes = new Uint8Array(chunk.length + 1);
    let length = 0;
    for (const byte of chunk) {
      if (this.#held) {
        this.#held = false;
        if (byte === DOT) return { bytes: bytes.subarray(0, length), leave: true };
        bytes[length++] = TILDE;
        this.#atLineStart = false;
        if (byte === TILDE) continue;
      } else if (byte === TILDE && this.#atLineStart) {
        this.#held = true;
        continue;
      }
      bytes[length++] = byte;
      this.#atLineStart = isLineEnd(byte);
    }
    return { bytes: bytes.subarray(0, length), leave: false };
  }
}

const isLineEnd = (byte: number) => byte === CR || byte === LF;
