import assert from "node:assert/strict";
import { type Peer, Peers } from "./peers.ts";
import type { Relay } from "./relay.ts";
import { systemRuntime } from "./runtime.ts";

/** Peers of a node whose relay connections the test makes and refuses. */
class Lab {
  readonly peers: Peers;
  readonly peer: Peer;
  readonly #connecting = new Map<number, { resolve(): void; reject(error: Error): void }>();

  constructor(role: "client" | "agent") {
    const relay = {
      connect: (region: number) =>
        new Promise<void>((resolve, reject) => this.#connecting.set(region, { resolve, reject })),
    } as unknown as Relay;
    const nothing = () => undefined;
    const host = {
      runtime: systemRuntime,
      now: () => 0,
      schedule: nothing,
      onLane: nothing,
      onMoved: nothing,
      debug: nothing,
    };
    this.peers = new Peers(host, relay, role === "agent");
    this.peer = this.peers.ensure(new Uint8Array(32).fill(7), 1);
  }

  async connect(region: number, error?: Error): Promise<void> {
    const attempt = this.#connecting.get(region);
    assert.ok(attempt, `nobody connects to region ${region}`);
    if (error) attempt.reject(error);
    else attempt.resolve();
    await new Promise(setImmediate);
  }
}

describe("a peer that is heard in another region", () => {
  it("is followed there by an agent at once", () => {
    const { peers, peer } = new Lab("agent");
    peers.addLane(peer);
    const before = peer.lane;
    peers.onHeard(peer, 2);
    assert.equal(peer.region, 2);
    assert.notEqual(peer.lane, before);
  });

  it("is not followed by a client that has a way to it, or the two would change places for ever", () => {
    const { peers, peer } = new Lab("client");
    peers.addLane(peer);
    const before = peer.lane;
    peers.onHeard(peer, 2);
    assert.deepEqual([peer.region, peer.lane], [1, before]);
  });

  it("is followed by a client that has no way to it", () => {
    const { peers, peer } = new Lab("client");
    peers.onHeard(peer, 2);
    assert.equal(peer.region, 2);
    assert.notEqual(peer.lane, undefined);
  });

  it("does not hold a client back that connects to where the peer was said to be, until that fails", async () => {
    const lab = new Lab("client");
    const { peers, peer } = lab;
    peers.addLane(peer);
    peers.move(peer, 2);
    peers.onHeard(peer, 1);
    assert.deepEqual([peer.region, peer.isConnecting], [2, true]);
    await lab.connect(2);
    assert.notEqual(peer.lane, undefined);
    peers.move(peer, 3);
    await lab.connect(3, new Error("no way"));
    peers.onHeard(peer, 2);
    assert.equal(peer.region, 2);
  });
});
