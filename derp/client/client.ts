// One connection to one relay. It does not reconnect: regions.ts does.
import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import { performance } from "node:perf_hooks";
import type { Duplex } from "node:stream";
import { toHex } from "../../mesh/wire/bytes.ts";
import {
  encodeFrame,
  KEY_BYTES,
  MAX_PACKET_BYTES,
  NONCE_BYTES,
  PACKET_OVERHEAD_BYTES,
  PROTOCOL_VERSION,
  type ServerInfo,
  sendPacketHead,
} from "../../mesh/wire/derp.ts";
import { WireError } from "../../mesh/wire/errors.ts";
import { type KeyPair, keyPair } from "../box.ts";
import { RelayError } from "./errors.ts";
import { ClientProtocol } from "./protocol.ts";
import { openUpgrade, type UpgradeOptions } from "./upgrade.ts";

export interface DerpClientOptions extends Omit<UpgradeOptions, "url" | "signal"> {
  /** Of the relay, with its path: https://relay.example.com/derp. */
  url: string | URL;
  /** The node key's private half, 32 bytes. */
  privateKey: Uint8Array;
  /** For all of DNS, TCP, TLS, HTTP and the relay's greeting. */
  timeoutMs?: number;
  /** No byte for this long ends the connection: two keepalives missed. */
  readTimeoutMs?: number;
  /** What may wait in the socket; `send` refuses beyond it. */
  maxBufferedBytes?: number;
  appName?: string;
}

export interface DerpClientEvents {
  /** `src`: 32 bytes. Both belong to the listener. */
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
const MAX_BUFFERED_BYTES = 1 << 20;
/** Below this, copying data behind its header is cheaper than handing the kernel two pieces. */
const COPY_BYTES = 4_096;

export class DerpClient extends EventEmitter<DerpClientEvents> {
  readonly url: URL;
  readonly publicKey: Uint8Array;
  #options: DerpClientOptions;
  #keys: KeyPair;
  #socket: Duplex | undefined;
  #protocol: ClientProtocol | undefined;
  #serverKey: Uint8Array | undefined;
  #state: "new" | "connecting" | "open" | "closed" = "new";
  #confirmed = false;
  #full = false;
  #lastReadAt = 0;
  #readTimer: NodeJS.Timeout | undefined;
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

  /** Bytes that `send` took and the operating system has not. */
  get bufferedBytes(): number {
    return this.#socket?.writableLength ?? 0;
  }

  /**
   * Connects once. Resolves as soon as packets can be sent, right behind our half of the handshake: waiting for the
   * relay's half would cost a round trip. If the relay then turns us away, `close` tells.
   *
   * @throws {RelayError} ERR_RELAY_TIMEOUT, ERR_RELAY_UNREACHABLE, ERR_RELAY_REFUSED, ERR_RELAY_CLOSED,
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
      const { socket, head } = await openUpgrade({
        ...this.#options,
        url: this.url,
        signal: deadline.signal,
      });
      await this.#handshake(socket, head, deadline.signal);
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
    return !this.#full;
  }

  /**
   * Sends one packet. `data` (up to 65,536 bytes) must not change afterwards: it may wait in the socket.
   *
   * @returns false when it was refused: not connected, or more than maxBufferedBytes wait (`drain` follows)
   */
  send(dst: Uint8Array, data: Uint8Array): boolean {
    if (dst.length !== KEY_BYTES || data.length > MAX_PACKET_BYTES)
      throw new RangeError(`a packet has a ${KEY_BYTES}-byte key and at most ${MAX_PACKET_BYTES} bytes`);
    const socket = this.#socket;
    if (!socket || !this.isWritable) return false;
    const head = sendPacketHead(dst, data.length);
    if (data.length <= COPY_BYTES) {
      const frame = new Uint8Array(PACKET_OVERHEAD_BYTES + data.length);
      frame.set(head);
      frame.set(data, PACKET_OVERHEAD_BYTES);
      socket.write(frame, this.#onWritten);
    } else {
      socket.cork();
      socket.write(head);
      socket.write(data, this.#onWritten);
      socket.uncork();
    }
    return true;
  }

  /** Tells the relay whether it is our home. */
  notePreferred(home: boolean): void {
    this.#write(encodeFrame({ kind: "notePreferred", home }));
  }

  /**
   * @returns round-trip time to the relay in ms
   * @throws {RelayError} ERR_RELAY_TIMEOUT after 5 s, ERR_RELAY_CLOSED
   */
  ping(): Promise<number> {
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
        PING_TIMEOUT_MS,
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

  /** Greeting and our ClientInfo. */
  #handshake(socket: Duplex, head: Uint8Array, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#state !== "connecting") {
        socket.destroy();
        reject(new RelayError("ERR_RELAY_ABORTED", "closed while connecting"));
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
        },
        randomBytes(NONCE_BYTES),
        {
          write: (bytes) => this.#write(bytes),
          onSendable: (serverKey) => {
            signal.removeEventListener("abort", onAbort);
            this.#serverKey = serverKey;
            this.#state = "open";
            this.#watchReads();
            resolve();
          },
          onConfirmed: (info) => {
            this.#confirmed = true;
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
      );
      socket.on("error", (cause) => fail(lost(cause)));
      socket.on("end", () => fail(this.#confirmed ? undefined : closedEarly()));
      socket.on("close", () => fail(this.#confirmed ? undefined : closedEarly()));
      const read = (chunk: Uint8Array): void => {
        this.#lastReadAt = performance.now();
        try {
          // Not a Buffer: what we hand out must behave as Uint8Array everywhere (slice copies).
          this.#protocol?.push(new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length));
        } catch (cause) {
          if (!(cause instanceof WireError)) throw cause;
          fail(
            new RelayError(
              "ERR_RELAY_PROTOCOL",
              `${this.url.origin} is no working DERP relay: ${cause.message}`,
              {
                cause,
              },
            ),
          );
        }
      };
      if (head.length > 0) read(head);
      socket.on("data", read);
    });
  }

  #onWritten = (): void => {
    const max = this.#options.maxBufferedBytes ?? MAX_BUFFERED_BYTES;
    if (!this.#full || this.#state !== "open" || this.bufferedBytes > max / 2) return;
    this.#full = false;
    this.emit("drain");
  };

  #write(bytes: Uint8Array): void {
    if (this.#socket && !this.#socket.destroyed && this.#state !== "closed") this.#socket.write(bytes);
  }

  #watchReads(): void {
    const readTimeoutMs = this.#options.readTimeoutMs ?? READ_TIMEOUT_MS;
    const handshakeMs = Math.min(this.#options.timeoutMs ?? CONNECT_MS, readTimeoutMs);
    const check = (): void => {
      const timeoutMs = this.#confirmed ? readTimeoutMs : handshakeMs;
      const leftMs = this.#lastReadAt + timeoutMs - performance.now();
      if (leftMs > 0) {
        this.#readTimer = setTimeout(check, leftMs + 1);
        return;
      }
      this.#finish(new RelayError("ERR_RELAY_TIMEOUT", "nothing came from the relay for too long"), () =>
        this.#socket?.destroy(),
      );
    };
    this.#lastReadAt = performance.now();
    this.#readTimer = setTimeout(check, handshakeMs);
  }

  #finish(error: Error | undefined, end: () => void): void {
    if (this.#state !== "open") return;
    this.#state = "closed";
    this.#protocol?.close();
    clearTimeout(this.#readTimer);
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
    this.#socket?.destroy();
  }
}

function lost(cause: Error): RelayError {
  return new RelayError("ERR_RELAY_CLOSED", `the relay connection broke: ${cause.message}`, { cause });
}
