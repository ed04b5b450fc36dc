// Connections of a virtual network, as TCP makes them: reliable and in order until they end, with delay, jitter, a
// rate and a bounded buffer; what is sent while a line is blocked waits.
import type { Machine, Process } from "./machine.ts";
import type { Random } from "./random.ts";

/** Connection requests that get no answer are repeated, as kernels do; ms after the first. */
export const SYN_AT_MS = [0, 1_000, 3_000, 7_000] as const;

/** The way between one machine and one server. */
export interface Line {
  delayMs: number;
  jitterMs: number;
  bytesPerMs: number;
  /** Nothing passes, and nobody is told. */
  isBlocked: boolean;
  readonly onOpen: Set<() => void>;
}

export function newLine(conditions: Pick<Line, "delayMs" | "jitterMs" | "bytesPerMs">): Line {
  return { ...conditions, isBlocked: false, onOpen: new Set() };
}

export function setBlocked(line: Line, isBlocked: boolean): void {
  line.isBlocked = isBlocked;
  if (!isBlocked) for (const tell of [...line.onOpen]) tell();
}

type Item<T> = { kind: "message"; message: T; bytes: number } | { kind: "end"; isReset: boolean };

/** One end of a connection. */
export class End<T> {
  onMessage: ((message: T) => void) | undefined;
  /** The other end, or the network, ended it. Not called after a close of our own. */
  onClose: ((isReset: boolean) => void) | undefined;
  onDrain: (() => void) | undefined;
  /** Given and not yet arrived. */
  outstandingBytes = 0;
  isOpen = true;
  readonly #process: Process;
  readonly #line: Line;
  readonly #random: Random;
  #other: End<T> | undefined;
  #freeAt = 0;
  #lastArrivalAt = 0;
  #held: Item<T>[] = [];
  #isHung = false;
  readonly #release = () => this.#flush();

  constructor(process: Process, line: Line, random: Random) {
    this.#process = process;
    this.#line = line;
    this.#random = random;
    line.onOpen.add(this.#release);
    process.machine.onWake.add(this.#release);
    process.onDeath.add(this.#onDeath);
  }

  static pair<T>(a: Process, b: Process, line: Line, random: Random): [End<T>, End<T>] {
    const ends: [End<T>, End<T>] = [new End(a, line, random), new End(b, line, random)];
    ends[0].#other = ends[1];
    ends[1].#other = ends[0];
    return ends;
  }

  get machine(): Machine {
    return this.#process.machine;
  }

  /** The process stops reading and writing here, without the connection ending. */
  setHung(isHung: boolean): void {
    this.#isHung = isHung;
    if (!isHung) this.#flush();
  }

  send(message: T, bytes: number): void {
    if (!this.isOpen) return;
    this.outstandingBytes += bytes;
    this.#transmit({ kind: "message", message, bytes });
  }

  /** Ends it; what was sent arrives before. */
  close(isReset = false): void {
    if (!this.isOpen) return;
    this.#leave();
    this.#transmit({ kind: "end", isReset });
  }

  /** The network ends it for both, who hear at once. */
  cut(): void {
    for (const end of [this, this.#other!]) {
      if (!end.isOpen) continue;
      end.#leave();
      end.#tell(true);
    }
  }

  /** The machine lost its power: the other end is not told. */
  vanish(): void {
    this.#leave();
  }

  #onDeath = (): void => this.close(true);

  #leave(): void {
    this.isOpen = false;
    this.#process.onDeath.delete(this.#onDeath);
    // What has not arrived here never will; what is under way from here still does.
    this.#held = [];
    this.outstandingBytes = 0;
    this.#line.onOpen.delete(this.#release);
    this.#process.machine.onWake.delete(this.#release);
  }

  #tell(isReset: boolean): void {
    const { world } = this.machine;
    world.after(0, () => this.machine.whenAwake(() => !this.#process.isDead && this.onClose?.(isReset)));
  }

  #transmit(item: Item<T>): void {
    const { world } = this.machine;
    const { delayMs, jitterMs, bytesPerMs } = this.#line;
    this.#freeAt =
      Math.max(this.#freeAt, world.now) + (item.kind === "message" ? item.bytes / bytesPerMs : 0);
    const at = this.#freeAt + delayMs + jitterMs * this.#random.float();
    this.#lastArrivalAt = Math.max(this.#lastArrivalAt, at);
    world.at(this.#lastArrivalAt, () => this.#other!.#arrive(item));
  }

  #arrive(item: Item<T>): void {
    if (!this.isOpen) return;
    this.#held.push(item);
    this.#flush();
  }

  #flush(): void {
    while (this.isOpen && !this.#isHung && !this.#line.isBlocked && !this.machine.isAsleep) {
      const item = this.#held.shift();
      if (!item) return;
      if (item.kind === "end") {
        this.#leave();
        this.onClose?.(item.isReset);
        return;
      }
      const from = this.#other!;
      from.outstandingBytes = Math.max(0, from.outstandingBytes - item.bytes);
      this.onMessage?.(item.message);
      if (from.isOpen && !from.#isHung && !from.machine.isAsleep) from.onDrain?.();
    }
  }
}
