import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { encodeStatement, isPermitted, openStatement, StatementError } from "../mesh/wire/signed.ts";
import { verifyEd25519 } from "./client.ts";
import { generateSigningKey, Signer } from "./signing.ts";

import { AGENT, keyOf, USER } from "./testing.ts";

describe("signed statements", () => {
  const signer = new Signer([generateSigningKey()]);
  const grant = {
    id: randomUUID(),
    nodeKey: keyOf(1),
    userId: USER,
    username: "alice",
    agentId: AGENT,
    permissions: ["tcp:127.0.0.1:8080"],
    issuedAt: 1000,
    expiresAt: 2000,
  };
  const options = { keys: signer.publicKeys, verify: verifyEd25519, nowMs: 1500 };
  const code = (fn: () => unknown): string => {
    try {
      fn();
    } catch (error) {
      assert.ok(error instanceof StatementError, String(error));
      return error.code;
    }
    return "none";
  };

  it("opens what the deployment signed", () => {
    assert.deepEqual(openStatement("grant", encodeStatement("grant", grant, signer), options), grant);
  });

  it("refuses every single flipped bit", () => {
    const statement = encodeStatement("grant", grant, signer);
    fc.assert(
      fc.property(fc.nat(statement.length * 8 - 1), (bit) => {
        const forged = statement.slice();
        forged[bit >> 3] ^= 1 << (bit & 7);
        assert.notEqual(
          code(() => openStatement("grant", forged, options)),
          "none",
        );
      }),
    );
  });

  it("refuses truncated and random bytes without any other error", () => {
    const statement = encodeStatement("grant", grant, signer);
    for (let length = 0; length < statement.length; length += 7)
      assert.notEqual(
        code(() => openStatement("grant", statement.subarray(0, length), options)),
        "none",
      );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        assert.notEqual(
          code(() => openStatement("grant", bytes, options)),
          "none",
        );
      }),
    );
  });

  it("says why: expired, from the future, another deployment's key, another kind", () => {
    const statement = encodeStatement("grant", grant, signer);
    assert.equal(
      code(() => openStatement("grant", statement, { ...options, nowMs: 2000 })),
      "ERR_STATEMENT_EXPIRED",
    );
    assert.equal(
      code(() => openStatement("grant", statement, { ...options, nowMs: -100_000 })),
      "ERR_STATEMENT_NOT_YET_VALID",
    );
    const other = new Signer([generateSigningKey()]).publicKeys;
    assert.equal(
      code(() => openStatement("grant", statement, { ...options, keys: other })),
      "ERR_STATEMENT_UNKNOWN_KEY",
    );
    assert.equal(
      code(() => openStatement("nodeRecord", statement, options)),
      "ERR_STATEMENT_MALFORMED",
    );
  });

  it("an old key still verifies beside a new one", () => {
    const old = generateSigningKey();
    const statement = encodeStatement("grant", grant, new Signer([old]));
    const rotated = new Signer([generateSigningKey(), old]);
    assert.equal(openStatement("grant", statement, { ...options, keys: rotated.publicKeys }).id, grant.id);
  });

  it("permits the named service alone, or all with a star", () => {
    assert.equal(isPermitted(grant, "tcp:127.0.0.1:8080"), true);
    assert.equal(isPermitted(grant, "session"), false);
    assert.equal(isPermitted({ permissions: ["*"] }, "session"), true);
  });
});
