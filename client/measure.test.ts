import assert from "node:assert/strict";
import fc from "fast-check";
import { formatReply, formatSummary, summarize } from "./pings.ts";
import { sessionRow } from "./sessions.ts";
import { formatInterval, mbitPerSecond, ThroughputMeter, toJson } from "./speedtest.ts";

describe("ping", () => {
  it("counts replies and losses, and orders the times", () => {
    const replies = [3, 1, 2, 10].map((rttMs) => ({ rttMs }));
    assert.deepEqual(summarize(replies, 1), {
      sent: 5,
      received: 4,
      lost: 1,
      min_ms: 1,
      avg_ms: 4,
      median_ms: 3,
      max_ms: 10,
    });
    assert.equal(
      formatSummary(summarize(replies, 1)),
      "4 replies, 1 lost; round trip min / avg / median / max 1.00 / 4.00 / 3.00 / 10.00 ms\n",
    );
    assert.equal(formatSummary(summarize([], 3)), "0 replies, 3 lost\n");
    assert.equal(formatSummary(summarize([{ rttMs: 1 }], 0)).slice(0, 9), "1 reply, ");
  });

  it("says how each reply came", () => {
    const reply = { rttMs: 1.234, via: "via relay coder (999)", path: "relay", region: 999 };
    assert.equal(formatReply("dev", reply, 2, 5), "pong from dev via relay coder (999) in 1.23 ms (2/5)");
    assert.equal(formatReply("dev", reply, 2, 0), "pong from dev via relay coder (999) in 1.23 ms (2)");
  });
});

describe("speedtest", () => {
  it("cuts the time into seconds and loses no byte", () => {
    const step = fc.record({ ms: fc.nat(1_500), bytes: fc.nat(1_000_000) });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 50 }), (steps) => {
        const meter = new ThroughputMeter(1_000);
        let now = 1_000;
        let sent = 0;
        const intervals = [];
        for (const { ms, bytes } of steps) {
          now += ms;
          meter.add(bytes);
          sent += bytes;
          const interval = meter.tick(now);
          if (interval) intervals.push(interval);
        }
        const { last, total } = meter.end(now + 1_000);
        assert.ok(last);
        intervals.push(last);
        assert.equal(total.bytes, sent);
        assert.equal(
          intervals.reduce((sum, { bytes }) => sum + bytes, 0),
          sent,
        );
        for (const [i, { fromMs, toMs }] of intervals.entries()) {
          assert.ok(toMs - fromMs >= 1_000);
          assert.equal(fromMs, i === 0 ? 0 : intervals[i - 1].toMs);
        }
      }),
    );
  });

  it("a rest too short to say anything makes no line", () => {
    const meter = new ThroughputMeter(0);
    meter.add(1_000_000);
    assert.ok(meter.tick(1_000));
    assert.deepEqual(meter.end(1_050), {
      last: undefined,
      total: { fromMs: 0, toMs: 1_050, bytes: 1_000_000 },
    });
  });

  it("says megabits of a million bits", () => {
    const interval = { fromMs: 0, toMs: 1_000, bytes: 125_000 };
    assert.equal(mbitPerSecond(interval), 1);
    assert.equal(formatInterval(interval), "0.00-1.00 sec    1.0000 Mbits/sec");
    assert.deepEqual(toJson(interval), { start_time_seconds: 0, end_time_seconds: 1, throughput_mbits: 1 });
    assert.equal(mbitPerSecond({ fromMs: 5, toMs: 5, bytes: 9 }), 0);
  });
});

describe("sessions", () => {
  const now = 1_700_000_000_000;
  const session = {
    id: "0123456789abcdef0123456789abcdef",
    startedAt: now - 3_600_000,
    lastHeardAt: now - 5_000,
    isCurrent: false,
    resumeWindowMs: 86_400_000,
    path: "relay 999",
    rttMs: 1.26,
    streams: [{ service: "session", what: "shell", openedAt: now - 3_600_000 }],
  };

  it("one that is heard from is kept for as long as was asked", () => {
    assert.deepEqual(sessionRow(session, now), {
      id: "01234567",
      started: "1h0m ago",
      "last heard": "now",
      kept: "1d0h if lost",
      path: "relay 999, 1.3 ms",
      runs: "shell",
    });
  });

  it("a silent one says how much longer", () => {
    const silent = {
      ...session,
      lastHeardAt: now - 600_000,
      resumeWindowMs: 660_000,
      rttMs: undefined,
      streams: [],
    };
    const row = sessionRow(silent, now);
    assert.deepEqual(
      [row["last heard"], row["kept"], row["path"], row["runs"]],
      ["10m0s ago", "1m0s more", "relay 999", "nothing"],
    );
    assert.equal(sessionRow({ ...silent, resumeWindowMs: 1 }, now)["kept"], "ending");
  });

  it("many streams are cut short", () => {
    const streams = Array.from({ length: 50 }, () => ({
      service: "tcp:localhost:80",
      what: "",
      openedAt: now,
    }));
    const text = sessionRow({ ...session, streams }, now)["runs"];
    assert.equal(text.length, 60);
    assert.match(text, /^tcp:localhost:80, .*…$/);
  });
});
