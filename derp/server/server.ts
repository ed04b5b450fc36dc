// The relay as a part of an HTTP server: takes over upgraded sockets, keeps time for all connections, ends them all.
import { createHash, timingSafeEqual } from "node:crypto";
import { Socket } from "node:net";
import { performance } from "node:perf_hooks";
import type { Duplex } from "node:stream";
import { toHex } from "../../mesh/wire/bytes.ts";
import { encodeFrame, isMeshKeyText, PROTOCOL_VERSION } from "../../mesh/wire/derp.ts";
import { type KeyPair, keyPair } from "../box.ts";
import {
  type AdmissionLimits,
  type AdmissionMode,
  Admissions,
  DEFAULT_ADMISSION,
  type TicketChecks,
} from "./admission.ts";
import { Connection, type Host, type Origin, RelayRefusal } from "./connection.ts";
import { answer, UPGRADE_REQUIRED, type UpgradeRequest } from "./http.ts";
import { DEFAULT_LIMITS, type DerpLimits } from "./limits.ts";
import { MeshPeer, type MeshPeerOptions } from "./mesh-peer.ts";
import { Counters, counter, counterMetrics, gauge, type Metric } from "./metrics.ts";
import { NO_LIMIT, type Rate, type RateConfig, TokenBucket } from "./rate.ts";
import { Relay } from "./relay.ts";
import { acceptWebSocket } from "./websocket.ts";

/** The part of a pino logger that is used. */
export interface DerpLogger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** A connection that proved its key and asks to come in. */
export interface AdmitRequest {
  /** Node key, 32 bytes. */
  key: Uint8Array;
  remoteAddress: string;
  /** Of the upgrade request. */
  headers: Record<string, string | string[] | undefined>;
}

export interface DerpServerOptions {
  /** Curve25519; a fresh one by default. */
  privateKey?: Uint8Array;
  logger?: DerpLogger;
  limits?: Partial<DerpLimits>;
  /**
   * Decides who may use the relay, beside tickets; everybody by default. A rejection and an answer too late both mean
   * no. Servers of the region are not asked about.
   */
  admit?: (request: AdmitRequest) => boolean | Promise<boolean>;
  /** How relay tickets are checked; without it nobody's are, and `admission` must be "open". */
  tickets?: TicketChecks & { nowMs?: () => number };
  /** Whether a key without a ticket comes in, under tight limits; default "open". */
  admission?: AdmissionMode;
  admissionLimits?: Partial<AdmissionLimits>;
  /** How much clients may send; no limit by default. */
  rates?: RateConfig;
  /** Shared by the servers of a region: 64 hex digits or 32 printable characters. Never logged. */
  meshKey?: string;
}

/** Plain numbers of now, for tests and health checks; `metrics` has everything. */
export interface DerpStats {
  accepts: number;
  refused: number;
  bytesReceived: number;
  bytesSent: number;
  packetsReceived: number;
  packetsSent: number;
  packetsForwardedIn: number;
  packetsForwardedOut: number;
  droppedUnknownDestination: number;
  droppedGone: number;
  droppedQueueHead: number;
  gotPing: number;
  sentPong: number;
  writeTimeouts: number;
  protocolErrors: number;
  rateLimitWaited: number;
  currentConnections: number;
  currentUnproven: number;
  currentHomeConnections: number;
  currentKeys: number;
  /** Keys that only siblings have. */
  currentRemoteKeys: number;
  currentDuplicateKeys: number;
  currentWatchers: number;
  queuedBytes: number;
  peerGoneDisconnectedFrames: number;
  peerGoneNotHereFrames: number;
}

/** What serves `/derp`: a relay in this process, or one in its own. */
export interface RelayService {
  /** Takes over an upgrade request for `/derp`. */
  handleUpgrade(req: UpgradeRequest, socket: Duplex, head: Uint8Array): void;
  setHealth(problem: string): void;
  /** Ends all connections of one node key, which may come back. @returns how many, if that is known */
  disconnect(key: Uint8Array): number | undefined;
  /** The key was revoked: ends its connections, here and at siblings, and voids the tickets it has. */
  closePeer(key: Uint8Array, nowMs?: number): void;
  /** The same for all keys that came with tickets of a subject, "user:<uuid>" or "agent:<uuid>". */
  closeSubject(subject: string, nowMs?: number): void;
  setRates(rates: RateConfig): void;
  metrics(): Metric[] | Promise<Metric[]>;
  /** Whether connections are taken. */
  readonly isUp: boolean;
  close(options?: { reconnectInMs?: number; tryForMs?: number }): Promise<void>;
}

const KEEP_ALIVE = encodeFrame({ kind: "keepAlive" });
/** For clients to read the last frame and close; then we do. */
const CLOSE_GRACE_MS = 1_000;
/** Long on purpose: it wakes phones and laptops. */
const TCP_KEEPALIVE_MS = 600_000;

export class DerpServer implements RelayService {
  readonly publicKey: Uint8Array;
  #keys: KeyPair;
  #limits: DerpLimits;
  #logger: DerpLogger | undefined;
  #admit: DerpServerOptions["admit"];
  #admissions: Admissions;
  #hasTickets: boolean;
  #nowMs: () => number;
  #perClient: Rate;
  #accepting: TokenBucket;
  #meshKey: string | undefined;
  #meshKeyHash: Uint8Array | undefined;
  #siblings = new Map<string, MeshPeer>();
  #relay: Relay<Connection, MeshPeer>;
  #connections = new Set<Connection>();
  #unproven = new Set<Connection>();
  /** The oldest first, as in `#unproven`. */
  #unprovenByAddress = new Map<string, Set<Connection>>();
  #unprovenBytes = 0;
  #health = "";
  #timer: NodeJS.Timeout | undefined;
  #sweptAt = 0;
  #closing: Promise<void> | undefined;
  #onEmpty: (() => void) | undefined;
  #greeting: Uint8Array;
  #host: Host;
  #counters = new Counters();

  /** @throws {TypeError} for options that contradict each other */
  constructor(options: DerpServerOptions = {}) {
    const now = performance.now();
    this.#keys = keyPair(options.privateKey);
    this.publicKey = this.#keys.publicKey;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#logger = options.logger;
    this.#admit = options.admit;
    this.#nowMs = options.tickets?.nowMs ?? Date.now;
    this.#hasTickets = options.tickets !== undefined;
    this.#admissions = new Admissions(options.admission ?? "open", options.tickets, {
      ...DEFAULT_ADMISSION,
      ...options.admissionLimits,
    });
    this.#perClient = NO_LIMIT;
    if (options.rates) this.setRates(options.rates);
    this.#accepting = new TokenBucket(
      { bytesPerSecond: this.#limits.acceptsPerSecond, burstBytes: this.#limits.acceptBurst },
      now,
      1,
    );
    if (options.meshKey !== undefined && !isMeshKeyText(options.meshKey))
      throw new TypeError("a mesh key is 64 hex digits or 32 printable characters");
    this.#meshKey = options.meshKey;
    this.#meshKeyHash = options.meshKey === undefined ? undefined : hashOf(options.meshKey);
    this.#relay = new Relay(this.#limits.connectionsPerKey);
    this.#greeting = encodeFrame({ kind: "serverKey", key: this.publicKey });
    this.#host = this.#makeHost();
  }

  get isUp(): boolean {
    return this.#closing === undefined;
  }

  get stats(): DerpStats {
    const { hot, drops } = this.#counters;
    let queuedBytes = 0;
    for (const connection of this.#connections) queuedBytes += connection.queuedBytes;
    return {
      ...hot,
      droppedUnknownDestination: drops.unknown_dest.frames,
      droppedGone: drops.gone_disconnected.frames,
      droppedQueueHead: drops.queue_head.frames,
      currentConnections: this.#relay.connections,
      currentUnproven: this.#unproven.size,
      currentHomeConnections: this.#relay.homes,
      currentKeys: this.#relay.keys,
      currentRemoteKeys: this.#relay.remoteKeys,
      currentDuplicateKeys: this.#relay.duplicates.keys,
      currentWatchers: this.#relay.watchers,
      queuedBytes,
      peerGoneDisconnectedFrames: this.#relay.counters.peerGoneDisconnected,
      peerGoneNotHereFrames: this.#relay.counters.peerGoneNotHere,
    };
  }

  /** Everything that is counted, under the names deployed relays use. */
  metrics(): Metric[] {
    const relay = this.#relay;
    const { counters, duplicates } = relay;
    let queuedBytes = 0;
    let notIdeal = 0;
    for (const { queuedBytes: bytes, origin, state } of this.#connections) {
      queuedBytes += bytes;
      if (state === "open" && origin.headers["ideal-node"] !== undefined) notIdeal++;
    }
    let siblings = 0;
    for (const { isUp } of this.#siblings.values()) if (isUp) siblings++;
    return [
      gauge("gauge_current_connections", "Connections that proved their key.", relay.connections),
      gauge("gauge_current_unproven", "Connections in their handshake.", this.#unproven.size),
      gauge("gauge_current_home_connections", "Connections of clients at home here.", relay.homes),
      gauge("gauge_current_notideal_connections", "Connections of clients meant for another node.", notIdeal),
      gauge("gauge_clients_total", "Keys in the region.", relay.keys + relay.remoteKeys),
      gauge("gauge_clients_local", "Keys connected here.", relay.keys),
      gauge("gauge_clients_remote", "Keys connected to siblings alone.", relay.remoteKeys),
      gauge("gauge_watchers", "Siblings that watch our connections.", relay.watchers),
      gauge("gauge_siblings", "Siblings that we are connected to.", siblings),
      gauge("gauge_current_dup_client_keys", "Keys with several connections.", duplicates.keys),
      gauge("gauge_current_dup_client_conns", "Connections of such keys.", duplicates.connections),
      gauge("gauge_queued_bytes", "Bytes that wait for slow receivers.", queuedBytes),
      counter(
        "counter_total_dup_client_conns",
        "Connections with a key that had one.",
        counters.duplicateConnections,
      ),
      counter("home_moves_in", "Clients that moved their home here.", counters.homeMovesIn),
      counter("home_moves_out", "Clients that moved their home away.", counters.homeMovesOut),
      counter("peer_gone_disconnected_frames", "Notices of ended peers.", counters.peerGoneDisconnected),
      counter("peer_gone_not_here_frames", "Notices of missing peers.", counters.peerGoneNotHere),
      counter(
        "multiforwarder_created",
        "Keys that came to have several siblings.",
        counters.multiForwarderCreated,
      ),
      counter("multiforwarder_deleted", "Keys that have only one again.", counters.multiForwarderDeleted),
      counter(
        "packet_forwarder_delete_other_value",
        "Siblings that took back a key they had not reported.",
        counters.forwarderDeleteOther,
      ),
      ...counterMetrics(this.#counters),
    ];
  }

  /** What should never be. @returns what is wrong, in words; empty when all is well */
  checkConsistency(): string[] {
    const wrong = this.#relay.inconsistencies();
    let open = 0;
    for (const { state } of this.#connections) if (state === "open") open++;
    if (open !== this.#relay.connections)
      wrong.push(`${open} open connections, ${this.#relay.connections} registered`);
    return wrong;
  }

  /**
   * Takes over a connection from an HTTP server's `upgrade` event (the caller has matched the path `/derp`).
   * `head`: bytes read behind the request; they belong to DERP already.
   */
  handleUpgrade(req: UpgradeRequest, socket: Duplex, head: Uint8Array): void {
    const upgrade = (req.headers.upgrade ?? "").toLowerCase();
    const subprotocols = (req.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
    const webSocket = upgrade === "websocket" && subprotocols.includes("derp");
    if (req.method !== "GET" || !(upgrade === "derp" || upgrade === "websocket")) {
      answer(socket, "426 Upgrade Required", UPGRADE_REQUIRED, "Upgrade: DERP\r\n");
      return;
    }
    if (this.#closing) {
      answer(socket, "503 Service Unavailable", "The relay is shutting down.\n");
      return;
    }
    const origin = originOf(req);
    const { hot } = this.#counters;
    const neighbours = this.#unprovenByAddress.get(addressGroup(origin.remoteAddress));
    if (
      !this.#hasRoom(neighbours, this.#limits.unprovenPerAddress) ||
      !this.#hasRoom(this.#unproven, this.#limits.unproven) ||
      !this.#accepting.tryTake(1, performance.now())
    ) {
      hot.refused++;
      answer(socket, "503 Service Unavailable", "Too many connections are being opened. Try again.\n");
      return;
    }
    hot.accepts++;
    if (socket instanceof Socket) {
      socket.setTimeout(0);
      socket.setNoDelay(true);
      socket.setKeepAlive(true, TCP_KEEPALIVE_MS);
    }
    if (webSocket) {
      acceptWebSocket(req, socket, head, (stream) =>
        this.#start(new Connection(this.#host, stream, origin), this.#greeting, new Uint8Array()),
      );
      return;
    }
    // Fast start: the client knew our key and sent its ClientInfo at once; it wants no HTTP response.
    const greeting =
      req.headers["derp-fast-start"] === "1"
        ? this.#greeting
        : Buffer.concat([Buffer.from(this.#responseHead(), "latin1"), this.#greeting]);
    this.#start(new Connection(this.#host, socket, origin), greeting, head);
  }

  /** Tells all clients, now and when they connect, of a problem; "" when it is over. */
  setHealth(problem: string): void {
    this.#health = problem;
    this.#broadcast(encodeFrame({ kind: "health", problem }));
  }

  disconnect(key: Uint8Array): number {
    const clients = this.#relay.clientsOf(Buffer.from(key).toString("latin1"));
    for (const client of clients) client.handle.close();
    return clients.length;
  }

  closePeer(key: Uint8Array, nowMs = this.#nowMs()): void {
    this.#admissions.block({ key }, nowMs);
    this.disconnect(key);
    for (const sibling of this.#siblings.values()) sibling.closePeer(key);
  }

  closeSubject(subject: string, nowMs = this.#nowMs()): void {
    this.#admissions.block({ subject }, nowMs);
    for (const connection of [...this.#connections])
      if (connection.subject?.name === subject && connection.key) this.closePeer(connection.key, nowMs);
  }

  /** Replaces the rates, also of connections that are open. */
  setRates(rates: RateConfig): void {
    const now = performance.now();
    this.#perClient = rates.perClient ?? NO_LIMIT;
    this.#admissions.setRates(rates, now);
    for (const connection of this.#connections) connection.ratesChanged(this.#perClient);
  }

  /**
   * The other servers of the region, by the URLs of their relays; replaces those given before. Our own may be among
   * them.
   *
   * @throws {TypeError} without a mesh key
   */
  setSiblings(urls: readonly (string | URL)[], options: MeshPeerOptions = {}): void {
    const meshKey = this.#meshKey;
    if (meshKey === undefined) throw new TypeError("servers of a region need a mesh key");
    const wanted = new Set(this.#closing ? [] : urls.map((url) => new URL(url).href));
    for (const [url, sibling] of this.#siblings) {
      if (wanted.has(url)) continue;
      this.#siblings.delete(url);
      sibling.close();
    }
    const latin1 = (key: Uint8Array): string => Buffer.from(key).toString("latin1");
    for (const url of wanted) {
      if (this.#siblings.has(url)) continue;
      const host = {
        keys: this.#keys,
        meshKey,
        counters: this.#counters,
        now: () => performance.now(),
        random: Math.random,
        present: (peer: MeshPeer, key: Uint8Array) => this.#relay.addForwarder(latin1(key), peer),
        gone: (peer: MeshPeer, key: Uint8Array) => {
          this.#relay.removeForwarder(latin1(key), peer);
          this.#host.deliverNotices();
        },
        up: () => this.#logger?.info({ url }, "connected to a relay of the region"),
        down: (peer: MeshPeer, error: Error) => {
          this.#relay.removeForwarders(peer);
          this.#host.deliverNotices();
          this.#logger?.debug(
            { url, err: error.message, code: codeOf(error) },
            "relay of the region is away",
          );
        },
      };
      this.#siblings.set(url, new MeshPeer(host, url, options));
    }
  }

  /**
   * Ends all connections. Clients are asked to come back after `reconnectInMs` and to keep trying for `tryForMs`.
   * Resolves when every socket is closed, at most one second later. No connection is accepted any more.
   */
  close({ reconnectInMs = 250, tryForMs = 5_000 } = {}): Promise<void> {
    for (const sibling of this.#siblings.values()) sibling.close();
    this.#siblings.clear();
    this.#closing ??= new Promise((resolve) => {
      const frame = encodeFrame({ kind: "restarting", reconnectInMs, tryForMs });
      const timer = setTimeout(() => {
        for (const connection of this.#connections) connection.close();
      }, CLOSE_GRACE_MS);
      this.#onEmpty = () => {
        clearTimeout(timer);
        clearInterval(this.#timer);
        this.#timer = undefined;
        resolve();
      };
      for (const connection of this.#connections) connection.end(frame);
      if (this.#connections.size === 0) this.#onEmpty();
    });
    return this.#closing;
  }

  #start(connection: Connection, greeting: Uint8Array, head: Uint8Array): void {
    this.#connections.add(connection);
    this.#unproven.add(connection);
    const address = addressGroup(connection.origin.remoteAddress);
    const neighbours = this.#unprovenByAddress.get(address);
    if (neighbours) neighbours.add(connection);
    else this.#unprovenByAddress.set(address, new Set([connection]));
    this.#startTimer();
    connection.start(greeting, head);
  }

  /** Whether there is room for one more among `unproven`; if need be the oldest makes it. */
  #hasRoom(unproven: Set<Connection> | undefined, max: number): boolean {
    if (!unproven || unproven.size < max) return true;
    const [oldest] = unproven;
    if (!oldest || performance.now() - oldest.startedAt < this.#limits.unprovenYieldMs) return false;
    oldest.close(new RelayRefusal("ERR_RELAY_TIMEOUT", "handshake not finished, and others wait"));
    return true;
  }

  #responseHead(): string {
    return [
      "HTTP/1.1 101 Switching Protocols",
      "Upgrade: DERP",
      "Connection: Upgrade",
      `Derp-Version: ${PROTOCOL_VERSION}`,
      `Derp-Public-Key: ${toHex(this.publicKey)}`,
      "\r\n",
    ].join("\r\n");
  }

  #makeHost(): Host {
    const server = this;
    return {
      limits: this.#limits,
      ...this.#keys,
      relay: this.#relay,
      counters: this.#counters,
      get health() {
        return server.#health;
      },
      now: () => performance.now(),
      isMeshKey: (meshKey) =>
        this.#meshKeyHash !== undefined && timingSafeEqual(hashOf(meshKey), this.#meshKeyHash),
      admit: (connection) => this.#admitted(connection),
      bucketsOf: ({ subject }) => {
        const own = new TokenBucket(this.#perClient, performance.now());
        return subject ? [own, subject.bucket] : [own];
      },
      revoke: (key) => {
        // Other operators' siblings say it too; without tickets there is nothing to void, and no way back either.
        if (this.#hasTickets) this.#admissions.block({ key }, this.#nowMs());
        this.disconnect(key);
      },
      reserve: (bytes) => {
        this.#unprovenBytes += bytes;
        return this.#unprovenBytes <= this.#limits.unprovenBytes;
      },
      proven: (connection) => this.#proven(connection),
      deliverNotices: () => {
        for (const { to, key, reason } of this.#relay.takeNotices()) {
          const frame = encodeFrame({ kind: "peerGone", key: Buffer.from(key, "latin1"), reason });
          to.handle.sendControl(frame);
        }
        for (const watcher of this.#relay.takeWatchers()) watcher.handle.sendUpdates();
      },
      closed: (connection, error) => {
        this.#connections.delete(connection);
        if (connection.subject) this.#admissions.release(connection.subject, performance.now());
        if (error && !this.#closing)
          this.#logger?.debug(
            { remoteAddress: connection.origin.remoteAddress, err: error.message, code: codeOf(error) },
            "relay connection ended",
          );
        if (this.#connections.size === 0) this.#idle();
      },
    };
  }

  #admitted(connection: Connection): boolean | Promise<boolean> {
    const { remoteAddress, headers } = connection.origin;
    const { ticket } = connection;
    const key = connection.key!;
    const address = addressGroup(remoteAddress);
    const verdict = this.#admissions.admit({ key, ticket, address }, this.#nowMs(), performance.now());
    if (!verdict.ok) {
      this.#logger?.debug({ remoteAddress, why: verdict.why }, "relay connection not admitted");
      return false;
    }
    connection.subject = verdict.subject;
    if (!this.#admit) return true;
    try {
      return this.#admit({ key, remoteAddress, headers });
    } catch {
      return false;
    }
  }

  #proven(connection: Connection): void {
    if (!this.#unproven.delete(connection)) return;
    const address = addressGroup(connection.origin.remoteAddress);
    const neighbours = this.#unprovenByAddress.get(address);
    neighbours?.delete(connection);
    if (neighbours?.size === 0) this.#unprovenByAddress.delete(address);
    const { keepAliveMs, keepAliveJitterMs } = this.#limits;
    connection.keepAliveEveryMs = keepAliveMs + Math.random() * keepAliveJitterMs;
    connection.nextKeepAliveAt = performance.now() + connection.keepAliveEveryMs;
  }

  /** One timer for all connections: thousands of them each with its own would cost more than they do. */
  #startTimer(): void {
    const { handshakeMs, writeTimeoutMs, keepAliveMs } = this.#limits;
    const everyMs = Math.max(10, Math.min(1_000, handshakeMs / 4, writeTimeoutMs / 4, keepAliveMs / 4));
    this.#timer ??= setInterval(() => this.#sweep(performance.now()), everyMs);
  }

  #idle(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#onEmpty?.();
  }

  #sweep(now: number): void {
    const { handshakeMs, admitMs } = this.#limits;
    if (now - this.#sweptAt >= 1_000) {
      this.#sweptAt = now;
      this.#admissions.sweep(now);
    }
    for (const connection of this.#unproven) {
      const allowedMs = connection.state === "admitting" ? handshakeMs + admitMs : handshakeMs;
      if (now - connection.startedAt >= allowedMs)
        connection.close(new RelayRefusal("ERR_RELAY_TIMEOUT", "handshake not finished in time"));
    }
    for (const connection of this.#connections) {
      if (connection.blockedAt !== undefined && now - connection.blockedAt >= connection.writeTimeoutMs) {
        this.#counters.hot.writeTimeouts++;
        connection.close(new RelayRefusal("ERR_RELAY_TIMEOUT", "the client does not read"));
      } else if (now >= connection.nextKeepAliveAt) {
        connection.nextKeepAliveAt = now + connection.keepAliveEveryMs;
        connection.sendControl(KEEP_ALIVE);
      }
    }
  }

  #broadcast(frame: Uint8Array): void {
    for (const connection of this.#connections) connection.sendControl(frame);
  }
}

const hashOf = (text: string): Uint8Array => createHash("sha256").update(text).digest();

/** Browsers can't set headers on a WebSocket: theirs brings the ticket in the query. */
function originOf(req: UpgradeRequest): Origin {
  const { headers, socket, url = "" } = req;
  const header = headers["derp-ticket"];
  const query = url.indexOf("?");
  const inQuery = query === -1 ? null : new URLSearchParams(url.slice(query)).get("ticket");
  return {
    remoteAddress: socket.remoteAddress ?? "internal",
    remotePort: socket.remotePort,
    headers,
    ticket: (Array.isArray(header) ? header[0] : header) ?? inQuery ?? undefined,
  };
}

function codeOf(error: Error): string | undefined {
  return "code" in error && typeof error.code === "string" ? error.code : undefined;
}

/** What counts as one address: an IPv4 address, or the /64 an IPv6 host chooses from. */
export function addressGroup(address: string): string {
  const v4 = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
  if (v4) return v4[1];
  if (!address.includes(":")) return address;
  const [left, right] = address.split("%", 1)[0].split("::");
  const head = left ? left.split(":") : [];
  const tail = right ? right.split(":") : [];
  const zeros = right === undefined ? 0 : Math.max(0, 8 - head.length - tail.length);
  return [...head, ...Array<string>(zeros).fill("0"), ...tail]
    .slice(0, 4)
    .map((part) => Number.parseInt(part || "0", 16).toString(16))
    .join(":");
}
