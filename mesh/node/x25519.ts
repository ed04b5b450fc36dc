// X25519 (RFC 7748) on node:crypto, for WireGuard's handshake and for the relays' boxes. Also loads where there is no
// node:crypto, so that code for browsers may ask for it and take another way.
import type { KeyObject } from "node:crypto";
import type { X25519KeyPair } from "../wireguard/crypto.ts";

type Crypto = typeof import("node:crypto");

const base64url = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64url");

const PKCS8_PREFIX = "302e020100300506032b656e04220420"; // RFC 8410 section 7
const BASE_POINT = Uint8Array.of(9, ...new Uint8Array(31)); // RFC 7748 section 4.1
/** Alice's keys of RFC 7748 section 6.1. */
const SAMPLE = {
  private: "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
  public: "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
};

class NativeX25519 {
  readonly #crypto: Crypto;
  readonly #basePoint: KeyObject;
  #import: ((privateKey: Uint8Array) => KeyObject) | undefined;

  constructor(crypto: Crypto) {
    this.#crypto = crypto;
    this.#basePoint = this.#publicKey(BASE_POINT);
  }

  keyPair(privateKey: Uint8Array): X25519KeyPair {
    this.#import ??= this.#jwkIgnoresX() ? (key) => this.#fromJwk(key) : (key) => this.#fromDer(key);
    const secret = this.#import(privateKey);
    return {
      publicKey: new Uint8Array(this.#derivePublic(secret)),
      shared: (publicKey) => {
        try {
          return this.#crypto.diffieHellman({ privateKey: secret, publicKey: this.#publicKey(publicKey) });
        } catch {
          return undefined; // OpenSSL refuses to derive from a point of low order
        }
      },
    };
  }

  /** From a JWK: 9 us. From DER: 75 us. */
  #publicKey(publicKey: Uint8Array): KeyObject {
    return this.#crypto.createPublicKey({
      key: { kty: "OKP", crv: "X25519", x: base64url(publicKey) },
      format: "jwk",
    });
  }

  #fromDer(privateKey: Uint8Array): KeyObject {
    const der = Buffer.concat([Buffer.from(PKCS8_PREFIX, "hex"), privateKey]);
    return this.#crypto.createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  }

  /**
   * 39 us against 350 us for DER, whose first use in a process takes some 15 ms on top. Node takes only `d` of a private
   * JWK but wants an `x`, which we would have to derive first, so it gets another key's; `jwkIgnoresX` makes sure that
   * this Node does not mind.
   */
  #fromJwk(privateKey: Uint8Array): KeyObject {
    const key = { kty: "OKP", crv: "X25519", x: base64url(BASE_POINT), d: base64url(privateKey) };
    return this.#crypto.createPrivateKey({ key, format: "jwk" });
  }

  #jwkIgnoresX(): boolean {
    try {
      const secret = this.#fromJwk(Buffer.from(SAMPLE.private, "hex"));
      return Buffer.from(SAMPLE.public, "hex").equals(this.#derivePublic(secret));
    } catch {
      return false;
    }
  }

  /** A public key is the shared secret with the base point: 35 us, where exporting it takes 78. */
  #derivePublic(privateKey: KeyObject): Uint8Array {
    return this.#crypto.diffieHellman({ privateKey, publicKey: this.#basePoint });
  }
}

let native: NativeX25519 | "none" | undefined;

/**
 * @param privateKey 32 bytes, which the caller has checked
 * @returns undefined where there is no node:crypto
 */
export function nativeKeyPair(privateKey: Uint8Array): X25519KeyPair | undefined {
  if (native === undefined) {
    const crypto = globalThis.process?.getBuiltinModule?.("node:crypto");
    native = crypto ? new NativeX25519(crypto) : "none";
  }
  return native === "none" ? undefined : native.keyPair(privateKey);
}
