// STUN: what our server takes for a request, what a node believes of an answer, and addresses as text.
import assert from "node:assert/strict";
import { addressGroup } from "../../../derp/server/server.ts";
import { equalBytes, fromUtf8, utf8 } from "../../../mesh/wire/bytes.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import { formatIp, mapIp, parseIp, unmapIp } from "../../../mesh/wire/ip.ts";
import {
  MAX_STUN_BYTES,
  parseStunBindingRequest,
  parseStunBindingResponse,
  stunBindingRequest,
  stunBindingResponse,
} from "../../../mesh/wire/stun.ts";
import { outcomeOf, type Target } from "../engine.ts";

const txId = Uint8Array.from({ length: 12 }, (_, i) => i + 1);

/** Header length, and an XOR-MAPPED-ADDRESS in front of whatever was there. */
function repair(input: Uint8Array): Uint8Array {
  const out = input.slice(0, input.length & ~3);
  if (out.length >= 20) new DataView(out.buffer).setUint16(2, out.length - 20);
  return out;
}

export const stunTargets: Target[] = [
  {
    name: "stun",
    format: "bytes",
    seeds: [
      stunBindingRequest(txId),
      stunBindingResponse(txId, { address: "192.0.2.1", port: 4_000 }),
      stunBindingResponse(txId, { address: "2001:db8::1", port: 4_000 }),
      stunBindingRequest(txId).slice(0, 32),
    ],
    dictionary: [
      [0x21, 0x12, 0xa4, 0x42],
      [0x80, 0x28, 0, 4],
      [0, 0x20, 0, 8],
      [0, 1, 0, 8, 0, 1],
      [0, 1, 0, 20, 0, 2],
    ].map((list) => Uint8Array.from(list)),
    repair,
    maxBytes: MAX_STUN_BYTES + 64,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const request = parseStunBindingRequest(input);
        const response = parseStunBindingResponse(input);
        assert.ok(!request || !response, "both a request and a response");
        if (request) {
          assert.ok(equalBytes(request.txId, input.subarray(8, 20)));
          const answer = stunBindingResponse(request.txId, { address: "::ffff:192.0.2.7", port: 1 });
          assert.equal(parseStunBindingResponse(answer)?.address, "192.0.2.7");
        }
        if (response) {
          assert.ok(parseIp(response.address) && response.port >= 0 && response.port <= 65_535);
          assert.equal(
            parseStunBindingResponse(stunBindingResponse(txId, response))?.address,
            response.address,
          );
        }
        return `${request !== undefined} ${response?.address.includes(":")}`;
      },
    }),
  },
  {
    name: "ip-addresses",
    format: "text",
    seeds: ["192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1", "fe80::1%eth0", "::", "1:2:3:4:5:6:7:8"].map(utf8),
    dictionary: ["::", ":", ".", "%", "ffff", "255", "256"].map(utf8),
    maxBytes: 200,
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        outcomeOf(() => {
          const text = fromUtf8(input);
          const parsed = parseIp(text);
          addressGroup(text);
          if (!parsed) return "none";
          const shown = formatIp(parsed);
          const again = parseIp(shown);
          assert.ok(again && equalBytes(mapIp(again), mapIp(parsed)), `${text} became ${shown}`);
          assert.equal(formatIp(mapIp(unmapIp(parsed))), shown);
          return String(parsed.length);
        }, WireError),
    }),
  },
];
