// File calls run in libuv's thread pool, which the whole agent shares (name look-ups, too). A call on a dead
// network mount may hold its thread for ever; so file transfers never get all of them, and one session not all
// of what file transfers get.

/** What libuv starts unless told otherwise. */
const DEFAULT_THREADS = 4;
const threads = Number(process.env["UV_THREADPOOL_SIZE"] ?? DEFAULT_THREADS) || DEFAULT_THREADS;
/** One thread is left to the rest of the agent, also when there are but two. */
export const TRANSFER_THREADS = Math.max(1, threads - 1);
/** More gains nothing on a local disk, where a call takes less time than the way to its thread. */
export const SESSION_THREADS = Math.max(1, Math.min(2, TRANSFER_THREADS - 1));

/** Lets at most `limit` of what it is given run at once; the others wait in their order. */
export class Gate {
  readonly #limit: number;
  readonly #parent: Gate | undefined;
  #running = 0;
  #waiting: (() => void)[] = [];
  constructor(limit: number, parent?: Gate) {
    this.#limit = limit;
    this.#parent = parent;
  }

  /** `start` is called now or later, and calls its argument once when it is done. */
  enter(start: (leave: () => void) => void): void {
    if (this.#running >= this.#limit) {
      this.#waiting.push(() => this.#start(start));
      return;
    }
    this.#start(start);
  }

  #start(start: (leave: () => void) => void): void {
    this.#running++;
    const leave = () => {
      this.#running--;
      this.#waiting.shift()?.();
    };
    if (!this.#parent) return start(leave);
    this.#parent.enter((leaveParent) =>
      start(() => {
        leaveParent();
        leave();
      }),
    );
  }
}

/** Of all sessions of this process. */
export const transferGate = new Gate(TRANSFER_THREADS);
