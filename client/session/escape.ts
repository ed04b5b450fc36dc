const TILDE = 0x7e;
const CR = 0x0d;
const LF = 0x0a;

/** What a person asked of the client itself. */
export type EscapeAction = "leave" | "help" | "break" | "suspend" | "info";

const ACTIONS: Record<number, EscapeAction | undefined> = {
  [0x2e]: "leave", // .
  [0x3f]: "help", // ?
  [0x42]: "break", // B
  [0x49]: "info", // I
  [0x1a]: "suspend", // Ctrl-Z
};

/** Shown for `~?`. In raw mode, so with carriage returns. */
export const ESCAPE_HELP = [
  "~?",
  "Supported escape sequences, right after Enter:",
  " ~.   - end the session, also when nothing answers",
  " ~B   - send a BREAK to the program",
  " ~I   - show how the workspace is reached",
  " ~^Z  - suspend this command",
  " ~?   - this message",
  " ~~   - type one ~",
  "",
].join("\r\n");

/**
 * OpenSSH's escape keys, which work only at the start of a line: `~.` leaves, `~~` types one `~`. In raw mode every other
 * key belongs to the program at the far end, so without them nobody could leave a session whose agent is silent.
 */
export class EscapeKeys {
  #atLineStart = true;
  /** A `~` was typed at the start of a line; what it means depends on the next key. */
  #held = false;

  /**
   * @returns `bytes`: to be sent on, a part of `chunk` or a copy. `actions`: what was asked, in order; behind "leave" the
   *   rest of `chunk` is dropped
   */
  push(chunk: Uint8Array): { bytes: Uint8Array; actions: EscapeAction[] } {
    const actions: EscapeAction[] = [];
    if (!this.#held && !chunk.includes(TILDE)) {
      if (chunk.length > 0) this.#atLineStart = isLineEnd(chunk[chunk.length - 1]);
      return { bytes: chunk, actions };
    }
    const bytes = new Uint8Array(chunk.length + 1);
    let length = 0;
    for (const byte of chunk) {
      if (this.#held) {
        this.#held = false;
        const action = ACTIONS[byte];
        if (action) {
          actions.push(action);
          // As in OpenSSH, the line counts as not begun: another escape may follow.
          if (action === "leave") break;
          continue;
        }
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
    return { bytes: bytes.subarray(0, length), actions };
  }
}

const isLineEnd = (byte: number) => byte === CR || byte === LF;
