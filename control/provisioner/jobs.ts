// What a job does: an import plans a template for start and for stop and reads what it asks for; a build plans
// and applies, and reads what came of it. Whatever happens, state that Terraform wrote is handed back.
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { agentScripts } from "./agent-script.ts";
import type {
  BuildJob,
  BuildResult,
  ImportJob,
  ImportResult,
  Job,
  JobFailure,
  JobResult,
  TemplateVariable,
} from "./protocol.ts";
import { contextFromJob, type ProviderContext, startProvider } from "./provider/index.ts";
import { MissingVariablesError, TerraformError } from "./terraform/errors.ts";
import { extractResources } from "./terraform/extract.ts";
import { extractInputs } from "./terraform/extract-inputs.ts";
import { redactor } from "./terraform/messages.ts";
import { planResources, stateResources } from "./terraform/plan-json.ts";
import { type Log, type TerraformBinary, TerraformSession } from "./terraform/session.ts";
import { readVariables, type TemplateFile, withPlannedDefaults } from "./terraform/variables.ts";
import { createWorkDir, readTemplate, unpackTemplate, type WorkDir } from "./terraform/workdir.ts";

export type StartProvider = (
  context: ProviderContext,
  options: { socketDir: string },
) => Promise<{ reattach: string; close(): Promise<void> }>;

export interface JobRunnerOptions {
  /** Asked for each job until it answers, so that Terraform can be installed later; its error fails the job. */
  terraform: TerraformBinary | (() => Promise<TerraformBinary>);
  /** Default: our own `coder/coder` provider, control/provisioner/provider. */
  startProvider?: StartProvider;
  env: NodeJS.ProcessEnv;
  /** Further names of `env` to let through to Terraform; `NAME` or `PREFIX_*`. */
  extraEnvironment?: readonly string[];
  /** How this machine starts the CLI, as absolute paths: [node, dist/coder.js]. See agent-script.ts. */
  agentCommand?: readonly string[];
  cacheDir?: string;
  mirrorDir?: string;
  /** Where job folders are made; the system's temporary folder unless given. Keep it short. */
  workParent?: string;
  interruptGraceMs?: number;
}

export type JobOutcome = { result: JobResult } | { failure: JobFailure };

/** Never rejects: what goes wrong is an outcome. */
export type RunJob = (job: Job, io: { log: Log; signal: AbortSignal }) => Promise<JobOutcome>;

export function createJobRunner(options: JobRunnerOptions): RunJob {
  const findTerraform = once(options.terraform);
  const scripts = agentScripts(options.agentCommand);

  return async (job, { log, signal }) => {
    let workDir: WorkDir | undefined;
    const keep: { state?: Uint8Array; variables?: TemplateVariable[] } = {};
    try {
      log("Setting up", `Preparing the template (${job.templateArchive.length} bytes)`, "info");
      const terraform = await findTerraform();
      workDir = await createWorkDir(options.workParent);
      await unpackTemplate(job.templateArchive, workDir.templateDir);
      const { files, readme } = await readTemplate(workDir.templateDir);
      const declared = readVariables(files);
      keep.variables = declared;
      const session = await TerraformSession.open(
        {
          ...options,
          terraform,
          workDir,
          log,
          redact: redactor(secretsOf(job, declared)),
          signal,
        },
        job.variables,
        declared,
      );
      const step: Step = { options, agentScripts: scripts, workDir, session, files, declared, log };
      const result =
        job.type === "template_version_import"
          ? await runImport(job, readme, step)
          : await runBuild(job, step, (state) => {
              keep.state = state;
            });
      return { result };
    } catch (error) {
      return { failure: toFailure(error, keep) };
    } finally {
      await workDir?.remove().catch((error: unknown) => {
        log("Cleaning up", `The job's folder could not be removed: ${messageOf(error)}`, "warn");
      });
    }
  };
}

interface Step {
  options: JobRunnerOptions;
  agentScripts: Map<string, string>;
  workDir: WorkDir;
  session: TerraformSession;
  files: TemplateFile[];
  declared: TemplateVariable[];
  log: Log;
}

async function runImport(job: ImportJob, readme: string, step: Step): Promise<ImportResult> {
  const { session, log, declared, files } = step;
  const planFor = (transition: "start" | "stop") => {
    const stage = `Planning a workspace ${transition}`;
    const planFile = path.join(step.workDir.root, `${transition}.tfplan`);
    // There is no workspace yet; the provider answers with placeholders.
    const context = contextFromJob({ ...job.metadata, transition }, [], [], {
      agentScripts: step.agentScripts,
    });
    return withProvider(step, context, async (reattach) => {
      if (transition === "start") await session.init(files, reattach);
      log(
        stage,
        `Planning what a workspace has when it is ${transition === "start" ? "started" : "stopped"}`,
      );
      await session.plan(stage, planFile, reattach);
      const [plan, graph] = await Promise.all([
        session.showPlan(planFile, reattach),
        session.graph(reattach),
      ]);
      const input = planResources(plan);
      return { plan, input, extracted: extractResources(input, graph) };
    });
  };
  const start = await planFor("start");
  const stop = await planFor("stop");
  const { warnings, ...inputs } = extractInputs(start.input);
  for (const warning of [...start.extracted.warnings, ...warnings])
    log("Reading the template", warning, "warn");
  return {
    type: "template_version_import",
    readme,
    variables: withPlannedDefaults(declared, start.plan.configuration?.root_module?.variables ?? {}),
    ...inputs,
    startResources: start.extracted.resources,
    stopResources: stop.extracted.resources,
  };
}

const TRANSITION_STAGE = {
  start: "Starting workspace",
  stop: "Stopping workspace",
  delete: "Deleting workspace",
} as const;

async function runBuild(
  job: BuildJob,
  step: Step,
  onState: (state: Uint8Array) => void,
): Promise<BuildResult> {
  const { session, log, files, workDir } = step;
  const { transition } = job.metadata;
  const destroy = transition === "delete";
  const nothing: BuildResult = {
    type: "workspace_build",
    state: new Uint8Array(),
    resources: [],
    dailyCost: 0,
  };
  if (destroy && !job.state?.length) {
    log(TRANSITION_STAGE.delete, "The workspace has no Terraform state, so there is nothing to destroy");
    return nothing;
  }
  if (job.state?.length) await writeFile(workDir.statePath, job.state, { mode: 0o600 });
  const { agentScripts } = step;
  const context = contextFromJob(job.metadata, job.parameters, job.previousParameters, { agentScripts });
  return withProvider(step, context, async (reattach) => {
    await session.init(files, reattach);
    const planFile = path.join(workDir.root, "build.tfplan");
    await session.plan("Planning infrastructure", planFile, reattach, { destroy });
    await workDir.rescueAs(rescueName(job));
    try {
      await session.apply(TRANSITION_STAGE[transition], planFile, reattach);
    } finally {
      const state = await session.readState();
      if (state) onState(state);
    }
    if (destroy) return nothing;
    // Both only read, so they may run side by side; beside an apply either could meet a half-written state.
    const [shown, graph] = await Promise.all([session.showState(reattach), session.graph(reattach)]);
    const { resources, dailyCost, warnings } = extractResources(stateResources(shown), graph);
    // Stopped, an agent has no resource; only a started workspace without one is worth a word.
    if (transition === "start") for (const warning of warnings) log("Reading resources", warning, "warn");
    const state = (await session.readState()) ?? new Uint8Array();
    return { type: "workspace_build", state, resources, dailyCost };
  });
}

/** Of the file that keeps a build's state when nobody takes it. */
export function rescueName(job: BuildJob): string {
  return `${job.metadata.workspaceId}-${job.id}.tfstate`;
}

async function withProvider<T>(
  { options, workDir }: Step,
  context: ProviderContext,
  use: (reattach: string) => Promise<T>,
): Promise<T> {
  const start = options.startProvider ?? startProvider;
  const provider = await start(context, { socketDir: workDir.socketDir });
  try {
    return await use(provider.reattach);
  } finally {
    await provider.close();
  }
}

/** What must not show in a log: given to us with the job, or known from the state. */
function secretsOf(job: Job, declared: TemplateVariable[]): string[] {
  const sensitive = new Set(declared.filter((variable) => variable.sensitive).map(({ name }) => name));
  const secrets = job.variables.filter(({ name }) => sensitive.has(name)).map(({ value }) => value);
  if (job.type === "template_version_import") return secrets;
  const { ownerSessionToken, ownerSshPrivateKey } = job.metadata;
  return [...secrets, ownerSessionToken, ownerSshPrivateKey, ...agentTokens(job.state)];
}

function agentTokens(state: Uint8Array | undefined): string[] {
  if (!state?.length) return [];
  // The file is pretty-printed JSON; a token is a UUID, so it holds nothing that JSON escapes.
  const text = new TextDecoder().decode(state);
  return [...text.matchAll(/"token":\s*"([^"\\]{8,})"/g)].map(([, token]) => token!);
}

function toFailure(error: unknown, keep: { state?: Uint8Array; variables?: TemplateVariable[] }): JobFailure {
  const state = keep.state && { state: keep.state };
  if (error instanceof MissingVariablesError)
    return {
      message: error.message,
      errorCode: "REQUIRED_TEMPLATE_VARIABLES",
      ...(keep.variables && { variables: keep.variables }),
      ...state,
    };
  if (error instanceof TerraformError) return { message: error.message, errorCode: error.code, ...state };
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return {
    message: messageOf(error),
    errorCode: code.startsWith("ERR_") ? code : "ERR_PROVISIONER_INTERNAL",
    ...state,
  };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function once(source: TerraformBinary | (() => Promise<TerraformBinary>)): () => Promise<TerraformBinary> {
  if (typeof source !== "function") return async () => source;
  let found: Promise<TerraformBinary> | undefined;
  return () => {
    found ??= source().catch((error: unknown) => {
      found = undefined;
      throw error;
    });
    return found;
  };
}
