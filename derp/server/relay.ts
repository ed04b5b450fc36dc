// The routing core of a relay: who is connected under which key, which of several connections receives, and who must
// hear that a peer is gone. No socket, no clock: `now` (ms) is an argument, and what to tell clients is collected.
import { PEER_GONE } from "../../mesh/wire/derp.ts";

/** A node key as the core compares it: 32 characters, one per byte (latin1). */
export type KeyText = string;

/** What a connection says about itself when it joins. */
export interface ClientTraits {
  /** Wants PeerGone(notHere) after any packet, not only after path discovery. */
  notHereForAll: boolean;
  /** Proved the mesh key: another server of the region. */
  isMesh?: boolean;
  /** 16 bytes; IPv4 mapped, zeros when unknown. */
  address?: Uint8Array;
  port?: number;
  /** Of PeerPresent. */
  flags?: number;
}

export interface RelayClient<H, F = unknown> extends Readonly<ClientTraits> {
  /** The shell's own object. */
  readonly handle: H;
  readonly key: KeyText;
  readonly peer: Peer<H, F>;
  /** This relay is the client's home. */
  home: boolean;
  readonly connectedAt: number;
  /** Order of last activity, for duplicates. */
  activity: number;
  /** Keys from which this connection was sent something: it hears when they are gone. */
  readonly heard: Set<Peer<H, F>>;
  readonly notices: NoticeBudget;
  /** Of a watcher: what it has yet to be told, the latest per key. */
  updates: Map<KeyText, Presence> | undefined;
  gone: boolean;
}

/** One key of the region: its connections here, and the siblings that have it. */
export interface Peer<H, F = unknown> {
  readonly key: KeyText;
  readonly clients: RelayClient<H, F>[];
  /** The connection that receives; undefined when none is here. */
  active: RelayClient<H, F> | undefined;
  /** Connections to siblings where the key is, the oldest first; undefined when there are none. */
  forwarders: F[] | undefined;
  /** Connections that were sent something from this key. */
  readonly heardBy: Set<RelayClient<H, F>>;
}

/** What a watcher is told of a key: where its newest connection comes from, or undefined when the last one ended. */
export type Presence =
  | { address: Uint8Array | undefined; port: number | undefined; flags: number | undefined }
  | undefined;

/** PeerGone(key, reason) is due to `to`. */
export interface Notice<H, F = unknown> {
  to: RelayClient<H, F>;
  key: KeyText;
  reason: number;
}

/** PeerGone(notHere) for path discovery: 1/s, burst 3, as deployed clients expect. */
const DISCO_NOTICES = { perMs: 1 / 1_000, burst: 3 };
/** For clients that asked for all: enough for a node that dials many peers, still a trickle. */
const ALL_NOTICES = { perMs: 20 / 1_000, burst: 40 };
/** The same missing key is told again only after this. */
const SAME_KEY_MS = 1_000;
const MAX_REMEMBERED_KEYS = 64;
/** Receivers that hear when one key is gone; further ones find out by themselves. */
const MAX_HEARD_BY = 16_384;

/** A home changed within this after its connection is a client that finds its home, not one that moves. */
const HOME_SETTLES_MS = 5_000;
/** A watcher this far behind is better off asking for everything anew. */
export const MAX_UPDATES = 100_000;
/** Keys one sibling may report; far beyond what one server holds. */
const MAX_FORWARDED_KEYS = 200_000;

export interface RelayCounters {
  peerGoneDisconnected: number;
  peerGoneNotHere: number;
  homeMovesIn: number;
  homeMovesOut: number;
  duplicateConnections: number;
  multiForwarderCreated: number;
  multiForwarderDeleted: number;
  forwarderDeleteOther: number;
}

/** `H`: the shell's connection. `F`: its connection to a sibling server, which forwards packets there. */
export class Relay<H, F = unknown> {
  #peers = new Map<KeyText, Peer<H, F>>();
  #notices: Notice<H, F>[] = [];
  #watchers = new Set<RelayClient<H, F>>();
  #hasUpdates = false;
  #forwardedKeys = new Map<F, Set<KeyText>>();
  #activity = 0;
  #connections = 0;
  #keys = 0;
  #homes = 0;
  #connectionsPerKey: number;
  readonly counters: RelayCounters = {
    peerGoneDisconnected: 0,
    peerGoneNotHere: 0,
    homeMovesIn: 0,
    homeMovesOut: 0,
    duplicateConnections: 0,
    multiForwarderCreated: 0,
    multiForwarderDeleted: 0,
    forwarderDeleteOther: 0,
  };

  constructor(connectionsPerKey: number) {
    this.#connectionsPerKey = connectionsPerKey;
  }

  get connections(): number {
    return this.#connections;
  }

  /** Keys with a connection here. */
  get keys(): number {
    return this.#keys;
  }

  /** Keys that only siblings have. */
  get remoteKeys(): number {
    return this.#peers.size - this.#keys;
  }

  get homes(): number {
    return this.#homes;
  }

  get watchers(): number {
    return this.#watchers.size;
  }

  /** Keys with more than one connection, and their connections. */
  get duplicates(): { keys: number; connections: number } {
    const count = { keys: 0, connections: 0 };
    for (const { clients } of this.#peers.values()) {
      if (clients.length < 2) continue;
      count.keys++;
      count.connections += clients.length;
    }
    return count;
  }

  /**
   * Registers a connection that proved `key`. The newest of several is the active one; none is closed for it.
   *
   * @returns `evicted`: the shell must close it, the key had too many
   */
  add(
    handle: H,
    key: KeyText,
    traits: ClientTraits,
    now: number,
  ): { client: RelayClient<H, F>; evicted?: RelayClient<H, F> } {
    const peer = this.#peerOf(key);
    const client: RelayClient<H, F> = {
      ...traits,
      handle,
      key,
      peer,
      home: false,
      connectedAt: now,
      activity: ++this.#activity,
      heard: new Set(),
      notices: new NoticeBudget(traits.notHereForAll ? ALL_NOTICES : DISCO_NOTICES, now),
      updates: undefined,
      gone: false,
    };
    this.#connections++;
    const { clients } = peer;
    if (clients.length === 0) this.#keys++;
    else this.counters.duplicateConnections++;
    const quietest = clients.length >= this.#connectionsPerKey && clients.reduce(quieter);
    clients.push(client);
    peer.active = client;
    this.#tellWatchers(key, presenceOf(client));
    return quietest ? { client, evicted: quietest } : { client };
  }

  /** The connection ended. Its key is gone once nobody in the region has it; whoever heard it is told. */
  remove(client: RelayClient<H, F>): void {
    if (client.gone) return;
    client.gone = true;
    this.#connections--;
    this.#watchers.delete(client);
    client.updates = undefined;
    if (client.home) this.#homes--;
    for (const peer of client.heard) peer.heardBy.delete(client);
    client.heard.clear();
    const { peer } = client;
    const { clients } = peer;
    clients.splice(clients.indexOf(client), 1);
    if (peer.active === client) peer.active = clients.length > 0 ? clients.reduce(louder) : undefined;
    if (clients.length > 0) return;
    this.#keys--;
    this.#tellWatchers(client.key, undefined);
    this.#dropIfGone(peer);
  }

  /** A frame came from `client`: of several connections with one key, the last to write receives. */
  touch(client: RelayClient<H, F>): void {
    client.activity = ++this.#activity;
    if (client.peer.active !== client && !client.gone) client.peer.active = client;
  }

  setHome(client: RelayClient<H, F>, home: boolean, now: number): void {
    if (client.home === home || client.gone) return;
    client.home = home;
    this.#homes += home ? 1 : -1;
    if (now - client.connectedAt <= HOME_SETTLES_MS) return;
    if (home) this.counters.homeMovesIn++;
    else this.counters.homeMovesOut++;
  }

  /**
   * Where a packet from `from` to `key` goes. The receiver will hear when `from`'s key is gone.
   *
   * @returns undefined when the key is not connected here: ask `forwarder`, then report it with `missing`
   */
  route(from: RelayClient<H, F>, key: KeyText): RelayClient<H, F> | undefined {
    const to = this.#peers.get(key)?.active;
    if (to) subscribe(to, from.peer);
    return to;
  }

  /** Where a packet goes that a sibling forwarded. `source` is for fairness between senders. */
  routeForwarded(
    src: KeyText,
    dst: KeyText,
  ): { to: RelayClient<H, F>; source: Peer<H, F> | undefined } | undefined {
    const to = this.#peers.get(dst)?.active;
    if (!to) return undefined;
    const source = this.#peers.get(src);
    if (source) subscribe(to, source);
    return { to, source };
  }

  /** The sibling that a packet to a key which is not here goes to. */
  forwarder(key: KeyText): F | undefined {
    return this.#peers.get(key)?.forwarders?.[0];
  }

  /** A sibling has `key`. Of several the one that has had it longest forwards. */
  addForwarder(key: KeyText, forwarder: F): void {
    let keys = this.#forwardedKeys.get(forwarder);
    if (!keys) {
      keys = new Set();
      this.#forwardedKeys.set(forwarder, keys);
    }
    if (keys.has(key) || keys.size >= MAX_FORWARDED_KEYS) return;
    keys.add(key);
    const peer = this.#peerOf(key);
    peer.forwarders ??= [];
    peer.forwarders.push(forwarder);
    if (peer.forwarders.length === 2) this.counters.multiForwarderCreated++;
  }

  /** A sibling has `key` no more; nothing happens when it never had it. */
  removeForwarder(key: KeyText, forwarder: F): void {
    const keys = this.#forwardedKeys.get(forwarder);
    const peer = this.#peers.get(key);
    if (!peer?.forwarders) return;
    if (!keys?.delete(key)) {
      this.counters.forwarderDeleteOther++;
      return;
    }
    if (keys.size === 0) this.#forwardedKeys.delete(forwarder);
    peer.forwarders.splice(peer.forwarders.indexOf(forwarder), 1);
    if (peer.forwarders.length === 1) this.counters.multiForwarderDeleted++;
    if (peer.forwarders.length > 0) return;
    peer.forwarders = undefined;
    this.#dropIfGone(peer);
  }

  /** The connection to a sibling ended. */
  removeForwarders(forwarder: F): void {
    for (const key of [...(this.#forwardedKeys.get(forwarder) ?? [])]) this.removeForwarder(key, forwarder);
  }

  /** `from` sent to a key that is not connected; told if it asked for that, or the packet was path discovery. */
  missing(from: RelayClient<H, F>, key: KeyText, disco: boolean, now: number): void {
    if (!(disco || from.notHereForAll) || !from.notices.take(key, now)) return;
    this.counters.peerGoneNotHere++;
    this.#notices.push({ to: from, key, reason: PEER_GONE.notHere });
  }

  /** All connections under `key`, for closing them. */
  clientsOf(key: KeyText): RelayClient<H, F>[] {
    return [...(this.#peers.get(key)?.clients ?? [])];
  }

  /** `client` will be told of every key that is here, itself included, and of all that come and go. */
  watch(client: RelayClient<H, F>): void {
    if (client.gone || client.updates) return;
    client.updates = new Map();
    this.#watchers.add(client);
    for (const { key, active } of this.#peers.values())
      if (active) client.updates.set(key, presenceOf(active));
    this.#hasUpdates = true;
  }

  /** Watchers that have something to be told since the last call. */
  takeWatchers(): RelayClient<H, F>[] {
    if (!this.#hasUpdates) return [];
    this.#hasUpdates = false;
    return [...this.#watchers].filter(({ updates }) => updates!.size > 0);
  }

  /** At most `max` of what a watcher has yet to be told, the oldest first. */
  takeUpdates(client: RelayClient<H, F>, max: number): { key: KeyText; presence: Presence }[] {
    const out: { key: KeyText; presence: Presence }[] = [];
    for (const [key, presence] of client.updates ?? []) {
      if (out.length >= max) break;
      client.updates!.delete(key);
      out.push({ key, presence });
    }
    return out;
  }

  /** What is to be sent since the last call; receivers that have ended meanwhile are left out. */
  takeNotices(): Notice<H, F>[] {
    if (this.#notices.length === 0) return this.#notices;
    return this.#notices.splice(0).filter(({ to }) => !to.gone);
  }

  /** What must always be true, for tests and health checks. @returns what is wrong */
  inconsistencies(): string[] {
    const wrong: string[] = [];
    let connections = 0;
    let keys = 0;
    for (const [key, peer] of this.#peers) {
      connections += peer.clients.length;
      if (peer.clients.length > 0) keys++;
      else if (!peer.forwarders) wrong.push("a key without a connection or a forwarder");
      if (peer.key !== key) wrong.push("a peer under another key");
      if ((peer.active !== undefined) !== peer.clients.length > 0)
        wrong.push("a key without an active connection");
      if (peer.active && !peer.clients.includes(peer.active))
        wrong.push("an active connection that has ended");
      for (const client of peer.heardBy)
        if (client.gone) wrong.push("a subscription of a connection that has ended");
    }
    if (connections !== this.#connections)
      wrong.push(`${connections} connections, ${this.#connections} counted`);
    if (keys !== this.#keys) wrong.push(`${keys} keys, ${this.#keys} counted`);
    return wrong;
  }

  #peerOf(key: KeyText): Peer<H, F> {
    let peer = this.#peers.get(key);
    if (!peer) {
      peer = { key, clients: [], active: undefined, forwarders: undefined, heardBy: new Set() };
      this.#peers.set(key, peer);
    }
    return peer;
  }

  #dropIfGone(peer: Peer<H, F>): void {
    if (peer.clients.length > 0 || peer.forwarders) return;
    this.#peers.delete(peer.key);
    for (const to of peer.heardBy) {
      to.heard.delete(peer);
      this.counters.peerGoneDisconnected++;
      this.#notices.push({ to, key: peer.key, reason: PEER_GONE.disconnected });
    }
  }

  #tellWatchers(key: KeyText, presence: Presence): void {
    for (const { updates } of this.#watchers) {
      if (!updates) continue;
      updates.delete(key); // the latest counts, in the order of the latest
      updates.set(key, presence);
      this.#hasUpdates = true;
    }
  }
}

function subscribe<H, F>(to: RelayClient<H, F>, source: Peer<H, F>): void {
  if (source.heardBy.has(to) || source.heardBy.size >= MAX_HEARD_BY || to.peer === source) return;
  source.heardBy.add(to);
  to.heard.add(source);
}

const quieter = <T extends { activity: number }>(a: T, b: T): T => (a.activity <= b.activity ? a : b);
const louder = <T extends { activity: number }>(a: T, b: T): T => (a.activity >= b.activity ? a : b);

const presenceOf = ({ address, port, flags }: ClientTraits): Presence => ({ address, port, flags });

/** A token bucket, and a short memory of keys already told. */
export class NoticeBudget {
  #perMs: number;
  #burst: number;
  #tokens: number;
  #at: number;
  #told = new Map<KeyText, number>();
  #perKey: boolean;

  constructor({ perMs, burst }: { perMs: number; burst: number }, now: number) {
    this.#perMs = perMs;
    this.#burst = burst;
    this.#tokens = burst;
    this.#at = now;
    // Only the large bucket could be emptied by one key, to the cost of the others.
    this.#perKey = burst > DISCO_NOTICES.burst;
  }

  take(key: KeyText, now: number): boolean {
    const toldAt = this.#told.get(key);
    if (toldAt !== undefined && now - toldAt < SAME_KEY_MS) return false;
    this.#tokens = Math.min(this.#burst, this.#tokens + (now - this.#at) * this.#perMs);
    this.#at = now;
    if (this.#tokens < 1) return false;
    this.#tokens--;
    if (this.#perKey) {
      this.#told.delete(key);
      this.#told.set(key, now); // last in order
      if (this.#told.size > MAX_REMEMBERED_KEYS) this.#told.delete(this.#told.keys().next().value!);
    }
    return true;
  }
}
