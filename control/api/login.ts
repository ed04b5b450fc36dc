import type { Context } from "koa";
import { checkPassword, hashPassword, needsRehash, verifyPassword } from "../auth/password.ts";
import { SESSION_LIFETIME_MS } from "../auth/token.ts";
import { MessageBody, SESSION_TOKEN_COOKIE } from "../contract/common.ts";
import {
  AuthMethods,
  CreateFirstUserRequest,
  CreateFirstUserResponse,
  LoginRequest,
  LoginResponse,
  ValidatePasswordRequest,
  ValidatePasswordResponse,
} from "../contract/users.ts";
import { createApiKey } from "../db/queries/keys.ts";
import type { UserRow } from "../db/queries/rows.ts";
import { suspended } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError } from "./errors.ts";
import { publicRoute, type Route, userRoute } from "./route.ts";
import { insertUser } from "./users.ts";

/** Any constant of ours: two first users at the same moment are one and a 409. */
const FIRST_USER_LOCK = 0x66697273;

export function loginRoutes({ knex, accessUrl }: ApiDeps): Route[] {
  const hasUsers = async (): Promise<boolean> =>
    (await knex("users").where({ deleted: false }).first("id")) !== undefined;

  return [
    publicRoute({
      method: "get",
      path: "/users/first",
      out: MessageBody,
      async handle() {
        if (!(await hasUsers()))
          throw new ApiError(404, "ERR_NO_USERS", "The initial user has not been created!");
        return { message: "The initial user has already been created!" };
      },
    }),
    publicRoute({
      method: "post",
      path: "/users/first",
      body: CreateFirstUserRequest,
      out: CreateFirstUserResponse,
      status: 201,
      limit: "login",
      async handle({ body, now }) {
        const taken = () =>
          new ApiError(409, "ERR_FIRST_USER_EXISTS", "The initial user has already been created.", {
            detail: "Sign in with `coder login`.",
          });
        if (await hasUsers()) throw taken();
        checkPassword(body.password);
        const passwordHash = await hashPassword(body.password);
        const created = await knex.transaction(async (trx) => {
          await trx.raw("select pg_advisory_xact_lock(?)", [FIRST_USER_LOCK]);
          if (await trx("users").where({ deleted: false }).first("id")) throw taken();
          return insertUser(trx, { ...body, loginType: "password", passwordHash, roles: ["owner"], now });
        });
        return { user_id: created.id, organization_id: created.organizationId };
      },
    }),
    publicRoute({
      method: "get",
      path: "/users/authmethods",
      out: AuthMethods,
      handle: async () => ({
        password: { enabled: true },
        github: { enabled: false, default_provider_configured: false },
        oidc: { enabled: false, signInText: "", iconUrl: "" },
      }),
    }),
    publicRoute({
      method: "post",
      path: "/users/validate-password",
      body: ValidatePasswordRequest,
      out: ValidatePasswordResponse,
      async handle({ body }) {
        try {
          checkPassword(body.password);
          return { valid: true, details: "" };
        } catch (error) {
          return { valid: false, details: (error as Error).message };
        }
      },
    }),
    publicRoute({
      method: "post",
      path: "/users/login",
      body: LoginRequest,
      out: LoginResponse,
      status: 201,
      limit: "login",
      async handle({ ctx, body, now }) {
        const user: UserRow | undefined = await knex("users")
          .where({ deleted: false })
          .andWhereRaw("lower(email) = lower(?)", [body.email])
          .first();
        // The same work and the same answer whether the user, or only the password, is wrong.
        const matches = await verifyPassword(body.password, user?.password_hash);
        if (!user || !matches || user.login_type !== "password")
          throw new ApiError(401, "ERR_LOGIN", "Incorrect email or password.", {
            detail: "If you have forgotten your password, ask an administrator to set a new one.",
          });
        if (user.status === "suspended") throw suspended();
        if (needsRehash(user.password_hash!))
          await knex("users")
            .where({ id: user.id })
            .update({ password_hash: await hashPassword(body.password) });
        await knex("users").where({ id: user.id }).update({ status: "active", last_seen_at: now });
        const token = await createApiKey(knex, { userId: user.id, loginType: "password", now });
        setCookie(ctx, token, accessUrl());
        return { session_token: token };
      },
    }),
    userRoute({
      method: "post",
      path: "/users/logout",
      out: MessageBody,
      async handle({ ctx, user }) {
        await knex("api_keys").where({ id: user.keyId }).delete();
        setCookie(ctx, "", accessUrl());
        return { message: "Logged out!" };
      },
    }),
  ];
}

/** An empty token removes it. */
function setCookie(ctx: Context, token: string, accessUrl: string): void {
  const parts = [`${SESSION_TOKEN_COOKIE}=${token}`, "Path=/", "HttpOnly", "SameSite=Lax"];
  parts.push(`Max-Age=${token ? SESSION_LIFETIME_MS / 1000 : 0}`);
  if (accessUrl.startsWith("https:")) parts.push("Secure");
  ctx.append("Set-Cookie", parts.join("; "));
}
