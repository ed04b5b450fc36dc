// One connection to one relay. It does not reconnect: regions.ts does.
import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import type { Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { performance } from "node:perf_hooks";
import type { Duplex } from "node:stream";
import { toHex } from "../../mesh/wire/bytes.ts";
import {
  encodeFrame,
  FRAME,
  HEADER_BYTES,
  KEY_BYTES,
  MAX_PACKET_BYTES,
  NONCE_BYTES,
  PACKET_OVERHEAD_BYTES,
  PROTOCOL_VERSION,
  type ServerInfo,
  writeHeader,
} from "../../mesh/wire/derp.ts";
import { WireError } from "../../mesh/wire/errors.ts";
import { type KeyPair, keyPair } from "../box.ts";
import { type DialOptions, dialRelay } from "./dial.ts";
import { isRelayError, RelayError } from "./errors.ts";
import { ClientProtocol, ServerKeyMismatch } from "./protocol.ts";
import { TokenBucket } from "./token-bucket.ts";
import { UpgradeAnswer, upgradeRequest } from "./upgrade.ts";

export interface DerpClientOptions extends Omit<DialOptions, "url" | "signal"> {
  /** Of the relay, with its path: https://relay.example.com/derp. */
  url: string | URL;
  /** The node key's private half, 32 bytes. */
  privateKey: Uint8Array;
  /** Of the upgrade request. */
  headers?: Record<string, string>;
  /** For all of DNS, TCP, TLS, HTTP and the relay's greeting. */
  timeoutMs?: number;
  /** No whole frame for this long ends the connection: two keepalives missed. */
  readTimeoutMs?: number;
  /** What may wait in the socket; `send` refuses beyond it. */
  maxBufferedBytes?: number;
  appName?: string;
  /**
   * The relay's key, 32 bytes, where it is known (the relay's own certificate may tell it too): our half of the handshake
   * then leaves with the upgrade request. Wrong: `close` tells ERR_RELAY_KEY_CHANGED.
   */
  serverKey?: Uint8Array;
  /** false: wait for the relay to announce its key, even if it is known. */
  fastStart?: boolean;
  /** DERP over WebSocket, where nothing else passes. */
  webSocket?: boolean;
  /** What a `packet` event hands out is valid only until its listeners return; cheaper for bulk. */
  lendsPackets?: boolean;
  /** The relay ticket in base64, for where the upgrade was asked for before it was there; `headers` say it otherwise. */
  ticket?: string;
}

export interface DerpClientEvents {
  /** `src`: 32 bytes. Both belong to the listener, unless `lendsPackets` is set. */
  packet: [packet: { src: Uint8Array; data: Uint8Array }];
  peerGone: [gone: { key: Uint8Array; reason: number }];
  /** The relay proved its key and registered us; later than `connect` resolves, by one round trip. */
  confirmed: [info: ServerInfo];
  /** `send` takes packets again. */
  drain: [];
  /** Text for the user; "" when the problem is over. */
  health: [problem: string];
  restarting: [notice: { reconnectInMs: number; tryForMs: number }];
  /** Last event, exactly once after `connect` resolved. No error: closed by us, or an orderly end. */
  close: [error: Error | undefined];
}

const CONNECT_MS = 10_000;
const READ_TIMEOUT_MS = 120_000;
const PING_TIMEOUT_MS = 5_000;
const MAX_PINGS = 16;
const CLOSE_MS = 1_000;
/**
 * Behind the relay's first bytes. Something in between may swallow what follows a request before it is answered; a relay
 * that got our half answers in no time.
 */
const FAST_CONFIRM_MS = 2_000;
const MAX_BUFFERED_BYTES = 1 << 20;
/** Below this, copying data behind its header is cheaper than handing the kernel two pieces. */
const COPY_BYTES = 4_096;

export class DerpClient extends EventEmitter<DerpClientEvents> {
  readonly url: URL;
  readonly publicKey: Uint8Array;
  #options: DerpClientOptions;
  #keys: KeyPair;
  #socket: Duplex | undefined;
  /** What carries it: the same, or what is below WebSocket. */
  #tcp: Socket | undefined;
  #family: 4 | 6 | undefined;
  #fast = false;
  /** Said in our half of the handshake. */
  #ticket: string | undefined;
  #bucket: TokenBucket | undefined;
  #drainTimer: NodeJS.Timeout | undefined;
  #protocol: ClientProtocol | undefined;
  #serverKey: Uint8Array | undefined;
  #state: "new" | "connecting" | "open" | "closed" = "new";
  #confirmed = false;
  #full = false;
  #lastFrameAt = 0;
  #frames = 0;
  #readTimer: NodeJS.Timeout | undefined;
  #confirmTimer: NodeJS.Timeout | undefined;
  #connecting: AbortController | undefined;
  #pings = new Map<string, { sentAt: number; settle: (result: number | Error) => void }>();

  constructor(options: DerpClientOptions) {
    super();
    this.#options = options;
    this.#keys = keyPair(options.privateKey);
    this.publicKey = this.#keys.publicKey;
    this.url = new URL(options.url);
  }

  /** The relay's key, once connected. */
  get serverKey(): Uint8Array | undefined {
    return this.#serverKey;
  }

  get connected(): boolean {
    return this.#state === "open";
  }

  /** The relay proved its key; before that packets can be sent, but none arrive. */
  get confirmed(): boolean {
    return this.#confirmed;
  }

  /** Our half of the handshake left before the relay had said anything. */
  get fastStarted(): boolean {
    return this.#fast;
  }

  /** Of the TCP connection; undefined through a proxy. */
  get family(): 4 | 6 | undefined {
    return this.#family;
  }

  /** Monotonic ms of the last whole frame. */
  get lastFrameAt(): number {
    return this.#lastFrameAt;
  }

  /** Bytes that `send` took and the operating system has not. */
  get bufferedBytes(): number {
    return this.#socket?.writableLength ?? 0;
  }

  /**
   * Connects once. Resolves as soon as packets can be sent, right behind our half of the handshake: waiting for the
   * relay's half would cost a round trip. If the relay then turns us away, `close` tells.
   *
   * @throws {RelayError} ERR_RELAY_TIMEOUT, ERR_RELAY_UNREACHABLE, ERR_RELAY_TLS, ERR_RELAY_REFUSED, ERR_RELAY_CLOSED,
   *   ERR_RELAY_PROTOCOL, ERR_RELAY_ABORTED
   */
  async connect(signal?: AbortSignal): Promise<void> {
    if (this.#state !== "new") throw new RelayError("ERR_RELAY_CLOSED", "a DerpClient connects only once");
    this.#state = "connecting";
    const deadline = new AbortController();
    this.#connecting = deadline;
    const timer = setTimeout(
      () =>
        deadline.abort(new RelayError("ERR_RELAY_TIMEOUT", `the relay at ${this.url.origin} doesn't answer`)),
      this.#options.timeoutMs ?? CONNECT_MS,
    );
    const onAbort = (): void =>
      deadline.abort(new RelayError("ERR_RELAY_ABORTED", "connecting was given up"));
    if (signal?.aborted) onAbort();
    signal?.addEventListener("abort", onAbort);
    try {
      const { socket, relayKey, family, isRequested } = await dialRelay({
        ...this.#options,
        early: this.#options.webSocket ? undefined : this.#options.early,
        url: this.url,
        signal: deadline.signal,
      });
      this.#tcp = socket;
      this.#family = family;
      deadline.signal.throwIfAborted();
      if (this.#options.webSocket) {
        const { openWebSocket } = await import("./websocket.ts");
        const stream = await openWebSocket(socket, this.url, this.#options.headers ?? {}, deadline.signal);
        await this.#handshake(stream, undefined, undefined, undefined, deadline.signal);
        return;
      }
      if (isRequested) {
        this.#ticket = this.#options.ticket;
        const answer = new UpgradeAnswer(this.url.origin, false);
        await this.#handshake(socket, undefined, answer, undefined, deadline.signal);
        return;
      }
      const fast = this.#options.fastStart ?? true;
      // The certificate is the relay's own word; the map's may be of an earlier day.
      const key = fast ? (relayKey ?? this.#options.serverKey) : undefined;
      // Only where TLS ends at the relay itself may it leave out the response: a proxy would wait for one.
      const headless = fast && relayKey !== undefined;
      const request = upgradeRequest(this.url, this.#options.headers ?? {}, headless);
      const answer = new UpgradeAnswer(this.url.origin, headless);
      await this.#handshake(socket, request, answer, key, deadline.signal);
    } catch (error) {
      this.#teardown();
      throw error;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** Whether `send` would take a packet now; after false on an open connection `drain` follows. */
  get isWritable(): boolean {
    if (!this.#socket || this.#state !== "open") return false;
    if (this.#socket.writableLength > (this.#options.maxBufferedBytes ?? MAX_BUFFERED_BYTES))
      this.#full = true;
    else if (this.#bucket && !this.#full && !this.#bucket.ready(performance.now())) {
      this.#full = true;
      this.#drainLater(this.#bucket);
    }
    return !this.#full;
  }

  /**
   * Sends one packet. `data` (up to 65,536 bytes) must not change afterwards: it may wait in the socket.
   *
   * @returns false when it was refused: not connected, or more than maxBufferedBytes wait (`drain` follows)
   */
  send(dst: Uint8Array, data: Uint8Array): boolean {
    return this.sendPieces(dst, [data]);
  }

  /** As `send`, of a packet in pieces that follow one another: what would have to be joined first need not be. */
  sendPieces(dst: Uint8Array, pieces: readonly Uint8Array[]): boolean {
    let bytes = 0;
    for (const piece of pieces) bytes += piece.length;
    if (dst.length !== KEY_BYTES || bytes > MAX_PACKET_BYTES)
      throw new RangeError(`a packet has a ${KEY_BYTES}-byte key and at most ${MAX_PACKET_BYTES} bytes`);
    const socket = this.#socket;
    if (!socket || !this.isWritable) return false;
    this.#bucket?.take(PACKET_OVERHEAD_BYTES + bytes, performance.now());
    // Small neighbours are joined: each piece of a write costs the kernel, and us, more than copying so few bytes.
    let joined = new Uint8Array(PACKET_OVERHEAD_BYTES + (bytes <= COPY_BYTES ? bytes : smallStart(pieces)));
    writeHeader(joined, 0, FRAME.sendPacket, KEY_BYTES + bytes);
    joined.set(dst, HEADER_BYTES);
    let used = PACKET_OVERHEAD_BYTES;
    if (bytes > COPY_BYTES) socket.cork();
    for (const piece of pieces) {
      if (used + piece.length <= joined.length) {
        joined.set(piece, used);
        used += piece.length;
        continue;
      }
      if (used > 0) socket.write(joined);
      joined = EMPTY;
      used = 0;
      socket.write(piece, this.#onWritten);
    }
    if (used > 0) socket.write(joined, this.#onWritten);
    if (bytes > COPY_BYTES) socket.uncork();
    return true;
  }

  /** Tells the relay whether it is our home. */
  notePreferred(home: boolean): void {
    this.#write(encodeFrame({ kind: "notePreferred", home }));
  }

  /**
   * @returns round-trip time to the relay in ms
   * @throws {RelayError} ERR_RELAY_TIMEOUT, ERR_RELAY_CLOSED
   */
  ping(timeoutMs = PING_TIMEOUT_MS): Promise<number> {
    return new Promise((resolve, reject) => {
      if (this.#state !== "open" || this.#pings.size >= MAX_PINGS) {
        reject(
          this.#state === "open"
            ? new RelayError("ERR_RELAY_TIMEOUT", `${MAX_PINGS} pings are unanswered`)
            : new RelayError("ERR_RELAY_CLOSED", "not connected to the relay"),
        );
        return;
      }
      const data = randomBytes(8);
      const id = toHex(data);
      const timer = setTimeout(
        () => settle(new RelayError("ERR_RELAY_TIMEOUT", "the relay didn't answer a ping")),
        timeoutMs,
      );
      const settle = (result: number | Error): void => {
        clearTimeout(timer);
        this.#pings.delete(id);
        if (typeof result === "number") resolve(result);
        else reject(result);
      };
      this.#pings.set(id, { sentAt: performance.now(), settle });
      this.#write(encodeFrame({ kind: "ping", data }));
    });
  }

  /** The address the connection comes from is no longer one of the machine's: nothing can arrive on it. */
  get stranded(): boolean {
    const address = this.#tcp?.localAddress;
    if (address === undefined) return false;
    try {
      const here = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
      return isStranded(
        address,
        here.map((one) => one.address),
      );
    } catch {
      return false; // a sandbox may not tell
    }
  }

  /** Ends the connection at once, as one that broke. */
  abandon(error: Error): void {
    if (this.#state === "open") this.#finish(error, () => this.#socket?.destroy());
    else this.#teardown();
  }

  /** Ends the connection; what was sent before still goes out. Resolves when the socket is closed, within 1 s. */
  close(): Promise<void> {
    const socket = this.#socket;
    if (this.#state === "open" && socket) {
      this.#finish(undefined, () => {
        const timer = setTimeout(() => socket.destroy(), CLOSE_MS);
        socket.once("close", () => clearTimeout(timer));
        socket.end(() => socket.destroy());
      });
    } else this.#teardown();
    if (!socket || socket.closed) return Promise.resolve();
    return new Promise((resolve) => {
      socket.once("close", () => resolve());
    });
  }

  /**
   * Greeting and our ClientInfo. `request`: asks for the upgrade, unless that was done; `answer`: reads what is said to
   * it, unless `socket` has that behind it. `serverKey`: of the relay, when known.
   */
  #handshake(
    socket: Duplex,
    request: Uint8Array | undefined,
    answer: UpgradeAnswer | undefined,
    serverKey: Uint8Array | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#state !== "connecting" || socket.destroyed) {
        socket.destroy();
        reject(
          this.#state === "connecting"
            ? new RelayError(
                "ERR_RELAY_CLOSED",
                `the relay at ${this.url.origin} closed the connection at once`,
              )
            : new RelayError("ERR_RELAY_ABORTED", "closed while connecting"),
        );
        return;
      }
      this.#socket = socket;
      const onAbort = (): void => fail(signal.reason);
      signal.addEventListener("abort", onAbort);
      const fail = (error: Error | undefined): void => {
        signal.removeEventListener("abort", onAbort);
        if (this.#state === "open") this.#finish(error, () => socket.destroy());
        else reject(error ?? closedEarly());
      };
      const closedEarly = (): RelayError =>
        new RelayError(
          "ERR_RELAY_CLOSED",
          `the relay at ${this.url.origin} closed the connection in the handshake; it may not admit this node, or be full`,
        );
      this.#protocol = new ClientProtocol(
        this.#keys,
        {
          version: PROTOCOL_VERSION,
          canAckPings: true,
          appName: this.#options.appName,
          peerGoneForAll: true,
          ticket: this.#ticket,
        },
        randomBytes(NONCE_BYTES),
        {
          write: (bytes) => this.#reply(bytes),
          onSendable: (key) => {
            signal.removeEventListener("abort", onAbort);
            this.#serverKey = key;
            this.#state = "open";
            this.#watchReads();
            resolve();
          },
          onConfirmed: (info) => {
            this.#confirmed = true;
            clearTimeout(this.#confirmTimer);
            this.#limitRate(info);
            this.emit("confirmed", info);
          },
          onPacket: (src, data) => this.emit("packet", { src, data }),
          onPeerGone: (key, reason) => this.emit("peerGone", { key, reason }),
          onPong: (data) => {
            const ping = this.#pings.get(toHex(data));
            ping?.settle(performance.now() - ping.sentAt);
          },
          onHealth: (problem) => this.emit("health", problem),
          onRestarting: (reconnectInMs, tryForMs) => this.emit("restarting", { reconnectInMs, tryForMs }),
        },
        { lends: this.#options.lendsPackets },
      );
      socket.on("error", (cause) => fail(isRelayError(cause) ? cause : lost(cause)));
      socket.on("end", () => fail(this.#confirmed ? undefined : closedEarly()));
      socket.on("close", () => fail(this.#confirmed ? undefined : closedEarly()));
      const read = (chunk: Uint8Array): void => {
        try {
          this.#read(chunk, answer);
        } catch (error) {
          fail(this.#brokeProtocol(error));
        }
      };
      if (!request) {
        socket.on("data", read).resume();
        return;
      }
      if (!serverKey) socket.write(request);
      else {
        // In one piece: the relay then has all of it with the first packet.
        this.#fast = true;
        socket.cork();
        try {
          socket.write(request);
          this.#protocol.startWith(serverKey);
        } catch (error) {
          fail(this.#brokeProtocol(error));
        }
        socket.uncork();
      }
      if (!socket.destroyed) socket.on("data", read).resume(); // a proxy's answer left it paused
    });
  }

  #read(chunk: Uint8Array, answer: UpgradeAnswer | undefined): void {
    // Not a Buffer: what we hand out must behave as Uint8Array everywhere (slice copies).
    let bytes: Uint8Array | undefined = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length);
    if (this.#fast && !this.#confirmed)
      this.#confirmTimer ??= setTimeout(() => {
        const error = new RelayError(
          "ERR_RELAY_TIMEOUT",
          "the relay did not get what followed the upgrade request",
        );
        this.#finish(error, () => this.#socket?.destroy());
      }, FAST_CONFIRM_MS);
    if (answer && !answer.done) bytes = answer.push(bytes);
    if (bytes) this.#protocol?.push(bytes);
    if (!this.#protocol || this.#protocol.frames === this.#frames) return;
    this.#frames = this.#protocol.frames;
    this.#lastFrameAt = performance.now();
  }

  /** @throws what is no fault of the relay's */
  #brokeProtocol(cause: unknown): RelayError {
    if (isRelayError(cause)) return cause;
    if (!(cause instanceof WireError)) throw cause;
    const code =
      cause instanceof ServerKeyMismatch && !this.#confirmed ? "ERR_RELAY_KEY_CHANGED" : "ERR_RELAY_PROTOCOL";
    return new RelayError(code, `${this.url.origin} is no working DERP relay: ${cause.message}`, { cause });
  }

  #limitRate({ tokenBucketBytesPerSecond: rate, tokenBucketBytesBurst: burst }: ServerInfo): void {
    if (rate !== undefined && rate > 0)
      this.#bucket = new TokenBucket(rate, Math.max(burst ?? 0, PACKET_OVERHEAD_BYTES), performance.now());
  }

  #drainLater(bucket: TokenBucket): void {
    clearTimeout(this.#drainTimer);
    this.#drainTimer = setTimeout(this.#onWritten, bucket.waitMs(performance.now()));
  }

  #onWritten = (): void => {
    const max = this.#options.maxBufferedBytes ?? MAX_BUFFERED_BYTES;
    if (!this.#full || this.#state !== "open" || this.bufferedBytes > max / 2) return;
    if (this.#bucket && !this.#bucket.ready(performance.now())) {
      this.#drainLater(this.#bucket);
      return;
    }
    this.#full = false;
    this.emit("drain");
  };

  /** What the relay asked for; not beyond what it reads. */
  #reply(bytes: Uint8Array): void {
    if (this.bufferedBytes <= (this.#options.maxBufferedBytes ?? MAX_BUFFERED_BYTES)) this.#write(bytes);
  }

  #write(bytes: Uint8Array): void {
    if (this.#socket && !this.#socket.destroyed && this.#state !== "closed") this.#socket.write(bytes);
  }

  #watchReads(): void {
    const readTimeoutMs = this.#options.readTimeoutMs ?? READ_TIMEOUT_MS;
    const handshakeMs = Math.min(this.#options.timeoutMs ?? CONNECT_MS, readTimeoutMs);
    const check = (): void => {
      const timeoutMs = this.#confirmed ? readTimeoutMs : handshakeMs;
      const leftMs = this.#lastFrameAt + timeoutMs - performance.now();
      if (leftMs > 0) {
        this.#readTimer = setTimeout(check, leftMs + 1);
        return;
      }
      this.#finish(new RelayError("ERR_RELAY_TIMEOUT", "nothing came from the relay for too long"), () =>
        this.#socket?.destroy(),
      );
    };
    this.#lastFrameAt = performance.now();
    this.#readTimer = setTimeout(check, handshakeMs);
  }

  #finish(error: Error | undefined, end: () => void): void {
    if (this.#state !== "open") return;
    this.#state = "closed";
    this.#protocol?.close();
    clearTimeout(this.#readTimer);
    clearTimeout(this.#confirmTimer);
    clearTimeout(this.#drainTimer);
    for (const { settle } of [...this.#pings.values()])
      settle(new RelayError("ERR_RELAY_CLOSED", "the relay connection ended"));
    end();
    this.emit("close", error);
  }

  #teardown(): void {
    this.#state = "closed";
    this.#connecting?.abort(new RelayError("ERR_RELAY_ABORTED", "closed while connecting"));
    this.#protocol?.close();
    clearTimeout(this.#readTimer);
    clearTimeout(this.#confirmTimer);
    clearTimeout(this.#drainTimer);
    this.#socket?.destroy();
    this.#tcp?.destroy();
  }
}

const EMPTY = new Uint8Array();

/** Bytes of the pieces in front of the first one that is better not copied. */
function smallStart(pieces: readonly Uint8Array[]): number {
  let bytes = 0;
  for (const piece of pieces) {
    if (bytes + piece.length > COPY_BYTES) break;
    bytes += piece.length;
  }
  return bytes;
}

/** `address`: a socket's own; `here`: the machine's. Loopback is always there. */
export function isStranded(address: string, here: readonly string[]): boolean {
  const bare = (text: string): string => text.replace(/^::ffff:/, "").replace(/%.*$/, "");
  return !bare(address).startsWith("127.") && !here.some((one) => bare(one) === bare(address));
}

function lost(cause: Error): RelayError {
  return new RelayError("ERR_RELAY_CLOSED", `the relay connection broke: ${cause.message}`, { cause });
}
