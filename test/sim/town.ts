// Everything that lives in one run: relays, the control plane, agents, clients, strangers, and all that flows.
import type { NodeSubject } from "../../coordinator/coordinator.ts";
import { verifyEd25519 } from "../../coordinator/ed25519.ts";
import type { Coordinator } from "../../mesh/node/coordinator.ts";
import { MeshNode } from "../../mesh/node/node.ts";
import type { DerpMapLike } from "../../mesh/node/relay.ts";
import type { StreamPeer } from "../../mesh/node/services.ts";
import type { MeshStream } from "../../mesh/node/stream.ts";
import { encodeStatement, type NodeRecord, openStatement } from "../../mesh/wire/signed.ts";
import { Coordination, signerFrom } from "./coordination.ts";
import type { Fault } from "./faults.ts";
import { Flow, planFlow } from "./flow.ts";
import { expectCut, onVoid } from "./invariants.ts";
import { type Line, newLine, setBlocked } from "./line.ts";
import { Machine } from "./machine.ts";
import { SimNode } from "./node.ts";
import type { Random } from "./random.ts";
import { HONEST, SimRelay } from "./relay.ts";
import type { World } from "./world.ts";

/** The coordinator may name a process that is gone until its connection is known to be dead. */
const RECORD_STALE_MS = 60_000;

export const SERVICE = "flow";
/** The coordinator among a machine's lines. */
export const CONTROL = 0;

export interface TownOptions {
  agents: number;
  clients: number;
  regions: number;
  /** Has a key and a grant that is not its own. */
  strangers: number;
  maxFlowBytes: number;
  /** For how long clients ask agents to keep silent sessions. */
  resumeWindowMs: number;
}

export class Town {
  readonly world: World;
  readonly options: TownOptions;
  readonly coordination: Coordination;
  readonly relays = new Map<number, SimRelay>();
  readonly agents: (SimNode & { agentId: string })[] = [];
  readonly clients: (SimNode & { userId: string })[] = [];
  readonly strangers: SimNode[] = [];
  readonly flows = new Map<string, Flow>();
  readonly counts = {
    dials: 0,
    refusals: 0,
    pings: 0,
    pongs: 0,
    stalledMs: 0,
  };
  /** Revocations went with it. */
  hasLostStore = false;
  /** By client and session: since when it stands still though all is well. */
  readonly stalledSince = new Map<string, number>();
  /** By node and session: the lane it was on when all had been well for a while. */
  readonly settledLanes = new Map<string, number>();
  /** The coordinator's clock was set so far that grants end early, or live longer. */
  isClockFar = false;
  /** Genuine grants of strangers that were over when they were made. */
  readonly #expired = new Set<string>();
  faultsBegun = 0;
  /** Faults that have not ended. */
  readonly endings: Fault[] = [];
  /** From then on nothing goes wrong. */
  wellAt = Number.POSITIVE_INFINITY;
  /** Users whose grants were taken back. */
  readonly revoked = new Set<string>();
  /** Nodes that ended a session of theirs, of which the other end may have heard later, or by asking. */
  readonly endedBy = new Set<string>();
  /** Ids of grants that are void. */
  readonly voidGrants = new Set<string>();
  readonly #random: Random;
  #stolen: Uint8Array[] = [];

  constructor(world: World, options: TownOptions) {
    this.world = world;
    this.options = options;
    this.#random = world.random.fork("town");
    const regions = Array.from({ length: options.regions }, (_, i) => i + 1);
    for (const region of regions) this.relays.set(region, new SimRelay(world, region));
    this.coordination = new Coordination(world, regions);
    for (let i = 0; i < options.agents; i++) {
      const agentId = this.#random.uuid();
      const node = this.#newNode(`agent${i}`, { kind: "agent", agentId }, regions);
      this.agents.push(Object.assign(node, { agentId }));
    }
    for (let i = 0; i < options.clients; i++) {
      const userId = this.#random.uuid();
      const subject: NodeSubject = { kind: "user", userId, username: `user${i}`, tokenId: `token${i}` };
      this.clients.push(Object.assign(this.#newNode(`client${i}`, subject, regions), { userId }));
    }
    for (let i = 0; i < options.strangers; i++) {
      const userId = this.#random.uuid();
      const subject: NodeSubject = { kind: "user", userId, username: `stranger${i}`, tokenId: `strange${i}` };
      this.coordination.denied.add(userId);
      this.strangers.push(this.#newNode(`stranger${i}`, subject, regions));
    }
  }

  get nodes(): SimNode[] {
    return [...this.agents, ...this.clients, ...this.strangers];
  }

  start(): void {
    for (const agent of this.agents) this.startAgent(agent);
    for (const node of [...this.clients, ...this.strangers]) node.start();
  }

  startAgent(agent: SimNode & { agentId: string }, options?: { keepsKey: boolean }): void {
    agent.start(options);
    agent.onVoid = () => onVoid(this, agent);
    agent.node.listen(SERVICE, (stream, peer) => this.#serve(agent, stream, peer));
  }

  /** A client opens a stream and both sides do their part. */
  async openFlow(
    client: SimNode & { userId: string },
    agent: SimNode & { agentId: string },
    random: Random,
  ): Promise<void> {
    if (!client.isRunning) return;
    const id = `f${this.counts.dials}`;
    const plan = planFlow(id, random, this.options.maxFlowBytes);
    const flow = new Flow(
      this.world,
      plan,
      { client: client.name, agent: agent.name, userId: client.userId },
      random,
    );
    this.flows.set(id, flow);
    this.counts.dials++;
    this.world.log(`dial ${id} ${client.name} ${agent.name} ${plan.bytes.client}/${plan.bytes.agent}`);
    if (this.isClockFar) flow.excuseBy("the coordinator's clock was set");
    if (this.world.now - agent.lostAt < RECORD_STALE_MS || !agent.isRunning)
      flow.excuseBy("the agent was away");
    const { process, node } = client;
    flow.half.client.process = process;
    try {
      const stream = await node.dial(agent.agentId, SERVICE, {
        metadata: Buffer.from(JSON.stringify({ id })),
        resumeWindowMs: this.options.resumeWindowMs,
      });
      if (process.isDead) return;
      flow.run("client", stream, process);
    } catch (error) {
      const { code, message } = error as Error & { code?: string };
      flow.dialFailed = `${code}: ${message}`;
      this.counts.refusals++;
      this.world.log(`dial ${id} failed: ${code}`);
      if (code === undefined) this.world.violated("errors carry codes", String((error as Error).stack));
    }
  }

  async ping(client: SimNode, agent: SimNode & { agentId: string }): Promise<void> {
    if (!client.isRunning) return;
    this.counts.pings++;
    try {
      const { rttMs } = await client.node.ping(agent.agentId);
      this.counts.pongs++;
      if (!client.process.isDead) this.world.log(`ping ${client.name} ${rttMs.toFixed(3)}`);
      if (!(rttMs >= 0)) this.world.violated("a ping takes time", `${rttMs} ms`);
    } catch (error) {
      const { code } = error as Error & { code?: string };
      if (code === undefined) this.world.violated("errors carry codes", String((error as Error).stack));
    }
  }

  /** Somebody with a key of its own tries a grant that is another's, another deployment's, or none at all. */
  async trespass(stranger: SimNode, agent: SimNode & { agentId: string }, random: Random): Promise<void> {
    if (!stranger.isRunning) return;
    const { process } = stranger;
    const stored = await this.coordination.store.getRecord(agent.agentId);
    const record: NodeRecord = stored?.record ?? {
      agentId: agent.agentId,
      nodeKey: Buffer.from(agent.keyText, "latin1").toString("base64"),
      homeRegion: 1,
      issuedAt: 0,
      expiresAt: Number.MAX_SAFE_INTEGER,
    };
    const fake: Coordinator = {
      signingKeys: this.coordination.signer.publicKeys,
      agentId: undefined,
      nowMs: () => this.coordination.process.wallClockMs(),
      requestGrant: async () => ({ grant: this.#badGrant(stranger, agent.agentId, random), record }),
      setHomeRegion: () => undefined,
      onConnected: undefined,
      onRecord: undefined,
      onRecordGone: undefined,
      onRevoke: undefined,
      liveGrants: undefined,
      close: async () => undefined,
    };
    const privateKey = process.randomBytes(32);
    const relay = stranger.relayFor(privateKey);
    relay.setMap(this.coordination.relayMap() as unknown as DerpMapLike);
    const node = new MeshNode({
      role: "client",
      privateKey,
      relay,
      coordinator: fake,
      verify: verifyEd25519,
      runtime: process,
    });
    const close = () => void node.close();
    process.setTimer(close, 20_000);
    try {
      const stream = await node.dial(agent.agentId, SERVICE, { metadata: Buffer.from('{"id":"trespass"}') });
      stream.on("error", () => undefined);
      stream.on("data", () =>
        this.world.violated("no unauthenticated effect", "an agent sent a stranger bytes"),
      );
      stream.write("let me in");
    } catch {
      // Refused already.
    }
  }

  /** Forgets a flow that is over, if it ended as it should; the others are kept for the end. */
  retire(id: string): void {
    const flow = this.flows.get(id);
    if (flow && (flow.isWhole || !flow.isPlannedWhole || flow.excuse)) this.flows.delete(id);
  }

  endFault(fault: Fault): void {
    const at = this.endings.indexOf(fault);
    if (at < 0) return;
    this.endings.splice(at, 1);
    this.world.log(`over: ${fault.name}`);
    fault.end();
  }

  /** Whatever faults left behind. */
  makeWell(): void {
    this.wellAt = this.world.now;
    for (const relay of this.relays.values()) {
      relay.mischief = HONEST;
      relay.unwanted.clear();
      relay.start();
      relay.machine.wake();
    }
    if (!this.coordination.isUp) this.coordination.start();
    this.coordination.machine.wake();
    for (const { userId } of this.clients) this.coordination.denied.delete(userId);
    for (const node of this.nodes) {
      node.machine.wake();
      for (const line of node.lines.values()) setBlocked(line, false);
    }
  }

  /** Takes back what a user was granted so far. */
  revoke(userId: string): void {
    if (!this.coordination.isUp) return;
    this.revoked.add(userId);
    for (const flow of this.flows.values())
      if (flow.userId === userId && !flow.isOver) flow.excuseBy("its grant was revoked");
    this.coordination.revokeUser(userId).then((ids) => {
      for (const id of ids) this.voidGrants.add(id);
      expectCut(this, ids);
    });
  }

  /** After close() nothing of a node may be left. */
  checkEmpty(node: SimNode): void {
    const { armedTimers } = node.process;
    if (armedTimers > 0)
      this.world.violated("timers end", `${node.name} left ${armedTimers} armed after close()`);
    const { budgetBytes } = node.node.held;
    if (budgetBytes !== 0)
      this.world.violated(
        "memory is given back",
        `${node.name} still holds ${budgetBytes} bytes after close()`,
      );
  }

  keepGrant(grant: Uint8Array): void {
    if (this.#stolen.length < 8) this.#stolen.push(grant);
  }

  #badGrant(stranger: SimNode, agentId: string, random: Random): Uint8Array {
    const kind = random.int(0, 3);
    if (kind === 0 && this.#stolen.length > 0) return random.pick(this.#stolen);
    if (kind === 1) return random.bytes(random.int(0, 400));
    const now = this.coordination.process.wallClockMs();
    const isExpired = kind === 2;
    const id = random.uuid();
    if (isExpired) this.#expired.add(id);
    const { signer } = this.coordination;
    const other = signerFrom(random);
    return encodeStatement(
      "grant",
      {
        id,
        nodeKey: Buffer.from(stranger.lastKey).toString("base64"),
        userId: random.uuid(),
        username: "stranger",
        agentId,
        permissions: ["*"],
        issuedAt: isExpired ? now - 7_200_000 : now,
        expiresAt: isExpired ? now - 3_600_000 : now + 3_600_000,
      },
      // An expired one is genuine, any other is signed with another key than it says.
      isExpired ? this.coordination.signer : { id: signer.id, sign: (message) => other.sign(message) },
    );
  }

  #serve(agent: SimNode & { agentId: string }, stream: MeshStream, { grant, nodeKey }: StreamPeer): void {
    let id: string | undefined;
    try {
      ({ id } = JSON.parse(Buffer.from(stream.metadata).toString()) as { id?: string });
    } catch {
      // Judged below.
    }
    const flow = id === undefined ? undefined : this.flows.get(id);
    const client = this.clients.find(({ name }) => name === flow?.client);
    if (!flow || !client) {
      // Agents go by the coordinator's clock: one that was set back makes what has expired good again.
      if (this.isClockFar && this.#expired.has(grant.id)) return;
      this.world.violated(
        "no unauthenticated effect",
        `${agent.name} served a stream nobody of ours opened: ${id}`,
      );
      return;
    }
    flow.opened++;
    if (flow.opened > 1) this.world.violated("a stream opens once", String(flow));
    if (flow.agent !== agent.name)
      this.world.violated("a stream reaches its agent", `${flow} at ${agent.name}`);
    if (grant.userId !== flow.userId || grant.agentId !== agent.agentId)
      this.world.violated("no unauthenticated effect", `${flow} came with a grant of ${grant.userId}`);
    if (nodeKey !== grant.nodeKey)
      this.world.violated("no unauthenticated effect", `${flow} came from another key than its grant's`);
    const voidAt = agent.heardVoid.get(grant.id);
    if (voidAt !== undefined && !agent.process.isDead)
      this.world.violated(
        "revoked means cut",
        `${flow} was opened ${this.world.now - voidAt} ms after the agent knew`,
      );
    flow.run("agent", stream, agent.process);
  }

  #newNode(name: string, subject: NodeSubject, regions: number[]): SimNode {
    const random = this.#random.fork(name);
    const machine = new Machine(this.world, name, random, {
      wallSkewMs: random.chance(0.3) ? random.int(-600_000, 600_000) : 0,
      clockCountsSleep: random.chance(0.3),
    });
    const near = random.logInt(0, 100);
    const bytesPerMs = random.logInt(100, 50_000);
    const lines = new Map<number, Line>();
    for (const place of [CONTROL, ...regions])
      lines.set(
        place,
        newLine({
          delayMs: near + random.between(0.05, 30),
          jitterMs: random.chance(0.5) ? random.logInt(0, 30) : 0,
          bytesPerMs,
        }),
      );
    return new SimNode(this, name, subject, machine, lines);
  }
}

/** The grant's id and user, if it is one of this deployment's. */
export function readGrant(town: Town, grant: Uint8Array): { id: string; userId: string } | undefined {
  try {
    return openStatement("grant", grant, {
      keys: town.coordination.signer.publicKeys,
      verify: verifyEd25519,
      nowMs: 0,
    });
  } catch {
    return undefined;
  }
}
