// The routing core of a relay: who is connected under which key, which of several connections receives, and who must
// hear that a peer is gone. No socket, no clock: `now` (ms) is an argument, and what to tell clients is collected.
import { PEER_GONE } from "../../mesh/wire/derp.ts";

/** A node key as the core compares it: 32 characters, one per byte (latin1). */
export type KeyText = string;

export interface RelayClient<H> {
  /** The shell's own object. */
  readonly handle: H;
  readonly key: KeyText;
  readonly notHereForAll: boolean;
  /** This relay is the client's home. */
  home: boolean;
  readonly connectedAt: number;
  /** Order of last activity, for duplicates. */
  activity: number;
  /** Keys from which this connection was sent something: it hears when they are gone. */
  readonly heard: Set<Peer<H>>;
  readonly notices: NoticeBudget;
  gone: boolean;
}

/** All connections under one key. */
export interface Peer<H> {
  readonly key: KeyText;
  readonly clients: RelayClient<H>[];
  active: RelayClient<H>;
  /** Connections that were sent something from this key. */
  readonly heardBy: Set<RelayClient<H>>;
}

/** PeerGone(key, reason) is due to `to`. */
export interface Notice<H> {
  to: RelayClient<H>;
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

export interface RelayCounters {
  peerGoneDisconnected: number;
  peerGoneNotHere: number;
  homeMoves: number;
}

export class Relay<H> {
  #peers = new Map<KeyText, Peer<H>>();
  #notices: Notice<H>[] = [];
  #activity = 0;
  #connections = 0;
  #homes = 0;
  #connectionsPerKey: number;
  readonly counters: RelayCounters = { peerGoneDisconnected: 0, peerGoneNotHere: 0, homeMoves: 0 };

  constructor(connectionsPerKey: number) {
    this.#connectionsPerKey = connectionsPerKey;
  }

  get connections(): number {
    return this.#connections;
  }

  get keys(): number {
    return this.#peers.size;
  }

  get homes(): number {
    return this.#homes;
  }

  /** Keys with more than one connection. */
  get duplicateKeys(): number {
    let count = 0;
    for (const peer of this.#peers.values()) if (peer.clients.length > 1) count++;
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
    options: { notHereForAll: boolean },
    now: number,
  ): { client: RelayClient<H>; evicted?: RelayClient<H> } {
    const client: RelayClient<H> = {
      handle,
      key,
      notHereForAll: options.notHereForAll,
      home: false,
      connectedAt: now,
      activity: ++this.#activity,
      heard: new Set(),
      notices: new NoticeBudget(options.notHereForAll ? ALL_NOTICES : DISCO_NOTICES, now),
      gone: false,
    };
    this.#connections++;
    const peer = this.#peers.get(key);
    if (!peer) {
      this.#peers.set(key, { key, clients: [client], active: client, heardBy: new Set() });
      return { client };
    }
    const quietest = peer.clients.reduce((a, b) => (a.activity <= b.activity ? a : b));
    peer.clients.push(client);
    peer.active = client;
    return peer.clients.length > this.#connectionsPerKey ? { client, evicted: quietest } : { client };
  }

  /** The connection ended. Its key is gone once no other connection has it; whoever heard it is told. */
  remove(client: RelayClient<H>): void {
    if (client.gone) return;
    client.gone = true;
    this.#connections--;
    if (client.home) this.#homes--;
    for (const peer of client.heard) peer.heardBy.delete(client);
    client.heard.clear();
    const peer = this.#peers.get(client.key);
    if (!peer) return;
    peer.clients.splice(peer.clients.indexOf(client), 1);
    if (peer.clients.length > 0) {
      if (peer.active === client)
        peer.active = peer.clients.reduce((a, b) => (a.activity >= b.activity ? a : b));
      return;
    }
    this.#peers.delete(client.key);
    for (const to of peer.heardBy) {
      to.heard.delete(peer);
      this.counters.peerGoneDisconnected++;
      this.#notices.push({ to, key: client.key, reason: PEER_GONE.disconnected });
    }
  }

  /** A frame came from `client`: of several connections with one key, the last to write receives. */
  touch(client: RelayClient<H>): void {
    client.activity = ++this.#activity;
    const peer = this.#peers.get(client.key);
    if (peer && peer.active !== client && !client.gone) peer.active = client;
  }

  setHome(client: RelayClient<H>, home: boolean): void {
    if (client.home === home || client.gone) return;
    client.home = home;
    this.#homes += home ? 1 : -1;
    this.counters.homeMoves++;
  }

  /**
   * Where a packet from `from` to `key` goes. The receiver will hear when `from`'s key is gone.
   *
   * @returns undefined when the key is not connected: report it with `missing`
   */
  route(from: RelayClient<H>, key: KeyText): RelayClient<H> | undefined {
    const to = this.#peers.get(key)?.active;
    if (!to) return undefined;
    const sender = this.#peers.get(from.key);
    if (sender && !sender.heardBy.has(to) && sender.heardBy.size < MAX_HEARD_BY && to.key !== from.key) {
      sender.heardBy.add(to);
      to.heard.add(sender);
    }
    return to;
  }

  /** `from` sent to a key that is not connected; told if it asked for that, or the packet was path discovery. */
  missing(from: RelayClient<H>, key: KeyText, disco: boolean, now: number): void {
    if (!(disco || from.notHereForAll) || !from.notices.take(key, now)) return;
    this.counters.peerGoneNotHere++;
    this.#notices.push({ to: from, key, reason: PEER_GONE.notHere });
  }

  /** All connections under `key`, for closing them. */
  clientsOf(key: KeyText): RelayClient<H>[] {
    return [...(this.#peers.get(key)?.clients ?? [])];
  }

  /** What is to be sent since the last call; receivers that have ended meanwhile are left out. */
  takeNotices(): Notice<H>[] {
    if (this.#notices.length === 0) return this.#notices;
    return this.#notices.splice(0).filter(({ to }) => !to.gone);
  }
}

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
