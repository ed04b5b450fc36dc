// Helpers of the relay's tests: a relay on loopback, clients of it, and a raw client that can misbehave.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import {
  type ClientInfo,
  encodeFrame,
  FRAME,
  FrameDecoder,
  HEADER_BYTES,
  maxServerBodyBytes,
} from "../mesh/wire/derp.ts";
import { type KeyPair, keyPair, openServerInfo, sealClientInfo, sharedKey } from "./box.ts";
import { DerpClient, type DerpClientOptions } from "./client/client.ts";
import { handleDerpRequest } from "./server/http.ts";
import { DerpServer, type DerpServerOptions } from "./server/server.ts";

export interface TestRelay {
  server: DerpServer;
  /** http://127.0.0.1:port/derp */
  url: string;
  port: number;
  client(options?: Partial<DerpClientOptions>): Promise<TestClient>;
  close(): Promise<void>;
}

export interface TestClient {
  client: DerpClient;
  key: Uint8Array;
  packets: Inbox<{ src: Uint8Array; data: Uint8Array }>;
  gone: Inbox<{ key: Uint8Array; reason: number }>;
}

/** What arrived and was not taken; `take` waits for the next (the test's own time limit bounds it). */
export class Inbox<T> {
  #items: T[] = [];
  #waiting: ((item: T) => void)[] = [];

  get size(): number {
    return this.#items.length;
  }

  push(item: T): void {
    const waiter = this.#waiting.shift();
    if (waiter) waiter(item);
    else this.#items.push(item);
  }

  take(): Promise<T> {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve(item);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
}

/** A relay at `/derp` on a free loopback port. */
export async function startRelay(options: DerpServerOptions = {}, port = 0): Promise<TestRelay> {
  const server = new DerpServer(options);
  const http = createServer((req, res) => {
    if (!handleDerpRequest(req, res)) res.writeHead(404).end();
  });
  http.on("upgrade", (req, socket, head) => server.handleUpgrade(req, socket, head));
  http.listen(port, "127.0.0.1");
  await once(http, "listening");
  const bound = (http.address() as AddressInfo).port;
  const url = `http://127.0.0.1:${bound}/derp`;
  const clients: DerpClient[] = [];
  return {
    server,
    url,
    port: bound,
    async client(clientOptions = {}) {
      const client = new DerpClient({ url, privateKey: keyPair().privateKey, ...clientOptions });
      clients.push(client);
      const packets = new Inbox<{ src: Uint8Array; data: Uint8Array }>();
      const gone = new Inbox<{ key: Uint8Array; reason: number }>();
      client.on("packet", (packet) => packets.push(packet));
      client.on("peerGone", (peer) => gone.push(peer));
      const confirmed = new Promise<void>((resolve, reject) => {
        client.once("confirmed", () => resolve());
        client.once("close", (error) => reject(error ?? new Error("closed")));
      });
      confirmed.catch(() => {}); // a failing connect is what the caller hears of
      await client.connect();
      await confirmed;
      return { client, key: client.publicKey, packets, gone };
    },
    async close() {
      await Promise.all(clients.map((client) => client.close()));
      await server.close();
      http.close();
      http.closeAllConnections();
      await once(http, "close");
    },
  };
}

/** A TCP connection that sends what it is told and collects whole frames once the response head is over. */
export class RawClient {
  readonly keys: KeyPair;
  readonly socket: Socket;
  readonly frames = new Inbox<{ type: number; body: Uint8Array }>();
  /** Everything before the frames. */
  head = "";
  #decoder = new FrameDecoder(maxServerBodyBytes);
  #inFrames = false;
  readonly closed: Promise<void>;

  constructor(port: number, keys = keyPair()) {
    this.keys = keys;
    this.socket = connect(port, "127.0.0.1");
    this.socket.on("error", () => {}); // resets are expected
    this.closed = new Promise((resolve) => this.socket.once("close", () => resolve()));
    this.socket.on("data", (chunk) => this.#read(chunk));
  }

  upgrade(extra = ""): void {
    this.socket.write(
      `GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n${extra}\r\n`,
    );
  }

  async nextFrame(): Promise<{ type: number; body: Uint8Array }> {
    return this.frames.take();
  }

  #read(chunk: Buffer): void {
    let bytes = chunk;
    if (!this.#inFrames) {
      this.head += chunk.toString("latin1");
      const end = this.head.indexOf("\r\n\r\n");
      if (end === -1) return;
      bytes = Buffer.from(this.head.slice(end + 4), "latin1");
      this.head = this.head.slice(0, end + 4);
      if (!this.head.startsWith("HTTP/1.1 101")) {
        this.head += bytes.toString("latin1");
        return;
      }
      this.#inFrames = true;
    }
    this.#decoder.push(bytes, (type, buffer, start, end) => {
      this.frames.push({ type, body: buffer.slice(start + HEADER_BYTES, end) });
    });
  }
}

/** A raw client that has finished the handshake, `extra` sent in the same write as ClientInfo. */
export async function rawJoin(
  relay: { port: number },
  {
    extra = new Uint8Array(),
    info = {},
    headers = "",
    keys,
  }: { extra?: Uint8Array; info?: Partial<ClientInfo>; headers?: string; keys?: KeyPair } = {},
): Promise<RawClient> {
  const raw = new RawClient(relay.port, keys);
  raw.upgrade(headers);
  const hello = await raw.nextFrame();
  const shared = sharedKey(hello.body.subarray(8), raw.keys.privateKey);
  const clientInfo = sealClientInfo(
    { version: 2, canAckPings: true, ...info },
    raw.keys.publicKey,
    shared,
    randomBytes(24),
  );
  raw.socket.write(Buffer.concat([clientInfo, extra]));
  const first = await raw.nextFrame();
  assert.equal(first.type, FRAME.serverInfo, "ServerInfo is the first frame after ServerKey");
  assert.equal(openServerInfo(first.body, shared).version, 2);
  return raw;
}

export const sendFrame = (dst: Uint8Array, data: Uint8Array): Uint8Array =>
  encodeFrame({ kind: "sendPacket", dst, data });

/** Resolves when `condition` holds, looking again after every turn of the event loop. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}
