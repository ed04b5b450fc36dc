// Who is asking: a user by an API key, or a workspace agent by its token. Both travel in the same header; the
// route says which of them it wants. A cookie or a query parameter is taken too, for browsers and old clients.
import type { IncomingMessage } from "node:http";
import type { Knex } from "knex";
import type { Subject } from "../auth/authorize.ts";
import { isExpired, parseKey, secretMatches, slideSession } from "../auth/token.ts";
import { SESSION_TOKEN_COOKIE, SESSION_TOKEN_HEADER, SESSION_TOKEN_QUERY } from "../contract/common.ts";
import { agentForToken } from "../db/queries/agents.ts";
import type { ApiKeyRow, UserRow } from "../db/queries/rows.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError } from "./errors.ts";

export interface UserIdentity {
  kind: "user";
  userId: string;
  username: string;
  /** Of the key in use; logout deletes it. */
  keyId: string;
  subject: Subject;
}

export interface AgentIdentity {
  kind: "agent";
  agentId: string;
  agentName: string;
  workspaceId: string;
  ownerId: string;
}

export type Identity = UserIdentity | AgentIdentity;

/** The token a request carries; `fromCookie`: a browser may have added it without anybody wanting to. */
export function tokenOf(req: IncomingMessage): { token: string; fromCookie: boolean } | undefined {
  const header = req.headers[SESSION_TOKEN_HEADER.toLowerCase()];
  if (typeof header === "string" && header) return { token: header, fromCookie: false };
  const bearer = /^Bearer (\S+)$/i.exec(req.headers.authorization ?? "");
  if (bearer) return { token: bearer[1], fromCookie: false };
  // Not by way of URL: what stands in front of the query may be no URL at all.
  const query = new URLSearchParams(/\?([^#]*)/.exec(req.url ?? "")?.[1]).get(SESSION_TOKEN_QUERY);
  if (query) return { token: query, fromCookie: false };
  for (const part of (req.headers.cookie ?? "").split(";")) {
    const [name, value] = part.split("=", 2);
    if (name.trim() === SESSION_TOKEN_COOKIE && value) return { token: value.trim(), fromCookie: true };
  }
  return undefined;
}

/** A page of another site can make a browser send our cookie along, but not without saying where it is from. */
function isCrossSite(req: IncomingMessage): boolean {
  const unsafe = !["GET", "HEAD"].includes(req.method ?? "") || req.headers.upgrade !== undefined;
  const { origin } = req.headers;
  if (!unsafe || origin === undefined) return false;
  try {
    return new URL(origin).host !== req.headers.host;
  } catch {
    return true;
  }
}

/**
 * @returns undefined when no valid key came along
 * @throws {ApiError} ERR_USER_SUSPENDED, ERR_CROSS_SITE
 */
export async function authenticateUser(
  { knex }: Pick<ApiDeps, "knex">,
  req: IncomingMessage,
  now: Date,
): Promise<UserIdentity | undefined> {
  const found = tokenOf(req);
  const parsed = found && parseKey(found.token);
  if (!parsed) return undefined;
  if (found.fromCookie && isCrossSite(req))
    throw new ApiError(403, "ERR_CROSS_SITE", "The request comes from a page of another site.");
  const key: ApiKeyRow | undefined = await knex("api_keys").where({ id: parsed.id }).first();
  if (!key || !secretMatches(parsed.secret, key.secret_hash)) return undefined;
  if (isExpired({ expiresAt: key.expires_at.getTime() }, now.getTime())) return undefined;
  const user: UserRow | undefined = await knex("users").where({ id: key.user_id, deleted: false }).first();
  if (!user) return undefined;
  if (user.status === "suspended") throw suspended();
  await markUsed(knex, key, user, now);
  return {
    kind: "user",
    userId: user.id,
    username: user.username,
    keyId: key.id,
    subject: { userId: user.id, roles: user.roles, scope: key.scope },
  };
}

export const suspended = (): ApiError =>
  new ApiError(401, "ERR_USER_SUSPENDED", "Your account is suspended. Ask an administrator to activate it.");

/** "Last used" is exact to a minute, so that requests seldom write. */
const USED_EVERY_MS = 60_000;

/** Notes that a key was used, and moves a session's end on; writes seldom. */
export async function markUsed(
  knex: Knex,
  key: Pick<ApiKeyRow, "id" | "token_name" | "expires_at" | "lifetime_seconds" | "last_used_at">,
  user: Pick<UserRow, "id">,
  now: Date,
): Promise<void> {
  const times = { expiresAt: key.expires_at.getTime(), lifetimeMs: Number(key.lifetime_seconds) * 1000 };
  const slid = key.token_name === "" ? slideSession(times, now.getTime()) : undefined;
  if (slid === undefined && now.getTime() - key.last_used_at.getTime() < USED_EVERY_MS) return;
  await knex("api_keys")
    .where({ id: key.id })
    .update({ last_used_at: now, ...(slid === undefined ? {} : { expires_at: new Date(slid) }) });
  await knex("users").where({ id: user.id }).update({ last_seen_at: now });
}

/** @returns undefined unless the token of a living agent came along */
export async function authenticateAgent(
  { knex }: Pick<ApiDeps, "knex">,
  req: IncomingMessage,
): Promise<AgentIdentity | undefined> {
  const found = tokenOf(req);
  if (!found || found.fromCookie) return undefined;
  const agent = await agentForToken(knex, found.token);
  return (
    agent && {
      kind: "agent",
      agentId: agent.agent_id,
      agentName: agent.agent_name,
      workspaceId: agent.workspace_id,
      ownerId: agent.owner_id,
    }
  );
}

/** For WebSocket upgrades, where either may knock: a key has another form than an agent's token. */
export async function authenticateAny(
  deps: Pick<ApiDeps, "knex">,
  req: IncomingMessage,
  now: Date,
): Promise<Identity | undefined> {
  return (await authenticateUser(deps, req, now)) ?? (await authenticateAgent(deps, req));
}
