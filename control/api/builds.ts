import * as z from "zod";
import { MessageBody, Paging, Uuid } from "../contract/common.ts";
import { LogsQuery, ProvisionerJobLogs } from "../contract/jobs.ts";
import {
  BuildParameters,
  CreateWorkspaceBuildRequest,
  WorkspaceBuild,
  WorkspaceBuilds,
  WorkspaceResources,
} from "../contract/workspaces.ts";
import { cancelJob, jobLogs } from "../db/queries/jobs.ts";
import { resourcesOfJobs } from "../db/queries/resources.ts";
import { versionById } from "../db/queries/templates.ts";
import {
  type BuildView,
  buildById,
  buildsQuery,
  type WorkspaceView,
  workspacesQuery,
} from "../db/queries/workspaces.ts";
import { createBuild } from "../templates/create-build.ts";
import { may, must } from "./access.ts";
import type { UserIdentity } from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, forbidden, notFound } from "./errors.ts";
import { type Route, userRoute } from "./route.ts";
import { wantsWebSocket } from "./template-versions.ts";
import { resolveUser } from "./users.ts";
import { jobLogView } from "./views/jobs.ts";
import { resourceView } from "./views/resources.ts";
import { buildViews } from "./views/workspaces.ts";
import { readableWorkspace, workspaceObject } from "./workspaces.ts";

const Id = z.object({ id: Uuid });
const Action = { start: "start", stop: "stop", delete: "delete" } as const;

/** @throws {ApiError} 404 also when `user` may not read its workspace */
export async function readableBuild(
  deps: Pick<ApiDeps, "knex">,
  user: UserIdentity,
  id: string,
): Promise<{ build: BuildView; workspace: WorkspaceView }> {
  const build = await buildById(deps.knex, id);
  if (!build) throw notFound("Workspace build");
  return { build, workspace: await readableWorkspace(deps, user, build.workspace_id) };
}

export function buildRoutes(deps: ApiDeps): Route[] {
  const { knex } = deps;
  return [
    userRoute({
      method: "post",
      path: "/workspaces/:id/builds",
      params: Id,
      body: CreateWorkspaceBuildRequest,
      out: WorkspaceBuild,
      status: 201,
      async handle({ user, params, body, now }) {
        const workspace = await readableWorkspace(deps, user, params.id);
        must(user, Action[body.transition], workspaceObject(workspace));
        if (workspace.deleted) throw notFound("Workspace");
        if (body.orphan && body.transition !== "delete")
          throw badRequest("Only a delete can orphan.", [
            { field: "orphan", detail: "wants transition delete" },
          ]);
        // It leaves things running that somebody pays for.
        if (
          body.orphan &&
          !may(user, "update", { type: "template", organizationId: workspace.organization_id })
        )
          throw forbidden("Only template admins may orphan a workspace's resources.");
        if (body.template_version_id) {
          const version = await versionById(knex, body.template_version_id);
          if (version?.template_id !== workspace.template_id)
            throw badRequest("The version belongs to another template than the workspace.", [
              { field: "template_version_id", detail: "is no version of the workspace's template" },
            ]);
        }
        const id = await knex.transaction(async (trx) => {
          await trx("workspaces").where({ id: workspace.id }).forUpdate().first("id");
          return createBuild(trx, {
            workspace,
            versionId: body.template_version_id ?? requiredVersion(workspace, body.transition),
            transition: body.transition,
            initiatorId: user.userId,
            reason: body.reason ?? "initiator",
            parameters: body.rich_parameter_values,
            presetId: body.template_version_preset_id ?? undefined,
            orphan: body.orphan,
            now,
          });
        });
        return oneView(id, now);
      },
    }),
    userRoute({
      method: "get",
      path: "/workspaces/:id/builds",
      params: Id,
      query: Paging,
      out: WorkspaceBuilds,
      async handle({ user, params, query, now }) {
        const workspace = await readableWorkspace(deps, user, params.id);
        const builds = await buildsQuery(knex)
          .where("b.workspace_id", workspace.id)
          .limit(query.limit || 100)
          .offset(query.offset ?? 0);
        return buildViews(knex, builds, now);
      },
    }),
    userRoute({
      method: "get",
      path: "/users/:user/workspace/:name/builds/:number",
      params: z.object({
        user: z.string(),
        name: z.string(),
        number: z.coerce
          .number()
          .int()
          .min(1)
          .max(2 ** 31 - 1),
      }),
      out: WorkspaceBuild,
      async handle({ user, params, now }) {
        const owner = await resolveUser(deps, user, params.user, "Workspace");
        const [workspace] = await workspacesQuery(knex)
          .where("w.owner_id", owner.id)
          .andWhere("w.deleted", false)
          .andWhereRaw("lower(w.name) = lower(?)", [params.name]);
        if (!workspace) throw notFound("Workspace");
        must(user, "read", workspaceObject(workspace), "Workspace");
        const builds = await buildsQuery(knex)
          .where("b.workspace_id", workspace.id)
          .andWhere("b.build_number", params.number);
        if (builds.length === 0) throw notFound("Workspace build");
        return (await buildViews(knex, builds, now))[0];
      },
    }),
    userRoute({
      method: "get",
      path: "/workspacebuilds/:id",
      params: Id,
      out: WorkspaceBuild,
      handle: async ({ user, params, now }) =>
        (await buildViews(knex, [(await readableBuild(deps, user, params.id)).build], now))[0],
    }),
    userRoute({
      method: "patch",
      path: "/workspacebuilds/:id/cancel",
      params: Id,
      out: MessageBody,
      async handle({ user, params, now }) {
        const { build, workspace } = await readableBuild(deps, user, params.id);
        must(user, Action[build.transition], workspaceObject(workspace));
        if (
          !workspace.template_allow_user_cancel_workspace_jobs &&
          !may(user, "update", { type: "template", organizationId: workspace.organization_id })
        )
          throw forbidden("The template doesn't let its users cancel builds.");
        if (!(await cancelJob(knex, build.job_id, now)))
          throw new ApiError(412, "ERR_JOB_OVER", "The build has completed or is being canceled already.");
        return { message: "Job has been marked as canceled." };
      },
    }),
    userRoute({
      method: "get",
      path: "/workspacebuilds/:id/logs",
      params: Id,
      query: LogsQuery,
      out: ProvisionerJobLogs,
      async handle({ user, params, query }) {
        if (query.follow) throw wantsWebSocket();
        const { build } = await readableBuild(deps, user, params.id);
        return (await jobLogs(knex, build.job_id, query)).map(jobLogView);
      },
    }),
    userRoute({
      method: "get",
      path: "/workspacebuilds/:id/parameters",
      params: Id,
      out: BuildParameters,
      async handle({ user, params }) {
        const { build } = await readableBuild(deps, user, params.id);
        return knex("workspace_build_parameters")
          .where({ workspace_build_id: build.id })
          .orderBy("name")
          .select("name", "value");
      },
    }),
    userRoute({
      method: "get",
      path: "/workspacebuilds/:id/resources",
      params: Id,
      out: WorkspaceResources,
      async handle({ user, params, now }) {
        const { build } = await readableBuild(deps, user, params.id);
        const resources = await resourcesOfJobs(knex, [build.job_id]);
        return (resources.get(build.job_id) ?? []).map((resource) => resourceView(resource, now));
      },
    }),
    userRoute({
      method: "get",
      path: "/workspacebuilds/:id/state",
      params: Id,
      out: z.instanceof(Buffer),
      async handle({ ctx, user, params }) {
        const { build, workspace } = await readableBuild(deps, user, params.id);
        // A state holds the template author's secrets: it takes the right to change the template.
        must(
          user,
          "update",
          { type: "template", organizationId: workspace.organization_id, id: workspace.template_id },
          "Workspace build",
        );
        const row = await knex("workspace_builds")
          .where({ id: build.id })
          .first<{ state: Buffer | null }>("state");
        ctx.type = "application/json";
        return row?.state ?? Buffer.alloc(0);
      },
    }),
  ];

  async function oneView(id: string, now: Date): Promise<WorkspaceBuild> {
    const build = await buildById(knex, id);
    return (await buildViews(knex, build ? [build] : [], now))[0];
  }

  /** What a start without a version builds: that of before, unless template or workspace want the newest. */
  function requiredVersion(workspace: WorkspaceView, transition: string): string | undefined {
    const newest = workspace.template_require_active_version || workspace.automatic_updates === "always";
    return transition === "start" && newest ? workspace.template_active_version_id : undefined;
  }
}
