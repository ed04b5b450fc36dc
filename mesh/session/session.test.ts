// The rules of a session, one by one: HELLO, streams, limits, closing, resuming.
import assert from "node:assert/strict";
import { utf8 } from "../wire/bytes.ts";
import { CLOSE_CODES, decodePacket, encodePacket, MAX_GRANT_BYTES } from "../wire/session.ts";
import { admitted, type Encodable, HandFed, hello, ID, NONE, TAG } from "./hand-fed.ts";
import { Session } from "./session.ts";
import { connected, eventsOf, readAll, SimulatedNetwork, settle } from "./testing.ts";

describe("HELLO", () => {
  it("carries grant, first stream and first bytes in one packet; the agent tells them once it has accepted", () => {
    const net = new SimulatedNetwork({ client: { grant: utf8("grant") }, judge: () => {} });
    net.addLink();
    const stream = net.client.openStream("exec", utf8("{}"), net.now);
    net.client.write(stream, utf8("uname"));
    settle(net, 15);
    assert.deepEqual(
      net.events.agent.map(({ kind }) => kind),
      ["hello"],
    );
    assert.deepEqual(eventsOf(net.events.agent, "hello")[0].hello.grant, utf8("grant"));
    assert.equal(net.packets.client, 1);
    net.agent.accept();
    settle(net, 15);
    assert.deepEqual(
      net.events.agent.slice(1).map(({ kind }) => kind),
      ["ready", "open", "readable"],
    );
    assert.deepEqual(net.agent.read(stream), utf8("uname"));
    assert.equal(eventsOf(net.events.client, "ready")[0].version, 1);
  });

  it("is before every packet of the client until one is acknowledged, so a lost first packet harms nothing", () => {
    const net = new SimulatedNetwork();
    let sent = 0;
    net.onPacket = (side, packet) => (side === "client" && sent++ === 0 ? undefined : packet);
    net.addLink();
    net.client.openStream("first", NONE, net.now);
    net.at(net.now + 5, () => void net.client.openStream("second", NONE, net.now));
    settle(net, 3_000);
    assert.deepEqual(
      eventsOf(net.events.agent, "open")
        .map(({ service }) => service)
        .sort(),
      ["first", "second"],
    );
    assert.equal(eventsOf(net.events.agent, "hello").length, 1);
  });

  it("unanswered, leaves the agent silent: nothing is sent before accept()", () => {
    const fed = new HandFed().feed(hello(), { kind: "ping" });
    assert.deepEqual(fed.said(), []);
    assert.equal(fed.agent.nextTimeout(), undefined);
    assert.equal(fed.accept().said()[0].kind, "hello");
  });

  it("missing from the first packet closes: to an agent the session is unknown", () => {
    const fed = new HandFed().feed({ kind: "ping" });
    assert.equal(fed.closed?.code, CLOSE_CODES.unknownSession.code);
    assert.equal(fed.said()[0].kind, "close");
    const client = new Session({ role: "client", sessionId: ID, now: 0 });
    client.addLane(1, 0);
    client.receivePacket(encodePacket(TAG, 0, [{ kind: "ping" }]), 1, 0);
    assert.equal(eventsOf(client.takeEvents(), "closed")[0].code, CLOSE_CODES.protocolViolation.code);
  });

  it("with the highest version both know starts the session, without one it ends it", () => {
    const versions = (min: number, max: number) => ({ versions: { min, max } });
    const net = new SimulatedNetwork({ client: versions(1, 3), agent: versions(2, 5) });
    net.addLink();
    settle(net, 100);
    assert.equal(net.client.version, 3);
    assert.equal(net.agent.version, 3);
    const apart = new SimulatedNetwork({ client: versions(1, 1), agent: versions(2, 5) });
    apart.addLink();
    settle(apart, 100);
    const [closed] = eventsOf(apart.events.client, "closed");
    assert.equal(closed.code, CLOSE_CODES.version.code);
    assert.match(closed.reason, /update/);
  });

  it("of another session than the packet's, or than before, closes", () => {
    const otherId = ID.slice().fill(9, 4);
    assert.equal(
      new HandFed().feed(hello({ sessionId: new Uint8Array(16) })).closed?.code,
      CLOSE_CODES.protocolViolation.code,
    );
    assert.equal(
      admitted().feed(hello({ sessionId: otherId })).closed?.code,
      CLOSE_CODES.protocolViolation.code,
    );
  });

  it("rejected, tells the user why", () => {
    for (const name of ["grantExpired", "clockSkewed", "revoked", "notYours"] as const) {
      const net = new SimulatedNetwork({ judge: (agent, now) => agent.reject(name, undefined, now) });
      net.addLink();
      net.client.openStream("exec", NONE, net.now);
      settle(net, 100);
      const { code, text } = CLOSE_CODES[name];
      assert.deepEqual(net.events.client, [{ kind: "closed", code, reason: text, byPeer: true }]);
      assert.deepEqual(eventsOf(net.events.agent, "open"), []);
    }
  });

  it("with a grant above 4,096 bytes is refused at home", () => {
    const grant = new Uint8Array(MAX_GRANT_BYTES + 1);
    assert.throws(() => new Session({ role: "client", sessionId: ID, grant, now: 0 }), {
      code: "ERR_GRANT_TOO_LARGE",
    });
  });

  it("allows a stranger 4 streams and 64 KB until it is accepted", () => {
    const data = new Uint8Array(33_000);
    const stream = (id: number): Encodable => ({ kind: "stream", stream: id, offset: 0, fin: false, data });
    assert.equal(new HandFed().feed(hello(), stream(0)).closed, undefined);
    assert.equal(
      new HandFed().feed(hello(), stream(0)).feed(stream(2)).closed?.code,
      CLOSE_CODES.flowControl.code,
    );
    const open: Encodable = { kind: "open", stream: 8, service: "x", metadata: NONE };
    assert.equal(new HandFed().feed(hello(), open).closed?.code, CLOSE_CODES.resourceLimit.code);
    assert.equal(admitted().feed(open, stream(0)).feed(stream(2)).closed, undefined);
  });

  it("keeps the client within the early limits until it knows the agent's", () => {
    const net = new SimulatedNetwork({ judge: () => {} });
    net.addLink();
    for (let i = 0; i < 10; i++) {
      const id = net.client.openStream("x", NONE, net.now);
      net.client.write(id, new Uint8Array(30_000));
    }
    settle(net, 5_000);
    assert.equal(net.agent.isClosed, false);
    net.agent.accept();
    settle(net, 5_000);
    assert.equal(eventsOf(net.events.agent, "open").length, 10);
  });
});

describe("streams", () => {
  it("end one direction at a time", () => {
    const { net, stream } = connected();
    net.client.end(stream);
    settle(net);
    assert.deepEqual(eventsOf(net.events.agent, "fin"), [{ kind: "fin", stream }]);
    assert.equal(net.agent.write(stream, utf8("answer")), 6);
    net.agent.end(stream);
    settle(net);
    assert.deepEqual(net.client.read(stream), utf8("answer"));
    assert.deepEqual(eventsOf(net.client.takeEvents(), "fin"), [{ kind: "fin", stream }]);
    assert.throws(() => {
      const second = net.client.openStream("x", NONE, net.now);
      net.client.end(second);
      net.client.write(second, utf8("more"));
    }, /ended/);
  });

  it("carry zero-length writes and a lone end", () => {
    const { net, stream } = connected();
    assert.equal(net.client.write(stream, NONE), 0);
    net.client.end(stream);
    net.agent.end(stream);
    settle(net);
    assert.equal(eventsOf(net.events.client, "fin").length, 1);
    assert.equal(eventsOf(net.events.agent, "fin").length, 1);
    assert.equal(eventsOf(net.events.agent, "readable").length, 0);
    assert.equal(net.client.stats.streams, 0);
    assert.equal(net.agent.stats.streams, 0);
  });

  it("reset with data in flight give their credit back, and the session goes on", () => {
    const { net, lane } = connected();
    for (let round = 0; round < 40; round++) {
      const doomed = net.client.openStream("doomed", NONE, net.now);
      net.client.write(doomed, new Uint8Array(100_000));
      if (round % 2 === 0)
        net.run(() => false, net.now + 12); // some of it under way
      else settle(net, 300); // all of it there, unread
      net.client.reset(doomed, 9);
      net.client.stopSending(doomed, 9);
      settle(net, 300);
      assert.deepEqual(eventsOf(net.events.agent, "reset").at(-1), {
        kind: "reset",
        stream: doomed,
        code: 9,
      });
      net.agent.reset(doomed, 0);
      settle(net, 300);
    }
    assert.equal(net.client.stats.streams, 1);
    assert.equal(net.agent.stats.streams, 1);
    assert.ok(!net.client.isClosed && !net.agent.isClosed, `lane ${lane} is closed`);
    // 4 MB were reset on a window of 1 MB: had it leaked, this would hang.
    const last = net.client.openStream("last", NONE, net.now);
    net.client.write(last, new Uint8Array(200_000));
    settle(net);
    assert.equal(readAll(net.agent, last), 200_000);
  });

  it("stopped by the receiver are reset by the sender at once", () => {
    const { net, stream } = connected();
    net.client.write(stream, new Uint8Array(200_000));
    net.agent.stopSending(stream, 5);
    settle(net);
    assert.deepEqual(eventsOf(net.events.client, "stop"), [{ kind: "stop", stream, code: 5 }]);
    assert.equal(net.client.write(stream, utf8("more")), 0);
    assert.equal(net.client.stats.bufferedBytes, 0);
    net.agent.end(stream);
    settle(net);
    assert.equal(net.client.stats.streams + net.agent.stats.streams, 0);
  });

  it("stopped are under way until the sender has heard of it", () => {
    const { net, stream } = connected();
    net.agent.end(stream);
    settle(net);
    net.client.write(stream, new Uint8Array(200_000));
    net.run(() => net.agent.stats.bufferedBytes > 0, net.now + 15);
    assert.equal(net.agent.hasUndelivered, false, "its own half has ended");
    net.agent.stopSending(stream, 5);
    assert.equal(net.agent.hasUndelivered, true);
    settle(net);
    assert.equal(net.agent.hasUndelivered, false);
  });

  it("beyond the peer's limit wait for a turn, and get it", () => {
    const net = new SimulatedNetwork({ agent: { limits: { maxStreams: 3 } } });
    net.addLink();
    net.onEvent = (side, event) => {
      if (side === "agent" && event.kind === "open") net.agent.end(event.stream);
    };
    for (let i = 0; i < 20; i++) net.client.end(net.client.openStream(`s${i}`, NONE, net.now));
    settle(net, 20_000);
    assert.deepEqual(
      eventsOf(net.events.agent, "open").map(({ service }) => service),
      Array.from({ length: 20 }, (_, i) => `s${i}`),
    );
    assert.equal(net.client.stats.streams, 0);
  });

  it("of our own are limited too", () => {
    const client = new Session({ role: "client", sessionId: ID, now: 0, limits: { maxLocalStreams: 2 } });
    client.openStream("a", NONE, 0);
    client.openStream("b", NONE, 0);
    assert.throws(() => client.openStream("c", NONE, 0), { code: "ERR_STREAM_LIMIT" });
    assert.throws(() => client.openStream("x".repeat(257), NONE, 0), { code: "ERR_OPEN_TOO_LARGE" });
  });

  it("hold a writer back, and wake it", () => {
    const { net, stream } = connected();
    const taken = net.client.write(stream, new Uint8Array(10 << 20));
    assert.ok(taken < 1 << 20, `${taken} taken`);
    settle(net);
    assert.deepEqual(eventsOf(net.events.client, "writable"), [{ kind: "writable", stream }]);
    let total = taken;
    for (let more = 1; more > 0; settle(net))
      total += more = net.client.write(stream, new Uint8Array(1 << 20));
    // The reader sleeps: what it would take (256 KB) and what may wait (256 KB), no more.
    assert.ok(total <= 600_000, `${total} bytes written to a reader that does not read`);
    assert.equal(readAll(net.agent, stream), 256 << 10);
    settle(net);
    assert.ok(readAll(net.agent, stream) > 0);
  });

  it("stopped before their OPEN came are reset once it is there, and forgotten", () => {
    const fed = admitted().feed(
      { kind: "reset", stream: 0, code: 0, finalSize: 0 },
      { kind: "stop", stream: 0, code: 7 },
    );
    assert.ok(
      !fed.said().some(({ kind }) => kind === "reset"),
      "of a stream not known here nothing can be said",
    );
    fed.feed({ kind: "open", stream: 0, service: "x", metadata: NONE });
    assert.deepEqual(
      fed.said().filter(({ kind }) => kind === "reset"),
      [{ kind: "reset", stream: 0, code: 7, finalSize: 0 }],
    );
    const last = fed.sentNumbers.at(-1)!;
    fed.feed({ kind: "ack", echo: last, delayUs: 0, ranges: [[0, last]] });
    assert.equal(fed.agent.stats.streams, 0);
  });

  it("whose OPEN was about to be said again when its ACK came send what was lost meanwhile", () => {
    const client = new Session({ role: "client", sessionId: ID, now: 0 });
    client.addLane(1, 0);
    client.addLane(2, 0);
    const stream = client.openStream("x", NONE, 0);
    client.write(stream, utf8("first"));
    assert.ok(client.nextPacket(1, 65_000, 0));
    client.write(stream, utf8("second"));
    client.end(stream);
    assert.ok(client.nextPacket(2, 65_000, 0));
    // The probe timeout wants the oldest packet, OPEN included, to be said again; before it is, the other path dies.
    const at = client.nextTimeout()!;
    client.handleTimeout(at);
    client.removeLane(2, at);
    const ack: Encodable = { kind: "ack", echo: 0, delayUs: 0, ranges: [[0, 0]] };
    client.receivePacket(encodePacket(TAG, 0, [hello(), ack]), 1, at);
    const frames = decodePacket(client.nextPacket(1, 65_000, at)!.slice()).frames;
    const again = frames.flatMap((frame) => (frame.kind === "stream" ? [[frame.offset, frame.fin]] : []));
    assert.deepEqual(again, [[5, true]]);
  });

  it("whose OPEN comes last are told in order all the same", () => {
    const fed = admitted()
      .feed({ kind: "stream", stream: 0, offset: 0, fin: true, data: utf8("early") })
      .feed({ kind: "reset", stream: 2, code: 3, finalSize: 0 });
    assert.deepEqual(eventsOf(fed.events, "readable"), []);
    assert.equal(fed.agent.read(0), undefined);
    fed.feed(
      { kind: "open", stream: 2, service: "b", metadata: NONE },
      { kind: "open", stream: 0, service: "a", metadata: NONE },
    );
    assert.deepEqual(fed.events.slice(2), [
      { kind: "open", stream: 2, service: "b", metadata: NONE },
      { kind: "reset", stream: 2, code: 3 },
      { kind: "open", stream: 0, service: "a", metadata: NONE },
      { kind: "readable", stream: 0 },
    ]);
  });
});

describe("a peer that breaks a rule gets CLOSE", () => {
  const at = (offset: number, length: number, fin = false): Encodable => ({
    kind: "stream",
    stream: 0,
    offset,
    fin,
    data: new Uint8Array(length),
  });
  const cases: [string, keyof typeof CLOSE_CODES, Encodable[]][] = [
    ["data beyond the stream's window", "flowControl", [at(256 << 10, 1)]],
    [
      "data beyond the session's window",
      "flowControl",
      [0, 2, 4, 6, 8].map((stream) => ({ ...at((256 << 10) - 1, 1), stream }) as Encodable),
    ],
    [
      "a stream with an id of ours",
      "protocolViolation",
      [{ kind: "open", stream: 1, service: "x", metadata: NONE }],
    ],
    ["a stream of ours nobody opened", "protocolViolation", [{ kind: "stop", stream: 1, code: 0 }]],
    [
      "more streams than allowed",
      "resourceLimit",
      [{ kind: "open", stream: 512, service: "x", metadata: NONE }],
    ],
    [
      "an acknowledgement of what was never sent",
      "protocolViolation",
      [{ kind: "ack", echo: 99, delayUs: 0, ranges: [[99, 99]] }],
    ],
    ["data behind the end", "protocolViolation", [at(0, 5, true), at(5, 1)]],
    [
      "a final size that moves",
      "protocolViolation",
      [at(0, 5, true), { kind: "reset", stream: 0, code: 0, finalSize: 4 }],
    ],
    [
      "a final size beyond the window",
      "flowControl",
      [{ kind: "reset", stream: 0, code: 0, finalSize: Number.MAX_SAFE_INTEGER }],
    ],
    ["a signal too far ahead", "resourceLimit", [{ kind: "signal", type: 0x20, seq: 32, body: NONE }]],
    ["CLOSE inside the number space", "protocolViolation", [{ kind: "close", code: 0, reason: "" }]],
  ];
  for (const [what, name, frames] of cases) {
    it(what, () => {
      const fed = admitted();
      fed.said();
      fed.feed(...frames);
      assert.equal(fed.closed?.code, CLOSE_CODES[name].code, fed.closed?.reason);
      assert.equal(fed.closed?.byPeer, false);
      assert.equal(fed.said()[0].kind, "close");
    });
  }

  it("bytes that are no frames", () => {
    const broken = encodePacket(TAG, 5, [{ kind: "ping" }]);
    broken[broken.length - 1] = 0x1f;
    assert.equal(admitted().feedBytes(broken).closed?.code, CLOSE_CODES.protocolViolation.code);
  });

  it("but not for a packet of another session, or a fragment: those are dropped", () => {
    const fed = admitted();
    fed.feedBytes(encodePacket(TAG + 1, 5, [{ kind: "close", code: 0, reason: "" }]));
    fed.feedBytes(new Uint8Array(3)).feedBytes(NONE);
    assert.equal(fed.closed, undefined);
    assert.equal(fed.agent.stats.packetsDropped, 3);
  });
});

describe("limits", () => {
  it("more gaps than we hold: the packet counts as lost, and the transfer still ends", () => {
    const net = new SimulatedNetwork({ seed: 4, agent: { limits: { maxReorderRanges: 2 } } });
    net.addLink({ loss: 0.3, delayMs: 5 });
    const stream = net.client.openStream("x", NONE, net.now);
    let left = 400_000;
    let got = 0;
    net.onEvent = (side, event) => {
      if (side === "client" && (event.kind === "writable" || event.kind === "ready"))
        while (left > 0) {
          const taken = net.client.write(stream, new Uint8Array(Math.min(left, 1_000)));
          left -= taken;
          if (taken === 0) break;
        }
      if (side === "agent" && event.kind === "readable") got += readAll(net.agent, stream);
      assert.ok(net.agent.stats.reorderRanges <= 3);
    };
    assert.equal(
      net.run(() => got === 400_000, net.now + 600_000),
      "done",
    );
    assert.ok(net.agent.stats.packetsRefused > 0);
  });

  it("keep the ranges of received packets at 256", () => {
    const fed = admitted();
    for (let number = 10; number < 2_000; number += 2)
      fed.feedBytes(encodePacket(TAG, number, [{ kind: "ping" }]));
    assert.equal(fed.agent.stats.ackRanges, 256);
    assert.equal(fed.closed, undefined);
    const acks = fed.said().filter(({ kind }) => kind === "ack");
    assert.equal(acks.length, 1);
  });

  it("a number below what we remember counts as a duplicate, not as new data", () => {
    const fed = admitted();
    for (let number = 10; number < 2_000; number += 2)
      fed.feedBytes(encodePacket(TAG, number, [{ kind: "ping" }]));
    fed.feedBytes(encodePacket(TAG, 11, [{ kind: "open", stream: 0, service: "old", metadata: NONE }]));
    assert.deepEqual(eventsOf(fed.events, "open"), []);
  });

  it("absurd windows and stream counts from a peer change what we buffer by nothing", () => {
    const max = Number.MAX_SAFE_INTEGER;
    const client = new Session({ role: "client", sessionId: ID, now: 0 });
    client.addLane(1, 0);
    const absurd = { maxDataBytes: max, maxStreamDataBytes: max, maxStreams: max, maxPacketBytes: max };
    client.receivePacket(encodePacket(TAG, 0, [hello(absurd)]), 1, 0);
    let buffered = 0;
    for (let i = 0; i < 1_024; i++) {
      const stream = client.openStream("x", NONE, 0);
      for (let n = 1; n > 0; buffered += n) n = client.write(stream, new Uint8Array(100_000));
      while (client.nextPacket(1, 65_000, 0));
    }
    assert.ok(buffered <= 32 << 20, `${buffered} bytes`);
    assert.throws(() => client.openStream("one more", NONE, 0), { code: "ERR_STREAM_LIMIT" });
  });

  it("events nobody takes are bounded: datagrams are dropped, signals end the session", () => {
    const fed = admitted().feed({ kind: "open", stream: 0, service: "udp", metadata: NONE });
    for (let i = 0; i < 2_000; i++)
      fed.agent.receivePacket(
        encodePacket(TAG, 100 + i, [{ kind: "datagram", stream: 0, data: utf8("x") }]),
        1,
        0,
      );
    assert.equal(fed.agent.takeEvents().length, 1_024);
    for (let i = 0; i < 1_100; i++)
      fed.agent.receivePacket(
        encodePacket(TAG, 5_000 + i, [{ kind: "signal", type: 0x20, seq: i, body: NONE }]),
        1,
        0,
      );
    assert.equal(eventsOf(fed.agent.takeEvents(), "closed")[0].code, CLOSE_CODES.resourceLimit.code);
  });
});

describe("CLOSE", () => {
  it("is told once on every lane and again, ever less often, to who goes on talking", () => {
    const fed = admitted();
    fed.agent.addLane(2, 0);
    fed.said();
    fed.agent.close(0, "bye", 0);
    assert.deepEqual(fed.said(), [{ kind: "close", code: 0, reason: "bye" }]);
    assert.ok(fed.agent.nextPacket(2, 65_000, 0));
    let answers = 0;
    for (let i = 0; i < 1_000; i++) answers += fed.feed({ kind: "ping" }).said().length;
    assert.equal(answers, 10);
    assert.equal(fed.agent.isDrained(0), false);
    assert.equal(fed.agent.isDrained(fed.agent.nextTimeout()!), true);
  });

  it("ends both sides with the reason, fit for a terminal, and frees what they held", () => {
    const { net, stream } = connected();
    net.client.write(stream, new Uint8Array(100_000));
    net.agent.close(CLOSE_CODES.shutdown.code, "going\u001b[2J down", net.now);
    settle(net);
    assert.deepEqual(eventsOf(net.events.client, "closed"), [
      { kind: "closed", code: CLOSE_CODES.shutdown.code, reason: "going?[2J down", byPeer: true },
    ]);
    assert.equal(net.client.stats.bufferedBytes, 0);
    assert.equal(net.client.write(stream, utf8("x")), 0);
    assert.throws(() => net.client.openStream("x", NONE, net.now), { code: "ERR_SESSION_CLOSED" });
    assert.ok(net.client.isDrained(net.now));
  });

  it("from both at once is not answered for ever", () => {
    const { net } = connected();
    net.client.close(0, "", net.now);
    net.agent.close(0, "", net.now);
    const before = net.packets.client + net.packets.agent;
    settle(net);
    assert.ok(net.packets.client + net.packets.agent - before <= 4);
    assert.ok(net.client.isDrained(net.now) && net.agent.isDrained(net.now));
  });
});

describe("resuming", () => {
  it("after hours without any lane, goes on where it was", () => {
    const { net, stream, lane } = connected({ client: { grant: utf8("old") } });
    net.client.write(stream, utf8("before"));
    net.cut(lane);
    settle(net, 5_000); // the stall is told once
    assert.equal(net.client.nextTimeout(), undefined);
    assert.equal(net.agent.nextTimeout(), undefined);
    net.now += 20 * 3_600_000;
    net.client.setGrant(utf8("renewed"));
    net.client.write(stream, utf8(" and after"));
    net.addLink();
    settle(net);
    const resumed = eventsOf(net.events.agent, "hello")[1];
    assert.equal(resumed.resume, true);
    assert.deepEqual(resumed.hello.grant, utf8("renewed"));
    assert.equal(eventsOf(net.events.agent, "hello").length, 2);
    assert.equal(eventsOf(net.events.client, "resumed").length, 1);
    assert.equal(readAll(net.agent, stream), 16);
  });

  it("of a session the agent does not know closes it with that reason", () => {
    const fed = new HandFed().feed(hello({ resume: true, resumePosition: 7 }));
    assert.equal(fed.closed?.code, CLOSE_CODES.unknownSession.code);
    assert.match(fed.closed?.reason ?? "", /restarted/);
  });

  it("from packets the agent never sent closes", () => {
    const fed = admitted().feed(hello({ resume: true, resumePosition: 500 }));
    assert.equal(fed.closed?.code, CLOSE_CODES.unknownSession.code);
  });

  it("with a grant that is no longer good ends the session", () => {
    const { net, lane } = connected();
    net.onEvent = (side, event) => {
      if (side === "agent" && event.kind === "hello" && event.resume)
        net.agent.reject("revoked", undefined, net.now);
    };
    net.cut(lane);
    net.addLink();
    settle(net);
    assert.equal(eventsOf(net.events.client, "closed")[0]?.code, CLOSE_CODES.revoked.code);
  });
});
