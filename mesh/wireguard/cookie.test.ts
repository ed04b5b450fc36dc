import assert from "node:assert/strict";
import { nodeCrypto } from "../node/crypto.ts";
import { decodeCookieReply, INITIATION_BYTES } from "../wire/wireguard.ts";
import { COOKIE_LIFETIME_MS, CookieChecker, MacWriter } from "./cookie.ts";
import { seededBytes } from "./testing.ts";

const HERE = { key: "here" };
const THERE = { key: "there" };

/** A node under load, and somebody who asked it for a cookie from `HERE` at 0 ms. */
function asked() {
  const randomBytes = seededBytes(71_001);
  const publicKey = randomBytes(32);
  const checker = new CookieChecker(nodeCrypto, publicKey, randomBytes);
  const writer = new MacWriter(nodeCrypto, publicKey);
  const initiation = (now: number): Uint8Array => {
    const message = randomBytes(INITIATION_BYTES);
    message.fill(0, INITIATION_BYTES - 32);
    writer.write(message, now);
    return message;
  };
  const { nonce, sealedCookie } = decodeCookieReply(checker.reply(initiation(0), 1, HERE, 0));
  assert.equal(writer.acceptReply(nonce, sealedCookie, 0), true);
  return { checker, initiation };
}

describe("cookies of WireGuard", () => {
  it("prove that the sender receives where it sends from, and nothing about other places", () => {
    const { checker, initiation } = asked();
    const message = initiation(10);
    assert.equal(checker.mac2IsValid(message, HERE, 10), true);
    assert.equal(checker.mac2IsValid(message, THERE, 10), false);
  });

  it("cover the whole message", () => {
    const { checker, initiation } = asked();
    for (const at of [0, 60, INITIATION_BYTES - 17]) {
      const message = initiation(10);
      message[at] ^= 1;
      assert.equal(checker.mac2IsValid(message, HERE, 10), false, `byte ${at}`);
    }
  });

  it("end after two minutes; their holder stops a little sooner, for the way", () => {
    const { checker, initiation } = asked();
    const message = initiation(10);
    assert.equal(checker.mac2IsValid(message, HERE, COOKIE_LIFETIME_MS - 1), true);
    assert.equal(checker.mac2IsValid(message, HERE, COOKIE_LIFETIME_MS), false);
    const mac2 = (now: number) => initiation(now).subarray(INITIATION_BYTES - 16);
    assert.ok(mac2(COOKIE_LIFETIME_MS - 5_001).some((byte) => byte !== 0));
    assert.ok(mac2(COOKIE_LIFETIME_MS - 5_000).every((byte) => byte === 0));
  });
});
