import { randomUUID } from "node:crypto";
import * as z from "zod";
import {
  ApiKey,
  ApiKeyWithOwner,
  CreateTokenRequest,
  GenerateApiKeyResponse,
  TokenConfig,
} from "../contract/users.ts";
import { createApiKey } from "../db/queries/keys.ts";
import type { ApiKeyRow } from "../db/queries/rows.ts";
import { may, must } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { badRequest, notFound } from "./errors.ts";
import { type Route, userRoute } from "./route.ts";
import { resolveUser, type UserView } from "./users.ts";
import { time } from "./views/jobs.ts";

const UserParam = z.object({ user: z.string().max(64) });
const KeyParams = UserParam.extend({ key: z.string().max(64) });
const NS_PER_MS = 1e6;

function keyView(key: ApiKeyRow): ApiKey {
  return {
    id: key.id,
    user_id: key.user_id,
    last_used: time(key.last_used_at),
    expires_at: time(key.expires_at),
    created_at: time(key.created_at),
    updated_at: time(key.updated_at),
    login_type: key.login_type,
    scope: key.scope,
    scopes: [key.scope],
    token_name: key.token_name,
    lifetime_seconds: Number(key.lifetime_seconds),
  };
}

export function keyRoutes(deps: ApiDeps): Route[] {
  const { knex, maxTokenLifetimeMs } = deps;

  async function target(
    user: UserIdentity,
    text: string,
    action: "create" | "read" | "delete",
  ): Promise<UserView> {
    const found = await resolveUser(deps, user, text);
    must(user, action, { type: "api_key", ownerId: found.id }, "User");
    return found;
  }

  async function one(where: Partial<ApiKeyRow>): Promise<ApiKeyRow> {
    const key: ApiKeyRow | undefined = await knex("api_keys").where(where).first();
    if (!key) throw notFound("API key");
    return key;
  }

  return [
    userRoute({
      method: "post",
      path: "/users/:user/keys",
      params: UserParam,
      out: GenerateApiKeyResponse,
      status: 201,
      async handle({ user, params, now }) {
        const { id } = await target(user, params.user, "create");
        return { key: await createApiKey(knex, { userId: id, loginType: "password", now }) };
      },
    }),
    userRoute({
      method: "post",
      path: "/users/:user/keys/tokens",
      params: UserParam,
      body: CreateTokenRequest,
      out: GenerateApiKeyResponse,
      status: 201,
      async handle({ user, params, body, now }) {
        const { id } = await target(user, params.user, "create");
        const lifetimeMs = body.lifetime ? Math.floor(body.lifetime / NS_PER_MS) : undefined;
        if (lifetimeMs !== undefined && (lifetimeMs < 1000 || lifetimeMs > maxTokenLifetimeMs))
          throw badRequest("The lifetime of the token is not allowed here.", [
            { field: "lifetime", detail: `wants 1 s to ${maxTokenLifetimeMs / 3600_000} h, in nanoseconds` },
          ]);
        const { scope } = body;
        const tokenName = body.token_name ?? `token-${randomUUID().slice(0, 8)}`;
        return {
          key: await createApiKey(knex, {
            userId: id,
            loginType: "token",
            tokenName,
            scope,
            lifetimeMs,
            now,
          }),
        };
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user/keys/tokens",
      params: UserParam,
      query: z.object({ include_all: z.enum(["true", "false"]).optional() }),
      out: z.array(ApiKeyWithOwner),
      async handle({ user, params, query }) {
        const { id } = await target(user, params.user, "read");
        const rows: (ApiKeyRow & { username: string })[] = await knex("api_keys as k")
          .join("users as u", "u.id", "k.user_id")
          .whereNot("k.token_name", "")
          .modify((builder) => {
            if (query.include_all !== "true" || !may(user, "read", { type: "api_key" }))
              builder.andWhere("k.user_id", id);
          })
          .orderBy("k.created_at", "desc")
          .limit(1000)
          .select("k.*", "u.username");
        return rows.map((row) => ({ ...keyView(row), username: row.username }));
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user/keys/tokens/tokenconfig",
      params: UserParam,
      out: TokenConfig,
      handle: async () => ({ max_token_lifetime: maxTokenLifetimeMs * NS_PER_MS }),
    }),
    userRoute({
      method: "get",
      path: "/users/:user/keys/tokens/:key",
      params: KeyParams,
      out: ApiKey,
      async handle({ user, params }) {
        const { id } = await target(user, params.user, "read");
        return keyView(await one({ user_id: id, token_name: params.key }));
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user/keys/:key",
      params: KeyParams,
      out: ApiKey,
      async handle({ user, params }) {
        const { id } = await target(user, params.user, "read");
        return keyView(await one({ user_id: id, id: params.key }));
      },
    }),
    userRoute({
      method: "delete",
      path: "/users/:user/keys/:key",
      params: KeyParams,
      async handle({ user, params }) {
        const { id } = await target(user, params.user, "delete");
        await one({ user_id: id, id: params.key });
        await knex("api_keys").where({ user_id: id, id: params.key }).delete();
      },
    }),
  ];
}
