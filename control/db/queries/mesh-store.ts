// The coordinator's store on PostgreSQL, for any number of replicas. Rows are the truth. What this replica's own
// agents said is kept beside them, so that a grant costs no query for it; other replicas hear of changes by NOTIFY,
// gathered for a moment and outside of write transactions, because it takes a lock of the whole database at commit.
import type { Knex } from "knex";
import type { IssuedGrant, NodeStore, StoredRecord } from "../../../coordinator/store.ts";
import type { NodeRecord } from "../../../mesh/wire/signed.ts";
import { AGENT_INACTIVE_MS } from "../../templates/status.ts";
import { gathered } from "../gather.ts";
import { insertGrant, markedGrantIds, markRevoked, unexpiredGrants, voidGrantIds } from "./grants.ts";
import { announce, type Topic, type Topics } from "./topics.ts";

const GATHER_MS = 50;
/** 36 bytes each and a comma, in a payload of at most 7,999. */
const IDS_PER_NOTIFY = 200;

export interface MeshStoreOptions {
  knex: Knex;
  /** Started with "mesh_node" and "mesh_grant". */
  topics: Topics;
  /** Names this process among those that share the database. */
  replicaId: string;
  onError(error: unknown): void;
}

type Listener = (agentId: string, record: StoredRecord | undefined) => void;

interface NodeRow {
  agent_id: string;
  connection_id: string;
  node_key: string;
  home_region: string;
  issued_at: Date;
  expires_at: Date;
  statement: Buffer;
}

export class PostgresStore implements NodeStore {
  readonly #options: MeshStoreOptions;
  readonly #knex: Knex;
  /** Of agents connected to this replica. */
  readonly #own = new Map<string, StoredRecord>();
  readonly #listeners = new Set<Listener>();
  readonly #news = { mesh_node: new Set<string>(), mesh_grant: new Set<string>() };
  readonly #unwatch: (() => void)[];
  /** Agents that come back together after a restart are written, and asked for, together. */
  readonly #write: (stored: StoredRecord) => Promise<void>;
  readonly #markedOf: (asked: { agentId: string; nowMs: number }) => Promise<string[]>;
  #timer: NodeJS.Timeout | undefined;
  /** Told which users' grants another replica revoked; undefined: any may have been. */
  onRevokedElsewhere: ((userId: string | undefined) => void) | undefined;

  constructor(options: MeshStoreOptions) {
    this.#options = options;
    this.#knex = options.knex;
    this.#write = gathered(async (records) => {
      await putNodes(options.knex, options.replicaId, records);
      return records.map(() => undefined);
    });
    this.#markedOf = gathered(async (asked) => {
      const now = new Date(Math.min(...asked.map(({ nowMs }) => nowMs)));
      const marked = await markedGrantIds(
        options.knex,
        asked.map(({ agentId }) => agentId),
        now,
      );
      return asked.map(({ agentId }) => marked.get(agentId) ?? []);
    });
    this.#unwatch = [
      this.#hear("mesh_node", (agentId) => void this.#reload(agentId).catch(options.onError)),
      this.#hear("mesh_grant", (userId) => this.onRevokedElsewhere?.(userId)),
    ];
  }

  /** Says what is left to say, and hears nothing more. */
  async close(): Promise<void> {
    for (const unwatch of this.#unwatch) unwatch();
    clearTimeout(this.#timer);
    await this.#flush();
  }

  async putRecord(stored: StoredRecord): Promise<void> {
    const { agentId } = stored.record;
    this.#own.set(agentId, stored);
    this.#tell(agentId, stored);
    await this.#write(stored);
    this.#announce("mesh_node", agentId);
  }

  async removeRecord(agentId: string, connectionId: string): Promise<boolean> {
    const own = this.#own.get(agentId);
    // A newer connection here owns it.
    if (own && own.connectionId !== connectionId) return false;
    this.#own.delete(agentId);
    const gone = await this.#knex("mesh_nodes")
      // Nor must it go when the node, keeping its connection's name, has moved to another replica.
      .where({ agent_id: agentId, connection_id: connectionId, replica_id: this.#options.replicaId })
      .delete();
    if (gone === 0) return false;
    this.#tell(agentId, undefined);
    this.#announce("mesh_node", agentId);
    return true;
  }

  async getRecord(agentId: string): Promise<StoredRecord | undefined> {
    return this.#own.get(agentId) ?? (await this.#read(agentId));
  }

  async putGrant(grant: IssuedGrant, maxOfUser: number, nowMs: number): Promise<boolean> {
    return insertGrant(this.#knex, grant, maxOfUser, new Date(nowMs));
  }

  async revokeGrants(ids: readonly string[], nowMs: number): Promise<void> {
    if (ids.length > 0) await markRevoked(this.#knex, ids, new Date(nowMs));
  }

  /** Other replicas look at the grants of these users again. */
  announceRevoked(userIds: Iterable<string>): void {
    for (const userId of userIds) this.#announce("mesh_grant", userId);
  }

  async listGrants(nowMs: number, userId?: string): Promise<IssuedGrant[]> {
    return unexpiredGrants(this.#knex, new Date(nowMs), userId);
  }

  async voidGrants(ids: readonly string[], nowMs: number, agentId?: string): Promise<string[]> {
    if (ids.length > 0) return voidGrantIds(this.#knex, ids, agentId, new Date(nowMs));
    return agentId === undefined ? [] : this.#markedOf({ agentId, nowMs });
  }

  watch(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #tell(agentId: string, record: StoredRecord | undefined): void {
    for (const listener of this.#listeners) listener(agentId, record);
  }

  /**
   * An agent of another replica, or of one that is no more. A replica that died took nobody's record along: an agent that
   * was not heard of lately is not there, whatever the row says.
   */
  async #read(agentId: string): Promise<StoredRecord | undefined> {
    const now = Date.now();
    const silentSince = new Date(now - AGENT_INACTIVE_MS);
    const { rows } = await this.#knex
      .raw<{ rows: NodeRow[] }>(
        `select n.* from mesh_nodes n join workspace_agents a on a.id = n.agent_id
         where n.agent_id = ? and n.expires_at > ? and (n.issued_at > ? or (a.last_connected_at > ?
           and (a.disconnected_at is null or a.disconnected_at < a.last_connected_at)))`,
        [agentId, new Date(now), silentSince, silentSince],
      )
      .options({ name: "mesh_read_node" });
    return rows[0] && storedOf(rows[0]);
  }

  async #reload(agentId: string | undefined): Promise<void> {
    if (agentId === undefined) return; // clients ask again when they renew, and agents say hello again
    const stored = await this.#read(agentId);
    const own = this.#own.get(agentId);
    if (own && own.connectionId === stored?.connectionId) return;
    // It is another replica's now; our connection to it is a dead one that nobody noticed yet.
    if (own && stored) this.#own.delete(agentId);
    if (!own || stored) this.#tell(agentId, stored);
  }

  #hear(topic: "mesh_node" | "mesh_grant", heard: (id: string | undefined) => void): () => void {
    return this.#options.topics.watch(topic, "*", (payload) => {
      const [replica, ids] = payload.split(" ", 2);
      if (replica === this.#options.replicaId) return;
      if (ids === undefined) return heard(undefined); // "*": notifications may have been missed
      for (const id of ids.split(",")) heard(id);
    });
  }

  #announce(topic: "mesh_node" | "mesh_grant", id: string): void {
    this.#news[topic].add(id);
    this.#timer ??= setTimeout(() => void this.#flush(), GATHER_MS);
  }

  async #flush(): Promise<void> {
    this.#timer = undefined;
    for (const [topic, news] of Object.entries(this.#news) as [Topic, Set<string>][]) {
      const ids = [...news];
      news.clear();
      for (let at = 0; at < ids.length; at += IDS_PER_NOTIFY) {
        const payload = `${this.#options.replicaId} ${ids.slice(at, at + IDS_PER_NOTIFY).join(",")}`;
        // Lost, it costs other replicas' clients a wait: they look at rows when they next ask.
        await announce(this.#knex, topic, payload).catch(this.#options.onError);
      }
    }
  }
}

/** Of one agent the last counts. */
async function putNodes(knex: Knex, replicaId: string, records: readonly StoredRecord[]): Promise<void> {
  // In one order, so that two replicas can't wait for each other.
  const rows = [...new Map(records.map((stored) => [stored.record.agentId, stored])).values()].sort((a, b) =>
    a.record.agentId < b.record.agentId ? -1 : 1,
  );
  await knex
    .raw(
      `insert into mesh_nodes
         (replica_id, agent_id, connection_id, node_key, home_region, issued_at, expires_at, statement)
       select ?::uuid, * from unnest(?::uuid[], ?::uuid[], ?::text[], ?::bigint[], ?::timestamptz[],
         ?::timestamptz[], ?::bytea[])
       on conflict (agent_id) do update set replica_id = excluded.replica_id,
         connection_id = excluded.connection_id, node_key = excluded.node_key,
         home_region = excluded.home_region, issued_at = excluded.issued_at,
         expires_at = excluded.expires_at, statement = excluded.statement`,
      [
        replicaId,
        rows.map(({ record }) => record.agentId),
        rows.map(({ connectionId }) => connectionId),
        rows.map(({ record }) => record.nodeKey),
        rows.map(({ record }) => record.homeRegion),
        rows.map(({ record }) => new Date(record.issuedAt)),
        rows.map(({ record }) => new Date(record.expiresAt)),
        rows.map(({ statement }) => Buffer.from(statement)),
      ] as never,
    )
    .options({ name: "mesh_put_nodes" });
}

const storedOf = (row: NodeRow): StoredRecord => {
  const record: NodeRecord = {
    agentId: row.agent_id,
    nodeKey: row.node_key,
    homeRegion: Number(row.home_region),
    issuedAt: row.issued_at.getTime(),
    expiresAt: row.expires_at.getTime(),
  };
  return { connectionId: row.connection_id, record, statement: Uint8Array.from(row.statement) };
};
