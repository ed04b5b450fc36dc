import { toBase64 } from "../mesh/wire/bytes.ts";
import {
  COORDINATOR_VERSION,
  type CoordinatorMessage,
  decodeNodeMessage,
  MAX_LIVE_GRANTS,
  type NodeMessage,
} from "../mesh/wire/coordinator.ts";
import { WireError } from "../mesh/wire/errors.ts";
import { encodeStatement } from "../mesh/wire/signed.ts";
import type { Signer } from "./signing.ts";
import type { IssuedGrant, NodeStore, StoredRecord } from "./store.ts";

/** Who is at the other end, as the API's login found. `tokenId` names the credential, not its secret. */
export type NodeSubject =
  | { kind: "user"; userId: string; username: string; tokenId: string; scope?: "all" | "application_connect" }
  | { kind: "agent"; agentId: string; workspaceId?: string };

export type GrantDecision =
  | { allowed: true; permissions: string[] }
  | { allowed: false; code: string; message: string };

export interface CoordinatorDeps {
  store: NodeStore;
  signer: Signer;
  /** May this user reach this agent now? Asked anew for every grant. */
  authorize(subject: Extract<NodeSubject, { kind: "user" }>, agentId: string): Promise<GrantDecision>;
  relayMap(): { Regions: Record<string, unknown> };
  /** Told when an agent comes or goes, and with each of its heartbeats, for the workspace's status. */
  onAgentPresence?(agentId: string, connected: boolean): void;
  nowMs(): number;
  newId(): string;
}

/** One node's connection, as the shell made it. Neither call throws. */
export interface NodeConnection {
  send(message: CoordinatorMessage): void;
  close(code: string, message: string): void;
}

/** A node that stays away this long must say hello again; clients re-ask well before. */
export const RECORD_TTL_MS = 24 * 3_600_000;
/** Covers a cold command and a reconnect; a live session renews (section 1 of the mesh design). */
export const GRANT_TTL_MS = 3_600_000;
/** A connected agent's record is signed anew when it is this old: connections may live for months. */
const RECORD_RENEW_MS = RECORD_TTL_MS / 2;
/** Unexpired grants of one user: what one may make us remember, and agents too once they are revoked. */
export const MAX_GRANTS_PER_USER = 16_384;
/** A grant decided while grants were revoked is decided again, this often at most. */
const MAX_DECISIONS = 4;
/** A client that watches more agents than this is broken or hostile. */
const MAX_WATCHED_AGENTS = 1024;

/** What one connection knows; made by `Coordinator.accept`. */
export class NodeLink {
  readonly id: string;
  readonly subject: NodeSubject;
  readonly watched = new Set<string>();
  readonly connection: NodeConnection;
  nodeKey: string | undefined;
  /** An agent whose record is out: clients can find it. */
  published = false;
  publishedAtMs = 0;
  homeRegion: number | undefined;
  /** Messages of one node are handled in the order they came. */
  tail: Promise<void> = Promise.resolve();

  constructor(id: string, subject: NodeSubject, connection: NodeConnection) {
    this.id = id;
    this.subject = subject;
    this.connection = connection;
  }
}

/** Hands out keys, grants and relay maps. Holds no socket: the shell feeds `receive` and `disconnect`. */
export class Coordinator {
  readonly store: NodeStore;
  readonly #deps: CoordinatorDeps;
  readonly #links = new Set<NodeLink>();
  readonly #unwatch: () => void;
  /** Counts revocations: a decision made before one may be void after it. */
  #revocations = 0;

  constructor(deps: CoordinatorDeps) {
    this.#deps = deps;
    this.store = deps.store;
    this.#unwatch = deps.store.watch((agentId, stored) => this.#announce(agentId, stored));
  }

  get connections(): number {
    return this.#links.size;
  }

  accept(subject: NodeSubject, connection: NodeConnection): NodeLink {
    const link = new NodeLink(this.#deps.newId(), subject, connection);
    this.#links.add(link);
    return link;
  }

  /** @returns when the message has been handled; never rejects */
  receive(link: NodeLink, text: string | Uint8Array): Promise<void> {
    link.tail = link.tail.then(async () => {
      if (!this.#links.has(link)) return;
      try {
        const message = decodeNodeMessage(text);
        if (message) await this.#handle(link, message);
      } catch (error) {
        const code = error instanceof WireError ? error.code : "ERR_INTERNAL";
        const text = error instanceof WireError ? error.message : "the coordinator failed; try again";
        link.connection.close(code, text);
        await this.disconnect(link);
      }
    });
    return link.tail;
  }

  async disconnect(link: NodeLink): Promise<void> {
    if (!this.#links.delete(link)) return;
    const { subject } = link;
    if (subject.kind !== "agent") return;
    if (await this.#deps.store.removeRecord(subject.agentId, link.id)) await this.#left(subject.agentId);
  }

  /** The record of an agent is gone: another connection of it, silenced by a newer one, is found again. */
  async #left(agentId: string): Promise<void> {
    const other = [...this.#links].findLast(
      ({ subject, published }) => published && subject.kind === "agent" && subject.agentId === agentId,
    );
    if (other) await this.#publish(other);
    else this.#deps.onAgentPresence?.(agentId, false);
  }

  /** Voids matching grants and tells the agents that hold them at once. @returns how many */
  async revoke(matches: (grant: IssuedGrant) => boolean): Promise<number> {
    this.#revocations++;
    const revoked = await this.#deps.store.revokeGrants(matches, this.#deps.nowMs());
    const byAgent = new Map<string, string[]>();
    for (const { id, agentId } of revoked) byAgent.set(agentId, [...(byAgent.get(agentId) ?? []), id]);
    for (const link of this.#links) {
      const grants = link.subject.kind === "agent" ? byAgent.get(link.subject.agentId) : undefined;
      if (grants) sendVoid(link.connection, grants);
    }
    return revoked.length;
  }

  /** The node answered a ping. */
  heard(link: NodeLink): void {
    if (!link.published || link.subject.kind !== "agent") return;
    this.#deps.onAgentPresence?.(link.subject.agentId, true);
    const ageMs = this.#deps.nowMs() - link.publishedAtMs;
    // Below zero the clock was set back: a record from the future is believed by nobody.
    if (ageMs >= 0 && ageMs < RECORD_RENEW_MS) return;
    // Should the store fail, the next answer to a ping tries again.
    link.tail = link.tail.then(() => this.#republish(link)).catch(() => undefined);
  }

  async #republish(link: NodeLink): Promise<void> {
    const { subject } = link;
    if (subject.kind !== "agent" || !this.#links.has(link)) return;
    const stored = await this.#deps.store.getRecord(subject.agentId);
    // A newer connection of the agent owns the record now.
    if (stored === undefined || stored.connectionId === link.id) await this.#publish(link);
  }

  /** Unexpired grants, of one user or all: whoever gave them may look whether they still should be. */
  grants(userId?: string): Promise<IssuedGrant[]> {
    return this.#deps.store.listGrants(this.#deps.nowMs(), userId);
  }

  /** Agents connected here. */
  agents(): Extract<NodeSubject, { kind: "agent" }>[] {
    return [...this.#links].flatMap(({ subject }) => (subject.kind === "agent" ? [subject] : []));
  }

  /** Ends an agent's connection: it comes back as whoever its token makes it now, or not at all. */
  async dismissAgent(agentId: string): Promise<void> {
    for (const link of this.#links) {
      if (link.subject.kind !== "agent" || link.subject.agentId !== agentId) continue;
      link.connection.close("ERR_AGENT_REPLACED", "a newer build of the workspace replaced this agent");
      await this.disconnect(link);
    }
  }

  /** Says the current relay map to everyone; call it when the map changed. */
  pushRelayMap(): void {
    const map = this.#deps.relayMap();
    for (const { connection } of this.#links) connection.send({ type: "relay-map", map });
  }

  close(): void {
    this.#unwatch();
    for (const { connection } of this.#links)
      connection.close("ERR_SHUTTING_DOWN", "the coordinator is stopping");
    this.#links.clear();
  }

  async #handle(link: NodeLink, message: NodeMessage): Promise<void> {
    if (message.type === "hello") return this.#hello(link, message);
    if (link.nodeKey === undefined)
      throw new WireError("ERR_UNEXPECTED_FRAME", `${message.type} before hello`);
    switch (message.type) {
      case "home":
        if (link.homeRegion === message.homeRegion) return;
        link.homeRegion = message.homeRegion;
        return this.#publish(link);
      case "grant-request":
        return this.#grant(link, message.request, message.agentId);
      case "still-granted":
        return link.connection.send({
          type: "void-grants",
          request: message.request,
          grants: await this.#deps.store.voidGrants(message.grants),
        });
    }
  }

  async #hello(link: NodeLink, hello: Extract<NodeMessage, { type: "hello" }>): Promise<void> {
    if (link.nodeKey !== undefined) throw new WireError("ERR_UNEXPECTED_FRAME", "second hello");
    link.nodeKey = hello.nodeKey;
    link.homeRegion = hello.homeRegion;
    const { subject } = link;
    const agentId = subject.kind === "agent" ? subject.agentId : undefined;
    const voidGrants = await this.#deps.store.voidGrants(hello.liveGrants, agentId);
    link.connection.send({
      type: "welcome",
      version: Math.min(hello.version, COORDINATOR_VERSION),
      serverTimeMs: this.#deps.nowMs(),
      signingKeys: this.#deps.signer.publicKeys,
      voidGrants: voidGrants.slice(0, MAX_LIVE_GRANTS),
      ...(agentId === undefined ? {} : { agentId }),
    });
    sendVoid(link.connection, voidGrants.slice(MAX_LIVE_GRANTS));
    link.connection.send({ type: "relay-map", map: this.#deps.relayMap() });
    await this.#publish(link);
  }

  /** Signs and stores an agent's record; a client is reached by nobody and needs none. */
  async #publish(link: NodeLink): Promise<void> {
    const { subject, nodeKey } = link;
    // Until an agent knows its home, peers could not find it.
    if (subject.kind !== "agent" || nodeKey === undefined || link.homeRegion === undefined) return;
    const issuedAt = this.#deps.nowMs();
    const record = {
      agentId: subject.agentId,
      nodeKey,
      homeRegion: link.homeRegion,
      issuedAt,
      expiresAt: issuedAt + RECORD_TTL_MS,
    };
    const statement = encodeStatement("nodeRecord", record, this.#deps.signer);
    await this.#deps.store.putRecord({ connectionId: link.id, record, statement });
    if (!this.#links.has(link)) {
      // It left meanwhile, and its goodbye found nothing to remove.
      await this.#deps.store.removeRecord(subject.agentId, link.id);
      return;
    }
    link.published = true;
    link.publishedAtMs = issuedAt;
    this.#deps.onAgentPresence?.(subject.agentId, true);
  }

  async #grant(link: NodeLink, request: number, agentId: string): Promise<void> {
    const { subject, nodeKey, connection } = link;
    const refuse = (code: string, message: string) =>
      connection.send({ type: "error", request, code, message });
    if (subject.kind !== "user" || nodeKey === undefined)
      return refuse("ERR_FORBIDDEN", "only users reach agents; an agent may not ask for a grant");
    if (link.watched.size >= MAX_WATCHED_AGENTS && !link.watched.has(agentId))
      return refuse("ERR_TOO_MANY_AGENTS", `this connection already reaches ${MAX_WATCHED_AGENTS} agents`);
    const { store } = this.#deps;
    if ((await store.countGrants(subject.userId, this.#deps.nowMs())) >= MAX_GRANTS_PER_USER)
      return refuse(
        "ERR_TOO_MANY_GRANTS",
        "too many sessions were opened in the last hour; wait some minutes",
      );
    let decision: GrantDecision;
    let decidedAt: number;
    let decisions = 0;
    do {
      if (++decisions > MAX_DECISIONS) return refuse("ERR_BUSY", "permissions are changing; try again");
      decidedAt = this.#revocations;
      decision = await this.#deps.authorize(subject, agentId);
      if (!decision.allowed) return refuse(decision.code, decision.message);
    } while (decidedAt !== this.#revocations);

    const issuedAt = this.#deps.nowMs();
    const grant = {
      id: this.#deps.newId(),
      nodeKey,
      userId: subject.userId,
      username: subject.username,
      agentId,
      permissions: decision.permissions,
      issuedAt,
      expiresAt: issuedAt + GRANT_TTL_MS,
    };
    const { id, userId, expiresAt } = grant;
    await store.putGrant({ id, userId, agentId, tokenId: subject.tokenId, expiresAt }, issuedAt);
    link.watched.add(agentId);
    const stored = await store.getRecord(agentId);
    connection.send({
      type: "grant",
      request,
      grant: toBase64(encodeStatement("grant", grant, this.#deps.signer)),
      record: stored && toBase64(stored.statement),
    });
  }

  #announce(agentId: string, stored: StoredRecord | undefined): void {
    for (const { watched, connection } of this.#links) {
      if (!watched.has(agentId)) continue;
      connection.send(
        stored
          ? { type: "record", agentId, record: toBase64(stored.statement) }
          : { type: "record-gone", agentId },
      );
    }
  }
}

/** Names grants that are void, in messages of a size nodes accept. */
function sendVoid(connection: NodeConnection, ids: readonly string[]): void {
  for (let at = 0; at < ids.length; at += MAX_LIVE_GRANTS)
    connection.send({ type: "revoke", grants: ids.slice(at, at + MAX_LIVE_GRANTS) });
}
