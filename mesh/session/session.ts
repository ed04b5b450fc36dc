// One session between two nodes: HELLO, packets in, packets out, timers. Pure: packets, events and `now` (ms,
// monotonic, fractions allowed) in; packets and events out. The shell's loop after any call:
//   for each lane: while ((packet = session.nextPacket(lane, maxBytes, now))) seal and send it
//   perform takeEvents(); arm one timer for nextTimeout()
import { WireError } from "../wire/errors.ts";
import {
  CLOSE_CODES,
  CLOSE_NUMBER,
  type CloseName,
  closeText,
  decodeFrames,
  type Frame,
  frameBytes,
  type Hello,
  isAckEliciting,
  MAX_PACKET_BYTES,
  MIN_MAX_PACKET_BYTES,
  PacketWriter,
  peekTag,
  readHeader,
} from "../wire/session.ts";
import { ByteReader } from "../wire/varint.ts";
import { AckTracker } from "./acks.ts";
import type { MemoryBudget } from "./budget.ts";
import { Closing } from "./closing.ts";
import { PeerViolation, SessionError } from "./errors.ts";
import { DEFAULT_LIMITS, type SessionEvent, type SessionLimits, type SessionStats } from "./events.ts";
import { Handshake, type HandshakeOptions } from "./handshake.ts";
import { DEFAULT_RTT_MS, Lane, type LaneOptions } from "./lane.ts";
import { Liveness } from "./liveness.ts";
import { DatagramQueue, Pings, ProbeQueue, SignalReceiver, SignalSender } from "./messages.ts";
import { Recovery, type SentFrame } from "./recovery.ts";
import { Streams } from "./streams.ts";

const MAX_LANES = 32;
/** Datagrams, probes and signals waiting for takeEvents(); the other kinds are bounded by streams and pings. */
const MAX_WAITING_EVENTS = 1_024;
/** Of these, datagrams: as much as the peer may have under way at once; a busy shell loses the rest, as UDP does. */
const MAX_WAITING_DATAGRAM_BYTES = 1 << 20;
/** What a packet may carry at least, whatever stands before it: else a slow lane would carry HELLOs only. */
const MIN_DATA_BYTES = 1_000;

export interface SessionOptions extends HandshakeOptions {
  now: number;
  /** Send a PING on a lane that carried nothing for this long; undefined: never. */
  keepaliveMs?: number;
  limits?: Partial<SessionLimits>;
  /** Shared by the sessions of a node; without one, the limits alone hold. */
  budget?: MemoryBudget;
}

// Every packet is written here and sealed before the next one is: no allocation, no second copy.
let scratch: Uint8Array | undefined;

export class Session {
  readonly role: "client" | "agent";
  readonly #limits: SessionLimits;
  readonly #keepaliveMs: number | undefined;
  readonly #handshake: Handshake;
  #closing: Closing | undefined;
  readonly #lanes = new Map<number, Lane>();
  readonly #streams: Streams;
  readonly #acks = new AckTracker();
  readonly #recovery: Recovery;
  readonly #signalsOut = new SignalSender();
  readonly #signalsIn = new SignalReceiver();
  readonly #datagrams = new DatagramQueue();
  readonly #probes = new ProbeQueue();
  readonly #pings = new Pings();
  readonly #liveness: Liveness;
  #nextNumber = 0;
  #events: SessionEvent[] = [];
  /** An agent's events until accept(). */
  #held: SessionEvent[] = [];
  #packetsSent = 0;
  #packetsReceived = 0;
  #packetsDropped = 0;
  #packetsRefused = 0;
  #resumedCount = 0;
  #waitingDatagramBytes = 0;
  #datagramsRefused = 0;

  constructor(options: SessionOptions) {
    this.role = options.role;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#keepaliveMs = options.keepaliveMs;
    this.#handshake = new Handshake(options);
    this.#liveness = new Liveness(this.role, options.now);
    this.#streams = new Streams(this.role, this.#limits, (event) => this.#emit(event), options.budget);
    this.#recovery = new Recovery({
      onFrameAcked: (frame, packet, now) => this.#onFrameAcked(frame, packet.lane.id, now),
      onFrameLost: (frame) => this.#onFrameLost(frame),
    });
  }

  /** undefined for an agent before the first packet. */
  get sessionId(): Uint8Array | undefined {
    return this.#handshake.sessionId;
  }

  /** The first four bytes of the id: which of several sessions with a peer a packet belongs to. */
  get tag(): number | undefined {
    return this.#handshake.tag;
  }

  get version(): number | undefined {
    return this.#handshake.version;
  }

  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  /** Closed, and no CLOSE is left to be sent: the shell may forget the session. */
  isDrained(now: number): boolean {
    return this.#closing !== undefined && now >= (this.#closing.endsAt ?? 0);
  }

  /** Something written, ended or signalled is not known to have arrived. Wait for false before a polite close(). */
  get hasUndelivered(): boolean {
    return !this.isClosed && (this.#streams.hasUndelivered || !this.#signalsOut.isEmpty);
  }

  get stats(): SessionStats {
    return {
      streams: this.#streams.count,
      lanes: [...this.#lanes.values()].map((lane) => lane.stats()),
      packetsSent: this.#packetsSent,
      packetsReceived: this.#packetsReceived,
      packetsDropped: this.#packetsDropped,
      packetsRefused: this.#packetsRefused,
      datagramsDropped: this.#datagrams.dropped,
      datagramsRefused: this.#datagramsRefused,
      packetsLost: this.#recovery.packetsLost,
      resumedCount: this.#resumedCount,
      rttMs: this.#rttMs,
      bufferedBytes: this.#streams.bufferedBytes,
      flow: this.#streams.flow,
      reorderRanges: this.#streams.reorderRanges,
      ackRanges: this.#acks.rangeCount,
    };
  }

  /** No progress for STALL_AFTER_MS or more, as the last `stalled` event said. */
  get isStalled(): boolean {
    return !this.isClosed && this.#liveness.isStalled;
  }

  get #rttMs(): number | undefined {
    for (const lane of this.#lanes.values()) if (!lane.standby && lane.rttMs !== undefined) return lane.rttMs;
    return undefined;
  }

  takeEvents(): SessionEvent[] {
    const events = this.#events;
    this.#events = [];
    this.#waitingDatagramBytes = 0;
    return events;
  }

  // --- admission ---

  /** Agent: the grant is good. Streams and data that came with it are told now. Again after a resume: no effect. */
  accept(): void {
    if (this.#handshake.isAccepted || this.isClosed || this.#handshake.peerHello === undefined) return;
    this.#handshake.isAccepted = true;
    this.#streams.onAccepted();
    const held = this.#held;
    this.#held = [];
    this.#events.push({ kind: "ready", version: this.#handshake.version! }, ...held);
  }

  reject(name: CloseName, reason: string | undefined, now: number): void {
    this.close(CLOSE_CODES[name].code, reason ?? CLOSE_CODES[name].text, now);
  }

  /** Client: what the next HELLO carries (a resume after the old grant expired). @throws {SessionError} */
  setGrant(grant: Uint8Array): void {
    this.#handshake.setGrant(grant);
  }

  /** Client: how long the agent should keep the session while we are silent, from the next HELLO on. */
  setResumeWindow(ms: number): void {
    this.#handshake.resumeWindowMs = ms;
  }

  // --- lanes ---

  /**
   * A path (or a stream on one) is usable. `lane` is a number of the shell's, unique among the lanes of its time.
   *
   * @throws {SessionError} ERR_LANE_LIMIT
   */
  addLane(lane: number, now: number, options: LaneOptions = {}): void {
    this.setLane(lane, options);
    if (this.#lanes.has(lane)) return;
    if (this.#lanes.size >= MAX_LANES)
      throw new SessionError("ERR_LANE_LIMIT", `a session runs over at most ${MAX_LANES} paths`);
    this.#lanes.set(lane, new Lane(lane, now, options));
    this.#closing?.addLane(lane);
    this.#updateLiveness(now);
  }

  /** Puts a lane in use or on standby. What is in flight on it stays. */
  setLane(lane: number, { standby, lossy }: LaneOptions): void {
    const known = this.#lanes.get(lane);
    if (known === undefined) return;
    known.standby = standby ?? known.standby;
    known.lossy = lossy ?? known.lossy;
  }

  /**
   * The lane has gone quiet: what is in flight on it is sent again on the others, at their pace. It stays, and may
   * prove alive (put it on standby until then).
   */
  suspectLane(lane: number): void {
    const suspected = this.#lanes.get(lane);
    if (suspected) this.#recovery.abandon(suspected);
  }

  /** The path is dead. The session lives on without any lane, for as long as the shell likes. */
  removeLane(lane: number, now: number): void {
    const removed = this.#lanes.get(lane);
    if (removed === undefined) return;
    this.#lanes.delete(lane);
    this.#closing?.removeLane(lane);
    this.#probes.removeLane(lane);
    this.#pings.removeLane(lane);
    this.#acks.moveLane(lane, this.#lanes.keys().next().value);
    this.#recovery.abandon(removed);
    this.#updateLiveness(now);
    if (this.#lanes.size > 0 || this.role !== "client" || this.isClosed) return;
    this.#handshake.onLanesGone(this.#acks.nextExpected);
  }

  // --- streams ---

  /**
   * Opens a stream; it may be written to at once. Beyond the peer's stream limit it waits for a turn.
   *
   * @param service at most 256 bytes of UTF-8
   * @param metadata at most 16,384 bytes, kept by reference
   * @throws {SessionError} ERR_SESSION_CLOSED, ERR_STREAM_LIMIT, ERR_OPEN_TOO_LARGE
   */
  openStream(service: string, metadata: Uint8Array, _now: number): number {
    if (this.isClosed)
      throw new SessionError("ERR_SESSION_CLOSED", `the session is closed: ${this.#closing!.reason}`);
    return this.#streams.open(service, metadata);
  }

  /**
   * Queues bytes. They now belong to the session: don't change them.
   *
   * @returns how many were taken; write the rest after `writable`. 0 also when the stream is gone
   * @throws {SessionError} ERR_STREAM_ENDED after end()
   */
  write(stream: number, bytes: Uint8Array): number {
    return this.isClosed ? 0 : this.#streams.write(stream, bytes);
  }

  /** No more will be written; the other direction goes on. */
  end(stream: number): void {
    this.#streams.end(stream);
  }

  /** Gives up sending: the peer gets `reset`, unsent bytes are dropped. */
  reset(stream: number, code: number): void {
    this.#streams.reset(stream, code);
  }

  /** Wants no more: unread bytes are dropped, the peer gets `stop` and stops. */
  stopSending(stream: number, code: number): void {
    this.#streams.stopSending(stream, code);
  }

  /** The next bytes in order, or undefined when there are none now. Reading gives the peer room to send more. */
  read(stream: number, maxBytes: number = Number.MAX_SAFE_INTEGER): Uint8Array | undefined {
    return this.#streams.read(stream, maxBytes);
  }

  /** @returns false when it, or one before it, was dropped. Dropped also after 100 ms in the queue */
  sendDatagram(stream: number, data: Uint8Array, now: number): boolean {
    return !this.isClosed && this.#datagrams.send(stream, data, now);
  }

  /** Reliable, in order. @param type 0x20..0x2f @returns false when 32 are unacknowledged or `body` is too large */
  sendSignal(type: number, body: Uint8Array): boolean {
    if (type < 0x20 || type > 0x2f) throw new RangeError(`no signal type: ${type}`);
    return !this.isClosed && this.#signalsOut.send(type, body);
  }

  /** Once, on that lane, also a standby one. @param type 0x30..0x3f */
  sendProbe(lane: number, type: number, body: Uint8Array): boolean {
    if (type < 0x30 || type > 0x3f) throw new RangeError(`no probe type: ${type}`);
    return !this.isClosed && this.#lanes.has(lane) && this.#probes.send(lane, type, body);
  }

  /** Asks for an `rtt` event. @returns its id; undefined when 16 are unanswered */
  ping(_now: number, lane?: number): number | undefined {
    return this.isClosed ? undefined : this.#pings.send(lane);
  }

  /** The peer has been away for long (or is back): hold as little for it as promises allow. */
  setSilent(isSilent: boolean): void {
    if (!this.isClosed) this.#streams.setSilent(isSilent);
    if (!isSilent) this.#streams.wakeWriters();
  }

  /** Ends the session at once, undelivered bytes included; CLOSE tells the peer. */
  close(code: number, reason: string, now: number): void {
    this.#finish(code, reason, false, now);
  }

  // --- packets in ---

  /**
   * Takes in one packet, WireGuard's padding included. Never throws on what a peer sends.
   *
   * @param packet kept by reference where it is mostly stream data: don't reuse its memory
   * @param lane what it arrived on
   */
  receivePacket(packet: Uint8Array, lane: number, now: number): void {
    try {
      this.#receive(packet, lane, now);
    } catch (error) {
      if (error instanceof PeerViolation) this.close(error.closeCode, error.message, now);
      else if (error instanceof WireError) this.close(CLOSE_CODES.protocolViolation.code, error.message, now);
      else throw error;
    }
    if (this.isClosed) return;
    this.#streams.wakeWriters();
    this.#updateLiveness(now);
  }

  #receive(packet: Uint8Array, laneId: number, now: number): void {
    const known = this.#handshake.tag;
    if (packet.length < 5 || (known !== undefined && peekTag(packet) !== known)) {
      this.#packetsDropped++;
      return;
    }
    const reader = new ByteReader(packet);
    const { tag, number } = readHeader(reader);
    if (this.#closing) {
      this.#packetsDropped++;
      if (number === CLOSE_NUMBER) this.#closing.onPeerClosed();
      else this.#closing.onPacket(laneId);
      return;
    }
    if (number === CLOSE_NUMBER) {
      this.#receiveClose(decodeFrames(reader), now);
      return;
    }
    if (this.#handshake.peerHello && this.#acks.isDuplicate(number)) {
      this.#packetsDropped++;
      this.#acks.onPacket(number, this.#ackLane(laneId), true, now);
      return;
    }
    this.#handshake.tag ??= tag; // also a refusal must find its way back
    const frames = decodeFrames(reader);
    if (!this.#handshake.peerHello && frames[0]?.kind !== "hello") {
      const isStale = this.role === "agent";
      throw new PeerViolation(
        isStale ? "unknownSession" : "protocolViolation",
        isStale ? CLOSE_CODES.unknownSession.text : "the first packet has no HELLO",
      );
    }
    if (this.#streams.exceedsReorderLimit(frames)) {
      this.#packetsRefused++;
      return;
    }
    this.#packetsReceived++;
    const lane = this.#lanes.get(laneId);
    if (lane) lane.lastReceivedAt = now;
    this.#liveness.onHeard(now);
    let isEliciting = false;
    let isUrgent = false;
    for (const [index, frame] of frames.entries()) {
      if (isAckEliciting(frame)) isEliciting = true;
      // Each may cost a signature check, or a search for 256 ranges: one a packet.
      if (frame.kind === "hello" && index > 0)
        throw new PeerViolation("protocolViolation", "HELLO behind other frames");
      if (frame.kind === "ack" && index > (frames[0].kind === "hello" ? 1 : 0))
        throw new PeerViolation("protocolViolation", "ACK behind other frames");
      if (frame.kind === "ping" || frame.kind === "hello") isUrgent = true;
      this.#receiveFrame(frame, laneId, now);
      if (this.isClosed) return;
    }
    const ackOn = isEliciting ? this.#ackLane(laneId) : undefined;
    this.#acks.onPacket(number, ackOn, isUrgent, now, packet.length);
  }

  /** The lane an ACK should travel on: where the packet came from, else any in use. */
  #ackLane(laneId: number): number | undefined {
    if (this.#lanes.has(laneId)) return laneId;
    for (const lane of this.#lanes.values()) if (!lane.standby) return lane.id;
    return this.#lanes.keys().next().value;
  }

  #receiveFrame(frame: Frame, lane: number, now: number): void {
    const streams = this.#streams;
    switch (frame.kind) {
      case "ack":
        if (this.#recovery.onAck(frame, this.#lanes.get(lane), this.#lanes.values(), this.#nextNumber, now)) {
          const news = this.#liveness.onProgress(now);
          if (news) this.#emit(news);
        }
        break;
      case "hello":
        this.#receiveHello(frame.hello);
        break;
      case "close":
        throw new PeerViolation("protocolViolation", "CLOSE among other packets");
      case "open":
        streams.onOpen(frame);
        break;
      case "stream":
        this.#liveness.onUse(now);
        streams.onStream(frame);
        break;
      case "reset":
        streams.onReset(frame);
        break;
      case "stop":
        streams.onStop(frame);
        break;
      case "max-data":
        streams.onMaxData(frame.max);
        break;
      case "max-stream-data":
        streams.onMaxStreamData(frame);
        break;
      case "max-streams":
        streams.onMaxStreams(frame.count);
        break;
      case "signal":
        if (!this.#handshake.isAccepted)
          throw new PeerViolation("protocolViolation", "a signal before HELLO was answered");
        for (const signal of this.#signalsIn.receive(frame.seq, frame.type, frame.body))
          this.#emit({ kind: "signal", ...signal });
        break;
      case "datagram":
        this.#liveness.onUse(now);
        if (this.#handshake.isAccepted && streams.knows(frame.stream))
          this.#emitDatagram(frame.stream, frame.data);
        break;
      case "probe":
        if (this.#handshake.isAccepted)
          this.#emit({ kind: "probe", lane, type: frame.type, body: frame.body.slice() });
        break;
      case "ping": // answered by the ACK
      case "skipped":
        break;
    }
  }

  #receiveHello(received: Hello): void {
    const hello = { ...received, sessionId: received.sessionId.slice(), grant: received.grant.slice() };
    const news = this.#handshake.receive(hello, this.#nextNumber);
    if (news === "repeated") return;
    this.#emit({ kind: "hello", hello, resume: news === "resume" });
    if (news === "resume") return;
    this.#streams.onPeerLimits(hello.maxDataBytes, hello.maxStreamDataBytes, hello.maxStreams);
    if (this.role === "client") this.#emit({ kind: "ready", version: this.#handshake.version! });
  }

  #receiveClose(frames: Frame[], now: number): void {
    const [frame] = frames;
    if (frame?.kind !== "close") {
      this.#packetsDropped++;
      return;
    }
    // A terminal shows it: no control characters from a stranger.
    const reason = frame.reason.replace(/[\u0000-\u001f\u007f-\u009f]/g, "?");
    this.#finish(frame.code, reason || closeText(frame.code), true, now);
  }

  // --- packets out ---

  /**
   * The next packet for a lane, or undefined when it has nothing to say or may not now.
   *
   * @param maxBytes what the lane can carry; at least 32,768, or large frames never go
   * @returns valid until the next call of any session's nextPacket: seal or copy it first
   */
  nextPacket(lane: number, maxBytes: number, now: number): Uint8Array | undefined {
    if (this.#handshake.tag === undefined) return undefined;
    scratch ??= new Uint8Array(MAX_PACKET_BYTES);
    if (this.#closing) {
      const writer = new PacketWriter(scratch, maxBytes);
      return this.#closing.fill(lane, this.#handshake.tag, writer) ? writer.finish() : undefined;
    }
    const known = this.#lanes.get(lane);
    if (known === undefined || !this.#handshake.isAccepted) return undefined;
    const peerMax = this.#handshake.peerHello?.maxPacketBytes ?? MAX_PACKET_BYTES;
    const limit = Math.min(maxBytes, peerMax, MAX_PACKET_BYTES);
    const packet = this.#buildPacket(known, new PacketWriter(scratch, limit), now);
    if (packet) this.#packetsSent++;
    this.#streams.wakeWriters();
    this.#updateLiveness(now);
    return packet;
  }

  #buildPacket(lane: Lane, writer: PacketWriter, now: number): Uint8Array | undefined {
    const inUse = !lane.standby;
    const mayCarry = inUse && (lane.hasRoom || lane.probeDue);
    this.#datagrams.expire(now);
    const wantsHello = inUse && this.#handshake.state === "unsent";
    const hasBulk = this.#hasBulk;
    if (mayCarry && !hasBulk) lane.onAppLimited();
    const isMore =
      wantsHello ||
      lane.probeDue ||
      lane.keepaliveDue ||
      (mayCarry && hasBulk) ||
      (inUse && this.#streams.hasControl) ||
      this.#probes.has(lane.id) ||
      this.#pings.hasFor(lane.id, lane.standby);
    const ackIsDue = this.#acks.isDue(lane.id, now);
    if (!isMore && !ackIsDue) return undefined;

    const sent: SentFrame[] = [];
    writer.header(this.#handshake.tag!, this.#nextNumber);
    if (this.#handshake.state !== "acked") {
      if (!writer.tryFrame({ kind: "hello", hello: this.#makeHello() })) return undefined;
      sent.push({ kind: "hello" });
    }
    const hasAck = this.#fillAck(lane, writer, sent, now);
    const before = writer.frames;
    if (isMore) this.#fillMore(lane, writer, sent, mayCarry, now);
    const hasMore = writer.frames > before;
    if (!hasMore && !wantsHello && !(hasAck && ackIsDue)) return undefined;

    if (hasAck) this.#acks.onSent(lane.id, now);
    const packet = writer.finish();
    const number = this.#nextNumber++;
    if (!hasMore && this.#handshake.state === "acked") return packet; // a bare ACK is not acknowledged itself
    if (this.#handshake.state === "unsent") this.#handshake.state = "sent";
    if (sent.some(({ kind }) => kind === "stream")) this.#liveness.onUse(now);
    lane.probeDue = false;
    lane.keepaliveDue = false;
    this.#recovery.onSent(lane, number, packet.length, sent, now);
    return packet;
  }

  get #hasBulk(): boolean {
    if (this.#streams.hasData || this.#streams.hasOpens || !this.#datagrams.isEmpty) return true;
    return this.#handshake.peerHello !== undefined && this.#signalsOut.hasQueued;
  }

  #fillAck(lane: Lane, writer: PacketWriter, sent: SentFrame[], now: number): boolean {
    const ack = this.#acks.peek(lane.id, now);
    if (ack === undefined) return false;
    const fits = Math.floor((writer.room - frameBytes({ ...ack, ranges: [] })) / 16);
    if (fits < 1) return false;
    const ranges = ack.ranges.slice(0, fits);
    writer.frame({ ...ack, ranges, echo: Math.max(ack.echo, ranges[ranges.length - 1][0]) });
    if (ranges.length === ack.ranges.length) sent.push({ kind: "ack", largest: ranges[0][1] });
    return true;
  }

  /** Everything behind HELLO and ACK. */
  #fillMore(lane: Lane, writer: PacketWriter, sent: SentFrame[], mayCarry: boolean, now: number): void {
    if (lane.probeDue || lane.keepaliveDue) writer.tryFrame({ kind: "ping" });
    this.#probes.fill(lane.id, writer);
    this.#pings.fill(lane.id, lane.standby, writer, sent, now);
    if (!lane.standby) this.#streams.fillControl(writer, sent, now, lane.rttMs ?? DEFAULT_RTT_MS);
    if (!mayCarry) return;
    // Signals and OPENs cannot be split: they may fill the packet to the end. Stream data keeps it short.
    if (this.#handshake.peerHello) this.#signalsOut.fill(writer, sent);
    this.#streams.fillOpens(writer, sent);
    this.#datagrams.fill(writer);
    const { limit } = writer;
    writer.limit = Math.min(limit, Math.max(lane.packetBytes, writer.offset + MIN_DATA_BYTES));
    const isFull = this.#streams.fillData(writer, sent, lane.packetBytes, lane.probeDue);
    writer.limit = limit;
    if (!isFull) lane.onAppLimited();
  }

  #makeHello(): Hello {
    return this.#handshake.makeHello({
      maxPacketBytes: Math.max(this.#limits.maxPacketBytes, MIN_MAX_PACKET_BYTES),
      maxDataBytes: this.#streams.maxDataBytes,
      maxStreamDataBytes: this.#limits.initialStreamWindowBytes,
      maxStreams: this.#streams.maxPeerStreams,
    });
  }

  // --- time ---

  /** When handleTimeout() (and then nextPacket on every lane) is next due, if ever. */
  nextTimeout(): number | undefined {
    if (this.#closing) return this.#closing.endsAt;
    if (!this.#handshake.isAccepted) return undefined;
    let earliest = this.#lanes.size > 0 ? this.#acks.nextTimeout() : undefined;
    const consider = (at: number | undefined): void => {
      if (at !== undefined && (earliest === undefined || at < earliest)) earliest = at;
    };
    consider(this.#liveness.stallAt());
    for (const lane of this.#lanes.values()) {
      consider(lane.ptoAt);
      consider(this.#recovery.lossTimeout(lane));
      consider(this.#keepaliveAt(lane));
    }
    return earliest;
  }

  handleTimeout(now: number): void {
    if (this.#closing || !this.#handshake.isAccepted) return;
    this.#acks.handleTimeout(now);
    this.#updateLiveness(now);
    const news = this.#liveness.check(now);
    if (news) this.#emit(news);
    for (const lane of this.#lanes.values()) {
      if (now >= (this.#keepaliveAt(lane) ?? Number.POSITIVE_INFINITY)) lane.keepaliveDue = true;
      this.#recovery.detectLost(lane, now);
      if (lane.ptoAt === undefined || now < lane.ptoAt) continue;
      lane.onPto();
      this.#recovery.repeatOldest(lane);
    }
  }

  #keepaliveAt(lane: Lane): number | undefined {
    if (lane.standby || lane.keepaliveDue) return undefined;
    const keepaliveAt =
      this.#keepaliveMs === undefined
        ? undefined
        : Math.max(lane.lastReceivedAt ?? 0, lane.lastSentAt) + this.#keepaliveMs;
    // In use: asked sooner, unless something under way asks already.
    if (lane.inFlightBytes > 0 || this.#streams.count === 0) return keepaliveAt;
    return this.#liveness.askAt() ?? keepaliveAt;
  }

  #updateLiveness(now: number): void {
    if (this.isClosed || !this.#handshake.isAccepted) return;
    this.#liveness.update(this.#isWaiting, now);
  }

  /** Is anything due from the peer, or waiting for a way to it? What its windows hold back is neither. */
  get #isWaiting(): boolean {
    if (this.#lanes.size === 0 || this.#handshake.state !== "acked") return true;
    if (this.#hasBulk || this.#streams.hasControl) return true;
    for (const lane of this.#lanes.values())
      if (lane.inFlightBytes > 0 || lane.probeDue || lane.keepaliveDue) return true;
    return false;
  }

  // --- what became of frames ---

  #onFrameAcked(frame: SentFrame, lane: number, now: number): void {
    if (frame.kind === "hello") {
      if (!this.#handshake.onAcked()) return;
      this.#resumedCount++;
      this.#emit({ kind: "resumed" });
    } else if (frame.kind === "ack") this.#acks.onAckAcked(frame.largest);
    else if (frame.kind === "signal") this.#signalsOut.onAcked(frame.seq);
    else if (frame.kind !== "ping") this.#streams.onFrameAcked(frame);
    else if (this.#pings.onAcked(frame.id))
      this.#emit({ kind: "rtt", id: frame.id, lane, rttMs: now - frame.sentAt });
  }

  #onFrameLost(frame: SentFrame): void {
    if (frame.kind === "hello") this.#handshake.onLost();
    else if (frame.kind === "ping") this.#pings.onLost(frame.id);
    else if (frame.kind === "signal") this.#signalsOut.onLost(frame.seq);
    else this.#streams.onFrameLost(frame);
  }

  #emit(event: SessionEvent): void {
    if (this.isClosed) return;
    const queue = this.#handshake.isAccepted || event.kind === "hello" ? this.#events : this.#held;
    if (queue.length >= MAX_WAITING_EVENTS) {
      if (event.kind === "probe") return;
      if (event.kind === "signal") throw new PeerViolation("resourceLimit", "too many signals");
    }
    queue.push(event);
  }

  #emitDatagram(stream: number, data: Uint8Array): void {
    if (
      this.#events.length >= MAX_WAITING_EVENTS ||
      this.#waitingDatagramBytes + data.length > MAX_WAITING_DATAGRAM_BYTES
    ) {
      this.#datagramsRefused++;
      return;
    }
    this.#waitingDatagramBytes += data.length;
    this.#emit({ kind: "datagram", stream, data: data.slice() });
  }

  #finish(code: number, reason: string, byPeer: boolean, now: number): void {
    if (this.#closing) return;
    this.#closing = new Closing(code, reason, byPeer, now, this.#lanes.keys());
    this.#events.push({ kind: "closed", code, reason: this.#closing.reason, byPeer });
    this.#held = [];
    this.#streams.clear();
    this.#recovery.clear();
    this.#acks.clear();
    this.#datagrams.clear();
  }
}
