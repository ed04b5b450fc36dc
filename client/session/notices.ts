// When and how a person is told that the connection stalled. Pure: `now` is monotonic ms.

/** After a "back", a further "lost" is told only when it has lasted this long: a flapping link must not fill the screen. */
const CALM_MS = 10_000;
/** So long a link has to hold before the next loss is told at once again. */
const FLAPPING_MS = 60_000;

type State =
  | { kind: "fine" }
  /** Stalled, but not told yet. */
  | { kind: "held"; tellAt: number; since: number }
  | { kind: "told"; since: number };

/** "3 s", "12 min", "2 h 5 min". */
export function formatWait(ms: number): string {
  const seconds = Math.max(1, Math.round(ms / 1_000));
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const rest = minutes % 60;
  return `${Math.floor(minutes / 60)} h${rest > 0 ? ` ${rest} min` : ""}`;
}

/** Turns stalls into at most one line each, and one when it is over. */
export class StallNotices {
  readonly #howToEnd: string;
  #state: State = { kind: "fine" };
  #backAt = Number.NEGATIVE_INFINITY;

  /** `howToEnd`: "~. ends it". */
  constructor(howToEnd: string) {
    this.#howToEnd = howToEnd;
  }

  /** @returns the line to show now, if any */
  stalled(forMs: number, now: number): string | undefined {
    const since = now - forMs;
    switch (this.#state.kind) {
      case "told":
        return undefined;
      case "held":
        return this.handleTimeout(now);
      case "fine":
        if (now - this.#backAt >= FLAPPING_MS) return this.#tell(since);
        this.#state = { kind: "held", since, tellAt: since + CALM_MS };
        return this.handleTimeout(now);
    }
  }

  resumed(now: number): string | undefined {
    const state = this.#state;
    this.#state = { kind: "fine" };
    if (state.kind !== "told") return undefined;
    this.#backAt = now;
    return `connection back after ${formatWait(now - state.since)}`;
  }

  /** When handleTimeout is due, if ever. */
  nextTimeout(): number | undefined {
    return this.#state.kind === "held" ? this.#state.tellAt : undefined;
  }

  handleTimeout(now: number): string | undefined {
    if (this.#state.kind !== "held" || now < this.#state.tellAt) return undefined;
    return this.#tell(this.#state.since);
  }

  #tell(since: number): string {
    this.#state = { kind: "told", since };
    return `connection lost, waiting (your session is safe; ${this.#howToEnd})`;
  }
}

const ALTERNATE = /\x1b\[\?(?:1049|1047|47)([hl])/g;
/** Longest prefix of such a sequence that a chunk may end in. */
const MAX_TAIL = 7;

/** Watches output for whether a full-screen program has the terminal (xterm's alternate screen). */
export class ScreenWatch {
  isFullScreen = false;
  #tail = "";

  push(bytes: Uint8Array): void {
    if (this.#tail === "" && !bytes.includes(0x1b)) return;
    const text =
      this.#tail + Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
    for (const [, mode] of text.matchAll(ALTERNATE)) this.isFullScreen = mode === "h";
    const last = text.lastIndexOf("\x1b");
    this.#tail = last >= 0 && text.length - last <= MAX_TAIL ? text.slice(last) : "";
  }
}

/**
 * A notice as bytes for a terminal. In a full-screen program it takes the top row, with the cursor put back where it was,
 * and nothing scrolls; on a line-oriented one it is a line of its own.
 *
 * @param mode cooked: the terminal turns \n into a new line; raw: it does not
 */
export function renderNotice(text: string, mode: "cooked" | "raw" | "fullScreen"): string {
  const line = `[coder] ${text}`;
  switch (mode) {
    case "cooked":
      return `${line}\n`;
    case "raw":
      return `\r\n${line}\r\n`;
    case "fullScreen":
      // DECSC, top left, erase the line, reverse video; DECRC puts colours back too.
      return `\x1b7\x1b[1;1H\x1b[2K\x1b[7m${line}\x1b[0m\x1b8`;
  }
}
