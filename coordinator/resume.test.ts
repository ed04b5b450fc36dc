import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { toBase64, utf8 } from "../mesh/wire/bytes.ts";
import { encodeStatement } from "../mesh/wire/signed.ts";
import { encodeResumeToken, hashCredential, openResumeToken, type ResumeToken } from "./resume.ts";
import { generateSigningKey, Signer } from "./signing.ts";

describe("resume tokens", () => {
  const signer = new Signer([generateSigningKey()]);
  const nodeKey = toBase64(new Uint8Array(32).fill(7));
  const credential = hashCredential("secret");
  const token: ResumeToken = {
    subject: { kind: "agent", agentId: randomUUID(), workspaceId: randomUUID() },
    nodeKey,
    credential,
    linkId: randomUUID(),
    expiresAt: 2000,
  };
  const options = { keys: signer.publicKeys, credential, nowMs: 1000 };

  it("come back as they were made, until they expire and only with their credential", () => {
    const text = encodeResumeToken(token, signer);
    assert.deepEqual(openResumeToken(text, options), token);
    assert.equal(openResumeToken(text, { ...options, nowMs: 2000 }), undefined);
    assert.equal(openResumeToken(text, { ...options, credential: hashCredential("other") }), undefined);
    const others = new Signer([generateSigningKey()]).publicKeys;
    assert.equal(openResumeToken(text, { ...options, keys: others }), undefined);
  });

  it("are nothing once a bit is flipped, and random text is nothing", () => {
    const bytes = Buffer.from(encodeResumeToken(token, signer), "base64url");
    fc.assert(
      fc.property(fc.nat(bytes.length * 8 - 1), (bit) => {
        const forged = Buffer.from(bytes);
        forged[bit >> 3] ^= 1 << (bit & 7);
        assert.equal(openResumeToken(forged.toString("base64url"), options), undefined);
      }),
    );
    fc.assert(
      fc.property(fc.string({ maxLength: 3000 }), (text) => {
        assert.equal(openResumeToken(text, options), undefined);
      }),
    );
  });

  it("are nothing when another version of ours signed something else", () => {
    const context = utf8("workspace-mesh resume token v1\0");
    for (const body of [utf8("v2:abc"), Uint8Array.of(0xe2, 0x51)]) {
      const signed = Buffer.concat([signer.id, signer.sign(Buffer.concat([context, body])), body]);
      assert.equal(openResumeToken(signed.toString("base64url"), options), undefined);
    }
  });

  it("are not statements, and statements are not tokens, though the same key signs both", () => {
    const ticket = { nodeKey, subject: `user:${randomUUID()}`, issuedAt: 1, expiresAt: 2000 };
    const statement = encodeStatement("relayTicket", ticket, signer).subarray(2);
    assert.equal(openResumeToken(Buffer.from(statement).toString("base64url"), options), undefined);
  });
});
