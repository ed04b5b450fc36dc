import type { Command } from "commander";
import { Option } from "commander";
import { connectToAgent, startMesh } from "../connect.ts";
import { apiOf } from "../context.ts";
import { CliError, EXIT } from "../errors.ts";
import { runningWorkspace, type WaitMode, waitForStartup } from "../ready.ts";
import { runInteractive } from "../session/interactive.ts";

interface SshOptions {
  wait: WaitMode;
  disableAutostart?: boolean;
  env: string[];
  forceTty?: boolean;
  disableTty?: boolean;
}

export function register(program: Command): void {
  program
    .command("ssh")
    .argument("<workspace>", "name, or owner/name, each with .agent behind if it has several")
    .argument("[command...]", "run this instead of a shell; words are joined by spaces, as ssh does")
    .description("Open a shell in a workspace, or run a command there")
    .addOption(
      new Option("--wait <mode>", "wait for startup scripts: yes, no, or as the template says")
        .choices(["yes", "no", "auto"])
        .default("auto")
        .env("CODER_SSH_WAIT"),
    )
    .option("--disable-autostart", "don't start a stopped workspace (CODER_SSH_DISABLE_AUTOSTART)")
    .option(
      "-e, --env <name=value>",
      "set a variable in the session (repeatable)",
      (value: string, all: string[]) => [...all, value],
      [],
    )
    .option("-t, --force-tty", "give the command a terminal")
    .option("-T, --disable-tty", "give the shell none")
    .passThroughOptions()
    .addHelpText(
      "after",
      `
Examples:
  coder ssh dev
  coder ssh dev -- 'cd project && make'
  tar c . | coder ssh dev tar x -C /tmp

The exit code is the command's; ${EXIT.connection} means the connection failed.`,
    )
    .action(async (workspace: string, words: string[], options: SshOptions, command: Command) => {
      process.exitCode = await ssh(workspace, words, options, command);
    });
}

function parseEnv(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf("=");
      if (at < 1)
        throw new CliError("ERR_BAD_ENV", `"${pair}" is not NAME=VALUE`, {
          hint: "Write --env LANG=C.UTF-8",
        });
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

async function ssh(name: string, words: string[], options: SshOptions, command: Command): Promise<number> {
  const env = parseEnv(options.env);
  const commandWords = words[0] === "--" ? words.slice(1) : words;
  const api = apiOf(command);
  // The mesh comes up while the API is asked which agent to reach: their round trips overlap.
  const mesh = startMesh(api);
  try {
    const autostart =
      options.disableAutostart !== true && process.env["CODER_SSH_DISABLE_AUTOSTART"] !== "true";
    const { workspace, agent } = await runningWorkspace(api, name, { autostart });
    const connection = await connectToAgent(mesh, { agentId: agent.id, what: `workspace ${workspace.name}` });
    await waitForStartup(api, agent, options.wait);
    return await runInteractive(connection, {
      command: commandWords.length > 0 ? commandWords.join(" ") : undefined,
      tty: options.forceTty ? true : options.disableTty ? false : undefined,
      env,
    });
  } finally {
    await mesh.close();
    api.close();
  }
}
