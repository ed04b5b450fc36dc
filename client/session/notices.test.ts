import assert from "node:assert/strict";
import { PassThrough } from "node:stream";
import fc from "fast-check";
import { formatWait, renderNotice, ScreenWatch, StallNotices } from "./notices.ts";
import { Notifier } from "./notifier.ts";

const LOST = "connection lost, waiting (your session is safe; ~. ends it)";

describe("notices of a stalled connection", () => {
  it("one line when it stalls, one when it is back", () => {
    const notices = new StallNotices("~. ends it");
    assert.equal(notices.stalled(3_000, 100_000), LOST);
    assert.equal(notices.stalled(9_000, 106_000), undefined);
    assert.equal(notices.resumed(112_000), "connection back after 15 s");
    assert.equal(notices.resumed(113_000), undefined);
  });

  it("a connection that flaps is told of only when it stays away", () => {
    const notices = new StallNotices("~. ends it");
    notices.stalled(3_000, 100_000);
    notices.resumed(101_000);
    assert.equal(notices.stalled(3_000, 110_000), undefined);
    assert.equal(notices.nextTimeout(), 117_000);
    assert.equal(notices.resumed(112_000), undefined);
    assert.equal(notices.nextTimeout(), undefined);
    assert.equal(notices.stalled(3_000, 120_000), undefined);
    assert.equal(notices.handleTimeout(126_999), undefined);
    assert.equal(notices.handleTimeout(127_000), LOST);
    assert.equal(notices.resumed(137_000), "connection back after 20 s");
  });

  it("after a calm time the next stall is told at once again", () => {
    const notices = new StallNotices("~. ends it");
    notices.stalled(3_000, 100_000);
    notices.resumed(101_000);
    assert.equal(notices.stalled(3_000, 161_000), LOST);
  });

  it("never more lines than stalls, and lost and back in turn", () => {
    const step = fc.record({ waitMs: fc.nat(90_000), stall: fc.boolean() });
    fc.assert(
      fc.property(fc.array(step), (steps) => {
        const notices = new StallNotices("x");
        const lines: string[] = [];
        let now = 1_000_000;
        for (const { waitMs, stall } of steps) {
          now += waitMs;
          const due = notices.handleTimeout(now);
          const line = stall ? notices.stalled(3_000, now) : notices.resumed(now);
          for (const text of [due, line]) if (text) lines.push(text.split(" ")[1]);
        }
        for (const [i, kind] of lines.entries()) assert.equal(kind, i % 2 === 0 ? "lost," : "back");
        assert.ok(lines.length <= steps.length * 2);
      }),
    );
  });

  it("says times as people do", () => {
    const texts = [400, 12_000, 119_000, 600_000, 7_200_000, 7_500_000].map(formatWait);
    assert.deepEqual(texts, ["1 s", "12 s", "119 s", "10 min", "2 h", "2 h 5 min"]);
  });

  it("knows a full-screen program however its output is cut", () => {
    const bytes = Buffer.from("vim\x1b[?1049hxx");
    for (let cut = 0; cut <= bytes.length; cut++) {
      const screen = new ScreenWatch();
      screen.push(bytes.subarray(0, cut));
      screen.push(bytes.subarray(cut));
      assert.ok(screen.isFullScreen, `cut at ${cut}`);
      screen.push(Buffer.from("\x1b[?1049l"));
      assert.ok(!screen.isFullScreen);
    }
  });

  it("leaves the cursor of a full-screen program where it is, and begins a line elsewhere", () => {
    assert.equal(renderNotice("x", "raw"), "\r\n[coder] x\r\n");
    assert.equal(renderNotice("x", "cooked"), "[coder] x\n");
    assert.match(renderNotice("x", "fullScreen"), /^\x1b7[^\n\r]*\[coder\] x[^\n\r]*\x1b8$/);
  });

  it("reach the terminal in the way it is in", () => {
    const stderr = new PassThrough();
    let now = 100_000;
    const notifier = new Notifier({ stderr, raw: true, now: () => now });
    notifier.onEvent({ kind: "path", path: {} });
    assert.equal(stderr.read(), null);
    notifier.onOutput(Buffer.from("\x1b[?1049h"));
    notifier.onEvent({ kind: "stalled", forMs: 3_100 });
    assert.match(String(stderr.read()), /^\x1b7.*connection lost/);
    notifier.onOutput(Buffer.from("\x1b[?1049l"));
    now += 5_000;
    notifier.onEvent({ kind: "resumed", afterMs: 8_100 });
    assert.equal(String(stderr.read()), "\r\n[coder] connection back after 8 s\r\n");
    notifier.stop();
  });
});
