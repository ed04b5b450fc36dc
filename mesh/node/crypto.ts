// The protocol's cryptography on node:crypto: see mesh/wireguard/crypto.ts for what each call promises.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  createSecretKey,
  diffieHellman,
  type KeyObject,
} from "node:crypto";
import {
  checkKey,
  type TransportCipher,
  type WireGuardCrypto,
  writeNonce,
  type X25519KeyPair,
} from "../wireguard/crypto.ts";
import { portableOnly } from "../wireguard/crypto-portable.ts";

const CIPHER = "chacha20-poly1305";
const HASH = "blake2s256";
const TAG_BYTES = 16;
const TAG = { authTagLength: TAG_BYTES };
const ZEROS = new Uint8Array(64);

const base64url = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64url");

function publicKeyObject(publicKey: Uint8Array): KeyObject {
  // From a JWK: 9 us. From DER: 75 us.
  return createPublicKey({ key: { kty: "OKP", crv: "X25519", x: base64url(publicKey) }, format: "jwk" });
}

const PKCS8_PREFIX = Buffer.from("302e020100300506032b656e04220420", "hex"); // RFC 8410 section 7
const fromDer = (privateKey: Uint8Array): KeyObject =>
  createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, privateKey]), format: "der", type: "pkcs8" });

/**
 * 39 us against 350 us for DER. Node takes only `d` of a private JWK but wants an `x`, which we would have to
 * derive first, so it gets another key's; `jwkIgnoresX` makes sure that this Node does not mind.
 */
const fromJwk = (privateKey: Uint8Array): KeyObject =>
  createPrivateKey({
    key: { kty: "OKP", crv: "X25519", x: base64url(BASE_POINT), d: base64url(privateKey) },
    format: "jwk",
  });

const BASE_POINT = Uint8Array.of(9, ...new Uint8Array(31)); // RFC 7748 section 4.1
const basePointObject = publicKeyObject(BASE_POINT);
/** A public key is the shared secret with the base point: 35 us, where exporting it takes 78. */
const derivePublic = (privateKey: KeyObject): Uint8Array =>
  diffieHellman({ privateKey, publicKey: basePointObject });

function jwkIgnoresX(): boolean {
  try {
    const sample = new Uint8Array(32).fill(0x77);
    return derivePublic(fromJwk(sample)).every((byte, i) => byte === derivePublic(fromDer(sample))[i]);
  } catch {
    return false;
  }
}
let importPrivate: ((privateKey: Uint8Array) => KeyObject) | undefined;

function keyPair(privateKey: Uint8Array): X25519KeyPair {
  checkKey(privateKey, "the private key");
  importPrivate ??= jwkIgnoresX() ? fromJwk : fromDer;
  const secret = importPrivate(privateKey);
  return {
    publicKey: new Uint8Array(derivePublic(secret)),
    shared(publicKey) {
      try {
        return diffieHellman({ privateKey: secret, publicKey: publicKeyObject(publicKey) });
      } catch {
        return undefined; // OpenSSL refuses to derive from a point of low order
      }
    },
  };
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
