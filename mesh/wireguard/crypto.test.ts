import assert from "node:assert/strict";
import { blake2s } from "@noble/hashes/blake2.js";
import fc from "fast-check";
import vectors from "../../test/vectors/noise.json" with { type: "json" };
import { nodeCrypto } from "../node/crypto.ts";
import { concatBytes, fromHex, toHex, utf8 } from "../wire/bytes.ts";
import { WireGuardError, writeNonce } from "./crypto.ts";
import { portableCrypto } from "./crypto-portable.ts";

const seed = 20_240_607;
const key32 = fc.uint8Array({ minLength: 32, maxLength: 32 });
const counters = fc.oneof(fc.nat(), fc.maxSafeNat());

/** The pseudo-random bytes of RFC 7693 appendix E. */
function selfTestBytes(length: number, seedValue: number): Uint8Array {
  let a = Math.imul(0xdead4bad, seedValue) >>> 0;
  let b = 1;
  return Uint8Array.from({ length }, () => {
    const t = (a + b) >>> 0;
    a = b;
    b = t;
    return t >>> 24;
  });
}

for (const [name, crypto] of Object.entries({ native: nodeCrypto, portable: portableCrypto })) {
  describe(`WireGuard crypto, ${name}`, () => {
    for (const vector of vectors.x25519) {
      it(`agrees with ${vector.source}`, () => {
        const pair = crypto.keyPair(fromHex(vector.private));
        if (vector.own_public) assert.equal(toHex(pair.publicKey), vector.own_public);
        assert.equal(toHex(pair.shared(fromHex(vector.public)) ?? new Uint8Array()), vector.shared);
      });
    }

    for (const { source, ...v } of vectors.chacha20poly1305) {
      it(`seals and opens as ${source}`, () => {
        const [key, nonce, extra, plaintext] = [v.key, v.nonce, v.extra, v.plaintext].map(fromHex);
        assert.equal(toHex(crypto.seal(key, nonce, plaintext, extra)), v.sealed);
        assert.equal(toHex(crypto.open(key, nonce, fromHex(v.sealed), extra)!), v.plaintext);
        assert.equal(crypto.open(key, nonce, fromHex(v.sealed), utf8("other")), undefined);
      });
    }

    for (const { source, ...v } of vectors.xchacha20poly1305) {
      it(`seals and opens as ${source}`, () => {
        const [key, nonce, extra, plaintext] = [v.key, v.nonce, v.extra, v.plaintext].map(fromHex);
        assert.equal(toHex(crypto.xseal(key, nonce, plaintext, extra)), v.sealed);
        assert.equal(toHex(crypto.xopen(key, nonce, fromHex(v.sealed), extra)!), v.plaintext);
        assert.equal(crypto.xopen(key, nonce, fromHex(v.sealed), utf8("other")), undefined);
      });
    }

    it("hashes as RFC 7693", () => {
      for (const { input, digest } of vectors.blake2s)
        assert.equal(toHex(crypto.hash(fromHex(input))), digest);
    });

    it("passes the self test of RFC 7693, which covers keyed digests of 16 bytes", () => {
      const digests: Uint8Array[] = [];
      for (const length of [16, 20, 28, 32])
        for (const inputLength of [0, 3, 64, 65, 255, 1024]) {
          const input = selfTestBytes(inputLength, inputLength);
          const key = selfTestBytes(length, length);
          // what the interface does not offer comes from noble, in both runs
          digests.push(length === 32 ? crypto.hash(input) : blake2s(input, { dkLen: length }));
          digests.push(length === 16 ? crypto.mac(key, input) : blake2s(input, { dkLen: length, key }));
        }
      assert.equal(toHex(crypto.hash(...digests)), vectors.blake2s_self_test.digest);
    });

    it("refuses points of low order and keys of a wrong length", () => {
      const pair = crypto.keyPair(new Uint8Array(32).fill(7));
      assert.equal(pair.shared(new Uint8Array(32)), undefined);
      assert.equal(pair.shared(Uint8Array.of(1, ...new Uint8Array(31))), undefined);
      assert.throws(() => crypto.keyPair(new Uint8Array(31)), WireGuardError);
      assert.throws(() => crypto.transportCipher(new Uint8Array(33)), WireGuardError);
    });

    it("seals a padded packet behind its headroom as the general call seals the padded bytes", () => {
      fc.assert(
        fc.property(
          key32,
          counters,
          fc.uint8Array({ maxLength: 200 }),
          fc.nat(200),
          (key, counter, plain, pad) => {
            const padded = new Uint8Array(plain.length + pad);
            padded.set(plain);
            const nonce = new Uint8Array(12);
            writeNonce(nonce, counter);
            const cipher = crypto.transportCipher(key);
            const message = cipher.seal(counter, plain, padded.length, 16);
            assert.equal(
              toHex(message.subarray(16)),
              toHex(crypto.seal(key, nonce, padded, new Uint8Array())),
            );
            assert.equal(toHex(cipher.open(counter, message.subarray(16))!), toHex(padded));
            const pieces = cipher.sealPieces?.(counter, plain, padded.length);
            if (pieces) assert.equal(toHex(concatBytes(...pieces)), toHex(message.subarray(16)));
          },
        ),
        { seed, numRuns: 50 },
      );
    });

    it("opens nothing that was changed or cut", () => {
      const cipher = crypto.transportCipher(new Uint8Array(32).fill(1));
      const sealed = cipher.seal(5, utf8("hello"), 16, 0);
      assert.equal(cipher.open(6, sealed), undefined);
      for (let length = 0; length < sealed.length; length++)
        assert.equal(cipher.open(5, sealed.subarray(0, length)), undefined);
      for (let i = 0; i < sealed.length; i++) {
        const changed = Uint8Array.from(sealed);
        changed[i] ^= 0x40;
        assert.equal(cipher.open(5, changed), undefined);
      }
    });

    it("keeps its keys when the caller overwrites the bytes it gave", () => {
      const bytes = Buffer.alloc(32, 9);
      const pair = crypto.keyPair(bytes);
      const cipher = crypto.transportCipher(bytes);
      const other = crypto.keyPair(new Uint8Array(32).fill(3)).publicKey;
      const before = [toHex(pair.shared(other)!), toHex(cipher.seal(0, bytes.subarray(0, 0), 0, 0))];
      bytes.fill(0);
      assert.deepEqual(
        [toHex(pair.shared(other)!), toHex(cipher.seal(0, bytes.subarray(0, 0), 0, 0))],
        before,
      );
    });
  });
}

describe("WireGuard crypto, both", () => {
  it("agree on everything", () => {
    fc.assert(
      fc.property(key32, key32, fc.uint8Array({ maxLength: 300 }), (a, b, data) => {
        const [native, portable] = [nodeCrypto, portableCrypto].map((crypto) => {
          const pair = crypto.keyPair(a);
          return [
            pair.publicKey,
            pair.shared(crypto.keyPair(b).publicKey)!,
            crypto.hash(a, data),
            crypto.hmac(b, data, a),
            crypto.mac(a, data),
            crypto.seal(a, b.subarray(0, 12), data, b),
          ].map(toHex);
        });
        assert.deepEqual(native, portable);
      }),
      { seed, numRuns: 15 },
    );
  });
});
