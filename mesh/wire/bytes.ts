// Byte helpers for code that also runs in a browser: Uint8Array and DataView only, never Buffer.
import { WireError } from "./errors.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

export const utf8 = (text: string): Uint8Array => encoder.encode(text);

/** @throws {WireError} ERR_BAD_VALUE when `bytes` is not UTF-8 */
export function fromUtf8(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    throw new WireError("ERR_BAD_VALUE", "text is not UTF-8", { cause });
  }
}

export function concatBytes(...parts: Uint8Array[]): Uint8Array {
  let length = 0;
  for (const part of parts) length += part.length;
  const out = new Uint8Array(length);
  let offset = 0;
  for (const part of parts) {
    out.set(part, offset);
    offset += part.length;
  }
  return out;
}

/** Compares without an early exit; lengths are not secret. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a[i] ^ b[i];
  return difference === 0;
}

const HEX_PAIRS = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** Joined, not added up: a sum stays a tree of its pieces, which costs a map that keeps it as a key ten times as much. */
export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => HEX_PAIRS[byte]).join("");
}

/** @throws {WireError} ERR_BAD_VALUE for odd length or a character that is no hex digit */
export function fromHex(text: string): Uint8Array {
  if (text.length % 2 !== 0 || /[^0-9a-f]/i.test(text)) throw new WireError("ERR_BAD_VALUE", "not hex");
  const out = new Uint8Array(text.length / 2);
  for (let i = 0; i < out.length; i++) out[i] = Number.parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return out;
}

/** Standard base64 with padding (RFC 4648 section 4), as `wg` prints keys. */
export function toBase64(bytes: Uint8Array): string {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

/** @throws {WireError} ERR_BAD_VALUE unless `text` is exactly what toBase64 would write */
export function fromBase64(text: string): Uint8Array {
  let binary: string;
  try {
    binary = atob(text);
  } catch (cause) {
    throw new WireError("ERR_BAD_VALUE", "not base64", { cause });
  }
  const out = Uint8Array.from(binary, (char) => char.charCodeAt(0));
  if (toBase64(out) !== text) throw new WireError("ERR_BAD_VALUE", "not canonical base64");
  return out;
}
