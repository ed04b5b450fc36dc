import type { Writable } from "node:stream";
import { renderNotice, ScreenWatch, StallNotices } from "./notices.ts";

/** What a session tells about its connection (mesh/node's PeerEvent). */
export type ConnectionEvent =
  | { kind: "stalled"; forMs: number }
  | { kind: "resumed"; afterMs: number }
  | { kind: "path"; path: unknown };

export interface NotifierOptions {
  stderr: Writable;
  /** The terminal is in raw mode, ours or that of the ssh above us: a line feed alone is no new line. */
  raw: boolean;
  now?: () => number;
}

/** Shows stalls of the connection on the user's terminal. */
export class Notifier {
  readonly #stderr: Writable;
  readonly #raw: boolean;
  readonly #now: () => number;
  readonly #notices: StallNotices;
  readonly #screen = new ScreenWatch();
  #timer: NodeJS.Timeout | undefined;

  constructor({ stderr, raw, now = () => performance.now() }: NotifierOptions) {
    this.#stderr = stderr;
    this.#raw = raw;
    this.#now = now;
    this.#notices = new StallNotices(raw ? "~. ends it" : "Ctrl-C ends it");
  }

  onEvent(event: ConnectionEvent): void {
    if (event.kind === "stalled") this.#show(this.#notices.stalled(event.forMs, this.#now()));
    else if (event.kind === "resumed") this.#show(this.#notices.resumed(this.#now()));
    this.#arm();
  }

  /** Output of the session on its way to the terminal. */
  onOutput(bytes: Uint8Array): void {
    if (this.#raw) this.#screen.push(bytes);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #arm(): void {
    clearTimeout(this.#timer);
    const at = this.#notices.nextTimeout();
    if (at === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#show(this.#notices.handleTimeout(this.#now()));
        this.#arm();
      },
      Math.max(0, Math.ceil(at - this.#now())),
    );
    this.#timer.unref();
  }

  #show(text: string | undefined): void {
    if (text === undefined || this.#stderr.destroyed || this.#stderr.writableEnded) return;
    const mode = !this.#raw ? "cooked" : this.#screen.isFullScreen ? "fullScreen" : "raw";
    this.#stderr.write(renderNotice(text, mode));
  }
}
