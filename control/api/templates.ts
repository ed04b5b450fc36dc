import { randomUUID } from "node:crypto";
import * as z from "zod";
import { MessageBody, Uuid } from "../contract/common.ts";
import {
  CreateTemplateRequest,
  Template,
  Templates,
  TemplatesQuery,
  TemplateVersion,
  UpdateActiveTemplateVersionRequest,
  UpdateTemplateRequest,
} from "../contract/templates.ts";
import {
  type TemplateView,
  templateById,
  templatesQuery,
  type VersionView,
  versionById,
  versionsQuery,
} from "../db/queries/templates.ts";
import { versionProblem } from "../templates/status.ts";
import { may, must, mustBeAllowed } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, notFound } from "./errors.ts";
import { findOrganization } from "./organizations.ts";
import { type Route, userRoute } from "./route.ts";
import { containsPattern, parseSearch } from "./search.ts";
import { templateView, versionViews } from "./views/templates.ts";

const Id = z.object({ id: Uuid });
const SEARCH_KEYS = ["name", "exact_name", "organization", "deprecated", "ids", "author"] as const;

const objectOf = (template: TemplateView) => ({
  type: "template" as const,
  organizationId: template.organization_id,
  id: template.id,
});

export function templateRoutes(deps: ApiDeps): Route[] {
  const { knex } = deps;

  async function readable(user: UserIdentity, id: string): Promise<TemplateView> {
    const template = await templateById(knex, id);
    if (!template) throw notFound("Template");
    must(user, "read", objectOf(template), "Template");
    return template;
  }

  async function byName(user: UserIdentity, organization: string, name: string): Promise<TemplateView> {
    const { id } = await findOrganization(deps, user, organization);
    const [template] = await templatesQuery(knex)
      .where("t.organization_id", id)
      .andWhereRaw("lower(t.name) = lower(?)", [name]);
    if (!template) throw notFound("Template");
    must(user, "read", objectOf(template), "Template");
    return template;
  }

  async function usable(version: VersionView | undefined): Promise<VersionView> {
    if (!version) throw notFound("Template version");
    const problem = versionProblem(version.job_status, version.archived);
    if (problem) throw new ApiError(412, "ERR_VERSION_NOT_USABLE", problem);
    return version;
  }

  async function list(user: UserIdentity, q: string, organizationId?: string): Promise<Template[]> {
    const { words, keys, problems } = parseSearch(q, SEARCH_KEYS);
    if (problems.length > 0) throw badRequest("Invalid template search query.", problems);
    const ids = keys.ids?.split(",") ?? [];
    if (!ids.every((id) => z.uuid().safeParse(id).success))
      throw badRequest("Invalid template search query.", [
        { field: "ids", detail: "wants UUIDs, comma-separated" },
      ]);
    const templates = await templatesQuery(knex).modify((query) => {
      if (organizationId) query.andWhere("t.organization_id", organizationId);
      if (keys.organization)
        query.andWhereRaw("(lower(o.name) = ? or o.id::text = ?)", [keys.organization, keys.organization]);
      if (keys.exact_name) query.andWhereRaw("lower(t.name) = ?", [keys.exact_name]);
      if (keys.name) query.andWhereILike("t.name", containsPattern(keys.name));
      if (keys.ids) query.whereIn("t.id", ids);
      if (keys.deprecated)
        query.andWhere("t.deprecation_message", keys.deprecated === "true" ? "<>" : "=", "");
      if (keys.author === "me") query.andWhere("t.created_by", user.userId);
      else if (keys.author) query.andWhereRaw("lower(u.username) = ?", [keys.author]);
      for (const word of words)
        query.andWhereRaw("(t.display_name ilike ? or t.name ilike ?)", [
          containsPattern(word),
          containsPattern(word),
        ]);
    });
    return templates
      .filter((template: TemplateView) => may(user, "read", objectOf(template)))
      .map(templateView);
  }

  return [
    userRoute({
      method: "get",
      path: "/templates",
      query: TemplatesQuery,
      out: Templates,
      handle: ({ user, query }) => list(user, query.q ?? ""),
    }),
    userRoute({
      method: "get",
      path: "/organizations/:organization/templates",
      params: z.object({ organization: z.string() }),
      query: TemplatesQuery,
      out: Templates,
      async handle({ user, params, query }) {
        const organization = await findOrganization(deps, user, params.organization);
        return list(user, query.q ?? "", organization.id);
      },
    }),
    userRoute({
      method: "post",
      path: "/organizations/:organization/templates",
      params: z.object({ organization: z.string() }),
      body: CreateTemplateRequest,
      out: Template,
      status: 201,
      async handle({ user, params, body, now }) {
        const organization = await findOrganization(deps, user, params.organization);
        mustBeAllowed(user, "create", { type: "template", organizationId: organization.id });
        const { template_version_id, ...fields } = body;
        const version = await usable(await versionById(knex, template_version_id));
        if (version.organization_id !== organization.id) throw notFound("Template version");
        if (version.template_id)
          throw new ApiError(409, "ERR_VERSION_IN_USE", "The version belongs to another template already.");
        const id = randomUUID();
        await knex.transaction(async (trx) => {
          await trx("templates").insert({
            ...fields,
            id,
            organization_id: organization.id,
            active_version_id: version.id,
            created_by: user.userId,
            created_at: now,
            updated_at: now,
          });
          const adopted = await trx("template_versions")
            .where({ id: version.id, template_id: null })
            .update({ template_id: id, updated_at: now });
          if (adopted === 0)
            throw new ApiError(409, "ERR_VERSION_IN_USE", "The version belongs to another template already.");
        });
        return templateView((await templateById(knex, id))!);
      },
    }),
    userRoute({
      method: "get",
      path: "/organizations/:organization/templates/:name",
      params: z.object({ organization: z.string(), name: z.string() }),
      out: Template,
      handle: async ({ user, params }) => templateView(await byName(user, params.organization, params.name)),
    }),
    userRoute({
      method: "get",
      path: "/organizations/:organization/templates/:name/versions/:version",
      params: z.object({ organization: z.string(), name: z.string(), version: z.string() }),
      out: TemplateVersion,
      async handle({ user, params }) {
        const template = await byName(user, params.organization, params.name);
        return versionNamed(template, params.version);
      },
    }),
    userRoute({
      method: "get",
      path: "/templates/:id",
      params: Id,
      out: Template,
      handle: async ({ user, params }) => templateView(await readable(user, params.id)),
    }),
    userRoute({
      method: "get",
      path: "/templates/:id/versions/:version",
      params: z.object({ id: Uuid, version: z.string() }),
      out: TemplateVersion,
      handle: async ({ user, params }) => versionNamed(await readable(user, params.id), params.version),
    }),
    userRoute({
      method: "patch",
      path: "/templates/:id",
      params: Id,
      body: UpdateTemplateRequest,
      out: Template,
      async handle({ user, params, body, now }) {
        const template = await readable(user, params.id);
        must(user, "update", objectOf(template));
        await knex("templates")
          .where({ id: template.id })
          .update({ ...body, updated_at: now });
        return templateView(await readable(user, template.id));
      },
    }),
    userRoute({
      method: "patch",
      path: "/templates/:id/versions",
      params: Id,
      body: UpdateActiveTemplateVersionRequest,
      out: MessageBody,
      async handle({ user, params, body, now }) {
        const template = await readable(user, params.id);
        must(user, "update", objectOf(template));
        const version = await usable(await versionById(knex, body.id));
        if (version.template_id !== template.id)
          throw badRequest("The version belongs to another template.", [
            { field: "id", detail: "is no version of this template" },
          ]);
        await knex("templates")
          .where({ id: template.id })
          .update({ active_version_id: version.id, updated_at: now });
        return { message: "Updated the active template version!" };
      },
    }),
    userRoute({
      method: "delete",
      path: "/templates/:id",
      params: Id,
      out: MessageBody,
      async handle({ user, params, now }) {
        const template = await readable(user, params.id);
        must(user, "delete", objectOf(template));
        await knex.transaction(async (trx) => {
          // Locks the row, which creating a workspace from it also does: none can appear behind our back.
          await trx("templates").where({ id: template.id }).forUpdate().first("id");
          const inUse = await trx("workspaces")
            .where({ template_id: template.id, deleted: false })
            .first("id");
          if (inUse)
            throw new ApiError(
              409,
              "ERR_TEMPLATE_IN_USE",
              "All workspaces must be deleted before a template can be removed.",
              { detail: "See them with `coder list --all --search template:NAME`." },
            );
          await trx("templates").where({ id: template.id }).update({ deleted: true, updated_at: now });
        });
        return { message: "Template has been deleted!" };
      },
    }),
  ];

  async function versionNamed(template: TemplateView, name: string): Promise<TemplateVersion> {
    const versions = await versionsQuery(knex)
      .where("v.template_id", template.id)
      .andWhereRaw("lower(v.name) = lower(?)", [name]);
    if (versions.length === 0) throw notFound("Template version");
    return (await versionViews(knex, versions))[0];
  }
}
