import assert from "node:assert/strict";
import { utf8 } from "../wire/bytes.ts";
import { ASK_AFTER_MS, IN_USE_MS, Liveness, STALL_AFTER_MS } from "./liveness.ts";
import { connected, eventsOf, readAll, type Side, settle } from "./testing.ts";

describe("liveness, by itself", () => {
  it("a stall is told once, after 3 s of waiting, and so is its end", () => {
    const liveness = new Liveness("client", 0);
    liveness.update(true, 100);
    liveness.update(true, 2_000);
    assert.equal(liveness.stallAt(), 100 + STALL_AFTER_MS);
    assert.equal(liveness.check(100 + STALL_AFTER_MS - 1), undefined);
    assert.deepEqual(liveness.check(100 + STALL_AFTER_MS), { kind: "stalled", forMs: STALL_AFTER_MS });
    assert.equal(liveness.check(60_000), undefined);
    assert.deepEqual(liveness.onProgress(60_100), { kind: "flowing", afterMs: 60_000 });
    assert.equal(liveness.onProgress(60_200), undefined);
  });

  it("progress starts the wait anew, and nothing is waited for that is not due", () => {
    const liveness = new Liveness("client", 0);
    liveness.update(true, 0);
    liveness.onProgress(2_900);
    assert.equal(liveness.check(3_000), undefined);
    liveness.update(false, 3_100);
    assert.equal(liveness.stallAt(), undefined);
  });

  it("asks only a peer it is used with, and only in silence", () => {
    const liveness = new Liveness("client", 0);
    assert.equal(liveness.askAt(), undefined);
    liveness.onUse(50);
    assert.equal(liveness.askAt(), ASK_AFTER_MS.client);
    liveness.onHeard(900);
    assert.equal(liveness.askAt(), 900 + ASK_AFTER_MS.client);
    liveness.onHeard(50 + IN_USE_MS);
    assert.equal(liveness.askAt(), undefined);
  });
});

describe("a session's liveness", () => {
  const kinds = (events: { kind: string }[]) =>
    events.map(({ kind }) => kind).filter((kind) => kind === "stalled" || kind === "flowing");

  it("a path that goes silent while in use shows within 4 s, though nobody writes", () => {
    for (const writer of ["client", "agent"] as Side[]) {
      const { net, stream, lane } = connected({ client: { keepaliveMs: 20_000 } });
      net.session(writer).write(stream, utf8("x"));
      settle(net, 50);
      net.setSilent(lane, true);
      const from = net.now;
      net.run(() => eventsOf(net.events.client, "stalled").length > 0, from + 60_000);
      assert.ok(net.now - from <= 4_000, `${net.now - from} ms`);
    }
  });

  it("a stall ends when acknowledgements flow again, and nothing was lost", () => {
    const { net, stream, lane } = connected();
    net.setSilent(lane, true);
    net.client.write(stream, utf8("hello"));
    settle(net, 5_000);
    assert.equal(net.client.isStalled, true);
    net.setSilent(lane, false);
    settle(net, 15_000);
    assert.deepEqual(kinds(net.events.client), ["stalled", "flowing"]);
    assert.equal(net.client.isStalled, false);
    assert.equal(readAll(net.agent, stream), 5);
  });

  it("no lane is a stall too, of a session with nothing to say", () => {
    const { net, lane } = connected();
    net.cut(lane);
    settle(net, 5_000);
    const [{ forMs }] = eventsOf(net.events.client, "stalled");
    assert.equal(forMs, STALL_AFTER_MS);
    net.now += 3_600_000;
    net.addLink();
    settle(net, 2_000);
    const [{ afterMs }] = eventsOf(net.events.client, "flowing");
    assert.ok(afterMs >= 3_603_000 && afterMs < 3_603_200, `${afterMs}`);
  });

  it("a peer that reads nothing is no stall: its window is what holds us back", () => {
    const { net, stream } = connected();
    for (let i = 0; i < 64; i++) net.client.write(stream, new Uint8Array(65_536));
    settle(net, 60_000);
    assert.deepEqual(kinds(net.events.client), []);
  });

  it("an idle session keeps to its keepalive", () => {
    const { net, stream } = connected({ client: { keepaliveMs: 20_000 } });
    net.client.write(stream, utf8("x"));
    settle(net, IN_USE_MS + 2_000);
    const before = net.packets.client + net.packets.agent;
    settle(net, 600_000);
    const perKeepalive = (net.packets.client + net.packets.agent - before) / 30;
    assert.ok(perKeepalive <= 2, `${perKeepalive} packets`);
  });

  it("a session in use asks once a second at most, one side for both", () => {
    const { net, stream } = connected({ client: { keepaliveMs: 20_000 } });
    net.client.write(stream, utf8("x"));
    const before = net.packets.client + net.packets.agent;
    settle(net, IN_USE_MS);
    const sent = net.packets.client + net.packets.agent - before;
    assert.ok(sent >= 10 && sent <= 2 * (IN_USE_MS / 1_000) + 4, `${sent} packets`);
  });
});
