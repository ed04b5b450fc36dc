import { createHash, createPrivateKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { toBase64, toHex } from "../mesh/wire/bytes.ts";
import { KEY_ID_BYTES, type PublicSigningKey } from "../mesh/wire/signed.ts";

/** A deployment signing key at rest. `privateKey`: PKCS#8 DER; a secret, never logged. */
export interface SigningKeyPair extends PublicSigningKey {
  privateKey: Uint8Array;
}

/** DER of an Ed25519 SubjectPublicKeyInfo is a fixed 12-byte prefix and the 32 key bytes (RFC 8410 section 4). */
const SPKI_PREFIX_BYTES = 12;

export function generateSigningKey(): SigningKeyPair {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ type: "spki", format: "der" }).subarray(SPKI_PREFIX_BYTES);
  const id = createHash("sha256").update(raw).digest().subarray(0, KEY_ID_BYTES);
  return {
    id: toHex(id),
    publicKey: toBase64(raw),
    privateKey: privateKey.export({ type: "pkcs8", format: "der" }),
  };
}

/** Signs with the newest key; all keys stay valid for checking until they are dropped from the list. */
export class Signer {
  readonly publicKeys: PublicSigningKey[];
  readonly id: Uint8Array;
  readonly #key: KeyObject;

  /** @param keys newest first, at least one */
  constructor(keys: readonly SigningKeyPair[]) {
    this.publicKeys = keys.map(({ id, publicKey }) => ({ id, publicKey }));
    this.id = Buffer.from(keys[0].id, "hex");
    this.#key = createPrivateKey({ key: Buffer.from(keys[0].privateKey), format: "der", type: "pkcs8" });
  }

  sign(message: Uint8Array): Uint8Array {
    return sign(null, message, this.#key);
  }
}
