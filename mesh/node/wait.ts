// Waiting with a way out: every wait of a node ends by its result, its caller's signal, or a deadline.
import { type Runtime, systemRuntime, type Timer } from "./runtime.ts";

/** `promise`, or `signal`'s reason as soon as it is aborted. What comes of `promise` later is dropped, not unhandled. */
export function withSignal<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** As withSignal, and at most `ms`: then `onTimeout` makes the error. */
export async function withDeadline<T>(
  promise: Promise<T>,
  {
    ms,
    signal,
    onTimeout,
    runtime = systemRuntime,
  }: { ms: number; signal?: AbortSignal; onTimeout: () => Error; runtime?: Runtime },
): Promise<T> {
  let timer: Timer | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = runtime.setTimer(() => reject(onTimeout()), ms);
  });
  try {
    return await withSignal(Promise.race([promise, late]), signal);
  } finally {
    runtime.clearTimer(timer);
  }
}
