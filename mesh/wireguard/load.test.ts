import assert from "node:assert/strict";
import { HandshakeLoad } from "./load.ts";

describe("handshake load", () => {
  it("lasts from the first second above the limit until a second after it", () => {
    const load = new HandshakeLoad(2);
    assert.deepEqual(
      [0, 500, 999].map((now) => load.arrived(now)),
      [false, false, true],
    );
    assert.deepEqual(
      [1_000, 1_999, 2_000, 2_999].map((now) => load.arrived(now)),
      [true, true, false, false],
    );
  });

  it("lets a source have five at once and then one every 50 ms", () => {
    const load = new HandshakeLoad(0);
    const one = { key: "one" };
    const allowed = (now: number, tries: number) =>
      Array.from({ length: tries }, () => load.allows(one, now)).filter(Boolean).length;
    assert.equal(allowed(0, 20), 5);
    assert.equal(allowed(49, 20), 0);
    assert.equal(allowed(50, 20), 1);
    assert.equal(allowed(10_000, 20), 5);
    assert.equal(load.allows({ key: "two" }, 10_000), true);
  });

  it("remembers only so many sources, the latest", () => {
    const load = new HandshakeLoad(0);
    const spent = { key: "spent" };
    for (let i = 0; i < 6; i++) load.allows(spent, 0);
    for (let i = 0; i < 1_000; i++) load.allows({ key: `${i}` }, 0);
    assert.equal(load.allows(spent, 0), false, "still known");
    for (let i = 0; i < 1_024; i++) load.allows({ key: `more ${i}` }, 0);
    assert.equal(load.allows(spent, 0), true, "forgotten");
  });
});
