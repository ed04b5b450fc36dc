// Clients that come, open a session, use it and go: in good order, in the middle, or without a word.
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { type IssuedGrant, MemoryStore } from "../../coordinator/store.ts";
import type { MeshNode, MeshStream } from "../../mesh/node/node.ts";
import { seededRandom } from "../../mesh/wire/testing.ts";
import { labNode } from "../mesh-lab-node.ts";

/** Grants live for an hour, which is longer than a run: here they are forgotten soon, as the hour would have it. */
export class ForgetfulStore extends MemoryStore {
  static readonly KEPT_MS = 5_000;

  override putGrant(grant: IssuedGrant, maxOfUser: number, nowMs: number): Promise<boolean> {
    return super.putGrant({ ...grant, expiresAt: nowMs + ForgetfulStore.KEPT_MS }, maxOfUser, nowMs);
  }
}

/** What an agent offers here: an echo, and one that never reads nor ends. */
export function offer(agent: MeshNode): void {
  agent.listen("echo", (stream) => {
    stream.on("error", () => undefined);
    stream.pipe(stream);
  });
  agent.listen("deaf", (stream) => {
    stream.on("error", () => undefined);
    stream.write("hello");
  });
}

export interface LoadResult {
  sessions: number;
  /** Nodes, each with a key and connections of its own. */
  nodes: number;
  killed: number;
  /** What failed, by its message. A machine with too much to do runs into deadlines. */
  failures: Record<string, number>;
}

const SESSIONS_PER_NODE = 8;
async function echoed(stream: MeshStream, bytes: number): Promise<void> {
  const sent = randomBytes(bytes);
  stream.end(sent);
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  if (!Buffer.concat(chunks).equals(sent)) throw new Error("an echo is not what was sent");
}

/** Uses a session as somebody would, and leaves its streams in one of several states. */
async function use(node: MeshNode, agentId: string, random: () => number): Promise<void> {
  const how = Math.floor(random() * 6);
  if (how === 0) {
    const stream = await node.dial(agentId, "deaf");
    stream.on("error", () => undefined);
    await once(stream, "data");
    stream.write(randomBytes(5_000));
    if (random() < 0.5) stream.destroy();
    return;
  }
  if (how === 1) {
    const stream = await node.dial(agentId, "nobody serves this");
    await once(stream.resume(), "close").catch(() => undefined);
    return;
  }
  if (how === 2) {
    await node.ping(agentId, 60_000);
    return;
  }
  if (how === 3) {
    const giveUp = new AbortController();
    const dialled = node.dial(agentId, "echo", { signal: giveUp.signal });
    setImmediate(() => giveUp.abort());
    const stream = await dialled.catch(() => undefined);
    stream?.on("error", () => undefined);
    stream?.destroy();
  }
  const streams = await Promise.all([1, 2].map(() => node.dial(agentId, "echo")));
  await Promise.all(streams.map((stream) => echoed(stream, 100 + Math.floor(random() * 3_000))));
}

/**
 * Opens `sessions` sessions with an agent of the lab at `url`, `parallel` nodes at a time.
 *
 * @param killedShare 0..1: of the nodes, those that end without a word
 */
export async function openAndClose(
  url: string,
  agentId: string,
  options: {
    sessions: number;
    parallel: number;
    seed: number;
    killedShare?: number;
  },
): Promise<LoadResult> {
  const { sessions, parallel, killedShare = 0.1 } = options;
  const random = seededRandom(options.seed);
  const result: LoadResult = { sessions: 0, nodes: 0, killed: 0, failures: {} };
  const failed = (error: Error): undefined => {
    const text = error.message.replaceAll(/\d{4,}/g, "#");
    result.failures[text] = (result.failures[text] ?? 0) + 1;
  };
  let begun = 0;
  async function one(): Promise<void> {
    const count = Math.min(SESSIONS_PER_NODE, sessions - begun);
    begun += count;
    const user = Math.floor(random() * 100);
    const parts = await labNode(url, {
      kind: "user",
      userId: `00000000-0000-4000-8000-${String(user).padStart(12, "0")}`,
      username: "alice",
      tokenId: "token",
    }).catch(failed);
    if (!parts) return;
    const { node, relay, coordinator } = parts;
    result.nodes++;
    for (let i = 0; i < count; i++) {
      await use(node, agentId, random).catch(failed);
      result.sessions++;
      if (i < count - 1) for (const { id } of node.sessions()) node.endSession(id);
    }
    if (random() < killedShare) {
      result.killed++;
      relay.send = () => false;
      await Promise.all([relay.close(), coordinator.close()]);
    }
    await node.close({ deliver: random() < 0.8 });
  }
  await Promise.all(
    Array.from({ length: parallel }, async () => {
      while (begun < sessions) await one();
    }),
  );
  return result;
}

/** Resolves once `look` says so. @throws after `limitMs` with what it said last */
export async function settled(look: () => string | undefined, limitMs: number): Promise<void> {
  const giveUpAt = performance.now() + limitMs;
  for (let problem = look(); problem !== undefined; problem = look()) {
    if (performance.now() > giveUpAt) throw new Error(`not settled within ${limitMs} ms: ${problem}`);
    await delay(50);
  }
}

/** @returns what is left of clients that are gone; undefined when nothing is */
export function leftOver(agent: MeshNode): string | undefined {
  const { peers, device, budgetBytes, sessions } = agent.held;
  const left = { nodes: peers, ...device, budgetBytes, sessions: sessions.length };
  return Object.values(left).some((n) => n !== 0) ? JSON.stringify(left) : undefined;
}
