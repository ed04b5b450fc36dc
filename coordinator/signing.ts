import { createHash, createPrivateKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { fromHex, toBase64, toHex } from "../mesh/wire/bytes.ts";
import { KEY_ID_BYTES, type PublicSigningKey } from "../mesh/wire/signed.ts";
import { SPKI_PREFIX } from "./ed25519.ts";

/** A deployment signing key at rest. `privateKey`: the raw seed, 32 bytes, a secret; absent once it only verifies. */
export interface SigningKeyPair {
  /** 16 hex digits: the first 8 bytes of SHA-256 over the public key. */
  keyId: string;
  /** Raw, 32 bytes. */
  publicKey: Uint8Array;
  privateKey?: Uint8Array;
}

/** PKCS#8 of Ed25519 is a fixed prefix and 32 bytes (RFC 8410 section 7). */
const PKCS8_PREFIX = Buffer.from("302e020100300506032b657004220420", "hex");

/** @param publicKey raw, 32 bytes */
export const keyIdOf = (publicKey: Uint8Array): string =>
  toHex(createHash("sha256").update(publicKey).digest().subarray(0, KEY_ID_BYTES));

export function generateSigningKey(): Required<SigningKeyPair> {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ type: "spki", format: "der" }).subarray(SPKI_PREFIX.length);
  return {
    keyId: keyIdOf(raw),
    publicKey: raw,
    privateKey: privateKey.export({ type: "pkcs8", format: "der" }).subarray(PKCS8_PREFIX.length),
  };
}

/** Signs with the newest key that can; all keys stay valid for checking until they are dropped from the list. */
export class Signer {
  readonly publicKeys: PublicSigningKey[];
  readonly id: Uint8Array;
  readonly #key: KeyObject;

  /** @param keys newest first; at least one holds its private half */
  constructor(keys: readonly SigningKeyPair[]) {
    const current = keys.find(({ privateKey }) => privateKey !== undefined);
    if (!current?.privateKey) throw new RangeError("no signing key holds its private half");
    this.publicKeys = keys.map(({ keyId, publicKey }) => ({ id: keyId, publicKey: toBase64(publicKey) }));
    this.id = fromHex(current.keyId);
    const der = Buffer.concat([PKCS8_PREFIX, current.privateKey]);
    this.#key = createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  }

  sign(message: Uint8Array): Uint8Array {
    return sign(null, message, this.#key);
  }
}
