// What a provisioner daemon and the control plane say to each other. The daemon sees only this interface: the
// built-in daemons call it in process, an external one over a WebSocket with the same shapes. Bytes are
// Uint8Array here and base64 on a wire.

export type LogLevel = "trace" | "debug" | "info" | "warn" | "error";
export type LogSource = "provisioner_daemon" | "provisioner";

/** One line of a job's log. `stage` is a heading people read: "Planning infrastructure". */
export interface JobLog {
  createdAt: Date;
  source: LogSource;
  level: LogLevel;
  stage: string;
  output: string;
}

export interface RichParameterValue {
  name: string;
  value: string;
}

export interface TemplateVariableValue {
  name: string;
  value: string;
}

/** What the `coder/coder` provider answers data sources with; see the provider's context. All ids are UUIDs. */
export interface WorkspaceMetadata {
  coderUrl: string;
  transition: "start" | "stop" | "delete";
  workspaceId: string;
  workspaceName: string;
  workspaceBuildId: string;
  ownerId: string;
  /** The username: `data.coder_workspace_owner.me.name`. */
  ownerName: string;
  ownerFullName: string;
  ownerEmail: string;
  ownerLoginType: string;
  ownerGroups: string[];
  ownerRbacRoles: { name: string; org_id: string }[];
  ownerSessionToken: string;
  ownerSshPublicKey: string;
  ownerSshPrivateKey: string;
  templateId: string;
  templateName: string;
  templateVersion: string;
}

interface JobBase {
  id: string;
  /** The template version's source, as the tar the user uploaded. */
  templateArchive: Uint8Array;
  variables: TemplateVariableValue[];
}

export interface ImportJob extends JobBase {
  type: "template_version_import";
  metadata: Pick<
    WorkspaceMetadata,
    "coderUrl" | "ownerId" | "ownerName" | "ownerFullName" | "ownerEmail" | "ownerLoginType"
  >;
}

export interface BuildJob extends JobBase {
  type: "workspace_build";
  metadata: WorkspaceMetadata;
  parameters: RichParameterValue[];
  /** Values of the previous build, for monotonic validation. */
  previousParameters: RichParameterValue[];
  /** Terraform state of the previous build; absent before the first. */
  state?: Uint8Array;
}

export type Job = ImportJob | BuildJob;

export interface ProvisionedApp {
  slug: string;
  displayName: string;
  url: string;
  command: string;
  icon: string;
  group: string;
  tooltip: string;
  subdomain: boolean;
  external: boolean;
  hidden: boolean;
  openIn: "slim-window" | "tab";
  order: number;
  sharingLevel: "owner" | "authenticated" | "public";
  healthcheck?: { url: string; intervalSeconds: number; threshold: number };
}

export interface ProvisionedScript {
  displayName: string;
  icon: string;
  script: string;
  logPath: string;
  cron: string;
  runOnStart: boolean;
  runOnStop: boolean;
  startBlocksLogin: boolean;
  timeoutSeconds: number;
}

export interface ProvisionedAgent {
  id: string;
  name: string;
  operatingSystem: string;
  architecture: string;
  auth: { kind: "token"; token: string } | { kind: "instance"; instanceId: string };
  directory: string;
  /** coder_agent.env with coder_env merged in. */
  env: Record<string, string>;
  motdFile: string;
  troubleshootingUrl: string;
  connectionTimeoutSeconds: number;
  startupScriptBehavior: "blocking" | "non-blocking";
  apiKeyScope: "all" | "no_user_data";
  order: number;
  displayApps: string[];
  apps: ProvisionedApp[];
  scripts: ProvisionedScript[];
  metadata: {
    key: string;
    displayName: string;
    script: string;
    intervalSeconds: number;
    timeoutSeconds: number;
    order: number;
  }[];
}

export interface ProvisionedResource {
  type: string;
  name: string;
  hide: boolean;
  icon: string;
  instanceType: string;
  dailyCost: number;
  metadata: { key: string; value: string; sensitive: boolean; isNull: boolean }[];
  agents: ProvisionedAgent[];
}

export interface TemplateParameter {
  name: string;
  displayName: string;
  description: string;
  type: "string" | "number" | "bool" | "list(string)";
  formType: string;
  styling: string;
  mutable: boolean;
  ephemeral: boolean;
  required: boolean;
  defaultValue: string;
  icon: string;
  order: number;
  options: { name: string; description: string; value: string; icon: string }[];
  validation: {
    regex: string;
    error: string;
    monotonic: string;
    min?: number;
    max?: number;
  };
}

export interface TemplateVariable {
  name: string;
  description: string;
  type: string;
  defaultValue: string;
  required: boolean;
  sensitive: boolean;
}

export interface ImportResult {
  type: "template_version_import";
  readme: string;
  variables: TemplateVariable[];
  parameters: TemplateParameter[];
  presets: {
    name: string;
    description: string;
    icon: string;
    default: boolean;
    parameters: RichParameterValue[];
  }[];
  workspaceTags: Record<string, string>;
  externalAuth: { id: string; optional: boolean }[];
  startResources: ProvisionedResource[];
  stopResources: ProvisionedResource[];
}

export interface BuildResult {
  type: "workspace_build";
  /** Terraform state after the build; empty after a delete. */
  state: Uint8Array;
  resources: ProvisionedResource[];
  dailyCost: number;
}

export type JobResult = ImportResult | BuildResult;

/** Why a job failed. `state` is what Terraform left behind, so that a half-made workspace can be deleted. */
export interface JobFailure {
  message: string;
  /** Stable for clients: `REQUIRED_TEMPLATE_VARIABLES`, or one of our `ERR_...`. */
  errorCode: string;
  state?: Uint8Array;
  /** With REQUIRED_TEMPLATE_VARIABLES: all variables of the template, so that a client can ask for the missing. */
  variables?: TemplateVariable[];
}

/** The control plane as a daemon sees it. Calls throw when it is unreachable; the daemon retries with back-off. */
export interface JobQueue {
  /** Waits (event-driven, with a poll to fall back on) for a job this daemon may run. @returns undefined once aborted */
  acquire(
    daemon: { id: string; name: string; tags: Record<string, string> },
    signal: AbortSignal,
  ): Promise<Job | undefined>;
  /** Appends to the job's log, oldest first; watchers see it at once. */
  log(jobId: string, lines: JobLog[]): Promise<void>;
  /** Said every few seconds while a job runs; a job unheard of for minutes is reaped. */
  heartbeat(jobId: string): Promise<{ canceled: boolean }>;
  complete(jobId: string, result: JobResult): Promise<void>;
  fail(jobId: string, failure: JobFailure): Promise<void>;
}
