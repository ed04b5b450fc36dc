import assert from "node:assert/strict";
import fc from "fast-check";
import { WireError } from "../../mesh/wire/errors.ts";
import { attrs, INIT, packet, string, u32, u64 } from "./testing.ts";
import {
  DATA_HEADER_BYTES,
  decodePacket,
  EXTENSIONS,
  encodeReply,
  encodeVersion,
  type Incoming,
  MAX_PACKET_BYTES,
  PacketDecoder,
} from "./wire.ts";

const decoded = (...parts: Uint8Array[]): Incoming =>
  decodePacket(packet(parts[0][0], ...parts.slice(1)).subarray(4));
const type = (value: number) => Buffer.from([value]);
const id = u32(7);
const bytes = (text: string) => Buffer.from(text);

describe("the SFTP codec", () => {
  it("decodes every request of version 3 by the draft's layout", () => {
    const everything = attrs({ size: 2 ** 33, owner: [1, 2], mode: 0o644, times: [3, 4] });
    const attributes = {
      sizeBytes: 2 ** 33,
      owner: { uid: 1, gid: 2 },
      permissions: 0o644,
      times: { accessedAtS: 3, modifiedAtS: 4 },
    };
    const [p, q, h] = [string("p"), string("q"), string(u32(5))];
    const cases: [Buffer[], Incoming][] = [
      [[type(1), u32(3), string("x"), string("y")], { kind: "init", version: 3 }],
      [[type(3), id, p, u32(9), everything], { kind: "open", id: 7, path: bytes("p"), flags: 9, attributes }],
      [[type(4), id, h], { kind: "close", id: 7, handle: 5 }],
      [
        [type(5), id, h, u64(2 ** 40), u32(99)],
        { kind: "read", id: 7, handle: 5, offset: 2 ** 40, length: 99 },
      ],
      [
        [type(6), id, h, u64(1), string("abc")],
        { kind: "write", id: 7, handle: 5, offset: 1, data: bytes("abc") },
      ],
      [[type(7), id, p], { kind: "lstat", id: 7, path: bytes("p") }],
      [[type(8), id, h], { kind: "fstat", id: 7, handle: 5 }],
      [[type(9), id, p, attrs()], { kind: "setstat", id: 7, path: bytes("p"), attributes: {} }],
      [[type(10), id, h, everything], { kind: "fsetstat", id: 7, handle: 5, attributes }],
      [[type(11), id, p], { kind: "opendir", id: 7, path: bytes("p") }],
      [[type(12), id, h], { kind: "readdir", id: 7, handle: 5 }],
      [[type(13), id, p], { kind: "remove", id: 7, path: bytes("p") }],
      [[type(14), id, p, attrs()], { kind: "mkdir", id: 7, path: bytes("p"), attributes: {} }],
      [[type(15), id, p], { kind: "rmdir", id: 7, path: bytes("p") }],
      [[type(16), id, p], { kind: "realpath", id: 7, path: bytes("p") }],
      [[type(17), id, p], { kind: "stat", id: 7, path: bytes("p") }],
      [[type(18), id, p, q], { kind: "rename", id: 7, from: bytes("p"), to: bytes("q") }],
      [[type(19), id, p], { kind: "readlink", id: 7, path: bytes("p") }],
      [[type(20), id, p, q], { kind: "symlink", id: 7, target: bytes("p"), path: bytes("q") }],
      [[type(200), id, string("limits@openssh.com")], { kind: "limits", id: 7 }],
      [
        [type(200), id, string("copy-data"), h, u64(1), u64(2), string(u32(6)), u64(3)],
        { kind: "copyData", id: 7, from: 5, fromOffset: 1, length: 2, to: 6, toOffset: 3 },
      ],
      [[type(200), id, string("nothing@example.com"), p], { kind: "unsupported", id: 7 }],
      [[type(99), id], { kind: "unsupported", id: 7 }],
      // Beyond what a number holds, a handle of another length, and paths as C sees them
      [
        [type(5), id, string("abc"), u64(1n << 53n), u32(1)],
        { kind: "read", id: 7, handle: -1, offset: Infinity, length: 1 },
      ],
      [[type(7), id, string("p\0")], { kind: "lstat", id: 7, path: bytes("p") }],
      [[type(7), id, string("p\0q")], { kind: "invalid", id: 7 }],
      [
        [type(9), id, p, u32(0x80000000), u32(1), p, q],
        { kind: "setstat", id: 7, path: bytes("p"), attributes: {} },
      ],
    ];
    for (const [parts, expected] of cases) assert.deepEqual(decoded(...parts), expected);
  });

  it("decodes every extension it announces", () => {
    const [p, h] = [string("p"), string(u32(5))];
    const bodies: Record<string, Buffer[]> = {
      "posix-rename@openssh.com": [p, p],
      "statvfs@openssh.com": [p],
      "fstatvfs@openssh.com": [h],
      "hardlink@openssh.com": [p, p],
      "fsync@openssh.com": [h],
      "lsetstat@openssh.com": [p, attrs()],
      "limits@openssh.com": [],
      "expand-path@openssh.com": [p],
      "copy-data": [h, u64(0), u64(0), h, u64(0)],
      "home-directory": [p],
      "users-groups-by-id@openssh.com": [string(u32(1)), string(Buffer.alloc(0))],
    };
    for (const [name] of EXTENSIONS)
      assert.notEqual(decoded(type(200), id, string(name), ...bodies[name]).kind, "unsupported", name);
    assert.match(encodeVersion().toString("latin1"), /limits@openssh\.com\0\0\0\x011/);
  });

  it("encodes replies by the draft's layout", () => {
    const hex = (text: string) => Buffer.from(text.replaceAll(" ", ""), "hex");
    assert.deepEqual(
      encodeReply(7, { kind: "status", code: 2 }),
      Buffer.concat([u32(1 + 4 + 4 + 16 + 4), type(101), id, u32(2), string("No such file"), string("")]),
    );
    assert.deepEqual(
      encodeReply(7, { kind: "handle", handle: 258 }),
      hex("0000000d 66 00000007 00000004 00000102"),
    );
    const data = Buffer.alloc(DATA_HEADER_BYTES + 100);
    data.write("abc", DATA_HEADER_BYTES);
    assert.deepEqual(
      encodeReply(7, { kind: "data", packet: data, length: 3 }),
      hex("0000000c 67 00000007 00000003 616263"),
    );
    const attributes = { sizeBytes: 2 ** 33 + 5, permissions: 0o644 };
    assert.deepEqual(
      encodeReply(7, { kind: "attributes", attributes }),
      hex("00000015 69 00000007 00000005 0000000200000005 000001a4"),
    );
    assert.deepEqual(
      encodeReply(7, { kind: "names", names: [{ name: bytes("a"), longName: bytes("bc"), attributes: {} }] }),
      Buffer.concat([u32(1 + 4 + 4 + 5 + 6 + 4), type(104), id, u32(1), string("a"), string("bc"), u32(0)]),
    );
    assert.deepEqual(
      encodeReply(7, { kind: "numbers", values: [1, 2n ** 63n] }),
      hex("00000015 c9 00000007 0000000000000001 8000000000000000"),
    );
    assert.deepEqual(
      encodeReply(7, { kind: "nameLists", lists: [[bytes("x")], []] }),
      hex("00000012 c9 00000007 00000005 00000001 78 00000000"),
    );
  });

  it("yields the same packets however the stream is cut", () => {
    const body = fc.uint8Array({ minLength: 1, maxLength: 300 });
    fc.assert(
      fc.property(
        fc.array(body),
        fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }),
        (bodies, cuts) => {
          const wire = Buffer.concat(bodies.map((part) => Buffer.concat([u32(part.length), part])));
          const decoder = new PacketDecoder();
          const got: Buffer[] = [];
          for (let at = 0, i = 0; at < wire.length; i++) {
            const size = cuts[i % cuts.length];
            decoder.push(Uint8Array.from(wire.subarray(at, at + size)));
            at += size;
            if (i % 3 === 0) for (let next = decoder.take(); next; next = decoder.take()) got.push(next);
          }
          for (let next = decoder.take(); next; next = decoder.take()) got.push(next);
          assert.deepEqual(
            got.map((part) => Uint8Array.from(part)),
            bodies,
          );
          assert.equal(decoder.bufferedBytes, 0);
        },
      ),
    );
  });

  it("refuses a length that is too large or nothing on the length alone", () => {
    const refused = (length: number, code: string) => {
      const decoder = new PacketDecoder();
      decoder.push(u32(length));
      assert.throws(() => decoder.take(), { code });
    };
    refused(MAX_PACKET_BYTES + 1, "ERR_FRAME_TOO_LARGE");
    refused(0xffffffff, "ERR_FRAME_TOO_LARGE");
    refused(0, "ERR_FRAME_TRUNCATED");
    const decoder = new PacketDecoder();
    decoder.push(u32(MAX_PACKET_BYTES));
    assert.equal(decoder.take(), undefined);
  });

  it("takes any bytes for a request or a WireError, never anything else", () => {
    const types = fc.oneof(fc.integer({ min: 1, max: 21 }), fc.constant(200), fc.nat(255));
    const bodies = fc.oneof(
      fc.uint8Array({ maxLength: 80 }),
      fc
        .constantFrom(...EXTENSIONS)
        .chain(([name]) =>
          fc.uint8Array({ maxLength: 60 }).map((rest) => Buffer.concat([id, string(name), rest])),
        ),
      fc
        .array(fc.constantFrom(u32(0), u32(4), u32(0xffffffff), u32(0x8000000f), Buffer.from("ab\0c")), {
          maxLength: 12,
        })
        .map((parts) => Buffer.concat(parts)),
    );
    fc.assert(
      fc.property(types, bodies, (kind, body) => {
        try {
          decodePacket(Buffer.concat([type(kind), body]));
        } catch (error) {
          assert.ok(error instanceof WireError, String(error));
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it("takes INIT from OpenSSH's client", () => {
    assert.deepEqual(INIT, Buffer.from("000000050100000003", "hex"));
  });
});
