// One client's connection at the relay: handshake, reading frames, and the way out through its socket.
// Packets are passed on where they were read: a SendPacket becomes a RecvPacket in place, and neighbours that go to
// the same receiver leave in one write.
import { randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import { concatBytes, equalBytes } from "../../mesh/wire/bytes.ts";
import {
  type ClientInfo,
  decodeFrame,
  encodeFrame,
  FRAME,
  FrameDecoder,
  HEADER_BYTES,
  isDisco,
  KEY_BYTES,
  maxClientBodyBytes,
  NONCE_BYTES,
  PACKET_OVERHEAD_BYTES,
  PEER_GONE,
  PRESENT,
  PROTOCOL_VERSION,
  turnForwardIntoRecv,
  turnSendIntoRecv,
} from "../../mesh/wire/derp.ts";
import { MeshError, WireError } from "../../mesh/wire/errors.ts";
import { mapIp, parseIp } from "../../mesh/wire/ip.ts";
import { openClientInfo, sealServerInfo } from "../box.ts";
import type { Subject } from "./admission.ts";
import type { DerpLimits } from "./limits.ts";
import type { MeshPeer } from "./mesh-peer.ts";
import type { Counters } from "./metrics.ts";
import { Outlet } from "./outlet.ts";
import type { Rate, TokenBucket } from "./rate.ts";
import { type KeyText, MAX_UPDATES, type Peer, type Relay, type RelayClient } from "./relay.ts";

export type Client = RelayClient<Connection, MeshPeer>;

/** What a connection needs of its server. */
export interface Host {
  readonly limits: DerpLimits;
  readonly privateKey: Uint8Array;
  readonly publicKey: Uint8Array;
  readonly relay: Relay<Connection, MeshPeer>;
  readonly counters: Counters;
  /** Text of the current problem, empty when healthy. */
  readonly health: string;
  now(): number;
  /** Compares in constant time. */
  isMeshKey(meshKey: string): boolean;
  /** May the proven key come in? It may set `subject`. Servers of the region are not asked about. */
  admit(connection: Connection): boolean | Promise<boolean>;
  /** What bounds how fast an admitted connection may send; the first is its own. */
  bucketsOf(connection: Connection): TokenBucket[];
  /** A sibling says a key was revoked: ends its connections and voids its tickets. */
  revoke(key: Uint8Array): void;
  /** The held bytes of an unproven connection changed. @returns false when there are too many */
  reserve(bytes: number): boolean;
  /** The handshake is over, well or not. */
  proven(connection: Connection): void;
  /** Sends the notices the core has collected. */
  deliverNotices(): void;
  closed(connection: Connection, error: Error | undefined): void;
}

/** Where a connection came from. */
export interface Origin {
  remoteAddress: string;
  remotePort: number | undefined;
  /** Of the upgrade request. */
  headers: Record<string, string | string[] | undefined>;
  /** Base64 of a relay ticket, as it came. */
  ticket: string | undefined;
}

/** Siblings are far away at times and carry the packets of many. */
const MESH_WRITE_TIMEOUT_MS = 30_000;
/** Changes told to a watcher in one write. */
const UPDATE_BATCH = 512;
/** A timer's longest sleep; then the rate is looked at again. */
const MAX_PAUSE_MS = 60_000;

type State = "handshake" | "admitting" | "open" | "closed";

export class RelayRefusal extends MeshError {
  readonly code: "ERR_RELAY_LIMIT" | "ERR_RELAY_NOT_ADMITTED" | "ERR_RELAY_TIMEOUT";
  constructor(code: RelayRefusal["code"], message: string) {
    super(message);
    this.code = code;
  }
}

export class Connection {
  readonly origin: Origin;
  readonly startedAt: number;
  state: State = "handshake";
  key: Uint8Array | undefined;
  /** Another server of the region. */
  isMesh = false;
  client: Client | undefined;
  subject: Subject | undefined;
  keepAliveEveryMs = Number.POSITIVE_INFINITY;
  nextKeepAliveAt = Number.POSITIVE_INFINITY;

  #host: Host;
  #socket: Duplex;
  #decoder = new FrameDecoder(maxClientBodyBytes);
  #reserved = 0;
  #shared: Uint8Array | undefined;
  #info: ClientInfo | undefined;
  #outlet: Outlet<Client | Peer<Connection, MeshPeer>>;
  /** A pong waits since this flush of the outlet. */
  #pongSince = -1;
  #buckets: TokenBucket[] = [];
  /** Set while a rate limit keeps us from reading. */
  #pause: NodeJS.Timeout | undefined;
  /** Neighbouring packets to one receiver, in one buffer, not yet passed on. */
  #run:
    | { to: Client; buffer: Uint8Array; start: number; end: number; frames: number; disco: number }
    | undefined;

  constructor(host: Host, socket: Duplex, origin: Origin) {
    this.#host = host;
    this.#socket = socket;
    this.origin = origin;
    this.startedAt = host.now();
    this.#outlet = new Outlet(socket, host.limits.queue, host.counters, () => host.now());
  }

  /** Sends `greeting` and reads; `head`: bytes that came behind the request. */
  start(greeting: Uint8Array, head: Uint8Array): void {
    this.#socket.on("error", (error) => this.close(error));
    this.#socket.on("end", () => this.close());
    this.#socket.on("close", () => this.close());
    this.#outlet.control(greeting);
    if (head.length > 0) this.#read(head);
    if (this.state !== "closed") this.#socket.on("data", (chunk: Uint8Array) => this.#read(chunk));
  }

  /** Base64 of the relay ticket it came with, at the upgrade or in ClientInfo. */
  get ticket(): string | undefined {
    return this.origin.ticket ?? this.#info?.ticket;
  }

  get queuedBytes(): number {
    return this.#outlet.queuedBytes;
  }

  get blockedAt(): number | undefined {
    return this.#outlet.blockedAt;
  }

  get writeTimeoutMs(): number {
    const { writeTimeoutMs } = this.#host.limits;
    return this.isMesh ? Math.max(MESH_WRITE_TIMEOUT_MS, writeTimeoutMs) : writeTimeoutMs;
  }

  /** Ends the connection at once. Harmless when it has ended. */
  close(error?: Error): void {
    if (this.state === "closed") return;
    const handshake = this.state !== "open";
    this.state = "closed";
    clearTimeout(this.#pause);
    this.#pause = undefined;
    this.#socket.destroy();
    this.#host.reserve(-this.#reserved);
    this.#reserved = 0;
    const timedOut = error instanceof RelayRefusal && error.code === "ERR_RELAY_TIMEOUT";
    this.#outlet.close(timedOut ? "write_error" : "gone_disconnected");
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
    if (this.state === "open") this.#outlet.control(frame);
  }

  /** Passes on `frames` whole RecvPackets, `disco` of them path discovery. Never waits. */
  sendPackets(
    source: Client | Peer<Connection, MeshPeer>,
    bytes: Uint8Array,
    frames: number,
    disco: number,
  ): void {
    this.#outlet.packets(source, bytes, frames, disco);
  }

  /** The core has something to tell this watcher. */
  sendUpdates(): void {
    if (this.state !== "open") return;
    if (this.client!.updates!.size > MAX_UPDATES)
      this.close(new RelayRefusal("ERR_RELAY_LIMIT", "the sibling does not read what it watches"));
    else this.#outlet.pull();
  }

  /** Rates were changed, ours is now `perClient`: a connection that waits may have to wait less, or longer. */
  ratesChanged(perClient: Rate): void {
    this.#buckets[0]?.configure(perClient, this.#host.now());
    if (this.#pause) this.#readAgain();
  }

  #read(chunk: Uint8Array): void {
    if (this.state === "closed") return;
    // Not a Buffer, whose slice() is a view: what is kept must be a copy.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length);
    try {
      const rest = this.#decoder.push(bytes, this.#onFrame);
      this.#passOn();
      if (this.state === "handshake") this.#hold(this.#decoder.pendingBytes);
      else if (this.#buckets.length > 0 && this.#is("open")) this.#charge(bytes.length);
      if (rest && this.#is("admitting")) this.#enter(rest);
      else this.#host.deliverNotices();
    } catch (error) {
      if (!(error instanceof WireError || error instanceof RelayRefusal)) throw error;
      this.#passOn();
      this.#host.counters.hot.protocolErrors++;
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
    this.#info = info;
    this.isMesh = info.meshKey !== undefined && this.#host.isMeshKey(info.meshKey);
    this.state = "admitting";
    return false;
  };

  #is(state: State): boolean {
    return this.state === state;
  }

  /** The key is proven: asks for admission and goes on with `rest`, the bytes behind ClientInfo. */
  #enter(rest: Uint8Array): void {
    const answer = this.isMesh || this.#host.admit(this);
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
        if (!this.#pause) this.#socket.resume();
      },
      () => this.#admitted(false, rest),
    );
  }

  #admitted(yes: boolean, rest: Uint8Array): void {
    if (this.state !== "admitting") return;
    const host = this.#host;
    if (!yes) host.counters.hot.notAdmitted++;
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
    this.#buckets = this.isMesh ? [] : host.bucketsOf(this);
    const { client, evicted } = host.relay.add(this, latin1(this.key!, 0), this.#traits(), now);
    this.client = client;
    this.#info = undefined;
    host.proven(this);
    const info = sealServerInfo({ version: PROTOCOL_VERSION }, this.#shared!, randomBytes(NONCE_BYTES));
    this.#outlet.control(info);
    this.#shared = undefined;
    if (host.health) this.sendControl(encodeFrame({ kind: "health", problem: host.health }));
    evicted?.handle.close(new RelayRefusal("ERR_RELAY_LIMIT", "too many connections with one key"));
    if (rest.length > 0) this.#read(rest);
    else host.deliverNotices();
  }

  #traits() {
    const { remoteAddress, remotePort, headers } = this.origin;
    const ip = parseIp(remoteAddress);
    const flags =
      (this.isMesh ? PRESENT.meshPeer : 0) |
      (this.#info?.isProber ? PRESENT.prober : 0) |
      (headers["ideal-node"] === undefined ? 0 : PRESENT.notIdeal);
    return {
      notHereForAll: this.#info?.peerGoneForAll ?? false,
      isMesh: this.isMesh,
      address: ip && mapIp(ip),
      port: remotePort,
      flags: flags || PRESENT.regular,
    };
  }

  /** Pays for what was read, and reads no more until it is paid. Nothing is dropped: TCP holds the sender back. */
  #charge(bytes: number): void {
    const now = this.#host.now();
    let waitMs = 0;
    for (const bucket of this.#buckets) waitMs = Math.max(waitMs, bucket.take(bytes, now));
    if (waitMs <= 0) return;
    this.#host.counters.hot.rateLimitWaited++;
    this.#pauseFor(waitMs);
  }

  #pauseFor(waitMs: number): void {
    this.#socket.pause();
    clearTimeout(this.#pause);
    this.#pause = setTimeout(() => this.#readAgain(), Math.min(Math.ceil(waitMs), MAX_PAUSE_MS));
  }

  #readAgain(): void {
    const now = this.#host.now();
    const waitMs = Math.max(...this.#buckets.map((bucket) => bucket.waitMs(now)));
    if (waitMs > 0) return this.#pauseFor(waitMs);
    clearTimeout(this.#pause);
    this.#pause = undefined;
    if (this.state === "open") this.#socket.resume();
  }

  #packet(buffer: Uint8Array, start: number, end: number): void {
    const { relay, counters } = this.#host;
    const { hot } = counters;
    const client = this.client!;
    const dataAt = start + PACKET_OVERHEAD_BYTES;
    if (end < dataAt) throw new WireError("ERR_FRAME_TRUNCATED", "SendPacket without a destination");
    relay.touch(client);
    const disco = isDisco(buffer, dataAt, end) ? 1 : 0;
    hot.packetsReceived++;
    hot.packetsReceivedDisco += disco;
    hot.bytesReceived += end - dataAt;
    const key = latin1(buffer, start + HEADER_BYTES);
    const to = relay.route(client, key);
    if (!to) {
      this.#forward(key, buffer, start, end, disco);
      return;
    }
    turnSendIntoRecv(buffer, start, this.key!);
    const run = this.#run;
    if (run && run.to === to && run.buffer === buffer && run.end === start) {
      run.end = end;
      run.frames++;
      run.disco += disco;
      return;
    }
    this.#passOn();
    this.#run = { to, buffer, start, end, frames: 1, disco };
  }

  /** The key is not here: a sibling may have it. */
  #forward(key: KeyText, buffer: Uint8Array, start: number, end: number, disco: number): void {
    const { relay, counters } = this.#host;
    const client = this.client!;
    const forwarder = relay.forwarder(key);
    if (forwarder) {
      counters.hot.packetsForwardedOut++;
      forwarder.forward(client, this.key!, buffer.subarray(start, end), disco);
      return;
    }
    const bytes = end - start - PACKET_OVERHEAD_BYTES;
    counters.dropped("unknown_dest", { frames: 1, disco, bytes });
    relay.missing(client, key, disco === 1, this.#host.now());
  }

  /** A packet that a sibling passes on to us; never passed on to another one. */
  #forwarded(buffer: Uint8Array, start: number, end: number): void {
    const { relay, counters } = this.#host;
    const srcAt = start + HEADER_BYTES;
    const dataAt = srcAt + 2 * KEY_BYTES;
    if (end < dataAt) throw new WireError("ERR_FRAME_TRUNCATED", "ForwardPacket without two keys");
    const disco = isDisco(buffer, dataAt, end) ? 1 : 0;
    counters.hot.packetsForwardedIn++;
    const dst = latin1(buffer, srcAt + KEY_BYTES);
    const found = relay.routeForwarded(latin1(buffer, srcAt), dst);
    if (!found) {
      counters.dropped("unknown_dest_on_fwd", { frames: 1, disco, bytes: end - dataAt });
      // Tells the sibling that what it believes of this key is out of date.
      relay.missing(this.client!, dst, disco === 1, this.#host.now());
      return;
    }
    this.#passOn();
    const at = turnForwardIntoRecv(buffer, start, end);
    found.to.handle.sendPackets(found.source ?? this.client!, buffer.subarray(at, end), 1, disco);
  }

  #passOn(): void {
    const run = this.#run;
    if (!run) return;
    this.#run = undefined;
    const { to, buffer, start, end, frames, disco } = run;
    if (!to.gone) to.handle.sendPackets(this.client!, buffer.subarray(start, end), frames, disco);
    else {
      const bytes = end - start - frames * PACKET_OVERHEAD_BYTES;
      this.#host.counters.dropped("gone_disconnected", { frames, disco, bytes });
    }
  }

  /** Frames that are no packets. */
  #frame(type: number, buffer: Uint8Array, start: number, end: number): void {
    const { relay, counters } = this.#host;
    const body = buffer.subarray(start + HEADER_BYTES, end);
    relay.touch(this.client!);
    switch (type) {
      case FRAME.notePreferred:
        if (body.length !== 1) throw new WireError("ERR_FRAME_TRUNCATED", "NotePreferred is not 1 byte long");
        relay.setHome(this.client!, body[0] === 1, this.#host.now());
        return;
      case FRAME.ping:
        if (body.length < 8) throw new WireError("ERR_FRAME_TRUNCATED", "Ping shorter than 8 bytes");
        counters.hot.gotPing++;
        // One pong waits at most: pings are no way to fill our memory.
        if (this.#outlet.blockedAt !== undefined && this.#pongSince === this.#outlet.flushes) return;
        this.#pongSince = this.#outlet.flushes;
        counters.hot.sentPong++;
        this.sendControl(encodeFrame({ kind: "pong", data: body.subarray(0, 8) }));
        return;
      case FRAME.pong:
        return;
      case FRAME.forwardPacket:
        this.#needMesh();
        this.#forwarded(buffer, start, end);
        return;
      case FRAME.watchConns:
        this.#needMesh();
        this.#watch();
        return;
      case FRAME.closePeer: {
        this.#needMesh();
        const frame = decodeFrame(type, body);
        if (frame.kind !== "closePeer") return;
        this.#host.revoke(frame.key);
        return;
      }
      default: // one that only servers send, or a client of another version: skipped, so that versions can mix
        counters.hot.unknownFrames++;
    }
  }

  #needMesh(): void {
    if (!this.isMesh) throw new WireError("ERR_UNEXPECTED_FRAME", "frames between servers need the mesh key");
  }

  #watch(): void {
    // A server that dialled itself through some address: it knows its own clients.
    if (equalBytes(this.key!, this.#host.publicKey)) return;
    const { relay, counters } = this.#host;
    const client = this.client!;
    this.#outlet.more = () => {
      const updates = relay.takeUpdates(client, UPDATE_BATCH);
      if (updates.length === 0) return undefined;
      counters.meshBatch.add(updates.length);
      return concatBytes(
        ...updates.map(({ key: text, presence }) => {
          const key = Buffer.from(text, "latin1");
          return presence
            ? encodeFrame({ kind: "peerPresent", key, ...presence })
            : encodeFrame({ kind: "peerGone", key, reason: PEER_GONE.disconnected });
        }),
      );
    };
    relay.watch(client);
  }
}

function latin1(buffer: Uint8Array, at: number): string {
  return Buffer.from(buffer.buffer, buffer.byteOffset + at, KEY_BYTES).toString("latin1");
}
