// What the protocol needs of cryptography, so that the same state machines run on node:crypto and in a browser.
// Two implementations, held to the same vectors: mesh/node/crypto.ts (native) and crypto-portable.ts (@noble).
// Randomness is not here: it is an argument wherever it is needed.
import { MeshError } from "../wire/errors.ts";

/** A Curve25519 private key made ready for use; the 32 bytes it came from are copied. */
export interface X25519KeyPair {
  /** 32 bytes. */
  readonly publicKey: Uint8Array;
  /**
   * RFC 7748 section 6.1.
   *
   * @param publicKey 32 bytes, not trusted
   * @returns 32 bytes; undefined when the result would be all zero (a point of low order), which no honest peer sends
   */
  shared(publicKey: Uint8Array): Uint8Array | undefined;
}

/** One direction of a transport: ChaCha20-Poly1305 (RFC 8439), nonce = 4 zero bytes | counter u64 LE, no extra data. */
export interface TransportCipher {
  /**
   * @param paddedBytes plaintext is zero-padded to this length; at least its own
   * @returns headroomBytes the caller must overwrite (they hold anything) | paddedBytes ciphertext | 16 tag, one allocation
   */
  seal(counter: number, plaintext: Uint8Array, paddedBytes: number, headroomBytes: number): Uint8Array;
  /**
   * The same without headroom, in two pieces where joining them would cost a copy of all of it: as many bytes of
   * ciphertext as there are of plaintext | what the padding became, and the tag.
   */
  sealPieces?(counter: number, plaintext: Uint8Array, paddedBytes: number): [Uint8Array, Uint8Array];
  /** @returns the padded plaintext, a private copy; undefined when it does not authenticate */
  open(counter: number, sealed: Uint8Array): Uint8Array | undefined;
}

export interface WireGuardCrypto {
  /** @param privateKey 32 bytes; clamped on use as RFC 7748 says */
  keyPair(privateKey: Uint8Array): X25519KeyPair;
  transportCipher(key: Uint8Array): TransportCipher;
  /** ChaCha20-Poly1305 (RFC 8439). `nonce`: 12 bytes. @returns ciphertext | 16 tag */
  seal(key: Uint8Array, nonce: Uint8Array, plaintext: Uint8Array, extra: Uint8Array): Uint8Array;
  /** @returns undefined when it does not authenticate */
  open(key: Uint8Array, nonce: Uint8Array, sealed: Uint8Array, extra: Uint8Array): Uint8Array | undefined;
  /** XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), for cookies. `nonce`: 24 bytes. */
  xseal(key: Uint8Array, nonce: Uint8Array, plaintext: Uint8Array, extra: Uint8Array): Uint8Array;
  /** @returns undefined when it does not authenticate */
  xopen(key: Uint8Array, nonce: Uint8Array, sealed: Uint8Array, extra: Uint8Array): Uint8Array | undefined;
  /** BLAKE2s (RFC 7693) of the parts joined. @returns 32 bytes */
  hash(...parts: Uint8Array[]): Uint8Array;
  /** HMAC-BLAKE2s (RFC 2104). @returns 32 bytes */
  hmac(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array;
  /** BLAKE2s with its own key parameter, which is not HMAC. @returns 16 bytes */
  mac(key: Uint8Array, data: Uint8Array): Uint8Array;
}

export type WireGuardErrorCode = "ERR_BAD_KEY" | "ERR_PACKET_TOO_LARGE" | "ERR_TOO_MANY_PEERS";

/** The *caller* asked for something impossible; what a peer sends never throws. */
export class WireGuardError extends MeshError {
  readonly code: WireGuardErrorCode;
  constructor(code: WireGuardErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

/** @throws {WireGuardError} ERR_BAD_KEY */
export function checkKey(key: Uint8Array, what: string): void {
  if (key.length !== 32)
    throw new WireGuardError("ERR_BAD_KEY", `${what} has ${key.length} bytes; a key has 32 (see wg genkey)`);
}

const ONE = Uint8Array.of(1);

/** HKDF with BLAKE2s as Noise section 4.3 has it: `count` outputs of 32 bytes each. */
export function hkdf(
  crypto: WireGuardCrypto,
  key: Uint8Array,
  input: Uint8Array,
  count: 1 | 2 | 3,
): Uint8Array[] {
  const secret = crypto.hmac(key, input);
  const outputs = [crypto.hmac(secret, ONE)];
  while (outputs.length < count)
    outputs.push(crypto.hmac(secret, outputs[outputs.length - 1], Uint8Array.of(outputs.length + 1)));
  return outputs;
}

/** Writes 4 zero bytes | counter u64 LE into `nonce` (12 bytes). `counter`: 0..2^53 - 1. */
export function writeNonce(nonce: Uint8Array, counter: number): void {
  const high = Math.floor(counter / 0x1_0000_0000);
  nonce[4] = counter;
  nonce[5] = counter >>> 8;
  nonce[6] = counter >>> 16;
  nonce[7] = counter >>> 24;
  nonce[8] = high;
  nonce[9] = high >>> 8;
  nonce[10] = high >>> 16;
  nonce[11] = 0;
}
