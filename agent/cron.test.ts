import assert from "node:assert/strict";
import fc from "fast-check";
import type { AgentScript } from "../control/contract/agent.ts";
import { CronError, nextDue, parseCron } from "./cron.ts";
import { runSchedules } from "./schedule.ts";
import { memoryLogger } from "./testing.ts";

/** The next `count` times, as UTC, for a schedule that names UTC. */
function due(spec: string, from: string, count = 1): string[] {
  const schedule = parseCron(spec);
  const out: string[] = [];
  for (let at = Date.parse(from); out.length < count; ) {
    const next = nextDue(schedule, at);
    if (next === undefined) break;
    out.push(new Date(next).toISOString().replace(".000Z", "Z"));
    at = next;
  }
  return out;
}

describe("cron", () => {
  for (const [spec, from, expected] of [
    // Six fields, seconds first.
    ["TZ=UTC 0 30 9 * * *", "2024-01-31T10:00:00Z", ["2024-02-01T09:30:00Z", "2024-02-02T09:30:00Z"]],
    ["TZ=UTC */20 * * * * *", "2024-01-01T00:00:05Z", ["2024-01-01T00:00:20Z", "2024-01-01T00:00:40Z"]],
    ["TZ=UTC 0 0 0 29 2 *", "2024-03-01T00:00:00Z", ["2028-02-29T00:00:00Z"]],
    [
      "TZ=UTC 0 0 12 * jan,MAR Mon-wed",
      "2024-01-30T13:00:00Z",
      ["2024-01-31T12:00:00Z", "2024-03-04T12:00:00Z"],
    ],
    // Both kinds of day restricted: either will do. One of them open: both must.
    ["TZ=UTC 0 0 0 13 * 5", "2024-09-01T00:00:00Z", ["2024-09-06T00:00:00Z", "2024-09-13T00:00:00Z"]],
    ["TZ=UTC 0 0 0 ? * 5", "2024-09-01T00:00:00Z", ["2024-09-06T00:00:00Z", "2024-09-13T00:00:00Z"]],
    // Five fields start with the second, too.
    ["TZ=UTC 15 5 4 * *", "2024-01-01T04:05:15Z", ["2024-01-02T04:05:15Z"]],
    ["TZ=UTC @hourly", "2024-12-31T23:59:59Z", ["2025-01-01T00:00:00Z"]],
    ["TZ=UTC @weekly", "2024-09-02T00:00:00Z", ["2024-09-08T00:00:00Z"]],
    ["@every 1m30s", "2024-01-01T00:00:00.700Z", ["2024-01-01T00:01:30Z"]],
    ["@every 10ms", "2024-01-01T00:00:00Z", ["2024-01-01T00:00:01Z"]],
    // Summer time begins on 31 March at 1:00 UTC in Berlin: 2:30 is left out that day.
    ["TZ=Europe/Berlin 0 30 2 * * *", "2024-03-30T12:00:00Z", ["2024-04-01T00:30:00Z"]],
    // It ends on 27 October: 2:30 is there twice, and due once.
    [
      "CRON_TZ=Europe/Berlin 0 30 2 * * *",
      "2024-10-26T12:00:00Z",
      ["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"],
    ],
    // What comes each hour also comes in the hour that is repeated.
    ["TZ=Europe/Berlin 0 0 * * * *", "2024-10-26T23:30:00Z", ["2024-10-27T00:00:00Z"]],
  ] as const)
    it(`"${spec}" after ${from}`, () => assert.deepEqual(due(spec, from, expected.length), expected));

  it("a day that never comes is never due", () =>
    assert.deepEqual(due("TZ=UTC 0 0 0 30 2 *", "2024-01-01T00:00:00Z"), []));

  for (const spec of [
    "",
    "* * *",
    "60 * * * * *",
    "* * * * * 7",
    "1-2-3 * * * * *",
    "*/0 * * * * *",
    "5-1 * * * * *",
    "@often",
    "@every x",
    "TZ=Mars/Base 0 0 0 * * *",
    "a * * * * *",
    "hasOwnProperty",
    `@every ${"1000000h".repeat(40)}x`, // at once: a pattern that tries all ways to read it never ends
  ])
    it(`refuses ${JSON.stringify(spec)}`, () => assert.throws(() => parseCron(spec), CronError));

  it("the next time is after now, matches, and no earlier one does", () => {
    const field = (min: number, max: number) =>
      fc.oneof(fc.constant("*"), fc.integer({ min, max }).map(String), fc.constantFrom("*/7"));
    const spec = fc
      .tuple(field(0, 59), field(0, 59), field(0, 23), field(1, 28), field(1, 12))
      .map((fields) => `TZ=UTC ${fields.join(" ")} *`);
    const seed = Math.floor(Math.random() * 2 ** 31);
    console.log(`      seed ${seed}`);
    const start = Date.UTC(2020, 0, 1);
    fc.assert(
      fc.property(spec, fc.nat(10 * 365 * 86_400), (text, offset) => {
        const schedule = parseCron(text);
        const now = start + offset * 1_000;
        const next = nextDue(schedule, now)!;
        assert.ok(next > now && next % 1_000 === 0);
        assert.equal(nextDue(schedule, next - 1), next);
        // Whatever instant between is asked, the answer is the same.
        assert.equal(nextDue(schedule, now + Math.floor((next - now) / 2)), next);
      }),
      { seed, numRuns: 100 },
    );
  });
});

describe("scheduled scripts", () => {
  const script = (cron: string): AgentScript => ({
    id: "5b5c9c7e-0000-4000-8000-000000000001",
    log_source_id: "5b5c9c7e-0000-4000-8000-000000000001",
    display_name: "test",
    script: "",
    log_path: "",
    cron,
    run_on_start: false,
    run_on_stop: false,
    start_blocks_login: false,
    timeout_seconds: 0,
  });

  /** A clock that only waiting and running move. */
  function setup(takesMs: number[], stopAfter: number) {
    const stop = new AbortController();
    const state = { now: Date.UTC(2024, 0, 1), runs: [] as number[], lines: [] as string[], longestMs: 0 };
    const deps = {
      run: async () => {
        state.runs.push((state.now - Date.UTC(2024, 0, 1)) / 1_000);
        state.now += takesMs.shift() ?? 0;
        if (state.runs.length >= stopAfter) stop.abort();
      },
      log: (_source: string, _level: string, line: string) => void state.lines.push(line),
      logger: memoryLogger(),
      signal: stop.signal,
      wallClockMs: () => state.now,
      wait: async (ms: number) => {
        state.longestMs = Math.max(state.longestMs, ms);
        state.now += ms;
      },
    };
    return { state, deps };
  }

  it("run at their times, without drift, however long they take", async () => {
    const { state, deps } = setup([3_000, 4_000], 3);
    await runSchedules([script("TZ=UTC */10 * * * * *")], deps);
    assert.deepEqual(state.runs, [10, 20, 30]);
    assert.deepEqual(state.lines, []);
  });

  it("never run beside themselves: what was due meanwhile is left out, and said", async () => {
    const { state, deps } = setup([25_000], 2);
    await runSchedules([script("TZ=UTC */10 * * * * *")], deps);
    assert.deepEqual(state.runs, [10, 40]);
    assert.match(state.lines.join(), /still ran/);
  });

  it("a clock that jumps is noticed: no wait is longer than a minute", async () => {
    const { state, deps } = setup([], 1);
    await runSchedules([script("TZ=UTC 0 0 0 1 7 *")], deps);
    assert.deepEqual(state.runs, [182 * 86_400]);
    assert.ok(state.longestMs <= 60_000);
  });

  it("one that can't be read, or is never due, says so and harms nobody", async () => {
    const { state, deps } = setup([], 1);
    await runSchedules(
      [script("nonsense"), script("TZ=UTC 0 0 0 30 2 *"), script(" "), script("@every 1s")],
      deps,
    );
    assert.equal(state.runs.length, 1);
    assert.match(state.lines.join("\n"), /"nonsense" can't be read: .*\n.*never due/);
  });
});
