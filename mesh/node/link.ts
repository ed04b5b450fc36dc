import type { SessionEvent } from "../session/events.ts";
import type { LivenessNews } from "../session/liveness.ts";
import { Session, type SessionOptions } from "../session/session.ts";
import { toHex } from "../wire/bytes.ts";
import { CLOSE_CODES, type CloseName, closeText, SIGNAL } from "../wire/session.ts";
import type { Grant } from "../wire/signed.ts";
import { ByteReader, varintBytes, writeVarint } from "../wire/varint.ts";
import { renewedAfterSilence } from "./admission.ts";
import type { Runtime, Timer } from "./runtime.ts";
import { MeshNodeError, MeshStream, type StreamOwner } from "./stream.ts";

export interface LinkHost {
  readonly runtime: Runtime;
  /** Something may be waiting to be sent on this link. */
  schedule(link: SessionLink): void;
  /** Agent: checks a grant. @returns the grant that holds from now on, or why not */
  admit(link: SessionLink, grant: Uint8Array): Grant | { refuse: CloseName };
  /** The peer opened a stream. */
  onStream(link: SessionLink, stream: MeshStream): void;
  /** The session is over; `error` is undefined when it was ended in order by us. */
  onClosed(link: SessionLink, error: MeshNodeError | undefined): void;
  /** Both sides said HELLO. */
  onReady(link: SessionLink): void;
  /** A stall began or ended. */
  onLiveness(link: SessionLink, news: LivenessNews): void;
  now(): number;
}

export type SessionLinkOptions = SessionOptions & {
  /** Client: whose session it is. */
  agentId?: string;
};

const PING_TIMEOUT_MS = 5_000;

/** One session with one peer and its streams: turns the core's events into Node streams and calls back. */
export class SessionLink implements StreamOwner {
  readonly session: Session;
  readonly peerKey: string;
  /** Agent: what the client was granted. */
  grant: Grant | undefined;
  /** When that grant was accepted. */
  renewedAt = 0;
  ready = false;
  /** We are about to close it: whoever is first, the end is no error. */
  isEnding = false;
  readonly startedAt: number;
  lastHeardAt: number;
  /** How long the session is kept while it is silent, in ms: what this client asks for, or the agent was asked for. */
  resumeWindowMs: number;
  /** Client: for how long the agent keeps silent sessions at most, as it said; undefined until then. */
  peerResumeWindowMs: number | undefined;
  /** Client: the agent at the other end. */
  readonly agentId: string | undefined;
  timer: Timer | undefined;
  timerAt = Number.POSITIVE_INFINITY;
  readonly #host: LinkHost;
  readonly #streams = new Map<number, MeshStream>();
  readonly #pings = new Map<number, { resolve(rttMs: number): void; reject(error: Error): void }>();
  readonly #readyWaiters = new Set<{ resolve(): void; reject(error: Error): void }>();
  #handling = false;
  #isSilent = false;
  #hadGrace = false;
  /** What our first HELLO asked for. */
  readonly #toldResumeWindowMs: number;

  constructor(host: LinkHost, peerKey: string, options: SessionLinkOptions) {
    this.#host = host;
    this.peerKey = peerKey;
    this.agentId = options.agentId;
    this.startedAt = options.now;
    this.lastHeardAt = options.now;
    this.resumeWindowMs = options.role === "client" ? (options.resumeWindowMs ?? 0) : 0;
    this.#toldResumeWindowMs = this.resumeWindowMs;
    this.session = new Session(options);
  }

  /** 32 hex digits; undefined for an agent's before the first packet. */
  get id(): string | undefined {
    const { sessionId } = this.session;
    return sessionId && toHex(sessionId);
  }

  /** The streams that are open, oldest first; `openedAt`: monotonic ms. */
  get streams(): { service: string; metadata: Uint8Array; openedAt: number }[] {
    return [...this.#streams.values()];
  }

  /** Something written or ended is not known to have arrived. */
  get hasUndelivered(): boolean {
    if (this.session.isClosed) return false;
    for (const { writableLength, writableEnded, writableFinished } of this.#streams.values())
      if (writableLength > 0 || (writableEnded && !writableFinished)) return true;
    return this.session.hasUndelivered;
  }

  receive(packet: Uint8Array, lane: number): void {
    this.lastHeardAt = this.#host.now();
    this.setSilent(false);
    this.session.receivePacket(packet, lane, this.lastHeardAt);
    this.#host.schedule(this);
  }

  open(service: string, metadata: Uint8Array): MeshStream {
    const id = this.session.openStream(service, metadata, this.#host.now());
    const stream = this.#adopt(id, service, metadata);
    this.#host.schedule(this);
    return stream;
  }

  /** @returns the round-trip time in ms @throws {MeshNodeError} ERR_TIMEOUT, ERR_SESSION_CLOSED */
  ping(timeoutMs = PING_TIMEOUT_MS): Promise<number> {
    return new Promise((resolve, reject) => {
      const id = this.session.ping(this.#host.now());
      if (id === undefined)
        return reject(new MeshNodeError("ERR_SESSION_CLOSED", "the session is closed or busy"));
      const timer = this.#host.runtime.setTimer(() => {
        this.#pings.delete(id);
        reject(new MeshNodeError("ERR_TIMEOUT", `no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const settle = () => {
        this.#host.runtime.clearTimer(timer);
        this.#pings.delete(id);
      };
      this.#pings.set(id, {
        resolve: (rttMs) => {
          settle();
          resolve(rttMs);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      });
      this.#host.schedule(this);
    });
  }

  /** Client: a newer permission, for the agent now and for whenever the session is resumed. */
  renew(grant: Uint8Array): void {
    this.session.setGrant(grant);
    if (this.ready) this.session.sendSignal(SIGNAL.grantRenewal, grant);
    this.#host.schedule(this);
  }

  /** Client: asks the agent to keep the session for longer while it is silent; never for less than before. */
  askResumeWindow(ms: number): void {
    if (ms <= this.resumeWindowMs) return;
    this.resumeWindowMs = ms;
    this.session.setResumeWindow(ms);
    if (this.ready) this.#sendResumeWindow();
  }

  /** Whether the peer has been away for so long that little is held for it. */
  setSilent(isSilent: boolean): void {
    if (this.#isSilent === isSilent) return;
    this.#isSilent = isSilent;
    this.session.setSilent(isSilent);
    if (isSilent || this.#hadGrace) return;
    this.#hadGrace = true; // not again before a new grant: silences must not add up to a permission for ever
    this.renewedAt = renewedAfterSilence(this.renewedAt, this.#host.now());
  }

  /** Resolves once both sides said HELLO. */
  whenReady(): Promise<void> {
    if (this.ready) return Promise.resolve();
    if (this.session.isClosed)
      return Promise.reject(new MeshNodeError("ERR_SESSION_CLOSED", "the session is closed"));
    return new Promise((resolve, reject) => this.#readyWaiters.add({ resolve, reject }));
  }

  close(name: CloseName, reason?: string): void {
    const { code, text } = CLOSE_CODES[name];
    this.session.close(code, reason ?? text, this.#host.now());
    this.#host.schedule(this);
  }

  /** Performs what the core asks for. Called by the node after every input, before it sends. */
  handleEvents(): void {
    if (this.#handling) return;
    this.#handling = true;
    try {
      for (let events = this.session.takeEvents(); events.length > 0; events = this.session.takeEvents())
        for (const event of events) this.#handle(event);
    } finally {
      this.#handling = false;
    }
  }

  #handle(event: SessionEvent): void {
    switch (event.kind) {
      case "hello": {
        if (this.session.role === "client") {
          this.peerResumeWindowMs = event.hello.resumeWindowMs;
          return;
        }
        if (!this.#admit(event.hello.grant)) return;
        this.resumeWindowMs = event.hello.resumeWindowMs;
        return this.session.accept();
      }
      case "signal":
        if (this.session.role !== "agent") return;
        if (event.type === SIGNAL.grantRenewal) this.#admit(event.body);
        else if (event.type === SIGNAL.resumeWindow)
          this.resumeWindowMs = readResumeWindow(event.body) ?? this.resumeWindowMs;
        return;
      case "stalled":
      case "flowing":
        return this.#host.onLiveness(this, event);
      case "datagram":
        return this.#streams.get(event.stream)?.onDatagram?.(event.data);
      case "ready":
        this.ready = true;
        // Asked for after the first HELLO had left.
        if (this.session.role === "client" && this.resumeWindowMs !== this.#toldResumeWindowMs)
          this.#sendResumeWindow();
        for (const waiter of this.#readyWaiters) waiter.resolve();
        this.#readyWaiters.clear();
        return this.#host.onReady(this);
      case "open":
        return this.#host.onStream(this, this.#adopt(event.stream, event.service, event.metadata));
      case "readable":
        return this.#streams.get(event.stream)?.onReadable();
      case "writable":
        return this.#streams.get(event.stream)?.onWritable();
      case "fin":
        return this.#streams.get(event.stream)?.onFin();
      case "reset":
        return this.#streams
          .get(event.stream)
          ?.onReset(
            new MeshNodeError("ERR_STREAM_RESET", `the other side gave the stream up (code ${event.code})`),
          );
      case "stop":
        return this.#streams.get(event.stream)?.onStopped();
      case "stream-closed":
        this.#streams.delete(event.stream);
        return;
      case "rtt":
        this.#pings.get(event.id)?.resolve(event.rttMs);
        return;
      case "closed":
        return this.#onClosed(event.code, event.reason || closeText(event.code), event.byPeer);
      default:
        // Who waits for a resumed session hears `flowing`; probes belong to paths that are not there yet.
        return;
    }
  }

  /** @returns false when the grant was refused: the session is closed then */
  #admit(statement: Uint8Array): boolean {
    const verdict = this.#host.admit(this, statement);
    if ("refuse" in verdict) {
      this.session.reject(verdict.refuse, undefined, this.#host.now());
      return false;
    }
    if (verdict !== this.grant) {
      this.renewedAt = this.#host.now();
      this.#hadGrace = false;
    }
    this.grant = verdict;
    return true;
  }

  #onClosed(code: number, reason: string, byPeer: boolean): void {
    const error = new MeshNodeError("ERR_SESSION_CLOSED", reason, { closeCode: code });
    const isOurs = this.isEnding || (!byPeer && code === CLOSE_CODES.normal.code);
    for (const stream of this.#streams.values()) stream.onFailed(isOurs ? undefined : error);
    this.#streams.clear();
    for (const ping of [...this.#pings.values()]) ping.reject(error);
    for (const waiter of this.#readyWaiters) waiter.reject(error);
    this.#readyWaiters.clear();
    this.#host.onClosed(this, isOurs ? undefined : error);
  }

  #sendResumeWindow(): void {
    const body = new Uint8Array(varintBytes(this.resumeWindowMs));
    writeVarint(body, 0, this.resumeWindowMs);
    // Refused only with 32 signals under way; then the next HELLO says it.
    this.session.sendSignal(SIGNAL.resumeWindow, body);
    this.#host.schedule(this);
  }

  #adopt(id: number, service: string, metadata: Uint8Array): MeshStream {
    const stream = new MeshStream(id, service, metadata, this, this.#host.now());
    this.#streams.set(id, stream);
    return stream;
  }

  // --- StreamOwner ---

  write(stream: number, bytes: Uint8Array): number {
    const taken = this.session.write(stream, bytes);
    this.#host.schedule(this);
    return taken;
  }

  end(stream: number): void {
    this.session.end(stream);
    this.#host.schedule(this);
  }

  read(stream: number): Uint8Array | undefined {
    const bytes = this.session.read(stream);
    this.#host.schedule(this);
    return bytes;
  }

  sendDatagram(stream: number, bytes: Uint8Array): boolean {
    const isQueued = this.session.sendDatagram(stream, bytes, this.#host.now());
    this.#host.schedule(this);
    return isQueued;
  }

  reset(stream: number, code: number): void {
    this.session.reset(stream, code);
    this.#host.schedule(this);
  }

  stopSending(stream: number, code: number): void {
    this.session.stopSending(stream, code);
    this.#host.schedule(this);
  }
}

/** @returns ms; undefined when the body is none of ours */
function readResumeWindow(body: Uint8Array): number | undefined {
  try {
    return new ByteReader(body).varint();
  } catch {
    return undefined;
  }
}
