// Who may open sessions to which agent. Two questions, each one statement of everything the answer depends on: may a new
// grant be given (somebody is waiting for it), and which of those given are void by now. The answers are pure.
import type { Knex } from "knex";
import { authorize } from "../../auth/authorize.ts";
import type { AgentLifecycleState } from "../../contract/agent.ts";
import type { JobStatus } from "../../contract/jobs.ts";
import type { UserStatus } from "../../contract/users.ts";
import type { Transition } from "../../contract/workspaces.ts";
import { connectProblem } from "../../templates/status.ts";
import type { ApiKeyRow } from "./rows.ts";

/** What the credential behind a grant has become; null columns: the row is gone. */
interface Credential {
  roles: string[] | null;
  user_status: UserStatus | null;
  user_deleted: boolean | null;
  scope: ApiKeyRow["scope"] | null;
  key_expires_at: Date | null;
}

const CREDENTIAL = `u.roles, u.status as user_status, u.deleted as user_deleted,
  k.scope, k.expires_at as key_expires_at`;

export type CredentialEnd =
  | "ERR_USER_DELETED"
  | "ERR_USER_SUSPENDED"
  | "ERR_TOKEN_REVOKED"
  | "ERR_TOKEN_EXPIRED";

/** Why a credential is good for nothing any more, for the user to read. */
export const CREDENTIAL_ENDS: Record<CredentialEnd, string> = {
  ERR_USER_DELETED: "your account was deleted",
  ERR_USER_SUSPENDED: "your account is suspended; ask an administrator to activate it",
  ERR_TOKEN_REVOKED: "your session token was revoked; run coder login",
  ERR_TOKEN_EXPIRED: "your session token has expired; run coder login",
};

export function credentialEnd(of: Omit<Credential, "roles">, now: Date): CredentialEnd | undefined {
  if (of.user_deleted ?? true) return "ERR_USER_DELETED";
  if (of.user_status === "suspended") return "ERR_USER_SUSPENDED";
  if (of.key_expires_at === null) return "ERR_TOKEN_REVOKED";
  return of.key_expires_at <= now ? "ERR_TOKEN_EXPIRED" : undefined;
}

/** What ended of a user: all of it, or some of the tokens named. */
export async function credentialEnds(
  knex: Knex,
  userId: string,
  tokenIds: readonly string[],
  now: Date,
): Promise<{ user: CredentialEnd | undefined; tokens: Map<string, CredentialEnd> }> {
  const { rows } = await knex.raw<{ rows: (Credential & { token_id: string | null })[] }>(
    `select t.token_id, ${CREDENTIAL} from (select null::text as token_id union all select unnest(?::text[])) t
     left join users u on u.id = ? left join api_keys k on k.id = t.token_id and k.user_id = u.id`,
    [tokenIds, userId] as never,
  );
  const tokens = new Map<string, CredentialEnd>();
  let user: CredentialEnd | undefined;
  for (const row of rows) {
    const end = credentialEnd(row, now);
    if (row.token_id !== null && end) tokens.set(row.token_id, end);
    else if (row.token_id === null && end !== "ERR_TOKEN_REVOKED") user = end;
  }
  return { user, tokens };
}

/** The newest build that succeeded: its agents are the living ones. */
const LAST_BUILD = `select b2.id, b2.job_id, b2.transition
  from workspace_builds b2 join provisioner_jobs j2 on j2.id = b2.job_id
  where b2.workspace_id = w.id and j2.status = 'succeeded'
  order by b2.build_number desc limit 1`;

export interface ReachRow extends Credential {
  user_id: string;
  username: string;
  key_id: string | null;
  key_token_name: string | null;
  key_lifetime_seconds: string | null;
  key_last_used_at: Date | null;
  workspace_id: string | null;
  workspace_name: string;
  workspace_deleted: boolean;
  owner_id: string;
  owner_name: string;
  organization_id: string;
  outdated: boolean;
  build_id: string;
  build_number: number;
  latest_transition: Transition;
  latest_job_status: JobStatus;
  last_transition: Transition | null;
  is_current: boolean | null;
  agent_id: string | null;
  agent_name: string;
  lifecycle_state: AgentLifecycleState;
  startup_script_behavior: string;
  connection_timeout_seconds: number;
  troubleshooting_url: string;
  operating_system: string;
  directory: string;
  expanded_directory: string;
  created_at: Date;
  first_connected_at: Date | null;
  last_connected_at: Date | null;
  disconnected_at: Date | null;
}

const REACH = `u.id as user_id, u.username, k.id as key_id, k.token_name as key_token_name,
  k.lifetime_seconds as key_lifetime_seconds, k.last_used_at as key_last_used_at, ${CREDENTIAL},
  w.id as workspace_id, w.name as workspace_name, w.deleted as workspace_deleted, w.owner_id, w.organization_id,
  o.username as owner_name, b.id as build_id, b.build_number, b.transition as latest_transition,
  j.status as latest_job_status, b.template_version_id <> t.active_version_id as outdated,
  last.transition as last_transition,
  a.id as agent_id, a.name as agent_name, a.lifecycle_state, a.startup_script_behavior,
  a.connection_timeout_seconds, a.troubleshooting_url, a.operating_system, a.directory, a.expanded_directory,
  a.created_at, a.first_connected_at, a.last_connected_at, a.disconnected_at`;
const WORKSPACE = `left join users o on o.id = w.owner_id
  left join templates t on t.id = w.template_id
  left join workspace_builds b on b.id = w.latest_build_id
  left join provisioner_jobs j on j.id = b.job_id
  left join lateral (${LAST_BUILD}) last on true`;
const KEY = "left join api_keys k on k.id = ? and k.user_id = u.id";

const BY_AGENT = `select ${REACH}, last.id = ab.id as is_current
  from users u ${KEY}
  left join workspace_agents a on a.id = ?
  left join workspace_resources r on r.id = a.resource_id
  left join workspace_builds ab on ab.job_id = r.job_id
  left join workspaces w on w.id = ab.workspace_id ${WORKSPACE}
  where u.id = ?`;
const BY_NAME = `select ${REACH}, true as is_current
  from users u ${KEY}
  left join users named on not named.deleted and lower(named.username) = lower(coalesce(?, u.username))
  left join workspaces w on w.owner_id = named.id and lower(w.name) = lower(?) and not w.deleted ${WORKSPACE}
  left join workspace_resources r on r.job_id = last.job_id
  left join workspace_agents a on a.resource_id = r.id
  where u.id = ? order by a.display_order, a.name limit 100`;

/** Planned once a connection: planning so many joins takes longer than running them. */
const prepared = async <Row>(knex: Knex, name: string, sql: string, values: unknown[]): Promise<Row[]> =>
  (await knex.raw<{ rows: Row[] }>(sql, values as never).options({ name })).rows;

export type ReachQuery = { agentId: string } | { owner: string | undefined; name: string };

/** @returns one row per agent it could be, with null ids where there is none; none at all: no such user */
export function reachRows(knex: Knex, userId: string, keyId: string, query: ReachQuery): Promise<ReachRow[]> {
  return "agentId" in query
    ? prepared(knex, "mesh_reach_agent", BY_AGENT, [keyId, query.agentId, userId])
    : prepared(knex, "mesh_reach_name", BY_NAME, [keyId, query.owner ?? null, query.name, userId]);
}

/** "name", "me/name" or "owner/name"; undefined for anything else. */
export function parseWorkspaceName(text: string): { owner: string | undefined; name: string } | undefined {
  const [first, second, ...more] = text.split("/");
  if (more.length > 0 || !first || second === "") return undefined;
  if (second === undefined) return { owner: undefined, name: first };
  return { owner: first === "me" ? undefined : first, name: second };
}

export type ReachCode =
  | CredentialEnd
  | "ERR_NOT_FOUND"
  | "ERR_FORBIDDEN"
  | "ERR_WORKSPACE_NOT_RUNNING"
  | "ERR_AGENT_GONE"
  | "ERR_AGENT_NOT_FOUND"
  | "ERR_AGENT_AMBIGUOUS";
export type Reach = { ok: true; row: ReachRow } | { ok: false; code: ReachCode; reason: string };

/** May the user of `rows` open sessions to the agent asked for? `agentName`: which one, of a workspace asked for by name. */
export function judgeReach(rows: readonly ReachRow[], agentName: string | undefined, now: Date): Reach {
  const no = (code: ReachCode, reason: string): Reach => ({ ok: false, code, reason });
  const [row] = rows;
  if (!row) return no("ERR_USER_DELETED", CREDENTIAL_ENDS.ERR_USER_DELETED);
  const end = credentialEnd(row, now);
  if (end) return no(end, CREDENTIAL_ENDS[end]);
  // What a user may not even read does not exist for them.
  const hidden = no("ERR_NOT_FOUND", "No such workspace or agent, or not yours to see.");
  if (row.workspace_id === null) return hidden;
  if (!isAllowed(row, "read")) return hidden;
  if (!isAllowed(row, "ssh"))
    return no("ERR_FORBIDDEN", "You may see this workspace, but not open sessions to it.");
  if (row.workspace_deleted) return no("ERR_WORKSPACE_NOT_RUNNING", "The workspace is deleted.");
  const problem = connectProblem(
    { transition: row.latest_transition, job: row.latest_job_status },
    row.last_transition ?? undefined,
  );
  if (problem) return no("ERR_WORKSPACE_NOT_RUNNING", problem);
  if (!row.is_current)
    return no(
      "ERR_AGENT_GONE",
      "The agent belongs to an earlier build of the workspace. Look the workspace up again.",
    );
  const agents = rows.filter(({ agent_id }) => agent_id !== null);
  const names = agents.map(({ agent_name }) => agent_name).join(", ");
  const found =
    agentName === undefined ? agents : agents.filter(({ agent_name }) => agent_name === agentName);
  if (found.length === 1) return { ok: true, row: found[0] };
  if (agents.length === 0)
    return no("ERR_AGENT_NOT_FOUND", `Workspace ${row.workspace_name} has no agent to connect to.`);
  return found.length === 0
    ? no(
        "ERR_AGENT_NOT_FOUND",
        `Workspace ${row.workspace_name} has no agent "${agentName}"; it has ${names}.`,
      )
    : no("ERR_AGENT_AMBIGUOUS", `Workspace ${row.workspace_name} has several agents (${names}): name one.`);
}

type Access = Pick<ReachRow, "user_id" | "roles" | "scope" | "workspace_id" | "owner_id" | "organization_id">;

function isAllowed(row: Access, action: "read" | "ssh"): boolean {
  return authorize({ userId: row.user_id, roles: row.roles ?? [], scope: row.scope ?? "all" }, action, {
    type: "workspace",
    id: row.workspace_id ?? "",
    ownerId: row.owner_id,
    organizationId: row.organization_id,
  });
}

/** Of grants given: one row for all that one user was given for one agent with one token. */
export interface HeldRow extends Access, Credential {
  token_id: string;
  agent_id: string;
  workspace_deleted: boolean | null;
  last_transition: Transition | null;
  /** The newest build kept the agent, or its token, and with it the process. */
  is_kept: boolean | null;
}

/** `g`: (user_id, token_id, agent_id). */
const heldSql = (g: string): string => `select g.user_id, g.token_id, g.agent_id, ${CREDENTIAL},
  w.id as workspace_id, w.owner_id, w.organization_id, w.deleted as workspace_deleted,
  last.transition as last_transition,
  last.job_id = r.job_id or exists (
    select 1 from workspace_resources r3 join workspace_agents a3 on a3.resource_id = r3.id
    where r3.job_id = last.job_id and a3.token_hash = a.token_hash) as is_kept
  from (${g}) g
  left join users u on u.id = g.user_id
  left join api_keys k on k.id = g.token_id and k.user_id = g.user_id
  left join workspace_agents a on a.id = g.agent_id
  left join workspace_resources r on r.id = a.resource_id
  left join workspace_builds b on b.job_id = r.job_id
  left join workspaces w on w.id = b.workspace_id
  left join lateral (${LAST_BUILD}) last on true`;

export async function heldRows(knex: Knex, grants: string, values: unknown[]): Promise<HeldRow[]> {
  return (await knex.raw<{ rows: HeldRow[] }>(heldSql(grants), values as never)).rows;
}

/**
 * Whether grants that were given are void by now, and whose fault it is: the credential's ends all the client does,
 * the agent's only what it has there. A workspace that is merely about to stop goes on until it has.
 */
export function judgeHeld(row: HeldRow, now: Date): "credential" | "agent" | undefined {
  if (credentialEnd(row, now)) return "credential";
  const isUp = row.workspace_id !== null && !row.workspace_deleted && row.last_transition === "start";
  return isUp && row.is_kept && isAllowed(row, "ssh") ? undefined : "agent";
}
