// All streams of a session: who may open how many, both levels of flow control, and which frames about
// streams are to be sent. Ids: the client's are even, the agent's odd.

import { utf8 } from "../wire/bytes.ts";
import {
  EARLY_MAX_DATA_BYTES,
  EARLY_MAX_STREAMS,
  type Frame,
  MAX_METADATA_BYTES,
  MAX_SERVICE_BYTES,
  type PacketWriter,
  streamHeaderBytes,
} from "../wire/session.ts";
import type { MemoryBudget } from "./budget.ts";
import { PeerViolation, SessionError } from "./errors.ts";
import type { FlowStats, SessionEvent, SessionLimits } from "./events.ts";
import { RangeSet } from "./ranges.ts";
import type { SentFrame } from "./recovery.ts";
import { Scheduler } from "./scheduler.ts";
import { Stream } from "./stream.ts";
import { ReceiveWindow } from "./window.ts";

/** A sliver of data at the end of a packet costs more than it brings. */
const MIN_PIECE_BYTES = 32;
/** What a session may buffer for sending in any case; beyond it, the node's budget is asked, by this much at a time. */
const SURE_SEND_BYTES = 1 << 20;
const SEND_STEP_BYTES = 1 << 20;
/** MAX_STREAM_DATA, the longest of the window updates. */
const MAX_LIMIT_FRAME_BYTES = 17;

type FrameOf<K extends Frame["kind"]> = Extract<Frame, { kind: K }>;

export class Streams {
  readonly #limits: SessionLimits;
  readonly #emit: (event: SessionEvent) => void;
  readonly #localParity: 0 | 1;
  readonly #streams = new Map<number, Stream>();
  readonly #scheduler = new Scheduler<Stream>();
  /** Streams with a frame other than STREAM to send. */
  readonly #control = new Set<Stream>();
  /** Streams with data that wait for the session's window. */
  readonly #parked = new Set<Stream>();
  readonly #blockedWriters = new Set<Stream>();
  #waitingForCredit: Stream[] = [];

  // What the peer allows us.
  #peerMaxDataBytes = EARLY_MAX_DATA_BYTES;
  #peerMaxStreamDataBytes = EARLY_MAX_DATA_BYTES;
  #peerMaxStreams = EARLY_MAX_STREAMS;
  #sentBytes = 0;
  #nextLocal = 0;
  #localCount = 0;
  #bufferedBytes = 0;
  readonly #budget: MemoryBudget | undefined;
  /** Taken from the budget to buffer more than SURE_SEND_BYTES. */
  #sendReserveBytes = 0;
  /** The peer has been away for long: buffer no more than the sure share. */
  #isSilent = false;

  // What we allow the peer.
  #window: ReceiveWindow;
  #receivedBytes = 0;
  #dataLimitLost = false;
  #maxPeerStreams = EARLY_MAX_STREAMS;
  #streamLimitLost = false;
  #peerIndexes = new RangeSet();
  #peerClosed = 0;
  #reorderRanges = 0;

  constructor(
    role: "client" | "agent",
    limits: SessionLimits,
    emit: (event: SessionEvent) => void,
    budget?: MemoryBudget,
  ) {
    this.#limits = limits;
    this.#budget = budget;
    this.#emit = emit;
    this.#localParity = role === "client" ? 0 : 1;
    this.#window = new ReceiveWindow(limits.initialSessionWindowBytes, limits.maxSessionWindowBytes, budget);
    if (role === "client") this.#maxPeerStreams = limits.maxStreams;
    // Until an agent has accepted the grant, a stranger may make it hold this much.
    else this.#window.limit = Math.min(this.#window.limit, EARLY_MAX_DATA_BYTES);
  }

  get count(): number {
    return this.#streams.size;
  }

  get bufferedBytes(): number {
    return this.#bufferedBytes;
  }

  get reorderRanges(): number {
    return this.#reorderRanges;
  }

  /** Where both session windows stand; see FlowStats. */
  get flow(): FlowStats {
    return {
      sentBytes: this.#sentBytes,
      creditBytes: this.#peerMaxDataBytes - this.#sentBytes,
      receivedBytes: this.#receivedBytes,
      heldBytes: this.#receivedBytes - this.#window.consumed,
      windowBytes: this.#window.windowBytes,
    };
  }

  get maxDataBytes(): number {
    return this.#window.limit;
  }

  get maxPeerStreams(): number {
    return this.#maxPeerStreams;
  }

  /** Something is buffered that the peer has not acknowledged, or an end it does not know. */
  get hasUndelivered(): boolean {
    for (const { open, isLocal, send, stop } of this.#streams.values()) {
      if (stop && stop.state !== "acked") return true;
      if ((isLocal && open !== "done") || send.bufferedBytes > 0 || (send.isEnded && !send.isDone))
        return true;
    }
    return false;
  }

  /** The agent has accepted: the limits its HELLO will state hold from now on. */
  onAccepted(): void {
    this.#window.limit = Math.max(this.#window.limit, this.#limits.initialSessionWindowBytes);
    this.#maxPeerStreams = Math.max(this.#maxPeerStreams, this.#limits.maxStreams);
  }

  /** The limits in the peer's HELLO replace the early ones. */
  onPeerLimits(maxData: number, maxStreamData: number, maxStreams: number): void {
    this.#peerMaxStreamDataBytes = Math.max(this.#peerMaxStreamDataBytes, maxStreamData);
    for (const stream of this.#streams.values()) {
      stream.send.maxOffset = Math.max(stream.send.maxOffset, this.#peerMaxStreamDataBytes);
      this.#activate(stream);
    }
    this.onMaxData(maxData);
    this.onMaxStreams(maxStreams);
  }

  // --- the application's side ---

  open(service: string, metadata: Uint8Array): number {
    if (utf8(service).length > MAX_SERVICE_BYTES || metadata.length > MAX_METADATA_BYTES)
      throw new SessionError("ERR_OPEN_TOO_LARGE", "the service's name or description is too long");
    if (this.#localCount >= this.#limits.maxLocalStreams)
      throw new SessionError(
        "ERR_STREAM_LIMIT",
        "too many streams are open in this session: close some first",
      );
    const stream = this.#create(2 * this.#nextLocal++ + this.#localParity, true);
    this.#localCount++;
    stream.service = service;
    stream.metadata = metadata;
    this.#waitingForCredit.push(stream);
    this.#admitWaiting();
    return stream.id;
  }

  write(id: number, bytes: Uint8Array): number {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.send.isReset) return 0;
    if (stream.send.isEnded)
      throw new SessionError(
        "ERR_STREAM_ENDED",
        "this direction of the stream was ended: nothing can follow",
      );
    const accepted = Math.min(this.#writeRoom(stream), bytes.length);
    if (accepted < bytes.length) {
      stream.isWriterBlocked = true;
      this.#blockedWriters.add(stream);
    }
    if (accepted === 0) return 0;
    stream.send.write(accepted === bytes.length ? bytes : bytes.subarray(0, accepted));
    this.#bufferedBytes += accepted;
    this.#activate(stream);
    return accepted;
  }

  end(id: number): void {
    const stream = this.#streams.get(id);
    stream?.send.end();
    if (stream) this.#activate(stream);
  }

  reset(id: number, code: number): void {
    const stream = this.#streams.get(id);
    if (stream) this.#reset(stream, code);
  }

  stopSending(id: number, code: number): void {
    const stream = this.#streams.get(id);
    if (stream === undefined || stream.stop || stream.receive.isDone) return;
    stream.isEndTold = true; // who wants no more hears no more
    this.#settle(stream, () => stream.receive.discard());
    if (stream.receive.finalSize === undefined) {
      stream.stop = { code, state: "queued" };
      this.#control.add(stream);
    }
    this.#forgetIfDone(stream);
  }

  read(id: number, maxBytes: number): Uint8Array | undefined {
    const stream = this.#streams.get(id);
    if (stream === undefined || !this.#isKnown(stream) || maxBytes <= 0) return undefined;
    const bytes = stream.receive.read(maxBytes);
    if (bytes === undefined) {
      stream.isReadableTold = false;
      return undefined;
    }
    this.#window.consumed += bytes.length;
    if (stream.windowIsDue) this.#control.add(stream);
    this.#tellEnd(stream);
    return bytes;
  }

  /** May a datagram about this stream go to the application? */
  knows(id: number): boolean {
    const stream = this.#streams.get(id);
    return stream !== undefined && (stream.isLocal || stream.open === "done");
  }

  // --- frames from the peer; all may throw PeerViolation ---

  /** Would this packet's data make us hold more gaps than we may? Then the packet counts as not received. */
  exceedsReorderLimit(frames: Frame[]): boolean {
    let ranges = this.#reorderRanges;
    for (const frame of frames) {
      if (frame.kind !== "stream") continue;
      const receive = this.#streams.get(frame.stream)?.receive;
      if (receive ? receive.isOutOfOrder(frame.offset) : frame.offset > 0) ranges++;
    }
    return ranges > this.#reorderRanges && ranges > this.#limits.maxReorderRanges;
  }

  onOpen({ stream: id, service, metadata }: FrameOf<"open">): void {
    if (this.#isLocal(id)) throw new PeerViolation("protocolViolation", "opened a stream with an id of ours");
    const stream = this.#find(id);
    if (stream === undefined || stream.open === "done") return; // said twice
    stream.open = "done";
    stream.service = service;
    this.#emit({ kind: "open", stream: id, service, metadata: metadata.slice() });
    if (stream.receive.resetCode !== undefined) this.#tellReset(stream, stream.receive.resetCode);
    else {
      this.#tellReadable(stream);
      this.#tellEnd(stream);
    }
    if (stream.stopReceived !== undefined)
      this.#emit({ kind: "stop", stream: id, code: stream.stopReceived });
    // A STOP_SENDING that overtook the OPEN made us reset a stream of which nothing could be said yet.
    if (stream.send.resetToSend) this.#control.add(stream);
    this.#activate(stream);
    this.#forgetIfDone(stream);
  }

  onStream({ stream: id, offset, data, fin }: FrameOf<"stream">): void {
    const stream = this.#find(id);
    if (stream === undefined) return; // over already; its final size was counted
    this.#settle(stream, () => stream.receive.receive(offset, data, fin));
    this.#tellReadable(stream);
    this.#tellEnd(stream);
    this.#forgetIfDone(stream);
  }

  onReset({ stream: id, code, finalSize }: FrameOf<"reset">): void {
    const stream = this.#find(id);
    if (stream === undefined) return;
    this.#settle(stream, () => stream.receive.receiveReset(code, finalSize));
    if (stream.receive.resetCode !== undefined) this.#tellReset(stream, code);
    this.#forgetIfDone(stream);
  }

  onStop({ stream: id, code }: FrameOf<"stop">): void {
    const stream = this.#find(id);
    if (stream === undefined || stream.stopReceived !== undefined) return;
    stream.stopReceived = code;
    this.#reset(stream, code);
    if (this.#isKnown(stream)) this.#emit({ kind: "stop", stream: id, code });
    this.#forgetIfDone(stream);
  }

  onMaxData(max: number): void {
    if (max <= this.#peerMaxDataBytes) return;
    this.#peerMaxDataBytes = max;
    for (const stream of this.#parked) this.#activate(stream);
    this.#parked.clear();
  }

  onMaxStreamData({ stream: id, max }: FrameOf<"max-stream-data">): void {
    const stream = this.#find(id);
    if (stream === undefined || max <= stream.send.maxOffset) return;
    stream.send.maxOffset = max;
    this.#activate(stream);
  }

  onMaxStreams(count: number): void {
    if (count <= this.#peerMaxStreams) return;
    this.#peerMaxStreams = count;
    this.#admitWaiting();
  }

  // --- what to send ---

  /** Window updates, RESET_STREAM, STOP_SENDING: small, and never held back by congestion. */
  fillControl(writer: PacketWriter, sent: SentFrame[], now: number, rttMs: number): void {
    if (writer.room < 2 * MAX_LIMIT_FRAME_BYTES) return;
    if (this.#window.isDue || this.#dataLimitLost) {
      this.#dataLimitLost = false;
      writer.frame({ kind: "max-data", max: this.#window.renew(now, rttMs) });
      sent.push({ kind: "max-data" });
    }
    if (this.#streamLimitIsDue || this.#streamLimitLost) {
      this.#streamLimitLost = false;
      this.#maxPeerStreams = Math.max(this.#maxPeerStreams, this.#peerClosed + this.#limits.maxStreams);
      writer.frame({ kind: "max-streams", count: this.#maxPeerStreams });
      sent.push({ kind: "max-streams" });
    }
    for (const stream of this.#control) {
      if (!this.#fillStreamControl(stream, writer, sent, now, rttMs)) return;
      if (stream.open !== "queued") this.#control.delete(stream);
    }
  }

  /** OPENs: they may be large, so they obey congestion control. @returns false when one did not fit */
  fillOpens(writer: PacketWriter, sent: SentFrame[]): boolean {
    for (const stream of this.#control) {
      if (stream.open !== "queued") continue;
      const { id, service, metadata } = stream;
      if (!writer.tryFrame({ kind: "open", stream: id, service, metadata })) return false;
      stream.open = "sent";
      sent.push({ kind: "open", stream });
      this.#control.delete(stream);
      if (stream.stop?.state === "queued" || stream.send.resetToSend) this.#control.add(stream);
      this.#activate(stream);
    }
    return true;
  }

  get hasOpens(): boolean {
    for (const stream of this.#control) if (stream.open === "queued") return true;
    return false;
  }

  get hasControl(): boolean {
    if (this.#window.isDue || this.#dataLimitLost) return true;
    if (this.#streamLimitIsDue || this.#streamLimitLost) return true;
    for (const stream of this.#control) if (stream.open !== "queued") return true;
    return false;
  }

  get #streamLimitIsDue(): boolean {
    const { maxStreams } = this.#limits;
    return this.#peerClosed + maxStreams - this.#maxPeerStreams > maxStreams / 2;
  }

  /** Is any stream queued that may have data to send? */
  get hasData(): boolean {
    return this.#scheduler.active > 0;
  }

  /**
   * Fills the packet with stream data up to `writer.limit`, by turns.
   *
   * @param isProbe put in one piece only: a probe must not be refused for what comes with it
   * @returns false when the data ran out before the packet was full
   */
  fillData(writer: PacketWriter, sent: SentFrame[], packetBytes: number, isProbe: boolean): boolean {
    this.#scheduler.setPacketBytes(packetBytes);
    for (;;) {
      const stream = this.#scheduler.next();
      if (stream === undefined) return false;
      const { send } = stream;
      const offset = send.nextOffset;
      const room = writer.room - streamHeaderBytes(stream.id, offset, Math.max(writer.room, 0));
      if (room < MIN_PIECE_BYTES) return true;
      const credit = this.#peerMaxDataBytes - this.#sentBytes;
      const piece = send.nextPiece(this.#scheduler.share(stream, room), credit);
      if (piece === undefined) {
        if (send.hasWork && !send.hasLost) {
          this.#parked.add(stream);
          this.#scheduler.park(stream);
        } else this.#scheduler.retire(stream);
        continue;
      }
      send.take(piece);
      writer.streamHeader(stream.id, piece.offset, piece.length, piece.fin);
      send.copy(writer.bytes, writer.offset, piece.offset, piece.length);
      writer.offset += piece.length;
      if (piece.isFresh) this.#sentBytes += piece.length;
      this.#scheduler.charge(stream, piece.length);
      sent.push({ kind: "stream", stream, offset: piece.offset, length: piece.length, fin: piece.fin });
      if (isProbe) return true;
    }
  }

  onFrameAcked(frame: SentFrame): void {
    if (frame.kind === "stream") {
      this.#bufferedBytes -= frame.stream.send.onAcked(frame.offset, frame.length, frame.fin);
      if (this.#sendReserveBytes > 0) this.#giveReserve(SURE_SEND_BYTES);
    } else if (frame.kind === "open") {
      frame.stream.onOpenAcked();
      // What was written or lost while the OPEN was to be said again waited for that.
      this.#activate(frame.stream);
    } else if (frame.kind === "reset") frame.stream.send.onResetAcked();
    else if (frame.kind === "stop" && frame.stream.stop) frame.stream.stop.state = "acked";
    if ("stream" in frame) this.#forgetIfDone(frame.stream);
  }

  onFrameLost(frame: SentFrame): void {
    switch (frame.kind) {
      case "max-data":
        this.#dataLimitLost = true;
        return;
      case "max-streams":
        this.#streamLimitLost = true;
        return;
      case "stream":
        frame.stream.send.onLost(frame.offset, frame.length, frame.fin);
        this.#activate(frame.stream);
        return;
      case "open":
        if (frame.stream.open === "sent") frame.stream.open = "queued";
        break;
      case "reset":
        frame.stream.send.onResetLost();
        break;
      case "stop":
        if (frame.stream.stop?.state === "sent") frame.stream.stop.state = "queued";
        break;
      case "max-stream-data":
        frame.stream.windowLost = true;
        break;
      default:
        return;
    }
    if (this.#streams.has(frame.stream.id)) this.#control.add(frame.stream);
  }

  /** Tells writers that were refused that there is room again. */
  wakeWriters(): void {
    for (const stream of this.#blockedWriters) {
      if (stream.send.isEnded) this.#blockedWriters.delete(stream);
      else if (this.#writeRoom(stream) >= this.#limits.maxUnsentBytes / 2) {
        this.#blockedWriters.delete(stream);
        stream.isWriterBlocked = false;
        this.#emit({ kind: "writable", stream: stream.id });
      }
    }
  }

  /** The peer is away for long, or back: whether little is buffered for it and promised to it, or as much as helps. */
  setSilent(isSilent: boolean): void {
    if (this.#isSilent === isSilent) return;
    this.#isSilent = isSilent;
    if (!isSilent) return this.#window.restore();
    this.#window.shrink();
    this.#giveReserve(0);
  }

  /** Frees everything: the session is closed. */
  clear(): void {
    this.#window.shrink();
    this.#budget?.give(this.#sendReserveBytes);
    this.#sendReserveBytes = 0;
    for (const stream of this.#streams.values()) this.#scheduler.remove(stream);
    for (const set of [this.#control, this.#parked, this.#blockedWriters]) set.clear();
    this.#waitingForCredit = [];
    this.#streams.clear();
    this.#bufferedBytes = 0;
    this.#reorderRanges = 0;
  }

  #fillStreamControl(
    stream: Stream,
    writer: PacketWriter,
    sent: SentFrame[],
    now: number,
    rttMs: number,
  ): boolean {
    const { id, send, stop } = stream;
    if (stream.windowIsDue && writer.room >= MAX_LIMIT_FRAME_BYTES) {
      stream.windowLost = false;
      writer.frame({ kind: "max-stream-data", stream: id, max: stream.receive.window.renew(now, rttMs) });
      sent.push({ kind: "max-stream-data", stream });
    } else if (stream.windowIsDue) return false;
    if (!stream.isAnnounced) return true; // its turn comes with the OPEN
    if (stop?.state === "queued") {
      if (!writer.tryFrame({ kind: "stop", stream: id, code: stop.code })) return false;
      stop.state = "sent";
      sent.push({ kind: "stop", stream });
    }
    const reset = send.resetToSend;
    if (reset) {
      if (!writer.tryFrame({ kind: "reset", stream: id, ...reset })) return false;
      send.onResetSent();
      sent.push({ kind: "reset", stream });
    }
    return true;
  }

  #create(id: number, isLocal: boolean): Stream {
    const { initialStreamWindowBytes, maxStreamWindowBytes } = this.#limits;
    const credit = this.#peerMaxStreamDataBytes;
    const stream = new Stream(id, isLocal, credit, initialStreamWindowBytes, maxStreamWindowBytes);
    this.#streams.set(id, stream);
    return stream;
  }

  #isLocal(id: number): boolean {
    return id % 2 === this.#localParity;
  }

  /**
   * The stream a frame is about; undefined when it is over. A peer's stream first heard of is made, its OPEN
   * being on the way.
   */
  #find(id: number): Stream | undefined {
    const known = this.#streams.get(id);
    if (known) return known;
    const index = Math.floor(id / 2);
    if (this.#isLocal(id)) {
      if (index >= this.#nextLocal)
        throw new PeerViolation("protocolViolation", "spoke of a stream nobody opened");
      return undefined;
    }
    if (this.#peerIndexes.contains(index)) return undefined;
    if (index >= this.#maxPeerStreams)
      throw new PeerViolation("resourceLimit", "opened more streams than allowed");
    this.#peerIndexes.add(index, index + 1);
    return this.#create(id, false);
  }

  /** Runs a change of a stream's receiving half and settles what it did to the session's window. */
  #settle(stream: Stream, change: () => void): void {
    const { receive } = stream;
    const consumed = receive.window.consumed;
    const ranges = receive.reorderRanges;
    const highest = receive.highest;
    change();
    this.#reorderRanges += receive.reorderRanges - ranges;
    this.#window.consumed += receive.window.consumed - consumed;
    this.#receivedBytes += receive.highest - highest;
    if (this.#receivedBytes > this.#window.limit)
      throw new PeerViolation("flowControl", "more data than the session's window allows");
  }

  #reset(stream: Stream, code: number): void {
    if (stream.send.isReset || stream.send.isDone) return;
    this.#bufferedBytes -= stream.send.reset(code);
    if (this.#sendReserveBytes > 0) this.#giveReserve(SURE_SEND_BYTES);
    this.#scheduler.remove(stream);
    this.#parked.delete(stream);
    this.#blockedWriters.delete(stream);
    this.#control.add(stream);
  }

  #activate(stream: Stream): void {
    if (!stream.send.hasWork || !this.#streams.has(stream.id)) return;
    if (!stream.isAnnounced) return; // its turn comes with the OPEN
    this.#parked.delete(stream);
    this.#scheduler.activate(stream);
  }

  #writeRoom(stream: Stream): number {
    const { maxUnsentBytes } = this.#limits;
    return Math.max(Math.min(maxUnsentBytes - stream.send.unsentBytes, this.#sendRoom(maxUnsentBytes)), 0);
  }

  /** Bytes that may be buffered now; the budget is asked when that is less than `wantedBytes`. */
  #sendRoom(wantedBytes: number): number {
    const { maxSendBufferBytes } = this.#limits;
    const sure = Math.min(SURE_SEND_BYTES, maxSendBufferBytes);
    const room = () => sure + this.#sendReserveBytes - this.#bufferedBytes;
    while (!this.#isSilent && room() < wantedBytes) {
      const step = Math.min(SEND_STEP_BYTES, maxSendBufferBytes - sure - this.#sendReserveBytes);
      if (step <= 0 || !(this.#budget?.take(step) ?? true)) break;
      this.#sendReserveBytes += step;
    }
    return room();
  }

  /** Gives back what the buffers don't need, but for `spareBytes`. */
  #giveReserve(spareBytes: number): void {
    const needed = Math.max(this.#bufferedBytes + spareBytes - SURE_SEND_BYTES, 0);
    const excess = this.#sendReserveBytes - Math.ceil(needed / SEND_STEP_BYTES) * SEND_STEP_BYTES;
    if (excess < SEND_STEP_BYTES) return;
    this.#sendReserveBytes -= excess;
    this.#budget?.give(excess);
  }

  /** Queues the OPENs the peer's stream limit has room for, in order. */
  #admitWaiting(): void {
    const fits = this.#waitingForCredit.filter(({ id }) => Math.floor(id / 2) < this.#peerMaxStreams);
    if (fits.length === 0) return;
    this.#waitingForCredit = this.#waitingForCredit.slice(fits.length);
    for (const stream of fits) {
      stream.open = "queued";
      this.#control.add(stream);
    }
  }

  #isKnown(stream: Stream): boolean {
    return stream.isLocal || stream.open === "done";
  }

  #tellReadable(stream: Stream): void {
    if (stream.isReadableTold || !this.#isKnown(stream) || !stream.receive.hasUnread) return;
    stream.isReadableTold = true;
    this.#emit({ kind: "readable", stream: stream.id });
  }

  #tellEnd(stream: Stream): void {
    if (stream.isEndTold || !this.#isKnown(stream) || !stream.receive.isDone) return;
    if (stream.receive.resetCode !== undefined) return;
    stream.isEndTold = true;
    this.#emit({ kind: "fin", stream: stream.id });
    this.#forgetIfDone(stream);
  }

  #tellReset(stream: Stream, code: number): void {
    if (stream.isEndTold || !this.#isKnown(stream)) return;
    stream.isEndTold = true;
    this.#emit({ kind: "reset", stream: stream.id, code });
  }

  #forgetIfDone(stream: Stream): void {
    if (!stream.isDone || !this.#streams.delete(stream.id)) return;
    this.#scheduler.remove(stream);
    for (const set of [this.#control, this.#parked, this.#blockedWriters]) set.delete(stream);
    if (stream.isLocal) this.#localCount--;
    else this.#peerClosed++;
    this.#emit({ kind: "stream-closed", stream: stream.id });
  }
}
