// A connection to a relay begun before it is known whether it will be needed. A command's relay is nearly always the one of
// the server it belongs to, so TCP, TLS and the upgrade go on while the coordinator still looks the workspace up: two
// round trips less, with TLS three. The request is the ordinary one, so nothing in between need understand more than
// before; the ticket, which is not there yet, follows in ClientInfo.
import { type Dialled, type DialOptions, dialRelay } from "./dial.ts";
import { upgradeRequest } from "./upgrade.ts";

/** Servers end connections on which nothing is asked; and whoever waits longer than that waits for something else. */
const KEPT_MS = 5_000;

export interface EarlyDial {
  /**
   * The connection, once, if it is what `options` ask for.
   *
   * @returns undefined when there is none, or it failed or ended: dial as ever
   * @throws the signal's reason
   */
  take(options: DialOptions): Promise<Dialled | undefined>;
  /** Ends what nobody took. */
  close(): void;
}

/** Begins to connect to the relay at `accessUrl`. `given`: as dialRelay's, for what else it needs to get there. */
export function earlyDial(
  accessUrl: string | URL,
  given: Pick<DialOptions, "environment"> & { keptMs?: number } = {},
): EarlyDial {
  const url = new URL("/derp", accessUrl);
  const { environment, keptMs = KEPT_MS } = given;
  const giveUp = new AbortController();
  const dialling = dialRelay({ environment, url, signal: giveUp.signal }).then(
    (dialled) => {
      dialled.socket.on("error", () => undefined); // nobody may listen yet
      dialled.socket.write(upgradeRequest(url, {}, false));
      return { ...dialled, isRequested: true };
    },
    () => undefined, // whoever dials anew hears why
  );
  let isFree = true;
  const drop = (): void => {
    giveUp.abort();
    void dialling.then((dialled) => dialled?.socket.destroy());
  };
  const close = (): void => {
    clearTimeout(timer);
    if (isFree) drop();
    isFree = false;
  };
  const timer = setTimeout(close, keptMs);
  timer.unref();

  return {
    close,
    async take(options) {
      if (!isFree || options.environment !== environment || !isSamePlace(url, options)) return undefined;
      isFree = false;
      clearTimeout(timer);
      const late = setTimeout(() => giveUp.abort(), Math.min(options.connectMs ?? keptMs, keptMs));
      options.signal.addEventListener("abort", drop);
      try {
        const dialled = await dialling;
        options.signal.throwIfAborted();
        return dialled?.socket.readable && dialled.socket.writable ? dialled : undefined;
      } finally {
        clearTimeout(late);
        options.signal.removeEventListener("abort", drop);
      }
    },
  };
}

/** And nobody else to trust there than TLS trusts anyway. */
function isSamePlace(
  url: URL,
  { url: wanted, address, addresses, certName, insecure, ca }: DialOptions,
): boolean {
  if (wanted.href !== url.href || address || certName || insecure || ca) return false;
  const host = url.hostname.replace(/^\[|\]$/g, "");
  // An address that the map gives beside a name may be another machine's.
  const rules = addresses ? [addresses.v4, addresses.v6] : [];
  return rules.every((rule) => rule.kind !== "literal" || rule.address === host);
}
