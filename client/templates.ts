import type {
  Organization,
  Template,
  TemplateVersion,
  UploadResponse,
  VariableValue,
} from "../control/contract/index.ts";
import { packDirectory } from "./archive.ts";
import { ApiError } from "./errors.ts";
import type { ApiClient } from "./http.ts";
import { waitForJob } from "./logs.ts";
import { say } from "./output.ts";

/** As `control/contract` has it; a constant here keeps its schemas out of this command's start. */
const TAR_CONTENT_TYPE = "application/x-tar";
/** Only a guard for a wrong folder; the server's limit is the one that counts and is told in its answer. */
const MAX_UPLOAD_BYTES = 64 << 20;

export async function findTemplate(api: ApiClient, name: string): Promise<Template | undefined> {
  try {
    return await api.get<Template>(`/organizations/default/templates/${encodeURIComponent(name)}`);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) return undefined;
    throw error;
  }
}

export interface PushOptions {
  name: string;
  directory: string;
  message?: string;
  versionName?: string;
  variables: VariableValue[];
  activate: boolean;
  signal?: AbortSignal;
}

/** @returns the id of the stored file: the same files give the same one */
export async function uploadTemplate(
  api: ApiClient,
  directory: string,
  signal?: AbortSignal,
): Promise<string> {
  const archive = await packDirectory(directory, MAX_UPLOAD_BYTES);
  const { hash } = await api.post<UploadResponse>("/files", archive, {
    contentType: TAR_CONTENT_TYPE,
    signal,
  });
  return hash;
}

/** Uploads a folder, waits for its import, and makes the template or its new active version. */
export async function pushTemplate(
  api: ApiClient,
  options: PushOptions,
): Promise<{ template: Template; version: TemplateVersion; created: boolean }> {
  const archive = await packDirectory(options.directory, MAX_UPLOAD_BYTES);
  const { signal } = options;
  const { hash } = await api.post<UploadResponse>("/files", archive, {
    contentType: TAR_CONTENT_TYPE,
    signal,
  });
  const organization = await api.get<Organization>("/organizations/default", { signal });
  const existing = await findTemplate(api, options.name);
  const pending = await api.post<TemplateVersion>(`/organizations/${organization.id}/templateversions`, {
    ...(options.versionName ? { name: options.versionName } : {}),
    ...(options.message ? { message: options.message } : {}),
    ...(existing ? { template_id: existing.id } : {}),
    file_id: hash,
    user_variable_values: options.variables,
  });
  const version = await waitForJob(
    api,
    `/templateversions/${pending.id}/logs`,
    () => api.get<TemplateVersion>(`/templateversions/${pending.id}`, { signal }),
    {
      what: `Import of template ${options.name}`,
      hint: `Correct it and push again${existing ? "; until then the version before stays in use" : ""}.`,
      write: say,
      signal,
    },
  );
  if (!existing) {
    const template = await api.post<Template>(`/organizations/${organization.id}/templates`, {
      name: options.name,
      template_version_id: version.id,
    });
    return { template, version, created: true };
  }
  if (options.activate) await api.patch(`/templates/${existing.id}/versions`, { id: version.id });
  return { template: existing, version, created: false };
}
