// The middle of bench/delay.ts: a process of its own between two UDP ports, which hands every datagram on after a while,
// or never. Told by its parent what to do; it ends with it.
//
// Timers count whole milliseconds and fire late, so what is due within one goes too: right on average, give or take one.
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { seededRandom } from "../mesh/wire/testing.ts";

export interface Shape {
  /** One way. */
  delayMs: number;
  /** 0..1, of each direction, independent. */
  lossShare: number;
  /** Of each direction, of what the tunnel carries with its framing; 0: none. */
  rateMbit: number;
  /** Seeds the losses: the same seed loses the same datagrams of the same traffic. */
  seed: number;
}

const EARLY_MS = 1;
/** What a rate limit lets wait, in time at that rate; more is dropped from the tail, as a router does. */
const MAX_QUEUE_MS = 100;
/** Without a rate limit. */
const MAX_QUEUE_BYTES = 256 << 20;
const SOCKET_BUFFER_BYTES = 4 << 20;

/** One direction: what arrives at `from` leaves at `to` for `port`. */
class Direction {
  #to: Socket;
  #port: number;
  #shape: Shape;
  #random: () => number;
  #queue: { atMs: number; bytes: Uint8Array }[] = [];
  #head = 0;
  #queuedBytes = 0;
  #freeAtMs = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(from: Socket, to: Socket, port: number, shape: Shape) {
    this.#to = to;
    this.#port = port;
    this.#shape = shape;
    this.#random = seededRandom(shape.seed);
    from.on("message", (bytes) => this.#take(bytes));
  }

  set shape(shape: Shape) {
    this.#shape = shape;
    this.#random = seededRandom(shape.seed);
  }

  #take(bytes: Uint8Array): void {
    const { delayMs, lossShare, rateMbit } = this.#shape;
    if (lossShare > 0 && this.#random() < lossShare) return;
    const now = performance.now();
    const isEmpty = this.#head === this.#queue.length;
    if (isEmpty && delayMs === 0 && rateMbit === 0) return this.#send(bytes);
    let leavesAtMs = now;
    if (rateMbit > 0) {
      leavesAtMs = Math.max(now, this.#freeAtMs);
      if (leavesAtMs - now > MAX_QUEUE_MS) return;
      leavesAtMs += (bytes.length * 8) / (rateMbit * 1_000);
      this.#freeAtMs = leavesAtMs;
    }
    if (this.#queuedBytes + bytes.length > MAX_QUEUE_BYTES) return;
    this.#queuedBytes += bytes.length;
    this.#queue.push({ atMs: leavesAtMs + delayMs, bytes });
    this.#arm(now);
  }

  #send(bytes: Uint8Array): void {
    this.#to.send(bytes, this.#port, "127.0.0.1", () => undefined); // a full buffer loses it, as a network would
  }

  #arm(now: number): void {
    if (this.#timer || this.#head === this.#queue.length) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        this.#flush();
      },
      Math.max(1, Math.floor(this.#queue[this.#head].atMs - now - EARLY_MS / 2)),
    );
  }

  #flush(): void {
    const now = performance.now();
    while (this.#head < this.#queue.length && this.#queue[this.#head].atMs <= now + EARLY_MS) {
      const { bytes } = this.#queue[this.#head++];
      this.#queuedBytes -= bytes.length;
      this.#send(bytes);
    }
    if (this.#head === this.#queue.length || this.#head > 4_096) this.#queue = this.#queue.splice(this.#head);
    if (this.#queue.length === 0 || this.#head > 4_096) this.#head = 0;
    this.#arm(now);
  }
}

async function bound(): Promise<Socket> {
  const socket = createSocket("udp4");
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  socket.setRecvBufferSize(SOCKET_BUFFER_BYTES);
  socket.setSendBufferSize(SOCKET_BUFFER_BYTES);
  return socket;
}

/** What the parent says: first where the two ends listen, then what the line is like. */
export type ToShaper =
  | { kind: "ends"; ports: [number, number]; shape: Shape }
  | { kind: "shape"; shape: Shape };
/** The ports that the ends send to; then an answer to each shape. */
export type FromShaper = { kind: "ports"; ports: [number, number] } | { kind: "shaped" };

async function main(): Promise<void> {
  const sockets = [await bound(), await bound()] as const;
  let directions: Direction[] = [];
  const tell = (message: FromShaper) => process.send?.(message);
  process.on("disconnect", () => process.exit());
  process.on("message", (message: ToShaper) => {
    const { shape } = message;
    if (message.kind === "ends") {
      const [near, far] = message.ports;
      directions = [
        new Direction(sockets[0], sockets[1], far, shape),
        new Direction(sockets[1], sockets[0], near, { ...shape, seed: shape.seed + 1 }),
      ];
    } else
      for (const [i, direction] of directions.entries()) direction.shape = { ...shape, seed: shape.seed + i };
    tell({ kind: "shaped" });
  });
  tell({ kind: "ports", ports: [sockets[0].address().port, sockets[1].address().port] });
}

if (process.send) await main();
