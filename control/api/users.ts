import { randomUUID } from "node:crypto";
import type { Knex } from "knex";
import * as z from "zod";
import { canAssignRole } from "../auth/authorize.ts";
import { checkPassword, hashPassword, verifyPassword } from "../auth/password.ts";
import { MessageBody } from "../contract/common.ts";
import {
  CreateUserRequest,
  LoginType,
  RoleRef,
  SITE_ROLES,
  type SiteRole,
  UpdateRolesRequest,
  UpdateUserPasswordRequest,
  UpdateUserProfileRequest,
  User,
  UserRoles,
  UserStatus,
  UsersQuery,
  UsersResponse,
} from "../contract/users.ts";
import type { UserRow } from "../db/queries/rows.ts";
import { announce } from "../db/queries/topics.ts";
import { may, must, mustBeAllowed } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, forbidden, notFound } from "./errors.ts";
import { type Route, userRoute } from "./route.ts";
import { containsPattern, parseSearch } from "./search.ts";
import { time } from "./views/jobs.ts";

const UserParam = z.object({ user: z.string().max(64) });
const SEARCH_KEYS = ["role", "status", "login_type", "name"] as const;
const DISPLAY_NAMES: Record<SiteRole, string> = {
  owner: "Owner",
  "user-admin": "User Admin",
  "template-admin": "Template Admin",
  auditor: "Auditor",
  member: "Member",
};

export type UserView = UserRow & { organization_ids: string[] };

export function usersQuery(knex: Knex): Knex.QueryBuilder<UserView, UserView[]> {
  return knex("users as u")
    .where("u.deleted", false)
    .select<UserView[]>("u.*")
    .select({
      organization_ids: knex.raw(
        "array(select m.organization_id::text from organization_members m where m.user_id = u.id order by m.created_at)",
      ),
    });
}

export function userView(user: UserView): User {
  return {
    id: user.id,
    username: user.username,
    name: user.name,
    email: user.email,
    avatar_url: user.avatar_url,
    status: user.status,
    login_type: user.login_type,
    organization_ids: user.organization_ids,
    roles: user.roles.map((name) => ({ name, display_name: DISPLAY_NAMES[name as SiteRole] ?? name })),
    created_at: time(user.created_at),
    updated_at: time(user.updated_at),
    last_seen_at: time(user.last_seen_at ?? user.created_at),
    is_service_account: user.is_service_account,
    theme_preference: "",
  };
}

/**
 * Whom a path means: an id, a name, or "me". Checks nothing: what hangs below the path does. `what` is what the
 * 404 then speaks of, so that it tells nobody whether the user or only the thing isn't there.
 *
 * @throws {ApiError} 404
 */
export async function resolveUser(
  { knex }: Pick<ApiDeps, "knex">,
  user: UserIdentity,
  text: string,
  what = "User",
): Promise<UserView> {
  const query = usersQuery(knex);
  if (text === "me") query.andWhere("u.id", user.userId);
  else if (z.uuid().safeParse(text).success) query.andWhere("u.id", text);
  else query.andWhereRaw("lower(u.username) = lower(?)", [text]);
  const [found] = await query;
  if (!found) throw notFound(what);
  return found;
}

const objectOf = (target: UserRow) => ({
  type: "user" as const,
  id: target.id,
  ownerId: target.id,
  roles: target.roles,
});

/** Inserts a person and their membership in the default organization. */
export async function insertUser(
  trx: Knex,
  user: {
    username: string;
    email: string;
    name: string;
    passwordHash: string | null;
    loginType: "password" | "none";
    roles: SiteRole[];
    now: Date;
  },
): Promise<{ id: string; organizationId: string }> {
  const id = randomUUID();
  const { now } = user;
  await trx("users").insert({
    id,
    username: user.username,
    email: user.email,
    name: user.name,
    password_hash: user.passwordHash,
    status: "active",
    login_type: user.loginType,
    roles: user.roles,
    created_at: now,
    updated_at: now,
  });
  const { id: organizationId } = await trx("organizations")
    .where({ is_default: true })
    .first<{ id: string }>("id");
  await trx("organization_members").insert({
    organization_id: organizationId,
    user_id: id,
    created_at: now,
    updated_at: now,
  });
  return { id, organizationId };
}

export function userRoutes(deps: ApiDeps): Route[] {
  const { knex } = deps;

  async function readable(user: UserIdentity, text: string): Promise<UserView> {
    const target = await resolveUser(deps, user, text);
    must(user, "read", objectOf(target), "User");
    return target;
  }

  const named = (roles: SiteRole[]): SiteRole[] => [...new Set(roles)].filter((role) => role !== "member");

  return [
    userRoute({
      method: "get",
      path: "/users",
      query: UsersQuery,
      out: UsersResponse,
      async handle({ user, query }) {
        const { words, keys, problems } = parseSearch(query.q ?? "", SEARCH_KEYS);
        if (keys.status && !UserStatus.safeParse(keys.status).success)
          problems.push({
            field: "status",
            detail: `"${keys.status}" is none of ${UserStatus.options.join(", ")}`,
          });
        if (keys.login_type && !LoginType.safeParse(keys.login_type).success)
          problems.push({ field: "login_type", detail: `"${keys.login_type}" is no login type` });
        if (problems.length > 0) throw badRequest("Invalid user search query.", problems);
        const rows = usersQuery(knex).modify((builder) => {
          if (!may(user, "read", { type: "user" })) builder.andWhere("u.id", user.userId);
          if (keys.status) builder.andWhere("u.status", keys.status);
          if (keys.login_type) builder.andWhere("u.login_type", keys.login_type);
          if (keys.role && keys.role !== "member") builder.andWhereRaw("? = any(u.roles)", [keys.role]);
          if (keys.name) builder.andWhereILike("u.name", containsPattern(keys.name));
          for (const word of words) {
            const pattern = containsPattern(word);
            builder.andWhereRaw("(u.username ilike ? or u.email ilike ? or u.name ilike ?)", [
              pattern,
              pattern,
              pattern,
            ]);
          }
        });
        const [{ count }] = await knex
          .from(rows.clone().as("matching"))
          .count<{ count: string }[]>({ count: "*" });
        const page = await rows
          .orderByRaw("lower(u.username), u.id")
          .limit(query.limit || 1000)
          .offset(query.offset ?? 0);
        return { users: page.map(userView), count: Number(count) };
      },
    }),
    userRoute({
      method: "post",
      path: "/users",
      body: CreateUserRequest,
      out: User,
      status: 201,
      async handle({ user, body, now }) {
        mustBeAllowed(user, "create", { type: "user" });
        const roles = named(body.roles ?? []);
        assertAssignable(user, roles);
        if (body.login_type === "password") checkPassword(body.password);
        const passwordHash = body.login_type === "password" ? await hashPassword(body.password) : null;
        const { id } = await knex.transaction((trx) =>
          insertUser(trx, { ...body, loginType: body.login_type, passwordHash, roles, now }),
        );
        return userView(await resolveUser(deps, user, id));
      },
    }),
    userRoute({
      method: "get",
      path: "/users/roles",
      out: z.array(RoleRef.extend({ assignable: z.boolean(), built_in: z.boolean() })),
      async handle({ user }) {
        return SITE_ROLES.filter((role) => role !== "member").map((name) => ({
          name,
          display_name: DISPLAY_NAMES[name],
          assignable: canAssignRole(user.subject, name),
          built_in: true,
        }));
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user",
      params: UserParam,
      out: User,
      handle: async ({ user, params }) => userView(await readable(user, params.user)),
    }),
    userRoute({
      method: "delete",
      path: "/users/:user",
      params: UserParam,
      out: MessageBody,
      async handle({ user, params, now }) {
        const target = await readable(user, params.user);
        if (target.id === user.userId)
          throw badRequest("You can't delete yourself. Let another owner do it.");
        must(user, "delete", objectOf(target));
        await knex.transaction(async (trx) => {
          const owns = await trx("workspaces").where({ owner_id: target.id, deleted: false }).first("id");
          if (owns)
            throw new ApiError(
              409,
              "ERR_USER_HAS_WORKSPACES",
              "The user still has workspaces. Delete them first.",
            );
          await trx("users").where({ id: target.id }).update({ deleted: true, updated_at: now });
          await trx("api_keys").where({ user_id: target.id }).delete();
          await announce(trx, "user", target.id);
        });
        return { message: "User has been deleted!" };
      },
    }),
    userRoute({
      method: "put",
      path: "/users/:user/profile",
      params: UserParam,
      body: UpdateUserProfileRequest,
      out: User,
      async handle({ user, params, body, now }) {
        const target = await readable(user, params.user);
        must(user, "update", objectOf(target));
        await knex("users")
          .where({ id: target.id })
          .update({ ...body, updated_at: now });
        return userView(await readable(user, target.id));
      },
    }),
    userRoute({
      method: "put",
      path: "/users/:user/password",
      params: UserParam,
      body: UpdateUserPasswordRequest,
      limit: "login",
      async handle({ user, params, body, now }) {
        const target = await readable(user, params.user);
        must(user, "update", objectOf(target));
        if (target.login_type !== "password")
          throw badRequest(`The user signs in with ${target.login_type}, not with a password.`);
        // A session left open on a shared machine must not be enough to take an account over.
        if (target.id === user.userId && !(await verifyPassword(body.old_password, target.password_hash)))
          throw badRequest("The old password is not right.", [
            { field: "old_password", detail: "is not the current password" },
          ]);
        checkPassword(body.password);
        const password_hash = await hashPassword(body.password);
        await knex.transaction(async (trx) => {
          await trx("users").where({ id: target.id }).update({ password_hash, updated_at: now });
          // Whoever knew the old one is out; the session that changed it stays.
          await trx("api_keys")
            .where({ user_id: target.id, token_name: "" })
            .whereNot({ id: user.keyId })
            .delete();
          await announce(trx, "user", target.id);
        });
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user/roles",
      params: UserParam,
      out: UserRoles,
      async handle({ user, params }) {
        const target = await readable(user, params.user);
        return {
          roles: target.roles,
          organization_roles: Object.fromEntries(target.organization_ids.map((id) => [id, []])),
        };
      },
    }),
    userRoute({
      method: "put",
      path: "/users/:user/roles",
      params: UserParam,
      body: UpdateRolesRequest,
      out: User,
      async handle({ user, params, body, now }) {
        const target = await readable(user, params.user);
        if (target.id === user.userId) throw badRequest("You can't change your own roles.");
        must(user, "update", objectOf(target));
        const roles = named(body.roles);
        const before = target.roles as SiteRole[];
        assertAssignable(user, [
          ...roles.filter((role) => !before.includes(role)),
          ...before.filter((role) => !roles.includes(role)),
        ]);
        await knex.transaction(async (trx) => {
          await trx("users").where({ id: target.id }).update({ roles, updated_at: now });
          await announce(trx, "user", target.id);
        });
        return userView(await readable(user, target.id));
      },
    }),
    ...(["suspend", "activate"] as const).map((verb) =>
      userRoute({
        method: "put",
        path: `/users/:user/status/${verb}`,
        params: UserParam,
        out: User,
        async handle({ user, params, now }) {
          const target = await readable(user, params.user);
          if (target.id === user.userId) throw badRequest("You can't change your own status.");
          must(user, "update", objectOf(target));
          await knex.transaction(async (trx) => {
            const status = verb === "suspend" ? "suspended" : "active";
            await trx("users").where({ id: target.id }).update({ status, updated_at: now });
            await announce(trx, "user", target.id);
          });
          return userView(await readable(user, target.id));
        },
      }),
    ),
    userRoute({
      method: "get",
      path: "/users/:user/login-type",
      params: UserParam,
      out: z.object({ login_type: LoginType }),
      handle: async ({ user, params }) => ({ login_type: (await readable(user, params.user)).login_type }),
    }),
  ];
}

function assertAssignable(user: UserIdentity, roles: SiteRole[]): void {
  const refused = roles.filter((role) => !canAssignRole(user.subject, role));
  if (refused.length > 0) throw forbidden(`You may not give or take the role ${refused.join(", ")}.`);
}
