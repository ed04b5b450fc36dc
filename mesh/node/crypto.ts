// The protocol's cryptography on node:crypto: see mesh/wireguard/crypto.ts for what each call promises.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createSecretKey,
  type KeyObject,
} from "node:crypto";
import {
  checkKey,
  type TransportCipher,
  type WireGuardCrypto,
  writeNonce,
  type X25519KeyPair,
} from "../wireguard/crypto.ts";
import { portableOnly } from "../wireguard/crypto-noble.ts";
import { nativeKeyPair } from "./x25519.ts";

const CIPHER = "chacha20-poly1305";
const HASH = "blake2s256";
const TAG_BYTES = 16;
const TAG = { authTagLength: TAG_BYTES };
const ZEROS = new Uint8Array(64);

function keyPair(privateKey: Uint8Array): X25519KeyPair {
  checkKey(privateKey, "the private key");
  const pair = nativeKeyPair(privateKey);
  if (!pair) throw new Error("there is no node:crypto");
  return pair;
}

class NativeCipher implements TransportCipher {
  #key: KeyObject;
  #nonce = new Uint8Array(12);
  constructor(key: Uint8Array) {
    checkKey(key, "the transport key");
    this.#key = createSecretKey(key);
  }

  seal(counter: number, plaintext: Uint8Array, paddedBytes: number, headroomBytes: number): Uint8Array {
    writeNonce(this.#nonce, counter);
    const cipher = createCipheriv(CIPHER, this.#key, this.#nonce, TAG);
    const message = Buffer.allocUnsafe(headroomBytes + paddedBytes + TAG_BYTES);
    let offset = headroomBytes;
    if (plaintext.length > 0) message.set(cipher.update(plaintext), offset);
    offset += plaintext.length;
    for (let left = paddedBytes - plaintext.length; left > 0; left -= ZEROS.length) {
      const zeros = left < ZEROS.length ? ZEROS.subarray(0, left) : ZEROS;
      message.set(cipher.update(zeros), offset);
      offset += zeros.length;
    }
    cipher.final();
    message.set(cipher.getAuthTag(), offset);
    return message;
  }

  sealPieces(counter: number, plaintext: Uint8Array, paddedBytes: number): [Uint8Array, Uint8Array] {
    writeNonce(this.#nonce, counter);
    const cipher = createCipheriv(CIPHER, this.#key, this.#nonce, TAG);
    const body = cipher.update(plaintext);
    const paddingBytes = paddedBytes - plaintext.length;
    const tail = Buffer.allocUnsafe(paddingBytes + TAG_BYTES);
    if (paddingBytes > 0) {
      const zeros =
        paddingBytes <= ZEROS.length ? ZEROS.subarray(0, paddingBytes) : new Uint8Array(paddingBytes);
      tail.set(cipher.update(zeros));
    }
    cipher.final();
    tail.set(cipher.getAuthTag(), paddingBytes);
    return [body, tail];
  }

  open(counter: number, sealed: Uint8Array): Uint8Array | undefined {
    writeNonce(this.#nonce, counter);
    return opened(createDecipheriv(CIPHER, this.#key, this.#nonce, TAG), sealed);
  }
}

function opened(decipher: ReturnType<typeof createDecipheriv>, sealed: Uint8Array): Uint8Array | undefined {
  const length = sealed.length - TAG_BYTES;
  if (length < 0) return undefined;
  try {
    (decipher as ReturnType<typeof createDecipheriv> & { setAuthTag(tag: Uint8Array): void }).setAuthTag(
      sealed.subarray(length),
    );
    const plaintext = decipher.update(sealed.subarray(0, length));
    decipher.final(); // throws on a wrong tag, before anybody has seen the plaintext
    return plaintext;
  } catch {
    return undefined;
  }
}

function seal(key: Uint8Array, nonce: Uint8Array, plaintext: Uint8Array, extra: Uint8Array): Uint8Array {
  const cipher = createCipheriv(CIPHER, key, nonce, TAG);
  cipher.setAAD(extra, { plaintextLength: plaintext.length });
  return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
}

function open(
  key: Uint8Array,
  nonce: Uint8Array,
  sealed: Uint8Array,
  extra: Uint8Array,
): Uint8Array | undefined {
  if (sealed.length < TAG_BYTES) return undefined;
  const decipher = createDecipheriv(CIPHER, key, nonce, TAG);
  decipher.setAAD(extra, { plaintextLength: sealed.length - TAG_BYTES });
  return opened(decipher, sealed);
}

function hash(...parts: Uint8Array[]): Uint8Array {
  const state = createHash(HASH);
  for (const part of parts) state.update(part);
  return state.digest();
}

function hmac(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array {
  const state = createHmac(HASH, key);
  for (const part of parts) state.update(part);
  return state.digest();
}

export const nodeCrypto: WireGuardCrypto = {
  ...portableOnly,
  keyPair,
  transportCipher: (key) => new NativeCipher(key),
  seal,
  open,
  hash,
  hmac,
};
