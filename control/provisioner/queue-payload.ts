// From a job's row to what a daemon gets: the archive, variables, parameters, state and who it is for.
import type { Knex } from "knex";
import { createWorkspaceKey, deleteWorkspaceKey } from "../db/queries/keys.ts";
import type { BuildRow, JobRow, TemplateRow, UserRow, WorkspaceRow } from "../db/queries/rows.ts";
import type { BuildJob, ImportJob, Job, RichParameterValue } from "./protocol.ts";

export interface PayloadContext {
  /** The URL workspaces reach this deployment at. */
  coderUrl: string;
  now: Date;
}

/** Within the transaction that takes the job, so that a failure here leaves it waiting. */
export async function loadPayload(trx: Knex, job: JobRow, context: PayloadContext): Promise<Job> {
  const file = await trx("files").where({ id: job.file_id }).first<{ data: Buffer }>("data");
  if (!file) throw new Error(`file ${job.file_id} of job ${job.id} is gone`);
  const base = { id: job.id, templateArchive: new Uint8Array(file.data) };
  switch (job.type) {
    case "template_version_import":
      return importJob(trx, job, base, context);
    case "workspace_build":
      return buildJob(trx, job, base, context);
    case "template_version_dry_run":
      throw new Error("dry runs are not queued yet");
  }
}

type Base = Pick<Job, "id" | "templateArchive">;

async function importJob(trx: Knex, job: JobRow, base: Base, context: PayloadContext): Promise<ImportJob> {
  const owner = await userById(trx, job.initiator_id);
  return {
    ...base,
    type: "template_version_import",
    variables: job.input.user_variable_values ?? [],
    metadata: {
      coderUrl: context.coderUrl,
      ownerId: owner.id,
      ownerName: owner.username,
      ownerFullName: owner.name,
      ownerEmail: owner.email,
      ownerLoginType: owner.login_type,
    },
  };
}

async function buildJob(trx: Knex, job: JobRow, base: Base, context: PayloadContext): Promise<BuildJob> {
  const build = await trx("workspace_builds")
    .where({ job_id: job.id })
    .first<BuildRow & { state: Buffer | null }>();
  if (!build) throw new Error(`job ${job.id} has no build`);
  const workspace: WorkspaceRow = await trx("workspaces").where({ id: build.workspace_id }).first();
  const template: TemplateRow = await trx("templates").where({ id: workspace.template_id }).first();
  const version = await trx("template_versions as v")
    .join("provisioner_jobs as j", "j.id", "v.job_id")
    .where("v.id", build.template_version_id)
    .first<{ name: string; input: JobRow["input"] }>("v.name", "j.input");
  const owner = await userById(trx, workspace.owner_id);
  const previous: BuildRow | undefined = await trx("workspace_builds")
    .where({ workspace_id: workspace.id, build_number: build.build_number - 1 })
    .first("id");

  return {
    ...base,
    type: "workspace_build",
    variables: version.input.user_variable_values ?? [],
    parameters: await parametersOf(trx, build.id),
    previousParameters: previous ? await parametersOf(trx, previous.id) : [],
    ...(build.state && build.state.length > 0 ? { state: new Uint8Array(build.state) } : {}),
    metadata: {
      coderUrl: context.coderUrl,
      transition: build.transition,
      workspaceId: workspace.id,
      workspaceName: workspace.name,
      workspaceBuildId: build.id,
      ownerId: owner.id,
      ownerName: owner.username,
      ownerFullName: owner.name,
      ownerEmail: owner.email,
      ownerLoginType: owner.login_type,
      ownerGroups: ["Everyone"],
      ownerRbacRoles: [
        { name: "member", org_id: "" },
        ...owner.roles.map((name) => ({ name, org_id: "" })),
        { name: "organization-member", org_id: workspace.organization_id },
      ],
      ownerSessionToken: await ownerSessionToken(trx, build, owner, context.now),
      ownerSshPublicKey: "",
      ownerSshPrivateKey: "",
      templateId: template.id,
      templateName: template.name,
      templateVersion: version.name,
    },
  };
}

/** A new one each start, none while it is stopped. */
async function ownerSessionToken(trx: Knex, build: BuildRow, owner: UserRow, now: Date): Promise<string> {
  const key = { workspaceId: build.workspace_id, ownerId: owner.id };
  await deleteWorkspaceKey(trx, key);
  if (build.transition !== "start" || owner.status === "suspended") return "";
  return createWorkspaceKey(trx, key, now);
}

async function userById(trx: Knex, id: string): Promise<UserRow> {
  const user: UserRow | undefined = await trx("users").where({ id }).first();
  if (!user) throw new Error(`user ${id} is gone`);
  return user;
}

function parametersOf(trx: Knex, buildId: string): Promise<RichParameterValue[]> {
  return trx("workspace_build_parameters")
    .where({ workspace_build_id: buildId })
    .orderBy("name")
    .select("name", "value");
}
