// Ends what somebody may no longer do, within a second of the change: at the agent, which closes the sessions; at the
// relays, by key; and at the coordinator, so that the client can say why.
import type { Knex } from "knex";
import type { Coordinator } from "../../coordinator/coordinator.ts";
import type { RelayService } from "../../derp/server/server.ts";
import { fromBase64 } from "../../mesh/wire/bytes.ts";
import { areKeptAgents } from "../db/queries/agents.ts";
import {
  findVoidGrants,
  type GrantScope,
  lockedOut,
  nextTokenExpiry,
  pruneMesh,
  type VoidGrant,
} from "../db/queries/grants.ts";
import type { PostgresStore } from "../db/queries/mesh-store.ts";
import { CREDENTIAL_ENDS, type CredentialEnd, credentialEnds } from "../db/queries/reach.ts";
import type { Topics } from "../db/queries/topics.ts";

/** Notifications can be lost; what they would have told is found by looking, this often. */
const SWEEP_EVERY_MS = 60_000;
const PRUNE_EVERY_MS = 10 * 60_000;
/** Token expiries this close together are looked at once. */
const MIN_SWEEP_GAP_MS = 250;
/**
 * The agent's last word to the client travels through the relay: let it. In steps, because timers come first in a
 * process that was held up: it shall have read what came meanwhile before it hangs up.
 */
const RELAY_GRACE_STEPS = 4;
const RELAY_GRACE_STEP_MS = 150;
/** Looked at once more should the database fail meanwhile. */
const RETRY_MS = 1_000;

export interface RevocationOptions {
  knex: Knex;
  topics: Topics;
  store: PostgresStore;
  coordinator: Coordinator;
  relay: Pick<RelayService, "closePeer" | "closeSubject">;
  now: () => Date;
  onError(error: unknown): void;
}

/** What watchers of everything hear after the database connection was away: anything may have changed. */
const ANY = "*";

export class Revocation {
  readonly #options: RevocationOptions;
  readonly #unwatch: (() => void)[];
  /** Node keys and subjects the relays are about to be told of. */
  readonly #closing = new Map<string, () => void>();
  /** One look per scope at a time, and one more for what changed meanwhile. */
  readonly #looking = new Map<string, { again: boolean; done: Promise<void> }>();
  #timer: NodeJS.Timeout | undefined;
  #sweepAt = 0;
  #prunedAt = 0;
  /** Relays forget with their server whom they refuse, so a new one is told. */
  #hasTold = false;
  #stopped = false;

  constructor(options: RevocationOptions) {
    this.#options = options;
    const { topics, store } = options;
    this.#unwatch = [
      topics.watch("workspace", ANY, (id) => this.#onWorkspace(id)),
      topics.watch("user", ANY, (id) => this.#onUser(id)),
      topics.watch("api_key", ANY, (id) => this.#onUser(id)),
    ];
    store.onRevokedElsewhere = (userId) => this.#onUser(userId ?? ANY);
    this.#plan(0);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    for (const unwatch of this.#unwatch) unwatch();
    clearTimeout(this.#timer);
    await Promise.all([...this.#looking.values()].map(({ done }) => done));
    for (const close of [...this.#closing.values()]) close();
  }

  /** A token with a grant expires then: look at that moment. */
  noteExpiry(at: Date): void {
    if (at.getTime() < this.#sweepAt) this.#plan(at.getTime() - this.#options.now().getTime() + 1);
  }

  #onUser(userId: string): void {
    if (userId === ANY) return this.#look(ANY, () => this.#sweep());
    this.#look(`user ${userId}`, () => this.#endUser(userId));
  }

  #onWorkspace(workspaceId: string): void {
    if (workspaceId === ANY) return this.#look(ANY, () => this.#sweep());
    this.#look(`workspace ${workspaceId}`, async () => {
      await this.#endGrants({ kind: "workspace", workspaceId });
      await this.#endAgents(workspaceId);
    });
  }

  #look(key: string, work: () => Promise<void>): void {
    if (this.#stopped) return;
    const under = this.#looking.get(key);
    if (under) {
      under.again = true;
      return;
    }
    const entry = { again: false, done: Promise.resolve() };
    this.#looking.set(key, entry);
    entry.done = (async () => {
      do {
        entry.again = false;
        try {
          await work();
        } catch (error) {
          this.#options.onError(error);
          this.#plan(RETRY_MS);
        }
      } while (entry.again && !this.#stopped);
      this.#looking.delete(key);
    })();
  }

  #plan(ms: number): void {
    if (this.#stopped) return;
    clearTimeout(this.#timer);
    const waitMs = Math.max(ms, 0);
    this.#sweepAt = this.#options.now().getTime() + waitMs;
    this.#timer = setTimeout(() => this.#look(ANY, () => this.#sweep()), waitMs);
  }

  /** Looks at everything, and plans the next look for when the next token expires. */
  async #sweep(): Promise<void> {
    const { knex, coordinator, now } = this.#options;
    this.#plan(SWEEP_EVERY_MS);
    if (!this.#hasTold) await this.#tellRelays();
    await this.#endGrants({ kind: "all" });
    const users = coordinator.users();
    for (const userId of new Set(users.map(({ subject }) => subject.userId))) await this.#endClients(userId);
    await this.#endAgents();
    const tokenIds = [...new Set(users.map(({ subject }) => subject.tokenId))];
    const next = await nextTokenExpiry(knex, tokenIds, now());
    if (next) this.#plan(clamp(next.getTime() + 1 - now().getTime(), MIN_SWEEP_GAP_MS, SWEEP_EVERY_MS));
    if (now().getTime() - this.#prunedAt < PRUNE_EVERY_MS) return;
    this.#prunedAt = now().getTime();
    await pruneMesh(knex, now());
  }

  async #tellRelays(): Promise<void> {
    const { knex, relay, now } = this.#options;
    const at = now().getTime();
    const { userIds, keys } = await lockedOut(knex, now());
    for (const userId of userIds) relay.closeSubject(`user:${userId}`, at);
    for (const { nodeKey, at } of keys) relay.closePeer(fromBase64(nodeKey), at.getTime());
    this.#hasTold = true;
  }

  async #endUser(userId: string): Promise<void> {
    await Promise.all([this.#endGrants({ kind: "user", userId }), this.#endClients(userId)]);
  }

  async #endGrants(scope: GrantScope): Promise<void> {
    const { knex, coordinator, store, now } = this.#options;
    coordinator.permissionsChanged();
    const found = await findVoidGrants(knex, scope, now());
    if (found.length === 0) return;
    await coordinator.revokeGrants(found);
    this.#closeKeys(found);
    const news = found.filter(({ revokedAt }) => revokedAt === undefined);
    store.announceRevoked(new Set(news.map(({ userId }) => userId)));
  }

  /**
   * By key, for clients whose credential is over; one that only lost an agent may have business elsewhere. What another
   * replica marked is news to our relay.
   */
  #closeKeys(grants: readonly VoidGrant[]): void {
    const over = grants.filter(({ isCredentialOver }) => isCredentialOver);
    for (const [key, at] of new Map(over.map(({ nodeKey, revokedAt }) => [nodeKey, revokedAt])))
      this.#closeKey(key, at);
  }

  #closeKey(nodeKey: string, revokedAt = this.#options.now()): void {
    const at = revokedAt.getTime();
    this.#closeSoon(nodeKey, () => this.#options.relay.closePeer(fromBase64(nodeKey), at));
  }

  #closeSoon(what: string, work: () => void): void {
    if (this.#closing.has(what)) return;
    const close = () => {
      clearTimeout(timer);
      this.#closing.delete(what);
      work();
    };
    let timer: NodeJS.Timeout | undefined;
    let stepsLeft = RELAY_GRACE_STEPS;
    const step = () => {
      if (stepsLeft-- === 0) return close();
      timer = setTimeout(step, RELAY_GRACE_STEP_MS);
    };
    step();
    this.#closing.set(what, close);
  }

  /** Hangs up on a user's nodes whose credential is over, and says why. */
  async #endClients(userId: string): Promise<void> {
    const { knex, coordinator, relay, now } = this.#options;
    const at = now().getTime();
    const links = coordinator.users(userId);
    const ends = await credentialEnds(
      knex,
      userId,
      [...new Set(links.map(({ subject }) => subject.tokenId))],
      now(),
    );
    const subject = `user:${userId}`;
    if (ends.user) this.#closeSoon(subject, () => relay.closeSubject(subject, at));
    for (const link of links) {
      const end: CredentialEnd | undefined = ends.user ?? ends.tokens.get(link.subject.tokenId);
      if (!end) continue;
      if (link.nodeKey !== undefined) this.#closeKey(link.nodeKey);
      await coordinator.dismiss(link, end, CREDENTIAL_ENDS[end]);
    }
  }

  /**
   * A build that succeeded replaced its workspace's agents. A process that lives on comes back as the new build's agent;
   * of the others the relays are told.
   */
  async #endAgents(workspaceId?: string): Promise<void> {
    const { knex, coordinator } = this.#options;
    const ids = coordinator
      .agents()
      .filter((agent) => workspaceId === undefined || agent.workspaceId === workspaceId)
      .map(({ agentId }) => agentId);
    if (ids.length === 0) return;
    const kept = await areKeptAgents(knex, ids);
    for (const agentId of ids) {
      const fate = kept.get(agentId);
      if (fate === "current") continue;
      const keys = await coordinator.dismissAgent(agentId);
      if (fate !== "replaced") for (const key of keys) this.#closeKey(key);
    }
  }
}

const clamp = (value: number, min: number, max: number): number => Math.min(max, Math.max(min, value));
