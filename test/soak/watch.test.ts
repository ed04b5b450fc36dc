import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { needsProc } from "../skip.ts";
import { descendant, judge, look, type Point, slopePerHour } from "./watch.ts";

const every = (minutes: number, values: readonly number[]): Point[] =>
  values.map((value, i) => ({ hours: (i * minutes) / 60, value }));

describe("judging what a long run held", () => {
  it("a slope is per hour, and some odd points don't move it", () => {
    assert.equal(slopePerHour(every(30, [0, 1, 2, 3, 4])), 2);
    assert.equal(slopePerHour(every(30, [5, 5, 90, 5, 5, 5, 5])), 0);
  });

  it("noise is flat; a slow leak of a thing, and of memory, is not", () => {
    const noise = [20, 22, 19, 21, 20, 22, 20, 19, 21];
    assert.equal(judge(every(5, noise), { rise: 2, perHour: 20, most: 22 }).verdict, "flat");
    assert.equal(judge(every(5, [20, 20, 21, 22, 22, 23, 23, 24, 24]), { rise: 2 }).verdict, "grows");
    assert.equal(judge(every(60, [1, 2, 3, 4, 5, 6, 7, 8.5, 10]), { perHour: 1 }).verdict, "grows");
    assert.equal(judge(every(5, noise), { most: 21 }).verdict, "grows");
  });

  it("a program that grows at its start and then no more is flat", () => {
    const points = every(10, [10, 30, 40, 45, 46, 46, 46, 46, 46, 46, 46, 46]);
    assert.equal(judge(points, { perHour: 1 }).verdict, "flat");
  });

  it("few points say nothing, unless one is above what none may be", () => {
    assert.equal(judge(every(5, [1, 9]), { rise: 1 }).verdict, "too few points");
    assert.equal(judge(every(5, [0, 1]), { most: 0 }).verdict, "grows");
  });
});

describe("what is seen of a process from outside", () => {
  before(function () {
    needsProc(this);
  });

  it("its descriptors by kind, its children, and nothing once it is gone", async () => {
    const before = look(process.pid)!;
    const fd = openSync("/dev/null", "r");
    const child = spawn("sleep", ["60"], { stdio: "ignore" });
    await once(child, "spawn");
    try {
      const now = look(process.pid)!;
      assert.equal(now.fdKinds["file"], (before.fdKinds["file"] ?? 0) + 1);
      assert.equal(now.children, before.children + 1);
      assert.equal(descendant(process.pid, /^sleep 60/), child.pid);
    } finally {
      closeSync(fd);
      const ended = once(child, "exit");
      child.kill("SIGKILL");
      await ended;
    }
    assert.equal(look(child.pid as number), undefined);
  });
});
