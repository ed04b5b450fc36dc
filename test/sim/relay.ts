// A relay: the real routing core and the real fair queue on virtual connections, and what a bad relay would do to
// packets. And a node's connection to it, as regions.ts uses it.
import { EventEmitter } from "node:events";
import type { DerpClientEvents } from "../../derp/client/client.ts";
import type { RelayConnection } from "../../derp/client/connection.ts";
import { RelayError } from "../../derp/client/errors.ts";
import { DEFAULT_LIMITS } from "../../derp/server/limits.ts";
import { FairQueue } from "../../derp/server/queue.ts";
import { Relay, type RelayClient } from "../../derp/server/relay.ts";
import { concatBytes } from "../../mesh/wire/bytes.ts";
import { End, type Line, SYN_AT_MS } from "./line.ts";
import { Machine, Process } from "./machine.ts";
import type { Random } from "./random.ts";
import type { World } from "./world.ts";

type Frame =
  | { kind: "hello"; key: Uint8Array }
  | { kind: "welcome" }
  /** To the relay: `key` is the receiver; from it: the sender. */
  | { kind: "packet"; key: Uint8Array; data: Uint8Array }
  | { kind: "gone"; key: Uint8Array; reason: number }
  | { kind: "ping" | "pong"; id: number }
  | { kind: "preferred"; home: boolean }
  | { kind: "restarting"; reconnectInMs: number }
  | { kind: "keepalive" };

const KEY_BYTES = 32;
const FRAME_BYTES = 16;
/** What the kernel of a relay takes for one receiver before its own queue begins. */
const SOCKET_BYTES = 128 << 10;
const MAX_CLIENT_BUFFER_BYTES = 1 << 20;

/** What it does to packets, as probabilities per packet. */
export interface Mischief {
  loss: number;
  /** Begins to lose everything, for `burstMs`. */
  burst: number;
  burstMs: number;
  duplicate: number;
  /** Holds a packet back for up to `reorderMs`. */
  reorder: number;
  reorderMs: number;
  /** Sends an old packet again. */
  replay: number;
  /** Changes a byte. */
  alter: number;
  /** Says that it comes from another node. */
  forge: number;
}
export const HONEST: Mischief = {
  loss: 0,
  burst: 0,
  burstMs: 0,
  duplicate: 0,
  reorder: 0,
  reorderMs: 0,
  replay: 0,
  alter: 0,
  forge: 0,
};
const REMEMBERED_PACKETS = 64;

const text = (key: Uint8Array): string => Buffer.from(key).toString("latin1");
const bytesOf = (key: string): Uint8Array => new Uint8Array(Buffer.from(key, "latin1"));

type Client = RelayClient<RelayEnd>;

class RelayEnd {
  client: Client | undefined;
  blockedAt: number | undefined;
  readonly end: End<Frame>;
  readonly queue: FairQueue<string>;

  constructor(end: End<Frame>) {
    this.end = end;
    this.queue = new FairQueue(DEFAULT_LIMITS.queue);
  }
}

export class SimRelay {
  readonly region: number;
  readonly machine: Machine;
  mischief: Mischief = HONEST;
  /** Node keys (latin1) it turns away. */
  readonly unwanted = new Set<string>();
  process!: Process;
  isUp = false;
  #core!: Relay<RelayEnd>;
  #ends = new Set<RelayEnd>();
  #burstUntil = 0;
  #past: { key: Uint8Array; to: string; data: Uint8Array }[] = [];
  #incarnation = 0;
  readonly #world: World;
  readonly #random: Random;
  readonly counts = { packets: 0, lost: 0, duplicated: 0, reordered: 0, replayed: 0, altered: 0, forged: 0 };

  constructor(world: World, region: number) {
    this.#world = world;
    this.region = region;
    this.#random = world.random.fork(`relay ${region}`);
    this.machine = new Machine(world, `relay${region}`, this.#random);
    this.start();
  }

  get connections(): number {
    return this.#core.connections;
  }

  start(): void {
    if (this.isUp) return;
    this.isUp = true;
    this.#core = new Relay(DEFAULT_LIMITS.connectionsPerKey);
    this.#ends.clear();
    const name = `relay${this.region}.${this.#incarnation++}`;
    this.process = new Process(this.machine, name, this.#random.fork(name));
    this.process.repeat(() => this.#sweep(), 1_000);
    this.process.repeat(() => {
      for (const { end } of this.#ends) end.send({ kind: "keepalive" }, FRAME_BYTES);
    }, DEFAULT_LIMITS.keepAliveMs);
  }

  /** Orderly: its clients are told to come back; else they hear a reset. */
  stop(reconnectInMs?: number): void {
    if (!this.isUp) return;
    this.isUp = false;
    if (reconnectInMs !== undefined)
      for (const { end } of this.#ends) end.send({ kind: "restarting", reconnectInMs }, FRAME_BYTES);
    this.process.kill();
  }

  /** Accepts connections and reads, but nothing goes out or in. */
  setFrozen(isFrozen: boolean): void {
    if (isFrozen) this.machine.sleep();
    else this.machine.wake();
  }

  cutAll(): void {
    for (const { end } of [...this.#ends]) end.cut();
  }

  cut(key: Uint8Array): void {
    for (const { handle } of this.#core.clientsOf(text(key))) handle.end.cut();
  }

  accept(end: End<Frame>): void {
    const conn = new RelayEnd(end);
    this.#ends.add(conn);
    end.onMessage = (frame) => this.#onFrame(conn, frame);
    end.onDrain = () => this.#onDrain(conn);
    end.onClose = () => this.#gone(conn);
  }

  inconsistencies(): string[] {
    return this.#core.inconsistencies();
  }

  #gone(conn: RelayEnd): void {
    this.#ends.delete(conn);
    conn.queue.clear(() => undefined);
    if (conn.client) this.#core.remove(conn.client);
    this.#notify();
  }

  #close(conn: RelayEnd): void {
    conn.end.close(true);
    this.#gone(conn);
  }

  #notify(): void {
    for (const { to, key, reason } of this.#core.takeNotices())
      to.handle.end.send({ kind: "gone", key: bytesOf(key), reason }, FRAME_BYTES + KEY_BYTES);
  }

  #onFrame(conn: RelayEnd, frame: Frame): void {
    const now = this.#world.now;
    if (frame.kind === "hello") {
      if (this.unwanted.has(text(frame.key))) return this.#close(conn);
      const { client, evicted } = this.#core.add(conn, text(frame.key), { notHereForAll: true }, now);
      conn.client = client;
      conn.end.send({ kind: "welcome" }, FRAME_BYTES);
      if (evicted) this.#close(evicted.handle);
      return this.#notify();
    }
    const { client } = conn;
    if (!client) return;
    this.#core.touch(client);
    if (frame.kind === "ping") conn.end.send({ kind: "pong", id: frame.id }, FRAME_BYTES);
    else if (frame.kind === "preferred") this.#core.setHome(client, frame.home, now);
    else if (frame.kind === "packet") this.#packet(client, frame.key, frame.data);
    this.#notify();
  }

  #packet(from: Client, to: Uint8Array, data: Uint8Array): void {
    this.counts.packets++;
    const { loss, burst, burstMs, duplicate, reorder, reorderMs, replay, alter, forge } = this.mischief;
    const random = this.#random;
    const source = bytesOf(from.key);
    if (this.mischief === HONEST) return this.#pass(from, source, text(to), data);
    if (random.chance(burst)) this.#burstUntil = this.#world.now + random.between(0, burstMs);
    if (this.#past.length < REMEMBERED_PACKETS) this.#past.push({ key: source, to: text(to), data });
    else this.#past[random.int(0, REMEMBERED_PACKETS - 1)] = { key: source, to: text(to), data };
    if (random.chance(replay)) {
      const old = random.pick(this.#past);
      this.counts.replayed++;
      this.#pass(from, old.key, old.to, old.data.slice());
    }
    if (this.#world.now < this.#burstUntil || random.chance(loss)) {
      this.counts.lost++;
      return;
    }
    if (random.chance(alter)) {
      data = data.slice();
      data[random.int(0, data.length - 1)] ^= 1 << random.int(0, 7);
      this.counts.altered++;
    }
    let claimed = source;
    if (random.chance(forge)) {
      claimed = random.pick(this.#past).key;
      this.counts.forged++;
    }
    if (random.chance(duplicate)) {
      this.counts.duplicated++;
      this.#pass(from, claimed, text(to), data.slice());
    }
    if (random.chance(reorder)) {
      this.counts.reordered++;
      this.process.setTimer(
        () => !from.gone && this.#pass(from, claimed, text(to), data),
        random.between(0, reorderMs),
      );
    } else this.#pass(from, claimed, text(to), data);
  }

  #pass(from: Client, source: Uint8Array, to: string, data: Uint8Array): void {
    const receiver = this.#core.route(from, to);
    if (!receiver) return this.#core.missing(from, to, false, this.#world.now);
    const conn = receiver.handle;
    if (conn.end.outstandingBytes > SOCKET_BYTES) {
      conn.blockedAt ??= this.#world.now;
      conn.queue.push(from.key, concatBytes(source, data), 1, this.#world.now);
    } else conn.end.send({ kind: "packet", key: source, data }, FRAME_BYTES + KEY_BYTES + data.length);
  }

  #onDrain(conn: RelayEnd): void {
    while (conn.end.outstandingBytes <= SOCKET_BYTES) {
      const item = conn.queue.shift();
      if (!item) {
        conn.blockedAt = undefined;
        return;
      }
      const frame: Frame = {
        kind: "packet",
        key: item.bytes.slice(0, KEY_BYTES),
        data: item.bytes.slice(KEY_BYTES),
      };
      conn.end.send(frame, FRAME_BYTES + item.bytes.length);
      conn.blockedAt = this.#world.now;
    }
  }

  #sweep(): void {
    for (const conn of [...this.#ends]) {
      if (conn.queue.bytes > DEFAULT_LIMITS.queue.maxBytes)
        this.#world.violated("memory is bounded", `a relay's queue holds ${conn.queue.bytes} bytes`);
      if (conn.blockedAt !== undefined && this.#world.now - conn.blockedAt > DEFAULT_LIMITS.writeTimeoutMs)
        this.#close(conn);
    }
    const wrong = this.#core.inconsistencies();
    if (wrong.length > 0) this.#world.violated("a relay's tables agree", wrong.join("; "));
  }
}

export interface DialedRelay {
  relay: SimRelay | undefined;
  line: Line;
}

const CONNECT_MS = 10_000;
const PING_MS = 5_000;
const READ_TIMEOUT_MS = 120_000;

/** What a node has of one connection to a relay; connects once. */
export class SimRelayConnection extends EventEmitter<DerpClientEvents> implements RelayConnection {
  readonly family = 4;
  readonly fastStarted = false;
  stranded = false;
  confirmed = false;
  lastFrameAt = 0;
  readonly #process: Process;
  readonly #key: Uint8Array;
  readonly #dialed: DialedRelay;
  readonly #random: Random;
  readonly #connectMs: number;
  #end: End<Frame> | undefined;
  #state: "new" | "open" | "closed" = "new";
  #isFull = false;
  #nextPing = 1;
  #pings = new Map<number, { sentAt: number; settle: (result: number | Error) => void }>();
  #readTimer: object | undefined;

  constructor(
    process: Process,
    key: Uint8Array,
    dialed: DialedRelay,
    random: Random,
    connectMs = CONNECT_MS,
  ) {
    super();
    this.#process = process;
    this.#key = key;
    this.#dialed = dialed;
    this.#random = random;
    this.#connectMs = connectMs;
  }

  get connected(): boolean {
    return this.#state === "open";
  }

  get bufferedBytes(): number {
    return this.#end?.outstandingBytes ?? 0;
  }

  get isWritable(): boolean {
    if (this.#state !== "open" || !this.#end) return false;
    if (this.#end.outstandingBytes > MAX_CLIENT_BUFFER_BYTES) this.#isFull = true;
    return !this.#isFull;
  }

  connect(signal?: AbortSignal): Promise<void> {
    const { relay, line } = this.#dialed;
    const process = this.#process;
    return new Promise((resolve, reject) => {
      const fail = (error: RelayError) => {
        process.clearTimer(timeout);
        this.#state = "closed";
        reject(error);
      };
      const aborted = () => fail(new RelayError("ERR_RELAY_ABORTED", "connecting was given up"));
      const timeout = process.setTimer(
        () => fail(new RelayError("ERR_RELAY_TIMEOUT", "the relay doesn't answer")),
        this.#connectMs,
      );
      const tripMs = 2 * line.delayMs + line.jitterMs * this.#random.float();
      const attempt = (): void => {
        if (this.#state !== "new" || signal?.aborted) return;
        if (line.isBlocked || relay?.machine.isAsleep) return;
        signal?.removeEventListener("abort", aborted);
        if (!relay?.isUp)
          return fail(new RelayError("ERR_RELAY_UNREACHABLE", "the relay refuses connections"));
        process.clearTimer(timeout);
        this.#open(relay, line);
        resolve();
      };
      for (const atMs of SYN_AT_MS) process.setWorkTimer(attempt, atMs + tripMs);
      if (signal?.aborted) return aborted();
      signal?.addEventListener("abort", aborted, { once: true });
    });
  }

  send(dst: Uint8Array, data: Uint8Array): boolean {
    if (!this.isWritable) return false;
    this.#end!.send({ kind: "packet", key: dst.slice(), data }, FRAME_BYTES + KEY_BYTES + data.length);
    return true;
  }

  notePreferred(home: boolean): void {
    this.#end?.send({ kind: "preferred", home }, FRAME_BYTES);
  }

  ping(timeoutMs = PING_MS): Promise<number> {
    return new Promise((resolve, reject) => {
      if (this.#state !== "open")
        return reject(new RelayError("ERR_RELAY_CLOSED", "not connected to the relay"));
      const id = this.#nextPing++;
      const timer = this.#process.setTimer(
        () => settle(new RelayError("ERR_RELAY_TIMEOUT", "the relay didn't answer a ping")),
        timeoutMs,
      );
      const settle = (result: number | Error) => {
        this.#process.clearTimer(timer);
        this.#pings.delete(id);
        if (typeof result === "number") resolve(result);
        else reject(result);
      };
      this.#pings.set(id, { sentAt: this.#process.nowMs(), settle });
      this.#end!.send({ kind: "ping", id }, FRAME_BYTES);
    });
  }

  abandon(error: Error): void {
    this.#end?.close(true);
    this.#finish(error);
  }

  close(): Promise<void> {
    this.#end?.close();
    this.#finish(undefined);
    return Promise.resolve();
  }

  #open(relay: SimRelay, line: Line): void {
    const [near, far] = End.pair<Frame>(this.#process, relay.process, line, this.#random);
    this.#end = near;
    this.#state = "open";
    this.#expectFrames();
    near.onMessage = (frame) => this.#onFrame(frame);
    near.onClose = () => this.#finish(new RelayError("ERR_RELAY_CLOSED", "the relay closed the connection"));
    near.onDrain = () => {
      if (!this.#isFull || near.outstandingBytes > MAX_CLIENT_BUFFER_BYTES / 2) return;
      this.#isFull = false;
      this.emit("drain");
    };
    relay.accept(far);
    near.send({ kind: "hello", key: this.#key }, 128);
  }

  #expectFrames(): void {
    this.lastFrameAt = this.#process.nowMs();
    if (this.#readTimer) return;
    const check = () => {
      const leftMs = this.lastFrameAt + READ_TIMEOUT_MS - this.#process.nowMs();
      if (leftMs > 0) this.#readTimer = this.#process.setIdleTimer(check, leftMs);
      else this.abandon(new RelayError("ERR_RELAY_TIMEOUT", "the relay went silent"));
    };
    this.#readTimer = this.#process.setIdleTimer(check, READ_TIMEOUT_MS);
  }

  #onFrame(frame: Frame): void {
    if (this.#state !== "open" || this.#process.isDead) return;
    this.#expectFrames();
    switch (frame.kind) {
      case "welcome":
        this.confirmed = true;
        this.emit("confirmed", { version: 2 });
        return;
      case "packet":
        this.emit("packet", { src: frame.key, data: frame.data });
        return;
      case "gone":
        this.emit("peerGone", { key: frame.key, reason: frame.reason });
        return;
      case "restarting":
        this.emit("restarting", { reconnectInMs: frame.reconnectInMs, tryForMs: 0 });
        return;
      case "pong": {
        const ping = this.#pings.get(frame.id);
        ping?.settle(this.#process.nowMs() - ping.sentAt);
      }
    }
  }

  #finish(error: Error | undefined): void {
    const wasOpen = this.#state === "open";
    this.#state = "closed";
    this.#process.clearTimer(this.#readTimer);
    for (const { settle } of [...this.#pings.values()])
      settle(error ?? new RelayError("ERR_RELAY_CLOSED", "the connection was closed"));
    if (wasOpen && !this.#process.isDead) this.emit("close", error);
  }
}
