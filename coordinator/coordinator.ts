import { toBase64 } from "../mesh/wire/bytes.ts";
import {
  COORDINATOR_VERSION,
  type CoordinatorMessage,
  decodeNodeMessage,
  MAX_LIVE_GRANTS,
  type NodeMessage,
  type ReachedAgent,
  type ReachedWorkspace,
} from "../mesh/wire/coordinator.ts";
import { WireError } from "../mesh/wire/errors.ts";
import { encodeStatement } from "../mesh/wire/signed.ts";
import { NodeLink } from "./link.ts";
import { LinkSet } from "./links.ts";
import { Pace } from "./pace.ts";
import { encodeResumeToken } from "./resume.ts";
import type { Signer } from "./signing.ts";
import type { IssuedGrant, NodeStore, StoredRecord } from "./store.ts";

export { NodeLink } from "./link.ts";

/** Who is at the other end, as the API's login found. `tokenId` names the credential, not its secret. */
export type NodeSubject =
  | { kind: "user"; userId: string; username: string; tokenId: string; scope?: "all" | "application_connect" }
  | { kind: "agent"; agentId: string; workspaceId?: string };
export type UserSubject = Extract<NodeSubject, { kind: "user" }>;
export type AgentSubject = Extract<NodeSubject, { kind: "agent" }>;

/** Whom a grant is asked for. */
export type ReachTarget = { agentId: string } | { workspace: string; agent?: string };

export type GrantDecision =
  /** `agentId` and how it does, when the workspace was named. */
  | {
      allowed: true;
      permissions: string[];
      agentId?: string;
      workspace?: ReachedWorkspace;
      agent?: ReachedAgent;
    }
  | { allowed: false; code: string; message: string };

export interface CoordinatorDeps {
  store: NodeStore;
  signer: Signer;
  /** May this user reach this agent now? Asked anew for every grant. */
  authorize(subject: UserSubject, target: ReachTarget): Promise<GrantDecision>;
  relayMap(): { Regions: Record<string, unknown> };
  /** Told when an agent comes or goes, and with each of its heartbeats, for the workspace's status. */
  onAgentPresence?(agentId: string, connected: boolean): void;
  /** Told of failures that no node hears the details of. */
  onError?(error: unknown): void;
  nowMs(): number;
  newId(): string;
}

/** One node's connection, as the shell made it. Neither call throws. */
export interface NodeConnection {
  send(message: CoordinatorMessage): void;
  close(code: string, message: string): void;
}

export interface AcceptOptions {
  /** hashCredential() of what the node logged in with; without it the node gets no resume token. */
  credential?: string;
  /** From the resume token it showed, and that itself. Its credential is to be looked up, then `confirm` called. */
  resumed?: { linkId: string; nodeKey: string; token?: string };
}

/** Some grants, and the workspace of their agents as far as it is known. */
export type RevokedGrant = Pick<IssuedGrant, "id" | "agentId"> & { workspaceId?: string };

/** A node that stays away this long must say hello again; clients re-ask well before. */
export const RECORD_TTL_MS = 24 * 3_600_000;
/** Covers a cold command and a reconnect; a live session renews. */
export const GRANT_TTL_MS = 3_600_000;
/** Relays let a node in again for so long while the coordinator is away. */
export const TICKET_TTL_MS = 24 * 3_600_000;
/** What a connected node holds is signed anew when it is this old: connections may live for months. */
const RENEW_MS = 12 * 3_600_000;
/** Unexpired grants of one user: what one may make us remember, and agents too once they are revoked. */
export const MAX_GRANTS_PER_USER = 16_384;
/** A grant decided while grants were revoked is decided again, this often at most. */
const MAX_DECISIONS = 4;
/** A client that watches more agents than this is broken or hostile. */
export const MAX_WATCHED_AGENTS = 1024;
/** Connections at once: commands of one user, and of one agent (a new one beside one that died silently). */
export const MAX_LINKS_PER_USER = 512;
export const MAX_LINKS_PER_AGENT = 8;
/**
 * What a user's connections may ask for together: each grant is a decision and a row. A daemon that was restarted asks for
 * all its agents at once. No more decisions are under way than leave most of the database's connections to others.
 */
const GRANT_PACE = { burst: 2 * MAX_WATCHED_AGENTS, perSecond: 32, concurrent: 4 };
/** Subjects remembered until they are forgotten. */
const SWEEP_PACE_AT = 1_024;
/** An agent's home moves that are told at once, and how soon it may have one more; later ones wait for a heartbeat. */
const HOME_MOVES = 8;
const HOME_MOVE_MS = 5_000;
/** Types we don't know come from newer nodes, a few; more is noise. */
const MAX_UNKNOWN_MESSAGES = 64;

export interface CoordinatorStats {
  users: number;
  agents: number;
  /** Since the start, as the rest. */
  accepted: number;
  resumed: number;
  messages: number;
  unknownMessages: number;
  grants: number;
  refusals: number;
  revocations: number;
  /** Connections we ended, by code. */
  closed: Record<string, number>;
}

/** Hands out keys, grants and relay maps. Holds no socket: the shell feeds `receive` and `disconnect`. */
export class Coordinator {
  readonly store: NodeStore;
  readonly #deps: CoordinatorDeps;
  #signer: Signer;
  readonly #links = new LinkSet();
  readonly #unwatch: () => void;
  /** Counts revocations: a decision made before one may be void after it. */
  #revocations = 0;
  readonly #grantPace = new Pace(GRANT_PACE);
  readonly #counters = {
    accepted: 0,
    resumed: 0,
    messages: 0,
    unknownMessages: 0,
    grants: 0,
    refusals: 0,
    revocations: 0,
  };
  readonly #closedBy = new Map<string, number>();

  constructor(deps: CoordinatorDeps) {
    this.#deps = deps;
    this.#signer = deps.signer;
    this.store = deps.store;
    this.#unwatch = deps.store.watch((agentId, stored) => this.#announce(agentId, stored));
  }

  get connections(): number {
    return this.#links.size;
  }

  get signer(): Signer {
    return this.#signer;
  }

  get stats(): CoordinatorStats {
    const agents = this.agents().length;
    return {
      users: this.#links.size - agents,
      agents,
      ...this.#counters,
      closed: Object.fromEntries(this.#closedBy),
    };
  }

  /** Takes a node whose credential the caller has checked, or that showed a resume token. */
  accept(subject: NodeSubject, connection: NodeConnection, options: AcceptOptions = {}): NodeLink {
    const { resumed, credential } = options;
    // Its own older connection, whose end nobody noticed yet: what that one had published is this one's now.
    const older = resumed && this.#links.byId(resumed.linkId);
    if (older) {
      this.#close(older, "ERR_RECONNECTED", "this node has connected again");
      this.#links.delete(older);
    }
    const link = new NodeLink(resumed?.linkId ?? this.#deps.newId(), subject, connection);
    link.credential = credential;
    link.resumedKey = resumed?.nodeKey;
    link.unconfirmedToken = resumed?.token;
    this.#counters.accepted++;
    if (resumed) this.#counters.resumed++;
    const others = this.#links.of(subject);
    if (subject.kind === "user" && others.size >= MAX_LINKS_PER_USER) {
      const message = `you have ${MAX_LINKS_PER_USER} connections open; end some`;
      this.#close(link, "ERR_TOO_MANY_CONNECTIONS", message);
      return link;
    }
    this.#links.add(link);
    // The newest is the one that lives.
    const [oldest] = others;
    if (subject.kind === "agent" && others.size > MAX_LINKS_PER_AGENT)
      this.dismiss(oldest, "ERR_TOO_MANY_CONNECTIONS", "this agent has newer connections").catch(
        this.#deps.onError,
      );
    return link;
  }

  /** @returns when the message has been handled; never rejects */
  receive(link: NodeLink, text: string | Uint8Array): Promise<void> {
    link.tail = link.tail.then(async () => {
      if (!this.#links.has(link)) return;
      try {
        this.#counters.messages++;
        const message = decodeNodeMessage(text);
        if (message) await this.#handle(link, message);
        else this.#ignore(link);
      } catch (error) {
        const known = error instanceof WireError;
        if (!known) this.#deps.onError?.(error);
        this.#close(
          link,
          known ? error.code : "ERR_INTERNAL",
          known ? error.message : "the coordinator failed; try again",
        );
        await this.disconnect(link).catch(this.#deps.onError);
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
    const other = [...this.#links.of({ kind: "agent", agentId })].findLast(({ published }) => published);
    if (other) await this.#publish(other);
    else this.#deps.onAgentPresence?.(agentId, false);
  }

  /**
   * What somebody may do has changed, and what is void by now is about to be looked for: a grant whose decision is older,
   * which that look may not see, is decided again.
   */
  permissionsChanged(): void {
    this.#revocations++;
  }

  /** Voids matching grants and tells the agents that hold them at once. @returns how many */
  async revoke(matches: (grant: IssuedGrant) => boolean): Promise<number> {
    this.permissionsChanged();
    const revoked = (await this.#deps.store.listGrants(this.#deps.nowMs())).filter(matches);
    await this.revokeGrants(revoked);
    return revoked.length;
  }

  /** Voids them and tells the agents that hold them at once; telling again what is void already does no harm. */
  async revokeGrants(grants: readonly RevokedGrant[]): Promise<void> {
    if (grants.length === 0) return;
    this.permissionsChanged();
    this.#counters.revocations += grants.length;
    const byAgent = new Map<string, string[]>();
    const byWorkspace = new Map<string, string[]>();
    const add = (map: Map<string, string[]>, key: string, id: string) => {
      const ids = map.get(key);
      if (ids) ids.push(id);
      else map.set(key, [id]);
    };
    for (const { id, agentId, workspaceId } of grants) {
      add(byAgent, agentId, id);
      if (workspaceId !== undefined) add(byWorkspace, workspaceId, id);
    }
    // First those who can act on it; the row keeps it for whoever is away.
    for (const { subject, connection } of this.#links.agents()) {
      // A process may hold sessions from when it was an earlier build's agent of the same workspace.
      const ids =
        (subject.workspaceId !== undefined && byWorkspace.get(subject.workspaceId)) ||
        byAgent.get(subject.agentId);
      if (ids) sendVoid(connection, ids);
    }
    await this.#deps.store.revokeGrants(
      grants.map(({ id }) => id),
      this.#deps.nowMs(),
    );
  }

  /** The credential of a node that showed a resume token is still good: it gets a relay ticket and a new token. */
  confirm(link: NodeLink): void {
    link.unconfirmedToken = undefined;
    if (this.#links.has(link) && link.nodeKey !== undefined) this.#sendTickets(link);
  }

  #sendTickets(link: NodeLink): void {
    const { relayTicket: ticket, resumeToken } = this.#tickets(link);
    link.connection.send({ type: "relay-ticket", ticket, resumeToken });
  }

  /** The node answered a ping. */
  heard(link: NodeLink): void {
    if (link.nodeKey === undefined || !this.#links.has(link)) return;
    const { subject } = link;
    const now = this.#deps.nowMs();
    if (link.published && subject.kind === "agent") this.#deps.onAgentPresence?.(subject.agentId, true);
    this.#links.unwatchExpired(link, now);
    // Below zero the clock was set back: a statement from the future is believed by nobody.
    const isStale = (issuedAtMs: number) => now < issuedAtMs || now - issuedAtMs >= RENEW_MS;
    if (link.unconfirmedToken === undefined && isStale(link.ticketAtMs)) this.#sendTickets(link);
    if (link.owes || (link.published && isStale(link.publishedAtMs)))
      // Should the store fail, the next answer to a ping tries again.
      link.tail = link.tail.then(() => this.#makeUpFor(link)).catch(() => undefined);
  }

  /** What the store could not do at hello, and what became old. */
  async #makeUpFor(link: NodeLink): Promise<void> {
    const { subject, owes } = link;
    if (subject.kind !== "agent" || !this.#links.has(link)) return;
    if (owes) {
      sendVoid(link.connection, await this.#voidGrants(link, owes.liveGrants));
      link.owes = undefined;
      return this.#publish(link);
    }
    const stored = await this.#deps.store.getRecord(subject.agentId);
    // A newer connection of the agent owns the record now.
    if (stored === undefined || stored.connectionId === link.id) await this.#publish(link);
  }

  /** Unexpired grants, of one user or all: whoever gave them may look whether they still should be. */
  grants(userId?: string): Promise<IssuedGrant[]> {
    return this.#deps.store.listGrants(this.#deps.nowMs(), userId);
  }

  /** Agents connected here. */
  agents(): AgentSubject[] {
    return [...this.#links.agents()].map(({ subject }) => subject);
  }

  /** Users' nodes connected here; of one user, or all. */
  users(userId?: string): (NodeLink & { readonly subject: UserSubject })[] {
    return this.#links.users(userId);
  }

  /** Ends a node's connection, saying why. What it published is removed. */
  async dismiss(link: NodeLink, code: `ERR_${string}`, message: string): Promise<void> {
    if (!this.#links.has(link)) return;
    this.#close(link, code, message);
    await this.disconnect(link);
  }

  /** Ends an agent's connections: it comes back as whoever its token makes it now, or not at all. */
  async dismissAgent(agentId: string): Promise<string[]> {
    const links = [...this.#links.of({ kind: "agent", agentId })];
    for (const link of links)
      await this.dismiss(link, "ERR_AGENT_REPLACED", "a newer build of the workspace replaced this agent");
    return links.flatMap(({ nodeKey }) => (nodeKey === undefined ? [] : [nodeKey]));
  }

  /** Says the current relay map to everyone; call it when the map changed. */
  pushRelayMap(): void {
    const map = this.#deps.relayMap();
    for (const { connection, nodeKey } of this.#links)
      if (nodeKey !== undefined) connection.send({ type: "relay-map", map });
  }

  /** Signs with other keys from now on, and says so to everyone when there are others to check with. */
  setSigner(signer: Signer): void {
    const before = JSON.stringify(this.#signer.publicKeys);
    this.#signer = signer;
    if (JSON.stringify(signer.publicKeys) === before) return;
    for (const { connection, nodeKey } of this.#links)
      if (nodeKey !== undefined) connection.send({ type: "signing-keys", signingKeys: signer.publicKeys });
  }

  /** Signs anew what connected nodes hold: records and tickets under a key that was taken out of use are worth nothing. */
  async renewAll(): Promise<void> {
    for (const link of [...this.#links]) {
      link.ticketAtMs = 0;
      link.publishedAtMs = 0;
      this.heard(link);
      await link.tail;
    }
  }

  close(): void {
    this.#unwatch();
    for (const link of this.#links) this.#close(link, "ERR_SHUTTING_DOWN", "the coordinator is stopping");
    this.#links.clear();
  }

  #close(link: NodeLink, code: string, message: string): void {
    this.#closedBy.set(code, (this.#closedBy.get(code) ?? 0) + 1);
    link.connection.close(code, message);
  }

  #ignore(link: NodeLink): void {
    this.#counters.unknownMessages++;
    if (++link.unknownMessages > MAX_UNKNOWN_MESSAGES)
      throw new WireError("ERR_UNEXPECTED_FRAME", "too many messages of unknown types");
  }

  async #handle(link: NodeLink, message: NodeMessage): Promise<void> {
    if (message.type === "hello") return this.#hello(link, message);
    if (link.nodeKey === undefined)
      throw new WireError("ERR_UNEXPECTED_FRAME", `${message.type} before hello`);
    switch (message.type) {
      case "home":
        if (link.homeRegion === message.homeRegion) return;
        link.homeRegion = message.homeRegion;
        if (this.#mayMove(link)) return this.#publish(link);
        // Each move is a row and a message to everybody who works with the agent.
        link.publishedAtMs = Number.NEGATIVE_INFINITY;
        return;
      case "grant-request":
        return this.#paced(link, message.request, targetOf(message));
      case "still-granted":
        return link.connection.send({
          type: "void-grants",
          request: message.request,
          grants: await this.#deps.store.voidGrants(message.grants, this.#deps.nowMs()),
        });
    }
  }

  async #hello(link: NodeLink, hello: Extract<NodeMessage, { type: "hello" }>): Promise<void> {
    if (link.nodeKey !== undefined) throw new WireError("ERR_UNEXPECTED_FRAME", "second hello");
    if (link.resumedKey !== undefined && link.resumedKey !== hello.nodeKey)
      throw new WireError("ERR_BAD_VALUE", "the resume token is another node's");
    link.nodeKey = hello.nodeKey;
    link.homeRegion = hello.homeRegion;
    let voidGrants: string[] = [];
    try {
      voidGrants = await this.#voidGrants(link, hello.liveGrants);
    } catch (error) {
      // One we know stays: it learns what is void as soon as the store answers.
      if (link.resumedKey === undefined) throw error;
      this.#deps.onError?.(error);
      link.owes = { liveGrants: hello.liveGrants };
    }
    link.connection.send({
      type: "welcome",
      version: Math.min(hello.version, COORDINATOR_VERSION),
      serverTimeMs: this.#deps.nowMs(),
      signingKeys: this.#signer.publicKeys,
      // Whoever only shows a resume token has the ticket that came with it, and nothing that lasts longer for it.
      ...(link.unconfirmedToken === undefined ? this.#tickets(link) : { resumeToken: link.unconfirmedToken }),
      voidGrants: voidGrants.slice(0, MAX_LIVE_GRANTS),
      ...(link.subject.kind === "agent" ? { agentId: link.subject.agentId } : {}),
    });
    sendVoid(link.connection, voidGrants.slice(MAX_LIVE_GRANTS));
    link.connection.send({ type: "relay-map", map: this.#deps.relayMap() });
    try {
      await this.#publish(link);
    } catch (error) {
      if (link.resumedKey === undefined) throw error;
      this.#deps.onError?.(error);
      link.owes ??= { liveGrants: [] };
    }
  }

  #voidGrants({ subject }: NodeLink, liveGrants: readonly string[]): Promise<string[]> {
    const agentId = subject.kind === "agent" ? subject.agentId : undefined;
    return this.#deps.store.voidGrants(liveGrants, this.#deps.nowMs(), agentId);
  }

  /** What a node shows to relays, and to us when it comes again. */
  #tickets(link: NodeLink): { relayTicket: string; resumeToken?: string } {
    const { subject, credential, nodeKey = "" } = link;
    const issuedAt = this.#deps.nowMs();
    const expiresAt = issuedAt + TICKET_TTL_MS;
    link.ticketAtMs = issuedAt;
    const payer = subject.kind === "agent" ? `agent:${subject.agentId}` : `user:${subject.userId}`;
    return {
      relayTicket: toBase64(
        encodeStatement("relayTicket", { nodeKey, subject: payer, issuedAt, expiresAt }, this.#signer),
      ),
      ...(credential === undefined
        ? {}
        : {
            resumeToken: encodeResumeToken(
              { subject, nodeKey, credential, linkId: link.id, expiresAt },
              this.#signer,
            ),
          }),
    };
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
    const statement = encodeStatement("nodeRecord", record, this.#signer);
    await this.#deps.store.putRecord({ connectionId: link.id, record, statement });
    if (!this.#links.has(link)) {
      // It left meanwhile, and its goodbye found nothing to remove. One that took its place removes it itself.
      if (!this.#links.byId(link.id)) await this.#deps.store.removeRecord(subject.agentId, link.id);
      return;
    }
    link.published = true;
    link.publishedAtMs = issuedAt;
    this.#deps.onAgentPresence?.(subject.agentId, true);
  }

  #mayMove(link: NodeLink): boolean {
    const now = this.#deps.nowMs();
    link.homeMoves ??= { left: HOME_MOVES, at: now };
    const moves = link.homeMoves;
    moves.left = Math.min(HOME_MOVES, moves.left + Math.max(0, now - moves.at) / HOME_MOVE_MS);
    moves.at = now;
    if (moves.left < 1) return false;
    moves.left--;
    return true;
  }

  async #paced(link: NodeLink, request: number, target: ReachTarget): Promise<void> {
    const { subject, connection } = link;
    if (subject.kind !== "user") return this.#grant(link, request, target);
    const now = this.#deps.nowMs();
    if (this.#grantPace.size >= SWEEP_PACE_AT) this.#grantPace.sweep(now);
    const done = await this.#grantPace.run(subject.userId, now, () => this.#grant(link, request, target));
    if (done) return;
    this.#counters.refusals++;
    connection.send({
      type: "error",
      request,
      code: "ERR_BUSY",
      message: "you ask for too many sessions at once; wait some seconds and try again",
    });
  }

  async #grant(link: NodeLink, request: number, target: ReachTarget): Promise<void> {
    const { subject, nodeKey, connection } = link;
    const refuse = (code: string, message: string) => {
      this.#counters.refusals++;
      connection.send({ type: "error", request, code, message });
    };
    if (subject.kind !== "user" || nodeKey === undefined)
      return refuse("ERR_FORBIDDEN", "only users reach agents; an agent may not ask for a grant");
    const { store } = this.#deps;
    let decidedAt: number;
    let decision: Extract<GrantDecision, { allowed: true }>;
    let grant: IssuedGrant;
    for (let decisions = 1; ; decisions++) {
      if (decisions > MAX_DECISIONS) return refuse("ERR_BUSY", "permissions are changing; try again");
      decidedAt = this.#revocations;
      const verdict = await this.#deps.authorize(subject, target);
      if (!verdict.allowed) return refuse(verdict.code, verdict.message);
      decision = verdict;
      const agentId = "agentId" in target ? target.agentId : verdict.agentId;
      if (agentId === undefined) return refuse("ERR_NOT_FOUND", "workspaces are not known by name here");
      const issuedAt = this.#deps.nowMs();
      if (!this.#links.mayWatch(link, agentId, issuedAt, MAX_WATCHED_AGENTS))
        return refuse("ERR_TOO_MANY_AGENTS", `this connection already reaches ${MAX_WATCHED_AGENTS} agents`);
      grant = {
        id: this.#deps.newId(),
        userId: subject.userId,
        agentId,
        tokenId: subject.tokenId,
        nodeKey,
        issuedAt,
        expiresAt: issuedAt + GRANT_TTL_MS,
      };
      if (!(await store.putGrant(grant, MAX_GRANTS_PER_USER, issuedAt)))
        return refuse(
          "ERR_TOO_MANY_GRANTS",
          "too many sessions were opened in the last hour; wait some minutes",
        );
      if (decidedAt === this.#revocations) break;
      // Whoever revoked meanwhile may not have seen this one.
      await store.revokeGrants([grant.id], issuedAt);
    }
    this.#links.watch(link, grant.agentId, grant.expiresAt);
    this.#counters.grants++;
    const { id, userId, agentId, issuedAt, expiresAt } = grant;
    const { permissions, workspace, agent } = decision;
    const stored = await store.getRecord(agentId);
    const statement = encodeStatement(
      "grant",
      { id, nodeKey, userId, username: subject.username, agentId, permissions, issuedAt, expiresAt },
      this.#signer,
    );
    connection.send({
      type: "grant",
      request,
      grant: toBase64(statement),
      record: stored && toBase64(stored.statement),
      ...("agentId" in target ? {} : { agentId, workspace, agent }),
    });
  }

  #announce(agentId: string, stored: StoredRecord | undefined): void {
    for (const { connection } of this.#links.watchersOf(agentId))
      connection.send(
        stored
          ? { type: "record", agentId, record: toBase64(stored.statement) }
          : { type: "record-gone", agentId },
      );
  }
}

function targetOf(message: Extract<NodeMessage, { type: "grant-request" }>): ReachTarget {
  const { agentId, workspace, agent } = message;
  // The schema lets through exactly one of the two.
  return agentId === undefined ? { workspace: workspace ?? "", agent } : { agentId };
}

/** Names grants that are void, in messages of a size nodes accept. */
function sendVoid(connection: NodeConnection, ids: readonly string[]): void {
  for (let at = 0; at < ids.length; at += MAX_LIVE_GRANTS)
    connection.send({ type: "revoke", grants: ids.slice(at, at + MAX_LIVE_GRANTS) });
}
