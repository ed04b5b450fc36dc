// A new build of a workspace: its checks, parameters, rows and job, in the caller's transaction.
import { randomUUID } from "node:crypto";
import type { Knex } from "knex";
import { MeshError } from "../../mesh/wire/errors.ts";
import type { BuildReason, Transition } from "../contract/workspaces.ts";
import { insertJob } from "../db/queries/jobs.ts";
import { deleteWorkspaceKey } from "../db/queries/keys.ts";
import type { JobRow, WorkspaceRow } from "../db/queries/rows.ts";
import { parametersOf, presetsOf, versionById } from "../db/queries/templates.ts";
import { announce } from "../db/queries/topics.ts";
import type { RichParameterValue } from "../provisioner/protocol.ts";
import { type ParameterProblem, resolveParameters } from "./parameters.ts";
import { nextBuildProblem, versionProblem } from "./status.ts";

/** Why no build was made. `message` and `problems` are for people. */
export class BuildError extends MeshError {
  readonly code: "ERR_BUILD_ACTIVE" | "ERR_BUILD_PARAMETERS" | "ERR_VERSION_NOT_USABLE" | "ERR_NOT_FOUND";
  readonly problems: ParameterProblem[];
  constructor(code: BuildError["code"], message: string, problems: ParameterProblem[] = []) {
    super(message);
    this.code = code;
    this.problems = problems;
  }
}

export interface NewBuild {
  workspace: Pick<WorkspaceRow, "id" | "organization_id">;
  /** Default: that of the build before. */
  versionId?: string;
  transition: Transition;
  initiatorId: string;
  reason: BuildReason;
  parameters: RichParameterValue[];
  presetId?: string;
  /** Forget without destroying: the build is complete at once and the workspace deleted. */
  orphan?: boolean;
  now: Date;
}

interface PreviousBuild {
  id: string;
  build_number: number;
  transition: Transition;
  template_version_id: string;
  status: JobRow["status"];
}

/**
 * The caller holds a lock on the workspace's row (or has just inserted it), so that numbers don't race.
 *
 * @returns the build's id
 * @throws {BuildError}
 */
export async function createBuild(trx: Knex, build: NewBuild): Promise<string> {
  const { workspace, now } = build;
  const previous: PreviousBuild | undefined = await trx("workspace_builds as b")
    .join("provisioner_jobs as j", "j.id", "b.job_id")
    .where({ "b.workspace_id": workspace.id })
    .orderBy("b.build_number", "desc")
    .first("b.id", "b.build_number", "b.transition", "b.template_version_id", "j.status");
  const problem = nextBuildProblem(
    previous && { transition: previous.transition, job: previous.status },
    build.transition,
  );
  if (problem) throw new BuildError("ERR_BUILD_ACTIVE", problem);

  const versionId = build.versionId ?? previous?.template_version_id;
  const version = versionId ? await versionById(trx, versionId) : undefined;
  if (!version) throw new BuildError("ERR_NOT_FOUND", "The template version doesn't exist.");
  const unusable = versionProblem(version.job_status);
  if (unusable) throw new BuildError("ERR_VERSION_NOT_USABLE", unusable);

  const values = await parameterValues(trx, build, version.id, previous);
  const { file_id, tags }: Pick<JobRow, "file_id" | "tags"> = await trx("provisioner_jobs")
    .where({ id: version.job_id })
    .first("file_id", "tags");
  const jobId = await insertJob(trx, {
    organizationId: workspace.organization_id,
    initiatorId: build.initiatorId,
    type: "workspace_build",
    fileId: file_id,
    tags: { ...tags, ...version.workspace_tags },
    now,
  });
  const id = randomUUID();
  await trx("workspace_builds").insert({
    id,
    workspace_id: workspace.id,
    template_version_id: version.id,
    build_number: (previous?.build_number ?? 0) + 1,
    transition: build.transition,
    initiator_id: build.initiatorId,
    job_id: jobId,
    reason: build.reason,
    template_version_preset_id: build.presetId ?? null,
    // Until the daemon hands back a newer one: a build that never ran must not lose what exists.
    state:
      previous && !build.orphan ? trx("workspace_builds").where({ id: previous.id }).select("state") : null,
    created_at: now,
    updated_at: now,
  });
  if (values.length > 0) {
    await trx("workspace_build_parameters").insert(
      values.map((value) => ({ ...value, workspace_build_id: id })),
    );
  }
  await trx("workspaces").where({ id: workspace.id }).update({ latest_build_id: id, updated_at: now });
  if (build.orphan) await forget(trx, workspace.id, jobId, now);
  await announce(trx, "workspace", workspace.id);
  return id;
}

/** A stop or delete runs with the values of the build before, valid or not: it must always be possible. */
async function parameterValues(
  trx: Knex,
  build: NewBuild,
  versionId: string,
  previous: PreviousBuild | undefined,
): Promise<RichParameterValue[]> {
  const before: RichParameterValue[] | undefined =
    previous &&
    (await trx("workspace_build_parameters")
      .where({ workspace_build_id: previous.id })
      .select("name", "value"));
  if (build.transition !== "start" && before && build.parameters.length === 0) return before;
  const preset = build.presetId
    ? (await presetsOf(trx, versionId)).find(({ id }) => id === build.presetId)
    : undefined;
  if (build.presetId && !preset)
    throw new BuildError("ERR_BUILD_PARAMETERS", "The template version has no such preset.", [
      { field: "template_version_preset_id", detail: "is no preset of this version" },
    ]);
  const { values, problems } = resolveParameters({
    definitions: (await parametersOf(trx, versionId)).map(({ definition }) => definition),
    given: build.parameters,
    preset: preset?.parameters,
    previous: before,
  });
  if (problems.length > 0)
    throw new BuildError("ERR_BUILD_PARAMETERS", "Some parameters are not valid.", problems);
  return values;
}

async function forget(trx: Knex, workspaceId: string, jobId: string, now: Date): Promise<void> {
  await trx("provisioner_jobs")
    .where({ id: jobId })
    .update({ started_at: now, completed_at: now, updated_at: now });
  const [{ owner_id }]: { owner_id: string }[] = await trx("workspaces")
    .where({ id: workspaceId })
    .update({ deleted: true })
    .returning("owner_id");
  await deleteWorkspaceKey(trx, { workspaceId, ownerId: owner_id });
}
