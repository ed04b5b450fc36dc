// All relay connections of a node: one per region of the map, the home for good, others while they are written to.
import type { DerpMapLike, Relay, RelayPacket, RelayState } from "../../mesh/node/relay.ts";
import { type Runtime, systemRuntime, type Timer } from "../../mesh/node/runtime.ts";
import { concatBytes, equalBytes } from "../../mesh/wire/bytes.ts";
import { backoffMs } from "./backoff.ts";
import { DerpClient, type DerpClientOptions } from "./client.ts";
import type { RelayConnection } from "./connection.ts";
import type { DialOptions } from "./dial.ts";
import type { EarlyDial } from "./early.ts";
import { isRelayError, RelayError } from "./errors.ts";
import { preferredHome, ReportHistory } from "./home.ts";
import type { NetcheckReport } from "./netcheck.ts";
import {
  type ClientMap,
  type ClientNode,
  type ClientRegion,
  chooseHome,
  isEligibleHome,
  nodeAddresses,
  nodeKey,
  nodeUrl,
  relayNodes,
  withAccessUrl,
} from "./nodes.ts";

export interface RelayClientOptions {
  /** The node key's private half, 32 bytes. */
  privateKey: Uint8Array;
  map?: DerpMapLike;
  /** Fixed home; chosen from the map, then by latency, by default. */
  homeRegion?: number;
  /** Where this node reaches the control plane: its own relay is dialled there. */
  accessUrl?: string | URL;
  /** Of every upgrade request. */
  headers?: Record<string, string>;
  /** The relay ticket in base64, asked for at each attempt; relays admit its bearer under its limits. */
  ticket?: () => string | undefined;
  /** A connection to the access URL that was begun before the map was known; the first relay there gets it. */
  early?: EarlyDial;
  /** A certificate authority in PEM beside the system's. */
  ca?: string;
  appName?: string;
  /** DERP over WebSocket at once, instead of when an upgrade was refused. */
  forceWebSockets?: boolean;
  /** false: the home stays the first by order. Without a choice between regions nothing is measured anyway. */
  measureHome?: boolean;
  /** Asked before a measured home is taken: whether peers would learn of it now. */
  canMoveHome?: () => boolean;
  /** Where HTTPS_PROXY, HTTP_PROXY and NO_PROXY are read; the process's by default. */
  environment?: DialOptions["environment"];
  /** 0..1; spreads reconnects. */
  random?: () => number;
  /** Clocks and timers; the process's by default. Connections keep to the process's own. */
  runtime?: Runtime;
  /** Makes one connection that is not open yet; a DerpClient by default. */
  newConnection?: (options: DerpClientOptions) => RelayConnection;
}

/** Between two nodes of one region, as long as another is left. */
const NODE_CONNECT_MS = 1_500;
/**
 * For TCP to a relay that was reached before. Lost connection requests are repeated after 1, 3 and 7 s; starting over
 * keeps the gap short, for the relay's return to be noticed.
 */
const RECONNECT_TCP_MS = 2_500;
/** Every so many failures an attempt gets all the time there is, for a network that became that slow. */
const PATIENT_EVERY = 4;
const CONNECT_MS = 10_000;
/** A connection that is not home closes after this without a write. */
const IDLE_MS = 60_000;
const IDLE_CHECK_MS = 15_000;
const MAX_ROUTES = 4_096;
/** A relay may ask for no longer pause than this. */
const MAX_RESTART_MS = 30_000;
/** A connection that ended sooner was not good: a relay that greets and hangs up is not dialled without pause. */
const STABLE_MS = 5_000;
/** For the answer to a ping when the path is in doubt. */
const CHECK_MS = 3_000;
/** Frames that late in a check are the path's own sign of life: what came earlier may have waited in our kernel. */
const CHECK_FRESH_MS = 1_000;
/** An attempt older than that, when the network may have changed, is begun anew. */
const STALE_ATTEMPT_MS = 1_000;
/** Then the plain upgrade is tried again: what refused it may have been a deployment of a minute. */
const WEBSOCKET_MS = 3_600_000;
/** Short commands are over by then. */
const FIRST_MEASURE_MS = 2_000;
const MEASURE_EVERY_MS = 120_000;
/** Not more often, whatever changes. */
const MEASURE_GAP_MS = 20_000;

/** One region: at most one connection, one attempt, or one pause. */
interface Link {
  id: number;
  region: ClientRegion;
  client: RelayConnection | undefined;
  attempt: Promise<void> | undefined;
  attemptAt: number;
  abort: AbortController | undefined;
  timer: Timer | undefined;
  failures: number;
  /** A connection was confirmed at some time. */
  known: boolean;
  /** When the present connection was confirmed; ms. */
  confirmedAt: number | undefined;
  /** The last time the connection was known to be good; ms. */
  goodAt: number;
  /** The last time somebody wanted to send; ms. */
  usedAt: number;
  /** Asked for by the relay that is about to restart. */
  restartInMs: number | undefined;
  /** Whose route is already known to be this region. */
  lastSrc: Uint8Array;
  /** Our half of the handshake may leave before the relay's, where its key is known. */
  fastStart: boolean;
  /** Why WebSocket is used, and until when the plain upgrade is not tried. */
  webSocket: { reason: string; untilAt: number } | undefined;
  checking: boolean;
}

export class RelayClient implements Relay {
  onPacket: ((packet: RelayPacket) => void) | undefined;
  onPeerGone: ((peer: Uint8Array, region: number, reason: number) => void) | undefined;
  onState: ((state: RelayState) => void) | undefined;
  onDrain: ((region: number) => void) | undefined;
  /** The home changed: peers must be told. */
  onHome: ((region: number | undefined) => void) | undefined;
  /** A region is dialled over WebSocket from now on, and why; undefined: no longer. */
  onFallback: ((region: number, reason: string | undefined) => void) | undefined;
  /** A problem a relay reports, for the user; "" when it is over. */
  onHealth: ((region: number, problem: string) => void) | undefined;

  #options: RelayClientOptions;
  readonly #runtime: Runtime;
  #random: () => number;
  #links = new Map<number, Link>();
  /** Peer (latin1) -> region where it was last heard. */
  #routes = new Map<string, number>();
  #home: number | undefined;
  /** Measured to be better; becomes home once it is connected. */
  #nextHome: number | undefined;
  #map: ClientMap | undefined;
  #v6KnownGood = false;
  #history = new ReportHistory<NetcheckReport>();
  #measuring: Promise<NetcheckReport> | undefined;
  #measuredAt = Number.NEGATIVE_INFINITY;
  #measureTimer: Timer | undefined;
  #stop = new AbortController();
  #idleTimer: Timer | undefined;
  #closed = false;

  constructor(options: RelayClientOptions) {
    this.#options = options;
    this.#runtime = options.runtime ?? systemRuntime;
    this.#random = options.random ?? (() => this.#runtime.random());
    if (options.map) this.#applyMap(options.map);
  }

  get homeRegion(): number | undefined {
    return this.#home;
  }

  connected(region: number): boolean {
    return this.#links.get(region)?.client?.connected ?? false;
  }

  /** Replaces the map: regions that are gone or changed are closed, the home and those in use are dialled again. */
  setMap(map: DerpMapLike): void {
    if (!this.#closed) this.#applyMap(map);
  }

  /**
   * Sends over the connection to `region`, else over the one `peer` was last heard on; without either it dials
   * `region` in the background.
   */
  send(peer: Uint8Array, region: number, data: Uint8Array): boolean {
    return this.#way(peer, region)?.send(peer, data) ?? false;
  }

  sendPieces(peer: Uint8Array, region: number, pieces: readonly Uint8Array[]): boolean {
    const way = this.#way(peer, region);
    if (!way) return false;
    return way.sendPieces ? way.sendPieces(peer, pieces) : way.send(peer, concatBytes(...pieces));
  }

  /** The connection that a packet takes; without one the region is dialled. */
  #way(peer: Uint8Array, region: number): RelayConnection | undefined {
    const link = this.#links.get(region);
    const now = this.#runtime.nowMs();
    if (link) link.usedAt = now;
    if (link?.client?.connected) return link.client;
    const heard = this.#routes.size > 0 ? this.#links.get(this.#routes.get(text(peer)) ?? -1) : undefined;
    if (heard?.client?.connected) {
      heard.usedAt = now;
      return heard.client;
    }
    if (link && !link.timer) this.#dial(link).catch(() => {}); // told through onState
    return undefined;
  }

  isWritable(region: number): boolean {
    return this.#links.get(region)?.client?.isWritable ?? false;
  }

  /** The map's name for people. */
  regionName(region: number): string {
    return this.#links.get(region)?.region.RegionName ?? `region ${region}`;
  }

  bufferedBytes(region: number): number {
    return this.#links.get(region)?.client?.bufferedBytes ?? 0;
  }

  /**
   * Resolves once packets can be sent to `region`; a pause before a reconnect is cut short.
   *
   * @throws {RelayError} this attempt's failure; for the home and regions in use further ones follow in the background
   */
  async connect(region: number): Promise<void> {
    const link = this.#links.get(region);
    if (this.#closed || !link)
      throw new RelayError(
        this.#closed ? "ERR_RELAY_CLOSED" : "ERR_RELAY_NO_REGION",
        this.#closed ? "the relay client is closed" : `the relay map has no relay in region ${region}`,
      );
    link.usedAt = this.#runtime.nowMs();
    if (!link.client?.connected) await this.#dial(link);
  }

  /** @throws {RelayError} as connect and DerpClient.ping */
  async ping(region: number): Promise<number> {
    await this.connect(region);
    const client = this.#links.get(region)?.client;
    if (!client) throw new RelayError("ERR_RELAY_CLOSED", "the relay connection ended");
    return client.ping();
  }

  /** Why `region` is dialled over WebSocket, if it is. */
  fallbackReason(region: number): string | undefined {
    return this.#links.get(region)?.webSocket?.reason;
  }

  /**
   * The network may have changed, or the path seems dead: connections to `region` (default: all) that come from an
   * address the machine no longer has are made anew at once, others unless they show life within 3 s; pauses end.
   */
  check(region?: number): void {
    if (this.#closed) return;
    const asked = region === undefined ? undefined : this.#links.get(region);
    for (const link of region === undefined ? this.#links.values() : asked ? [asked] : [])
      this.#checkLink(link);
    if (region === undefined) this.#measureSoon(0);
  }

  /**
   * Measures all regions now, whether there is a choice or not; the home may move by it.
   *
   * @throws {RelayError} ERR_RELAY_ABORTED, ERR_RELAY_NO_REGION without a map
   */
  netcheck({ full = true } = {}): Promise<NetcheckReport> {
    this.#measuring ??= this.#measure(full).finally(() => {
      this.#measuring = undefined;
    });
    return this.#measuring;
  }

  /** The latest report, if anything was measured. */
  get lastReport(): NetcheckReport | undefined {
    return this.#history.reports.at(-1);
  }

  /** Ends everything; resolves when all sockets are closed. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#stop.abort();
    this.#runtime.clearTimer(this.#measureTimer);
    this.#runtime.clearTimer(this.#idleTimer);
    this.#idleTimer = undefined;
    const measured = this.#measuring?.catch(() => {});
    this.#routes.clear();
    const links = [...this.#links.values()];
    this.#links.clear();
    await Promise.all([measured, ...links.map((link) => this.#drop(link))]);
  }

  #applyMap(given: DerpMapLike): void {
    const map = this.#options.accessUrl ? withAccessUrl(given, this.#options.accessUrl) : given;
    this.#map = map;
    const regions = new Map(
      Object.values(map.Regions)
        .filter((region) => relayNodes(region).length > 0)
        .map((region) => [region.RegionID, region]),
    );
    for (const link of this.#links.values()) {
      const region = regions.get(link.id);
      if (region && identity(region) === identity(link.region)) {
        // Another key matters only to the next attempt: a relay that restarted closes its connections by itself.
        if (JSON.stringify(region.Nodes) !== JSON.stringify(link.region.Nodes)) link.fastStart = true;
        link.region = region;
        continue;
      }
      this.#links.delete(link.id);
      this.#drop(link);
    }
    for (const [id, region] of regions)
      if (!this.#links.has(id)) this.#links.set(id, newLink(id, region, this.#runtime.nowMs()));
    const before = this.#home;
    this.#setHome(this.#chooseHome());
    const home = this.#home;
    // Who looks at homeRegion looks then; a region that is dialled first tells by itself.
    if (home !== undefined && home !== before && this.connected(home))
      this.onState?.({ region: home, connected: true });
    this.#measureSoon(FIRST_MEASURE_MS);
  }

  #chooseHome(): number | undefined {
    const { homeRegion } = this.#options;
    if (homeRegion !== undefined && this.#links.has(homeRegion)) return homeRegion;
    return this.#map && chooseHome(this.#map, this.#home);
  }

  #setHome(home: number | undefined): void {
    const before = this.#home;
    this.#home = home;
    this.#nextHome = undefined;
    if (before !== home) {
      if (before !== undefined) this.#links.get(before)?.client?.notePreferred(false);
      this.onHome?.(home);
    }
    const link = home === undefined ? undefined : this.#links.get(home);
    if (!link) return;
    if (link.client?.connected) {
      if (before !== home) link.client.notePreferred(true);
    } else if (!link.timer) this.#dial(link).catch(() => {}); // told through onState
  }

  #wanted(link: Link): boolean {
    return (
      !this.#closed &&
      this.#links.get(link.id) === link &&
      (link.id === this.#home || link.id === this.#nextHome || this.#runtime.nowMs() - link.usedAt < IDLE_MS)
    );
  }

  /** One attempt at a time; a second caller waits for the first one's. */
  #dial(link: Link): Promise<void> {
    this.#runtime.clearTimer(link.timer);
    link.timer = undefined;
    link.attempt ??= this.#tryNodes(link).finally(() => {
      link.attempt = undefined;
    });
    return link.attempt;
  }

  async #tryNodes(link: Link): Promise<void> {
    const nodes = relayNodes(link.region);
    const startedAt = this.#runtime.nowMs();
    const abort = new AbortController();
    link.abort = abort;
    link.attemptAt = startedAt;
    let failure: Error | undefined;
    for (const [i, node] of nodes.entries()) {
      let again = true;
      while (again) {
        const leftMs = CONNECT_MS - (this.#runtime.nowMs() - startedAt);
        if (leftMs <= 0 || abort.signal.aborted) break;
        const client = this.#newClient(link, node, i === nodes.length - 1, leftMs);
        this.#listen(link, client);
        try {
          await client.connect(abort.signal);
          this.#opened(link, client);
          return;
        } catch (error) {
          if (!(error instanceof Error)) throw error;
          failure ??= error; // the preferred node's trouble is the one to tell
          again = !abort.signal.aborted && this.#adapt(link, client, error);
        }
      }
    }
    failure ??= new RelayError("ERR_RELAY_TIMEOUT", `region ${link.id} could not be reached in time`);
    if (this.#links.get(link.id) === link) {
      this.onState?.({ region: link.id, connected: false, error: failure });
      this.#pause(link);
    }
    throw failure;
  }

  #newClient(link: Link, node: ClientNode, last: boolean, leftMs: number): RelayConnection {
    const { headers, ticket, privateKey, ca, appName, environment, forceWebSockets, early } = this.#options;
    const [ideal] = relayNodes(link.region);
    const bearer = ticket?.();
    const hurry = link.known && link.failures % PATIENT_EVERY !== 0 ? RECONNECT_TCP_MS : undefined;
    if (link.webSocket && this.#runtime.nowMs() > link.webSocket.untilAt) this.#setFallback(link, undefined);
    const { newConnection = (given: DerpClientOptions) => new DerpClient(given) } = this.#options;
    return newConnection({
      url: nodeUrl(node),
      addresses: nodeAddresses(node),
      certName: node.CertName,
      insecure: node.InsecureForTests,
      serverKey: nodeKey(node),
      lendsPackets: true,
      fastStart: link.fastStart,
      webSocket: forceWebSockets || link.webSocket !== undefined,
      headers: {
        ...headers,
        // Statistics of the region's servers: we are not at the node we should be at.
        ...(node !== ideal && { "Ideal-Node": ideal.Name }),
        ...(bearer && { "Derp-Ticket": bearer }),
      },
      ticket: bearer,
      privateKey,
      ca,
      appName,
      environment,
      early,
      v6KnownGood: this.#v6KnownGood,
      timeoutMs: leftMs,
      connectMs: last ? hurry : NODE_CONNECT_MS,
    });
  }

  /** Learns from a failure how to dial the region. @returns whether that makes another attempt worthwhile at once */
  #adapt(link: Link, client: RelayConnection, error: Error | undefined): boolean {
    const { code, status } = isRelayError(error) ? error : { code: undefined, status: undefined };
    if (client.fastStarted && !client.confirmed && code !== "ERR_RELAY_ABORTED") {
      // Another key, or something in between that swallows what it does not expect: say one thing at a time.
      const first = link.fastStart;
      link.fastStart = false;
      if (code !== "ERR_RELAY_REFUSED") return first;
    }
    if (code !== "ERR_RELAY_REFUSED" || status === undefined || status >= 500) return false;
    if (this.#options.forceWebSockets) return false;
    if (link.webSocket) {
      this.#setFallback(link, undefined); // it is no better
      return false;
    }
    this.#setFallback(link, error?.message);
    return true;
  }

  #setFallback(link: Link, reason: string | undefined): void {
    link.webSocket =
      reason === undefined ? undefined : { reason, untilAt: this.#runtime.nowMs() + WEBSOCKET_MS };
    this.onFallback?.(link.id, reason);
  }

  #opened(link: Link, client: RelayConnection): void {
    if (this.#closed || this.#links.get(link.id) !== link) {
      client.close();
      throw new RelayError("ERR_RELAY_ABORTED", "closed while connecting");
    }
    // Turned away before this could run: its `close` found no connection of ours.
    if (!client.connected)
      throw new RelayError(
        "ERR_RELAY_CLOSED",
        `the relay of region ${link.id} closed the connection at once`,
      );
    link.client = client;
    link.confirmedAt = undefined;
    if (client.family === 6) this.#v6KnownGood = true;
    if (link.id === this.#nextHome) this.#setHome(link.id);
    else if (link.id === this.#home) client.notePreferred(true);
    if (link.id !== this.#home)
      this.#idleTimer ??= this.#runtime.repeat(() => this.#closeIdle(), IDLE_CHECK_MS);
    this.onState?.({ region: link.id, connected: true });
  }

  #listen(link: Link, client: RelayConnection): void {
    client.on("confirmed", () => {
      link.known = true;
      link.restartInMs = undefined;
      link.confirmedAt = this.#runtime.nowMs();
    });
    client.on("packet", ({ src, data }) => {
      this.#heard(link, src);
      this.onPacket?.({ src, region: link.id, data });
    });
    client.on("peerGone", ({ key, reason }) => {
      const peer = text(key);
      if (this.#routes.get(peer) === link.id) this.#routes.delete(peer);
      link.lastSrc = NOBODY; // heard again, it is a route again
      this.onPeerGone?.(key, link.id, reason);
    });
    client.on("drain", () => this.onDrain?.(link.id));
    client.on("health", (problem) => this.onHealth?.(link.id, problem));
    client.on("restarting", ({ reconnectInMs }) => {
      link.restartInMs = Math.min(reconnectInMs, MAX_RESTART_MS);
    });
    client.on("close", (error) => {
      if (link.client !== client) return;
      link.client = undefined;
      link.lastSrc = NOBODY;
      for (const [peer, region] of this.#routes) if (region === link.id) this.#routes.delete(peer);
      const now = this.#runtime.nowMs();
      if (link.confirmedAt !== undefined && now - link.confirmedAt >= STABLE_MS) {
        link.failures = 0;
        link.goodAt = now;
      }
      link.confirmedAt = undefined;
      const again = this.#adapt(link, client, error);
      this.onState?.({ region: link.id, connected: false, error });
      if (again && this.#wanted(link))
        this.#dial(link).catch(() => {}); // told through onState
      else this.#pause(link);
    });
  }

  /** Is the connection still good? See `check`. */
  #checkLink(link: Link): void {
    const { client } = link;
    const now = this.#runtime.nowMs();
    if (!client) {
      if (!this.#wanted(link)) return;
      if (!link.attempt)
        this.#dial(link).catch(() => {}); // told through onState
      else if (now - link.attemptAt > STALE_ATTEMPT_MS) {
        link.failures = 0; // the network is another one
        link.abort?.abort();
      }
      return;
    }
    const dead = (why: string): void => {
      if (link.client !== client) return;
      link.failures = 0;
      link.goodAt = this.#runtime.nowMs();
      link.restartInMs = undefined;
      client.abandon(new RelayError("ERR_RELAY_CLOSED", why));
      if (link.timer) this.#dial(link).catch(() => {}); // told through onState
    };
    if (client.stranded) {
      dead("the network changed: the address the relay connection came from is gone");
      return;
    }
    if (link.checking) return;
    link.checking = true;
    client
      .ping(CHECK_MS)
      .catch(() => {
        if (this.#runtime.nowMs() - client.lastFrameAt > CHECK_FRESH_MS)
          dead("the relay connection went silent");
      })
      .finally(() => {
        link.checking = false;
      });
  }

  /** There is a choice, and it is to be made by latency. */
  get #choosy(): boolean {
    const { homeRegion, measureHome = true } = this.#options;
    if (!this.#map || homeRegion !== undefined || !measureHome || this.#closed) return false;
    return Object.values(this.#map.Regions).filter(isEligibleHome).length > 1;
  }

  /** Measures after a while; an earlier appointment stands. */
  #measureSoon(afterMs: number): void {
    if (!this.#choosy) {
      this.#runtime.clearTimer(this.#measureTimer);
      this.#measureTimer = undefined;
      return;
    }
    const gapMs = this.#measuredAt + MEASURE_GAP_MS - this.#runtime.nowMs();
    if (this.#measureTimer && afterMs > 0) return;
    this.#runtime.clearTimer(this.#measureTimer);
    // No reason to live on.
    this.#measureTimer = this.#runtime.setIdleTimer(
      () => {
        this.#measureTimer = undefined;
        if (!this.#choosy) return;
        this.netcheck({ full: this.#history.needsFull(this.#runtime.nowMs()) })
          .catch(() => {}) // closed
          .finally(() => this.#measureSoon(MEASURE_EVERY_MS * (0.9 + this.#random() / 5)));
      },
      Math.max(afterMs, gapMs),
    );
  }

  async #measure(full: boolean): Promise<NetcheckReport> {
    const map = this.#map;
    if (!map || this.#closed)
      throw new RelayError("ERR_RELAY_NO_REGION", "there is no relay map yet: nothing to measure");
    this.#measuredAt = this.#runtime.nowMs();
    const { runNetcheck } = await import("./netcheck-shell.ts");
    const { ca, environment } = this.#options;
    const last = this.lastReport;
    const report = await runNetcheck({
      map,
      full,
      home: this.#home,
      last,
      ca,
      environment,
      signal: this.#stop.signal,
    });
    this.#history.add(report);
    if (report.ipv6) this.#v6KnownGood = true;
    this.#followReport();
    return report;
  }

  /** Moves home where the reports say, once the new one is connected: peers always find us at one of them. */
  #followReport(): void {
    if (!this.#choosy || !this.#map) return;
    const choice = preferredHome({
      map: this.#map,
      reports: this.#history.reports,
      current: this.#home,
      heardAt: (region) => this.#links.get(region)?.client?.lastFrameAt,
      now: this.#runtime.nowMs(),
    });
    this.#nextHome = undefined;
    const link = choice === undefined ? undefined : this.#links.get(choice);
    if (!link || link.id === this.#home || this.#options.canMoveHome?.() === false) return;
    if (!link.client?.connected) {
      this.#nextHome = link.id;
      this.#dial(link).catch(() => {}); // tried again until the next report
      return;
    }
    this.#setHome(link.id);
    this.onState?.({ region: link.id, connected: true }); // who looks at homeRegion looks then
  }

  #heard(link: Link, src: Uint8Array): void {
    if (equalBytes(link.lastSrc, src)) return; // most packets follow one from the same peer
    link.lastSrc = src.slice();
    const peer = text(src);
    this.#routes.delete(peer);
    this.#routes.set(peer, link.id); // last in order
    if (this.#routes.size > MAX_ROUTES) this.#routes.delete(this.#routes.keys().next().value!);
  }

  /** Dials again after a while, if anybody still wants the region then. */
  #pause(link: Link): void {
    if (!this.#wanted(link)) return;
    if (link.failures++ === 0) link.goodAt = this.#runtime.nowMs();
    if (link.id === this.#home && link.failures > 1) this.#measureSoon(MEASURE_GAP_MS); // others may be within reach
    const delayMs =
      link.restartInMs !== undefined
        ? link.restartInMs * (0.5 + this.#random())
        : backoffMs(link.failures, this.#runtime.nowMs() - link.goodAt, this.#random());
    link.restartInMs = undefined;
    this.#runtime.clearTimer(link.timer);
    link.timer = this.#runtime.setTimer(() => {
      link.timer = undefined;
      if (this.#wanted(link) && !link.client) this.#dial(link).catch(() => {}); // told through onState
    }, delayMs);
  }

  #closeIdle(): void {
    let others = 0;
    for (const link of this.#links.values()) {
      if (!link.client || link.id === this.#home || link.id === this.#nextHome) continue;
      if (this.#runtime.nowMs() - link.usedAt < IDLE_MS) others++;
      else link.client.close();
    }
    if (others > 0) return;
    this.#runtime.clearTimer(this.#idleTimer);
    this.#idleTimer = undefined;
  }

  async #drop(link: Link): Promise<void> {
    this.#runtime.clearTimer(link.timer);
    link.timer = undefined;
    link.abort?.abort();
    await Promise.all([link.client?.close(), link.attempt?.catch(() => {})]);
  }
}

const NOBODY = new Uint8Array();

/** What makes a connection to the region another one. */
function identity(region: ClientRegion): string {
  return JSON.stringify(region.Nodes.map((node) => ({ ...node, PublicKey: undefined })));
}

function newLink(id: number, region: ClientRegion, now: number): Link {
  return {
    id,
    region,
    client: undefined,
    attempt: undefined,
    attemptAt: Number.NEGATIVE_INFINITY,
    abort: undefined,
    timer: undefined,
    failures: 0,
    known: false,
    confirmedAt: undefined,
    goodAt: now,
    usedAt: Number.NEGATIVE_INFINITY,
    restartInMs: undefined,
    lastSrc: NOBODY,
    fastStart: true,
    webSocket: undefined,
    checking: false,
  };
}

function text(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.length).toString("latin1");
}
