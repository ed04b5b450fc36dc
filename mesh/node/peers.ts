// The remote nodes of this one, and the lane each is reached by: over the relay of its region, from "both ends are
// there" until one is not.
import { equalBytes, toBase64 } from "../wire/bytes.ts";
import type { SessionLink } from "./link.ts";
import type { Relay } from "./relay.ts";
import type { Runtime, Timer } from "./runtime.ts";

/** A relay that does not have the peer is tried again after this, then more slowly, then for long-gone peers. */
const ABSENT_RETRY_MS = [
  250,
  500,
  ...Array<number>(60).fill(1_000),
  ...Array<number>(60).fill(5_000),
  10_000,
];
/** Retries of many nodes must not come at once. */
const RETRY_JITTER = 0.25;

/** No lane has this number: a packet that came while there was none to its sender. */
export const NO_LANE = 0;

/** A remote node: its key, the relay region it is heard in, and the sessions held with it. */
export interface Peer {
  readonly key: Uint8Array;
  /** The key in base64. */
  readonly name: string;
  region: number;
  /** Number of the lane over the relay, new after each loss of its connection; undefined while there is none. */
  lane: number | undefined;
  /** By tag. */
  readonly links: Map<number, SessionLink>;
  /** A connection to its region is being made, with which it gets a lane. */
  isConnecting: boolean;
  /** How often in a row the relay did not have the peer, and when it is tried again. */
  absences: number;
  retry: Timer | undefined;
}

export interface PeersHost {
  readonly runtime: Runtime;
  now(): number;
  schedule(link: SessionLink): void;
  /** A lane to the peer is new: what was under way on an earlier one may be lost. */
  onLane(peer: Peer): void;
  /** The peer is reached through another region. */
  onMoved(peer: Peer): void;
  debug(fields: object, message: string): void;
}

export class Peers {
  readonly #host: PeersHost;
  readonly #relay: Relay;
  readonly #peers = new Map<string, Peer>();
  #linkCount = 0;
  readonly #followsPeers: boolean;
  #nextLane = NO_LANE + 1;
  #isClosed = false;
  #lastFound: Peer | undefined;

  /** @param followsPeers an agent: it goes where its clients are heard, at once */
  constructor(host: PeersHost, relay: Relay, followsPeers: boolean) {
    this.#host = host;
    this.#relay = relay;
    this.#followsPeers = followsPeers;
  }

  /** Sessions with all peers together. */
  get linkCount(): number {
    return this.#linkCount;
  }

  get(name: string): Peer | undefined {
    return this.#peers.get(name);
  }

  /** @param key 32 bytes. Most packets are of the peer that the last one was of */
  find(key: Uint8Array): Peer | undefined {
    if (this.#lastFound && equalBytes(this.#lastFound.key, key)) return this.#lastFound;
    this.#lastFound = this.#peers.get(toBase64(key));
    return this.#lastFound;
  }

  of(link: SessionLink): Peer | undefined {
    return this.#peers.get(link.peerKey);
  }

  [Symbol.iterator](): IterableIterator<Peer> {
    return this.#peers.values();
  }

  links(): SessionLink[] {
    return [...this.#peers.values()].flatMap(({ links }) => [...links.values()]);
  }

  /** The peer, made if it is new; it is then said to be in `region`. */
  ensure(key: Uint8Array, region: number): Peer {
    const name = toBase64(key);
    let peer = this.#peers.get(name);
    if (!peer) {
      peer = {
        key: key.slice(),
        name,
        region,
        lane: undefined,
        links: new Map(),
        isConnecting: false,
        absences: 0,
        retry: undefined,
      };
      this.#peers.set(name, peer);
    }
    return peer;
  }

  add(peer: Peer, tag: number, link: SessionLink): void {
    if (!peer.links.has(tag)) this.#linkCount++;
    peer.links.set(tag, link);
  }

  /** Forgets a session, and its peer with the last one. @returns the peer when that is gone too */
  remove(link: SessionLink): Peer | undefined {
    const peer = this.of(link);
    if (!peer) return undefined;
    for (const [tag, known] of peer.links) if (known === link && peer.links.delete(tag)) this.#linkCount--;
    if (peer.links.size > 0) return undefined;
    this.#host.runtime.clearTimer(peer.retry);
    this.#peers.delete(peer.name);
    if (this.#lastFound === peer) this.#lastFound = undefined;
    return peer;
  }

  addLane(peer: Peer): void {
    const isNew = peer.lane === undefined;
    if (isNew) this.#host.runtime.clearTimer(peer.retry);
    peer.isConnecting = false;
    peer.lane ??= this.#nextLane++;
    const { lane } = peer;
    if (isNew) this.#host.onLane(peer);
    for (const link of peer.links.values()) {
      // Only relays drop packets, when a queue is full.
      link.session.addLane(lane, this.#host.now(), { lossy: true });
      this.#host.schedule(link);
    }
  }

  dropLane(peer: Peer): void {
    if (peer.lane === undefined) return;
    for (const link of peer.links.values()) {
      link.session.removeLane(peer.lane, this.#host.now());
      this.#host.schedule(link);
    }
    peer.lane = undefined;
  }

  /**
   * An authentic packet came over `region`, so the peer is there. A client that has a way to it, or is making one, stays:
   * two that follow each other change places for ever, and lose each time what is under way.
   */
  onHeard(peer: Peer, region: number): void {
    peer.absences = 0;
    if (region !== peer.region) {
      if (!this.#followsPeers && (peer.lane !== undefined || peer.isConnecting)) return;
      this.move(peer, region);
    }
    this.addLane(peer);
  }

  /** The peer is in another region: heard there, or said to be. */
  move(peer: Peer, region: number): void {
    if (peer.region === region) return;
    this.dropLane(peer);
    peer.region = region;
    peer.absences = 0;
    this.#host.onMoved(peer);
    peer.isConnecting = true;
    this.#relay.connect(region).then(
      () => {
        if (this.#isCurrent(peer, region)) this.addLane(peer);
      },
      () => {
        if (this.#isCurrent(peer, region)) peer.isConnecting = false; // told through onState
      },
    );
  }

  /** The connection to a region came or went. @returns the peers that can be reached again by it */
  onRelay(region: number, connected: boolean): Peer[] {
    const concerned = [...this.#peers.values()].filter((peer) => peer.region === region);
    for (const peer of concerned) {
      // A new connection knows nothing of earlier absences: the peer may be coming back just as we do.
      peer.absences = 0;
      this.#host.runtime.clearTimer(peer.retry);
      if (connected) this.addLane(peer);
      else this.dropLane(peer);
    }
    return connected ? concerned : [];
  }

  /**
   * The relay does not have the peer. What we send is lost until it is back, so the lane ends here, and the next one
   * starts with HELLO and everything unacknowledged. The peer's own packets end the wait at once.
   */
  onAbsent(key: Uint8Array, region: number): void {
    const peer = this.#peers.get(toBase64(key));
    if (!peer || peer.region !== region || peer.lane === undefined || this.#isClosed) return;
    this.#host.debug({ peer: peer.name, region }, "the relay does not have the peer");
    this.dropLane(peer);
    const waitMs = ABSENT_RETRY_MS[Math.min(peer.absences++, ABSENT_RETRY_MS.length - 1)];
    this.#host.runtime.clearTimer(peer.retry);
    peer.retry = this.#host.runtime.setIdleTimer(
      () => {
        if (this.#isCurrent(peer, region)) this.addLane(peer);
      },
      waitMs * (1 + RETRY_JITTER * (this.#host.runtime.random() - 0.5)),
    );
  }

  /** No timer of ours fires any more. */
  close(): void {
    this.#isClosed = true;
    for (const peer of this.#peers.values()) this.#host.runtime.clearTimer(peer.retry);
  }

  #isCurrent(peer: Peer, region: number): boolean {
    return !this.#isClosed && this.#peers.get(peer.name) === peer && peer.region === region;
  }
}
