import assert from "node:assert/strict";
import fc from "fast-check";
import { Relay, type RelayClient } from "./relay.ts";

const all = { notHereForAll: true };
const plain = { notHereForAll: false };
const gone = (relay: Relay<string>): string[] =>
  relay.takeNotices().map(({ to, key, reason }) => `${to.handle}: ${key} ${reason}`);

describe("relay core", () => {
  let relay: Relay<string>;
  const add = (handle: string, key: string, options = plain): RelayClient<string> =>
    relay.add(handle, key, options, 0).client;
  beforeEach(() => {
    relay = new Relay<string>(4);
  });

  it("LookupDest: routes to the connection of a key, to oneself as well", () => {
    const a = add("a", "A");
    const b = add("b", "B");
    assert.equal(relay.route(a, "B"), b);
    assert.equal(relay.route(a, "A"), a);
    assert.equal(relay.route(a, "C"), undefined);
  });

  it("a receiver hears once that a sender is gone, and again after it was back", () => {
    const a = add("a", "A");
    const b = add("b", "B");
    relay.route(a, "B");
    relay.route(a, "B");
    relay.remove(a);
    relay.remove(a);
    assert.deepEqual(gone(relay), ["b: A 0"]);
    const again = add("a2", "A");
    relay.route(again, "B");
    relay.remove(again);
    assert.deepEqual(gone(relay), ["b: A 0"]);
    assert.equal(b.heard.size, 0);
  });

  it("who never received from a key hears nothing of its end", () => {
    const a = add("a", "A");
    const b = add("b", "B");
    relay.route(b, "A");
    relay.remove(a);
    assert.deepEqual(gone(relay), []);
    assert.equal(relay.connections, 1);
  });

  it("a key is gone only with its last connection", () => {
    const a1 = add("a1", "A");
    const a2 = add("a2", "A");
    add("b", "B");
    relay.route(a1, "B");
    relay.remove(a1);
    assert.deepEqual(gone(relay), []);
    relay.remove(a2);
    assert.deepEqual(gone(relay), ["b: A 0"]);
  });

  it("of duplicates the newest receives, then whoever wrote last", () => {
    const from = add("from", "F");
    const a = add("a", "K");
    const b = add("b", "K");
    const c = add("c", "K");
    assert.equal(relay.duplicates.keys, 1);
    assert.equal(relay.route(from, "K"), c);
    relay.touch(a);
    assert.equal(relay.route(from, "K"), a);
    relay.touch(b);
    assert.equal(relay.route(from, "K"), b);
    relay.remove(b);
    assert.equal(relay.route(from, "K"), a, "the one that wrote before takes over");
    relay.remove(c);
    assert.equal(relay.duplicates.keys, 0);
    relay.remove(a);
    assert.equal(relay.route(from, "K"), undefined);
  });

  it("a key with too many connections loses the one silent longest", () => {
    const clients = ["a", "b", "c", "d"].map((handle) => add(handle, "K"));
    relay.touch(clients[0]);
    const { evicted } = relay.add("e", "K", plain, 0);
    assert.equal(evicted, clients[1]);
  });

  it("tells of a missing key only after path discovery: once a second, three in a burst", () => {
    const a = add("a", "A");
    relay.missing(a, "X", false, 0);
    assert.deepEqual(gone(relay), []);
    for (let i = 0; i < 6; i++) relay.missing(a, "X", true, 0);
    assert.deepEqual(gone(relay), ["a: X 1", "a: X 1", "a: X 1"]);
    relay.missing(a, "X", true, 1_000);
    relay.missing(a, "X", true, 1_000);
    assert.deepEqual(gone(relay), ["a: X 1"]);
  });

  it("tells a client that asked for it after any packet, each key once a second", () => {
    const a = add("a", "A", all);
    for (let i = 0; i < 50; i++) relay.missing(a, "X", false, i);
    relay.missing(a, "Y", false, 60);
    assert.deepEqual(gone(relay), ["a: X 1", "a: Y 1"]);
    relay.missing(a, "X", false, 1_000);
    assert.deepEqual(gone(relay), ["a: X 1"]);
  });

  it("never tells more than its budget, however many keys are tried", () => {
    const a = add("a", "A", all);
    for (let i = 0; i < 10_000; i++) relay.missing(a, `key ${i}`, false, i / 10);
    assert.ok(gone(relay).length <= 40 + 20);
  });

  it("a notice is not sent to who has left meanwhile", () => {
    const a = add("a", "A");
    const b = add("b", "B");
    relay.route(a, "B");
    relay.remove(a);
    relay.remove(b);
    assert.deepEqual(gone(relay), []);
  });

  it("nothing remembers a receiver that has left", () => {
    const a = add("a", "A");
    const b = add("b", "B");
    relay.route(a, "B");
    const [peer] = b.heard;
    assert.equal(peer.heardBy.size, 1);
    relay.remove(b);
    assert.equal(peer.heardBy.size, 0);
  });

  it("home is counted once, and not after the end", () => {
    const a = add("a", "A");
    relay.setHome(a, true, 0);
    relay.setHome(a, true, 0);
    assert.equal(relay.homes, 1);
    relay.remove(a);
    relay.setHome(a, false, 0);
    assert.equal(relay.homes, 0);
  });
});

describe("derp properties: the region", () => {
  let relay: Relay<string, string>;
  const add = (handle: string, key: string) =>
    relay.add(handle, key, { ...plain, isMesh: handle.startsWith("w"), port: 7, flags: 1 }, 0).client;
  const told = (watcher: RelayClient<string, string>): string[] =>
    relay.takeUpdates(watcher, 100).map(({ key, presence }) => `${presence ? "+" : "-"}${key}`);
  beforeEach(() => {
    relay = new Relay<string, string>(4);
  });
  afterEach(() => assert.deepEqual(relay.inconsistencies(), []));

  it("Watch: a watcher sees itself and who is there, then who comes and goes", () => {
    const w1 = add("w1", "W1");
    relay.watch(w1);
    assert.deepEqual(told(w1), ["+W1"]);
    const c1 = add("c1", "C1");
    add("c2", "C2");
    const w2 = add("w2", "W2");
    assert.deepEqual(relay.takeWatchers(), [w1]);
    assert.deepEqual(told(w1), ["+C1", "+C2", "+W2"]);
    relay.watch(w2);
    assert.deepEqual(told(w2).sort(), ["+C1", "+C2", "+W1", "+W2"]);
    relay.remove(c1);
    assert.deepEqual([told(w1), told(w2)], [["-C1"], ["-C1"]]);
    relay.remove(w2);
    assert.deepEqual([told(w1), relay.watchers], [["-W2"], 1]);
  });

  it("Watch: every connection of a key is told, its end only with the last; what waits is told once", () => {
    const w = add("w", "W");
    relay.watch(w);
    told(w);
    const a = add("a", "K");
    assert.deepEqual(told(w), ["+K"]);
    const b = add("b", "K");
    assert.deepEqual(told(w), ["+K"]);
    relay.remove(a);
    assert.deepEqual(told(w), []);
    relay.remove(b);
    for (let i = 0; i < 50; i++) relay.remove(add(`x${i}`, "K"));
    assert.deepEqual(told(w), ["-K"]);
  });

  it("ForwarderRegistration: added twice is there once, and what was never there is removed without harm", () => {
    relay.addForwarder("K", "m1");
    relay.addForwarder("K", "m1");
    relay.removeForwarder("K", "other");
    assert.equal(relay.counters.forwarderDeleteOther, 1);
    assert.equal(relay.forwarder("K"), "m1");
    assert.equal(relay.remoteKeys, 1);
    relay.removeForwarder("K", "m1");
    relay.removeForwarder("K", "m1");
    relay.removeForwarder("nobody", "m1");
    assert.deepEqual([relay.forwarder("K"), relay.remoteKeys], [undefined, 0]);
  });

  it("ForwarderRegistration: of several the oldest forwards, the next oldest when it goes", () => {
    for (const sibling of ["m1", "m2", "m3"]) relay.addForwarder("K", sibling);
    assert.equal(relay.forwarder("K"), "m1");
    relay.removeForwarder("K", "m2");
    assert.equal(relay.forwarder("K"), "m1");
    relay.removeForwarder("K", "m1");
    assert.equal(relay.forwarder("K"), "m3");
    const { multiForwarderCreated, multiForwarderDeleted } = relay.counters;
    assert.deepEqual([multiForwarderCreated, multiForwarderDeleted], [1, 1]);
    relay.removeForwarder("K", "m3");
    assert.equal(relay.forwarder("K"), undefined);
  });

  it("ForwarderRegistration: a connection here goes before a sibling, and the sibling is there when it ends", () => {
    const from = add("f", "F");
    relay.addForwarder("K", "m1");
    assert.equal(relay.route(from, "K"), undefined);
    const local = add("a", "K");
    assert.equal(relay.route(from, "K"), local);
    relay.remove(local);
    assert.deepEqual([relay.route(from, "K"), relay.forwarder("K")], [undefined, "m1"]);
  });

  it("ForwarderRegistration: the end of a sibling's connection takes back all it reported", () => {
    for (let i = 0; i < 100; i++) relay.addForwarder(`K${i}`, i % 2 ? "m1" : "m2");
    relay.addForwarder("K1", "m2");
    relay.removeForwarders("m1");
    assert.deepEqual([relay.remoteKeys, relay.forwarder("K1"), relay.forwarder("K3")], [51, "m2", undefined]);
    relay.removeForwarders("m1");
    relay.removeForwarders("m2");
    assert.equal(relay.remoteKeys, 0);
  });

  it("a receiver hears that a sender is gone when it is gone from the whole region", () => {
    const sender = add("s", "S");
    add("b", "B");
    relay.route(sender, "B");
    relay.addForwarder("S", "m1");
    relay.remove(sender);
    assert.deepEqual(gone(relay as Relay<string>), [], "it moved to a sibling");
    relay.removeForwarder("S", "m1");
    assert.deepEqual(gone(relay as Relay<string>), ["b: S 0"]);
  });

  it("a receiver hears of the end of a sender whose packets a sibling forwarded", () => {
    const b = add("b", "B");
    relay.addForwarder("S", "m1");
    assert.equal(relay.routeForwarded("S", "B")?.to, b);
    assert.equal(relay.routeForwarded("S", "nobody"), undefined);
    relay.removeForwarders("m1");
    assert.deepEqual(gone(relay as Relay<string>), ["b: S 0"]);
    assert.equal(relay.routeForwarded("S", "B")?.source, undefined, "unknown by now, delivered nevertheless");
  });

  it("a move of the home counts once a client has settled", () => {
    const a = add("a", "A");
    relay.setHome(a, true, 5_000);
    assert.equal(relay.counters.homeMovesIn, 0);
    relay.setHome(a, false, 5_001);
    relay.setHome(a, true, 9_000);
    assert.deepEqual([relay.counters.homeMovesIn, relay.counters.homeMovesOut], [1, 1]);
  });

  it("keeps its books whatever happens, and forgets everybody in the end", () => {
    const step = fc.record({
      kind: fc.constantFrom("add", "remove", "route", "forwarder", "unforward", "down", "watch", "touch"),
      n: fc.nat(30),
      key: fc.constantFrom("A", "B", "C"),
      sibling: fc.constantFrom("m1", "m2"),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const core = new Relay<string, string>(3);
        const clients: RelayClient<string, string>[] = [];
        for (const { kind, n, key, sibling } of steps) {
          const client = clients.length > 0 ? clients[n % clients.length] : undefined;
          if (kind === "add") clients.push(core.add(`${n}`, key, plain, n).client);
          else if (kind === "forwarder") core.addForwarder(key, sibling);
          else if (kind === "unforward") core.removeForwarder(key, sibling);
          else if (kind === "down") core.removeForwarders(sibling);
          else if (client && kind === "remove") core.remove(client);
          else if (client && kind === "watch") core.watch(client);
          else if (client && !client.gone && kind === "route") core.route(client, key);
          else if (client && kind === "touch") core.touch(client);
          assert.deepEqual(core.inconsistencies(), []);
        }
        for (const client of clients) core.remove(client);
        for (const sibling of ["m1", "m2"]) core.removeForwarders(sibling);
        const { connections, keys, remoteKeys, homes, watchers } = core;
        assert.deepEqual(
          { connections, keys, remoteKeys, homes, watchers },
          {
            connections: 0,
            keys: 0,
            remoteKeys: 0,
            homes: 0,
            watchers: 0,
          },
        );
      }),
    );
  });
});
