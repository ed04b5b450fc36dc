// A relay and a coordinator, an agent, and one who means harm, each a process; and an honest client in the test's own.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import type { MeshNode, MeshStream } from "../../mesh/node/node.ts";
import { joinAt, type Place } from "./node.ts";
import { Part, type Role } from "./part.ts";

export const MIB = 1 << 20;

export class World {
  readonly server: Part;
  readonly agentId = randomUUID();
  #agent: Part | undefined;
  #agentKey = "";
  #place: Place = { url: "" };
  readonly #parts: Part[];
  readonly #nodes: MeshNode[] = [];

  private constructor(server: Part, relay: Part | undefined) {
    this.server = server;
    this.#parts = relay ? [server, relay] : [server];
  }

  /** @param server the role of the part that has the coordinator, and what it is started with */
  static async begin(server: [Role, object] = ["server", {}], relay?: Part): Promise<World> {
    const part = await Part.start(...server);
    const world = new World(part, relay);
    try {
      world.#place = { url: await part.call<string>("url"), relayUrl: relay && (await relay.call("url")) };
      world.#agent = await world.part("agent");
      world.#agentKey = await world.agent.call("nodeKey");
      return world;
    } catch (error) {
      await world.end();
      throw error;
    }
  }

  get agent(): Part {
    assert.ok(this.#agent, "the agent was started");
    return this.#agent;
  }

  /** Another process of this world. */
  async part(role: Role, options: object = {}): Promise<Part> {
    const made = await Part.start(role, {
      ...this.#place,
      agentId: this.agentId,
      agentKey: this.#agentKey,
      userId: randomUUID(),
      ...options,
    });
    this.#parts.push(made);
    return made;
  }

  /** An honest client. */
  async client(): Promise<MeshNode> {
    const subject = { kind: "user", userId: randomUUID(), username: "alice", tokenId: "token" } as const;
    const { node } = await joinAt(this.#place, subject);
    this.#nodes.push(node);
    return node;
  }

  /** An honest client's stream to the echo service, and that it works. */
  async echo(): Promise<MeshStream> {
    const stream = await (await this.client()).dial(this.agentId, "echo");
    stream.on("error", () => undefined);
    await roundTrip(stream);
    return stream;
  }

  /** The honest clients' sessions as they see them, for a failure's message. */
  describe(): string {
    return JSON.stringify(this.#nodes.map((node) => node.sessions()));
  }

  /** Nothing is left of it, whatever had happened. */
  async end(): Promise<void> {
    await Promise.all(this.#parts.map((part) => part.kill()));
    await Promise.all(this.#nodes.map((node) => node.close()));
  }
}

/** A word there and back. */
export async function roundTrip(stream: MeshStream, word = "still here"): Promise<void> {
  let got = "";
  stream.write(word);
  while (got.length < word.length) {
    assert.ok(!stream.destroyed, "the stream lives");
    got += String((await once(stream, "data"))[0]);
  }
  assert.equal(got, word);
}

/** What `work` cost a part, and what it made it hold more. */
export async function costOf<T>(
  part: Part,
  work: () => Promise<T>,
): Promise<{ result: T; cpuMs: number; bytes: number }> {
  const before = { cpuMs: part.cpuMs, bytes: part.residentBytes };
  const result = await work();
  return { result, cpuMs: part.cpuMs - before.cpuMs, bytes: part.residentBytes - before.bytes };
}
