// When a node tries the coordinator again. Pure: how long it has been away and one random number in, a wait out.

/** The first tries come quickly: most losses are a connection's, not the server's. */
const FIRST_MS = 200;
/** A server that restarts is away for seconds; whoever waits for it is back about a second after it listens. */
const SHORT_OUTAGE_MS = 60_000;
const SHORT_CAP_MS = 1_000;
/** A long outage is waited out in thirtieths of its length: twice the load on nobody, and never more than this. */
const LONG_SHARE = 30;
const LONG_CAP_MS = 15_000;

/**
 * @param failures tries that failed since the last welcome, 0 after a loss
 * @param outageMs since the last welcome, or since the first try
 * @param random 0 <= n < 1, so that nodes a server lost together don't come back together
 * @returns ms to wait: 100 to 1,500 in the first minute, later up to 22,500
 */
export function reconnectDelayMs(
  { failures, outageMs }: { failures: number; outageMs: number },
  random: number,
): number {
  const cap =
    outageMs < SHORT_OUTAGE_MS
      ? SHORT_CAP_MS
      : Math.min(LONG_CAP_MS, Math.max(SHORT_CAP_MS, outageMs / LONG_SHARE));
  return Math.min(cap, FIRST_MS * 2 ** Math.min(failures, 16)) * (0.5 + random);
}
