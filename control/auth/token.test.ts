import assert from "node:assert/strict";
import fc from "fast-check";
import {
  hashSecret,
  isExpired,
  newKey,
  parseKey,
  randomBase62,
  SESSION_LIFETIME_MS,
  SLIDE_AFTER_MS,
  secretMatches,
  slideSession,
} from "./token.ts";

describe("API keys", () => {
  it("have the form id-secret, and only the hash of the secret is for storing", () => {
    const key = newKey();
    assert.match(key.token, /^[0-9A-Za-z]{10}-[0-9A-Za-z]{22}$/);
    assert.deepEqual(parseKey(key.token), { id: key.id, secret: key.secret });
    assert.equal(key.hashedSecret.length, 32);
    assert.ok(secretMatches(key.secret, key.hashedSecret));
    assert.ok(!secretMatches(newKey().secret, key.hashedSecret));
    assert.ok(!secretMatches(key.secret, key.hashedSecret.subarray(1)));
    assert.notEqual(newKey().token, key.token);
  });

  it("store SHA-256 of the secret's characters", () => {
    // FIPS 180-2, appendix B.1
    assert.equal(
      hashSecret("abc").toString("hex"),
      "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    );
  });

  it("use every character equally: bytes that would favour some are drawn again", () => {
    const bytes = [...Array(256).keys()];
    const text = randomBase62(248, (count) => Uint8Array.from(bytes.splice(0, count)).fill(0, count));
    const counts = new Map<string, number>();
    for (const c of text) counts.set(c, (counts.get(c) ?? 0) + 1);
    assert.equal(counts.size, 62);
    assert.deepEqual([...new Set(counts.values())], [4]);
  });

  it("are recognised by form alone; anything else is no key", () => {
    const { token } = newKey();
    for (const bad of [
      "",
      "-",
      token.slice(1),
      `${token}x`,
      ` ${token}`,
      `${token}\n`,
      token.replace("-", "_"),
    ]) {
      assert.equal(parseKey(bad), undefined, JSON.stringify(bad));
    }
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 50 }), (text) => {
        const parsed = parseKey(text);
        assert.ok(parsed === undefined || `${parsed.id}-${parsed.secret}` === text);
      }),
    );
  });
});

describe("a session's end", () => {
  const lifetimeMs = SESSION_LIFETIME_MS;

  it("moves with use, but is written at most once an hour", () => {
    const expiresAt = lifetimeMs;
    assert.equal(slideSession({ expiresAt, lifetimeMs }, SLIDE_AFTER_MS - 1), undefined);
    assert.equal(slideSession({ expiresAt, lifetimeMs }, SLIDE_AFTER_MS), SLIDE_AFTER_MS + lifetimeMs);
  });

  it("doesn't come back once passed", () => {
    assert.equal(isExpired({ expiresAt: 100 }, 99), false);
    assert.equal(isExpired({ expiresAt: 100 }, 100), true);
    assert.equal(slideSession({ expiresAt: 100, lifetimeMs }, 100), undefined);
  });

  it("is never moved back, nor further than one lifetime from now", () => {
    fc.assert(
      fc.property(fc.nat(), fc.nat(), fc.nat(), (expiresAt, lifetimeMs, now) => {
        const next = slideSession({ expiresAt, lifetimeMs }, now);
        assert.ok(next === undefined || (next > expiresAt && next === now + lifetimeMs));
      }),
    );
  });
});
