import { randomBytes } from "node:crypto";
import { fromBase64, toBase64 } from "../wire/bytes.ts";
import {
  CLOSE_CODES,
  type CloseName,
  encodeClosePacket,
  MAX_PACKET_BYTES,
  peekHello,
  peekTag,
} from "../wire/session.ts";
import {
  type Grant,
  isPermitted,
  openStatement,
  StatementError,
  type StatementErrorCode,
  sameNodeKey,
  type VerifySignature,
} from "../wire/signed.ts";
import { WireGuardDevice } from "../wireguard/device.ts";
import type { Coordinator } from "./coordinator.ts";
import { nodeCrypto } from "./crypto.ts";
import { type LinkHost, SessionLink } from "./link.ts";
import type { Relay } from "./relay.ts";
import { MeshNodeError, type MeshStream, STREAM_CODES } from "./stream.ts";

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
/** An agent whose record is gone may be reconnecting; after this it is given up. */
const GONE_TIMEOUT_MS = 30_000;
/** Sessions a node keeps; each holds at most its windows. */
const MAX_LINKS = 4096;
/** Sessions of one peer; a client opens one and perhaps its successor. */
const MAX_LINKS_PER_PEER = 4;
/** How long after its admission a session may be resumed with an expired grant. */
const MAX_UNRENEWED_MS = 12 * 3_600_000;
const SWEEP_MS = 5_000;

/** A remote node: its key, the relay region it is heard in, and the sessions held with it. */
interface Peer {
  key: Uint8Array;
  name: string;
  region: number;
  /** Number of the lane over the relay, new after each loss of its connection; undefined while there is none. */
  lane: number | undefined;
  links: Map<number, SessionLink>;
}

/** Where an agent was said to be. */
interface Place {
  nodeKey: string;
  region: number;
}

/** An agent as a client knows it. */
interface Target {
  agentId: string;
  link: SessionLink | undefined;
  opening: Promise<SessionLink> | undefined;
  goneAt: number | undefined;
  records: Set<(place: Place) => void>;
}

/** Why a grant was refused, as the session's CLOSE says it. */
const REFUSALS: Record<StatementErrorCode, CloseName> = {
  ERR_STATEMENT_MALFORMED: "protocolViolation",
  ERR_STATEMENT_UNKNOWN_KEY: "notYours",
  ERR_STATEMENT_SIGNATURE: "notYours",
  ERR_STATEMENT_EXPIRED: "grantExpired",
  ERR_STATEMENT_NOT_YET_VALID: "clockSkewed",
};

/**
 * A node of the mesh: dials services of agents, or lets clients open its own. Owns the WireGuard device and the
 * sessions; the relay and the coordinator are given and closed with it.
 */
export class MeshNode implements LinkHost {
  readonly nodeKey: string;
  readonly #options: MeshNodeOptions;
  readonly #device: WireGuardDevice;
  readonly #peers = new Map<string, Peer>();
  readonly #targets = new Map<string, Target>();
  readonly #services = new Map<string, StreamHandler>();
  readonly #dirty = new Set<SessionLink>();
  readonly #sweeper: NodeJS.Timeout;
  #nextLane = 1;
  #flushing = false;
  #scheduled = false;
  #deviceTimer: NodeJS.Timeout | undefined;
  #deviceTimerAt = Number.POSITIVE_INFINITY;
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
    relay.onPacket = ({ src, region, data }) => {
      this.#device.receive(data, { key: `${region} ${toBase64(src)}` }, this.now(), Date.now());
      this.#performDevice();
    };
    relay.onState = ({ region, connected }) => this.#onRelay(region, connected);
    relay.onDrain = (region) => this.#scheduleRegion(region);
    relay.onPeerGone = (peer, region, reason) =>
      this.#options.logger?.debug(
        { peer: toBase64(peer), region, reason },
        "the relay does not have the peer",
      );
    coordinator.onRecord = ({ agentId, nodeKey, homeRegion }) => this.#onRecord(agentId, nodeKey, homeRegion);
    coordinator.onRecordGone = (agentId) => {
      const target = this.#targets.get(agentId);
      if (target) target.goneAt = this.now();
    };
    coordinator.onRevoke = (ids) => this.#revoke(new Set(ids));
    coordinator.liveGrants = () => this.#links().flatMap(({ grant }) => (grant ? [grant.id] : []));
    this.#sweeper = setInterval(() => this.#sweep(), SWEEP_MS);
    this.#sweeper.unref();
  }

  now(): number {
    return performance.now();
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
    const link = await this.#connect(agentId, options);
    return link.open(service, options.metadata ?? new Uint8Array());
  }

  /** Resolves once the agent has accepted the session. */
  async connect(agentId: string, options: DialOptions = {}): Promise<PathInfo> {
    const link = await this.#connect(agentId, options);
    await this.#withDeadline(link.whenReady(), options.signal, () => {
      link.close("idle", "no answer");
      return new MeshNodeError(
        "ERR_PEER_UNREACHABLE",
        `the agent did not answer within ${ANSWER_TIMEOUT_MS / 1000} s`,
      );
    });
    return this.#pathOf(link);
  }

  /** Round trip to an agent through its session, in ms. */
  async ping(agentId: string, timeoutMs?: number): Promise<{ rttMs: number; path: PathInfo }> {
    const link = await this.#connect(agentId, {});
    const rttMs = await link.ping(timeoutMs);
    return { rttMs, path: this.#pathOf(link) };
  }

  /** Ends all sessions, tells the peers, and closes relay and coordinator. */
  async close(): Promise<void> {
    if (this.#closed) return;
    const reason = this.#options.role === "agent" ? "shutdown" : "normal";
    for (const link of this.#links()) {
      link.close(reason);
      link.handleEvents();
    }
    this.#flush();
    this.#closed = true;
    clearInterval(this.#sweeper);
    clearTimeout(this.#deviceTimer);
    for (const link of this.#links()) clearTimeout(link.timer);
    await Promise.all([this.#options.relay.close(), this.#options.coordinator.close()]);
  }

  // --- clients: reaching an agent ---

  async #connect(agentId: string, options: DialOptions): Promise<SessionLink> {
    if (this.#closed) throw new MeshNodeError("ERR_NODE_CLOSED", "the node is closed");
    let target = this.#targets.get(agentId);
    if (!target) {
      target = { agentId, link: undefined, opening: undefined, goneAt: undefined, records: new Set() };
      this.#targets.set(agentId, target);
    }
    if (target.link && !target.link.session.isClosed) return target.link;
    target.opening ??= this.#open(target, options).finally(() => {
      target.opening = undefined;
    });
    return await target.opening;
  }

  async #open(target: Target, options: DialOptions): Promise<SessionLink> {
    const { coordinator, relay } = this.#options;
    const { grant, record } = await coordinator.requestGrant(target.agentId, options.signal);
    const homeRegion = record?.homeRegion;
    let place: Place | undefined;
    if (record && homeRegion !== undefined) place = { nodeKey: record.nodeKey, region: homeRegion };
    if (!place) options.onWait?.("agent");
    place ??= await this.#nextRecord(target, options.signal);
    const { region } = place;
    target.goneAt = undefined;
    const peer = this.#peer(fromBase64(place.nodeKey), region);
    const link = new SessionLink(this, peer.name, {
      role: "client",
      now: this.now(),
      sessionId: new Uint8Array(randomBytes(16)),
      grant,
      resumeWindowMs: RESUME_WINDOW_MS,
      keepaliveMs: KEEPALIVE_MS,
    });
    peer.links.set(link.session.tag as number, link);
    target.link = link;
    // The handshake can leave at once where the relay is connected; elsewhere onState brings the lane.
    await relay.connect(region);
    this.#addLane(peer);
    if (!this.#device.hasSession(peer.key, this.now()))
      this.#device.initiate(peer.key, this.now(), Date.now());
    this.#performDevice();
    return link;
  }

  #nextRecord(target: Target, signal?: AbortSignal): Promise<Place> {
    return new Promise((resolve, reject) => {
      const abort = () => {
        target.records.delete(arrived);
        reject(signal?.reason);
      };
      const arrived = (place: Place) => {
        signal?.removeEventListener("abort", abort);
        target.records.delete(arrived);
        resolve(place);
      };
      if (signal?.aborted) return reject(signal.reason);
      signal?.addEventListener("abort", abort, { once: true });
      target.records.add(arrived);
    });
  }

  #onRecord(agentId: string, nodeKey: string, region: number | undefined): void {
    const target = this.#targets.get(agentId);
    if (!target || region === undefined) return;
    target.goneAt = undefined;
    for (const arrived of [...target.records]) arrived({ nodeKey, region });
    const { link } = target;
    if (!link) return;
    if (link.peerKey !== nodeKey)
      // A new process has a new key and none of our state.
      return link.close("unknownSession", "the agent was restarted; connect again");
    const peer = this.#peers.get(nodeKey);
    if (peer && peer.region !== region) this.#move(peer, region);
  }

  // --- agents: letting clients in ---

  admit(link: SessionLink, hello: { grant: Uint8Array }): Grant | { refuse: CloseName } {
    const options = this.#options;
    if (options.role !== "agent") return { refuse: "notYours" };
    try {
      const grant = openStatement("grant", hello.grant, {
        keys: options.coordinator.signingKeys,
        verify: options.verify,
        nowMs: options.coordinator.nowMs(),
      });
      const peer = this.#peers.get(link.peerKey);
      if (!peer || !sameNodeKey(grant.nodeKey, peer.key) || grant.agentId !== options.coordinator.agentId)
        return { refuse: "notYours" };
      this.#device.admit(peer.key);
      return grant;
    } catch (error) {
      if (!(error instanceof StatementError)) throw error;
      // A session that goes on after a lost path needs no newer permission than it had, for a while.
      const unrenewedMs = this.now() - link.admittedAt;
      if (link.grant && error.code === "ERR_STATEMENT_EXPIRED" && unrenewedMs < MAX_UNRENEWED_MS)
        return link.grant;
      options.logger?.warn({ peer: link.peerKey, code: error.code }, "refused a grant");
      return { refuse: REFUSALS[error.code] };
    }
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
    handler(stream, { nodeKey: link.peerKey, grant: link.grant });
  }

  #revoke(ids: ReadonlySet<string>): void {
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
      if (this.#options.role !== "agent" || !peekHello(packet))
        return this.#refuse(key, tag, region, "unknownSession");
      peer = this.#peer(key, region);
      if (this.#links().length >= MAX_LINKS || peer.links.size >= MAX_LINKS_PER_PEER)
        return this.#refuse(key, tag, region, "resourceLimit");
      link = new SessionLink(this, name, {
        role: "agent",
        now: this.now(),
        resumeWindowMs: RESUME_WINDOW_MS,
      });
      peer.links.set(tag, link);
    }
    if (!peer) return;
    // Authenticated, so this is where the peer is now.
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
  }

  #send(link: SessionLink): void {
    const peer = this.#peers.get(link.peerKey);
    if (peer?.lane === undefined) return;
    const { relay } = this.#options;
    while (relay.isWritable(peer.region)) {
      // Pulled before there are keys, a packet would be lost.
      if (!this.#device.hasSession(peer.key, this.now())) {
        if (!link.session.isClosed) this.#device.initiate(peer.key, this.now(), Date.now());
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
        this.#device.handleTimeout(this.now(), Date.now());
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
      peer = { key: key.slice(), name, region, lane: undefined, links: new Map() };
      this.#peers.set(name, peer);
    }
    return peer;
  }

  #addLane(peer: Peer): void {
    peer.lane ??= this.#nextLane++;
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
      if (connected) this.#addLane(peer);
      else this.#dropLane(peer);
    }
  }

  #scheduleRegion(region: number): void {
    for (const peer of this.#peers.values())
      if (peer.region === region) for (const link of peer.links.values()) this.schedule(link);
  }

  // --- ends ---

  onClosed(link: SessionLink, error: MeshNodeError | undefined): void {
    if (error) this.#options.logger?.debug({ peer: link.peerKey, reason: error.message }, "a session ended");
    for (const target of this.#targets.values()) if (target.link === link) target.link = undefined;
  }

  #forget(link: SessionLink): void {
    clearTimeout(link.timer);
    const peer = this.#peers.get(link.peerKey);
    if (!peer) return;
    for (const [tag, known] of peer.links) if (known === link) peer.links.delete(tag);
    if (peer.links.size > 0) return;
    this.#peers.delete(peer.name);
    this.#device.removePeer(peer.key);
  }

  /** Looks for what no packet announces: silent clients, agents that left, sessions nobody let in. */
  #sweep(): void {
    const now = this.now();
    for (const target of this.#targets.values()) {
      const { link, goneAt } = target;
      if (link && goneAt !== undefined && now - Math.max(goneAt, link.lastHeardAt) > GONE_TIMEOUT_MS)
        link.close("idle", "the agent went away and did not come back");
    }
    for (const link of this.#links()) {
      if (link.session.isDrained(now)) this.#forget(link);
      else if (link.session.role === "agent" && now - link.lastHeardAt > this.#patienceMs(link))
        link.close("idle");
    }
  }

  #patienceMs(link: SessionLink): number {
    if (!link.grant) return ANSWER_TIMEOUT_MS;
    return Math.min(Math.max(link.resumeWindowMs, 2 * KEEPALIVE_MS), MAX_RESUME_WINDOW_MS);
  }

  #links(): SessionLink[] {
    return [...this.#peers.values()].flatMap(({ links }) => [...links.values()]);
  }

  #pathOf(link: SessionLink): PathInfo {
    return { kind: "relay", region: this.#peers.get(link.peerKey)?.region ?? 0 };
  }

  #withDeadline(
    ready: Promise<void>,
    signal: AbortSignal | undefined,
    onTimeout: () => Error,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (act: () => void) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        act();
      };
      const abort = () => settle(() => reject(signal?.reason));
      const timer = setTimeout(() => settle(() => reject(onTimeout())), ANSWER_TIMEOUT_MS);
      if (signal?.aborted) return abort();
      signal?.addEventListener("abort", abort, { once: true });
      ready.then(
        () => settle(resolve),
        (error: Error) => settle(() => reject(error)),
      );
    });
  }
}

const regionOf = (source: { key: string }): number => Number.parseInt(source.key, 10);
