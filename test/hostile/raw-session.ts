// A session whose client side is made by hand: genuine WireGuard with an agent over a genuine relay, and inside it
// whatever packets an attack likes.
import { randomBytes } from "node:crypto";
import { CoordinatorClient } from "../../coordinator/client.ts";
import type { NodeSubject } from "../../coordinator/coordinator.ts";
import { DerpClient } from "../../derp/client/client.ts";
import { nodeCrypto } from "../../mesh/node/crypto.ts";
import { newIdentity } from "../../mesh/node/node.ts";
import { fromBase64 } from "../../mesh/wire/bytes.ts";
import {
  CLOSE_NUMBER,
  decodeFrames,
  encodePacket,
  type Frame,
  readHeader,
  sessionTag,
} from "../../mesh/wire/session.ts";
import { ByteReader } from "../../mesh/wire/varint.ts";
import { messageType } from "../../mesh/wire/wireguard.ts";
import { WireGuardDevice } from "../../mesh/wireguard/device.ts";

export type Encodable = Exclude<Frame, { kind: "skipped" }>;
export const NONE = new Uint8Array();
/** For "never" only. */
const NEVER_MS = 30_000;

export const newDevice = (privateKey: Uint8Array): WireGuardDevice =>
  new WireGuardDevice({
    privateKey,
    crypto: nodeCrypto,
    randomBytes: (count) => new Uint8Array(randomBytes(count)),
  });

/** Resolves once `condition` holds, looking again whenever `wake` was called. */
export class Watch {
  #waiting = new Set<() => void>();

  wake(): void {
    for (const look of this.#waiting) look();
  }

  until(condition: () => boolean, what: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = (error?: Error) => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        if (error) reject(error);
        else resolve();
      };
      const look = () => condition() && end();
      const timer = setTimeout(() => end(new Error(`never: ${what}`)), NEVER_MS);
      this.#waiting.add(look);
      look();
    });
  }
}

/** One node key at the relay. */
export class RelayedNode {
  readonly privateKey: Uint8Array;
  readonly nodeKey: string;
  readonly derp: DerpClient;
  readonly device: WireGuardDevice;
  readonly watch = new Watch();
  /** Messages that came, by WireGuard's type. */
  readonly came: Record<number, number> = { 1: 0, 2: 0, 3: 0, 4: 0 };

  constructor(relayUrl: string) {
    ({ privateKey: this.privateKey, nodeKey: this.nodeKey } = newIdentity());
    this.derp = new DerpClient({ url: `${relayUrl}/derp`, privateKey: this.privateKey });
    this.device = newDevice(this.privateKey);
    this.derp.on("packet", ({ data }) => {
      this.came[messageType(data) ?? 0]++;
      this.onMessage(data);
      this.watch.wake();
    });
    this.derp.on("drain", () => this.watch.wake());
    this.derp.on("close", () => this.watch.wake());
  }

  onMessage: (data: Uint8Array) => void = () => undefined;

  async connect(): Promise<this> {
    await this.derp.connect();
    return this;
  }

  /** Waits while the socket is full. */
  async send(to: Uint8Array, data: Uint8Array): Promise<void> {
    while (!this.derp.send(to, data)) {
      if (!this.derp.connected) throw new Error("the relay closed the connection");
      await this.watch.until(() => this.derp.isWritable || !this.derp.connected, "room in the socket");
    }
  }

  close(): Promise<void> {
    return this.derp.close();
  }
}

export interface Target {
  url: string;
  agentId: string;
  userId: string;
  relayUrl?: string;
}

/** An admitted (or not yet admitted) client of an agent. */
export class RawSession {
  readonly node: RelayedNode;
  readonly agentKey: Uint8Array;
  readonly grant: Uint8Array;
  readonly sessionId = new Uint8Array(randomBytes(16));
  /** Everything the agent said, in order, STREAM data left out. */
  readonly frames: Frame[] = [];
  /** Highest packet number of the agent's. */
  largest = -1;
  streamBytes = 0;
  closed: { code: number; reason: string } | undefined;
  #number = 0;
  #said = 0;
  #timer: NodeJS.Timeout;

  constructor(node: RelayedNode, agentKey: Uint8Array, grant: Uint8Array) {
    this.node = node;
    this.agentKey = agentKey;
    this.grant = grant;
    node.device.addPeer(agentKey);
    node.onMessage = (data) => this.#receive(data);
    this.#timer = setInterval(() => {
      node.device.handleTimeout(performance.now(), Date.now());
      this.#perform();
    }, 100);
  }

  /** Asks the coordinator for a grant and makes WireGuard's keys with the agent. */
  static async connect({ url, relayUrl = url, agentId, userId }: Target): Promise<RawSession> {
    const node = await new RelayedNode(relayUrl).connect();
    const subject: NodeSubject = { kind: "user", userId, username: "mallory", tokenId: "token" };
    const coordinator = new CoordinatorClient({
      url: `${url}/coordinate`,
      token: JSON.stringify(subject),
      nodeKey: node.nodeKey,
    });
    const { grant, record } = await coordinator.requestGrant(agentId);
    await coordinator.close();
    if (!record) throw new Error("the agent is not there");
    const raw = new RawSession(node, fromBase64(record.nodeKey), grant);
    await raw.shakeHands();
    return raw;
  }

  /** Connects and is let in, or closed. */
  static async admitted(
    target: Target,
    change: Parameters<RawSession["hello"]>[0] = {},
  ): Promise<RawSession> {
    const raw = await RawSession.connect(target);
    const knock = () => raw.say(raw.hello(change));
    await knock();
    // It may have been dropped on the way.
    const again = setInterval(() => void knock().catch(() => undefined), 1_000);
    try {
      await raw.until(() => raw.saw("hello") || raw.closed !== undefined, "the agent's answer to HELLO");
    } finally {
      clearInterval(again);
    }
    return raw;
  }

  async shakeHands(): Promise<void> {
    this.node.device.initiate(this.agentKey, performance.now(), Date.now());
    this.#perform();
    await this.until(() => this.node.device.hasSession(this.agentKey, performance.now()), "a handshake");
  }

  hello(change: Partial<Extract<Frame, { kind: "hello" }>["hello"]> = {}): Encodable {
    return {
      kind: "hello",
      hello: {
        minVersion: 1,
        maxVersion: 1,
        resume: false,
        sessionId: this.sessionId,
        maxPacketBytes: 65_000,
        maxDataBytes: 1 << 20,
        maxStreamDataBytes: 1 << 18,
        maxStreams: 100,
        resumeWindowMs: 86_400_000,
        resumePosition: 0,
        grant: this.grant,
        ...change,
      },
    };
  }

  async say(...frames: Encodable[]): Promise<void> {
    await this.sayBytes(encodePacket(sessionTag(this.sessionId), this.#number++, frames));
  }

  async sayBytes(packet: Uint8Array): Promise<void> {
    const message = this.node.device.seal(this.agentKey, packet, performance.now());
    if (!message) throw new Error("no keys");
    await this.node.send(this.agentKey, message);
    // Whoever doesn't read what comes back is closed by the relay.
    if (++this.#said % 64 === 0) await new Promise(setImmediate);
  }

  saw(kind: Frame["kind"]): boolean {
    return this.frames.some((frame) => frame.kind === kind);
  }

  count(kind: Frame["kind"]): number {
    return this.frames.filter((frame) => frame.kind === kind).length;
  }

  until(condition: () => boolean, what: string): Promise<void> {
    return this.node.watch.until(condition, what);
  }

  /** Resolves with the agent's CLOSE. */
  async end(): Promise<{ code: number; reason: string }> {
    await this.until(() => this.closed !== undefined, "CLOSE");
    return this.closed!;
  }

  /** A PING that the agent has answered: it has taken in all before it, but for what the relay dropped. */
  async settle(): Promise<void> {
    const number = this.#number;
    const seen = this.frames.length;
    const isAcked = (frame: Frame) => frame.kind === "ack" && frame.ranges[0][1] >= number;
    const isOver = () => this.closed !== undefined || this.frames.slice(seen).some(isAcked);
    await this.say({ kind: "ping" });
    // It may itself have been dropped.
    const again = setInterval(() => void this.say({ kind: "ping" }).catch(() => undefined), 100);
    try {
      await this.until(isOver, "an answer to a PING");
    } finally {
      clearInterval(again);
    }
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.node.close();
  }

  #perform(): void {
    for (const output of this.node.device.takeOutputs()) {
      if (output.kind === "send") this.node.derp.send(this.agentKey, output.message);
      if (output.kind === "packet") this.#onPacket(output.packet);
    }
  }

  #receive(data: Uint8Array): void {
    this.node.device.receive(data, { key: "relay" }, performance.now(), Date.now());
    this.#perform();
  }

  #onPacket(packet: Uint8Array): void {
    const reader = new ByteReader(packet);
    const { number } = readHeader(reader);
    const frames = decodeFrames(reader);
    if (number === CLOSE_NUMBER) {
      const [frame] = frames;
      if (frame.kind === "close") this.closed = { code: frame.code, reason: frame.reason };
      return;
    }
    this.largest = Math.max(this.largest, number);
    for (const frame of frames) {
      if (frame.kind === "stream") this.streamBytes += frame.data.length;
      else this.frames.push(frame);
    }
  }
}
