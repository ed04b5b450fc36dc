// One client's connection at the relay: handshake, reading frames, and the way out through its socket.
// Packets are passed on where they were read: a SendPacket becomes a RecvPacket in place, and neighbours that go to
// the same receiver leave in one write.
import { randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import {
  encodeFrame,
  FRAME,
  FrameDecoder,
  HEADER_BYTES,
  isDisco,
  KEY_BYTES,
  maxClientBodyBytes,
  NONCE_BYTES,
  PACKET_OVERHEAD_BYTES,
  PROTOCOL_VERSION,
  turnSendIntoRecv,
} from "../../mesh/wire/derp.ts";
import { MeshError, WireError } from "../../mesh/wire/errors.ts";
import { openClientInfo, sealServerInfo } from "../box.ts";
import type { DerpLimits } from "./limits.ts";
import { FairQueue } from "./queue.ts";
import type { Relay, RelayClient } from "./relay.ts";

/** What a connection needs of its server. */
export interface Host {
  readonly limits: DerpLimits;
  readonly privateKey: Uint8Array;
  readonly relay: Relay<Connection>;
  readonly counters: Counters;
  /** Text of the current problem, empty when healthy. */
  readonly health: string;
  now(): number;
  /** May the proven key come in? */
  admit(connection: Connection): boolean | Promise<boolean>;
  /** The held bytes of an unproven connection changed. @returns false when there are too many */
  reserve(bytes: number): boolean;
  /** The handshake is over, well or not. */
  proven(connection: Connection): void;
  /** Sends the notices the core has collected. */
  deliverNotices(): void;
  closed(connection: Connection, error: Error | undefined): void;
}

export interface Counters {
  accepts: number;
  refused: number;
  bytesReceived: number;
  bytesSent: number;
  packetsReceived: number;
  packetsSent: number;
  droppedUnknownDestination: number;
  droppedGone: number;
  droppedQueueHead: number;
  gotPing: number;
  sentPong: number;
  writeTimeouts: number;
  protocolErrors: number;
}

/** Most that lies in one write: its time limit must not depend on how much waits. */
const BATCH_BYTES = 128 << 10;
/** Control frames that may wait for a receiver's socket; each under 1 KiB. */
const MAX_WAITING_CONTROL = 256;

type State = "handshake" | "admitting" | "open" | "closed";

export class RelayRefusal extends MeshError {
  readonly code: "ERR_RELAY_LIMIT" | "ERR_RELAY_NOT_ADMITTED" | "ERR_RELAY_TIMEOUT";
  constructor(code: RelayRefusal["code"], message: string) {
    super(message);
    this.code = code;
  }
}

export class Connection {
  readonly remoteAddress: string;
  readonly headers: Record<string, string | string[] | undefined>;
  readonly startedAt: number;
  state: State = "handshake";
  key: Uint8Array | undefined;
  client: RelayClient<Connection> | undefined;
  keepAliveEveryMs = Number.POSITIVE_INFINITY;
  nextKeepAliveAt = Number.POSITIVE_INFINITY;
  /** Since when the socket has not taken what was written; undefined when it took all. */
  blockedAt: number | undefined;

  #host: Host;
  #socket: Duplex;
  #decoder = new FrameDecoder(maxClientBodyBytes);
  #reserved = 0;
  #shared: Uint8Array | undefined;
  #notHereForAll = false;
  #queue: FairQueue<RelayClient<Connection>>;
  #control: Uint8Array[] = [];
  #pongWaiting = false;
  /** Neighbouring packets to one receiver, in one buffer, not yet passed on. */
  #run:
    | { to: RelayClient<Connection>; buffer: Uint8Array; start: number; end: number; frames: number }
    | undefined;

  constructor(
    host: Host,
    socket: Duplex,
    from: { remoteAddress: string; headers: Record<string, string | string[] | undefined> },
  ) {
    this.#host = host;
    this.#socket = socket;
    this.remoteAddress = from.remoteAddress;
    this.headers = from.headers;
    this.startedAt = host.now();
    this.#queue = new FairQueue(host.limits.queue);
  }

  /** Sends `greeting` and reads; `head`: bytes that came behind the request. */
  start(greeting: Uint8Array, head: Uint8Array): void {
    this.#socket.on("error", (error) => this.close(error));
    this.#socket.on("end", () => this.close());
    this.#socket.on("close", () => this.close());
    this.#write(greeting);
    if (head.length > 0) this.#read(head);
    if (this.state !== "closed") this.#socket.on("data", (chunk: Uint8Array) => this.#read(chunk));
  }

  get queuedBytes(): number {
    return this.#queue.bytes;
  }

  /** Ends the connection at once. Harmless when it has ended. */
  close(error?: Error): void {
    if (this.state === "closed") return;
    const handshake = this.state !== "open";
    this.state = "closed";
    this.#socket.destroy();
    this.#host.reserve(-this.#reserved);
    this.#reserved = 0;
    this.#host.counters.droppedGone += this.#queue.frames;
    this.#host.counters.droppedQueueHead += this.#queue.droppedFrames;
    if (handshake) this.#host.proven(this);
    if (this.client) this.#host.relay.remove(this.client);
    this.#host.closed(this, error);
    this.#host.deliverNotices();
  }

  /** Sends `last` and ends the writing side; the socket closes when the client does. */
  end(last: Uint8Array): void {
    if (this.state === "closed") return;
    if (this.state === "open") this.#socket.end(last);
    else this.close();
  }

  /** Sends a small frame of our own, before any packet that waits. */
  sendControl(frame: Uint8Array): void {
    if (this.state !== "open") return;
    if (this.blockedAt === undefined) this.#write(frame);
    else if (this.#control.length < MAX_WAITING_CONTROL) this.#control.push(frame);
  }

  /** Passes on `frames` whole RecvPackets from `source`. Never waits. */
  sendPackets(source: RelayClient<Connection>, bytes: Uint8Array, frames: number): void {
    const { counters } = this.#host;
    counters.packetsSent += frames;
    counters.bytesSent += bytes.length - frames * PACKET_OVERHEAD_BYTES;
    if (this.blockedAt === undefined) this.#write(bytes);
    else this.#queue.push(source, bytes, frames, this.#host.now());
  }

  get droppedFrames(): number {
    return this.#queue.droppedFrames;
  }

  #write(bytes: Uint8Array): void {
    this.#socket.write(bytes, this.#onWritten);
    this.#noteBlocked();
  }

  #noteBlocked(): void {
    // Node hands a write to the kernel at once; what is left over shows as writableLength.
    if (this.#socket.writableLength > 0 && this.blockedAt === undefined) this.blockedAt = this.#host.now();
  }

  #onWritten = (): void => {
    if (this.blockedAt === undefined || this.#socket.writableLength > 0) return;
    this.blockedAt = undefined;
    let more = true;
    while (more && this.state === "open" && this.blockedAt === undefined) more = this.#flushBatch();
  };

  /** @returns whether there was anything to send */
  #flushBatch(): boolean {
    let bytes = 0;
    this.#socket.cork();
    for (const frame of this.#control) {
      this.#socket.write(frame, this.#onWritten);
      bytes += frame.length;
    }
    this.#control.length = 0;
    this.#pongWaiting = false;
    while (bytes < BATCH_BYTES) {
      const packets = this.#queue.shift();
      if (!packets) break;
      this.#socket.write(packets, this.#onWritten);
      bytes += packets.length;
    }
    this.#socket.uncork();
    this.#noteBlocked();
    return bytes > 0;
  }

  #read(chunk: Uint8Array): void {
    if (this.state === "closed") return;
    // Not a Buffer, whose slice() is a view: what is kept must be a copy.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length);
    try {
      const rest = this.#decoder.push(bytes, this.#onFrame);
      this.#passOn();
      if (this.state === "handshake") this.#hold(this.#decoder.pendingBytes);
      if (rest && this.#is("admitting")) this.#enter(rest);
      else this.#host.deliverNotices();
    } catch (error) {
      if (!(error instanceof WireError || error instanceof RelayRefusal)) throw error;
      this.#passOn();
      this.#host.counters.protocolErrors++;
      this.close(error);
    }
  }

  #hold(bytes: number): void {
    const more = bytes - this.#reserved;
    this.#reserved = bytes;
    if (more !== 0 && !this.#host.reserve(more))
      throw new RelayRefusal("ERR_RELAY_LIMIT", "connections in handshake hold too much memory");
  }

  #onFrame = (type: number, buffer: Uint8Array, start: number, end: number): boolean => {
    if (this.state === "open") {
      if (type === FRAME.sendPacket) this.#packet(buffer, start, end);
      else this.#frame(type, buffer, start, end);
      // Closing one receiver may close this connection too (it may send to itself).
      return this.#is("open");
    }
    if (type !== FRAME.clientInfo)
      throw new WireError("ERR_UNEXPECTED_FRAME", `frame 0x${type.toString(16)} before ClientInfo`);
    const { key, info, shared } = openClientInfo(
      buffer.subarray(start + HEADER_BYTES, end),
      this.#host.privateKey,
    );
    this.key = key;
    this.#shared = shared;
    this.#notHereForAll = info.peerGoneForAll ?? false;
    this.state = "admitting";
    return false;
  };

  #is(state: State): boolean {
    return this.state === state;
  }

  /** The key is proven: asks for admission and goes on with `rest`, the bytes behind ClientInfo. */
  #enter(rest: Uint8Array): void {
    const answer = this.#host.admit(this);
    if (typeof answer === "boolean") {
      this.#admitted(answer, rest);
      return;
    }
    this.#socket.pause(); // what the client sends meanwhile waits in its own socket
    this.#hold(rest.length);
    answer.then(
      (yes) => {
        if (this.state !== "admitting") return;
        this.#admitted(yes, rest);
        this.#socket.resume();
      },
      () => this.#admitted(false, rest),
    );
  }

  #admitted(yes: boolean, rest: Uint8Array): void {
    if (this.state !== "admitting") return;
    const host = this.#host;
    if (!yes || host.relay.connections >= host.limits.clients) {
      this.close(
        yes
          ? new RelayRefusal("ERR_RELAY_LIMIT", "the relay is full")
          : new RelayRefusal("ERR_RELAY_NOT_ADMITTED", "the node key is not admitted to this relay"),
      );
      return;
    }
    host.reserve(-this.#reserved);
    this.#reserved = 0;
    this.state = "open";
    const now = host.now();
    const keyText = Buffer.from(this.key!).toString("latin1");
    const { client, evicted } = host.relay.add(this, keyText, { notHereForAll: this.#notHereForAll }, now);
    this.client = client;
    host.proven(this);
    this.#write(sealServerInfo({ version: PROTOCOL_VERSION }, this.#shared!, randomBytes(NONCE_BYTES)));
    this.#shared = undefined;
    if (host.health) this.sendControl(encodeFrame({ kind: "health", problem: host.health }));
    evicted?.handle.close(new RelayRefusal("ERR_RELAY_LIMIT", "too many connections with one key"));
    if (rest.length > 0) this.#read(rest);
  }

  #packet(buffer: Uint8Array, start: number, end: number): void {
    const { relay, counters } = this.#host;
    const client = this.client!;
    const dataAt = start + PACKET_OVERHEAD_BYTES;
    if (end < dataAt) throw new WireError("ERR_FRAME_TRUNCATED", "SendPacket without a destination");
    relay.touch(client);
    counters.packetsReceived++;
    counters.bytesReceived += end - dataAt;
    const key = latin1(buffer, start + HEADER_BYTES);
    const to = relay.route(client, key);
    if (!to) {
      counters.droppedUnknownDestination++;
      relay.missing(client, key, isDisco(buffer, dataAt, end), this.#host.now());
      return;
    }
    turnSendIntoRecv(buffer, start, this.key!);
    const run = this.#run;
    if (run && run.to === to && run.buffer === buffer && run.end === start) {
      run.end = end;
      run.frames++;
      return;
    }
    this.#passOn();
    this.#run = { to, buffer, start, end, frames: 1 };
  }

  #passOn(): void {
    const run = this.#run;
    if (!run) return;
    this.#run = undefined;
    if (!run.to.gone)
      run.to.handle.sendPackets(this.client!, run.buffer.subarray(run.start, run.end), run.frames);
    else this.#host.counters.droppedGone += run.frames;
  }

  /** Frames that are no packets. */
  #frame(type: number, buffer: Uint8Array, start: number, end: number): void {
    const { relay, counters } = this.#host;
    const body = buffer.subarray(start + HEADER_BYTES, end);
    relay.touch(this.client!);
    switch (type) {
      case FRAME.notePreferred:
        if (body.length !== 1) throw new WireError("ERR_FRAME_TRUNCATED", "NotePreferred is not 1 byte long");
        relay.setHome(this.client!, body[0] === 1);
        return;
      case FRAME.ping:
        if (body.length < 8) throw new WireError("ERR_FRAME_TRUNCATED", "Ping shorter than 8 bytes");
        counters.gotPing++;
        if (this.#pongWaiting) return; // one waits at most: pings are no way to fill our memory
        this.#pongWaiting = this.blockedAt !== undefined;
        counters.sentPong++;
        this.sendControl(encodeFrame({ kind: "pong", data: body.subarray(0, 8) }));
        return;
      case FRAME.forwardPacket:
      case FRAME.watchConns:
      case FRAME.closePeer:
        throw new WireError("ERR_UNEXPECTED_FRAME", "frames between servers need the mesh key");
      default: // unknown, or one that only servers send: skipped, so that versions can mix
    }
  }
}

function latin1(buffer: Uint8Array, at: number): string {
  return Buffer.from(buffer.buffer, buffer.byteOffset + at, KEY_BYTES).toString("latin1");
}
