// API keys: `<10-character id>-<22-character secret>`, both base62. The id finds the row, the secret proves the
// holder. The row keeps SHA-256 of the secret: 131 random bits need no slow hash, and a leaked table opens nothing.
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
export const KEY_ID_CHARS = 10;
export const KEY_SECRET_CHARS = 22;
const FORM = new RegExp(`^([0-9A-Za-z]{${KEY_ID_CHARS}})-([0-9A-Za-z]{${KEY_SECRET_CHARS}})$`);

const HOUR_MS = 3_600_000;
/** A login lasts a day from its last use. */
export const SESSION_LIFETIME_MS = 24 * HOUR_MS;
/** A token made by hand ends a week after it was made, used or not. */
export const TOKEN_LIFETIME_MS = 168 * HOUR_MS;
/** A session in use is moved on at most once per hour, so that requests seldom write. */
export const SLIDE_AFTER_MS = HOUR_MS;

/** "application_connect" opens workspace apps and nothing else. */
export const KEY_SCOPES = ["all", "application_connect"] as const;
export type KeyScope = (typeof KEY_SCOPES)[number];

export interface ParsedKey {
  id: string;
  secret: string;
}

export interface NewKey extends ParsedKey {
  /** What the user gets, once: `id-secret`. */
  token: string;
  /** 32 bytes, what is stored. */
  hashedSecret: Buffer;
}

/** @param random as crypto.randomBytes */
export function newKey(random: (bytes: number) => Uint8Array = randomBytes): NewKey {
  const id = randomBase62(KEY_ID_CHARS, random);
  const secret = randomBase62(KEY_SECRET_CHARS, random);
  return { id, secret, token: `${id}-${secret}`, hashedSecret: hashSecret(secret) };
}

/** @returns `length` characters, each of the 62 equally likely */
export function randomBase62(length: number, random: (bytes: number) => Uint8Array = randomBytes): string {
  let text = "";
  while (text.length < length) {
    for (const byte of random(length - text.length)) {
      // 248 = 4 * 62: the few bytes above would favour the first characters.
      if (byte < 248) text += ALPHABET[byte % 62];
    }
  }
  return text;
}

/** @returns undefined for anything that isn't a key's form */
export function parseKey(token: string): ParsedKey | undefined {
  const found = FORM.exec(token);
  return found ? { id: found[1]!, secret: found[2]! } : undefined;
}

/** SHA-256, 32 bytes. */
export function hashSecret(secret: string): Buffer {
  return createHash("sha256").update(secret).digest();
}

/** Takes the same time wherever the first difference is. */
export function secretMatches(secret: string, hashedSecret: Uint8Array): boolean {
  const hashed = hashSecret(secret);
  return hashedSecret.length === hashed.length && timingSafeEqual(hashed, hashedSecret);
}

/** Times in ms since 1970. */
export interface KeyLifetime {
  expiresAt: number;
  lifetimeMs: number;
}

/** The instant itself is already too late. */
export function isExpired({ expiresAt }: Pick<KeyLifetime, "expiresAt">, now: number): boolean {
  return now >= expiresAt;
}

/** @returns the session's new end when it is worth a write, else undefined; an expired one stays expired */
export function slideSession({ expiresAt, lifetimeMs }: KeyLifetime, now: number): number | undefined {
  if (isExpired({ expiresAt }, now)) return undefined;
  const next = now + lifetimeMs;
  return next - expiresAt >= SLIDE_AFTER_MS ? next : undefined;
}
