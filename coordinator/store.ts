import type { NodeRecord } from "../mesh/wire/signed.ts";

/** A node record with its signed bytes and the connection that said it. */
export interface StoredRecord {
  connectionId: string;
  record: NodeRecord;
  statement: Uint8Array;
}

export interface IssuedGrant {
  id: string;
  userId: string;
  agentId: string;
  /** The API token it was asked for with: revoking that token voids the grant. */
  tokenId: string;
  /** Of the client. */
  nodeKey: string;
  /** Unix ms, as all instants here. */
  issuedAt: number;
  expiresAt: number;
}

/**
 * What coordinators share. In memory for one replica; several need rows in Postgres, hence promises.
 * `watch` hears of every change of a record, made by this replica or another.
 */
export interface NodeStore {
  putRecord(record: StoredRecord): Promise<void>;
  /** Removes the record only if `connectionId` still owns it: a late goodbye must not remove its successor. */
  removeRecord(agentId: string, connectionId: string): Promise<boolean>;
  getRecord(agentId: string): Promise<StoredRecord | undefined>;
  /** Remembers a grant before anybody gets it. @returns false, and remembers nothing, when its user holds `maxOfUser` */
  putGrant(grant: IssuedGrant, maxOfUser: number, nowMs: number): Promise<boolean>;
  /** Voids them, for ever: what was revoked does not come back. Unknown ids are ignored. */
  revokeGrants(ids: readonly string[], nowMs: number): Promise<void>;
  /** Unexpired grants, revoked ones left out; of one user, or all. */
  listGrants(nowMs: number, userId?: string): Promise<IssuedGrant[]>;
  /** Those of `ids` that are void, and, with `agentId`, all revoked ones of that agent that have not expired. */
  voidGrants(ids: readonly string[], nowMs: number, agentId?: string): Promise<string[]>;
  watch(listener: (agentId: string, record: StoredRecord | undefined) => void): () => void;
}

/** Bounds what one replica remembers of grants; the oldest go first, and their expiry still ends them. */
const MAX_GRANTS = 200_000;

/** For tests and a coordinator that stands alone: a restart forgets it all. */
export class MemoryStore implements NodeStore {
  readonly #records = new Map<string, StoredRecord>();
  readonly #grants = new Map<string, IssuedGrant>();
  readonly #grantsOfUser = new Map<string, number>();
  readonly #void = new Map<string, { agentId: string; expiresAt: number }>();
  readonly #listeners = new Set<(agentId: string, record: StoredRecord | undefined) => void>();

  async putRecord(stored: StoredRecord): Promise<void> {
    this.#records.set(stored.record.agentId, stored);
    this.#tell(stored.record.agentId, stored);
  }

  async removeRecord(agentId: string, connectionId: string): Promise<boolean> {
    if (this.#records.get(agentId)?.connectionId !== connectionId) return false;
    this.#records.delete(agentId);
    this.#tell(agentId, undefined);
    return true;
  }

  async getRecord(agentId: string): Promise<StoredRecord | undefined> {
    return this.#records.get(agentId);
  }

  async putGrant(grant: IssuedGrant, maxOfUser: number, nowMs: number): Promise<boolean> {
    this.#prune(nowMs);
    const held = this.#grantsOfUser.get(grant.userId) ?? 0;
    if (held >= maxOfUser) return false;
    this.#grants.set(grant.id, grant);
    this.#grantsOfUser.set(grant.userId, held + 1);
    return true;
  }

  async listGrants(nowMs: number, userId?: string): Promise<IssuedGrant[]> {
    this.#prune(nowMs);
    const all = [...this.#grants.values()];
    return userId === undefined ? all : all.filter((grant) => grant.userId === userId);
  }

  async revokeGrants(ids: readonly string[], nowMs: number): Promise<void> {
    for (const id of ids) {
      const grant = this.#grants.get(id);
      if (!grant || grant.expiresAt <= nowMs) continue;
      this.#forget(grant);
      this.#void.set(id, { agentId: grant.agentId, expiresAt: grant.expiresAt });
    }
  }

  async voidGrants(ids: readonly string[], nowMs: number, agentId?: string): Promise<string[]> {
    this.#prune(nowMs);
    const found = new Set(ids.filter((id) => this.#void.has(id)));
    if (agentId !== undefined) for (const [id, of] of this.#void) if (of.agentId === agentId) found.add(id);
    return [...found];
  }

  watch(listener: (agentId: string, record: StoredRecord | undefined) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Insertion order is close to expiry order, so looking at the front is enough to forget the expired. */
  #prune(nowMs: number): void {
    for (const grant of this.#grants.values()) {
      if (grant.expiresAt > nowMs && this.#grants.size < MAX_GRANTS) break;
      this.#forget(grant);
    }
    for (const [id, { expiresAt }] of this.#void) {
      if (expiresAt > nowMs) break;
      this.#void.delete(id);
    }
  }

  #forget({ id, userId }: IssuedGrant): void {
    this.#grants.delete(id);
    const left = (this.#grantsOfUser.get(userId) ?? 1) - 1;
    if (left > 0) this.#grantsOfUser.set(userId, left);
    else this.#grantsOfUser.delete(userId);
  }

  #tell(agentId: string, record: StoredRecord | undefined): void {
    for (const listener of this.#listeners) listener(agentId, record);
  }
}
