// A node of the simulation: a whole MeshNode with the real relay and coordinator clients, in a process that can die
// and start again.
import { CoordinatorClient, verifyEd25519 } from "../../coordinator/client.ts";
import type { NodeSubject } from "../../coordinator/coordinator.ts";
import { RelayClient } from "../../derp/client/regions.ts";
import { nodeCrypto } from "../../mesh/node/crypto.ts";
import { MeshNode } from "../../mesh/node/node.ts";
import type { DerpMapLike } from "../../mesh/node/relay.ts";
import type { Coordination } from "./coordination.ts";
import type { Line } from "./line.ts";
import { type Machine, Process } from "./machine.ts";
import type { Random } from "./random.ts";
import { type SimRelay, SimRelayConnection } from "./relay.ts";
import type { World } from "./world.ts";

/** What all sessions of one node may hold beyond their first windows. */
export const BUDGET_BYTES = 8 << 20;

const CONNECT_MS = 10_000;

export interface Surroundings {
  world: World;
  coordination: Coordination;
  relays: Map<number, SimRelay>;
  /** Called with each grant that anybody gets. */
  keepGrant(grant: Uint8Array): void;
}

export class SimNode {
  readonly name: string;
  readonly subject: NodeSubject;
  readonly machine: Machine;
  /** To each relay by region, and to the coordinator under 0. */
  readonly lines: Map<number, Line>;
  process!: Process;
  node!: MeshNode;
  relay!: RelayClient;
  coordinator!: CoordinatorClient;
  /** latin1 */
  keyText = "";
  /** When each grant was heard to be void. */
  readonly heardVoid = new Map<string, number>();
  /** Called when it has acted on void grants. */
  onVoid: (() => void) | undefined;
  isRunning = false;
  /** It came back under the key of before: who had a session with it can't tell the two apart by the key. */
  hasKeptKey = false;
  /** When a process of it ended last. */
  lostAt = Number.NEGATIVE_INFINITY;
  /** Of the last relay client made. */
  lastKey: Uint8Array = new Uint8Array(32);
  #privateKey: Uint8Array | undefined;
  #incarnation = 0;
  readonly #around: Surroundings;
  readonly #random: Random;

  constructor(
    around: Surroundings,
    name: string,
    subject: NodeSubject,
    machine: Machine,
    lines: Map<number, Line>,
  ) {
    this.#around = around;
    this.name = name;
    this.subject = subject;
    this.machine = machine;
    this.lines = lines;
    this.#random = around.world.random.fork(`node ${name}`);
  }

  /** Of the process that runs, or ran last; base64. */
  get nodeKey(): string {
    return Buffer.from(this.keyText, "latin1").toString("base64");
  }

  start({ keepsKey = false } = {}): void {
    if (this.isRunning) return;
    this.isRunning = true;
    const { world, coordination } = this.#around;
    const name = `${this.name}.${this.#incarnation++}`;
    const random = this.#random.fork(name);
    const process = new Process(this.machine, name, random);
    this.process = process;
    this.hasKeptKey = keepsKey;
    if (!keepsKey || !this.#privateKey) this.#privateKey = random.bytes(32);
    const privateKey = this.#privateKey;
    const relay = this.relayFor(privateKey);
    this.keyText = Buffer.from(this.lastKey).toString("latin1");
    const network = random.fork("network");
    const coordinator = new CoordinatorClient({
      url: "http://control.sim/coordinate",
      token: JSON.stringify(this.subject),
      nodeKey: Buffer.from(this.lastKey).toString("base64"),
      onRelayMap: (map) => relay.setMap(map as unknown as DerpMapLike),
      runtime: process,
      openSocket: (_url, options) => coordination.dial(process, this.lines.get(0) as Line, network, options),
    });
    this.relay = relay;
    this.coordinator = coordinator;
    this.node = new MeshNode({
      role: this.subject.kind === "agent" ? "agent" : "client",
      privateKey,
      relay,
      coordinator,
      verify: verifyEd25519,
      runtime: process,
      memoryBudgetBytes: BUDGET_BYTES,
      logger: world.onLine && {
        debug: (fields, message) => world.note(`${name} ${message} ${JSON.stringify(fields)}`),
        warn: (fields, message) => world.note(`${name} ${message} ${JSON.stringify(fields)}`),
      },
    });
    const { onRevoke } = coordinator;
    coordinator.onRevoke = (ids) => {
      onRevoke?.(ids);
      for (const id of ids) if (!this.heardVoid.has(id)) this.heardVoid.set(id, world.now);
      this.onVoid?.();
    };
    const ask = coordinator.requestGrant.bind(coordinator);
    coordinator.requestGrant = async (...args) => {
      const granted = await ask(...args);
      this.#around.keepGrant(granted.grant);
      return granted;
    };
    coordinator.connect().catch(() => undefined); // it goes on trying
  }

  /** Another relay client of this process, for a node with that key. */
  relayFor(privateKey: Uint8Array): RelayClient {
    const { process, lines } = this;
    const { relays } = this.#around;
    const { publicKey } = nodeCrypto.keyPair(privateKey);
    this.lastKey = publicKey;
    const random = this.#random.fork(`relays of ${process.name}`);
    return new RelayClient({
      privateKey,
      runtime: process,
      measureHome: false,
      newConnection: ({ url, connectMs, timeoutMs }) => {
        const region = Number(/\d+/.exec(new URL(url).hostname)?.[0]);
        const dialed = { relay: relays.get(region), line: lines.get(region) as Line };
        const ms = Math.min(timeoutMs ?? CONNECT_MS, connectMs ?? CONNECT_MS);
        return new SimRelayConnection(process, publicKey, dialed, random, ms);
      },
    });
  }

  /** Gone without a word of its own; its machine closes what it had open. */
  kill(): void {
    if (!this.isRunning) return;
    this.isRunning = false;
    this.lostAt = this.#around.world.now;
    this.process.kill();
  }
}
