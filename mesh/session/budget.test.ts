import assert from "node:assert/strict";
import { MemoryBudget } from "./budget.ts";
import { connected, readAll, settle } from "./testing.ts";

const MB = 1 << 20;

/** Writes as much as is taken. @returns how much that was */
function fill(session: ReturnType<typeof connected>["net"]["client"], stream: number): number {
  let bytes = 0;
  for (let taken = 1; taken > 0; bytes += taken) taken = session.write(stream, new Uint8Array(100_000));
  return bytes;
}

/** Sends `total` bytes to a reader that reads at once. @returns how long it took in virtual ms */
function transfer({ net, stream }: ReturnType<typeof connected>, total: number): number {
  const startedAt = net.now;
  let left = total;
  let got = 0;
  const pump = () => {
    for (let taken = 1; left > 0 && taken > 0; left -= taken)
      taken = net.client.write(stream, new Uint8Array(Math.min(left, 100_000)));
  };
  net.onEvent = (side, event) => {
    if (side === "client" && event.kind === "writable") pump();
    if (side === "agent" && event.kind === "readable") got += readAll(net.agent, stream);
  };
  pump();
  assert.equal(
    net.run(() => left === 0 && got >= total, net.now + 600_000),
    "done",
  );
  return net.now - startedAt;
}

describe("the memory of all sessions of a node", () => {
  it("is taken as windows and buffers grow, and given back with the session", () => {
    const [mine, theirs] = [new MemoryBudget(1_000 * MB), new MemoryBudget(1_000 * MB)];
    const link = connected({ client: { budget: mine }, agent: { budget: theirs } });
    transfer(link, 32 * MB);
    assert.ok(theirs.usedBytes >= 3 * MB, "the window did not grow");
    assert.equal(mine.usedBytes % MB, 0);
    link.net.client.close(0, "", link.net.now);
    settle(link.net);
    assert.deepEqual([mine.usedBytes, theirs.usedBytes], [0, 0]);

    const none = new MemoryBudget(0);
    transfer(connected({ client: { budget: none }, agent: { budget: none } }), 32 * MB);
    assert.equal(none.usedBytes, 0);
  });

  it("used up, lets every session go on at its first size", () => {
    const budget = new MemoryBudget(2 * MB);
    const links = Array.from({ length: 4 }, () => connected({ client: { budget }, agent: { budget } }));
    for (const link of links) fill(link.net.client, link.stream); // nobody reads: all buffers fill
    assert.ok(budget.usedBytes <= 2 * MB);
    for (const link of links) {
      readAll(link.net.agent, link.stream);
      transfer(link, 4 * MB);
    }
  });

  it("is not held by a session whose peer is away, which buffers 1 MB at most meanwhile", () => {
    const [mine, theirs] = [new MemoryBudget(1_000 * MB), new MemoryBudget(1_000 * MB)];
    const link = connected({ client: { budget: mine }, agent: { budget: theirs } });
    transfer(link, 32 * MB);
    const grown = theirs.usedBytes;
    const lane = 1;
    link.net.cut(lane);
    const streams = Array.from({ length: 40 }, () => link.net.client.openStream("x", new Uint8Array(), 0));
    for (const session of [link.net.client, link.net.agent]) session.setSilent(true);
    assert.equal(theirs.usedBytes, 0);
    for (const stream of streams) fill(link.net.client, stream);
    assert.equal(link.net.client.stats.bufferedBytes, MB);
    for (const session of [link.net.client, link.net.agent]) session.setSilent(false);
    assert.ok(theirs.usedBytes > 0 && theirs.usedBytes <= grown, "what was promised counts again");
    assert.ok(streams.reduce((sum, stream) => sum + fill(link.net.client, stream), 0) > 4 * MB);
    link.net.addLink();
    settle(link.net, 5_000);
    assert.equal(link.net.client.isClosed, false);
  });
});
