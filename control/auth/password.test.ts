import assert from "node:assert/strict";
import { PasswordError } from "./errors.ts";
import { checkPassword, hashPassword, needsRehash, passwordBits, verifyPassword } from "./password.ts";

const GOOD = "Tr0ub4dor&3 horse";

describe("passwords", () => {
  it("verify against their own hash only", async () => {
    const phc = await hashPassword(GOOD);
    assert.match(phc, /^\$argon2id\$v=19\$m=19456,t=2,p=1\$[^$]+\$[^$]+$/);
    assert.equal(await verifyPassword(GOOD, phc), true);
    assert.equal(await verifyPassword(`${GOOD} `, phc), false);
    assert.notEqual(await hashPassword(GOOD), phc, "each hash has its own salt");
  });

  // phc-winner-argon2, src/test.c, version 0x13, Argon2_id: password "password", salt "somesalt".
  for (const published of [
    "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
    "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
  ]) {
    it(`verify against the reference implementation's hash ${published.slice(0, 30)}`, async () => {
      assert.equal(await verifyPassword("password", published), true);
      assert.equal(await verifyPassword("Password", published), false);
      assert.equal(needsRehash(published), true);
    });
  }

  it("are refused for unknown users, users without one, and broken hashes", async () => {
    for (const phc of [
      undefined,
      null,
      "",
      "plain",
      "$argon2id$v=19$broken",
      "$2b$10$abcdefghijklmnopqrstuv",
    ]) {
      assert.equal(await verifyPassword(GOOD, phc), false, String(phc));
    }
    assert.equal(await verifyPassword("", await hashPassword("")), true, "hashing itself judges nothing");
    assert.equal(await verifyPassword("x".repeat(100_000), await hashPassword("")), false);
  });

  it("are the same however the keyboard composes an accent", async () => {
    assert.equal(await verifyPassword("pássword-\u00e9", await hashPassword("pássword-e\u0301")), true);
  });

  it("ask for a new hash when the parameters have changed", async () => {
    assert.equal(needsRehash(await hashPassword(GOOD)), false);
    assert.equal(needsRehash("$argon2id$v=19$m=4096,t=3,p=1$c2FsdHNhbHQ$aGFzaA"), true);
  });

  const judged: [string, RegExp | undefined][] = [
    ["short1!", /at least 8 characters, this password has 7/],
    ["x".repeat(65), /at most 64 characters, this password has 65/],
    ["aaaaaaaaaaaaaaaaaaaa", /too easy to guess/],
    ["abcdefghijklmnop", /too easy to guess/],
    ["12345678901234567890", /too easy to guess/],
    ["password", /too easy to guess/],
    ["k7#Qz!9p", undefined],
    ["SomeSecurePassword!", undefined],
    ["correct horse battery", undefined],
    ["пароль-очень-длинный", undefined],
    ["🐎🔋📎🐎🦓🎲🗝️🎯", undefined],
  ];
  for (const [password, problem] of judged) {
    it(`${JSON.stringify(password.slice(0, 24))} is ${problem ? "refused with the reason" : "accepted"}`, () => {
      if (!problem) return checkPassword(password);
      assert.throws(
        () => checkPassword(password),
        (error) =>
          error instanceof PasswordError && error.code === "ERR_PASSWORD_WEAK" && problem.test(error.message),
      );
    });
  }

  it("count no more than their characters allow", () => {
    assert.equal(passwordBits(""), 0);
    assert.ok(Math.abs(passwordBits("acegik") - 6 * Math.log2(26)) < 1e-9);
    assert.ok(passwordBits("aaaa") < passwordBits("aqzm"));
  });
});
