// Against the WireGuard that others run: what it accepts and what it sends is the protocol.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { fromUtf8 } from "../../mesh/wire/bytes.ts";
import { MIN_INITIATION_INTERVAL_MS } from "../../mesh/wireguard/peer.ts";
import { echoRequest, ForeignPeer, isEchoReply, UdpNode, whyNot } from "./wireguard-peer.ts";

describe("WireGuard with wireguard-go", function () {
  this.timeout(30_000);
  let peer: ForeignPeer | undefined;
  const nodes: UdpNode[] = [];

  before(async function () {
    const reason = whyNot();
    if (reason) {
      console.log(`      skipped: ${reason}`);
      this.skip();
    }
    peer = await ForeignPeer.start();
  });

  afterEach(() => {
    for (const node of nodes.splice(0)) {
      peer?.removePeer(node.device.publicKey);
      node.close();
    }
  });

  after(async () => {
    await peer?.close();
  });

  async function start(options: Parameters<typeof UdpNode.start>[0] = {}): Promise<[UdpNode, Uint8Array]> {
    const node = await UdpNode.start(options);
    nodes.push(node);
    return [node, peer!.publicKey];
  }

  async function dataGoesEachWay(node: UdpNode, key: Uint8Array): Promise<void> {
    for (const [id, size] of [0, 1, 56, 1_400, 7_900].entries()) {
      const payload = randomBytes(size);
      node.send(key, echoRequest(id, payload));
      await node.next("packet", ({ packet }) => isEchoReply(packet, id, payload));
    }
    peer!.sendUdp(9_999, "from their side");
    const { packet } = await node.next("packet", (event) => event.packet[9] === 17);
    assert.equal(packet.length % 16, 0);
    assert.equal(fromUtf8(packet.subarray(28, 28 + 15)), "from their side");
  }

  it("takes our handshake, and data goes each way", async () => {
    const [node, key] = await start();
    peer!.addPeer(node.device.publicKey);
    node.initiate(key);
    assert.equal((await node.next("established")).initiator, true);
    await dataGoesEachWay(node, key);
  });

  it("hands us a handshake, and data goes each way", async () => {
    const [node, key] = await start({ acceptUnknown: true });
    peer!.addPeer(node.device.publicKey, { port: node.port });
    assert.equal((await node.next("established")).initiator, false);
    node.device.admit(key);
    await dataGoesEachWay(node, key);
  });

  it("takes a handshake with a preshared key, and none with another", async () => {
    const [node, key] = await start();
    const presharedKey = randomBytes(32);
    peer!.addPeer(node.device.publicKey, { presharedKey });
    node.device.addPeer(key, { presharedKey });
    node.initiate(key);
    await node.next("established");
    await dataGoesEachWay(node, key);

    const [other] = await start();
    peer!.addPeer(other.device.publicKey, { presharedKey });
    other.initiate(key);
    await assert.rejects(other.next("established", undefined, 1_000), /no established/);
    assert.ok(other.device.counters.forgedHandshakes > 0);
  });

  it("follows us to new keys while data is under way", async () => {
    const [node, key] = await start();
    peer!.addPeer(node.device.publicKey);
    for (let round = 0; round < 3; round++) {
      node.initiate(key);
      const { at } = await node.next("established");
      // It ignores initiations that follow one another within 20 ms.
      do await dataGoesEachWay(node, key);
      while (performance.now() < at + 2 * MIN_INITIATION_INTERVAL_MS);
    }
    assert.equal(node.device.counters.forgedPackets, 0);
  });

  it("brings the cookie that we ask for under load", async () => {
    const [node, key] = await start({ acceptUnknown: true, maxHandshakesPerSecond: 0 });
    peer!.addPeer(node.device.publicKey, { port: node.port });
    await node.next("established", undefined, 10_000); // it retries after 5 s and a little
    assert.equal(node.device.counters.cookieRepliesSent, 1);
    node.device.admit(key);
    await dataGoesEachWay(node, key);
  });
});
