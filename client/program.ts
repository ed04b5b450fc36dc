import { Command, Option } from "commander";
import { VERSION } from "./version.ts";

export interface CommandModule {
  register(program: Command): void;
}

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

/** The command line with the commands of `modules`. */
export function newProgram(modules: Iterable<CommandModule>): Command {
  const program = new Command("coder")
    .description("Remote development workspaces: Terraform builds them, an encrypted mesh reaches them.")
    .version(VERSION, "--version", "print the version")
    .enablePositionalOptions()
    .showHelpAfterError("Try `coder --help`.")
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, "error: ")) });
  for (const [flags, description] of GLOBAL_OPTIONS) program.option(flags, description);
  for (const { register } of modules) register(program);
  addGlobalOptions(program.commands);
  return program;
}
