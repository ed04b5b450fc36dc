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
  expiresAt: number;
}

/**
 * What coordinators share. In memory for one replica; several need rows in Postgres, hence promises.
 * `watch` hears of every change, made by this replica or another.
 */
export interface NodeStore {
  putRecord(record: StoredRecord): Promise<void>;
  /** Removes the record only if `connectionId` still owns it: a late goodbye must not remove its successor. */
  removeRecord(agentId: string, connectionId: string): Promise<boolean>;
  getRecord(agentId: string): Promise<StoredRecord | undefined>;
  putGrant(grant: IssuedGrant, nowMs: number): Promise<void>;
  /** Voids every unexpired grant that matches. @returns the grants now void */
  revokeGrants(matches: (grant: IssuedGrant) => boolean, nowMs: number): Promise<IssuedGrant[]>;
  /** Those of `ids` that were revoked. */
  voidGrants(ids: readonly string[]): Promise<string[]>;
  watch(listener: (agentId: string, record: StoredRecord | undefined) => void): () => void;
}

/** Bounds what one replica remembers of grants; the oldest go first, and their expiry still ends them. */
const MAX_GRANTS = 200_000;

export class MemoryStore implements NodeStore {
  readonly #records = new Map<string, StoredRecord>();
  readonly #grants = new Map<string, IssuedGrant>();
  readonly #void = new Map<string, number>();
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

  async putGrant(grant: IssuedGrant, nowMs: number): Promise<void> {
    this.#grants.set(grant.id, grant);
    // Insertion order is close to expiry order, so looking at the front is enough to forget the expired.
    for (const [id, { expiresAt }] of this.#grants) {
      if (expiresAt > nowMs && this.#grants.size <= MAX_GRANTS) break;
      this.#grants.delete(id);
    }
    for (const [id, expiresAt] of this.#void) {
      if (expiresAt > nowMs) break;
      this.#void.delete(id);
    }
  }

  async revokeGrants(matches: (grant: IssuedGrant) => boolean, nowMs: number): Promise<IssuedGrant[]> {
    const revoked = [...this.#grants.values()].filter((grant) => grant.expiresAt > nowMs && matches(grant));
    for (const { id, expiresAt } of revoked) {
      this.#grants.delete(id);
      this.#void.set(id, expiresAt);
    }
    return revoked;
  }

  async voidGrants(ids: readonly string[]): Promise<string[]> {
    return ids.filter((id) => this.#void.has(id));
  }

  watch(listener: (agentId: string, record: StoredRecord | undefined) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #tell(agentId: string, record: StoredRecord | undefined): void {
    for (const listener of this.#listeners) listener(agentId, record);
  }
}
