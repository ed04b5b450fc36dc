// The control plane's machine: the real coordinator core and the real end of its WebSockets, on a store that outlives
// it or is lost with it.
import { createPrivateKey, createPublicKey } from "node:crypto";
import type { ClientOptions, WebSocket } from "ws";
import { Coordinator, type GrantDecision, type NodeSubject } from "../../coordinator/coordinator.ts";
import { SPKI_PREFIX } from "../../coordinator/ed25519.ts";
import { hashCredential, openResumeToken } from "../../coordinator/resume.ts";
import { firstMessages, serveNode } from "../../coordinator/server.ts";
import { keyIdOf, Signer } from "../../coordinator/signing.ts";
import { MemoryStore } from "../../coordinator/store.ts";
import { FIRST_MESSAGES_HEADER, RESUME_TOKEN_HEADER } from "../../mesh/wire/coordinator.ts";
import type { Line } from "./line.ts";
import { Machine, Process } from "./machine.ts";
import type { Random } from "./random.ts";
import { type Accept, SimSocket } from "./socket.ts";
import type { World } from "./world.ts";

const PKCS8_PREFIX = Buffer.from("302e020100300506032b657004220420", "hex");

export function signerFrom(random: Random): Signer {
  const privateKey = random.bytes(32);
  const key = createPrivateKey({
    key: Buffer.concat([PKCS8_PREFIX, privateKey]),
    format: "der",
    type: "pkcs8",
  });
  const publicKey = createPublicKey(key).export({ type: "spki", format: "der" }).subarray(SPKI_PREFIX.length);
  return new Signer([{ keyId: keyIdOf(publicKey), publicKey, privateKey }]);
}

export class Coordination {
  readonly machine: Machine;
  readonly signer: Signer;
  coordinator!: Coordinator;
  process!: Process;
  store = new MemoryStore();
  /** Users who may reach nobody. */
  readonly denied = new Set<string>();
  readonly regions: number[];
  /** Regions that may be nobody's home. */
  readonly noHome = new Set<number>();
  /** How long a decision takes. */
  decideMs = 0;
  #incarnation = 0;
  readonly #world: World;
  readonly #random: Random;

  constructor(world: World, regions: number[]) {
    this.#world = world;
    this.regions = regions;
    this.#random = world.random.fork("coordination");
    this.machine = new Machine(world, "control", this.#random);
    this.signer = signerFrom(this.#random.fork("signing"));
    this.start();
  }

  get isUp(): boolean {
    return !this.process.isDead;
  }

  start({ keepsStore = true } = {}): void {
    if (!keepsStore) this.store = new MemoryStore();
    const name = `control.${this.#incarnation++}`;
    const random = this.#random.fork(name);
    const process = new Process(this.machine, name, random);
    this.process = process;
    this.coordinator = new Coordinator({
      store: this.store,
      signer: this.signer,
      authorize: (subject) => this.#decide(process, subject.userId),
      relayMap: () => this.relayMap(),
      nowMs: () => process.wallClockMs(),
      newId: () => random.uuid(),
      onError: (error) =>
        this.#world.violated("the coordinator does not fail", String((error as Error).stack)),
    });
  }

  /** Orderly it says goodbye; else the system resets its connections. */
  stop(isOrderly: boolean): void {
    if (!this.isUp) return;
    if (isOrderly) this.coordinator.close();
    this.process.kill();
  }

  relayMap(): { Regions: Record<string, unknown> } {
    return {
      Regions: Object.fromEntries(
        this.regions.map((id) => [
          String(id),
          {
            RegionID: id,
            RegionCode: `r${id}`,
            RegionName: `region ${id}`,
            ...(this.noHome.has(id) && { NoMeasureNoHome: true }),
            Nodes: [{ Name: `${id}a`, RegionID: id, HostName: `relay${id}.sim` }],
          },
        ]),
      ),
    };
  }

  dial(process: Process, line: Line, random: Random, options: ClientOptions): WebSocket {
    const server = this.isUp ? { process: this.process, accept: this.#accept } : undefined;
    return SimSocket.open(process, server, line, random, options);
  }

  /** Voids all grants of a user. @returns their ids */
  async revokeUser(userId: string): Promise<string[]> {
    const ids = (await this.coordinator.grants(userId)).map(({ id }) => id);
    await this.coordinator.revoke((grant) => grant.userId === userId);
    return ids;
  }

  #decide(process: Process, userId: string): Promise<GrantDecision> {
    const decide = (): GrantDecision =>
      this.denied.has(userId)
        ? { allowed: false, code: "ERR_FORBIDDEN", message: "you may not reach this agent" }
        : { allowed: true, permissions: ["*"] };
    if (this.decideMs === 0) return Promise.resolve(decide());
    // Decided first, told later: what happens in between is the race.
    const decided = decide();
    return new Promise((resolve) => process.setTimer(() => resolve(decided), this.decideMs));
  }

  #accept: Accept = (headers) => {
    const { process, coordinator } = this;
    const token = headers["Coder-Session-Token"];
    const subject = JSON.parse(token) as NodeSubject;
    const isAllowed = () => subject.kind !== "user" || !this.denied.has(`token ${subject.userId}`);
    const credential = hashCredential(token);
    const shown = headers[RESUME_TOKEN_HEADER];
    const resumed =
      shown === undefined
        ? undefined
        : openResumeToken(shown, {
            keys: coordinator.signer.publicKeys,
            credential,
            nowMs: process.wallClockMs(),
          });
    if (!resumed && !isAllowed()) return { refuse: 401 };
    const early = headers[FIRST_MESSAGES_HEADER];
    const first = firstMessages({
      headers: { [FIRST_MESSAGES_HEADER.toLowerCase()]: early },
    } as unknown as Parameters<typeof firstMessages>[0]);
    return {
      headers: first ? { [FIRST_MESSAGES_HEADER.toLowerCase()]: "taken" } : {},
      accept: (socket) => {
        const link = serveNode(coordinator, socket, resumed?.subject ?? subject, {
          runtime: process,
          first,
          credential,
          resumed: resumed && { ...resumed, token: shown },
        });
        if (!resumed) return;
        process.setTimer(
          () => {
            if (isAllowed()) coordinator.confirm(link);
            else void coordinator.dismiss(link, "ERR_TOKEN_REVOKED", "the token was revoked");
          },
          500 * (0.5 + process.random()),
        );
      },
    };
  };
}
