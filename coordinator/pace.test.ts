import assert from "node:assert/strict";
import { Pace } from "./pace.ts";

describe("the pace of a subject", () => {
  const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

  it("runs few of its wishes at once, the others in turn, and those of another subject beside them", async () => {
    const pace = new Pace({ burst: 10, perSecond: 1, concurrent: 2 });
    const started: string[] = [];
    const ends: (() => void)[] = [];
    const wish = (subject: string, name: string) =>
      pace.run(subject, 0, () => {
        started.push(name);
        return new Promise<void>((resolve) => ends.push(resolve));
      });
    const all = [wish("a", "a1"), wish("a", "a2"), wish("a", "a3"), wish("b", "b1")];
    await turn();
    assert.deepEqual(started, ["a1", "a2", "b1"]);
    ends[0]();
    await turn();
    assert.deepEqual(started, ["a1", "a2", "b1", "a3"]);
    for (const end of ends) end();
    await Promise.all(all);
  });

  it("goes on after a failure", async () => {
    const pace = new Pace({ burst: 10, perSecond: 1, concurrent: 1 });
    const fails = pace.run("a", 0, () => Promise.reject(new Error("no")));
    const next = pace.run("a", 0, async () => "yes");
    await assert.rejects(fails, /no/);
    assert.deepEqual(await next, { result: "yes" });
  });

  it("refuses what is too much, until time has passed, and forgets who asked long ago", async () => {
    const pace = new Pace({ burst: 2, perSecond: 1, concurrent: 8 });
    const ask = async (at: number, of = "a") => (await pace.run(of, at, async () => true)) !== undefined;
    assert.deepEqual([await ask(0), await ask(0), await ask(0)], [true, true, false]);
    assert.equal(await ask(0, "b"), true);
    assert.equal(await ask(999), false);
    assert.equal(await ask(1_000), true);
    assert.equal(await ask(-5_000), false, "a clock that is set back gives nothing");
    pace.sweep(-5_000);
    assert.equal(pace.size, 2);
    pace.sweep(60_000);
    assert.equal(pace.size, 0);
  });
});
