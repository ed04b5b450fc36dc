// WireGuard for one node and all its peers, without I/O: messages and the time go in, outputs come out.
// Feed `receive`, perform `takeOutputs()`, arm one timer for `nextTimeout()`; `now` is monotonic milliseconds.
//
// What differs from a kernel's WireGuard, none of it visible on the wire:
// - There are no allowed IPs: a packet is whatever the layer above makes of it.
// - With `acceptUnknown` (an agent) whoever passes mac1 completes a handshake, and the layer above admits or removes it.
// - An own initiation stays open when the peer's arrives (a kernel forgets its own), so simultaneous ones both complete.
// - The first handshake is retried after 1 s, 2 s, 4 s and then every 5 s: a path at its start loses packets, and a
//   round trip longer than the retry still ends, since only the latest initiation can be answered.
// - Answering an initiation keeps the previous keys: with several paths more is under way.
import { equalBytes, utf8 } from "../wire/bytes.ts";
import {
  decodeCookieReply,
  decodeInitiation,
  decodeResponse,
  encodeInitiation,
  encodeResponse,
  MESSAGE_TYPE,
  messageType,
  transportReceiver,
} from "../wire/wireguard.ts";
import { CookieChecker, type Source } from "./cookie.ts";
import { checkKey, type WireGuardCrypto, WireGuardError, type X25519KeyPair } from "./crypto.ts";
import { KEEPALIVE_AFTER_MS, Keypair, REKEY_ON_RECEIVE_MS, REKEY_RETRY_MS } from "./keypair.ts";
import { HandshakeLoad } from "./load.ts";
import {
  type NoiseContext,
  readInitiation,
  readResponse,
  type TransportKeys,
  writeInitiation,
  writeResponse,
} from "./noise.ts";
import { Peer, sharedWithPeer } from "./peer.ts";
import { Tai64nClock } from "./tai64n.ts";

export type { Source } from "./cookie.ts";

export const FIRST_RETRY_MS = 1_000;
export const GIVE_UP_AFTER_MS = 90_000;
/** Retries of two nodes must not stay in step. */
export const MAX_JITTER_MS = 333;
/** How long a handshake from an unknown node is kept without `admit`. */
export const UNADMITTED_MS = 10_000;
/** Data that nothing answers for this long means that the peer may have lost its keys. */
export const DOUBT_AFTER_MS = KEEPALIVE_AFTER_MS + REKEY_RETRY_MS;

/** Mixed in first, so that no other use of the same Noise handshake can be confused with this one. */
const IDENTIFIER = utf8("WireGuard v1 zx2c4 Jason@zx2c4.com");
const NOTHING = new Uint8Array();
const JITTER_STORE_BYTES = 256;

export interface DeviceOptions {
  /** 32 bytes. */
  privateKey: Uint8Array;
  crypto: WireGuardCrypto;
  /** Cryptographically strong. */
  randomBytes: (count: number) => Uint8Array;
  /** Complete handshakes with nodes nobody told us of (an agent). Default false. */
  acceptUnknown?: boolean;
  /** All peers together. Default 4,096. */
  maxPeers?: number;
  /** Default 256, some 4 KB each; at most an eighth of it, but one, from a single source. Then the oldest goes. */
  maxUnadmittedHandshakes?: number;
  /** Above this rate initiators must show a cookie. Answering costs 0.5 ms. Default 100. */
  maxHandshakesPerSecond?: number;
}

export type DeviceOutput =
  /** Hand to a path of the peer: the best one, or the one `replyTo` names. */
  | { kind: "send"; peer: Uint8Array; message: Uint8Array; replyTo?: Source }
  /** For whoever sent from there: who it is was not looked at yet. */
  | { kind: "cookie-reply"; message: Uint8Array; replyTo: Source }
  /** Authentic plaintext, still zero-padded to 16 bytes. */
  | { kind: "packet"; peer: Uint8Array; packet: Uint8Array; from: Source }
  /** `seal` now uses new keys. */
  | { kind: "established"; peer: Uint8Array; initiator: boolean; at: number }
  /** No answer for 90 s; nothing is tried any more until `initiate` or `seal`. */
  | { kind: "handshake-failed"; peer: Uint8Array };

/** What was dropped, and why; `received` and `sent` count transport messages. */
export interface DeviceCounters {
  sent: number;
  received: number;
  keepalivesReceived: number;
  /** No message of ours: type, length, or an index nobody has. */
  malformed: number;
  unknownIndex: number;
  badMac1: number;
  /** Handshakes with a key we do not know, or beyond a limit. */
  refusedHandshakes: number;
  /** Strangers who had to go, before anybody admitted them, for later ones. */
  evictedHandshakes: number;
  forgedHandshakes: number;
  replayedHandshakes: number;
  cookieRepliesSent: number;
  forgedPackets: number;
  replayedPackets: number;
  expiredPackets: number;
}

/** Who a received index belongs to, and as what. */
interface IndexEntry {
  peer: Peer;
  /** Undefined while it is an initiation without a response. */
  pair: Keypair | undefined;
}

/** A Map compares strings by value; 32 bytes become 32 characters (0.1 us, hex takes 3). */
const mapKey = (publicKey: Uint8Array): string =>
  String.fromCharCode.apply(null, publicKey as unknown as number[]);

export class WireGuardDevice {
  readonly publicKey: Uint8Array;
  readonly counters: DeviceCounters = {
    sent: 0,
    received: 0,
    keepalivesReceived: 0,
    malformed: 0,
    unknownIndex: 0,
    badMac1: 0,
    refusedHandshakes: 0,
    evictedHandshakes: 0,
    forgedHandshakes: 0,
    replayedHandshakes: 0,
    cookieRepliesSent: 0,
    forgedPackets: 0,
    replayedPackets: 0,
    expiredPackets: 0,
  };
  #crypto: WireGuardCrypto;
  #identity: X25519KeyPair;
  #noise: NoiseContext;
  #randomBytes: (count: number) => Uint8Array;
  #acceptUnknown: boolean;
  #maxPeers: number;
  #maxUnadmitted: number;
  #maxUnadmittedPerSource: number;
  #peers = new Map<string, Peer>();
  #unadmitted = new Set<Peer>();
  /** Most packets go where the last one went. */
  #lastFound: Peer | undefined;
  #indices = new Map<number, IndexEntry>();
  #checker: CookieChecker;
  #load: HandshakeLoad;
  #clock = new Tai64nClock();
  /** Nothing is due before this; deadlines that moved later are found out when it comes. */
  #wakeAt = Number.POSITIVE_INFINITY;
  #outputs: DeviceOutput[] = [];
  #jitterStore: Uint8Array = NOTHING;
  #jitterLeft = 0;

  /** @throws {WireGuardError} ERR_BAD_KEY */
  constructor(options: DeviceOptions) {
    this.#crypto = options.crypto;
    this.#identity = options.crypto.keyPair(options.privateKey);
    this.publicKey = this.#identity.publicKey;
    this.#noise = { crypto: options.crypto, prologue: IDENTIFIER, identity: this.#identity };
    this.#randomBytes = options.randomBytes;
    this.#acceptUnknown = options.acceptUnknown ?? false;
    this.#maxPeers = options.maxPeers ?? 4_096;
    this.#maxUnadmitted = options.maxUnadmittedHandshakes ?? 256;
    this.#maxUnadmittedPerSource = Math.max(1, Math.floor(this.#maxUnadmitted / 8));
    this.#checker = new CookieChecker(options.crypto, this.publicKey, options.randomBytes);
    this.#load = new HandshakeLoad(options.maxHandshakesPerSecond ?? 100);
  }

  /**
   * Makes a node known, so that it may also initiate; one that waits for admission is admitted. A second call only
   * changes the preshared key.
   *
   * @param options.presharedKey 32 bytes that both sides were given; zero when absent
   * @throws {WireGuardError} ERR_BAD_KEY; ERR_TOO_MANY_PEERS
   */
  addPeer(publicKey: Uint8Array, options: { presharedKey?: Uint8Array } = {}): void {
    const peer = this.#known(publicKey);
    this.admit(publicKey);
    if (!options.presharedKey) return;
    checkKey(options.presharedKey, "the preshared key");
    peer.presharedKey = new Uint8Array(options.presharedKey);
  }

  /** Keeps an unknown initiator for good. */
  admit(publicKey: Uint8Array): void {
    const peer = this.#peers.get(mapKey(publicKey));
    if (!peer) return;
    peer.unadmitted = undefined;
    this.#unadmitted.delete(peer);
  }

  hasPeer(publicKey: Uint8Array): boolean {
    return this.#peers.has(mapKey(publicKey));
  }

  /** Forgets a node and its keys. Where unknown nodes are accepted it may start anew. */
  removePeer(publicKey: Uint8Array): void {
    const peer = this.#peers.get(mapKey(publicKey));
    if (!peer) return;
    for (const pair of peer.keypairs()) this.#indices.delete(pair.localIndex);
    this.#endAttempt(peer);
    this.#unadmitted.delete(peer);
    this.#peers.delete(mapKey(publicKey));
    if (this.#lastFound === peer) this.#lastFound = undefined;
  }

  /**
   * Forgets what there was with a node. Where unknown nodes are accepted, a handshake that it began meanwhile and we
   * have answered stays, as a stranger's: it is about to use those keys, and would take 15 s to doubt them.
   */
  dismissPeer(publicKey: Uint8Array, now: number): void {
    const peer = this.#find(publicKey);
    if (!peer?.next || !this.#acceptUnknown) return this.removePeer(publicKey);
    for (const pair of peer.keypairs()) if (pair !== peer.next) this.#indices.delete(pair.localIndex);
    peer.dropKeys(peer.next);
    this.#endAttempt(peer);
    if (peer.unadmitted) return;
    const source = { key: mapKey(publicKey) };
    this.#makeRoomFor(source);
    peer.unadmitted = { sourceKey: source.key, untilAt: now + UNADMITTED_MS };
    this.#unadmitted.add(peer);
    this.#wake(peer.nextAt());
  }

  /** What is held now; all of it bounded by maxPeers. */
  get size(): { peers: number; unadmitted: number; indices: number } {
    return { peers: this.#peers.size, unadmitted: this.#unadmitted.size, indices: this.#indices.size };
  }

  /** Whether `seal` would work now. */
  hasSession(publicKey: Uint8Array, now: number): boolean {
    return this.#find(publicKey)?.current?.canSend(now) ?? false;
  }

  /** Whether a handshake of ours is under way. */
  isTrying(publicKey: Uint8Array): boolean {
    return this.#peers.get(mapKey(publicKey))?.attempt !== undefined;
  }

  /**
   * Starts a handshake unless one is under way; an unknown node becomes known.
   *
   * @param wallClockMs milliseconds since the Unix epoch
   * @throws {WireGuardError} ERR_BAD_KEY; ERR_TOO_MANY_PEERS
   */
  initiate(publicKey: Uint8Array, now: number, wallClockMs: number): void {
    const peer = this.#known(publicKey);
    if (!peer.attempt) this.#startAttempt(peer, now, wallClockMs);
  }

  /**
   * Starts a handshake at once, also while one is under way: the path is another one now, and what was sent on the old
   * one may be lost. What a cookie has proven stays proven.
   *
   * @throws as initiate
   */
  initiateAnew(publicKey: Uint8Array, now: number, wallClockMs: number): void {
    const peer = this.#known(publicKey);
    this.#endAttempt(peer);
    this.#startAttempt(peer, now, wallClockMs);
  }

  /**
   * Seals one packet into one message for any path of the peer. Starts a handshake (by way of `nextTimeout`) when the
   * keys are old or missing.
   *
   * @param plaintext up to 65,504 bytes; padded with zeros to a multiple of 16
   * @returns undefined while there are no usable keys: keep the packet until `established`
   * @throws {WireGuardError} ERR_PACKET_TOO_LARGE
   */
  seal(publicKey: Uint8Array, plaintext: Uint8Array, now: number): Uint8Array | undefined {
    const peer = this.#sender(publicKey, now);
    if (!peer) return undefined;
    const message = peer.current!.seal(plaintext);
    this.#onSealed(peer, plaintext.length, now);
    return message;
  }

  /** As seal; the message in pieces that follow one another, which saves the copy of a large one. */
  sealPieces(publicKey: Uint8Array, plaintext: Uint8Array, now: number): Uint8Array[] | undefined {
    const peer = this.#sender(publicKey, now);
    if (!peer) return undefined;
    const pieces = peer.current!.sealPieces(plaintext);
    this.#onSealed(peer, plaintext.length, now);
    return pieces;
  }

  /** Takes one message as it came, from anybody. Drops and counts what is not right; never throws because of it. */
  receive(message: Uint8Array, from: Source, now: number, wallClockMs: number): void {
    switch (messageType(message)) {
      case MESSAGE_TYPE.transport:
        this.#receiveTransport(message, from, now, wallClockMs);
        return;
      case MESSAGE_TYPE.initiation:
        if (this.#passesMacs(message, from, now)) this.#receiveInitiation(message, from, now);
        return;
      case MESSAGE_TYPE.response:
        if (this.#passesMacs(message, from, now)) this.#receiveResponse(message, now);
        return;
      case MESSAGE_TYPE.cookieReply:
        this.#receiveCookieReply(message, now);
        return;
      default:
        this.counters.malformed++;
    }
  }

  /**
   * The machine slept, so keys are older than `now` says: forgets them all, and starts a handshake at once with
   * everybody who had some.
   */
  resumed(now: number, wallClockMs: number): void {
    for (const peer of this.#peers.values()) {
      const hadKeys = peer.current !== undefined;
      for (const pair of peer.keypairs()) this.#indices.delete(pair.localIndex);
      peer.dropKeys();
      if (!hadKeys && !peer.attempt) continue;
      this.#endAttempt(peer);
      if (!peer.unadmitted) this.#startAttempt(peer, now, wallClockMs);
    }
  }

  /** When to call `handleTimeout`, if ever; may be in the past. */
  nextTimeout(): number | undefined {
    return this.#wakeAt === Number.POSITIVE_INFINITY ? undefined : this.#wakeAt;
  }

  handleTimeout(now: number, wallClockMs: number): void {
    if (now < this.#wakeAt) return;
    this.#wakeAt = Number.POSITIVE_INFINITY;
    for (const peer of this.#peers.values()) {
      if (peer.unadmitted && now >= peer.unadmitted.untilAt) {
        this.removePeer(peer.publicKey);
        continue;
      }
      this.#handlePeerTimeout(peer, now, wallClockMs);
      this.#wake(peer.nextAt());
    }
  }

  takeOutputs(): DeviceOutput[] {
    const outputs = this.#outputs;
    if (outputs.length > 0) this.#outputs = [];
    return outputs;
  }

  // --- handshakes

  #startAttempt(peer: Peer, now: number, wallClockMs: number): void {
    peer.handshakeAt = undefined;
    peer.doubtAt = undefined;
    const first = !peer.current?.canSend(now);
    this.#sendInitiation(peer, { first, retries: 0, giveUpAt: now + GIVE_UP_AFTER_MS }, now, wallClockMs);
  }

  #sendInitiation(
    peer: Peer,
    attempt: { first: boolean; retries: number; giveUpAt: number },
    now: number,
    wallClockMs: number,
  ): void {
    const ephemeral = this.#crypto.keyPair(this.#randomBytes(32));
    const written = writeInitiation(this.#noise, peer, ephemeral, this.#clock.next(wallClockMs));
    if (!written) return; // #known has refused keys of low order
    if (peer.attempt) this.#indices.delete(peer.attempt.pending.localIndex);
    const localIndex = this.#newIndex({ peer, pair: undefined });
    const { sealedStatic, sealedPayload } = written;
    const message = encodeInitiation({
      sender: localIndex,
      ephemeral: ephemeral.publicKey,
      sealedStatic,
      sealedTimestamp: sealedPayload,
    });
    peer.macs.write(message, now);
    const waitMs = attempt.first
      ? Math.min(FIRST_RETRY_MS * 2 ** Math.min(attempt.retries, 3), REKEY_RETRY_MS)
      : REKEY_RETRY_MS;
    peer.attempt = {
      ...attempt,
      pending: { localIndex, state: written.state, ephemeral },
      retryAt: now + waitMs + this.#jitterMs(),
    };
    this.#wake(peer.nextAt());
    this.#outputs.push({ kind: "send", peer: peer.publicKey, message });
  }

  #endAttempt(peer: Peer): void {
    if (peer.attempt) this.#indices.delete(peer.attempt.pending.localIndex);
    peer.attempt = undefined;
    peer.handshakeAt = undefined;
  }

  #passesMacs(message: Uint8Array, from: Source, now: number): boolean {
    if (!this.#checker.mac1IsValid(message)) {
      this.counters.badMac1++;
      return false;
    }
    if (!this.#load.arrived(now)) return true;
    if (this.#checker.mac2IsValid(message, from, now)) {
      if (this.#load.allows(from, now)) return true;
      this.counters.refusedHandshakes++;
      return false;
    }
    const sender =
      message[0] === MESSAGE_TYPE.initiation ? decodeInitiation(message) : decodeResponse(message);
    this.counters.cookieRepliesSent++;
    this.#outputs.push({
      kind: "cookie-reply",
      message: this.#checker.reply(message, sender.sender, from, now),
      replyTo: from,
    });
    return false;
  }

  #receiveInitiation(message: Uint8Array, from: Source, now: number): void {
    const { sender, ephemeral, sealedStatic, sealedTimestamp } = decodeInitiation(message);
    let peer: Peer | undefined;
    let shared: Uint8Array | undefined;
    let refused = false;
    const received = readInitiation(
      this.#noise,
      { ephemeral, sealedStatic, sealedPayload: sealedTimestamp },
      (remoteStatic) => {
        peer = this.#peers.get(mapKey(remoteStatic));
        refused = !peer && !this.#mayTake();
        shared = peer?.shared ?? (refused ? undefined : sharedWithPeer(this.#identity, remoteStatic));
        return shared;
      },
    );
    if (!received || !shared) {
      this.counters[refused ? "refusedHandshakes" : "forgedHandshakes"]++;
      return;
    }
    if (!peer) {
      this.#makeRoomFor(from);
      peer = new Peer(this.#crypto, new Uint8Array(received.remoteStatic), shared);
      peer.unadmitted = { sourceKey: from.key, untilAt: now + UNADMITTED_MS };
      this.#unadmitted.add(peer);
      this.#peers.set(mapKey(peer.publicKey), peer);
    }
    if (!peer.acceptInitiation(received.payload, now)) {
      this.counters.replayedHandshakes++;
      return;
    }
    const answer = this.#crypto.keyPair(this.#randomBytes(32));
    const written = writeResponse(received, answer, peer.presharedKey, NOTHING);
    if (!written) {
      this.counters.forgedHandshakes++;
      return;
    }
    if (peer.next) this.#indices.delete(peer.next.localIndex);
    peer.next = this.#newKeypair(peer, written.keys, sender, false, now);
    // The time it is given to show what lets it in begins with each answer.
    if (peer.unadmitted) peer.unadmitted.untilAt = now + UNADMITTED_MS;
    this.#wake(peer.nextAt());
    const response = encodeResponse({
      sender: peer.next.localIndex,
      receiver: sender,
      ephemeral: answer.publicKey,
      sealedNothing: written.sealedPayload,
    });
    peer.macs.write(response, now);
    this.#outputs.push({ kind: "send", peer: peer.publicKey, message: response, replyTo: from });
  }

  #receiveResponse(message: Uint8Array, now: number): void {
    const { sender, receiver, ephemeral, sealedNothing } = decodeResponse(message);
    const peer = this.#indices.get(receiver)?.peer;
    const pending = peer?.attempt?.pending;
    if (!peer || pending?.localIndex !== receiver) {
      this.counters.unknownIndex++;
      return;
    }
    const read = readResponse(
      this.#noise,
      pending,
      { ephemeral, sealedPayload: sealedNothing },
      peer.presharedKey,
    );
    if (!read) {
      this.counters.forgedHandshakes++;
      return;
    }
    this.#endAttempt(peer);
    if (peer.previous) this.#indices.delete(peer.previous.localIndex);
    // A `next` is of the peer's own initiation, sent at the same time: the peer may already send with it.
    if (peer.next && peer.current) this.#indices.delete(peer.current.localIndex);
    peer.previous = peer.next ?? peer.current;
    peer.next = undefined;
    peer.current = this.#newKeypair(peer, read.keys, sender, true, now, receiver);
    peer.doubtAt = undefined;
    peer.keepaliveAt = now; // until we send, the peer can't; a packet sealed before the timer fires serves as well
    this.#wake(peer.nextAt());
    this.#outputs.push({ kind: "established", peer: peer.publicKey, initiator: true, at: now });
  }

  #receiveCookieReply(message: Uint8Array, now: number): void {
    const { receiver, nonce, sealedCookie } = decodeCookieReply(message);
    const entry = this.#indices.get(receiver);
    if (!entry) this.counters.unknownIndex++;
    else if (!entry.peer.macs.acceptReply(nonce, sealedCookie, now)) this.counters.forgedHandshakes++;
  }

  /** Whether a handshake with a node we do not know may go on. */
  #mayTake(): boolean {
    return this.#acceptUnknown && (this.#peers.size < this.#maxPeers || this.#unadmitted.size > 0);
  }

  /**
   * Who wants in needs its place for a round trip only, so a full house loses its oldest stranger: first one of the
   * same source, else one of the source that has most of them. Nobody is kept out by strangers who stay.
   */
  #makeRoomFor(from: Source): void {
    const bySource = new Map<string, Peer[]>();
    for (const peer of this.#unadmitted) {
      const key = peer.unadmitted!.sourceKey;
      const known = bySource.get(key);
      if (known) known.push(peer);
      else bySource.set(key, [peer]);
    }
    let crowd = bySource.get(from.key) ?? [];
    if (crowd.length < this.#maxUnadmittedPerSource) {
      if (this.#unadmitted.size < this.#maxUnadmitted && this.#peers.size < this.#maxPeers) return;
      crowd = []; // not of this source, then
      for (const peers of bySource.values()) if (peers.length > crowd.length) crowd = peers;
    }
    if (crowd.length === 0) return;
    this.counters.evictedHandshakes++;
    this.removePeer(crowd[0].publicKey);
  }

  // --- transport

  /** The peer, if its `current` keys can send; else a handshake is wanted. */
  #sender(publicKey: Uint8Array, now: number): Peer | undefined {
    const peer = this.#find(publicKey);
    if (!peer) return undefined;
    if (peer.current?.canSend(now)) return peer;
    this.#wantHandshake(peer, now);
    return undefined;
  }

  #onSealed(peer: Peer, plaintextBytes: number, now: number): void {
    this.counters.sent++;
    peer.keepaliveAt = undefined;
    if (plaintextBytes > 0 && peer.doubtAt === undefined && !peer.unadmitted) {
      peer.doubtAt = now + DOUBT_AFTER_MS + this.#jitterMs();
      this.#wake(peer.doubtAt);
    }
    if (peer.current!.wantsRekey(now)) this.#wantHandshake(peer, now);
  }

  #receiveTransport(message: Uint8Array, from: Source, now: number, wallClockMs: number): void {
    const entry = this.#indices.get(transportReceiver(message));
    if (!entry?.pair) {
      this.counters.unknownIndex++;
      return;
    }
    const { peer, pair } = entry;
    if (now >= pair.rejectAt) {
      this.counters.expiredPackets++;
      return;
    }
    const packet = pair.open(message);
    if (typeof packet === "string") {
      this.counters[packet === "replayed" ? "replayedPackets" : "forgedPackets"]++;
      return;
    }
    this.counters.received++;
    peer.doubtAt = undefined;
    if (pair === peer.next) this.#promoteNext(peer, pair, now);
    if (pair.initiator && now - pair.createdAt >= REKEY_ON_RECEIVE_MS && !peer.attempt)
      this.#startAttempt(peer, now, wallClockMs);
    if (packet.length === 0) {
      this.counters.keepalivesReceived++;
      return;
    }
    if (peer.keepaliveAt === undefined) {
      peer.keepaliveAt = now + KEEPALIVE_AFTER_MS;
      this.#wake(peer.keepaliveAt);
    }
    this.#outputs.push({ kind: "packet", peer: peer.publicKey, packet, from });
  }

  /** The initiator has shown that it has the keys we answered with. */
  #promoteNext(peer: Peer, next: Keypair, now: number): void {
    if (peer.previous) this.#indices.delete(peer.previous.localIndex);
    peer.previous = peer.current;
    peer.current = next;
    peer.next = undefined;
    this.#endAttempt(peer); // whatever we wanted, these keys are fresh
    this.#outputs.push({ kind: "established", peer: peer.publicKey, initiator: false, at: now });
  }

  // --- time, peers, indices

  #handlePeerTimeout(peer: Peer, now: number, wallClockMs: number): void {
    for (const slot of ["current", "previous", "next"] as const) {
      const pair = peer[slot];
      if (!pair || now < pair.rejectAt) continue;
      this.#indices.delete(pair.localIndex);
      peer[slot] = undefined;
    }
    const { attempt } = peer;
    if (attempt && now >= attempt.giveUpAt) {
      this.#endAttempt(peer);
      peer.doubtAt = undefined;
      peer.keepaliveAt = undefined;
      this.#outputs.push({ kind: "handshake-failed", peer: peer.publicKey });
    } else if (attempt && now >= attempt.retryAt) {
      const { first, retries, giveUpAt } = attempt;
      this.#sendInitiation(peer, { first, retries: retries + 1, giveUpAt }, now, wallClockMs);
    } else if (
      (peer.handshakeAt !== undefined && now >= peer.handshakeAt) ||
      (peer.doubtAt !== undefined && now >= peer.doubtAt)
    ) {
      peer.handshakeAt = undefined;
      peer.doubtAt = undefined;
      if (!attempt) this.#startAttempt(peer, now, wallClockMs);
    }
    if (peer.keepaliveAt !== undefined && now >= peer.keepaliveAt) {
      peer.keepaliveAt = undefined;
      if (peer.current?.canSend(now)) {
        const message = peer.current.seal(NOTHING);
        this.#onSealed(peer, 0, now);
        this.#outputs.push({ kind: "send", peer: peer.publicKey, message });
      }
    }
  }

  #wantHandshake(peer: Peer, now: number): void {
    if (peer.attempt || peer.handshakeAt !== undefined || peer.unadmitted) return;
    peer.handshakeAt = now;
    this.#wake(now);
  }

  #wake(at: number): void {
    if (at < this.#wakeAt) this.#wakeAt = at;
  }

  #find(publicKey: Uint8Array): Peer | undefined {
    if (this.#lastFound && equalBytes(this.#lastFound.publicKey, publicKey)) return this.#lastFound;
    const found = this.#peers.get(mapKey(publicKey));
    if (found) this.#lastFound = found;
    return found;
  }

  #known(publicKey: Uint8Array): Peer {
    const known = this.#peers.get(mapKey(publicKey));
    if (known) return known;
    checkKey(publicKey, "the peer's public key");
    const shared = sharedWithPeer(this.#identity, publicKey);
    if (equalBytes(publicKey, this.publicKey))
      throw new WireGuardError("ERR_BAD_KEY", "the peer's public key is this node's own");
    if (!shared)
      throw new WireGuardError("ERR_BAD_KEY", "the peer's public key is not one that wg pubkey could print");
    if (this.#peers.size >= this.#maxPeers)
      throw new WireGuardError(
        "ERR_TOO_MANY_PEERS",
        `${this.#peers.size} peers; remove one first or raise maxPeers`,
      );
    const peer = new Peer(this.#crypto, new Uint8Array(publicKey), shared);
    this.#peers.set(mapKey(publicKey), peer);
    return peer;
  }

  #newKeypair(
    peer: Peer,
    keys: TransportKeys,
    remoteIndex: number,
    initiator: boolean,
    now: number,
    localIndex = this.#newIndex({ peer, pair: undefined }),
  ): Keypair {
    const pair = new Keypair({ crypto: this.#crypto, keys, localIndex, remoteIndex, initiator, now });
    this.#indices.set(localIndex, { peer, pair });
    return pair;
  }

  /** Random, so that nobody can guess who else is connected, and unused. */
  #newIndex(entry: IndexEntry): number {
    for (;;) {
      const bytes = this.#randomBytes(4);
      const index = ((bytes[0] << 24) | (bytes[1] << 16) | (bytes[2] << 8) | bytes[3]) >>> 0;
      if (this.#indices.has(index)) continue;
      this.#indices.set(index, entry);
      return index;
    }
  }

  /** Drawn for every other packet of an answered stream: from a store, since a call for a single byte costs 1-2 us. */
  #jitterMs(): number {
    if (this.#jitterLeft === 0) {
      this.#jitterStore = this.#randomBytes(JITTER_STORE_BYTES);
      this.#jitterLeft = JITTER_STORE_BYTES;
    }
    return (this.#jitterStore[--this.#jitterLeft] / 256) * MAX_JITTER_MS;
  }
}
