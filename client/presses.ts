/**
 * One Ctrl-C can arrive as several signals: the terminal sends it to npm and to us, and npm passes its own on. Those come
 * within milliseconds of each other; a person who presses again takes longer.
 */
const SAME_PRESS_MS = 300;

/** Tells a new press from an echo of the last one. Only the keyboard's signal has echoes: others are sent by name. */
export class Presses {
  #lastAt = Number.NEGATIVE_INFINITY;

  /** `now`: monotonic ms. */
  isNew(signal: string, now: number): boolean {
    if (signal !== "SIGINT") return true;
    const isEcho = now - this.#lastAt < SAME_PRESS_MS;
    this.#lastAt = now;
    return !isEcho;
  }
}

/** Calls `handler` for each of `signals`, once per press. @returns ends it */
export function onPresses(
  signals: readonly NodeJS.Signals[],
  handler: (signal: NodeJS.Signals) => void,
): () => void {
  const presses = new Presses();
  const onSignal = (signal: NodeJS.Signals) => {
    if (presses.isNew(signal, performance.now())) handler(signal);
  };
  for (const name of signals) process.on(name, onSignal);
  return () => {
    for (const name of signals) process.off(name, onSignal);
  };
}
