import assert from "node:assert/strict";
import { schedulesOverlap, scriptCronProblem, standardCronProblem } from "./cron.ts";
import { isGoFloat, parseGoBool, parseGoInt, urlProblem } from "./go-syntax.ts";
import { isTimeZone } from "./time-zone.ts";

const scriptCrons: [spec: string, problem: RegExp | undefined][] = [
  ["0 0 22 * * *", undefined],
  ["*/5 * * * *", undefined], // five fields: the day of week may be left out
  ["0,30 5-10/2 * ? JAN-mar sun", undefined],
  ["5/10 * * * * *", undefined],
  ["@daily", undefined],
  ["@every 1h30m", undefined],
  ["TZ=Europe/Berlin 0 0 6 * * *", undefined],
  ["CRON_TZ=UTC @hourly", undefined],
  ["", /got 0/],
  ["* * * *", /got 4/],
  ["* * * * * * *", /got 7/],
  ["60 * * * * *", /second "60": expected 0 to 59/],
  ["* * * 0 * *", /day of month "0"/],
  ["* * * * * 7", /day of week "7": expected 0 to 6/],
  ["* * * * foo *", /month "foo": not a number/],
  ["*/0 * * * * *", /step is not a positive number/],
  ["5-1 * * * * *", /ends before it begins/],
  ["1-2-3 * * * * *", /more than one hyphen/],
  ["1/2/3 * * * * *", /more than one slash/],
  ["@sometimes", /none of @yearly/],
  ["@every soon", /none of @yearly/],
  [`@every ${"1000000h".repeat(40)}x`, /none of @yearly/], // at once
  ["TZ=Mars/Olympus * * * * * *", /not a time zone/],
];

const overlaps: [one: string, other: string, answer: boolean | RegExp][] = [
  ["* 8-18 * * 1-5", "* 18 * * 5", true],
  ["* 8-18 * * 1-5", "* 19 * * 5", false],
  ["* 8-18 * * 1-5", "* 8-18 * * 6,0", false],
  ["* * * 1-6 *", "* * * 7-12 *", false],
  ["* 1 1 * *", "* 1 2 * *", false], // the days of week are open, so the days of month decide
  ["* 1 * * 1", "* 1 2 * 1", true],
  ["* 1 * * 1", "* 1 2 * 2", false],
  ["* 1 1 * 1", "* 1 2 * *", false],
  ["* 1 1 * 1", "* 1 2 * 1", true],
  ["* 1 1 * 1", "* 1 2 * 2", false],
  ["* */2 * * *", "* 1 * * *", /numbers and ranges/],
];

describe("cron expressions", () => {
  for (const [spec, problem] of scriptCrons)
    it(`of a script: ${JSON.stringify(spec)} is ${problem ? "refused" : "taken"}`, () => {
      if (problem) assert.match(scriptCronProblem(spec) ?? "", problem);
      else assert.equal(scriptCronProblem(spec), undefined);
    });

  it("of a schedule have five fields", () => {
    assert.equal(standardCronProblem("* 8-18 * * MON-FRI"), undefined);
    assert.match(standardCronProblem("0 0 22 * * *") ?? "", /got 6/);
  });

  for (const [one, other, answer] of overlaps)
    it(`${one} and ${other} ${answer === true ? "overlap" : answer ? "can't be compared" : "do not overlap"}`, () => {
      for (const found of [schedulesOverlap(one, other), schedulesOverlap(other, one)])
        if (answer instanceof RegExp) assert.match(String(found), answer);
        else assert.equal(found, answer);
    });

  it("know a time zone from an offset and from a typo", () => {
    assert.deepEqual(["UTC", "America/New_York", "+01:00", "Berlin", ""].map(isTimeZone), [
      true,
      true,
      false,
      false,
      false,
    ]);
  });
});

describe("texts that Go reads", () => {
  it("integers are decimal and have 64 bits", () => {
    assert.deepEqual(
      [
        "0",
        "-7",
        "+7",
        "007",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "1_0",
        "1.0",
        "",
        " 1",
        "0x1",
      ].map(parseGoInt),
      [
        0n,
        -7n,
        7n,
        7n,
        9223372036854775807n,
        undefined,
        -9223372036854775808n,
        undefined,
        undefined,
        undefined,
        undefined,
        undefined,
      ],
    );
  });

  it("floats are decimal or hexadecimal, finite unless they say so", () => {
    const yes = ["0", "-1.5", "1.", ".5", "1e9", "0x1p-2", "inf", "-Infinity", "NaN"];
    // The long ones at once: with two ways to read each digit they would take seconds.
    const long = ["1", "0xa"].map((digits) => `${digits.padEnd(200_000, "1")}x`);
    const no = ["", ".", "1e", "1e999", "0x1", "1_000", " 1", "1f", ...long];
    assert.deepEqual([yes.filter((text) => !isGoFloat(text)), no.filter(isGoFloat)], [[], []]);
  });

  it("bools have a few spellings", () => {
    assert.deepEqual(["1", "T", "true", "TRUE", "0", "f", "False", "yes", "tRUE", ""].map(parseGoBool), [
      true,
      true,
      true,
      true,
      false,
      false,
      false,
      undefined,
      undefined,
      undefined,
    ]);
  });

  it("URLs may be relative, but not malformed", () => {
    const yes = [
      "",
      "/icon/code.svg",
      "https://example.com/a b?%zz#%",
      "mailto:a@b",
      "http://[::1]:80/",
      "a/b:c",
      "http://u:p@h:1/",
      "//host/x",
    ];
    const no = [
      ":x",
      "1a:b",
      "http://h:port/",
      "http://a b/",
      "/%zz",
      "http://[::1",
      "http://h/\n",
      "http://h:1:2/",
    ];
    assert.deepEqual(
      [yes.filter((text) => urlProblem(text)), no.filter((text) => !urlProblem(text))],
      [[], []],
    );
  });
});
