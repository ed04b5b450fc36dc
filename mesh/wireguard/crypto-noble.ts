// XChaCha20-Poly1305 and keyed BLAKE2s, which node:crypto lacks, in plain JavaScript: both implementations take them
// from here. A file of its own, because elliptic curves in JavaScript take long to load, and Node has its own.
import { xchacha20poly1305 } from "@noble/ciphers/chacha.js";
import { blake2s } from "@noble/hashes/blake2.js";
import type { WireGuardCrypto } from "./crypto.ts";

/** @returns undefined where noble throws: the tag is wrong, or there is none */
export function opened(open: () => Uint8Array): Uint8Array | undefined {
  try {
    return open();
  } catch {
    return undefined;
  }
}

export const portableOnly = {
  xseal: (key, nonce, plaintext, extra) => xchacha20poly1305(key, nonce, extra).encrypt(plaintext),
  xopen: (key, nonce, sealed, extra) => opened(() => xchacha20poly1305(key, nonce, extra).decrypt(sealed)),
  mac: (key, data) => blake2s(data, { key, dkLen: 16 }),
} satisfies Partial<WireGuardCrypto>;
