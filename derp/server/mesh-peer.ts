// Our connection to one sibling server of the region: as its client, with the mesh key. It tells us who is there, and
// takes what we have for them. Lost, it is dialled again until it is closed.
import { randomBytes } from "node:crypto";
import http from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import type { Duplex } from "node:stream";
import { concatBytes, equalBytes } from "../../mesh/wire/bytes.ts";
import {
  decodeFrame,
  encodeFrame,
  FRAME,
  FrameDecoder,
  forwardOfSend,
  HEADER_BYTES,
  KEY_BYTES,
  maxServerBodyBytes,
  NONCE_BYTES,
  PACKET_OVERHEAD_BYTES,
  PROTOCOL_VERSION,
} from "../../mesh/wire/derp.ts";
import { MeshError, WireError } from "../../mesh/wire/errors.ts";
import { type KeyPair, openServerInfo, sealClientInfo, sharedKey } from "../box.ts";
import type { Client } from "./connection.ts";
import type { Counters } from "./metrics.ts";
import { Outlet } from "./outlet.ts";

/** What a connection to a sibling needs of its server. */
export interface MeshHost {
  readonly keys: KeyPair;
  readonly meshKey: string;
  readonly counters: Counters;
  now(): number;
  /** 0..1, for the pause before a retry. */
  random(): number;
  /** The sibling has `key`. */
  present(peer: MeshPeer, key: Uint8Array): void;
  /** It has it no more. */
  gone(peer: MeshPeer, key: Uint8Array): void;
  /** All it had is out of reach. */
  down(peer: MeshPeer, error: MeshError): void;
  up(peer: MeshPeer): void;
}

export interface MeshPeerOptions {
  /** A certificate authority in PEM beside the system's. */
  ca?: string;
  /** Pause before the next attempt, times 0.5 to 1.5. */
  retryMs?: number;
}

export class MeshPeerError extends MeshError {
  readonly code:
    | "ERR_SIBLING_UNREACHABLE"
    | "ERR_SIBLING_REFUSED"
    | "ERR_SIBLING_CLOSED"
    | "ERR_SIBLING_TIMEOUT"
    | "ERR_SIBLING_SELF";
  constructor(code: MeshPeerError["code"], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

const CONNECT_MS = 10_000;
const RETRY_MS = 5_000;
/** Two keepalives missed. */
const READ_TIMEOUT_MS = 130_000;
const WRITE_TIMEOUT_MS = 5_000;
const CHECK_MS = 1_000;
/** What many clients send to many others, for some ten milliseconds of a fast link. */
const QUEUE = { maxBytes: 8 << 20, maxAgeMs: 200, keepBytes: 1 << 20 };
/** A sibling may ask for no longer pause than this. */
const MAX_RESTART_MS = 30_000;

export class MeshPeer {
  readonly url: URL;
  #host: MeshHost;
  #options: MeshPeerOptions;
  #socket: Duplex | undefined;
  #outlet: Outlet<Client> | undefined;
  #decoder = new FrameDecoder(maxServerBodyBytes);
  #shared: Uint8Array | undefined;
  #isUp = false;
  #closed = false;
  #lastReadAt = 0;
  #restartInMs: number | undefined;
  #request: http.ClientRequest | undefined;
  #timer: NodeJS.Timeout | undefined;
  #checks: NodeJS.Timeout | undefined;

  /** `url`: of the sibling's relay with its path, http: or https:. Starts to connect. */
  constructor(host: MeshHost, url: string | URL, options: MeshPeerOptions = {}) {
    this.#host = host;
    this.url = new URL(url);
    this.#options = options;
    this.#dial();
  }

  get isUp(): boolean {
    return this.#isUp;
  }

  /** Passes on one whole SendPacket frame from the client `source`, whose key is `src`. Never waits. */
  forward(source: Client, src: Uint8Array, send: Uint8Array, disco: number): void {
    this.#outlet?.packets(source, forwardOfSend(send, src), 1, disco);
  }

  /** Has the sibling end all connections of a key. */
  closePeer(key: Uint8Array): void {
    if (this.#isUp) this.#outlet?.control(encodeFrame({ kind: "closePeer", key }));
  }

  /** For good. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#end(new MeshPeerError("ERR_SIBLING_CLOSED", "closed by us"));
  }

  #dial(): void {
    const { url } = this;
    const secure = url.protocol === "https:";
    const hostname = url.hostname.replace(/^\[|\]$/g, "");
    const request = (secure ? https : http).request({
      hostname,
      port: url.port || (secure ? 443 : 80),
      path: url.pathname + url.search,
      agent: false,
      headers: { Upgrade: "DERP", Connection: "Upgrade" },
      ...(secure && {
        ALPNProtocols: ["http/1.1"],
        servername: isIP(hostname) ? "" : hostname,
        ca: this.#options.ca,
      }),
    });
    this.#request = request;
    this.#timer = setTimeout(
      () => this.#end(new MeshPeerError("ERR_SIBLING_TIMEOUT", `${url.origin} doesn't answer`)),
      CONNECT_MS,
    );
    request.on("error", (cause) =>
      this.#end(
        new MeshPeerError("ERR_SIBLING_UNREACHABLE", `can't reach ${url.origin}: ${cause.message}`, {
          cause,
        }),
      ),
    );
    request.on("response", ({ statusCode }) =>
      this.#end(new MeshPeerError("ERR_SIBLING_REFUSED", `${url.origin} answered with status ${statusCode}`)),
    );
    request.on("upgrade", (_response, socket, head) => {
      if (this.#request === request) this.#open(socket, head);
      else socket.destroy();
    });
    request.end();
  }

  #open(socket: Duplex, head: Uint8Array): void {
    const closed = (cause?: Error): void => {
      if (this.#socket === socket)
        this.#end(
          new MeshPeerError("ERR_SIBLING_CLOSED", `${this.url.origin} closed the connection`, { cause }),
        );
    };
    this.#socket = socket;
    this.#decoder = new FrameDecoder(maxServerBodyBytes);
    this.#shared = undefined;
    this.#lastReadAt = this.#host.now();
    const now = () => this.#host.now();
    this.#outlet = new Outlet(socket, QUEUE, this.#host.counters, now, PACKET_OVERHEAD_BYTES + KEY_BYTES);
    this.#checks = setInterval(() => this.#check(), CHECK_MS);
    socket.on("error", closed).on("end", closed).on("close", closed);
    if (head.length > 0) this.#read(head);
    socket.on("data", (chunk: Uint8Array) => this.#read(chunk));
  }

  #read(chunk: Uint8Array): void {
    this.#lastReadAt = this.#host.now();
    try {
      this.#decoder.push(
        new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length),
        (type, buffer, start, end) => {
          this.#frame(type, buffer.subarray(start + HEADER_BYTES, end));
          return this.#socket !== undefined;
        },
      );
    } catch (cause) {
      if (!(cause instanceof WireError)) throw cause;
      this.#end(
        new MeshPeerError("ERR_SIBLING_REFUSED", `${this.url.origin} is no DERP relay: ${cause.message}`, {
          cause,
        }),
      );
    }
  }

  #frame(type: number, body: Uint8Array): void {
    if (!this.#isUp && type !== FRAME.serverKey && type !== FRAME.serverInfo)
      throw new WireError("ERR_UNEXPECTED_FRAME", `frame of type ${type} before ServerInfo`);
    const { keys, meshKey } = this.#host;
    const frame = decodeFrame(type, body);
    switch (frame.kind) {
      case "serverKey": {
        if (this.#shared) return;
        if (equalBytes(frame.key, keys.publicKey)) {
          this.#closed = true; // another attempt would find the same
          this.#end(new MeshPeerError("ERR_SIBLING_SELF", `${this.url.origin} is this server itself`));
          return;
        }
        this.#shared = sharedKey(frame.key, keys.privateKey);
        const info = { version: PROTOCOL_VERSION, canAckPings: true, meshKey, peerGoneForAll: true };
        const hello = sealClientInfo(info, keys.publicKey, this.#shared, randomBytes(NONCE_BYTES));
        this.#outlet?.control(concatBytes(hello, encodeFrame({ kind: "watchConns" })));
        return;
      }
      case "serverInfo":
        if (!this.#shared) throw new WireError("ERR_UNEXPECTED_FRAME", "ServerInfo before ServerKey");
        openServerInfo(body, this.#shared);
        if (this.#isUp) return;
        clearTimeout(this.#timer);
        this.#isUp = true;
        this.#host.up(this);
        return;
      case "peerPresent":
        this.#host.present(this, frame.key);
        return;
      case "peerGone":
        this.#host.gone(this, frame.key);
        return;
      case "ping":
        this.#outlet?.control(encodeFrame({ kind: "pong", data: frame.data }));
        return;
      case "restarting":
        this.#restartInMs = Math.min(frame.reconnectInMs, MAX_RESTART_MS);
        return;
      default: // keepalives, and packets to a server's own key, which has no use for them
    }
  }

  #check(): void {
    const now = this.#host.now();
    const blockedAt = this.#outlet?.blockedAt;
    if (blockedAt !== undefined && now - blockedAt >= WRITE_TIMEOUT_MS)
      this.#end(new MeshPeerError("ERR_SIBLING_TIMEOUT", `${this.url.origin} does not read`));
    else if (now - this.#lastReadAt >= READ_TIMEOUT_MS)
      this.#end(
        new MeshPeerError("ERR_SIBLING_TIMEOUT", `nothing came from ${this.url.origin} for too long`),
      );
  }

  /** The attempt or connection is over; another follows unless we are closed. */
  #end(error: MeshPeerError): void {
    clearTimeout(this.#timer);
    clearInterval(this.#checks);
    const request = this.#request;
    this.#request = undefined;
    request?.on("error", () => {}); // of the destruction
    request?.destroy();
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.destroy();
    this.#outlet?.close("gone_disconnected");
    this.#outlet = undefined;
    this.#isUp = false;
    this.#host.down(this, error);
    if (this.#closed) return;
    const pauseMs = this.#restartInMs ?? this.#options.retryMs ?? RETRY_MS;
    this.#restartInMs = undefined;
    this.#timer = setTimeout(() => this.#dial(), pauseMs * (0.5 + this.#host.random()));
  }
}
