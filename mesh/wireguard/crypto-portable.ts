// The protocol's cryptography in plain JavaScript (@noble), for browsers. Every call is slower than the native one
// (X25519 23 times, sealing 64 KB 11 times), so nodes use mesh/node/crypto.ts.
import { chacha20poly1305 } from "@noble/ciphers/chacha.js";
import { x25519 } from "@noble/curves/ed25519.js";
import { blake2s } from "@noble/hashes/blake2.js";
import { hmac } from "@noble/hashes/hmac.js";
import {
  checkKey,
  type TransportCipher,
  type WireGuardCrypto,
  writeNonce,
  type X25519KeyPair,
} from "./crypto.ts";
import { opened, portableOnly } from "./crypto-noble.ts";

const TAG_BYTES = 16;

function nonceOf(counter: number): Uint8Array {
  const nonce = new Uint8Array(12);
  writeNonce(nonce, counter);
  return nonce;
}

function keyPair(privateKey: Uint8Array): X25519KeyPair {
  checkKey(privateKey, "the private key");
  const secret = new Uint8Array(privateKey); // slice() of a Buffer would share its memory
  return {
    publicKey: x25519.getPublicKey(secret),
    // noble throws for a point of low order
    shared: (publicKey) => opened(() => x25519.getSharedSecret(secret, publicKey)),
  };
}

class PortableCipher implements TransportCipher {
  #key: Uint8Array;
  constructor(key: Uint8Array) {
    checkKey(key, "the transport key");
    this.#key = new Uint8Array(key);
  }

  seal(counter: number, plaintext: Uint8Array, paddedBytes: number, headroomBytes: number): Uint8Array {
    const message = new Uint8Array(headroomBytes + paddedBytes + TAG_BYTES);
    const body = message.subarray(headroomBytes);
    body.set(plaintext);
    chacha20poly1305(this.#key, nonceOf(counter)).encrypt(body.subarray(0, paddedBytes), body); // in place
    return message;
  }

  open(counter: number, sealed: Uint8Array): Uint8Array | undefined {
    return opened(() => chacha20poly1305(this.#key, nonceOf(counter)).decrypt(sealed));
  }
}

function absorb<H extends { update(part: Uint8Array): unknown; digest(): Uint8Array }>(
  hash: H,
  parts: Uint8Array[],
): Uint8Array {
  for (const part of parts) hash.update(part);
  return hash.digest();
}

export const portableCrypto: WireGuardCrypto = {
  ...portableOnly,
  keyPair,
  transportCipher: (key) => new PortableCipher(key),
  seal: (key, nonce, plaintext, extra) => chacha20poly1305(key, nonce, extra).encrypt(plaintext),
  open: (key, nonce, sealed, extra) => opened(() => chacha20poly1305(key, nonce, extra).decrypt(sealed)),
  hash: (...parts) => absorb(blake2s.create(), parts),
  hmac: (key, ...parts) => absorb(hmac.create(blake2s, key), parts),
};
