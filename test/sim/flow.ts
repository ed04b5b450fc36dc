// One stream of the workload: what each side is to do, and what came of it.
import type { MeshStream } from "../../mesh/node/stream.ts";
import { Content } from "./content.ts";
import type { Process } from "./machine.ts";
import type { Random } from "./random.ts";
import type { World } from "./world.ts";

export type Side = "client" | "agent";
/** How a side ends what it writes, and what it reads. */
export type Ending =
  /** Writes all, then FIN; reads to the end. */
  | { kind: "whole" }
  /** Destroys the stream after so many bytes were written or read. */
  | { kind: "destroy"; afterBytes: number };

export interface FlowPlan {
  id: string;
  /** By writer. */
  bytes: Record<Side, number>;
  ending: Record<Side, Ending>;
  chunkBytes: number;
  /** Between chunks written, at most; 0: as fast as the stream takes them. */
  writePauseMs: number;
  /** After each read, at most. */
  readPauseMs: number;
  datagrams: number;
}

export function planFlow(id: string, random: Random, maxBytes: number): FlowPlan {
  const bytes = { client: random.logInt(0, maxBytes), agent: random.logInt(0, maxBytes) };
  const total = Math.max(bytes.client, bytes.agent, 1);
  const ending = (): Ending =>
    random.chance(0.85) ? { kind: "whole" } : { kind: "destroy", afterBytes: random.int(0, total) };
  const chunkBytes = Math.max(1, random.logInt(Math.ceil(total / 200), 65_536));
  return {
    id,
    bytes,
    ending: { client: ending(), agent: ending() },
    chunkBytes,
    writePauseMs: random.chance(0.4) ? random.logInt(0, 400) : 0,
    readPauseMs: random.chance(0.3) ? random.logInt(0, 200) : 0,
    datagrams: random.chance(0.3) ? random.int(1, 20) : 0,
  };
}

export interface HalfState {
  written: number;
  /** FIN was said. */
  hasEnded: boolean;
  received: number;
  sawEnd: boolean;
  isClosed: boolean;
  error: (Error & { code?: string; closeCode?: number }) | undefined;
  isDestroyed: boolean;
  /** Numbers of the datagrams that came. */
  datagrams: Set<number>;
  stream: MeshStream | undefined;
  process: Process | undefined;
}

const newHalf = (): HalfState => ({
  written: 0,
  hasEnded: false,
  received: 0,
  sawEnd: false,
  isClosed: false,
  error: undefined,
  isDestroyed: false,
  datagrams: new Set(),
  stream: undefined,
  process: undefined,
});

const other = (side: Side): Side => (side === "client" ? "agent" : "client");

export class Flow {
  readonly plan: FlowPlan;
  readonly client: string;
  readonly agent: string;
  readonly userId: string;
  readonly startedAt: number;
  readonly half: Record<Side, HalfState> = { client: newHalf(), agent: newHalf() };
  /** Why it may end otherwise than planned; undefined: it may not. */
  excuse: string | undefined;
  /** The agent took it, so often. */
  opened = 0;
  dialFailed: string | undefined;
  /** Set once its grant is known to be void at the agent: what had come by then, its reader may still take. */
  cutAfterBytes: number | undefined;
  readonly #world: World;
  readonly #random: Random;
  readonly #content: Record<Side, Content>;

  constructor(
    world: World,
    plan: FlowPlan,
    who: { client: string; agent: string; userId: string },
    random: Random,
  ) {
    this.#world = world;
    this.plan = plan;
    this.client = who.client;
    this.agent = who.agent;
    this.userId = who.userId;
    this.startedAt = world.now;
    this.#random = random;
    this.#content = { client: new Content(random), agent: new Content(random) };
  }

  get isPlannedWhole(): boolean {
    return this.plan.ending.client.kind === "whole" && this.plan.ending.agent.kind === "whole";
  }

  /** Nothing is to be expected of it any more. */
  get isOver(): boolean {
    if (this.dialFailed !== undefined) return true;
    const { client, agent } = this.half;
    const isGone = ({ process, isClosed }: HalfState) => isClosed || process?.isDead === true;
    if (!isGone(client)) return false;
    // An agent keeps the session of a client that died for as long as that had asked.
    return agent.stream === undefined || isGone(agent) || client.process?.isDead === true;
  }

  /** Both ends have all of it, and know. */
  get isWhole(): boolean {
    const { client, agent } = this.half;
    return (
      client.sawEnd &&
      agent.sawEnd &&
      client.received === this.plan.bytes.agent &&
      agent.received === this.plan.bytes.client
    );
  }

  excuseBy(why: string): void {
    this.excuse ??= why;
  }

  toString(): string {
    const { client, agent } = this.half;
    const show = ({ written, received, sawEnd, isClosed, error, isDestroyed }: HalfState) =>
      `wrote ${written}, got ${received}${sawEnd ? " and the end" : ""}${isClosed ? ", closed" : ""}${isDestroyed ? ", destroyed" : ""}${error ? ` (${error.code ?? error.name}: ${error.message})` : ""}`;
    return `${this.plan.id} ${this.client}->${this.agent} of ${this.plan.bytes.client}/${this.plan.bytes.agent} bytes; client ${show(client)}; agent, opened ${this.opened} times, ${show(agent)}${this.dialFailed ? `; dial failed: ${this.dialFailed}` : ""}${this.excuse ? `; excused: ${this.excuse}` : ""}`;
  }

  /** Its grant is void, and the agent knows. */
  cut(): void {
    const { received, stream } = this.half.agent;
    this.cutAfterBytes ??= received + (stream?.readableLength ?? 0);
  }

  /** Begins this side's part. */
  run(side: Side, stream: MeshStream, process: Process): void {
    const half = this.half[side];
    half.stream = stream;
    half.process = process;
    stream.on("error", (error) => {
      half.error = error;
    });
    stream.on("close", () => {
      half.isClosed = true;
      if (process.isDead) return;
      this.#world.log(
        `flow ${this.plan.id} ${side} closed ${half.received}/${half.written} ${half.error?.message ?? ""}`,
      );
    });
    stream.on("data", (chunk: Buffer) => this.#onData(side, stream, process, chunk));
    stream.on("end", () => this.#onEnd(side));
    stream.onDatagram = (bytes) => this.#onDatagram(side, bytes);
    for (let i = 0; i < this.plan.datagrams; i++)
      process.setWorkTimer(() => this.#sendDatagram(side, stream, i), this.#random.between(0, 5_000));
    this.#write(side, stream, process);
  }

  #write(side: Side, stream: MeshStream, process: Process): void {
    const half = this.half[side];
    const { bytes, chunkBytes, writePauseMs, ending } = this.plan;
    const end = ending[side];
    for (;;) {
      if (process.isDead || stream.destroyed || half.hasEnded) return;
      if (end.kind === "destroy" && half.written >= end.afterBytes) return this.#destroy(side, stream);
      if (half.written >= bytes[side]) {
        half.hasEnded = true;
        stream.end();
        return;
      }
      const length = Math.min(chunkBytes, bytes[side] - half.written);
      const chunk = this.#content[side].make(half.written, length);
      half.written += length;
      const isTaken = stream.write(chunk);
      const goOn = () => this.#write(side, stream, process);
      if (!isTaken) {
        stream.once("drain", goOn);
        return;
      }
      if (writePauseMs > 0) {
        process.setWorkTimer(goOn, this.#random.between(0, writePauseMs));
        return;
      }
    }
  }

  #onData(side: Side, stream: MeshStream, process: Process, chunk: Buffer): void {
    if (process.isDead) return;
    const half = this.half[side];
    const from = other(side);
    const wrongAt = this.#content[from].check(half.received, chunk);
    if (wrongAt !== undefined)
      this.#world.violated(
        "bytes come once and in order",
        `${this.plan.id} to the ${side}: byte ${wrongAt} is wrong`,
      );
    half.received += chunk.length;
    if (side === "agent" && half.received > (this.cutAfterBytes ?? Number.POSITIVE_INFINITY))
      this.#world.violated(
        "revoked means cut",
        `${this.plan.id} gave the agent ${half.received - this.cutAfterBytes!} bytes after it knew`,
      );
    if (half.received > this.half[from].written)
      this.#world.violated(
        "bytes come once and in order",
        `${this.plan.id} to the ${side}: more than was written`,
      );
    const end = this.plan.ending[side];
    if (end.kind === "destroy" && half.received >= end.afterBytes) return this.#destroy(side, stream);
    if (this.plan.readPauseMs === 0) return;
    stream.pause();
    process.setWorkTimer(() => stream.resume(), this.#random.between(0, this.plan.readPauseMs));
  }

  #onEnd(side: Side): void {
    const half = this.half[side];
    if (half.process?.isDead) return;
    const from = this.half[other(side)];
    half.sawEnd = true;
    if (!from.hasEnded || half.received !== from.written)
      this.#world.violated(
        "an end comes after the last byte",
        `${this.plan.id} to the ${side}: ended at ${half.received} of ${from.written}`,
      );
  }

  #destroy(side: Side, stream: MeshStream): void {
    this.half[side].isDestroyed = true;
    stream.destroy();
  }

  #sendDatagram(side: Side, stream: MeshStream, number: number): void {
    if (stream.destroyed) return;
    const body = this.#content[side].make(number * 1_000, 64);
    stream.sendDatagram(Buffer.concat([Buffer.of(number), body]));
  }

  #onDatagram(side: Side, bytes: Uint8Array): void {
    if (this.half[side].process?.isDead) return;
    const [number] = bytes;
    const seen = this.half[side].datagrams;
    if (seen.has(number))
      this.#world.violated("a datagram comes at most once", `${this.plan.id} to the ${side}`);
    seen.add(number);
    if (
      bytes.length !== 65 ||
      this.#content[other(side)].check(number * 1_000, bytes.subarray(1)) !== undefined
    )
      this.#world.violated("a datagram is what was sent", `${this.plan.id} to the ${side}`);
  }
}
