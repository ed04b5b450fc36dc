import * as z from "zod";
import { Organization } from "../contract/users.ts";
import type { OrganizationRow } from "../db/queries/rows.ts";
import { may, must } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { notFound } from "./errors.ts";
import { type Route, userRoute } from "./route.ts";
import { resolveUser } from "./users.ts";
import { time } from "./views/jobs.ts";

const isUuid = (text: string): boolean => z.uuid().safeParse(text).success;

export function organizationView(row: OrganizationRow): Organization {
  return {
    id: row.id,
    name: row.name,
    display_name: row.display_name,
    description: row.description,
    icon: row.icon,
    created_at: time(row.created_at),
    updated_at: time(row.updated_at),
    is_default: row.is_default,
  };
}

/** By id, name, or the word "default". @throws {ApiError} 404 */
export async function findOrganization(
  { knex }: Pick<ApiDeps, "knex">,
  user: UserIdentity,
  text: string,
): Promise<OrganizationRow> {
  const row: OrganizationRow | undefined = await knex("organizations")
    .where({ deleted: false })
    .modify((query) => {
      if (text === "default") query.andWhere({ is_default: true });
      else if (isUuid(text)) query.andWhere({ id: text });
      else query.andWhereRaw("lower(name) = lower(?)", [text]);
    })
    .first();
  if (!row || !may(user, "read", { type: "organization", organizationId: row.id, id: row.id }))
    throw notFound("Organization");
  return row;
}

export function organizationRoutes(deps: ApiDeps): Route[] {
  const { knex } = deps;
  const ofUser = (userId: string): Promise<OrganizationRow[]> =>
    knex("organizations as o")
      .join("organization_members as m", "m.organization_id", "o.id")
      .where({ "m.user_id": userId, "o.deleted": false })
      .orderByRaw("o.is_default desc, lower(o.name)")
      .select("o.*");
  return [
    userRoute({
      method: "get",
      path: "/organizations",
      out: z.array(Organization),
      async handle({ user }) {
        const rows: OrganizationRow[] = await knex("organizations").where({ deleted: false }).orderBy("name");
        return rows
          .filter((row) => may(user, "read", { type: "organization", organizationId: row.id, id: row.id }))
          .map(organizationView);
      },
    }),
    userRoute({
      method: "get",
      path: "/organizations/:organization",
      params: z.object({ organization: z.string() }),
      out: Organization,
      handle: async ({ user, params }) =>
        organizationView(await findOrganization(deps, user, params.organization)),
    }),
    userRoute({
      method: "get",
      path: "/users/:user/organizations",
      params: z.object({ user: z.string() }),
      out: z.array(Organization),
      async handle({ user, params }) {
        const target = await resolveUser(deps, user, params.user);
        must(user, "read", { type: "organization_member", ownerId: target.id }, "User");
        return (await ofUser(target.id)).map(organizationView);
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user/organizations/:organization",
      params: z.object({ user: z.string(), organization: z.string() }),
      out: Organization,
      async handle({ user, params }) {
        const target = await resolveUser(deps, user, params.user);
        must(user, "read", { type: "organization_member", ownerId: target.id }, "User");
        const organization = await findOrganization(deps, user, params.organization);
        if (!(await ofUser(target.id)).some(({ id }) => id === organization.id))
          throw notFound("Organization");
        return organizationView(organization);
      },
    }),
  ];
}
