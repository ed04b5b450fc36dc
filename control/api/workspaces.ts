import { randomUUID } from "node:crypto";
import type { Knex } from "knex";
import * as z from "zod";
import { Uuid } from "../contract/common.ts";
import {
  BuildStatus,
  CreateWorkspaceRequest,
  IncludeDeletedQuery,
  UpdateWorkspaceRequest,
  Workspace,
  WorkspacesQuery,
  WorkspacesResponse,
} from "../contract/workspaces.ts";
import { templateById, versionById } from "../db/queries/templates.ts";
import { announce } from "../db/queries/topics.ts";
import { type WorkspaceView, workspaceById, workspacesQuery } from "../db/queries/workspaces.ts";
import { createBuild } from "../templates/create-build.ts";
import { AGENT_INACTIVE_MS, buildsThatAre } from "../templates/status.ts";
import { may, must, mustBeAllowed } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { badRequest, notFound } from "./errors.ts";
import { type Route, userRoute } from "./route.ts";
import { containsPattern, parseSearch, type Search } from "./search.ts";
import { resolveUser } from "./users.ts";
import { workspaceViews } from "./views/workspaces.ts";

const Id = z.object({ id: Uuid });
const SEARCH_KEYS = [
  "owner",
  "name",
  "template",
  "id",
  "status",
  "outdated",
  "organization",
  "has-agent",
] as const;
type SearchKey = (typeof SEARCH_KEYS)[number];
const DEFAULT_PAGE = 1000;

export const workspaceObject = (workspace: Pick<WorkspaceView, "id" | "owner_id" | "organization_id">) => ({
  type: "workspace" as const,
  ownerId: workspace.owner_id,
  organizationId: workspace.organization_id,
  id: workspace.id,
});

/** @throws {ApiError} 404 also when `user` may not read it */
export async function readableWorkspace(
  { knex }: Pick<ApiDeps, "knex">,
  user: UserIdentity,
  id: string,
): Promise<WorkspaceView> {
  const workspace = await workspaceById(knex, id);
  if (!workspace) throw notFound("Workspace");
  must(user, "read", workspaceObject(workspace), "Workspace");
  return workspace;
}

export function workspaceRoutes(deps: ApiDeps): Route[] {
  const { knex } = deps;

  return [
    userRoute({
      method: "get",
      path: "/workspaces",
      query: WorkspacesQuery,
      out: WorkspacesResponse,
      async handle({ user, query, now }) {
        const search = parseSearch(query.q ?? "", SEARCH_KEYS);
        const filter = workspaceFilter(search, user, now);
        if (search.problems.length > 0) throw badRequest("Invalid workspace search query.", search.problems);
        const rows = workspacesQuery(knex)
          .where("w.deleted", false)
          .modify(filter)
          // The commonest case by far sees only its own; what else a role opens is decided row by row.
          .modify((builder) => {
            if (!may(user, "read", { type: "workspace" })) builder.andWhere("w.owner_id", user.userId);
          });
        const [{ count }] = await knex
          .from(rows.clone().as("matching"))
          .count<{ count: string }[]>({ count: "*" });
        const page = await rows
          .orderByRaw("(w.owner_id = ?) desc, lower(u.username), lower(w.name), w.id", [user.userId])
          .limit(query.limit || DEFAULT_PAGE)
          .offset(query.offset ?? 0);
        return { workspaces: await workspaceViews(knex, page, now), count: Number(count) };
      },
    }),
    userRoute({
      method: "post",
      path: "/users/:user/workspaces",
      params: z.object({ user: z.string() }),
      body: CreateWorkspaceRequest,
      out: Workspace,
      status: 201,
      handle: ({ user, params, body, now }) => create(user, params.user, body, now),
    }),
    userRoute({
      method: "post",
      path: "/organizations/:organization/members/:user/workspaces",
      params: z.object({ organization: z.string(), user: z.string() }),
      body: CreateWorkspaceRequest,
      out: Workspace,
      status: 201,
      handle: ({ user, params, body, now }) => create(user, params.user, body, now),
    }),
    userRoute({
      method: "get",
      path: "/users/:user/workspace/:name",
      params: z.object({ user: z.string(), name: z.string() }),
      query: IncludeDeletedQuery,
      out: Workspace,
      async handle({ user, params, query, now }) {
        const owner = await resolveUser(deps, user, params.user, "Workspace");
        const [workspace] = await workspacesQuery(knex)
          .where("w.owner_id", owner.id)
          .andWhereRaw("lower(w.name) = lower(?)", [params.name])
          .modify((builder) => {
            if (!query.include_deleted) builder.andWhere("w.deleted", false);
          })
          .orderByRaw("w.deleted, w.created_at desc")
          .limit(1);
        if (!workspace) throw notFound("Workspace");
        must(user, "read", workspaceObject(workspace), "Workspace");
        return (await workspaceViews(knex, [workspace], now))[0];
      },
    }),
    userRoute({
      method: "get",
      path: "/workspaces/:id",
      params: Id,
      query: IncludeDeletedQuery,
      out: Workspace,
      async handle({ user, params, now }) {
        return (await workspaceViews(knex, [await readableWorkspace(deps, user, params.id)], now))[0];
      },
    }),
    userRoute({
      method: "patch",
      path: "/workspaces/:id",
      params: Id,
      body: UpdateWorkspaceRequest,
      async handle({ user, params, body, now }) {
        const workspace = await readableWorkspace(deps, user, params.id);
        must(user, "update", workspaceObject(workspace));
        if (!body.name || body.name === workspace.name) return;
        await knex.transaction(async (trx) => {
          await trx("workspaces").where({ id: workspace.id }).update({ name: body.name, updated_at: now });
          await announce(trx, "workspace", workspace.id);
        });
      },
    }),
  ];

  async function create(
    user: UserIdentity,
    ownerText: string,
    body: z.output<typeof CreateWorkspaceRequest>,
    now: Date,
  ): Promise<Workspace> {
    const owner = await resolveUser(deps, user, ownerText);
    const version = body.template_version_id ? await versionById(knex, body.template_version_id) : undefined;
    const templateId = body.template_id ?? version?.template_id;
    const template = templateId ? await templateById(knex, templateId) : undefined;
    if (!template || (body.template_version_id && !version)) throw notFound("Template");
    const organizationId = template.organization_id;
    must(user, "read", { type: "template", organizationId, id: template.id }, "Template");
    mustBeAllowed(user, "use", { type: "template", organizationId, id: template.id });
    must(user, "create", { type: "workspace", ownerId: owner.id, organizationId }, "User");
    if (template.deprecation_message)
      throw badRequest(`The template is deprecated: ${template.deprecation_message}`, [
        { field: "template_id", detail: "is deprecated" },
      ]);

    const id = randomUUID();
    await knex.transaction(async (trx) => {
      // Deleting a template takes this lock exclusively.
      const alive = await trx("templates").where({ id: template.id, deleted: false }).forShare().first("id");
      if (!alive) throw notFound("Template");
      await trx("workspaces").insert({
        id,
        owner_id: owner.id,
        organization_id: organizationId,
        template_id: template.id,
        name: body.name,
        // Set by createBuild below; the constraint is looked at when the transaction commits.
        latest_build_id: id,
        autostart_schedule: body.autostart_schedule || null,
        ttl_ms: body.ttl_ms ?? (Number(template.default_ttl_ms) || null),
        automatic_updates: body.automatic_updates,
        last_used_at: now,
        created_at: now,
        updated_at: now,
      });
      await createBuild(trx, {
        workspace: { id, organization_id: organizationId },
        versionId: version?.id ?? template.active_version_id,
        transition: "start",
        initiatorId: user.userId,
        reason: "initiator",
        parameters: body.rich_parameter_values,
        presetId: body.template_version_preset_id ?? undefined,
        now,
      });
    });
    return (await workspaceViews(knex, [(await workspaceById(knex, id))!], now))[0];
  }
}

/** Adds what is wrong with the values to `search.problems`. */
function workspaceFilter(
  { words, keys, problems }: Search<SearchKey>,
  user: UserIdentity,
  now: Date,
): (query: Knex.QueryBuilder) => void {
  const conditions: ((query: Knex.QueryBuilder) => void)[] = [];
  const where = (sql: string, ...values: (string | Date)[]) =>
    conditions.push((query) => void query.andWhereRaw(sql, values));
  const is = (key: SearchKey, sql: Record<string, string>, ...values: (string | Date)[]) => {
    const value = keys[key];
    if (value === undefined) return;
    if (sql[value] === undefined)
      problems.push({ field: key, detail: `"${value}" is none of ${Object.keys(sql).join(", ")}` });
    else where(sql[value], ...values.slice(0, sql[value].split("?").length - 1));
  };

  const owner = (name: string) =>
    name === "me" ? where("w.owner_id = ?", user.userId) : where("lower(u.username) = ?", name);
  for (const word of words) {
    const [first, second, ...rest] = word.split("/");
    if (rest.length > 0) problems.push({ field: "q", detail: `"${word}" is neither a name nor owner/name` });
    else if (second === undefined) where("w.name ilike ?", containsPattern(first));
    else {
      owner(first);
      where("w.name ilike ?", containsPattern(second));
    }
  }
  if (keys.owner !== undefined) owner(keys.owner);
  if (keys.name !== undefined) where("w.name ilike ?", containsPattern(keys.name));
  if (keys.template !== undefined) where("lower(t.name) = ?", keys.template);
  if (keys.organization !== undefined)
    where("(lower(o.name) = ? or o.id::text = ?)", keys.organization, keys.organization);
  if (keys.id !== undefined) where("w.id::text = ?", keys.id);
  if (keys.status !== undefined) {
    const status = BuildStatus.safeParse(keys.status);
    if (!status.success)
      problems.push({
        field: "status",
        detail: `"${keys.status}" is none of ${BuildStatus.options.join(", ")}`,
      });
    else
      conditions.push((query) => {
        query.whereIn(
          ["b.transition", "j.status"],
          buildsThatAre(status.data).map(({ transition, job }) => [transition, job]),
        );
      });
  }
  is("outdated", {
    true: "b.template_version_id <> t.active_version_id",
    false: "b.template_version_id = t.active_version_id",
  });
  const agents = (condition: string) =>
    `exists (select 1 from workspace_agents a join workspace_resources r on r.id = a.resource_id
      where r.job_id = b.job_id and ${condition})`;
  const silent = new Date(now.getTime() - AGENT_INACTIVE_MS);
  const gone = "(a.disconnected_at > a.last_connected_at or a.last_connected_at < ?)";
  const late =
    "a.connection_timeout_seconds > 0 and a.created_at < ?::timestamptz - a.connection_timeout_seconds * interval '1 second'";
  const state = keys["has-agent"];
  if (state === "connected" || state === "disconnected")
    is(
      "has-agent",
      {
        connected: agents(`a.first_connected_at is not null and not ${gone}`),
        disconnected: agents(`a.first_connected_at is not null and ${gone}`),
      },
      silent,
    );
  else
    is(
      "has-agent",
      {
        connecting: agents(`a.first_connected_at is null and not (${late})`),
        timeout: agents(`a.first_connected_at is null and ${late}`),
      },
      now,
    );
  return (query) => {
    for (const condition of conditions) condition(query);
  };
}
