import type { Command } from "commander";
import type {
  Template,
  TemplateVersionParameter,
  VariableValue,
  Workspace,
  WorkspacesResponse,
} from "../../control/contract/index.ts";
import { apiOf } from "../context.ts";
import { CliError } from "../errors.ts";
import type { ApiClient } from "../http.ts";
import { confirm, formatAge, outputOption, printJson, printTable, prompt, say } from "../output.ts";
import {
  cancelOnInterrupt,
  collectParameters,
  findWorkspace,
  parseWorkspaceName,
  runBuild,
} from "../workspace.ts";

interface CreateOptions {
  template?: string;
  parameter: string[];
  useParameterDefaults?: boolean;
  yes?: boolean;
}

export function register(program: Command): void {
  const collect = (value: string, all: string[]) => [...all, value];
  program
    .command("create")
    .argument("[workspace]", "name, or owner/name")
    .description("Create a workspace from a template and start it")
    .option("-t, --template <name>", "template (CODER_TEMPLATE_NAME)")
    .option("--parameter <name=value>", "value of a template parameter (repeatable)", collect, [])
    .option("--use-parameter-defaults", "take the template's defaults without asking", false)
    .option("-y, --yes", "don't ask", false)
    .addHelpText("after", "\nExample:\n  coder create dev --template local --yes")
    .action((name: string | undefined, options: CreateOptions, command: Command) =>
      create(name, options, command),
    );
  program
    .command("list")
    .alias("ls")
    .description("List workspaces")
    .option("-a, --all", "everyone's, not only yours", false)
    .option("--search <query>", "filter, as `owner:me status:running name:dev`")
    .addOption(outputOption("table", "json"))
    .action((options: { all: boolean; search?: string; output: string }, command: Command) =>
      list(options, command),
    );
  program
    .command("show")
    .argument("<workspace>", "name, or owner/name")
    .description("Show a workspace's resources and agents")
    .addOption(outputOption("table", "json"))
    .action((name: string, { output }: { output: string }, command: Command) => show(name, output, command));
}

async function chooseTemplate(api: ApiClient, wanted: string | undefined): Promise<Template> {
  const templates = await api.get<Template[]>("/templates");
  const names = templates.map(({ name }) => name).join(", ");
  if (templates.length === 0)
    throw new CliError("ERR_NO_TEMPLATES", "There are no templates yet.", {
      hint: "An administrator makes one with `coder templates init` and `coder templates push`.",
    });
  const chosen =
    wanted ??
    (templates.length === 1 ? templates[0].name : await prompt(`Template (${names}):`, "--template"));
  const found = templates.find(({ name }) => name === chosen);
  if (found) return found;
  throw new CliError("ERR_TEMPLATE_NOT_FOUND", `There is no template "${chosen}".`, {
    hint: `There are: ${names}.`,
  });
}

/** Asks for what the template wants and the user did not give. */
async function askParameters(
  wanted: readonly TemplateVersionParameter[],
  given: readonly VariableValue[],
  useDefaults: boolean,
): Promise<VariableValue[]> {
  const values = [...given];
  for (const parameter of wanted) {
    if (values.some(({ name }) => name === parameter.name) || parameter.ephemeral) continue;
    if (!parameter.required && (useDefaults || !process.stdin.isTTY)) continue;
    const options = parameter.options.map(({ value }) => value).join(", ");
    const fallback = parameter.required ? "" : ` [${parameter.default_value}]`;
    const answer = await prompt(
      `${parameter.display_name || parameter.name}${options ? ` (${options})` : ""}${fallback}:`,
      `--parameter ${parameter.name}=<value>`,
    );
    if (answer !== "" || parameter.required) values.push({ name: parameter.name, value: answer });
  }
  return values;
}

async function create(
  nameArgument: string | undefined,
  options: CreateOptions,
  command: Command,
): Promise<void> {
  const api = apiOf(command);
  try {
    const text =
      nameArgument ?? (await prompt("Name of the workspace:", "an argument: coder create <workspace>"));
    const { owner, name } = parseWorkspaceName(text);
    const template = await chooseTemplate(api, options.template ?? process.env["CODER_TEMPLATE_NAME"]);
    const wanted = await api.get<TemplateVersionParameter[]>(
      `/templateversions/${template.active_version_id}/rich-parameters`,
    );
    const values = await askParameters(
      wanted,
      collectParameters(options.parameter),
      options.useParameterDefaults === true || options.yes === true,
    );
    await confirm(`Create workspace ${name} from template ${template.name}?`, options.yes);
    const workspace = await api.post<Workspace>(`/users/${encodeURIComponent(owner)}/workspaces`, {
      template_id: template.id,
      name,
      rich_parameter_values: values,
    });
    const { id } = workspace.latest_build;
    await cancelOnInterrupt(api, id, () => runBuild(api, workspace, { follow: id, transition: "start" }));
    say(`Workspace ${name} is running. Open a shell in it: coder ssh ${text}`);
  } finally {
    api.close();
  }
}

async function list(
  options: { all: boolean; search?: string; output: string },
  command: Command,
): Promise<void> {
  const api = apiOf(command);
  try {
    const query = options.search ?? (options.all ? "" : "owner:me");
    const { workspaces } = await api.get<WorkspacesResponse>(`/workspaces?q=${encodeURIComponent(query)}`);
    if (options.output === "json") return printJson(workspaces);
    if (workspaces.length === 0) say("No workspaces. Make one: coder create <name>");
    const now = Date.now();
    printTable(
      workspaces.map((workspace) => ({
        workspace: `${workspace.owner_name}/${workspace.name}`,
        template: workspace.template_name,
        status: workspace.latest_build.status,
        healthy: workspace.latest_build.status === "running" ? String(workspace.health.healthy) : "",
        "last built": formatAge(Date.parse(workspace.latest_build.created_at), now),
        "current version": workspace.latest_build.template_version_name,
        outdated: String(workspace.outdated),
      })),
      ["workspace", "template", "status", "healthy", "last built", "current version", "outdated"],
    );
  } finally {
    api.close();
  }
}

async function show(name: string, output: string, command: Command): Promise<void> {
  const api = apiOf(command);
  try {
    const workspace = await findWorkspace(api, name);
    if (output === "json") return printJson(workspace);
    const { latest_build: build } = workspace;
    process.stdout.write(
      `${workspace.owner_name}/${workspace.name}: ${build.status}, build ${build.build_number}, template ${workspace.template_name} ${build.template_version_name}\n`,
    );
    if (workspace.outdated) process.stdout.write("  outdated: its template has a newer active version\n");
    if (build.job.error) process.stdout.write(`  ${build.job.error}\n`);
    printTable(
      build.resources
        .filter(({ hide }) => !hide)
        .flatMap((resource) => [
          { resource: `${resource.type}.${resource.name}` },
          ...resource.agents.map((agent) => ({
            resource: `  agent ${agent.name} (${agent.operating_system}, ${agent.architecture})`,
            status: agent.status,
            lifecycle: agent.lifecycle_state,
            version: agent.version,
            access: `coder ssh ${workspace.name}${resource.agents.length > 1 ? `.${agent.name}` : ""}`,
          })),
        ]),
      ["resource", "status", "lifecycle", "version", "access"],
    );
  } finally {
    api.close();
  }
}
