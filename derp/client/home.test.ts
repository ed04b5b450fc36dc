import assert from "node:assert/strict";
import * as fc from "fast-check";
import { HISTORY_MS, type HomeQuestion, type LatencyReport, preferredHome, ReportHistory } from "./home.ts";
import { type ClientMap, sortRegions } from "./nodes.ts";

type Latencies = Record<number, number>;

const report = (startedAt: number, latencies: Latencies, full = true): LatencyReport => ({
  startedAt,
  full,
  latencyMs: new Map(Object.entries(latencies).map(([id, ms]) => [Number(id), ms])),
});

/** Regions 1 to 4 with a relay each, 5 with STUN alone. */
const mapWith = (more: Record<number, object> = {}, scores?: Record<string, number>): ClientMap => ({
  Regions: Object.fromEntries(
    [1, 2, 3, 4, 5].map((id) => [
      id,
      {
        RegionID: id,
        RegionCode: `r${id}`,
        RegionName: "",
        Nodes: [{ Name: `${id}a`, RegionID: id, HostName: `r${id}.test`, STUNOnly: id === 5 }],
        ...more[id],
      },
    ]),
  ),
  HomeParams: scores && { RegionScore: scores },
});

interface Case {
  name: string;
  /** One report a second; the last one is now. */
  reports: Latencies[];
  current?: number;
  /** How long ago the current home was heard. */
  heardAgoMs?: number;
  map?: ClientMap;
  forced?: number;
  expected: number | undefined;
}

const CASES: Case[] = [
  { name: "the first report: the fastest", reports: [{ 1: 20, 2: 10 }], expected: 2 },
  { name: "equal latencies: the lowest id", reports: [{ 2: 10, 1: 10 }], expected: 1 },
  {
    name: "a region whose best lies in an earlier report",
    reports: [
      { 1: 10, 2: 30 },
      { 1: 40, 2: 30 },
    ],
    expected: 1,
  },
  { name: "a third less and more than 10 ms: moves", reports: [{ 1: 100, 2: 60 }], current: 1, expected: 2 },
  { name: "hysteresis %: 100 to 70 ms is not enough", reports: [{ 1: 100, 2: 70 }], current: 1, expected: 1 },
  {
    name: "hysteresis, absolute: 12 to 3 ms is not enough",
    reports: [{ 1: 12, 2: 3 }],
    current: 1,
    expected: 1,
  },
  { name: "hysteresis, absolute: 13 to 3 ms is", reports: [{ 1: 13, 2: 3 }], current: 1, expected: 2 },
  { name: "the home that did not answer and was not heard", reports: [{ 2: 50 }], current: 1, expected: 2 },
  {
    name: "traffic only: an unmeasured home that was heard stays",
    reports: [{ 2: 5 }],
    current: 1,
    heardAgoMs: 7_000,
    expected: 1,
  },
  {
    name: "an unmeasured home heard too long ago",
    reports: [{ 2: 5 }],
    current: 1,
    heardAgoMs: 9_000,
    expected: 2,
  },
  {
    name: "no answer at all, but traffic: stays",
    reports: [{}],
    current: 1,
    heardAgoMs: 119_000,
    expected: 1,
  },
  {
    name: "no answer and no traffic: nothing",
    reports: [{}],
    current: 1,
    heardAgoMs: 121_000,
    expected: undefined,
  },
  {
    name: "scores: a region made to look nearer",
    reports: [{ 1: 50, 2: 80 }],
    map: mapWith({}, { "2": 0.5 }),
    expected: 2,
  },
  {
    name: "scores of 0 and less are ignored",
    reports: [{ 1: 50, 2: 80 }],
    map: mapWith({}, { "2": 0, "1": -1 }),
    expected: 1,
  },
  {
    name: "scores count for the home too",
    reports: [{ 1: 30, 2: 30 }],
    map: mapWith({}, { "1": 2 }),
    current: 1,
    expected: 2,
  },
  { name: "forced, and it answered", reports: [{ 1: 5, 3: 200 }], current: 1, forced: 3, expected: 3 },
  { name: "forced, but silent", reports: [{ 1: 5 }], current: 1, forced: 3, expected: 1 },
  {
    name: "forced, silent, but heard",
    reports: [{ 1: 5 }],
    current: 3,
    heardAgoMs: 2_000,
    forced: 3,
    expected: 3,
  },
  { name: "a region with STUN alone is no home", reports: [{ 5: 1, 4: 90 }], expected: 4 },
  {
    name: "NoMeasureNoHome is no home",
    reports: [{ 1: 1, 4: 90 }],
    map: mapWith({ 1: { NoMeasureNoHome: true } }),
    current: 1,
    expected: 4,
  },
  {
    name: "Avoid is no new home",
    reports: [{ 1: 1, 4: 90 }],
    map: mapWith({ 1: { Avoid: true } }),
    expected: 4,
  },
  {
    name: "Avoid: the old home may stay",
    reports: [{ 1: 50, 4: 60 }],
    map: mapWith({ 1: { Avoid: true } }),
    current: 1,
    expected: 1,
  },
  { name: "a region that left the map", reports: [{ 9: 1, 2: 30 }], current: 9, expected: 2 },
];

describe("preferred-region table", () => {
  for (const { name, reports, current, heardAgoMs, map = mapWith(), forced, expected } of CASES)
    it(name, () => {
      const now = 1_000_000;
      const question: HomeQuestion = {
        map,
        reports: reports.map((one, i) => report(now - 500 - (reports.length - 1 - i) * 1_000, one)),
        current,
        heardAt: (region) => (region === current && heardAgoMs !== undefined ? now - heardAgoMs : undefined),
        forced,
        now,
      };
      assert.equal(preferredHome(question), expected);
    });

  it("expiry: what was measured more than 5 min 5 s ago no longer counts", () => {
    const ask = (now: number) =>
      preferredHome({
        map: mapWith(),
        reports: [report(0, { 1: 5, 2: 30 }), report(now, { 1: 60, 2: 30 })],
        current: undefined,
        heardAt: () => undefined,
        now,
      });
    assert.equal(ask(HISTORY_MS), 1);
    assert.equal(ask(HISTORY_MS + 1), 2);
  });

  it("never moves for less than 10 ms or a third, and never to a relay that did not answer", () => {
    const latency = fc.integer({ min: 1, max: 400 });
    fc.assert(
      fc.property(fc.dictionary(fc.constantFrom("1", "2", "3", "4"), latency), latency, (others, homeMs) => {
        const latencies: Latencies = { ...others, 1: homeMs };
        const home = preferredHome({
          map: mapWith(),
          reports: [report(0, latencies)],
          current: 1,
          heardAt: () => undefined,
          now: 10,
        });
        assert.ok(home !== undefined && latencies[home] !== undefined);
        if (home !== 1) assert.ok(homeMs - latencies[home] >= 10 && latencies[home] <= (2 / 3) * homeMs);
      }),
    );
  });

  it("RecentReportsRetainFullNetcheck: the last full check stays among the reports, and a new one is due in time", () => {
    const history = new ReportHistory();
    assert.ok(history.needsFull(0));
    history.add(report(0, { 1: 10, 2: 20, 3: 30 }));
    assert.ok(!history.needsFull(300_000));
    assert.ok(history.needsFull(300_001));
    for (let at = 1_000; at < 900_000; at += 1_000) history.add(report(at, { 1: 10 }, false));
    assert.ok(history.reports.some(({ full }) => full));
    assert.ok(history.reports.length <= 65, "bounded");
    history.add(report(900_000, { 1: 10 }));
    history.add(report(900_001, { 1: 10 }, false));
    assert.equal(
      history.reports.filter(({ full }) => full).length,
      1,
      "an older one than the last is let go",
    );
  });

  it("SortRegions: by latency, unmeasured ones last, equal ones by id", () => {
    const latencies = new Map([
      [3, 5],
      [2, 20],
      [4, 5],
    ]);
    assert.deepEqual(
      sortRegions(mapWith(), latencies).map((region) => region.RegionID),
      [3, 4, 2, 1, 5],
    );
  });
});
