import { MemoryBudget } from "../session/budget.ts";
import type { LivenessNews } from "../session/liveness.ts";
import { fromBase64, toBase64 } from "../wire/bytes.ts";
import {
  CLOSE_CODES,
  type CloseName,
  encodeClosePacket,
  isClosePacket,
  MAX_PACKET_BYTES,
  peekHello,
  peekTag,
} from "../wire/session.ts";
import type { Grant, VerifySignature } from "../wire/signed.ts";
import { type DeviceOutput, WireGuardDevice } from "../wireguard/device.ts";
import { Admission, isUnrenewed } from "./admission.ts";
import { markHeapAtOnce } from "./collector.ts";
import type { Coordinator } from "./coordinator.ts";
import { hasRoom, makeRoom } from "./crowd.ts";
import { nodeCrypto } from "./crypto.ts";
import { Dialer, type DialerHost, MAX_RESUME_WINDOW_MS, type Place } from "./dialer.ts";
import { EndedSessions } from "./ended.ts";
import { describeHoldings, describeSession, type NodeHoldings, type SessionInfo } from "./info.ts";
import { type LinkHost, SessionLink } from "./link.ts";
import { NO_LANE, type Peer, Peers, type PeersHost } from "./peers.ts";
import type { Relay } from "./relay.ts";
import { memoryLimitBytes, type Runtime, systemRuntime, type Timer } from "./runtime.ts";
import { type CallbackHandler, Doors, type Refusal, Services, type StreamHandler } from "./services.ts";
import { type Clocks, SleepDetector } from "./sleep.ts";
import { regionOf, Sources } from "./sources.ts";
import { MeshNodeError, type MeshStream, STREAM_CODES } from "./stream.ts";
import { withDeadline } from "./wait.ts";
import { type PathInfo, type PeerListener, Watchers } from "./watch.ts";

export type { SessionInfo } from "./info.ts";
export type { CallbackHandler, StreamHandler, StreamPeer } from "./services.ts";
export { MeshNodeError, MeshStream } from "./stream.ts";
export type { PathInfo, PeerEvent, PeerListener } from "./watch.ts";

export interface MeshLogger {
  debug(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface MeshNodeOptions {
  role: "client" | "agent";
  /** 32 bytes; see `newIdentity`. */
  privateKey: Uint8Array;
  relay: Relay;
  coordinator: Coordinator;
  verify: VerifySignature;
  logger?: MeshLogger;
  /** Clocks, timers and randomness; the process's by default. */
  runtime?: Runtime;
  /** Agent: how long a silent session is kept at most, whatever its client asks for. Default 24 h. */
  maxResumeWindowMs?: number;
  /** What all sessions together may hold beyond their first windows; by default 25 % of the memory limit. */
  memoryBudgetBytes?: number;
}

export interface DialOptions {
  /** Up to 16,384 bytes, with the stream's first packet. */
  metadata?: Uint8Array;
  signal?: AbortSignal;
  /** Told when the dial waits for something a person may wonder about. */
  onWait?: (what: "agent") => void;
  /**
   * How long the agent is asked to keep the session while this node is silent; the largest that this process asked
   * for holds. Default 300,000, at most 24 h.
   */
  resumeWindowMs?: number;
}

/** A fresh identity. `privateKey`: 32 bytes, never logged; `nodeKey`: base64. */
export function newIdentity(): { privateKey: Uint8Array; nodeKey: string } {
  const privateKey = systemRuntime.randomBytes(32);
  return { privateKey, nodeKey: toBase64(nodeCrypto.keyPair(privateKey).publicKey) };
}

/** A client says something at least this often, so that the agent can tell silence from absence. */
const KEEPALIVE_MS = 20_000;
/** A client whose keepalive is due may be heard only now: shorter windows would end healthy sessions. */
const MIN_RESUME_WINDOW_MS = 2 * KEEPALIVE_MS;
/** A session whose peer has not been heard for this long is held with little memory: two keepalives are missing. */
const SILENT_AFTER_MS = 2 * KEEPALIVE_MS + 5_000;
/** All sessions together may buffer this share of the memory limit: the rest is the process's own and its children's. */
const BUDGET_SHARE = 0.25;
/** Time for the first answer of an agent that should be there. */
const ANSWER_TIMEOUT_MS = 30_000;
const NO_ANSWER = `the agent did not answer within ${ANSWER_TIMEOUT_MS / 1000} s`;
const PING_TIMEOUT_MS = 5_000;
const SWEEP_MS = 1_000;
/** From here on handing the kernel three pieces is cheaper than joining them. */
const PIECES_FROM_BYTES = 8_192;
/** How long close() waits for what was written to arrive. */
const DELIVER_MS = 2_000;

/**
 * A node of the mesh: dials services of agents, or lets clients open its own. Owns the WireGuard device and the
 * sessions; the relay and the coordinator are given and closed with it.
 */
export class MeshNode implements LinkHost, DialerHost, PeersHost {
  readonly nodeKey: string;
  readonly runtime: Runtime;
  readonly #options: MeshNodeOptions;
  readonly #device: WireGuardDevice;
  readonly #peers: Peers;
  readonly #dialer: Dialer;
  readonly #admission: Admission;
  readonly #services = new Services();
  readonly #doors = new Doors();
  readonly #ended = new EndedSessions();
  readonly #watchers: Watchers;
  readonly #budget: MemoryBudget;
  readonly #dirty = new Set<SessionLink>();
  readonly #sweeper: Timer;
  #flushing = false;
  #scheduled = false;
  #deviceTimer: Timer | undefined;
  #deviceTimerAt = Number.POSITIVE_INFINITY;
  readonly #sources = new Sources();
  readonly #sleep: SleepDetector;
  #closing: Promise<void> | undefined;
  #onDelivered: (() => void) | undefined;
  #closed = false;

  constructor(options: MeshNodeOptions) {
    markHeapAtOnce();
    this.#options = options;
    const { runtime = systemRuntime } = options;
    this.runtime = runtime;
    this.#device = new WireGuardDevice({
      privateKey: options.privateKey,
      crypto: nodeCrypto,
      randomBytes: (count) => runtime.randomBytes(count),
      acceptUnknown: options.role === "agent",
    });
    this.nodeKey = toBase64(this.#device.publicKey);
    const { relay, coordinator } = options;
    this.#budget = new MemoryBudget(options.memoryBudgetBytes ?? memoryLimitBytes() * BUDGET_SHARE);
    this.#watchers = new Watchers((error) =>
      options.logger?.warn({ error: String(error) }, "a watcher of a session failed"),
    );
    this.#dialer = new Dialer(this, coordinator);
    this.#admission = new Admission(coordinator, options.verify);
    this.#peers = new Peers(this, relay, options.role === "agent");
    this.#sleep = new SleepDetector(SWEEP_MS, this.#clocks());
    relay.onPacket = ({ src, region, data }) => {
      if (this.#closed) return;
      this.#device.receive(data, this.#sources.of(src, region), this.now(), this.#wallClockMs());
      this.#performDevice();
    };
    relay.onState = ({ region, connected }) => this.#onRelay(region, connected);
    relay.onDrain = (region) => this.#scheduleRegion(region);
    relay.onPeerGone = (peer, region) => this.#peers.onAbsent(peer, region);
    coordinator.onConnected = () => this.#dialer.onConnected();
    coordinator.onRecord = (record) => this.#dialer.onRecord(record);
    coordinator.onRecordGone = (agentId) => this.#dialer.onRecordGone(agentId);
    coordinator.onRevoke = (ids) => this.#revoke(new Set(ids));
    coordinator.liveGrants = () => this.#peers.links().flatMap(({ grant }) => (grant ? [grant.id] : []));
    this.#sweeper = runtime.repeat(() => this.#sweep(), SWEEP_MS);
  }

  now(): number {
    return this.runtime.nowMs();
  }

  #wallClockMs(): number {
    return this.runtime.wallClockMs();
  }

  #clocks(): Clocks {
    return { monotonicMs: this.now(), wallMs: this.#wallClockMs(), uptimeMs: this.runtime.uptimeMs() };
  }

  /**
   * Agent: lets granted clients open `service`; one handler per service. One that ends in ":" is a prefix: "tcp:" gets
   * every "tcp:HOST:PORT" that has no handler of its own.
   */
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

  /**
   * Client: lets that agent open callbacks which carry `token` (16 random bytes in base64). Whatever else an agent opens
   * is refused. The door stays when the session ends, for its successor. @returns the undo
   */
  accept(agentId: string, token: string, handler: CallbackHandler): () => void {
    return this.#doors.open(agentId, token, handler);
  }

  /** Client: tells how the session with an agent is doing, this one and its successors. @returns the undo */
  watch(agentId: string, listener: PeerListener): () => void {
    return this.#watchers.add(agentId, listener);
  }

  /** All live sessions of this node; an agent's once they were let in. */
  sessions(): SessionInfo[] {
    return this.#peers
      .links()
      .filter((link) => link.ready && !link.session.isClosed)
      .map((link) =>
        describeSession(link, {
          offsetMs: this.#wallClockMs() - this.now(),
          resumeWindowMs: this.#patienceMs(link),
          path: this.#pathOf(link),
        }),
      );
  }

  get held(): NodeHoldings {
    return describeHoldings(this.#peers, this.#device, this.#budget);
  }

  /** Ends one session, both sides' streams included. @param id as in SessionInfo @returns whether there was one */
  endSession(id: string): boolean {
    const link = this.#peers.links().find((one) => one.id === id && !one.session.isClosed);
    link?.close("normal", "ended by its user");
    return link !== undefined;
  }

  /** Resolves once the agent has accepted the session. @throws as dial; {MeshNodeError} ERR_PEER_UNREACHABLE */
  async connect(agentId: string, options: DialOptions = {}): Promise<PathInfo> {
    const link = await this.#dialer.connect(agentId, options);
    await withDeadline(link.whenReady(), {
      runtime: this.runtime,
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
        runtime: this.runtime,
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
    this.#options.relay.check();
    this.#options.coordinator.check?.();
    this.#device.resumed(this.now(), this.#wallClockMs());
    this.#performDevice();
  }

  /**
   * Lets what was written arrive (2 s at most), ends all sessions, tells the peers, and closes relay and coordinator.
   * Dials that wait fail with ERR_NODE_CLOSED.
   *
   * @param deliver false: nobody needs what is under way; it is a round trip less
   */
  close({ deliver = true }: { deliver?: boolean } = {}): Promise<void> {
    this.#closing ??= this.#end(deliver);
    return this.#closing;
  }

  async #end(deliver: boolean): Promise<void> {
    this.#dialer.close(new MeshNodeError("ERR_NODE_CLOSED", "the node is closed"));
    for (const link of this.#peers.links()) link.isEnding = true;
    const coordinatorClosed = this.#options.coordinator.close();
    if (deliver) await this.#delivered();
    const reason = this.#options.role === "agent" ? "shutdown" : "normal";
    for (const link of this.#peers.links()) {
      link.close(reason);
      link.handleEvents();
    }
    this.#flush();
    this.#closed = true;
    this.runtime.clearTimer(this.#sweeper);
    this.runtime.clearTimer(this.#deviceTimer);
    this.#peers.close();
    for (const link of this.#peers.links()) this.runtime.clearTimer(link.timer);
    await Promise.all([this.#options.relay.close(), coordinatorClosed]);
  }

  /** Resolves when nothing that has a way to go is under way any more, or it took too long. */
  #delivered(): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.runtime.setTimer(resolve, DELIVER_MS);
      this.#onDelivered = () => {
        const isBusy = [...this.#peers].some(
          ({ lane, links }) => lane !== undefined && [...links.values()].some((link) => link.hasUndelivered),
        );
        if (isBusy) return;
        this.runtime.clearTimer(timer);
        resolve();
      };
      this.#onDelivered();
    });
  }

  // --- clients: reaching an agent (DialerHost) ---

  start(place: Place, grant: Uint8Array, agentId: string, resumeWindowMs: number): SessionLink {
    const peer = this.#peers.ensure(fromBase64(place.nodeKey), place.region);
    this.#peers.move(peer, place.region);
    // An agent forgets keys with the last session they served. What we sealed with them would reach nobody, and
    // WireGuard would take 15 s to doubt them.
    if (!hasLive(peer)) this.#device.removePeer(peer.key);
    const link = new SessionLink(this, peer.name, {
      role: "client",
      now: this.now(),
      sessionId: this.runtime.randomBytes(16),
      grant,
      agentId,
      resumeWindowMs,
      keepaliveMs: KEEPALIVE_MS,
      budget: this.#budget,
    });
    this.#peers.add(peer, link.session.tag as number, link);
    return link;
  }

  async reach(link: SessionLink): Promise<void> {
    const region = this.#peers.of(link)?.region;
    if (region === undefined) return;
    // The handshake can leave at once where the relay is connected; elsewhere onState brings the lane.
    await this.#options.relay.connect(region);
    const peer = this.#peers.of(link);
    if (!peer) return;
    this.#peers.addLane(peer);
    this.#performDevice();
  }

  moved(link: SessionLink, region: number): void {
    const peer = this.#peers.of(link);
    if (peer) this.#peers.move(peer, region);
  }

  isDoubtful(link: SessionLink): boolean {
    return link.session.isStalled || this.#peers.of(link)?.lane === undefined;
  }

  debug(fields: object, message: string): void {
    this.#options.logger?.debug(fields, message);
  }

  // --- agents: letting clients in ---

  admit(link: SessionLink, statement: Uint8Array): Grant | { refuse: CloseName } {
    const peer = this.#peers.of(link);
    if (this.#options.role !== "agent" || !peer) return { refuse: "notYours" };
    const verdict = this.#admission.judge(statement, peer.key, link, this.now());
    if ("refuse" in verdict)
      this.#options.logger?.warn(
        { peer: link.peerKey, reason: verdict.refuse, code: verdict.code },
        "refused a grant",
      );
    else if (!link.grant && !makeRoom(verdict.userId, this.#peers.links(), this.now()))
      return { refuse: "resourceLimit" };
    else this.#device.admit(peer.key);
    return verdict;
  }

  onStream(link: SessionLink, stream: MeshStream): void {
    // A peer's reset is everyday; a handler that forgot to listen for it must not end the process.
    stream.on("error", () => undefined);
    try {
      const refusal = this.#serve(link, stream);
      if (!refusal) return;
      // Both directions: the peer must neither wait for us nor go on sending.
      link.reset(stream.id, refusal.code);
      link.stopSending(stream.id, refusal.code);
      this.#options.logger?.debug({ peer: link.peerKey, reason: refusal.reason }, "refused a stream");
      stream.onFailed(new MeshNodeError("ERR_STREAM_RESET", refusal.reason));
    } catch (error) {
      // One stream's trouble is not the other sessions'.
      this.#options.logger?.warn({ service: stream.service, error: String(error) }, "a service failed");
      stream.destroy(error instanceof Error ? error : undefined);
    }
  }

  /** Hands a stream that the peer opened to whom it is for. @returns why not */
  #serve(link: SessionLink, stream: MeshStream): Refusal | undefined {
    if (this.#options.role === "client") {
      const door = this.#doors.find(link.agentId, stream);
      if ("code" in door) return door;
      door.handler(stream, door.metadata);
      return undefined;
    }
    const { grant } = link;
    if (!grant) return { code: STREAM_CODES.refused, reason: "no grant" };
    const handler = this.#services.find(stream.service, grant);
    if ("code" in handler) return handler;
    handler(stream, {
      nodeKey: link.peerKey,
      grant,
      open: (service, metadata) => link.open(service, metadata),
    });
    return undefined;
  }

  onLiveness(link: SessionLink, news: LivenessNews): void {
    if (link.agentId !== undefined)
      this.#watchers.tell(
        link.agentId,
        news.kind === "flowing" ? { kind: "resumed", afterMs: news.afterMs } : news,
      );
    if (news.kind === "flowing") return;
    this.#options.logger?.debug({ peer: link.peerKey, forMs: Math.round(news.forMs) }, "a session stalled");
    const region = this.#peers.of(link)?.region;
    if (region !== undefined) this.#options.relay.check(region);
  }

  #revoke(ids: ReadonlySet<string>): void {
    this.#admission.revoke(ids);
    for (const link of this.#peers.links()) if (link.grant && ids.has(link.grant.id)) link.close("revoked");
  }

  // --- packets ---

  #performDevice(): void {
    // What one output makes us do may make more of them.
    for (let outputs = this.#device.takeOutputs(); outputs.length > 0; outputs = this.#device.takeOutputs())
      for (const output of outputs) this.#perform(output);
    this.#armDevice();
  }

  #perform(output: DeviceOutput): void {
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
        for (const link of peer?.links.values() ?? []) {
          // What it waits for was sealed with keys the peer lost; its own timers may be far apart by now.
          if (link.session.isStalled) link.session.ping(this.now());
          this.schedule(link);
        }
        break;
      }
      case "handshake-failed":
        this.#onHandshakeFailed(toBase64(output.peer));
    }
  }

  /** The peer may sleep behind a relay connection that looks alive: as long as a session waits for it, ask on. */
  #onHandshakeFailed(name: string): void {
    const peer = this.#peers.get(name);
    const isWanted = peer !== undefined && hasLive(peer);
    this.#options.logger?.debug({ peer: name, isWanted }, "no answer to handshakes");
    if (isWanted && peer.lane !== undefined) this.#device.initiate(peer.key, this.now(), this.#wallClockMs());
  }

  #receivePacket(key: Uint8Array, packet: Uint8Array, region: number): void {
    const tag = peekTag(packet);
    if (tag === undefined) return;
    let peer = this.#peers.find(key);
    let link = peer?.links.get(tag);
    if (!link) {
      // An answer to CLOSE would be answered by one who does not know the session either, for ever.
      if (isClosePacket(packet)) return;
      const hello = this.#options.role === "agent" ? peekHello(packet) : undefined;
      if (!hello || this.#ended.has(toBase64(key), hello.sessionId))
        return this.#refuse(key, tag, region, "unknownSession");
      if (this.#closing) return this.#refuse(key, tag, region, "shutdown");
      if (!hasRoom(this.#peers, peer?.links.size ?? 0, (ended) => this.#forget(ended)))
        return this.#refuse(key, tag, region, "resourceLimit");
      peer = this.#peers.ensure(key, region);
      link = new SessionLink(this, peer.name, {
        role: "agent",
        now: this.now(),
        resumeWindowMs: this.#maxResumeWindowMs,
        budget: this.#budget,
      });
      this.#peers.add(peer, tag, link);
    }
    if (!peer) return;
    this.#peers.onHeard(peer, region);
    link.receive(packet, peer.lane ?? NO_LANE);
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
    const peer = this.#peers.of(link);
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
      if (packet.length >= PIECES_FROM_BYTES && relay.sendPieces) {
        const pieces = this.#device.sealPieces(peer.key, packet, this.now());
        if (pieces) relay.sendPieces(peer.key, peer.region, pieces);
      } else {
        const message = this.#device.seal(peer.key, packet, this.now());
        if (message) relay.send(peer.key, peer.region, message);
      }
    }
  }

  #armLink(link: SessionLink): void {
    const now = this.now();
    if (link.session.isDrained(now)) return this.#forget(link);
    const at = link.session.nextTimeout();
    if (at === undefined || (link.timer && link.timerAt <= at)) return;
    this.runtime.clearTimer(link.timer);
    link.timerAt = at;
    // Work in flight keeps the process alive through its sockets; a timer alone must not.
    link.timer = this.runtime.setIdleTimer(
      () => {
        link.timer = undefined;
        link.timerAt = Number.POSITIVE_INFINITY;
        link.session.handleTimeout(this.now());
        this.schedule(link);
      },
      Math.max(0, Math.ceil(at - now)),
    );
  }

  #armDevice(): void {
    const at = this.#device.nextTimeout() ?? Number.POSITIVE_INFINITY;
    if (at >= this.#deviceTimerAt || this.#closed) return;
    this.runtime.clearTimer(this.#deviceTimer);
    this.#deviceTimerAt = at;
    this.#deviceTimer = this.runtime.setIdleTimer(
      () => {
        this.#deviceTimerAt = Number.POSITIVE_INFINITY;
        this.#device.handleTimeout(this.now(), this.#wallClockMs());
        this.#performDevice();
      },
      Math.max(0, Math.ceil(at - this.now())),
    );
  }

  // --- lanes (PeersHost) ---

  onLane(peer: Peer): void {
    const now = this.now();
    if (this.#device.hasSession(peer.key, now)) return;
    // A handshake under way may have been lost with the old connection: don't wait for its retry. An agent begins only
    // when it has something to say.
    if (this.#options.role === "client" || this.#device.isTrying(peer.key))
      this.#device.initiateAnew(peer.key, now, this.#wallClockMs());
  }

  onMoved(peer: Peer): void {
    for (const link of peer.links.values()) this.#tellPath(link);
  }

  #onRelay(region: number, connected: boolean): void {
    const { relay, coordinator } = this.#options;
    if (relay.homeRegion !== undefined) coordinator.setHomeRegion(relay.homeRegion);
    // A client says HELLO by itself; an agent with nothing to send would leave its clients to find out.
    for (const peer of this.#peers.onRelay(region, connected))
      if (this.#options.role === "agent")
        for (const { session } of peer.links.values()) session.ping(this.now());
  }

  #scheduleRegion(region: number): void {
    for (const peer of this.#peers)
      if (peer.region === region) for (const link of peer.links.values()) this.schedule(link);
  }

  // --- ends ---

  onClosed(link: SessionLink, error: MeshNodeError | undefined): void {
    if (error) this.#options.logger?.debug({ peer: link.peerKey, reason: error.message }, "a session ended");
    this.#dialer.onClosed(link);
  }

  #forget(link: SessionLink): void {
    if (link.grant) this.#ended.add(link.peerKey, link.id, this.now());
    this.runtime.clearTimer(link.timer);
    const peer = this.#peers.remove(link);
    if (peer) this.#device.dismissPeer(peer.key, this.now());
  }

  /** Looks for what no packet announces: silent peers, agents that left, permissions that ran out, sleep. */
  #sweep(): void {
    const now = this.now();
    if (this.#sleep.check(this.#clocks()) !== undefined) this.resumed();
    this.#dialer.sweep();
    for (const link of this.#peers.links()) {
      if (link.session.isDrained(now)) this.#forget(link);
      else if (now - link.lastHeardAt > this.#patienceMs(link)) link.close("idle", this.#silence(link));
      // Who is away uses no permission; it is judged when it comes back.
      else if (now - link.lastHeardAt > SILENT_AFTER_MS) link.setSilent(true);
      else if (link.session.role === "agent" && isUnrenewed(link, now)) link.close("grantExpired");
    }
  }

  #patienceMs(link: SessionLink): number {
    const windowMs = Math.max(link.resumeWindowMs, MIN_RESUME_WINDOW_MS);
    if (link.session.role === "agent")
      return link.grant ? Math.min(windowMs, this.#maxResumeWindowMs) : ANSWER_TIMEOUT_MS;
    if (!link.ready) return ANSWER_TIMEOUT_MS + SWEEP_MS;
    return Math.min(windowMs, Math.max(link.peerResumeWindowMs ?? windowMs, MIN_RESUME_WINDOW_MS));
  }

  get #maxResumeWindowMs(): number {
    const ms = this.#options.maxResumeWindowMs ?? MAX_RESUME_WINDOW_MS;
    return Math.max(Math.min(ms, MAX_RESUME_WINDOW_MS), MIN_RESUME_WINDOW_MS);
  }

  #silence(link: SessionLink): string | undefined {
    if (link.session.role === "agent") return undefined;
    return link.ready ? "the agent could not be reached for too long" : NO_ANSWER;
  }

  onReady(link: SessionLink): void {
    this.#tellPath(link);
  }

  #tellPath(link: SessionLink): void {
    if (link.agentId !== undefined)
      this.#watchers.tell(link.agentId, { kind: "path", path: this.#pathOf(link) });
  }

  #pathOf(link: SessionLink): PathInfo {
    return { kind: "relay", region: this.#peers.of(link)?.region ?? 0 };
  }
}

const hasLive = ({ links }: Peer): boolean => [...links.values()].some(({ session }) => !session.isClosed);
