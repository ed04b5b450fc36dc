import assert from "node:assert/strict";
import fc from "fast-check";
import { fromHex, toHex } from "./bytes.ts";
import { formatIp, mapIp, parseIp } from "./ip.ts";
import {
  isStun,
  MAX_STUN_BYTES,
  parseStunBindingRequest,
  parseStunBindingResponse,
  stunBindingRequest,
  stunBindingResponse,
} from "./stun.ts";

// RFC 5769, sections 2.1 to 2.3.
const RFC_TX_ID = "b7e7a701bc34d686fa87dfae";
const RFC_REQUEST = fromHex(
  "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008" +
    "932ff9b151263b36000600096576746a3a6836765920202000080014" +
    "9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
);
const RFC_RESPONSE_IPV4 = fromHex(
  "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643" +
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96",
);
const RFC_RESPONSE_IPV6 = fromHex(
  "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a147" +
    "0113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c",
);
const txId = fromHex(RFC_TX_ID);

describe("STUN", () => {
  it("RFC 5769 2.1: the sample request is read, with attributes of WebRTC in it", () => {
    assert.equal(toHex(parseStunBindingRequest(RFC_REQUEST)!.txId), RFC_TX_ID);
  });

  for (const [name, bytes, address] of [
    ["2.2: the sample IPv4 response", RFC_RESPONSE_IPV4, "192.0.2.1"],
    ["2.3: the sample IPv6 response", RFC_RESPONSE_IPV6, "2001:db8:1234:5678:11:2233:4455:6677"],
  ] as const)
    it(`RFC 5769 ${name} is read`, () =>
      assert.deepEqual(parseStunBindingResponse(bytes), { txId, address, port: 32_853 }));

  it("writes the 40-byte request that deployed servers answer", () => {
    const request = stunBindingRequest(fromHex("000102030405060708090a0b"));
    assert.equal(
      toHex(request.subarray(0, 36)),
      "000100142112a442000102030405060708090a0b802200087461696c6e6f646580280004",
    );
    assert.equal(request.length, 40);
    assert.deepEqual(parseStunBindingRequest(request)!.txId, fromHex("000102030405060708090a0b"));
  });

  it("answers with XOR-MAPPED-ADDRESS alone", () => {
    assert.equal(
      toHex(stunBindingResponse(txId, { address: "192.0.2.1", port: 32_853 })),
      `0101000c2112a442${RFC_TX_ID}002000080001a147e112a643`,
    );
    assert.equal(
      toHex(stunBindingResponse(txId, { address: "2001:db8:1234:5678:11:2233:4455:6677", port: 32_853 })),
      `010100182112a442${RFC_TX_ID}002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9`,
    );
  });

  it("answers an IPv4 address that a dual-stack socket shows as IPv6 as IPv4, and reads it so from others", () => {
    const mapped = stunBindingResponse(txId, { address: "::ffff:192.0.2.1", port: 32_853 });
    assert.deepEqual(mapped, stunBindingResponse(txId, { address: "192.0.2.1", port: 32_853 }));
    const foreign = fromHex(
      `010100182112a442${RFC_TX_ID}0001001400020050${toHex(mapIp(parseIp("192.0.2.1")!))}`,
    );
    assert.deepEqual(parseStunBindingResponse(foreign), { txId, address: "192.0.2.1", port: 80 });
  });

  it("takes the draft's attribute number, and a plain address only if there is no other", () => {
    const xor = "000c2112a442";
    const draft = fromHex(`0101${xor}${RFC_TX_ID}802000080001a147e112a643`);
    assert.deepEqual(parseStunBindingResponse(draft), { txId, address: "192.0.2.1", port: 32_853 });
    const plain = fromHex(`0101${xor}${RFC_TX_ID}0001000800010050c6336401`);
    assert.deepEqual(parseStunBindingResponse(plain), { txId, address: "198.51.100.1", port: 80 });
    const both = fromHex(`010100182112a442${RFC_TX_ID}0001000800010050c6336401002000080001a147e112a643`);
    assert.equal(parseStunBindingResponse(both)!.address, "192.0.2.1");
  });

  it("refuses a wrong fingerprint, and one that is not last", () => {
    const wrong = stunBindingRequest(txId);
    wrong[39] ^= 1;
    assert.equal(parseStunBindingRequest(wrong), undefined);
    const request = stunBindingRequest(txId);
    const followed = new Uint8Array(44);
    followed.set(request);
    followed.set(fromHex("80220000"), 40);
    followed[3] += 4;
    assert.equal(parseStunBindingRequest(followed), undefined);
  });

  it("hands out a copy of the transaction id, of a Buffer too", () => {
    const bytes = Buffer.from(RFC_REQUEST);
    const request = parseStunBindingRequest(bytes)!;
    bytes.fill(0);
    assert.deepEqual(request.txId, txId);
  });

  it("answers a request without any attribute", () => {
    assert.deepEqual(parseStunBindingRequest(fromHex(`000100002112a442${RFC_TX_ID}`)), { txId });
  });

  it("tells STUN from WireGuard, DTLS and path discovery", () => {
    assert.equal(isStun(RFC_REQUEST), true);
    const others = ["01000000", "04000000", "16fefd00", "5453f09f92ac"];
    for (const start of others) assert.equal(isStun(fromHex(start.padEnd(64, "0"))), false);
    assert.equal(isStun(RFC_REQUEST.subarray(0, 19)), false);
  });

  it("refuses other message types, wrong lengths and what no path carries", () => {
    assert.equal(parseStunBindingResponse(RFC_REQUEST), undefined);
    assert.equal(parseStunBindingRequest(RFC_RESPONSE_IPV4), undefined);
    for (let length = 0; length < RFC_REQUEST.length; length++)
      assert.equal(parseStunBindingRequest(RFC_REQUEST.subarray(0, length)), undefined);
    const long = new Uint8Array(MAX_STUN_BYTES + 4);
    long.set(fromHex(`000104ec2112a442${RFC_TX_ID}`));
    assert.equal(parseStunBindingRequest(long), undefined);
  });

  it("reads back what it writes, for any address and port", () => {
    const ip = fc.oneof(
      fc.uint8Array({ minLength: 4, maxLength: 4 }),
      fc.uint8Array({ minLength: 16, maxLength: 16 }),
    );
    const id = fc.uint8Array({ minLength: 12, maxLength: 12 });
    fc.assert(
      fc.property(ip, fc.nat(65_535), id, (bytes, port, someId) => {
        const address = formatIp(bytes);
        const read = parseStunBindingResponse(stunBindingResponse(someId, { address, port }));
        assert.deepEqual(read, { txId: someId, address, port });
      }),
    );
  });

  it("never throws on mutated or random bytes", () => {
    const samples = [RFC_REQUEST, RFC_RESPONSE_IPV4, RFC_RESPONSE_IPV6, stunBindingRequest(txId)];
    const edits = fc.array(fc.tuple(fc.nat(107), fc.nat(255)), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(fc.constantFrom(...samples), edits, fc.nat(120), (sample, changes, length) => {
        const bytes = sample.slice(0, length);
        for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
        parseStunBindingRequest(bytes);
        parseStunBindingResponse(bytes);
      }),
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        parseStunBindingRequest(bytes);
        parseStunBindingResponse(bytes);
      }),
    );
  });
});

describe("IP addresses", () => {
  for (const [text, canonical] of [
    ["192.0.2.1", "192.0.2.1"],
    ["::ffff:192.0.2.1", "192.0.2.1"],
    ["2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["::", "::"],
    ["::1", "::1"],
    ["fe80::1%eth0", "fe80::1"],
    ["64:ff9b::192.0.2.33", "64:ff9b::c000:221"],
  ] as const)
    it(`${text} is ${canonical}`, () => assert.equal(formatIp(parseIp(text)!), canonical));

  for (const text of [
    "",
    "internal",
    "1.2.3",
    "1.2.3.256",
    "1.2.3.4.5",
    ":::",
    "1::2::3",
    "1:2:3:4:5:6:7",
    "g::",
  ])
    it(`"${text}" is none`, () => assert.equal(parseIp(text), undefined));
});
