import { randomBytes } from "node:crypto";
import { fromBase64, toBase64 } from "../wire/bytes.ts";
import {
  CLOSE_CODES,
  CLOSE_NUMBER,
  type CloseName,
  encodeClosePacket,
  MAX_PACKET_BYTES,
  peekHello,
  peekTag,
  readHeader,
} from "../wire/session.ts";
import { type Grant, isPermitted, type VerifySignature } from "../wire/signed.ts";
import { ByteReader } from "../wire/varint.ts";
import { WireGuardDevice } from "../wireguard/device.ts";
import { Admission, isUnrenewed } from "./admission.ts";
import type { Coordinator } from "./coordinator.ts";
import { nodeCrypto } from "./crypto.ts";
import { Dialer, type DialerHost, type Place } from "./dialer.ts";
import { type LinkHost, SessionLink } from "./link.ts";
import type { Relay } from "./relay.ts";
import { MeshNodeError, type MeshStream, STREAM_CODES } from "./stream.ts";
import { withDeadline } from "./wait.ts";

export { MeshNodeError, MeshStream } from "./stream.ts";

export interface MeshLogger {
  debug(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** Who opened a stream: the session's peer, and the grant that let it in. */
export interface StreamPeer {
  nodeKey: string;
  grant: Grant;
}
export type StreamHandler = (stream: MeshStream, peer: StreamPeer) => void;

export interface MeshNodeOptions {
  role: "client" | "agent";
  /** 32 bytes; see `newIdentity`. */
  privateKey: Uint8Array;
  relay: Relay;
  coordinator: Coordinator;
  verify: VerifySignature;
  logger?: MeshLogger;
  /** Unix ms; Date.now by default. */
  wallClockMs?: () => number;
}

export interface DialOptions {
  /** Up to 16,384 bytes, with the stream's first packet. */
  metadata?: Uint8Array;
  signal?: AbortSignal;
  /** Told when the dial waits for something a person may wonder about. */
  onWait?: (what: "agent") => void;
}

/** How a peer is reached now. */
export interface PathInfo {
  kind: "relay";
  region: number;
}

/** A fresh identity. `privateKey`: 32 bytes, never logged; `nodeKey`: base64. */
export function newIdentity(): { privateKey: Uint8Array; nodeKey: string } {
  const privateKey = new Uint8Array(randomBytes(32));
  return { privateKey, nodeKey: toBase64(nodeCrypto.keyPair(privateKey).publicKey) };
}

/** How long an agent keeps a session that fell silent, unless the client asked for another time. */
const RESUME_WINDOW_MS = 300_000;
const MAX_RESUME_WINDOW_MS = 24 * 3_600_000;
/** A client says something at least this often, so that the agent can tell silence from absence. */
const KEEPALIVE_MS = 20_000;
/** Time for the first answer of an agent that should be there. */
const ANSWER_TIMEOUT_MS = 30_000;
const NO_ANSWER = `the agent did not answer within ${ANSWER_TIMEOUT_MS / 1000} s`;
const PING_TIMEOUT_MS = 5_000;
/** Sessions a node keeps; each holds at most its windows. */
const MAX_LINKS = 4096;
/** Sessions of one peer; a client opens one and perhaps its successor. */
const MAX_LINKS_PER_PEER = 4;
const SWEEP_MS = 2_000;
/** The wall clock ran on by this much more than the monotonic one: the machine slept. */
const SLEPT_MS = 2_000;
/** A relay that does not have the peer is tried again after this, then more slowly, then for long-gone peers. */
const ABSENT_RETRY_MS = [250, 500, ...Array<number>(60).fill(1_000), 5_000];
/** How long close() waits for what was written to arrive. */
const DELIVER_MS = 2_000;

/** A remote node: its key, the relay region it is heard in, and the sessions held with it. */
interface Peer {
  key: Uint8Array;
  name: string;
  region: number;
  /** Number of the lane over the relay, new after each loss of its connection; undefined while there is none. */
  lane: number | undefined;
  links: Map<number, SessionLink>;
  /** How often in a row the relay did not have the peer, and when it is tried again. */
  absences: number;
  retry: NodeJS.Timeout | undefined;
}

/**
 * A node of the mesh: dials services of agents, or lets clients open its own. Owns the WireGuard device and the
 * sessions; the relay and the coordinator are given and closed with it.
 */
export class MeshNode implements LinkHost, DialerHost {
  readonly nodeKey: string;
  readonly #options: MeshNodeOptions;
  readonly #device: WireGuardDevice;
  readonly #peers = new Map<string, Peer>();
  readonly #dialer: Dialer;
  readonly #admission: Admission;
  readonly #services = new Map<string, StreamHandler>();
  readonly #dirty = new Set<SessionLink>();
  readonly #sweeper: NodeJS.Timeout;
  #nextLane = 1;
  #flushing = false;
  #scheduled = false;
  #deviceTimer: NodeJS.Timeout | undefined;
  #deviceTimerAt = Number.POSITIVE_INFINITY;
  /** Wall clock minus monotonic clock. */
  #clockOffsetMs: number;
  #closing: Promise<void> | undefined;
  #onDelivered: (() => void) | undefined;
  #closed = false;

  constructor(options: MeshNodeOptions) {
    this.#options = options;
    this.#device = new WireGuardDevice({
      privateKey: options.privateKey,
      crypto: nodeCrypto,
      randomBytes: (count) => new Uint8Array(randomBytes(count)),
      acceptUnknown: options.role === "agent",
    });
    this.nodeKey = toBase64(this.#device.publicKey);
    const { relay, coordinator } = options;
    this.#dialer = new Dialer(this, coordinator);
    this.#admission = new Admission(coordinator, options.verify);
    this.#clockOffsetMs = this.#wallClockMs() - this.now();
    relay.onPacket = ({ src, region, data }) => {
      if (this.#closed) return;
      this.#device.receive(data, { key: `${region} ${toBase64(src)}` }, this.now(), this.#wallClockMs());
      this.#performDevice();
    };
    relay.onState = ({ region, connected }) => this.#onRelay(region, connected);
    relay.onDrain = (region) => this.#scheduleRegion(region);
    relay.onPeerGone = (peer, region) => this.#onAbsent(peer, region);
    coordinator.onConnected = () => this.#dialer.onConnected();
    coordinator.onRecord = (record) => this.#dialer.onRecord(record);
    coordinator.onRecordGone = (agentId) => this.#dialer.onRecordGone(agentId);
    coordinator.onRevoke = (ids) => this.#revoke(new Set(ids));
    coordinator.liveGrants = () => this.#links().flatMap(({ grant }) => (grant ? [grant.id] : []));
    this.#sweeper = setInterval(() => this.#sweep(), SWEEP_MS);
    this.#sweeper.unref();
  }

  now(): number {
    return performance.now();
  }

  #wallClockMs(): number {
    return (this.#options.wallClockMs ?? Date.now)();
  }

  /** Lets granted clients open `service`; one handler per service. */
  listen(service: string, handler: StreamHandler): void {
    this.#services.set(service, handler);
  }

  /**
   * Opens a stream to a service of an agent. The stream can be written to at once; it fails with a MeshNodeError when
   * the agent refuses or the session ends.
   *
   * @throws the coordinator's refusal; {MeshNodeError} ERR_PEER_UNREACHABLE, ERR_NODE_CLOSED
   */
  async dial(agentId: string, service: string, options: DialOptions = {}): Promise<MeshStream> {
    const link = await this.#dialer.connect(agentId, options);
    return link.open(service, options.metadata ?? new Uint8Array());
  }

  /** Resolves once the agent has accepted the session. @throws as dial; {MeshNodeError} ERR_PEER_UNREACHABLE */
  async connect(agentId: string, options: DialOptions = {}): Promise<PathInfo> {
    const link = await this.#dialer.connect(agentId, options);
    await withDeadline(link.whenReady(), {
      ms: ANSWER_TIMEOUT_MS,
      signal: options.signal,
      onTimeout: () => {
        link.close("idle", NO_ANSWER);
        return new MeshNodeError("ERR_PEER_UNREACHABLE", NO_ANSWER);
      },
    });
    return this.#pathOf(link);
  }

  /**
   * Round trip to an agent through its session, in ms; opens one if there is none.
   *
   * @throws {MeshNodeError} ERR_TIMEOUT when all of it took longer than `timeoutMs`; else as dial
   */
  async ping(agentId: string, timeoutMs = PING_TIMEOUT_MS): Promise<{ rttMs: number; path: PathInfo }> {
    const giveUp = new AbortController();
    try {
      const link = await withDeadline(this.#dialer.connect(agentId, { signal: giveUp.signal }), {
        ms: timeoutMs,
        onTimeout: () => new MeshNodeError("ERR_TIMEOUT", `no session with the agent within ${timeoutMs} ms`),
      });
      const rttMs = await link.ping(timeoutMs);
      return { rttMs, path: this.#pathOf(link) };
    } finally {
      giveUp.abort();
    }
  }

  /**
   * The machine slept: keys and timers are older than they look. Called by the node itself when the clocks show it;
   * whoever hears of it earlier may say so.
   */
  resumed(): void {
    this.#options.logger?.debug({}, "the machine slept");
    this.#device.resumed(this.now(), this.#wallClockMs());
    this.#performDevice();
  }

  /**
   * Lets what was written arrive (2 s at most), ends all sessions, tells the peers, and closes relay and coordinator.
   * Dials that wait fail with ERR_NODE_CLOSED.
   */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    this.#dialer.close(new MeshNodeError("ERR_NODE_CLOSED", "the node is closed"));
    for (const link of this.#links()) link.isEnding = true;
    const coordinatorClosed = this.#options.coordinator.close();
    await this.#delivered();
    const reason = this.#options.role === "agent" ? "shutdown" : "normal";
    for (const link of this.#links()) {
      link.close(reason);
      link.handleEvents();
    }
    this.#flush();
    this.#closed = true;
    clearInterval(this.#sweeper);
    clearTimeout(this.#deviceTimer);
    for (const peer of this.#peers.values()) clearTimeout(peer.retry);
    for (const link of this.#links()) clearTimeout(link.timer);
    await Promise.all([this.#options.relay.close(), coordinatorClosed]);
  }

  /** Resolves when nothing that has a way to go is under way any more, or it took too long. */
  #delivered(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, DELIVER_MS);
      this.#onDelivered = () => {
        const isBusy = [...this.#peers.values()].some(
          ({ lane, links }) => lane !== undefined && [...links.values()].some((link) => link.hasUndelivered),
        );
        if (isBusy) return;
        clearTimeout(timer);
        resolve();
      };
      this.#onDelivered();
    });
  }

  // --- clients: reaching an agent (DialerHost) ---

  start(place: Place, grant: Uint8Array): SessionLink {
    const peer = this.#peer(fromBase64(place.nodeKey), place.region);
    if (peer.region !== place.region) this.#move(peer, place.region);
    const link = new SessionLink(this, peer.name, {
      role: "client",
      now: this.now(),
      sessionId: new Uint8Array(randomBytes(16)),
      grant,
      resumeWindowMs: RESUME_WINDOW_MS,
      keepaliveMs: KEEPALIVE_MS,
    });
    peer.links.set(link.session.tag as number, link);
    return link;
  }

  async reach(link: SessionLink): Promise<void> {
    const region = this.#peers.get(link.peerKey)?.region;
    if (region === undefined) return;
    // The handshake can leave at once where the relay is connected; elsewhere onState brings the lane.
    await this.#options.relay.connect(region);
    const peer = this.#peers.get(link.peerKey);
    if (!peer) return;
    this.#addLane(peer);
    this.#performDevice();
  }

  moved(link: SessionLink, region: number): void {
    const peer = this.#peers.get(link.peerKey);
    if (peer && peer.region !== region) this.#move(peer, region);
  }

  debug(fields: object, message: string): void {
    this.#options.logger?.debug(fields, message);
  }

  // --- agents: letting clients in ---

  admit(link: SessionLink, statement: Uint8Array): Grant | { refuse: CloseName } {
    const peer = this.#peers.get(link.peerKey);
    if (this.#options.role !== "agent" || !peer) return { refuse: "notYours" };
    const verdict = this.#admission.judge(statement, peer.key, link, this.now());
    if ("refuse" in verdict)
      this.#options.logger?.warn(
        { peer: link.peerKey, reason: verdict.refuse, code: verdict.code },
        "refused a grant",
      );
    else this.#device.admit(peer.key);
    return verdict;
  }

  onStream(link: SessionLink, stream: MeshStream): void {
    const handler = this.#services.get(stream.service);
    const permitted = link.grant !== undefined && isPermitted(link.grant, stream.service);
    // A peer's reset is everyday; a handler that forgot to listen for it must not end the process.
    stream.on("error", () => undefined);
    if (!handler || !permitted || !link.grant) {
      // Both directions: the peer must neither wait for us nor go on sending.
      link.reset(stream.id, permitted ? STREAM_CODES.noService : STREAM_CODES.refused);
      link.stopSending(stream.id, permitted ? STREAM_CODES.noService : STREAM_CODES.refused);
      const why = permitted ? `no such service: ${stream.service}` : `not permitted: ${stream.service}`;
      stream.onFailed(new MeshNodeError("ERR_STREAM_RESET", why));
      return;
    }
    try {
      handler(stream, { nodeKey: link.peerKey, grant: link.grant });
    } catch (error) {
      // One stream's trouble is not the other sessions'.
      this.#options.logger?.warn({ service: stream.service, error: String(error) }, "a service failed");
      stream.destroy(error instanceof Error ? error : undefined);
    }
  }

  #revoke(ids: ReadonlySet<string>): void {
    this.#admission.revoke(ids);
    for (const link of this.#links()) if (link.grant && ids.has(link.grant.id)) link.close("revoked");
  }

  // --- packets ---

  #performDevice(): void {
    for (const output of this.#device.takeOutputs()) {
      switch (output.kind) {
        case "send": {
          const peer = this.#peers.get(toBase64(output.peer));
          const region = output.replyTo ? regionOf(output.replyTo) : peer?.region;
          if (region !== undefined) this.#options.relay.send(output.peer, region, output.message);
          break;
        }
        case "cookie-reply": {
          const [region, key] = output.replyTo.key.split(" ");
          this.#options.relay.send(fromBase64(key), Number(region), output.message);
          break;
        }
        case "packet":
          this.#receivePacket(output.peer, output.packet, regionOf(output.from));
          break;
        case "established": {
          const peer = this.#peers.get(toBase64(output.peer));
          if (peer) for (const link of peer.links.values()) this.schedule(link);
          break;
        }
        case "handshake-failed":
          // Sessions that were ready wait out their window; the next one who has something to say tries again.
          this.#options.logger?.debug({ peer: toBase64(output.peer) }, "no answer to handshakes");
      }
    }
    this.#armDevice();
  }

  #receivePacket(key: Uint8Array, packet: Uint8Array, region: number): void {
    const tag = peekTag(packet);
    if (tag === undefined) return;
    const name = toBase64(key);
    let peer = this.#peers.get(name);
    let link = peer?.links.get(tag);
    if (!link) {
      // An answer to CLOSE would be answered by one who does not know the session either, for ever.
      if (isClose(packet)) return;
      if (this.#options.role !== "agent" || !peekHello(packet))
        return this.#refuse(key, tag, region, "unknownSession");
      if (this.#closing) return this.#refuse(key, tag, region, "shutdown");
      if (this.#links().length >= MAX_LINKS || (peer?.links.size ?? 0) >= MAX_LINKS_PER_PEER)
        return this.#refuse(key, tag, region, "resourceLimit");
      peer = this.#peer(key, region);
      link = new SessionLink(this, name, {
        role: "agent",
        now: this.now(),
        resumeWindowMs: RESUME_WINDOW_MS,
      });
      peer.links.set(tag, link);
    }
    if (!peer) return;
    // Authenticated, so this is where the peer is now.
    peer.absences = 0;
    if (peer.region !== region) this.#move(peer, region);
    this.#addLane(peer);
    link.receive(packet, peer.lane as number);
  }

  /** Answers a packet of a session nobody here knows, so that its sender need not find out by silence. */
  #refuse(key: Uint8Array, tag: number, region: number, name: CloseName): void {
    const { code, text } = CLOSE_CODES[name];
    const message = this.#device.seal(key, encodeClosePacket(tag, code, text), this.now());
    if (message) this.#options.relay.send(key, region, message);
  }

  schedule(link: SessionLink): void {
    this.#dirty.add(link);
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    // Once per turn: what one read brought and one handler wrote leaves together.
    queueMicrotask(() => {
      this.#scheduled = false;
      if (!this.#closed) this.#flush();
    });
  }

  #flush(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    try {
      for (const link of this.#dirty) {
        this.#dirty.delete(link);
        link.handleEvents();
        this.#send(link);
        link.handleEvents();
        this.#armLink(link);
      }
    } finally {
      this.#flushing = false;
    }
    this.#performDevice();
    this.#onDelivered?.();
  }

  #send(link: SessionLink): void {
    const peer = this.#peers.get(link.peerKey);
    if (peer?.lane === undefined) return;
    const { relay } = this.#options;
    while (relay.isWritable(peer.region)) {
      // Pulled before there are keys, a packet would be lost.
      if (!this.#device.hasSession(peer.key, this.now())) {
        if (!link.session.isClosed) this.#device.initiate(peer.key, this.now(), this.#wallClockMs());
        return;
      }
      const packet = link.session.nextPacket(peer.lane, MAX_PACKET_BYTES, this.now());
      if (!packet) return;
      const message = this.#device.seal(peer.key, packet, this.now());
      if (message) relay.send(peer.key, peer.region, message);
    }
  }

  #armLink(link: SessionLink): void {
    const now = this.now();
    if (link.session.isDrained(now)) return this.#forget(link);
    const at = link.session.nextTimeout();
    if (at === undefined || (link.timer && link.timerAt <= at)) return;
    clearTimeout(link.timer);
    link.timerAt = at;
    link.timer = setTimeout(
      () => {
        link.timer = undefined;
        link.timerAt = Number.POSITIVE_INFINITY;
        link.session.handleTimeout(this.now());
        this.schedule(link);
      },
      Math.max(0, Math.ceil(at - now)),
    );
    // Work in flight keeps the process alive through its sockets; a timer alone must not.
    link.timer.unref();
  }

  #armDevice(): void {
    const at = this.#device.nextTimeout() ?? Number.POSITIVE_INFINITY;
    if (at >= this.#deviceTimerAt || this.#closed) return;
    clearTimeout(this.#deviceTimer);
    this.#deviceTimerAt = at;
    this.#deviceTimer = setTimeout(
      () => {
        this.#deviceTimerAt = Number.POSITIVE_INFINITY;
        this.#device.handleTimeout(this.now(), this.#wallClockMs());
        this.#performDevice();
      },
      Math.max(0, Math.ceil(at - this.now())),
    );
    this.#deviceTimer.unref();
  }

  // --- peers and lanes ---

  #peer(key: Uint8Array, region: number): Peer {
    const name = toBase64(key);
    let peer = this.#peers.get(name);
    if (!peer) {
      peer = {
        key: key.slice(),
        name,
        region,
        lane: undefined,
        links: new Map(),
        absences: 0,
        retry: undefined,
      };
      this.#peers.set(name, peer);
    }
    return peer;
  }

  #addLane(peer: Peer): void {
    const isNew = peer.lane === undefined;
    peer.lane ??= this.#nextLane++;
    if (isNew && this.#options.role === "client" && !this.#device.hasSession(peer.key, this.now())) {
      // A handshake under way may have been lost with the old connection: don't wait for its retry.
      this.#device.removePeer(peer.key);
      this.#device.initiate(peer.key, this.now(), this.#wallClockMs());
    }
    for (const link of peer.links.values()) {
      // Only relays drop packets, when a queue is full.
      link.session.addLane(peer.lane, this.now(), { lossy: true });
      this.schedule(link);
    }
  }

  #dropLane(peer: Peer): void {
    if (peer.lane === undefined) return;
    for (const link of peer.links.values()) {
      link.session.removeLane(peer.lane);
      this.schedule(link);
    }
    peer.lane = undefined;
  }

  #move(peer: Peer, region: number): void {
    this.#dropLane(peer);
    peer.region = region;
    this.#options.relay.connect(region).then(
      () => this.#addLane(peer),
      () => undefined, // told through onState
    );
  }

  #onRelay(region: number, connected: boolean): void {
    const { relay, coordinator } = this.#options;
    if (relay.homeRegion !== undefined) coordinator.setHomeRegion(relay.homeRegion);
    for (const peer of this.#peers.values()) {
      if (peer.region !== region) continue;
      if (!connected) this.#dropLane(peer);
      else {
        this.#addLane(peer);
        // A client says HELLO by itself; an agent with nothing to send would leave its clients to find out.
        if (this.#options.role === "agent")
          for (const { session } of peer.links.values()) session.ping(this.now());
      }
    }
  }

  /**
   * The relay does not have the peer. What we send is lost until it is back, so the lane ends here, and the next one
   * starts with HELLO and everything unacknowledged. The peer's own packets end the wait at once.
   */
  #onAbsent(key: Uint8Array, region: number): void {
    const peer = this.#peers.get(toBase64(key));
    if (!peer || peer.region !== region || peer.lane === undefined || this.#closed) return;
    this.#options.logger?.debug({ peer: peer.name, region }, "the relay does not have the peer");
    this.#dropLane(peer);
    const waitMs = ABSENT_RETRY_MS[Math.min(peer.absences++, ABSENT_RETRY_MS.length - 1)];
    clearTimeout(peer.retry);
    peer.retry = setTimeout(() => {
      if (this.#peers.get(peer.name) !== peer || peer.region !== region || this.#closed) return;
      this.#addLane(peer);
      this.#performDevice();
    }, waitMs);
    peer.retry.unref();
  }

  #scheduleRegion(region: number): void {
    for (const peer of this.#peers.values())
      if (peer.region === region) for (const link of peer.links.values()) this.schedule(link);
  }

  // --- ends ---

  onClosed(link: SessionLink, error: MeshNodeError | undefined): void {
    if (error) this.#options.logger?.debug({ peer: link.peerKey, reason: error.message }, "a session ended");
    this.#dialer.onClosed(link);
  }

  #forget(link: SessionLink): void {
    clearTimeout(link.timer);
    const peer = this.#peers.get(link.peerKey);
    if (!peer) return;
    for (const [tag, known] of peer.links) if (known === link) peer.links.delete(tag);
    if (peer.links.size > 0) return;
    clearTimeout(peer.retry);
    this.#peers.delete(peer.name);
    this.#device.removePeer(peer.key);
  }

  /** Looks for what no packet announces: silent peers, agents that left, permissions that ran out, sleep. */
  #sweep(): void {
    const now = this.now();
    const offsetMs = this.#wallClockMs() - now;
    if (offsetMs - this.#clockOffsetMs > SLEPT_MS) this.resumed();
    this.#clockOffsetMs = offsetMs;
    this.#dialer.sweep();
    for (const link of this.#links()) {
      if (link.session.isDrained(now)) this.#forget(link);
      else if (now - link.lastHeardAt > this.#patienceMs(link)) link.close("idle", this.#silence(link));
      else if (link.session.role === "agent" && isUnrenewed(link, now)) link.close("grantExpired");
    }
  }

  #patienceMs(link: SessionLink): number {
    if (link.session.role === "client") return link.ready ? RESUME_WINDOW_MS : ANSWER_TIMEOUT_MS + SWEEP_MS;
    if (!link.grant) return ANSWER_TIMEOUT_MS;
    return Math.min(Math.max(link.resumeWindowMs, 2 * KEEPALIVE_MS), MAX_RESUME_WINDOW_MS);
  }

  #silence(link: SessionLink): string | undefined {
    if (link.session.role === "agent") return undefined;
    return link.ready ? "the agent could not be reached for too long" : NO_ANSWER;
  }

  #links(): SessionLink[] {
    return [...this.#peers.values()].flatMap(({ links }) => [...links.values()]);
  }

  #pathOf(link: SessionLink): PathInfo {
    return { kind: "relay", region: this.#peers.get(link.peerKey)?.region ?? 0 };
  }
}

function isClose(packet: Uint8Array): boolean {
  try {
    return readHeader(new ByteReader(packet)).number === CLOSE_NUMBER;
  } catch {
    return false; // cut off within its number
  }
}

const regionOf = (source: { key: string }): number => Number.parseInt(source.key, 10);
