import { constants } from "node:os";
import { onPresses } from "../presses.ts";

/** What a keyboard, a supervisor or a closed terminal ends a program with. */
const ENDING = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** How long a signalled process may take to restore the terminal and tell the other side. */
const GRACE_MS = 2_000;

/**
 * Runs `work` so that a signal ends it in order: `abort` is aborted, and once `work` has settled the process dies of that
 * same signal, as shells expect of it. A second signal, or GRACE_MS, ends the process at once.
 *
 * @returns what `work` returned; after a signal it does not return
 */
export async function endOnSignals<T>(work: (abort: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let received: NodeJS.Signals | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    const exit = () => process.exit(128 + constants.signals[signal]);
    if (received) exit();
    received = signal;
    setTimeout(exit, GRACE_MS).unref();
    controller.abort();
  };
  const release = onPresses(ENDING, onSignal);
  try {
    return await work(controller.signal);
  } finally {
    release();
    if (received) {
      process.kill(process.pid, received);
      await new Promise(() => setTimeout(() => {}, GRACE_MS)); // it arrives before anything else happens
    }
  }
}
