// X11 forwarding: the workspace gets a fake cookie, and this end puts the real one in its place, so that it never leaves
// the machine. Pure; the connection setup is that of the X Window System Protocol, section 8.
import { CliError } from "../errors.ts";
import type { Endpoint } from "./spec.ts";

export const COOKIE_PROTOCOL = "MIT-MAGIC-COOKIE-1";
export const COOKIE_BYTES = 16;
/** An X server's TCP port for display 0. */
const X11_PORT = 6_000;
const MAX_DISPLAY = 65_535 - X11_PORT;
/** Order, version, two lengths and their padding. */
const SETUP_BYTES = 12;
/** Name and data of the authorization together; cookies need 34. */
const MAX_AUTHORIZATION_BYTES = 1_024;

/** Where a display is reached, and what `xauth` calls it. `screen` goes into DISPLAY at the far end. */
export interface Display {
  target: Endpoint;
  xauthName: string;
  screen: number;
}

/** Reads DISPLAY: ":0", "unix:0.1", "host:0.0", "[::1]:0", "/path/of/socket:0". @throws {CliError} ERR_BAD_DISPLAY */
export function parseDisplay(text: string | undefined): Display {
  const match = /^(.*):(\d{1,5})(?:\.(\d{1,3}))?$/.exec(text ?? "");
  const number = Number(match?.[2]);
  if (!text || !match || number > MAX_DISPLAY)
    throw new CliError(
      "ERR_BAD_DISPLAY",
      text ? `DISPLAY=${text} names no X display` : "there is no X display to forward: DISPLAY is not set",
      { hint: "Run it from a graphical session, or leave -X and -Y out." },
    );
  const [, host] = match;
  const screen = Number(match[3] ?? 0);
  const withoutScreen = text.slice(0, match[3] === undefined ? undefined : -match[3].length - 1);
  if (host.startsWith("/")) return { target: { kind: "unix", path: withoutScreen }, xauthName: text, screen };
  if (host === "" || host === "unix")
    return {
      target: { kind: "unix", path: `/tmp/.X11-unix/X${number}` },
      xauthName: `unix:${number}`,
      screen,
    };
  return {
    target: { kind: "tcp", host: host.replace(/^\[(.*)\]$/, "$1"), port: X11_PORT + number },
    // xauth keeps "localhost:10" (another ssh's display) under the machine's own name.
    xauthName: host === "localhost" ? `unix:${number}` : withoutScreen,
    screen,
  };
}

/** The cookie in what `xauth list DISPLAY` prints, as hex. */
export function parseXauthList(text: string): string | undefined {
  for (const line of text.split("\n")) {
    const match = /^\S+\s+(\S+)\s+((?:[0-9a-fA-F]{2})+)\s*$/.exec(line);
    if (match?.[1] === COOKIE_PROTOCOL && match[2].length === 2 * COOKIE_BYTES) return match[2].toLowerCase();
  }
  return undefined;
}

export type CookieSwap =
  | { kind: "more" }
  /** Goes to the X server; everything behind it passes unread. */
  | { kind: "done"; bytes: Uint8Array }
  | { kind: "refused"; why: string };

/** Reads one connection's setup, however it is cut, and puts the real cookie where the fake one was. */
export class CookieReplacer {
  readonly #fake: Uint8Array;
  readonly #real: Uint8Array;
  #pending: Buffer = Buffer.alloc(0);

  /** Both of COOKIE_BYTES. */
  constructor(fake: Uint8Array, real: Uint8Array) {
    this.#fake = fake;
    this.#real = real;
  }

  push(chunk: Uint8Array): CookieSwap {
    const bytes = Buffer.concat([this.#pending, chunk]);
    this.#pending = bytes;
    if (bytes.length === 0) return { kind: "more" };
    const order = bytes[0];
    if (order !== 0x42 && order !== 0x6c) return { kind: "refused", why: "it does not speak X11" };
    if (bytes.length < SETUP_BYTES) return { kind: "more" };
    const u16 = (at: number) => (order === 0x42 ? bytes.readUInt16BE(at) : bytes.readUInt16LE(at));
    const nameBytes = u16(6);
    const dataBytes = u16(8);
    if (nameBytes + dataBytes > MAX_AUTHORIZATION_BYTES)
      return { kind: "refused", why: "its authorization is too long" };
    const dataAt = SETUP_BYTES + ((nameBytes + 3) & ~3);
    if (bytes.length < dataAt + ((dataBytes + 3) & ~3)) return { kind: "more" };
    const name = bytes.toString("latin1", SETUP_BYTES, SETUP_BYTES + nameBytes);
    const data = bytes.subarray(dataAt, dataAt + dataBytes);
    if (name !== COOKIE_PROTOCOL || !isSame(data, this.#fake))
      return { kind: "refused", why: "wrong authentication" };
    const out = Buffer.from(bytes);
    out.set(this.#real, dataAt);
    return { kind: "done", bytes: out };
  }
}

/** In a time that does not tell how much of it was right. */
function isSame(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a[i] ^ b[i];
  return difference === 0;
}
