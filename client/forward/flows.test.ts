import assert from "node:assert/strict";
import { Complaints } from "./complaints.ts";
import { FLOW_IDLE_MS, Flows } from "./flows.ts";

describe("UDP flows", () => {
  it("the least recently used one goes when there are too many", () => {
    const flows = new Flows<string>(2);
    assert.equal(flows.add("a", "A", 0), undefined);
    assert.equal(flows.add("b", "B", 1), undefined);
    assert.equal(flows.use("a", 2), "A");
    assert.equal(flows.add("c", "C", 3), "B");
    assert.deepEqual([flows.use("a", 4), flows.use("b", 4), flows.use("c", 4)], ["A", undefined, "C"]);
  });

  it("a silent one ends, a used one stays", () => {
    const flows = new Flows<string>();
    flows.add("a", "A", 0);
    flows.add("b", "B", 0);
    flows.use("a", 1_000);
    assert.deepEqual(flows.expire(FLOW_IDLE_MS - 1), []);
    assert.deepEqual(flows.expire(FLOW_IDLE_MS), ["B"]);
    assert.equal(flows.size, 1);
    assert.deepEqual(flows.expire(FLOW_IDLE_MS + 1_000), ["A"]);
  });

  it("the end of a flow does not end its successor", () => {
    const flows = new Flows<string>();
    flows.add("a", "old", 0);
    flows.add("a", "new", 1);
    flows.remove("a", "old");
    assert.equal(flows.use("a", 2), "new");
    flows.remove("a", "new");
    assert.equal(flows.size, 0);
  });
});

describe("complaints", () => {
  it("the same one is told once, and then with how often it was left out", () => {
    const complaints = new Complaints();
    assert.equal(complaints.line("no", 0), "no");
    assert.equal(complaints.line("no", 1), undefined);
    assert.equal(complaints.line("other", 2), "other");
    assert.equal(complaints.line("no", 9_999), undefined);
    assert.equal(complaints.line("no", 10_000), "no (and 2 more since)");
    assert.equal(complaints.line("no", 20_000), "no");
  });

  it("remembers only so many", () => {
    const complaints = new Complaints();
    for (let i = 0; i < 65; i++) complaints.line(`${i}`, 0);
    assert.equal(complaints.line("64", 1), undefined);
    assert.equal(complaints.line("0", 1), "0");
  });
});
