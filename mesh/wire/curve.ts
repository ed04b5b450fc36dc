/**
 * Whether 32 bytes are a Curve25519 public key as every implementation writes it: little-endian, below 2^255 - 19
 * (RFC 7748 section 5). X25519 itself takes other spellings of the same key, so that whoever has one private key could
 * come under many names; where a key is a name, only this one counts.
 */
export function isCanonicalPublicKey(key: Uint8Array): boolean {
  if (key.length !== 32 || key[31] > 0x7f) return false;
  if (key[31] < 0x7f || key[0] < 0xed) return true;
  for (let i = 1; i < 31; i++) if (key[i] !== 0xff) return true;
  return false;
}
