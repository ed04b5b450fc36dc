// Session packets: the codec alone, and whole sessions of either role that a broken or hostile peer talks to. What is fed
// has been opened by WireGuard already, so every frame's handler is reached.
import assert from "node:assert/strict";
import { DEFAULT_LIMITS, type SessionEvent } from "../../../mesh/session/events.ts";
import { hello, ID, TAG } from "../../../mesh/session/hand-fed.ts";
import { Session } from "../../../mesh/session/session.ts";
import { equalBytes, fromHex, utf8 } from "../../../mesh/wire/bytes.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import {
  clipReason,
  decodeFrames,
  decodePacket,
  encodePacket,
  type Frame,
  frameBytes,
  peekHello,
  peekTag,
} from "../../../mesh/wire/session.ts";
import { ByteReader } from "../../../mesh/wire/varint.ts";
import vectors from "../../vectors/session.json" with { type: "json" };
import { type Instance, outcomeOf, type Target } from "../engine.ts";
import type { Random } from "../random.ts";

type Encodable = Exclude<Frame, { kind: "skipped" }>;
const bytes = (length: number): Uint8Array => new Uint8Array(length).fill(7);

/** Streams of the client (even) and of the agent (odd), some open in the sessions below, some not. */
const frames: Encodable[][] = [
  [{ kind: "ping" }],
  [{ kind: "ack", echo: 0, delayUs: 0, ranges: [[0, 0]] }],
  [{ kind: "ack", echo: 1, delayUs: 900, ranges: [[0, 2]] }],
  [
    {
      kind: "ack",
      echo: 5,
      delayUs: 900,
      ranges: [
        [4, 6],
        [0, 1],
      ],
    },
  ],
  [{ kind: "open", stream: 4, service: "exec", metadata: bytes(30) }],
  [{ kind: "open", stream: 5, service: "callback", metadata: bytes(3) }],
  [
    { kind: "open", stream: 6, service: "x", metadata: bytes(0) },
    { kind: "stream", stream: 6, offset: 0, fin: true, data: bytes(5) },
  ],
  [{ kind: "stream", stream: 0, offset: 0, fin: false, data: bytes(20) }],
  [{ kind: "stream", stream: 0, offset: 20, fin: false, data: bytes(5) }],
  [{ kind: "stream", stream: 0, offset: 40, fin: true, data: bytes(5) }],
  [{ kind: "stream", stream: 1, offset: 0, fin: false, data: bytes(20) }],
  [{ kind: "stream", stream: 2, offset: 3, fin: true, data: bytes(9) }],
  [{ kind: "reset", stream: 0, code: 1, finalSize: 45 }],
  [{ kind: "reset", stream: 2, code: 1, finalSize: 0 }],
  [{ kind: "stop", stream: 0, code: 3 }],
  [{ kind: "stop", stream: 1, code: 3 }],
  [{ kind: "max-data", max: 1 << 21 }],
  [{ kind: "max-stream-data", stream: 0, max: 1 << 19 }],
  [{ kind: "max-stream-data", stream: 1, max: 1 << 19 }],
  [{ kind: "max-streams", count: 200 }],
  [{ kind: "datagram", stream: 0, data: bytes(60) }],
  [{ kind: "signal", type: 0x24, seq: 0, body: bytes(9) }],
  [{ kind: "signal", type: 0x26, seq: 1, body: bytes(4) }],
  [{ kind: "probe", type: 0x30, body: bytes(8) }],
  [{ kind: "close", code: 5, reason: "revoked" }],
  [hello({ resume: true, resumePosition: 1 })],
  [hello(), { kind: "open", stream: 0, service: "exec", metadata: bytes(3) }],
];

/** Without tag and number: those are put in front of what is fed. */
const bodyOf = (list: Encodable[]): Uint8Array => {
  const packet = encodePacket(TAG, 0, list);
  return packet.slice(5);
};
const bodies = frames.map(bodyOf);
const wholes = [
  ...frames.map((list, i) => encodePacket(TAG, i, list)),
  ...vectors.packets.map(({ wire }) => fromHex(wire.replaceAll(" ", ""))),
  ...vectors.broken.map(({ wire }) => fromHex(wire.replaceAll(" ", ""))),
];

function numbered(body: Uint8Array, number: number): Uint8Array {
  const head = encodePacket(TAG, number, []);
  const out = new Uint8Array(head.length + body.length);
  out.set(head);
  out.set(body, head.length);
  return out;
}

const codec: Target = {
  name: "session-codec",
  format: "bytes",
  seeds: wholes,
  inputsPerInstance: 1_000,
  open: () => ({
    run(input) {
      peekHello(input);
      peekTag(input);
      return outcomeOf(() => {
        const packet = decodePacket(input);
        const known = packet.frames.filter((frame): frame is Encodable => frame.kind !== "skipped");
        const encoded = encodePacket(packet.tag, packet.number, known);
        const sum = known.reduce((total, frame) => total + frameBytes(frame), 12);
        assert.ok(encoded.length <= sum, "frameBytes says too little");
        const again = decodePacket(encoded);
        assert.equal(again.frames.length, known.length);
        assert.ok(
          equalBytes(encodePacket(again.tag, again.number, again.frames as Encodable[]), encoded),
          "encoding is not stable",
        );
        return packet.frames
          .map(({ kind }) => kind)
          .slice(0, 3)
          .join();
      }, WireError);
    },
  }),
};

const FIELDS = [
  0,
  1,
  2,
  3,
  4,
  5,
  6,
  7,
  8,
  19,
  20,
  21,
  45,
  50,
  63,
  64,
  255,
  256,
  16_384,
  1 << 18,
  1 << 21,
  2 ** 32,
];
const field = (random: Random): number =>
  random.chance(0.05) ? Number.MAX_SAFE_INTEGER - random.below(3) : random.pick(FIELDS);

/** Frames that decode, with fields of them changed: most sessions live through these, so later inputs go deeper. */
function changedFrames(input: Uint8Array, random: Random): Uint8Array {
  let list: Encodable[] = [];
  try {
    list = decodeFrames(new ByteReader(input)).filter(
      (frame): frame is Encodable => frame.kind !== "skipped",
    );
  } catch {
    list = random.pick(frames);
  }
  if (random.chance(0.5)) list = [...list, ...random.pick(frames)];
  // CLOSE among other frames, and HELLO behind them, would only end the session.
  const kept = list.filter(({ kind }, i) => kind !== "close" && (kind !== "hello" || i === 0)).slice(0, 20);
  return bodyOf(kept.map((frame) => (random.chance(0.5) ? changedFrame(frame, random) : frame)));
}

function changedFrame(frame: Encodable, random: Random): Encodable {
  switch (frame.kind) {
    case "stream":
      return {
        ...frame,
        stream: random.chance(0.3) ? field(random) : frame.stream,
        offset: random.chance(0.5) ? field(random) : frame.offset,
        fin: random.chance(0.1) !== frame.fin,
        data: random.chance(0.5) ? bytes(random.below(60)) : frame.data,
      };
    case "ack": {
      const last = random.below(12);
      const first = random.below(last + 1);
      return {
        ...frame,
        echo: first + random.below(last - first + 1),
        delayUs: field(random),
        ranges: [[first, last]],
      };
    }
    case "open":
      return {
        ...frame,
        stream: random.chance(0.7) ? 2 * random.below(40) + (frame.stream & 1) : field(random),
      };
    case "reset":
      return { ...frame, stream: field(random), code: field(random), finalSize: field(random) };
    case "stop":
      return { ...frame, stream: field(random), code: field(random) };
    case "max-data":
      return { ...frame, max: field(random) };
    case "max-stream-data":
      return { ...frame, stream: field(random), max: field(random) };
    case "max-streams":
      return { ...frame, count: field(random) };
    case "datagram":
      return { ...frame, stream: field(random) };
    case "signal":
      return { ...frame, seq: random.below(40), type: 0x20 + random.below(16) };
    case "probe":
      return { ...frame, type: 0x30 + random.below(16) };
    case "hello":
      return hello({
        ...frame.hello,
        resume: random.chance(0.8),
        maxDataBytes: field(random),
        maxStreamDataBytes: field(random),
        maxStreams: field(random),
        resumePosition: random.below(10),
        resumeWindowMs: field(random),
      });
    default:
      return frame;
  }
}

type Stage = "agent-new" | "agent-unjudged" | "agent" | "client-new" | "client";

/** A session in that stage, with a stream of the client (0) and, of the agent, one (1). */
function sessionAt(stage: Stage): { session: Session; nextNumber: number } {
  const role = stage.startsWith("agent") ? "agent" : "client";
  const session = new Session({ role, now: 0, ...(role === "client" && { sessionId: ID }) });
  session.addLane(1, 0);
  let nextNumber = 0;
  const feed = (...list: Encodable[]): void =>
    session.receivePacket(encodePacket(TAG, nextNumber++, list), 1, 0);
  if (role === "client") {
    const stream = session.openStream("exec", bytes(3), 0);
    session.write(stream, bytes(50));
  }
  if (stage === "agent-unjudged" || stage === "agent")
    feed(hello(), { kind: "open", stream: 0, service: "exec", metadata: bytes(3) });
  if (stage === "client") {
    speak(session, 0);
    feed(hello());
  }
  if (stage === "agent") {
    session.accept();
    const stream = session.openStream("callback", bytes(3), 0);
    session.write(stream, bytes(50));
  }
  if (stage === "agent" || stage === "client") speak(session, 0);
  session.takeEvents();
  return { session, nextNumber };
}

/** Takes everything there is to send. @returns how many packets, at most 64 */
function speak(session: Session, now: number): number {
  for (let count = 0; ; count++) {
    const packet = session.nextPacket(1, 65_000, now);
    if (!packet) return count;
    assert.ok(count < 64, "it never stops talking");
    decodeFrames(new ByteReader(packet.slice(), 12 > packet.length ? packet.length : headerBytes(packet)));
  }
}

function headerBytes(packet: Uint8Array): number {
  const reader = new ByteReader(packet, 4);
  reader.varint();
  return reader.offset;
}

function sessionTarget(stage: Stage): Target {
  return {
    name: `session-${stage}`,
    format: "bytes",
    seeds: bodies,
    maxBytes: 3_000,
    repair: changedFrames,
    inputsPerInstance: stage.endsWith("new") ? 4 : 300,
    open: () => sessionInstance(stage),
  };
}

function sessionInstance(stage: Stage): Instance {
  const { session, nextNumber } = sessionAt(stage);
  let number = nextNumber;
  let now = 1;
  let isAccepted = stage === "agent" || stage === "client";
  const closedAt: number[] = [];
  return {
    get isSpent() {
      return session.isClosed && closedAt.length > 4;
    },
    run(input, random) {
      now += random.pick([0, 0.5, 1, 10]);
      number = nextOf(number, random);
      session.receivePacket(numbered(input, number), 1, now);
      const events = session.takeEvents();
      act(session, events, random, now);
      const due = session.nextTimeout();
      assert.ok(due === undefined || !Number.isNaN(due), "a timer for no time");
      if (due !== undefined && due <= now && !session.isClosed) session.handleTimeout(now);
      speak(session, now);
      check(session, events, isAccepted || stage === "client-new");
      if (session.isClosed) closedAt.push(now);
      if (events.some(({ kind }) => kind === "ready")) isAccepted = true;
      const words = events.map((event) =>
        event.kind === "closed" ? event.reason.replaceAll(/\d+/g, "#").slice(0, 40) : event.kind,
      );
      return [...new Set(words)].slice(0, 5).join();
    },
  };
}

/** Mostly the next number; sometimes an old one, or one far ahead. */
function nextOf(number: number, random: Random): number {
  if (random.chance(0.9)) return number + 1;
  return random.pick([number, number + 2, number + 300, Math.max(0, number - 3), 2 ** 40]);
}

/** What a shell does: reads, answers, refuses. */
function act(session: Session, events: readonly SessionEvent[], random: Random, now: number): void {
  for (const event of events) {
    if (event.kind === "readable" && random.chance(0.8)) while (session.read(event.stream));
    if (event.kind === "open" && random.chance(0.3)) session.reset(event.stream, 1);
    if (event.kind === "open" && random.chance(0.3) && !session.isClosed)
      session.write(event.stream, bytes(20));
    if (event.kind === "stop" || event.kind === "reset") session.reset(event.stream, 1);
    if (event.kind === "hello" && session.role === "agent" && random.chance(0.3)) session.accept();
  }
  if (random.chance(0.01)) {
    session.removeLane(1, now);
    session.addLane(1, now);
  }
}

function check(session: Session, events: readonly SessionEvent[], isAccepted: boolean): void {
  const { stats } = session;
  assert.ok(stats.streams <= DEFAULT_LIMITS.maxStreams + 8, `${stats.streams} streams`);
  assert.ok(stats.reorderRanges <= DEFAULT_LIMITS.maxReorderRanges, `${stats.reorderRanges} pieces`);
  assert.ok(stats.ackRanges <= 257, `${stats.ackRanges} ranges`);
  assert.ok(stats.bufferedBytes <= DEFAULT_LIMITS.maxSessionWindowBytes + (1 << 20), "too much is held");
  assert.ok(
    stats.rttMs === undefined || (stats.rttMs >= 0 && Number.isFinite(stats.rttMs)),
    `rtt ${stats.rttMs}`,
  );
  assert.ok(events.length <= 1_100, `${events.length} events`);
  for (const event of events) {
    const isHarmless = event.kind === "hello" || event.kind === "closed" || event.kind === "ready";
    if (!isAccepted && session.role === "agent" && !events.some(({ kind }) => kind === "ready"))
      assert.ok(
        isHarmless || event.kind === "stalled" || event.kind === "flowing",
        `${event.kind} before admission`,
      );
    if (event.kind === "closed")
      assert.ok(!/[\x00-\x1f\x7f-\x9f]/.test(event.reason), "a reason with control characters");
    if (event.kind === "open") assert.ok(event.metadata.length <= 16_384 && event.service.length <= 256);
  }
}

const reasons: Target = {
  name: "session-close-reason",
  format: "text",
  seeds: [utf8("revoked"), utf8("😀".repeat(150)), utf8(`${"x".repeat(511)}é`)],
  maxBytes: 2_000,
  inputsPerInstance: 1_000,
  open: () => ({
    run(input) {
      const clipped = clipReason(new TextDecoder().decode(input));
      const packet = decodePacket(encodePacket(TAG, 1, [{ kind: "close", code: 1, reason: clipped }]));
      assert.ok(packet.frames[0].kind === "close" && utf8(clipped).length <= 512);
      return clipped.length === 512 ? "full" : "short";
    },
  }),
};

export const sessionTargets: Target[] = [
  codec,
  reasons,
  ...(["agent-new", "agent-unjudged", "agent", "client-new", "client"] as const).map(sessionTarget),
];
