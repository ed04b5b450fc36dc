import type { Knex } from "knex";
import { type KeyScope, newKey, SESSION_LIFETIME_MS, TOKEN_LIFETIME_MS } from "../../auth/token.ts";
import type { LoginType } from "../../contract/users.ts";

export interface CreateApiKey {
  userId: string;
  loginType: LoginType;
  /** '' for a session. */
  tokenName?: string;
  scope?: KeyScope;
  /** Default: 24 h, slid along by use, for a session; 168 h for a token. */
  lifetimeMs?: number;
  now: Date;
}

/** @returns the token, which is nowhere else from now on */
export async function createApiKey(knex: Knex, key: CreateApiKey): Promise<string> {
  const { id, token, hashedSecret } = newKey();
  const { tokenName = "", now } = key;
  const lifetimeMs = key.lifetimeMs ?? (tokenName ? TOKEN_LIFETIME_MS : SESSION_LIFETIME_MS);
  await knex("api_keys").insert({
    id,
    secret_hash: hashedSecret,
    user_id: key.userId,
    login_type: key.loginType,
    scope: key.scope ?? "all",
    token_name: tokenName,
    lifetime_seconds: Math.ceil(lifetimeMs / 1000),
    last_used_at: now,
    expires_at: new Date(now.getTime() + lifetimeMs),
    created_at: now,
    updated_at: now,
  });
  return token;
}

export async function deleteNamedKey(knex: Knex, userId: string, tokenName: string): Promise<void> {
  await knex("api_keys").where({ user_id: userId, token_name: tokenName }).delete();
}

/** A hundred years, Coder's limit. */
export const MAX_KEY_LIFETIME_MS = 876_600 * 3600_000;

interface WorkspaceOfOwner {
  workspaceId: string;
  ownerId: string;
}
const workspaceKeyName = (workspaceId: string): string => `workspace_${workspaceId}`;

/** The owner's key for what runs in the workspace: no end of its own, it goes when the workspace stops. */
export function createWorkspaceKey(
  knex: Knex,
  { workspaceId, ownerId }: WorkspaceOfOwner,
  now: Date,
): Promise<string> {
  return createApiKey(knex, {
    userId: ownerId,
    loginType: "token",
    tokenName: workspaceKeyName(workspaceId),
    lifetimeMs: MAX_KEY_LIFETIME_MS,
    now,
  });
}

export function deleteWorkspaceKey(knex: Knex, { workspaceId, ownerId }: WorkspaceOfOwner): Promise<void> {
  return deleteNamedKey(knex, ownerId, workspaceKeyName(workspaceId));
}

/** Expired ones kept for a while, so that a client hears "expired" and not "unknown" in our logs. */
export const EXPIRED_KEY_KEPT_MS = 7 * 24 * 3600_000;

export async function deleteExpiredKeys(knex: Knex, now: Date): Promise<number> {
  return knex("api_keys")
    .where("expires_at", "<", new Date(now.getTime() - EXPIRED_KEY_KEPT_MS))
    .delete();
}
