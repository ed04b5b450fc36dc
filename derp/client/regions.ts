// All relay connections of a node: one per region of the map, the home for good, others while they are written to.
import { performance } from "node:perf_hooks";
import type { DerpMapLike, DerpRegionLike, Relay, RelayPacket, RelayState } from "../../mesh/node/relay.ts";
import { equalBytes } from "../../mesh/wire/bytes.ts";
import { backoffMs } from "./backoff.ts";
import { DerpClient } from "./client.ts";
import { RelayError } from "./errors.ts";
import { chooseHome, nodeAddress, nodeUrl, relayNodes, withAccessUrl } from "./nodes.ts";

export interface RelayClientOptions {
  /** The node key's private half, 32 bytes. */
  privateKey: Uint8Array;
  map?: DerpMapLike;
  /** Fixed home; chosen from the map by default. */
  homeRegion?: number;
  /** Where this node reaches the control plane: its own relay is dialled there. */
  accessUrl?: string | URL;
  /** Of every upgrade request. */
  headers?: Record<string, string>;
  /** A certificate authority in PEM beside the system's. */
  ca?: string;
  appName?: string;
  /** 0..1; spreads reconnects. */
  random?: () => number;
}

/** Between two nodes of one region, as long as another is left. */
const NODE_CONNECT_MS = 1_500;
const CONNECT_MS = 10_000;
/** A connection that is not home closes after this without a write. */
const IDLE_MS = 60_000;
const IDLE_CHECK_MS = 15_000;
const MAX_ROUTES = 4_096;
/** A relay may ask for no longer pause than this. */
const MAX_RESTART_MS = 30_000;

/** One region: at most one connection, one attempt, or one pause. */
interface Link {
  id: number;
  region: DerpRegionLike;
  client: DerpClient | undefined;
  attempt: Promise<void> | undefined;
  abort: AbortController | undefined;
  timer: NodeJS.Timeout | undefined;
  failures: number;
  /** The last time the connection was known to be good; ms. */
  goodAt: number;
  /** The last time somebody wanted to send; ms. */
  usedAt: number;
  /** Asked for by the relay that is about to restart. */
  restartInMs: number | undefined;
  /** Whose route is already known to be this region. */
  lastSrc: Uint8Array;
}

export class RelayClient implements Relay {
  onPacket: ((packet: RelayPacket) => void) | undefined;
  onPeerGone: ((peer: Uint8Array, region: number, reason: number) => void) | undefined;
  onState: ((state: RelayState) => void) | undefined;
  onDrain: ((region: number) => void) | undefined;
  /** The home changed: peers must be told. */
  onHome: ((region: number | undefined) => void) | undefined;
  /** A problem a relay reports, for the user; "" when it is over. */
  onHealth: ((region: number, problem: string) => void) | undefined;

  #options: RelayClientOptions;
  #random: () => number;
  #links = new Map<number, Link>();
  /** Peer (latin1) -> region where it was last heard. */
  #routes = new Map<string, number>();
  #home: number | undefined;
  #map: DerpMapLike | undefined;
  #idleTimer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: RelayClientOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
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
    const link = this.#links.get(region);
    const now = performance.now();
    if (link) link.usedAt = now;
    if (link?.client?.connected) return link.client.send(peer, data);
    const heard = this.#routes.size > 0 ? this.#links.get(this.#routes.get(text(peer)) ?? -1) : undefined;
    if (heard?.client?.connected) {
      heard.usedAt = now;
      return heard.client.send(peer, data);
    }
    if (link && !link.timer) this.#dial(link).catch(() => {}); // told through onState
    return false;
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
    link.usedAt = performance.now();
    if (!link.client?.connected) await this.#dial(link);
  }

  /** @throws {RelayError} as connect and DerpClient.ping */
  async ping(region: number): Promise<number> {
    await this.connect(region);
    const client = this.#links.get(region)?.client;
    if (!client) throw new RelayError("ERR_RELAY_CLOSED", "the relay connection ended");
    return client.ping();
  }

  /** Ends everything; resolves when all sockets are closed. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#idleTimer);
    this.#idleTimer = undefined;
    this.#routes.clear();
    const links = [...this.#links.values()];
    this.#links.clear();
    await Promise.all(links.map((link) => this.#drop(link)));
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
      if (region && JSON.stringify(region.Nodes) === JSON.stringify(link.region.Nodes)) {
        link.region = region;
        continue;
      }
      this.#links.delete(link.id);
      this.#drop(link);
    }
    for (const [id, region] of regions) if (!this.#links.has(id)) this.#links.set(id, newLink(id, region));
    this.#setHome(this.#chooseHome());
  }

  #chooseHome(): number | undefined {
    const { homeRegion } = this.#options;
    if (homeRegion !== undefined && this.#links.has(homeRegion)) return homeRegion;
    return this.#map && chooseHome(this.#map, this.#home);
  }

  #setHome(home: number | undefined): void {
    const before = this.#home;
    this.#home = home;
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
      (link.id === this.#home || performance.now() - link.usedAt < IDLE_MS)
    );
  }

  /** One attempt at a time; a second caller waits for the first one's. */
  #dial(link: Link): Promise<void> {
    clearTimeout(link.timer);
    link.timer = undefined;
    link.attempt ??= this.#tryNodes(link).finally(() => {
      link.attempt = undefined;
    });
    return link.attempt;
  }

  async #tryNodes(link: Link): Promise<void> {
    const nodes = relayNodes(link.region);
    const startedAt = performance.now();
    const abort = new AbortController();
    link.abort = abort;
    let failure: Error | undefined;
    for (const [i, node] of nodes.entries()) {
      const leftMs = CONNECT_MS - (performance.now() - startedAt);
      if (leftMs <= 0 || abort.signal.aborted) break;
      const client = new DerpClient({
        url: nodeUrl(node),
        address: nodeAddress(node),
        privateKey: this.#options.privateKey,
        // Statistics of the region's servers: we are not at the node we should be at.
        headers: i === 0 ? this.#options.headers : { ...this.#options.headers, "Ideal-Node": nodes[0].Name },
        ca: this.#options.ca,
        insecure: node.InsecureForTests,
        appName: this.#options.appName,
        timeoutMs: leftMs,
        connectMs: i < nodes.length - 1 ? NODE_CONNECT_MS : undefined,
      });
      this.#listen(link, client);
      try {
        await client.connect(abort.signal);
        this.#opened(link, client);
        return;
      } catch (error) {
        if (!(error instanceof Error)) throw error;
        failure ??= error; // the preferred node's trouble is the one to tell
      }
    }
    failure ??= new RelayError("ERR_RELAY_TIMEOUT", `region ${link.id} could not be reached in time`);
    if (this.#links.get(link.id) === link) {
      this.onState?.({ region: link.id, connected: false, error: failure });
      this.#pause(link);
    }
    throw failure;
  }

  #opened(link: Link, client: DerpClient): void {
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
    link.restartInMs = undefined;
    if (link.id === this.#home) client.notePreferred(true);
    else this.#idleTimer ??= setInterval(() => this.#closeIdle(), IDLE_CHECK_MS);
    this.onState?.({ region: link.id, connected: true });
  }

  #listen(link: Link, client: DerpClient): void {
    client.on("confirmed", () => this.#good(link));
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
      this.onState?.({ region: link.id, connected: false, error });
      this.#pause(link);
    });
  }

  #good(link: Link): void {
    link.failures = 0;
    link.goodAt = performance.now();
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
    link.failures++;
    if (link.failures === 1) link.goodAt = performance.now();
    const delayMs =
      link.restartInMs !== undefined
        ? link.restartInMs * (0.5 + this.#random())
        : backoffMs(link.failures, performance.now() - link.goodAt, this.#random());
    link.restartInMs = undefined;
    clearTimeout(link.timer);
    link.timer = setTimeout(() => {
      link.timer = undefined;
      if (this.#wanted(link) && !link.client) this.#dial(link).catch(() => {}); // told through onState
    }, delayMs);
  }

  #closeIdle(): void {
    let others = 0;
    for (const link of this.#links.values()) {
      if (!link.client || link.id === this.#home) continue;
      if (performance.now() - link.usedAt < IDLE_MS) others++;
      else link.client.close();
    }
    if (others > 0) return;
    clearInterval(this.#idleTimer);
    this.#idleTimer = undefined;
  }

  async #drop(link: Link): Promise<void> {
    clearTimeout(link.timer);
    link.timer = undefined;
    link.abort?.abort();
    await Promise.all([link.client?.close(), link.attempt?.catch(() => {})]);
  }
}

const NOBODY = new Uint8Array();

function newLink(id: number, region: DerpRegionLike): Link {
  return {
    id,
    region,
    client: undefined,
    attempt: undefined,
    abort: undefined,
    timer: undefined,
    failures: 0,
    goodAt: performance.now(),
    usedAt: Number.NEGATIVE_INFINITY,
    restartInMs: undefined,
    lastSrc: NOBODY,
  };
}

function text(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.length).toString("latin1");
}
