import { Command, Option } from "commander";
import { reportError } from "./errors.ts";
import { VERSION } from "./version.ts";

interface CommandModule {
  register(program: Command): void;
}

/**
 * Which module registers a command. Only the one that is called gets loaded: IDEs start `coder ssh` often, and
 * it must never pay for a server.
 */
const MODULES: Record<string, () => Promise<CommandModule>> = {
  login: () => import("./commands/login.ts"),
  logout: () => import("./commands/login.ts"),
  whoami: () => import("./commands/login.ts"),
  templates: () => import("./commands/templates.ts"),
  template: () => import("./commands/templates.ts"),
  create: () => import("./commands/workspaces.ts"),
  list: () => import("./commands/workspaces.ts"),
  ls: () => import("./commands/workspaces.ts"),
  show: () => import("./commands/workspaces.ts"),
  start: () => import("./commands/builds.ts"),
  stop: () => import("./commands/builds.ts"),
  delete: () => import("./commands/builds.ts"),
  rm: () => import("./commands/builds.ts"),
  ssh: () => import("./commands/ssh.ts"),
  ping: () => import("./commands/ping.ts"),
  version: () => import("./commands/version.ts"),
  server: () => import("./commands/server.ts"),
  agent: () => import("./commands/agent.ts"),
  quickstart: () => import("./commands/quickstart.ts"),
};

/** Every command takes these, before its name and behind it. */
const GLOBAL_OPTIONS = [
  ["--url <url>", "server address (CODER_URL; default: the last login)"],
  ["--token <token>", "session token (CODER_SESSION_TOKEN; default: the last login)"],
  ["--global-config <dir>", "where the login is kept (CODER_CONFIG_DIR)"],
] as const;

/** Behind the command's name they are its own, for the parser; help shows them once. */
function addGlobalOptions(commands: readonly Command[]): void {
  for (const command of commands) {
    for (const [flags, description] of GLOBAL_OPTIONS)
      command.addOption(new Option(flags, description).hideHelp());
    addGlobalOptions(command.commands);
  }
}

function newProgram(): Command {
  const program = new Command("coder")
    .description("Remote development workspaces: Terraform builds them, an encrypted mesh reaches them.")
    .version(VERSION, "--version", "print the version")
    .enablePositionalOptions()
    .showHelpAfterError("Try `coder --help`.")
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, "error: ")) });
  for (const [flags, description] of GLOBAL_OPTIONS) program.option(flags, description);
  return program;
}

/** The first word that is no option and no option's value. */
function commandName(args: readonly string[]): string | undefined {
  for (let i = 0; i < args.length; i++) {
    if (["--url", "--token", "--global-config"].includes(args[i])) i++;
    else if (!args[i].startsWith("-")) return args[i];
  }
  return undefined;
}

async function main(args: string[]): Promise<void> {
  const name = commandName(args);
  const module = name === undefined ? undefined : MODULES[name];
  const program = newProgram();
  const modules = module ? [module] : [...new Map(Object.entries(MODULES)).values()];
  const loaded = new Set(await Promise.all(modules.map((load) => load())));
  for (const { register } of loaded) register(program);
  addGlobalOptions(program.commands);
  await program.parseAsync(args, { from: "user" });
}

main(process.argv.slice(2)).catch((error: unknown) => {
  process.exitCode = reportError(error);
});
