import { cpSync, existsSync, mkdirSync, readdirSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import type { Template } from "../../control/contract/index.ts";
import { apiOf } from "../context.ts";
import { CliError } from "../errors.ts";
import { confirm, formatAge, outputOption, printJson, printTable, prompt, say } from "../output.ts";
import { starterTemplatesDir } from "../resources.ts";
import { findTemplate, pushTemplate } from "../templates.ts";
import { collectParameters } from "../workspace.ts";

interface PushFlags {
  directory: string;
  message?: string;
  name?: string;
  variable: string[];
  activate: boolean;
  yes?: boolean;
}

export function register(program: Command): void {
  const templates = program
    .command("templates")
    .alias("template")
    .description("Write, publish and list templates")
    .allowExcessArguments()
    .action((_: unknown, command: Command) =>
      command.args.length === 0
        ? command.help()
        : command.error(`error: unknown command '${command.args[0]}'`),
    );
  templates
    .command("init")
    .argument("[directory]", "where to; by default a folder named after the starter")
    .description("Copy a starter template into a folder")
    .option("--id <name>", "which starter")
    .action((directory: string | undefined, { id }: { id?: string }) => init(directory, id));
  templates
    .command("push")
    .argument("[template]", "name; by default the folder's")
    .description("Publish a folder as a new version of a template, making the template if need be")
    .option("-d, --directory <dir>", "the template's folder", ".")
    .option("-m, --message <text>", "what changed, for the version list")
    .option("--name <version>", "name of the version; made up by default")
    .option(
      "--variable <name=value>",
      "value of a Terraform variable (repeatable)",
      (value: string, all: string[]) => [...all, value],
      [],
    )
    .option("--activate", "use the new version for new workspaces", true)
    .option("--no-activate", "only add the version")
    .option("-y, --yes", "don't ask", false)
    .action((name: string | undefined, options: PushFlags, command: Command) => push(name, options, command));
  templates
    .command("list")
    .alias("ls")
    .description("List templates")
    .addOption(outputOption("table", "json"))
    .action(({ output }: { output: string }, command: Command) => list(output, command));
}

async function init(directory: string | undefined, wanted: string | undefined): Promise<void> {
  const root = starterTemplatesDir();
  const ids = readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
  const id =
    wanted ?? (ids.length === 1 ? ids[0] : await prompt(`Starter template (${ids.join(", ")}):`, "--id"));
  if (!ids.includes(id))
    throw new CliError("ERR_STARTER_NOT_FOUND", `There is no starter template "${id}".`, {
      hint: `There are: ${ids.join(", ")}.`,
    });
  const target = path.resolve(directory ?? id);
  if (existsSync(target) && readdirSync(target).length > 0)
    throw new CliError("ERR_DIRECTORY_NOT_EMPTY", `${target} is not empty.`, {
      hint: "Name another folder.",
    });
  mkdirSync(target, { recursive: true });
  cpSync(path.join(root, id), target, { recursive: true });
  say(`Wrote the starter template ${id} to ${target}.`);
  say(
    `Edit it, then publish it: coder templates push ${path.basename(target)} --directory ${directory ?? id}`,
  );
}

async function push(nameArgument: string | undefined, options: PushFlags, command: Command): Promise<void> {
  const api = apiOf(command);
  try {
    const name = nameArgument ?? path.basename(path.resolve(options.directory));
    const existing = await findTemplate(api, name);
    await confirm(
      existing
        ? `Publish ${options.directory} as a new version of template ${name}?`
        : `Make template ${name} from ${options.directory}?`,
      options.yes,
    );
    const { version, created } = await pushTemplate(api, {
      name,
      directory: path.resolve(options.directory),
      message: options.message,
      versionName: options.name,
      variables: collectParameters(options.variable),
      activate: options.activate,
    });
    if (created) say(`Template ${name} is there. Use it: coder create --template ${name} <workspace>`);
    else
      say(`Template ${name} has version ${version.name}${options.activate ? ", now the active one" : ""}.`);
  } finally {
    api.close();
  }
}

async function list(output: string, command: Command): Promise<void> {
  const api = apiOf(command);
  try {
    const templates = await api.get<Template[]>("/templates");
    if (output === "json") return printJson(templates);
    if (templates.length === 0)
      say("No templates. Make one: coder templates init, then coder templates push");
    const now = Date.now();
    printTable(
      templates.map((template) => ({
        name: template.name,
        "last updated": `${formatAge(Date.parse(template.updated_at), now)} ago`,
        "used by": template.active_user_count < 0 ? "" : `${template.active_user_count} developers`,
        description: template.description,
      })),
      ["name", "last updated", "used by", "description"],
    );
  } finally {
    api.close();
  }
}
