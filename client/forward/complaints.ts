/** A port nobody listens on is asked again and again, by browsers more than by people. */
const SAME_AGAIN_MS = 10_000;
/** Different complaints remembered; the oldest is forgotten first. */
const MAX_KINDS = 64;

/** Says a thing once, then not again for a while, and then how often it happened meanwhile. Pure: `now` is an argument. */
export class Complaints {
  readonly #said = new Map<string, { at: number; more: number }>();

  /** @returns the line to print, or undefined while it was said lately. `now`: monotonic ms */
  line(text: string, now: number): string | undefined {
    const said = this.#said.get(text);
    if (said && now - said.at < SAME_AGAIN_MS) {
      said.more++;
      return undefined;
    }
    this.#said.delete(text);
    if (this.#said.size >= MAX_KINDS) {
      const [oldest] = this.#said.keys();
      this.#said.delete(oldest);
    }
    this.#said.set(text, { at: now, more: 0 });
    return said && said.more > 0 ? `${text} (and ${said.more} more since)` : text;
  }
}
