// Grants given to clients, as rows: what was revoked stays so whoever was away, whichever replica it was told.
import type { Knex } from "knex";
import { TICKET_TTL_MS } from "../../../coordinator/coordinator.ts";
import type { IssuedGrant } from "../../../coordinator/store.ts";
import { MAX_UNRENEWED_MS } from "../../../mesh/node/admission.ts";
import { type HeldRow, heldRows, judgeHeld } from "./reach.ts";

interface GrantRow {
  id: string;
  user_id: string;
  agent_id: string;
  token_id: string;
  node_key: string;
  issued_at: Date;
  expires_at: Date;
  revoked_at: Date | null;
}

/** A session may go on for so long with an expired grant, and an hour for clocks and sweeps. */
export const GRANT_KEPT_MS = MAX_UNRENEWED_MS + 3_600_000;
/** What relays must go on refusing after a restart: no ticket lives longer. */
export const REVOKED_KEPT_MS = TICKET_TTL_MS;
/** Grants another replica revoked are told to our agents too, if we look within this. */
const REVOKED_LATELY_MS = 60_000;

const issued = (row: GrantRow): IssuedGrant => ({
  id: row.id,
  userId: row.user_id,
  agentId: row.agent_id,
  tokenId: row.token_id,
  nodeKey: row.node_key,
  issuedAt: row.issued_at.getTime(),
  expiresAt: row.expires_at.getTime(),
});

/**
 * Without waiting for the disk: a grant that PostgreSQL lost in a crash is one nobody knows, hence void, and is asked
 * for again; whereas somebody waits for this one. Revocations do wait.
 */
const INSERT = `with fast as (select set_config('synchronous_commit', 'off', true))
  insert into mesh_grants (id, user_id, agent_id, token_id, node_key, issued_at, expires_at)
  select ?::uuid, ?::uuid, ?::uuid, ?::text, ?::text, ?::timestamptz, ?::timestamptz from fast
  where (select count(*) from (
    select 1 from mesh_grants where user_id = ?::uuid and expires_at > ?::timestamptz and revoked_at is null
    limit ?::int) held) < ?::int`;

/** @returns false when the user holds `maxOfUser` unexpired ones */
export async function insertGrant(
  knex: Knex,
  grant: IssuedGrant,
  maxOfUser: number,
  now: Date,
): Promise<boolean> {
  const { id, userId, agentId, tokenId, nodeKey } = grant;
  const times = [new Date(grant.issuedAt), new Date(grant.expiresAt)];
  const { rowCount } = await knex
    .raw<{ rowCount: number }>(INSERT, [
      id,
      userId,
      agentId,
      tokenId,
      nodeKey,
      ...times,
      userId,
      now,
      maxOfUser,
      maxOfUser,
    ])
    .options({ name: "mesh_insert_grant" });
  return rowCount > 0;
}

export async function unexpiredGrants(knex: Knex, now: Date, userId?: string): Promise<IssuedGrant[]> {
  const rows: GrantRow[] = await knex("mesh_grants")
    .where("expires_at", ">", now)
    .whereNull("revoked_at")
    .modify((query) => {
      if (userId !== undefined) query.andWhere("user_id", userId);
    })
    .orderBy("issued_at");
  return rows.map(issued);
}

export async function markRevoked(knex: Knex, ids: readonly string[], now: Date): Promise<void> {
  await knex("mesh_grants")
    .whereRaw("id = any(?)", [[...ids]])
    .whereNull("revoked_at")
    .update({ revoked_at: now });
}

/** Unexpired grants of these agents that were marked as void, by agent. */
export async function markedGrantIds(
  knex: Knex,
  agentIds: readonly string[],
  now: Date,
): Promise<Map<string, string[]>> {
  const rows: { id: string; agent_id: string }[] = await knex("mesh_grants")
    .whereRaw("agent_id = any(?)", [[...agentIds]])
    .andWhere("expires_at", ">", now)
    .whereNotNull("revoked_at")
    .select("id", "agent_id");
  const marked = new Map<string, string[]>();
  for (const { id, agent_id: agentId } of rows) {
    const ids = marked.get(agentId);
    if (ids) ids.push(id);
    else marked.set(agentId, [id]);
  }
  return marked;
}

/**
 * Of an agent's live grants those that are void: revoked, given for what ended since, or unknown (forgotten long after
 * they ended, or never ours). With `agentId` all revoked ones of that agent that somebody might still show it.
 */
export async function voidGrantIds(
  knex: Knex,
  ids: readonly string[],
  agentId: string | undefined,
  now: Date,
): Promise<string[]> {
  const marked = agentId === undefined ? undefined : await markedGrantIds(knex, [agentId], now);
  const found = new Set(marked?.get(agentId ?? ""));
  if (ids.length === 0) return [...found];
  const rows: GrantRow[] = await knex("mesh_grants").whereRaw("id = any(?)", [[...ids]]);
  const known = new Map(rows.map((row) => [row.id, row]));
  const held = new Map<string, boolean>();
  const facts = await heldRows(
    knex,
    "select distinct user_id, token_id, agent_id from mesh_grants where id = any(?) and revoked_at is null",
    [ids],
  );
  for (const row of facts) held.set(tripleOf(row), judgeHeld(row, now) === undefined);
  for (const id of ids) {
    const row = known.get(id);
    if (!row || row.revoked_at !== null || !held.get(tripleOf(row))) found.add(id);
  }
  return [...found];
}

/** Which grants to look at. */
export type GrantScope =
  | { kind: "all" }
  | { kind: "user"; userId: string }
  | { kind: "workspace"; workspaceId: string };

export interface VoidGrant {
  id: string;
  userId: string;
  agentId: string;
  nodeKey: string;
  workspaceId: string | undefined;
  /** The client itself has nothing to seek here any more, not just at this agent. */
  isCredentialOver: boolean;
  /** When another look marked it; undefined: it is to be marked now. */
  revokedAt: Date | undefined;
}

/** Judges grants anew. @returns those now void, and those another replica has lately revoked; marks nothing */
export async function findVoidGrants(knex: Knex, scope: GrantScope, now: Date): Promise<VoidGrant[]> {
  const since = new Date(now.getTime() - MAX_UNRENEWED_MS);
  const lately = new Date(now.getTime() - REVOKED_LATELY_MS);
  const open = "expires_at > ? and (revoked_at is null or revoked_at > ?)";
  const [where, values] = scopeSql(scope);
  const facts = await heldRows(
    knex,
    `select distinct user_id, token_id, agent_id from mesh_grants where ${open} and ${where}`,
    [since, lately, ...values],
  );
  const isVoid = new Map<string, HeldRow>();
  for (const row of facts) if (judgeHeld(row, now)) isVoid.set(tripleOf(row), row);
  // By triple for what ended, and whatever another replica revoked and has since come back.
  const column = (pick: (row: HeldRow) => string) => [...isVoid.values()].map(pick);
  const { rows } = await knex.raw<{ rows: GrantRow[] }>(
    `select g.* from mesh_grants g where ${open} and ${where} and (g.revoked_at is not null
       or (g.user_id, g.token_id, g.agent_id) in (
         select * from unnest(?::uuid[], ?::text[], ?::uuid[])))`,
    [
      since,
      lately,
      ...values,
      column(({ user_id }) => user_id),
      column(({ token_id }) => token_id),
      column(({ agent_id }) => agent_id),
    ] as never,
  );
  const of = new Map(facts.map((row) => [tripleOf(row), row]));
  return rows.map((row) => {
    const held = of.get(tripleOf(row));
    return {
      id: row.id,
      userId: row.user_id,
      agentId: row.agent_id,
      nodeKey: row.node_key,
      workspaceId: held?.workspace_id ?? undefined,
      isCredentialOver: held !== undefined && judgeHeld(held, now) === "credential",
      revokedAt: row.revoked_at ?? undefined,
    };
  });
}

function scopeSql(scope: GrantScope): [where: string, values: unknown[]] {
  switch (scope.kind) {
    case "all":
      return ["true", []];
    case "user":
      return ["user_id = ?", [scope.userId]];
    case "workspace":
      return [
        `agent_id in (select a.id from workspace_agents a
           join workspace_resources r on r.id = a.resource_id
           join workspace_builds b on b.job_id = r.job_id where b.workspace_id = ?)`,
        [scope.workspaceId],
      ];
  }
}

/** When the next token with grants or a connection expires. `tokenIds`: of connected nodes. */
export async function nextTokenExpiry(
  knex: Knex,
  tokenIds: readonly string[],
  now: Date,
): Promise<Date | undefined> {
  const { rows } = await knex.raw<{ rows: { at: Date | null }[] }>(
    `select min(k.expires_at) as at from api_keys k where k.expires_at > ? and (k.id = any(?) or k.id in (
       select token_id from mesh_grants where expires_at > ? and revoked_at is null))`,
    [now, tokenIds, new Date(now.getTime() - MAX_UNRENEWED_MS)] as never,
  );
  return rows[0].at ?? undefined;
}

/**
 * Whom relays have to refuse, though they were told before they started or elsewhere: users who are out, and keys of
 * nodes whose credential is over, with when that was found.
 */
export async function lockedOut(
  knex: Knex,
  now: Date,
): Promise<{ userIds: string[]; keys: { nodeKey: string; at: Date }[] }> {
  const since = new Date(now.getTime() - REVOKED_KEPT_MS);
  const users: { id: string }[] = await knex("users")
    .where("updated_at", ">", since)
    .andWhere((where) => where.where("deleted", true).orWhere("status", "suspended"))
    .select("id");
  const { rows } = await knex.raw<{ rows: { node_key: string; at: Date }[] }>(
    `select g.node_key, max(g.revoked_at) as at from mesh_grants g
     left join api_keys k on k.id = g.token_id and k.user_id = g.user_id
     where g.revoked_at > ? and (k.id is null or k.expires_at <= ?) group by g.node_key`,
    [since, now] as never,
  );
  return {
    userIds: users.map(({ id }) => id),
    keys: rows.map(({ node_key, at }) => ({ nodeKey: node_key, at })),
  };
}

/** Forgets what nobody can hold any more. */
export async function pruneMesh(knex: Knex, now: Date): Promise<void> {
  await knex("mesh_grants")
    .where("expires_at", "<", new Date(now.getTime() - GRANT_KEPT_MS))
    .andWhere((where) =>
      where.whereNull("revoked_at").orWhere("revoked_at", "<", new Date(now.getTime() - REVOKED_KEPT_MS)),
    )
    .delete();
  await knex("mesh_nodes").where("expires_at", "<", now).delete();
}

const tripleOf = (of: { user_id: string; token_id: string; agent_id: string }): string =>
  `${of.user_id} ${of.token_id} ${of.agent_id}`;
