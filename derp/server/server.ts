// The relay as a part of an HTTP server: takes over upgraded sockets, keeps time for all connections, ends them all.
import type { IncomingMessage } from "node:http";
import { Socket } from "node:net";
import { performance } from "node:perf_hooks";
import type { Duplex } from "node:stream";
import { toHex } from "../../mesh/wire/bytes.ts";
import { encodeFrame, PROTOCOL_VERSION } from "../../mesh/wire/derp.ts";
import { type KeyPair, keyPair } from "../box.ts";
import { Connection, type Counters, type Host, RelayRefusal } from "./connection.ts";
import { UPGRADE_REQUIRED } from "./http.ts";
import { DEFAULT_LIMITS, type DerpLimits } from "./limits.ts";
import { Relay } from "./relay.ts";
import { acceptWebSocket } from "./websocket.ts";

/** The part of a pino logger that is used. */
export interface DerpLogger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

/** A connection that proved its key and asks to come in. */
export interface AdmitRequest {
  /** Node key, 32 bytes. */
  key: Uint8Array;
  remoteAddress: string;
  /** Of the upgrade request. */
  headers: Record<string, string | string[] | undefined>;
}

export interface DerpServerOptions {
  /** Curve25519; a fresh one by default. */
  privateKey?: Uint8Array;
  logger?: DerpLogger;
  limits?: Partial<DerpLimits>;
  /** Decides who may use the relay; everybody by default. A rejection and an answer too late both mean no. */
  admit?: (request: AdmitRequest) => boolean | Promise<boolean>;
}

export interface DerpStats extends Counters {
  currentConnections: number;
  currentUnproven: number;
  currentHomeConnections: number;
  currentKeys: number;
  currentDuplicateKeys: number;
  queuedBytes: number;
  peerGoneDisconnectedFrames: number;
  peerGoneNotHereFrames: number;
}

const KEEP_ALIVE = encodeFrame({ kind: "keepAlive" });
/** For clients to read the last frame and close; then we do. */
const CLOSE_GRACE_MS = 1_000;
/** Long on purpose: it wakes phones and laptops. */
const TCP_KEEPALIVE_MS = 600_000;

export class DerpServer {
  readonly publicKey: Uint8Array;
  #keys: KeyPair;
  #limits: DerpLimits;
  #logger: DerpLogger | undefined;
  #admit: DerpServerOptions["admit"];
  #relay: Relay<Connection>;
  #connections = new Set<Connection>();
  #unproven = new Set<Connection>();
  #unprovenByAddress = new Map<string, number>();
  #unprovenBytes = 0;
  #health = "";
  #timer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;
  #onEmpty: (() => void) | undefined;
  #greeting: Uint8Array;
  #host: Host;
  #counters: Counters = {
    accepts: 0,
    refused: 0,
    bytesReceived: 0,
    bytesSent: 0,
    packetsReceived: 0,
    packetsSent: 0,
    droppedUnknownDestination: 0,
    droppedGone: 0,
    droppedQueueHead: 0,
    gotPing: 0,
    sentPong: 0,
    writeTimeouts: 0,
    protocolErrors: 0,
  };

  constructor(options: DerpServerOptions = {}) {
    this.#keys = keyPair(options.privateKey);
    this.publicKey = this.#keys.publicKey;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#logger = options.logger;
    this.#admit = options.admit;
    this.#relay = new Relay(this.#limits.connectionsPerKey);
    this.#greeting = encodeFrame({ kind: "serverKey", key: this.publicKey });
    this.#host = this.#makeHost();
  }

  get stats(): DerpStats {
    let queuedBytes = 0;
    let dropped = this.#counters.droppedQueueHead;
    for (const connection of this.#connections) {
      queuedBytes += connection.queuedBytes;
      dropped += connection.droppedFrames;
    }
    return {
      ...this.#counters,
      droppedQueueHead: dropped,
      currentConnections: this.#relay.connections,
      currentUnproven: this.#unproven.size,
      currentHomeConnections: this.#relay.homes,
      currentKeys: this.#relay.keys,
      currentDuplicateKeys: this.#relay.duplicateKeys,
      queuedBytes,
      peerGoneDisconnectedFrames: this.#relay.counters.peerGoneDisconnected,
      peerGoneNotHereFrames: this.#relay.counters.peerGoneNotHere,
    };
  }

  /**
   * Takes over a connection from an HTTP server's `upgrade` event (the caller has matched the path `/derp`).
   * `head`: bytes read behind the request; they belong to DERP already.
   */
  handleUpgrade(req: IncomingMessage, socket: Duplex, head: Uint8Array): void {
    const upgrade = (req.headers.upgrade ?? "").toLowerCase();
    const remoteAddress = req.socket.remoteAddress ?? "internal";
    const subprotocols = (req.headers["sec-websocket-protocol"] ?? "").split(",").map((name) => name.trim());
    const webSocket = upgrade === "websocket" && subprotocols.includes("derp");
    if (req.method !== "GET" || !(upgrade === "derp" || upgrade === "websocket")) {
      answer(socket, "426 Upgrade Required", UPGRADE_REQUIRED, "Upgrade: DERP\r\n");
      return;
    }
    if (this.#closing) {
      answer(socket, "503 Service Unavailable", "The relay is shutting down.\n");
      return;
    }
    const address = addressGroup(remoteAddress);
    if (
      this.#unproven.size >= this.#limits.unproven ||
      (this.#unprovenByAddress.get(address) ?? 0) >= this.#limits.unprovenPerAddress
    ) {
      this.#counters.refused++;
      answer(socket, "503 Service Unavailable", "Too many connections are being opened. Try again.\n");
      return;
    }
    this.#counters.accepts++;
    if (socket instanceof Socket) {
      socket.setTimeout(0);
      socket.setNoDelay(true);
      socket.setKeepAlive(true, TCP_KEEPALIVE_MS);
    }
    const from = { remoteAddress, headers: req.headers };
    if (webSocket) {
      acceptWebSocket(req, socket, head, (stream) =>
        this.#start(new Connection(this.#host, stream, from), this.#greeting, new Uint8Array()),
      );
      return;
    }
    // Fast start: the client knew our key and sent its ClientInfo at once; it wants no HTTP response.
    const greeting =
      req.headers["derp-fast-start"] === "1"
        ? this.#greeting
        : Buffer.concat([Buffer.from(this.#responseHead(), "latin1"), this.#greeting]);
    this.#start(new Connection(this.#host, socket, from), greeting, head);
  }

  /** Tells all clients, now and when they connect, of a problem; "" when it is over. */
  setHealth(problem: string): void {
    this.#health = problem;
    this.#broadcast(encodeFrame({ kind: "health", problem }));
  }

  /** Ends all connections of one node key (revoked, or to be moved). @returns how many */
  disconnect(key: Uint8Array): number {
    const clients = this.#relay.clientsOf(Buffer.from(key).toString("latin1"));
    for (const client of clients) client.handle.close();
    return clients.length;
  }

  /**
   * Ends all connections. Clients are asked to come back after `reconnectInMs` and to keep trying for `tryForMs`.
   * Resolves when every socket is closed, at most one second later. No connection is accepted any more.
   */
  close({ reconnectInMs = 250, tryForMs = 5_000 } = {}): Promise<void> {
    this.#closing ??= new Promise((resolve) => {
      const frame = encodeFrame({ kind: "restarting", reconnectInMs, tryForMs });
      const timer = setTimeout(() => {
        for (const connection of this.#connections) connection.close();
      }, CLOSE_GRACE_MS);
      this.#onEmpty = () => {
        clearTimeout(timer);
        clearInterval(this.#timer);
        this.#timer = undefined;
        resolve();
      };
      for (const connection of this.#connections) connection.end(frame);
      if (this.#connections.size === 0) this.#onEmpty();
    });
    return this.#closing;
  }

  #start(connection: Connection, greeting: Uint8Array, head: Uint8Array): void {
    this.#connections.add(connection);
    this.#unproven.add(connection);
    const address = addressGroup(connection.remoteAddress);
    this.#unprovenByAddress.set(address, (this.#unprovenByAddress.get(address) ?? 0) + 1);
    this.#startTimer();
    connection.start(greeting, head);
  }

  #responseHead(): string {
    return [
      "HTTP/1.1 101 Switching Protocols",
      "Upgrade: DERP",
      "Connection: Upgrade",
      `Derp-Version: ${PROTOCOL_VERSION}`,
      `Derp-Public-Key: ${toHex(this.publicKey)}`,
      "\r\n",
    ].join("\r\n");
  }

  #makeHost(): Host {
    const server = this;
    return {
      limits: this.#limits,
      privateKey: this.#keys.privateKey,
      relay: this.#relay,
      counters: this.#counters,
      get health() {
        return server.#health;
      },
      now: () => performance.now(),
      admit: (connection) => {
        if (!this.#admit) return true;
        const { key, remoteAddress, headers } = connection;
        try {
          return this.#admit({ key: key!, remoteAddress, headers });
        } catch {
          return false;
        }
      },
      reserve: (bytes) => {
        this.#unprovenBytes += bytes;
        return this.#unprovenBytes <= this.#limits.unprovenBytes;
      },
      proven: (connection) => this.#proven(connection),
      deliverNotices: () => {
        for (const { to, key, reason } of this.#relay.takeNotices()) {
          const frame = encodeFrame({ kind: "peerGone", key: Buffer.from(key, "latin1"), reason });
          to.handle.sendControl(frame);
        }
      },
      closed: (connection, error) => {
        this.#connections.delete(connection);
        if (error && !this.#closing)
          this.#logger?.debug(
            { remoteAddress: connection.remoteAddress, err: error.message, code: codeOf(error) },
            "relay connection ended",
          );
        if (this.#connections.size === 0) this.#idle();
      },
    };
  }

  #proven(connection: Connection): void {
    if (!this.#unproven.delete(connection)) return;
    const address = addressGroup(connection.remoteAddress);
    const left = (this.#unprovenByAddress.get(address) ?? 1) - 1;
    if (left > 0) this.#unprovenByAddress.set(address, left);
    else this.#unprovenByAddress.delete(address);
    const { keepAliveMs, keepAliveJitterMs } = this.#limits;
    connection.keepAliveEveryMs = keepAliveMs + Math.random() * keepAliveJitterMs;
    connection.nextKeepAliveAt = performance.now() + connection.keepAliveEveryMs;
  }

  /** One timer for all connections: thousands of them each with its own would cost more than they do. */
  #startTimer(): void {
    const { handshakeMs, writeTimeoutMs, keepAliveMs } = this.#limits;
    const everyMs = Math.max(10, Math.min(1_000, handshakeMs / 4, writeTimeoutMs / 4, keepAliveMs / 4));
    this.#timer ??= setInterval(() => this.#sweep(performance.now()), everyMs);
  }

  #idle(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#onEmpty?.();
  }

  #sweep(now: number): void {
    const { handshakeMs, admitMs, writeTimeoutMs } = this.#limits;
    for (const connection of this.#unproven) {
      const allowedMs = connection.state === "admitting" ? handshakeMs + admitMs : handshakeMs;
      if (now - connection.startedAt >= allowedMs)
        connection.close(new RelayRefusal("ERR_RELAY_TIMEOUT", "handshake not finished in time"));
    }
    for (const connection of this.#connections) {
      if (connection.blockedAt !== undefined && now - connection.blockedAt >= writeTimeoutMs) {
        this.#counters.writeTimeouts++;
        connection.close(new RelayRefusal("ERR_RELAY_TIMEOUT", "the client does not read"));
      } else if (now >= connection.nextKeepAliveAt) {
        connection.nextKeepAliveAt = now + connection.keepAliveEveryMs;
        connection.sendControl(KEEP_ALIVE);
      }
    }
  }

  #broadcast(frame: Uint8Array): void {
    for (const connection of this.#connections) connection.sendControl(frame);
  }
}

function codeOf(error: Error): string | undefined {
  return "code" in error && typeof error.code === "string" ? error.code : undefined;
}

/** What counts as one address: an IPv4 address, or the /64 an IPv6 host chooses from. */
export function addressGroup(address: string): string {
  const v4 = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
  if (v4) return v4[1];
  if (!address.includes(":")) return address;
  const [left, right] = address.split("%", 1)[0].split("::");
  const head = left ? left.split(":") : [];
  const tail = right ? right.split(":") : [];
  const zeros = right === undefined ? 0 : Math.max(0, 8 - head.length - tail.length);
  return [...head, ...Array<string>(zeros).fill("0"), ...tail]
    .slice(0, 4)
    .map((part) => Number.parseInt(part || "0", 16).toString(16))
    .join(":");
}

/** Answers and ends; reads on for a moment, since closing on unread bytes would reset the answer away. */
function answer(socket: Duplex, status: string, text: string, headers = ""): void {
  const destroy = (): void => {
    socket.destroy();
  };
  const timer = setTimeout(destroy, CLOSE_GRACE_MS);
  socket.on("error", destroy).on("end", destroy);
  socket.on("close", () => clearTimeout(timer));
  socket.resume();
  socket.end(
    `HTTP/1.1 ${status}\r\n${headers}Content-Type: text/plain; charset=utf-8\r\n` +
      `Content-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`,
  );
}
