import assert from "node:assert/strict";
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

  it("routes to the connection of a key, to oneself as well", () => {
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
    assert.equal(relay.duplicateKeys, 1);
    assert.equal(relay.route(from, "K"), c);
    relay.touch(a);
    assert.equal(relay.route(from, "K"), a);
    relay.touch(b);
    assert.equal(relay.route(from, "K"), b);
    relay.remove(b);
    assert.equal(relay.route(from, "K"), a, "the one that wrote before takes over");
    relay.remove(c);
    assert.equal(relay.duplicateKeys, 0);
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
    relay.setHome(a, true);
    relay.setHome(a, true);
    assert.equal(relay.homes, 1);
    relay.remove(a);
    relay.setHome(a, false);
    assert.equal(relay.homes, 0);
  });
});
