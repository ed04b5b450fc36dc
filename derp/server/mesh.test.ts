import assert from "node:assert/strict";
import { once } from "node:events";
import { toHex, utf8 } from "../../mesh/wire/bytes.ts";
import { decodeFrame, encodeFrame, FRAME } from "../../mesh/wire/derp.ts";
import { formatIp } from "../../mesh/wire/ip.ts";
import { keyPair } from "../box.ts";
import { type RawClient, rawJoin, startRelay, type TestClient, type TestRelay, until } from "../testing.ts";
import { DerpServer } from "./server.ts";

const MESH_KEY = "0123456789abcdef".repeat(4);
const nobody = new Uint8Array(32).fill(9);
const text = (packet: { data: Uint8Array }): string => new TextDecoder().decode(packet.data);

/** A raw mesh client that watches. */
async function watcher(relay: TestRelay, meshKey = MESH_KEY): Promise<RawClient> {
  return rawJoin(relay, { info: { meshKey }, extra: encodeFrame({ kind: "watchConns" }) });
}

/** What a watcher is told next: "+key" or "-key", 4 bytes of it. */
async function news(raw: RawClient): Promise<string> {
  const { type, body } = await raw.nextFrame();
  assert.ok(type === FRAME.peerPresent || type === FRAME.peerGone, `frame of type ${type}`);
  if (type === FRAME.peerGone) assert.equal(body[32], 0, "disconnected");
  return `${type === FRAME.peerPresent ? "+" : "-"}${toHex(body.subarray(0, 4))}`;
}
const short = (key: Uint8Array): string => toHex(key.subarray(0, 4));

describe("derp properties: servers of a region", () => {
  const relays: TestRelay[] = [];
  const raws: RawClient[] = [];
  const start = async (options: ConstructorParameters<typeof DerpServer>[0] = {}): Promise<TestRelay> => {
    const relay = await startRelay({ meshKey: MESH_KEY, ...options });
    relays.push(relay);
    return relay;
  };
  const watch = async (relay: TestRelay, meshKey?: string): Promise<RawClient> => {
    const raw = await watcher(relay, meshKey);
    raws.push(raw);
    return raw;
  };
  /** Relays that know each other, and know it. */
  const region = async (count: number): Promise<TestRelay[]> => {
    const all: TestRelay[] = [];
    for (let i = 0; i < count; i++) all.push(await start());
    // Each is given all, itself included, as members of a deployment are.
    for (const { server } of all)
      server.setSiblings(
        all.map(({ url }) => url),
        { retryMs: 20 },
      );
    await until(() => all.every(({ server }) => server.stats.currentWatchers === count - 1));
    return all;
  };
  const sees = (relay: TestRelay, remote: number): Promise<void> =>
    until(() => relay.server.stats.currentRemoteKeys === remote);
  const delivers = async (from: TestClient, to: TestClient, what: string): Promise<void> => {
    from.client.send(to.key, utf8(what));
    const packet = await to.packets.take();
    assert.deepEqual([toHex(packet.src), text(packet)], [toHex(from.key), what]);
  };
  afterEach(async () => {
    for (const raw of raws.splice(0)) raw.socket.destroy();
    for (const relay of relays) assert.deepEqual(relay.server.checkConsistency(), []);
    await Promise.all(relays.splice(0).map((relay) => relay.close()));
  });

  it("Watch: w1 sees itself, then c1, c2, w2; a late watcher all; everybody the end of one", async () => {
    const relay = await start();
    const w1 = await watch(relay);
    assert.equal(await news(w1), `+${short(w1.keys.publicKey)}`);
    const c1 = await relay.client();
    assert.equal(await news(w1), `+${short(c1.key)}`);
    const c2 = await relay.client();
    assert.equal(await news(w1), `+${short(c2.key)}`);
    const w2 = await watch(relay);
    assert.equal(await news(w1), `+${short(w2.keys.publicKey)}`);
    const all = [await news(w2), await news(w2), await news(w2), await news(w2)];
    const keys = [w1.keys.publicKey, w2.keys.publicKey, c1.key, c2.key];
    assert.deepEqual(all.sort(), keys.map((key) => `+${short(key)}`).sort());
    await c1.client.close();
    assert.deepEqual([await news(w1), await news(w2)], [`-${short(c1.key)}`, `-${short(c1.key)}`]);
  });

  it("Watch: tells address and kind in 51 bytes", async () => {
    const relay = await start();
    const w = await watch(relay);
    const self = await w.nextFrame();
    assert.equal(self.body.length, 51);
    const present = decodeFrame(self.type, self.body);
    assert.ok(present.kind === "peerPresent");
    assert.deepEqual(
      [formatIp(present.address!), present.port, present.flags],
      ["127.0.0.1", w.socket.localPort, 2],
    );
    for (const [options, flags] of [
      [{}, 1],
      [{ info: { isProber: true } }, 4],
      [{ headers: "Ideal-Node: 1a\r\n" }, 8],
      [{ headers: "Ideal-Node: 1a\r\n", info: { isProber: true } }, 12],
    ] as const) {
      raws.push(await rawJoin(relay, options));
      assert.equal((await w.nextFrame()).body[50], flags);
    }
  });

  it("Watch: nothing is lost to a watcher that reads late", async () => {
    const relay = await start();
    const w = await watch(relay);
    await news(w);
    w.socket.pause();
    const clients = await Promise.all(Array.from({ length: 60 }, () => relay.client()));
    await Promise.all(clients.slice(0, 30).map(({ client }) => client.close()));
    await until(() => relay.server.stats.currentConnections === 31);
    w.socket.resume();
    const here = new Set<string>();
    const expected = new Set(clients.slice(30).map(({ key }) => short(key)));
    while (here.size !== expected.size || ![...expected].every((key) => here.has(key))) {
      const change = await news(w);
      if (change.startsWith("+")) here.add(change.slice(1));
      else here.delete(change.slice(1));
    }
  });

  it("SetMeshKey: 64 hex digits or 32 characters, nothing else", () => {
    for (const meshKey of [MESH_KEY, MESH_KEY.toUpperCase(), "an-older-fork's-32-character-key"])
      new DerpServer({ meshKey });
    for (const meshKey of ["", "short", MESH_KEY.slice(1), `${MESH_KEY.slice(1)}g`, "x y".padEnd(32)])
      assert.throws(() => new DerpServer({ meshKey }), TypeError);
  });

  it("IsMeshPeer: only who has the key may watch; without one nobody may", async () => {
    const relay = await start();
    for (const meshKey of [undefined, "f".repeat(64), MESH_KEY.replace("0", "1")]) {
      const raw = await rawJoin(relay, { info: { meshKey }, extra: encodeFrame({ kind: "watchConns" }) });
      await raw.closed;
    }
    const open = await start({ meshKey: undefined });
    const raw = await rawJoin(open, {
      info: { meshKey: MESH_KEY },
      extra: encodeFrame({ kind: "watchConns" }),
    });
    await raw.closed;
    assert.equal(relay.server.stats.protocolErrors, 3);
    assert.throws(() => open.server.setSiblings([relay.url]), TypeError);
  });

  it("IsMeshPeer: a mesh key of 32 characters works as well", async () => {
    const meshKey = "an-older-fork's-32-character-key";
    const relay = await start({ meshKey });
    await news(await watch(relay, meshKey));
  });

  it("who has the mesh key is not asked for admission", async () => {
    const relay = await start({ admit: () => false });
    await news(await watch(relay));
    await assert.rejects(relay.client());
  });

  it("packets pass between clients of different servers, of any size, in order", async () => {
    const [one, two] = await region(2);
    const a = await one.client();
    const b = await two.client();
    // Each sees the other server's own connection of the mesh besides.
    await Promise.all([sees(one, 2), sees(two, 2)]);
    await delivers(a, b, "there");
    await delivers(b, a, "and back");
    for (const size of [0, 1, 5_000, 65_536]) {
      a.client.send(b.key, new Uint8Array(size).fill(7));
      const { data } = await b.packets.take();
      assert.deepEqual([data.length, data.every((byte) => byte === 7)], [size, true]);
    }
    for (let i = 0; i < 500; i++) a.client.send(b.key, utf8(`${i}`));
    for (let i = 0; i < 500; i++) assert.equal(text(await b.packets.take()), `${i}`);
    const { stats } = one.server;
    assert.deepEqual([stats.packetsForwardedOut, two.server.stats.packetsForwardedIn], [505, 505]);
  });

  it("a receiver hears of the end of a sender at another server", async () => {
    const [one, two] = await region(2);
    const a = await one.client();
    const b = await two.client();
    await until(() => one.server.stats.currentRemoteKeys > 0 && two.server.stats.currentRemoteKeys > 0);
    await until(() => a.client.send(b.key, utf8("x")) && b.packets.size > 0);
    await a.client.close();
    const gone = await b.gone.take();
    assert.deepEqual([toHex(gone.key), gone.reason], [toHex(a.key), 0]);
  });

  it("a sender that moves to another server is not gone", async () => {
    const [one, two] = await region(2);
    const b = await two.client();
    const { privateKey } = keyPair();
    const before = await one.client({ privateKey });
    await until(() => before.client.send(b.key, utf8("x")) && b.packets.size > 0);
    const after = await two.client({ privateKey });
    await before.client.close();
    await until(() => one.server.stats.currentKeys === 1);
    after.client.send(b.key, utf8("moved"));
    while (text(await b.packets.take()) !== "moved");
    await b.client.ping();
    assert.equal(b.gone.size, 0);
  });

  it("a forwarded packet goes one hop, and a stale forwarder is taken back", async () => {
    const relay = await start();
    const sibling = await rawJoin(relay, { info: { meshKey: MESH_KEY, peerGoneForAll: true } });
    raws.push(sibling);
    const src = new Uint8Array(32).fill(3);
    sibling.socket.write(encodeFrame({ kind: "forwardPacket", src, dst: nobody, data: utf8("lost") }));
    const { type, body } = await sibling.nextFrame();
    assert.deepEqual([type, toHex(body)], [FRAME.peerGone, `${toHex(nobody)}01`]);
    const lost = relay.server.metrics().find(({ name }) => name === "derp_packets_dropped")!;
    const on = lost.values.find(
      ({ labels }) => labels?.reason === "unknown_dest_on_fwd" && labels.kind === "other",
    );
    assert.equal(on?.value, 1);
  });

  it("ClosePeer ends all connections of a key, which may come back; closePeer does so in the whole region", async () => {
    const [one, two] = await region(2);
    const { privateKey } = keyPair();
    const atOne = await one.client({ privateKey });
    const sibling = await rawJoin(one, { info: { meshKey: MESH_KEY } });
    raws.push(sibling);
    const ended = once(atOne.client, "close");
    sibling.socket.write(encodeFrame({ kind: "closePeer", key: atOne.key }));
    await ended;
    const again = await one.client({ privateKey });
    const atTwo = await two.client({ privateKey });
    const both = Promise.all([once(again.client, "close"), once(atTwo.client, "close")]);
    one.server.closePeer(atOne.key);
    await both;
    await assert.rejects(one.client({ privateKey }), "revoked here");
  });

  it("malformed frames between servers close the connection", async () => {
    const relay = await start();
    const key = new Uint8Array(32);
    for (const frame of [
      Uint8Array.of(FRAME.watchConns, 0, 0, 0, 1, 0),
      Uint8Array.of(FRAME.closePeer, 0, 0, 0, 31, ...key.subarray(1)),
      Uint8Array.of(FRAME.closePeer, 0, 0, 0, 33, ...key, 0),
      Uint8Array.of(FRAME.forwardPacket, 0, 0, 0, 63, ...key, ...key.subarray(1)),
      Uint8Array.of(FRAME.forwardPacket, 0, 1, 0, 65),
    ]) {
      const raw = await rawJoin(relay, { info: { meshKey: MESH_KEY } });
      raw.socket.write(frame);
      await raw.closed;
    }
    assert.equal(relay.server.stats.protocolErrors, 5);
  });

  it("RunWatchConnectionLoopServeConnect: a server that dials itself gives up and goes on", async () => {
    const relay = await start();
    relay.server.setSiblings([relay.url], { retryMs: 1 });
    await until(() => relay.server.stats.accepts === 1 && relay.server.stats.currentUnproven === 0);
    const a = await relay.client();
    await a.client.ping();
    assert.deepEqual([relay.server.stats.accepts, relay.server.stats.currentWatchers], [2, 0]);
    // One with its very key that watches all the same is not told of its own clients.
    const keys = keyPair();
    const own = await start({ privateKey: keys.privateKey });
    const ping = encodeFrame({ kind: "ping", data: utf8("12345678") });
    const extra = Buffer.concat([encodeFrame({ kind: "watchConns" }), ping]);
    const self = await rawJoin(own, { keys, extra, info: { meshKey: MESH_KEY } });
    raws.push(self);
    assert.equal((await self.nextFrame()).type, FRAME.pong);
    self.socket.write(ping);
    assert.equal((await self.nextFrame()).type, FRAME.pong, "nothing in between");
  });

  it("BreakWatcherConn: after each of 10 breaks the connection comes back and adds exactly one peer", async () => {
    const relay = await start();
    const other = await start();
    const a = await relay.client();
    other.server.setSiblings([relay.url], { retryMs: 5 });
    for (let i = 0; i < 10; i++) {
      await until(() => other.server.stats.currentRemoteKeys === 2); // the client, and the watcher itself
      assert.equal(relay.server.disconnect(other.server.publicKey), 1);
      await until(() => other.server.stats.currentRemoteKeys === 0);
    }
    await until(() => other.server.stats.currentRemoteKeys === 2);
    const from = await other.client();
    await delivers(from, a, "still there");
  });

  it("MultiForwarder: of 5000 packets none is lost while a second server of the receiver comes and goes", async () => {
    const [one, two, three] = await region(3);
    const { privateKey } = keyPair();
    const from = await one.client();
    // The receiver's first connection stays; each further one, at the other server, has to be as good.
    const stays = await two.client({ privateKey });
    await until(() => from.client.send(stays.key, utf8("first")) && stays.packets.size > 0);
    while (stays.packets.size > 0) await stays.packets.take();
    let churning = true;
    const churn = (async () => {
      while (churning) {
        const comes = await three.client({ privateKey });
        await comes.client.close();
        await until(() => three.server.stats.currentKeys === 2);
      }
    })();
    const count = 5_000;
    let received = 0;
    for (let i = 0; i < count; i += 50) {
      for (let n = 0; n < 50; n++) from.client.send(stays.key, utf8(`n ${i + n}`));
      for (let n = 0; n < 50; n++) {
        let packet = text(await stays.packets.take());
        while (!packet.startsWith("n ")) packet = text(await stays.packets.take());
        assert.equal(packet, `n ${received++}`);
      }
    }
    churning = false;
    await churn;
    assert.equal(received, count);
    const { multiforwarder_created: created } = Object.fromEntries(
      one.server.metrics().map(({ name, values }) => [name, values[0].value]),
    );
    assert.ok(created > 0, "there were two at times");
  }).timeout(30_000);

  it("a sibling that goes away for good takes its clients with it, and is dialled until it is back", async () => {
    const one = await start();
    const two = await startRelay({ meshKey: MESH_KEY });
    one.server.setSiblings([two.url], { retryMs: 20 });
    const b = await two.client();
    await until(() => one.server.stats.currentRemoteKeys === 2);
    assert.ok(b.client.connected);
    await two.close();
    await until(() => one.server.stats.currentRemoteKeys === 0);
    const back = await startRelay({ meshKey: MESH_KEY }, two.port);
    relays.push(back);
    await back.client();
    await until(() => one.server.stats.currentRemoteKeys === 2);
    one.server.setSiblings([]);
    await until(() => one.server.stats.currentRemoteKeys === 0 && back.server.stats.currentWatchers === 0);
  });
});
