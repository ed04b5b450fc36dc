// The little HTTP/1.1 a relay client speaks: one request head, one response head. Pure. Node's own client can't send
// bytes behind an upgrade request, nor read an answer that has no head (fast start), and costs time to load.
import { RelayError } from "./errors.ts";

/** Of a response: more is no relay, and must not fill our memory. */
export const MAX_HEAD_BYTES = 16_384;
/** 100 and 103 may stand before the answer. */
const MAX_INFORMATIONAL = 8;

/**
 * `target`: path and query, or host:port for CONNECT.
 *
 * @throws {RelayError} ERR_RELAY_PROTOCOL when a name or value could end its line
 */
export function requestHead(
  method: "GET" | "CONNECT",
  target: string,
  headers: Record<string, string>,
): Uint8Array {
  const lines = [`${method} ${target} HTTP/1.1`];
  for (const [name, value] of Object.entries(headers)) {
    if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name) || /[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]/.test(value))
      throw new RelayError("ERR_RELAY_PROTOCOL", `the header ${JSON.stringify(name)} can't be sent`);
    lines.push(`${name}: ${value}`);
  }
  if (/[^\x21-\x7e]/.test(target))
    throw new RelayError("ERR_RELAY_PROTOCOL", "the relay's address can't be asked for");
  return Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1");
}

export interface ResponseHead {
  status: number;
  /** Names in lower case; the last of equal ones. */
  headers: Map<string, string>;
  /** What came behind the head. */
  rest: Uint8Array;
}

/** Collects a response head, however the transport cut it. */
export class ResponseHeadReader {
  #held = Buffer.alloc(0);
  #seenBytes = 0;
  #informational = 0;

  /**
   * @returns the head once it is complete; not to be called again then
   * @throws {RelayError} ERR_RELAY_PROTOCOL: no HTTP, or a head beyond MAX_HEAD_BYTES
   */
  push(chunk: Uint8Array): ResponseHead | undefined {
    let from = Math.max(0, this.#held.length - 3);
    this.#held = Buffer.concat([this.#held, chunk]);
    for (;;) {
      // Of the head behind an informational one, too.
      if (!STATUS_START.startsWith(this.#held.toString("latin1", 0, STATUS_START.length)))
        throw notHttp("what answers speaks neither HTTP nor DERP");
      const end = this.#held.indexOf("\r\n\r\n", from);
      const headBytes = end === -1 ? this.#held.length : end + 4;
      if (this.#seenBytes + headBytes > MAX_HEAD_BYTES)
        throw notHttp(`the answer's head is longer than ${MAX_HEAD_BYTES} bytes`);
      if (end === -1) return undefined;
      const head = parseHead(this.#held.toString("latin1", 0, end));
      const rest = new Uint8Array(this.#held.subarray(headBytes));
      if (head.status >= 200 || head.status === 101) return { ...head, rest };
      if (++this.#informational > MAX_INFORMATIONAL) throw notHttp("the answer never begins");
      this.#seenBytes += headBytes;
      this.#held = Buffer.from(rest);
      from = 0;
    }
  }
}

const STATUS_START = "HTTP/1.";

function parseHead(text: string): { status: number; headers: Map<string, string> } {
  const [first, ...lines] = text.split("\r\n");
  const status = /^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(first)?.[1];
  if (status === undefined) throw notHttp("the answer's status line is malformed");
  const headers = new Map<string, string>();
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (colon > 0) headers.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  return { status: Number(status), headers };
}

function notHttp(message: string): RelayError {
  return new RelayError("ERR_RELAY_PROTOCOL", message);
}
