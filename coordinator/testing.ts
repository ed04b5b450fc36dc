// For tests: a coordinator that stands alone, and nodes that speak to it without a socket.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { toBase64 } from "../mesh/wire/bytes.ts";
import type { CoordinatorMessage } from "../mesh/wire/coordinator.ts";
import type { Coordinator, CoordinatorDeps, NodeLink, NodeSubject } from "./coordinator.ts";
import { generateSigningKey, Signer } from "./signing.ts";
import { MemoryStore } from "./store.ts";

export const AGENT = "6b2f4a3e-9f7c-4a55-8a3c-0d9f5f1f2a10";
export const USER = "0f6f2f60-59c4-4a3f-9d0b-4b8f4b1c9f11";
export const keyOf = (fill: number) => toBase64(new Uint8Array(32).fill(fill));
export const alice: NodeSubject = { kind: "user", userId: USER, username: "alice", tokenId: "token1" };

export class Peer {
  readonly said: CoordinatorMessage[] = [];
  closed: string | undefined;
  readonly link: NodeLink;
  readonly #coordinator: Coordinator;
  constructor(coordinator: Coordinator, subject: NodeSubject) {
    this.#coordinator = coordinator;
    this.link = coordinator.accept(subject, {
      send: (message) => this.said.push(message),
      close: (code) => {
        this.closed = code;
      },
    });
  }
  say(message: object): Promise<void> {
    return this.#coordinator.receive(this.link, JSON.stringify(message));
  }
  hello(fill: number, homeRegion?: number): Promise<void> {
    return this.say({ type: "hello", version: 1, nodeKey: keyOf(fill), homeRegion });
  }
  last<T extends CoordinatorMessage["type"]>(type: T): Extract<CoordinatorMessage, { type: T }> {
    const found = this.said.findLast((message) => message.type === type);
    assert.ok(found, `no ${type} among ${this.said.map((message) => message.type)}`);
    return found as Extract<CoordinatorMessage, { type: T }>;
  }
}

export function deps(overrides: Partial<CoordinatorDeps> = {}): CoordinatorDeps {
  return {
    store: new MemoryStore(),
    signer: new Signer([generateSigningKey()]),
    authorize: async () => ({ allowed: true, permissions: ["*"] }),
    relayMap: () => ({ Regions: { "999": { RegionID: 999 } } }),
    nowMs: () => 1_000_000,
    newId: randomUUID,
    ...overrides,
  };
}
