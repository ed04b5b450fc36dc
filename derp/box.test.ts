import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import nacl from "tweetnacl";
import { fromHex, toHex, utf8 } from "../mesh/wire/bytes.ts";
import { HEADER_BYTES } from "../mesh/wire/derp.ts";
import { WireError } from "../mesh/wire/errors.ts";
import {
  keyPair,
  openClientInfo,
  openServerInfo,
  portableSharedKey,
  sealClientInfo,
  sealServerInfo,
  sharedKey,
  WORTHLESS,
} from "./box.ts";

const { boxes } = JSON.parse(readFileSync(new URL("../test/vectors/derp.json", import.meta.url), "utf8"));
const hex = (text: string): Uint8Array => fromHex(text.replaceAll(" ", ""));
const client = keyPair(hex(boxes.clientPrivate));
const server = keyPair(hex(boxes.serverPrivate));
const shared = sharedKey(server.publicKey, client.privateKey);

describe("DERP handshake boxes", () => {
  it("keys are those of the vectors", () => {
    assert.equal(toHex(client.publicKey), boxes.clientPublic);
    assert.equal(toHex(server.publicKey), boxes.serverPublic);
    assert.equal(toHex(shared), boxes.shared);
    assert.deepEqual(sharedKey(client.publicKey, server.privateKey), shared);
  });

  for (const side of ["clientInfo", "serverInfo"] as const) {
    it(`${side}: tweetnacl's crypto_box makes the bytes of the vector`, () => {
      const { json, nonce, box } = boxes[side];
      const [to, from] = side === "clientInfo" ? [server, client] : [client, server];
      assert.equal(toHex(nacl.box(utf8(json), hex(nonce), to.publicKey, from.privateKey)), box);
    });
  }

  it("ClientInfo is sealed to the hand-laid-out frame and opened from it", () => {
    const { nonce, wire } = boxes.clientInfo;
    const frame = sealClientInfo({ version: 2, canAckPings: true }, client.publicKey, shared, hex(nonce));
    assert.equal(toHex(frame), toHex(hex(wire)));
    const opened = openClientInfo(hex(wire).subarray(HEADER_BYTES), server.privateKey);
    assert.deepEqual(opened.key, client.publicKey);
    assert.deepEqual(opened.shared, shared);
    assert.equal(opened.info.canAckPings, true);
  });

  it("ServerInfo is sealed to the hand-laid-out frame and opened from it", () => {
    const { nonce, wire } = boxes.serverInfo;
    assert.equal(toHex(sealServerInfo({ version: 2 }, shared, hex(nonce))), toHex(hex(wire)));
    assert.equal(openServerInfo(hex(wire).subarray(HEADER_BYTES), shared).version, 2);
  });

  it("any changed byte is noticed", () => {
    const body = hex(boxes.clientInfo.wire).subarray(HEADER_BYTES);
    for (let at = 0; at < body.length; at += 7) {
      const changed = body.slice();
      changed[at] ^= 0x04;
      assert.throws(() => openClientInfo(changed, server.privateKey), WireError);
    }
  });

  it("who owns a key comes in under one spelling of it", () => {
    const nonce = hex(boxes.clientInfo.nonce);
    const other = client.publicKey.map((byte, i) => (i === 31 ? byte | 0x80 : byte));
    assert.deepEqual(sharedKey(other, server.privateKey), shared, "X25519 takes it for the same key");
    const frame = sealClientInfo({ version: 2, canAckPings: true }, other, shared, nonce);
    assert.throws(() => openClientInfo(frame.subarray(HEADER_BYTES), server.privateKey), {
      code: "ERR_BAD_VALUE",
    });
  });

  it("a key that everybody can open boxes with proves nothing", () => {
    // RFC 7748 section 6.1: points of low order; these three are 0, 1 and one of order 8.
    for (const point of [
      "00".repeat(32),
      `01${"00".repeat(31)}`,
      "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    ]) {
      assert.throws(() => sharedKey(hex(point), server.privateKey), WireError);
      assert.throws(() => portableSharedKey(hex(point), server.privateKey), WireError);
    }
  });

  it("the key that everybody can compute is the one that boxes of a low-order point would have", () => {
    assert.deepEqual(nacl.box.before(new Uint8Array(32), new Uint8Array(32).fill(1)), WORTHLESS);
  });

  it("OpenSSL's keys are tweetnacl's", () => {
    const anyKey = fc.uint8Array({ minLength: 32, maxLength: 32 });
    fc.assert(
      fc.property(anyKey, anyKey, (a, b) => {
        const [mine, theirs] = [keyPair(a), keyPair(b)];
        assert.deepEqual(mine.publicKey, nacl.box.keyPair.fromSecretKey(a).publicKey);
        const shared = sharedKey(theirs.publicKey, a);
        assert.deepEqual(shared, portableSharedKey(theirs.publicKey, a));
        assert.deepEqual(shared, sharedKey(mine.publicKey, b));
      }),
      { numRuns: 20 },
    );
  });

  it("a key of another length is refused", () => {
    assert.throws(() => keyPair(new Uint8Array(31)), RangeError);
    assert.throws(() => sharedKey(new Uint8Array(33), server.privateKey), RangeError);
    assert.throws(() => sharedKey(server.publicKey, new Uint8Array(31)), RangeError);
  });
});
