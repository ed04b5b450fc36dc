import type { SessionEvent } from "../session/events.ts";
import { Session, type SessionOptions } from "../session/session.ts";
import { CLOSE_CODES, type CloseName, closeText, SIGNAL } from "../wire/session.ts";
import type { Grant } from "../wire/signed.ts";
import { MeshNodeError, MeshStream, type StreamOwner } from "./stream.ts";

export interface LinkHost {
  /** Something may be waiting to be sent on this link. */
  schedule(link: SessionLink): void;
  /** Agent: checks a grant. @returns the grant that holds from now on, or why not */
  admit(link: SessionLink, grant: Uint8Array): Grant | { refuse: CloseName };
  /** The peer opened a stream. */
  onStream(link: SessionLink, stream: MeshStream): void;
  /** The session is over; `error` is undefined when it was ended in order by us. */
  onClosed(link: SessionLink, error: MeshNodeError | undefined): void;
  now(): number;
}

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
  lastHeardAt: number;
  /** What the client asked for: how long to keep the session while it is silent, in ms. */
  resumeWindowMs = 0;
  timer: NodeJS.Timeout | undefined;
  timerAt = Number.POSITIVE_INFINITY;
  readonly #host: LinkHost;
  readonly #streams = new Map<number, MeshStream>();
  readonly #pings = new Map<number, { resolve(rttMs: number): void; reject(error: Error): void }>();
  readonly #readyWaiters = new Set<{ resolve(): void; reject(error: Error): void }>();
  #handling = false;

  constructor(host: LinkHost, peerKey: string, options: SessionOptions) {
    this.#host = host;
    this.peerKey = peerKey;
    this.lastHeardAt = options.now;
    this.session = new Session(options);
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
      const timer = setTimeout(() => {
        this.#pings.delete(id);
        reject(new MeshNodeError("ERR_TIMEOUT", `no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const settle = () => {
        clearTimeout(timer);
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
        if (this.session.role !== "agent" || !this.#admit(event.hello.grant)) return;
        this.resumeWindowMs = event.hello.resumeWindowMs;
        return this.session.accept();
      }
      case "signal":
        if (this.session.role === "agent" && event.type === SIGNAL.grantRenewal) this.#admit(event.body);
        return;
      case "ready":
        this.ready = true;
        for (const waiter of this.#readyWaiters) waiter.resolve();
        this.#readyWaiters.clear();
        return;
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
        // Resumed, datagrams and probes belong to parts that are not there yet; their frames are ignored.
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
    if (verdict !== this.grant) this.renewedAt = this.#host.now();
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

  #adopt(id: number, service: string, metadata: Uint8Array): MeshStream {
    const stream = new MeshStream(id, service, metadata, this);
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

  reset(stream: number, code: number): void {
    this.session.reset(stream, code);
    this.#host.schedule(this);
  }

  stopSending(stream: number, code: number): void {
    this.session.stopSending(stream, code);
    this.#host.schedule(this);
  }
}
