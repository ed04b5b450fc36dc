import assert from "node:assert/strict";
import fc from "fast-check";
import { fromHex, toHex } from "./bytes.ts";
import * as wire from "./wireguard.ts";

const filled = (length: number, value: number) => new Uint8Array(length).fill(value);
const seed = 5_402;

describe("WireGuard messages", () => {
  it("an initiation is laid out as the paper says", () => {
    const message = wire.encodeInitiation({
      sender: 0x04030201,
      ephemeral: filled(32, 0xee),
      sealedStatic: filled(48, 0x55),
      sealedTimestamp: filled(28, 0x77),
    });
    wire.mac1Of(message).fill(0x11);
    wire.mac2Of(message).fill(0x22);
    assert.equal(
      toHex(message),
      `01000000${"01020304"}${"ee".repeat(32)}${"55".repeat(48)}${"77".repeat(28)}${"11".repeat(16)}${"22".repeat(16)}`,
    );
    assert.equal(message.length, 148);
    assert.equal(wire.messageType(message), 1);
    assert.equal(wire.beforeMac1(message).length, 116);
    assert.equal(wire.beforeMac2(message).length, 132);
    const { sender, ephemeral, sealedStatic, sealedTimestamp } = wire.decodeInitiation(message);
    assert.equal(sender, 0x04030201);
    assert.deepEqual(
      [toHex(ephemeral), toHex(sealedStatic), toHex(sealedTimestamp)],
      ["ee".repeat(32), "55".repeat(48), "77".repeat(28)],
    );
  });

  it("a response is laid out as the paper says", () => {
    const message = wire.encodeResponse({
      sender: 0xfffffffe,
      receiver: 1,
      ephemeral: filled(32, 0xee),
      sealedNothing: filled(16, 0x44),
    });
    assert.equal(
      toHex(message),
      `02000000${"feffffff"}${"01000000"}${"ee".repeat(32)}${"44".repeat(16)}${"00".repeat(32)}`,
    );
    assert.equal(message.length, 92);
    assert.equal(wire.messageType(message), 2);
    const { sender, receiver, ephemeral, sealedNothing } = wire.decodeResponse(message);
    assert.deepEqual([sender, receiver], [0xfffffffe, 1]);
    assert.deepEqual([toHex(ephemeral), toHex(sealedNothing)], ["ee".repeat(32), "44".repeat(16)]);
  });

  it("a cookie reply is laid out as the paper says", () => {
    const message = wire.encodeCookieReply({
      receiver: 0x80000000,
      nonce: filled(24, 0x99),
      sealedCookie: filled(32, 0xcc),
    });
    assert.equal(toHex(message), `03000000${"00000080"}${"99".repeat(24)}${"cc".repeat(32)}`);
    assert.equal(wire.messageType(message), 3);
    const { receiver, nonce, sealedCookie } = wire.decodeCookieReply(message);
    assert.equal(receiver, 0x80000000);
    assert.deepEqual([toHex(nonce), toHex(sealedCookie)], ["99".repeat(24), "cc".repeat(32)]);
  });

  it("a transport header is laid out as the paper says, up to the largest exact counter", () => {
    const message = filled(32, 0xff);
    wire.writeTransportHeader(message, 0xa0b0c0d0, 0x0001_0203_0405_06);
    assert.equal(toHex(message.subarray(0, 16)), "04000000d0c0b0a00605040302010000");
    assert.equal(wire.messageType(message), 4);
    assert.equal(wire.transportReceiver(message), 0xa0b0c0d0);
    assert.equal(wire.transportCounter(message), 0x0001_0203_0405_06);
    message.set(fromHex("ffffffffffff1f00"), 8);
    assert.equal(wire.transportCounter(message), Number.MAX_SAFE_INTEGER);
    message.set(fromHex("0000000000002000"), 8);
    assert.equal(wire.transportCounter(message), undefined);
  });

  it("header fields come back as written", () => {
    const u32 = fc.nat(0xffffffff);
    fc.assert(
      fc.property(u32, fc.maxSafeNat(), (receiver, counter) => {
        const message = new Uint8Array(32);
        wire.writeTransportHeader(message, receiver, counter);
        assert.equal(wire.transportReceiver(message), receiver);
        assert.equal(wire.transportCounter(message), counter);
      }),
      { seed },
    );
  });

  it("knows no message of another length, type or reserved bytes", () => {
    for (const [type, length] of [
      [1, 148],
      [2, 92],
      [3, 64],
    ]) {
      const message = new Uint8Array(length + 1);
      message[0] = type;
      assert.equal(wire.messageType(message.subarray(0, length)), type);
      assert.equal(wire.messageType(message), undefined);
      assert.equal(wire.messageType(message.subarray(0, length - 1)), undefined);
      message[3] = 1;
      assert.equal(wire.messageType(message.subarray(0, length)), undefined);
    }
    const transport = new Uint8Array(wire.MAX_MESSAGE_BYTES + 1);
    transport[0] = 4;
    assert.equal(wire.messageType(transport), undefined);
    assert.equal(wire.messageType(transport.subarray(0, wire.MAX_MESSAGE_BYTES)), 4);
    assert.equal(wire.messageType(transport.subarray(0, 31)), undefined);
    assert.equal(wire.messageType(new Uint8Array()), undefined);
    assert.equal(wire.messageType(new Uint8Array(148)), undefined);
  });
});
