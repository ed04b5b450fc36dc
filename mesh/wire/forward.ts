// Forwards and the other small services of an agent, and how an agent opens a stream back to a client.
// One mesh stream each. Version 1.
//
// Client -> agent, by service name:
//   "tcp:HOST:PORT"   a TCP connection from the workspace. HOST: name, IPv4, or IPv6 in brackets; PORT 1..65535
//   "unix:PATH"       a connection to a unix socket; PATH absolute, or relative to the session's directory
//   "udp:HOST:PORT"   a UDP socket connected there. Datagrams travel as DATAGRAM frames of the stream, each way;
//                     the stream carries nothing behind the ANSWER, and its end is the end of the flow
//   "listen"          the agent listens, and opens a "callback" for each connection that comes.
//                     Metadata: LISTEN. The stream carries nothing behind the ANSWER; its end stops the listener
//   "speedtest"       metadata: SPEEDTEST. "down": ANSWER, then bytes without meaning until the time is over.
//                     "up": ANSWER at once; the agent reads until the client's end, then sends a second ANSWER
//                     whose text is {"bytes": n, "durationMs": n}
//   "sessions"        metadata: SESSIONS. ANSWER, whose text is the JSON list for "list"
// Agent -> client:
//   "callback"        metadata: CALLBACK. Raw bytes each way, no ANSWER: a client that can't serve it resets it.
//                     A client opens the door only to a token it made for this session: see `CallbackMetadata`
//
// ANSWER (agent, first on the stream): status u8 | length varint (RFC 9000 section 16) | text[length], UTF-8, <= 65,536 B
//   status 0: done, text as the service says (else empty), raw bytes follow. Otherwise the reason, as in RFC 4254
//   section 5.1 (1 prohibited, 2 connect failed, 3 unknown, 4 resource shortage, 5 bad request), text for the user, and
//   the agent's end of the stream follows. The client may write before the answer.
//
// Metadata is one JSON object in UTF-8; unknown members are ignored.
//   LISTEN     {v: 1, token, kind: "tcp", host, port} (port 0: any; answer text {"port": n}; host "" or "*": all
//              addresses, "localhost": loopback) or {v: 1, token, kind: "unix", path}
//   CALLBACK   {token, origin?: {address, port}}
//   SPEEDTEST  {v: 1, direction: "up" | "down", durationMs: 100..60,000}
//   SESSIONS   {v: 1, op: "list"} or {v: 1, op: "close", id}
// A token is 16 random bytes in base64: what the client gave when it asked (LISTEN, or agent and x11 in a session header).
//
// History: version 1, first.
import { concatBytes, fromUtf8, utf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import * as s from "./shape.ts";
import { ByteReader, varintBytes, writeVarint } from "./varint.ts";

export const FORWARD_VERSION = 1;
export const LISTEN_SERVICE = "listen";
export const CALLBACK_SERVICE = "callback";
export const SPEEDTEST_SERVICE = "speedtest";
export const SESSIONS_SERVICE = "sessions";
export const MAX_ANSWER_BYTES = 65_536;
export const MAX_METADATA_BYTES = 16_384;
/** An ANSWER holds no more of them anyway. */
const MAX_SUMMARY_STREAMS = MAX_ANSWER_BYTES;

export const ANSWER = {
  ok: 0,
  prohibited: 1,
  connectFailed: 2,
  unknown: 3,
  resourceShortage: 4,
  badRequest: 5,
} as const;

const token = s.text({ pattern: /^[A-Za-z0-9+/]{22}==$/ });
const v = s.oneOf(FORWARD_VERSION);
const port = s.integer({ min: 0, max: 65_535 });

export const ListenMetadata = s.variants("kind", {
  tcp: s.object({ v, token, host: s.text({ max: 255 }), port }),
  unix: s.object({ v, token, path: s.text({ min: 1, max: 4_096 }) }),
});
export type ListenMetadata = s.infer<typeof ListenMetadata>;

export const CallbackMetadata = s.object({
  token,
  /** Who connected to the workspace, as the agent says. */
  origin: s.optional(s.object({ address: s.text({ max: 255 }), port })),
});
export type CallbackMetadata = s.infer<typeof CallbackMetadata>;

export const SpeedtestMetadata = s.object({
  v,
  direction: s.oneOf("up", "down"),
  durationMs: s.integer({ min: 100, max: 60_000 }),
});
export type SpeedtestMetadata = s.infer<typeof SpeedtestMetadata>;

export const SessionsMetadata = s.variants("op", {
  list: s.object({ v }),
  close: s.object({ v, id: s.text({ max: 64 }) }),
});
export type SessionsMetadata = s.infer<typeof SessionsMetadata>;

/** One line of the answer to "list": a session of the same user with this agent. Instants: Unix ms. */
export const SessionSummary = s.object({
  id: s.text({ max: 64 }),
  startedAt: s.number,
  lastHeardAt: s.number,
  /** It is the one this list was asked over. */
  isCurrent: s.boolean,
  /** How long it is kept while silent. */
  resumeWindowMs: s.number,
  path: s.text({ max: 128 }),
  rttMs: s.optional(s.number),
  streams: s.list(
    s.object({ service: s.text({ max: 512 }), what: s.text({ max: 256 }), openedAt: s.number }),
    { max: MAX_SUMMARY_STREAMS },
  ),
});
export type SessionSummary = s.infer<typeof SessionSummary>;

/** @throws {WireError} ERR_FRAME_TOO_LARGE, ERR_BAD_VALUE */
export function decodeMetadata<S extends s.Shape<unknown, unknown>>(
  schema: S,
  bytes: Uint8Array,
): s.infer<S> {
  if (bytes.length > MAX_METADATA_BYTES)
    throw new WireError("ERR_FRAME_TOO_LARGE", `metadata of ${bytes.length} bytes`);
  let json: unknown;
  try {
    json = JSON.parse(fromUtf8(bytes));
  } catch (cause) {
    throw new WireError("ERR_BAD_VALUE", "metadata is not JSON", { cause });
  }
  try {
    return schema.parse(json) as s.infer<S>;
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause;
    throw new WireError("ERR_BAD_VALUE", `metadata: ${cause.message}`, { cause });
  }
}

export const encodeMetadata = (
  metadata: ListenMetadata | CallbackMetadata | SpeedtestMetadata | SessionsMetadata,
): Uint8Array => utf8(JSON.stringify(metadata));

export function encodeAnswer(status: number, text = ""): Uint8Array {
  const bytes = utf8(text);
  if (bytes.length > MAX_ANSWER_BYTES)
    throw new WireError("ERR_FRAME_TOO_LARGE", `answer of ${bytes.length} bytes`);
  const out = new Uint8Array(1 + varintBytes(bytes.length) + bytes.length);
  out[0] = status;
  out.set(bytes, writeVarint(out, 1, bytes.length));
  return out;
}

export interface Answer {
  status: number;
  text: string;
  /** What came behind it in the same chunk. */
  rest: Uint8Array;
}

/** Reads the one ANSWER at a stream's start, however it is cut. */
export class AnswerDecoder {
  #pending: Uint8Array = new Uint8Array();

  /** @returns undefined while it is incomplete @throws {WireError} ERR_FRAME_TOO_LARGE, ERR_BAD_VALUE */
  push(chunk: Uint8Array): Answer | undefined {
    const bytes = this.#pending.length === 0 ? chunk : concatBytes(this.#pending, chunk);
    if (bytes.length < 2 || bytes.length < 1 + (1 << (bytes[1] >> 6))) {
      this.#pending = bytes.slice();
      return undefined;
    }
    const reader = new ByteReader(bytes);
    const status = reader.u8();
    const length = reader.varint();
    if (length > MAX_ANSWER_BYTES) throw new WireError("ERR_FRAME_TOO_LARGE", `answer of ${length} bytes`);
    const start = 1 + (1 << (bytes[1] >> 6));
    if (bytes.length < start + length) {
      this.#pending = bytes.slice();
      return undefined;
    }
    this.#pending = new Uint8Array();
    return {
      status,
      text: fromUtf8(bytes.subarray(start, start + length)),
      rest: bytes.subarray(start + length),
    };
  }
}

/** Target of "tcp:" and "udp:" services. @returns undefined when `service` names none */
export function parseHostPort(
  service: string,
): { protocol: "tcp" | "udp"; host: string; port: number } | undefined {
  const match =
    /^(tcp|udp):(?:\[([0-9A-Fa-f:.%\w]{2,100})\]|([^:[\]\s/\x00-\x1f\x7f]{1,255})):([1-9]\d{0,4})$/.exec(
      service,
    );
  if (!match) return undefined;
  const port = Number(match[4]);
  if (port > 65_535) return undefined;
  return { protocol: match[1] as "tcp" | "udp", host: match[2] ?? match[3], port };
}

export const hostPortService = (protocol: "tcp" | "udp", host: string, port: number): string =>
  `${protocol}:${host.includes(":") ? `[${host}]` : host}:${port}`;
