// The HTTP/1.1 upgrade to DERP: what is asked, and what the answer means. Pure.
import { RelayError } from "./errors.ts";
import { ResponseHeadReader, requestHead } from "./http-head.ts";

const FIRST_BYTE_OF_HTTP = 0x48;

/** `fastStart`: the relay shall answer in frames at once, without a response head. */
export function upgradeRequest(url: URL, headers: Record<string, string>, fastStart: boolean): Uint8Array {
  return requestHead("GET", url.pathname + url.search, {
    ...headers,
    Host: url.host,
    Upgrade: "DERP",
    Connection: "Upgrade",
    ...(fastStart && { "Derp-Fast-Start": "1" }),
  });
}

/** Finds where the frames begin in what the relay sends. */
export class UpgradeAnswer {
  #origin: string;
  #fastStart: boolean;
  #reader: ResponseHeadReader | undefined;
  #done = false;

  constructor(origin: string, fastStart: boolean) {
    this.#origin = origin;
    this.#fastStart = fastStart;
  }

  /** The upgrade is accepted: all further bytes are frames. */
  get done(): boolean {
    return this.#done;
  }

  /**
   * @returns the bytes of `chunk` that are frames, once there are any
   * @throws {RelayError} ERR_RELAY_REFUSED with the status, ERR_RELAY_PROTOCOL
   */
  push(chunk: Uint8Array): Uint8Array | undefined {
    if (chunk.length === 0) return undefined;
    // A refusal has a head also where the answer to a fast start has none.
    if (!this.#reader && this.#fastStart && chunk[0] !== FIRST_BYTE_OF_HTTP) {
      this.#done = true;
      return chunk;
    }
    this.#reader ??= new ResponseHeadReader();
    const head = this.#reader.push(chunk);
    if (!head) return undefined;
    if (head.status !== 101) throw refused(this.#origin, head.status);
    this.#done = true;
    return head.rest.length > 0 ? head.rest : undefined;
  }
}

export function refused(origin: string, status: number): RelayError {
  const hint =
    status >= 500
      ? "it may be starting or full, and is asked again"
      : "does a proxy in between strip upgrades? DERP over WebSocket is tried then";
  return new RelayError(
    "ERR_RELAY_REFUSED",
    `${origin} answered the relay upgrade with status ${status}; ${hint}`,
    { status },
  );
}
