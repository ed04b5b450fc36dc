import { randomBytes, randomUUID } from "node:crypto";
import * as z from "zod";
import { MessageBody, Paging, Uuid } from "../contract/common.ts";
import { LogsQuery, ProvisionerJobLogs } from "../contract/jobs.ts";
import {
  CreateTemplateVersionRequest,
  PatchTemplateVersionRequest,
  Presets,
  TemplateVersion,
  TemplateVersionExternalAuths,
  TemplateVersionParameters,
  TemplateVersions,
  TemplateVersionVariables,
} from "../contract/templates.ts";
import { WorkspaceResources } from "../contract/workspaces.ts";
import { cancelJob, insertJob, jobLogs } from "../db/queries/jobs.ts";
import { resourcesOfJobs } from "../db/queries/resources.ts";
import {
  parametersOf,
  presetsOf,
  templateById,
  type VersionView,
  variablesOf,
  versionById,
  versionsQuery,
} from "../db/queries/templates.ts";
import type { TemplateVariableValue } from "../provisioner/protocol.ts";
import { must, mustBeAllowed } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, notFound } from "./errors.ts";
import { findOrganization } from "./organizations.ts";
import { type Route, userRoute } from "./route.ts";
import { jobLogView } from "./views/jobs.ts";
import { resourceView } from "./views/resources.ts";
import { parameterView, presetView, variableView, versionViews } from "./views/templates.ts";

const Id = z.object({ id: Uuid });

/** @throws {ApiError} 404 also when `user` may not read it */
export async function readableVersion(
  { knex }: Pick<ApiDeps, "knex">,
  user: UserIdentity,
  id: string,
): Promise<VersionView> {
  const version = await versionById(knex, id);
  if (!version) throw notFound("Template version");
  must(
    user,
    "read",
    { type: "template", organizationId: version.organization_id, id: version.template_id ?? undefined },
    "Template version",
  );
  return version;
}

const objectOf = (version: VersionView) => ({
  type: "template" as const,
  organizationId: version.organization_id,
  id: version.template_id ?? undefined,
});

/** Like `brave_otter3`, but ours: enough to tell two unnamed versions apart. */
const generatedName = (): string => `v-${randomBytes(5).toString("hex")}`;

export function templateVersionRoutes(deps: ApiDeps): Route[] {
  const { knex } = deps;
  return [
    userRoute({
      method: "post",
      path: "/organizations/:organization/templateversions",
      params: z.object({ organization: z.string() }),
      body: CreateTemplateVersionRequest,
      out: TemplateVersion,
      status: 201,
      async handle({ user, params, body, now }) {
        const organization = await findOrganization(deps, user, params.organization);
        const template = body.template_id ? await templateById(knex, body.template_id) : undefined;
        if (body.template_id && template?.organization_id !== organization.id) throw notFound("Template");
        mustBeAllowed(user, template ? "update" : "create", {
          type: "template",
          organizationId: organization.id,
          id: template?.id,
        });
        const file = await knex("files")
          .where({ id: body.file_id })
          .first<{ created_by: string }>("created_by");
        if (!file) throw notFound("File");
        must(user, "read", { type: "file", ownerId: file.created_by, id: body.file_id }, "File");

        const id = randomUUID();
        await knex.transaction(async (trx) => {
          const job_id = await insertJob(trx, {
            organizationId: organization.id,
            initiatorId: user.userId,
            type: "template_version_import",
            fileId: body.file_id,
            input: {
              user_variable_values: withValuesBefore(
                body.user_variable_values,
                template ? await variableValuesOf(template.active_version_id) : [],
              ),
            },
            tags: body.tags,
            now,
          });
          await trx("template_versions").insert({
            id,
            template_id: body.template_id ?? null,
            organization_id: organization.id,
            name: body.name ?? generatedName(),
            message: body.message ?? "",
            job_id,
            created_by: user.userId,
            created_at: now,
            updated_at: now,
          });
        });
        return oneView(id);
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id",
      params: Id,
      out: TemplateVersion,
      handle: async ({ user, params }) => oneView((await readableVersion(deps, user, params.id)).id),
    }),
    userRoute({
      method: "patch",
      path: "/templateversions/:id",
      params: Id,
      body: PatchTemplateVersionRequest,
      out: TemplateVersion,
      async handle({ user, params, body, now }) {
        const version = await readableVersion(deps, user, params.id);
        must(user, "update", objectOf(version));
        await knex("template_versions")
          .where({ id: version.id })
          .update({ ...body, updated_at: now });
        return oneView(version.id);
      },
    }),
    userRoute({
      method: "patch",
      path: "/templateversions/:id/cancel",
      params: Id,
      out: MessageBody,
      async handle({ user, params, now }) {
        const version = await readableVersion(deps, user, params.id);
        must(user, "update", objectOf(version));
        if (!(await cancelJob(knex, version.job_id, now)))
          throw new ApiError(412, "ERR_JOB_OVER", "The job has completed or is being canceled already.");
        return { message: "Job has been marked as canceled." };
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id/logs",
      params: Id,
      query: LogsQuery,
      out: ProvisionerJobLogs,
      async handle({ user, params, query }) {
        if (query.follow) throw wantsWebSocket();
        const version = await readableVersion(deps, user, params.id);
        return (await jobLogs(knex, version.job_id, query)).map(jobLogView);
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id/rich-parameters",
      params: Id,
      out: TemplateVersionParameters,
      async handle({ user, params }) {
        const version = await finished(await readableVersion(deps, user, params.id));
        return (await parametersOf(knex, version.id)).map(parameterView);
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id/variables",
      params: Id,
      out: TemplateVersionVariables,
      async handle({ user, params }) {
        const version = await finished(await readableVersion(deps, user, params.id));
        must(user, "update", objectOf(version));
        return (await variablesOf(knex, version.id)).map(variableView);
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id/presets",
      params: Id,
      out: Presets,
      async handle({ user, params }) {
        const version = await readableVersion(deps, user, params.id);
        return (await presetsOf(knex, version.id)).map(presetView);
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id/external-auth",
      params: Id,
      out: TemplateVersionExternalAuths,
      async handle({ user, params }) {
        const version = await readableVersion(deps, user, params.id);
        return version.external_auth.map(({ id, optional }) => ({
          id,
          type: id,
          display_name: id,
          display_icon: "",
          authenticate_url: `${deps.accessUrl()}/external-auth/${encodeURIComponent(id)}`,
          authenticated: false,
          optional,
        }));
      },
    }),
    userRoute({
      method: "get",
      path: "/templateversions/:id/resources",
      params: Id,
      out: WorkspaceResources,
      async handle({ user, params, now }) {
        const version = await finished(await readableVersion(deps, user, params.id));
        const resources = await resourcesOfJobs(knex, [version.job_id]);
        return (resources.get(version.job_id) ?? []).map((resource) => resourceView(resource, now));
      },
    }),
    // What a template asked for before parameters were data sources; old clients want the answer.
    ...["schema", "parameters"].map((name) =>
      userRoute({
        method: "get",
        path: `/templateversions/:id/${name}`,
        params: Id,
        out: z.array(z.unknown()),
        async handle({ user, params }) {
          await readableVersion(deps, user, params.id);
          return [];
        },
      }),
    ),
    userRoute({
      method: "get",
      path: "/templates/:id/versions",
      params: Id,
      query: Paging.extend({ include_archived: z.enum(["true", "false"]).optional() }),
      out: TemplateVersions,
      async handle({ user, params, query }) {
        const template = await templateById(knex, params.id);
        if (!template) throw notFound("Template");
        must(
          user,
          "read",
          { type: "template", organizationId: template.organization_id, id: template.id },
          "Template",
        );
        const versions = await versionsQuery(knex)
          .where("v.template_id", template.id)
          .modify((builder) => {
            if (query.include_archived !== "true") builder.andWhere("v.archived", false);
            if (query.limit) builder.limit(query.limit);
            if (query.offset) builder.offset(query.offset);
          });
        return versionViews(knex, versions);
      },
    }),
  ];

  async function oneView(id: string): Promise<TemplateVersion> {
    const version = await versionById(knex, id);
    return (await versionViews(knex, version ? [version] : []))[0];
  }

  async function variableValuesOf(versionId: string): Promise<TemplateVariableValue[]> {
    const job = await knex("template_versions as v")
      .join("provisioner_jobs as j", "j.id", "v.job_id")
      .where("v.id", versionId)
      .first<{ input: { user_variable_values?: TemplateVariableValue[] } }>("j.input");
    return job?.input.user_variable_values ?? [];
  }
}

/** A push that leaves a variable out keeps the value of the active version: secrets needn't be typed again. */
function withValuesBefore(
  given: TemplateVariableValue[],
  before: TemplateVariableValue[],
): TemplateVariableValue[] {
  const names = new Set(given.map(({ name }) => name));
  return [...given, ...before.filter(({ name }) => !names.has(name))];
}

/** What an import finds is known only at its end. */
async function finished(version: VersionView): Promise<VersionView> {
  if (version.job_status === "succeeded") return version;
  throw new ApiError(
    412,
    "ERR_VERSION_NOT_IMPORTED",
    version.job_status === "failed" || version.job_status === "canceled"
      ? "The import of this template version did not succeed. Read its log."
      : "The template version is still being imported. Wait until its job has completed.",
  );
}

export const wantsWebSocket = (): ApiError => badRequest("To follow a log, ask for a WebSocket upgrade.");
