import assert from "node:assert/strict";
import fc from "fast-check";
import { COOKIE_PROTOCOL, CookieReplacer, parseDisplay, parseXauthList } from "./x11.ts";

const fake = Buffer.from("00112233445566778899aabbccddeeff", "hex");
const real = Buffer.from("f0e0d0c0b0a090807060504030201000", "hex");

/** A connection setup as Xlib sends it. */
function setup(order: "B" | "l", cookie: Buffer, name = COOKIE_PROTOCOL, rest = ""): Buffer {
  const head = Buffer.alloc(12);
  head.write(order, "latin1");
  const put = (value: number, at: number) =>
    order === "B" ? head.writeUInt16BE(value, at) : head.writeUInt16LE(value, at);
  put(11, 2);
  put(name.length, 6);
  put(cookie.length, 8);
  const pad = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
  return Buffer.concat([head, pad(Buffer.from(name)), pad(cookie), Buffer.from(rest)]);
}

describe("X11 cookies", () => {
  for (const order of ["B", "l"] as const)
    it(`the real one takes the fake one's place however the setup is cut (byte order ${order})`, () => {
      const wire = setup(order, fake, COOKIE_PROTOCOL, "more");
      fc.assert(
        fc.property(fc.integer({ min: 1, max: wire.length }), (size) => {
          const replacer = new CookieReplacer(fake, real);
          const out: Uint8Array[] = [];
          let done = false;
          for (let i = 0; i < wire.length; i += size) {
            const chunk = wire.subarray(i, i + size);
            if (done) {
              out.push(chunk);
              continue;
            }
            const swap = replacer.push(chunk);
            assert.notEqual(swap.kind, "refused");
            if (swap.kind !== "done") continue;
            done = true;
            out.push(swap.bytes);
          }
          assert.deepEqual(Buffer.concat(out), setup(order, real, COOKIE_PROTOCOL, "more"));
        }),
      );
    });

  const strangers: [string, Buffer, RegExp][] = [
    ["another cookie", setup("l", real), /wrong authentication/],
    ["no cookie", setup("B", Buffer.alloc(0), ""), /wrong authentication/],
    ["another protocol", setup("l", fake, "XDM-AUTHORIZATION-1"), /wrong authentication/],
    ["a shorter cookie", setup("l", fake.subarray(0, 12)), /wrong authentication/],
    ["something that is not X11", Buffer.from("GET / HTTP/1.1\r\n\r\n"), /does not speak X11/],
    ["endless authorization", setup("l", Buffer.alloc(60_000)), /too long/],
  ];
  for (const [name, wire, why] of strangers)
    it(`${name} is refused`, () => {
      const swap = new CookieReplacer(fake, real).push(wire);
      assert.equal(swap.kind, "refused");
      assert.match(swap.kind === "refused" ? swap.why : "", why);
    });

  it("waits for bytes no longer than a setup can be", () => {
    const replacer = new CookieReplacer(fake, real);
    let bytes = 0;
    for (; bytes < 4_096; bytes++) if (replacer.push(Buffer.from("l")).kind !== "more") break;
    assert.ok(bytes < 1_100, `${bytes}`);
  });
});

describe("X11 displays", () => {
  const displays: [string, unknown][] = [
    [":0", { target: { kind: "unix", path: "/tmp/.X11-unix/X0" }, xauthName: "unix:0", screen: 0 }],
    ["unix:3.1", { target: { kind: "unix", path: "/tmp/.X11-unix/X3" }, xauthName: "unix:3", screen: 1 }],
    [
      "localhost:10.0",
      { target: { kind: "tcp", host: "localhost", port: 6010 }, xauthName: "unix:10", screen: 0 },
    ],
    ["xhost:1", { target: { kind: "tcp", host: "xhost", port: 6001 }, xauthName: "xhost:1", screen: 0 }],
    ["[::1]:2.0", { target: { kind: "tcp", host: "::1", port: 6002 }, xauthName: "[::1]:2", screen: 0 }],
    [
      "/private/tmp/launch/org.xquartz:0.2",
      {
        target: { kind: "unix", path: "/private/tmp/launch/org.xquartz:0" },
        xauthName: "/private/tmp/launch/org.xquartz:0.2",
        screen: 2,
      },
    ],
  ];
  for (const [text, expected] of displays)
    it(`${text} is found`, () => assert.deepEqual(parseDisplay(text), expected));

  for (const text of [undefined, "", "0", "host:", ":x", ":99999"])
    it(`${text === undefined ? "no DISPLAY" : `"${text}"`} is refused`, () =>
      assert.throws(() => parseDisplay(text), { code: "ERR_BAD_DISPLAY" }));

  it("the cookie is read from what xauth lists", () => {
    const list =
      "box/unix:0  XDM-AUTHORIZATION-1  00112233445566778899aabbccddeeff\n" +
      "box/unix:0  MIT-MAGIC-COOKIE-1  F0E0D0C0B0A090807060504030201000\n";
    assert.equal(parseXauthList(list), real.toString("hex"));
    for (const text of ["", "nothing here", "box:0 MIT-MAGIC-COOKIE-1 0011"])
      assert.equal(parseXauthList(text), undefined);
  });
});
