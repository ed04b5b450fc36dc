import type { Command } from "commander";
import { Option } from "commander";
import type { WorkspaceAgent } from "../../control/contract/index.ts";
import { type AgentConnection, connectToAgent, type Mesh, startMesh } from "../connect.ts";
import { apiOf } from "../context.ts";
import { CliError, EXIT, reportError } from "../errors.ts";
import { runningWorkspace, type WaitMode, waitForStartup } from "../ready.ts";
import { runInteractive } from "../session/interactive.ts";
import { endOnSignals } from "../session/signals.ts";

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

On a terminal, ~. at the start of a line leaves a session that no longer answers.
The exit code is the command's; ${EXIT.connection} means the connection failed.`,
    )
    .action(async (workspace: string, words: string[], _: SshOptions, command: Command) => {
      try {
        const rest = optionsBehindName(words, command);
        process.exitCode = await ssh(workspace, rest, command.opts<SshOptions>(), command);
      } catch (error) {
        // As OpenSSH: whatever kept the command from running is told from the command's own codes.
        const code = reportError(error);
        process.exitCode = code === EXIT.failure ? EXIT.connection : code;
      }
    });
}

/**
 * As OpenSSH: options may also stand between the name and the command, and `--` or the first other word ends them. The
 * parser itself stops at the name.
 *
 * @returns the command's words, perhaps behind a `--`
 */
function optionsBehindName(words: string[], command: Command): string[] {
  if (!words[0]?.startsWith("-") || words[0] === "--") return words;
  const { operands, unknown } = command.parseOptions(words);
  if (unknown[0] === "--help" || unknown[0] === "-h") command.help();
  if (unknown[0]?.startsWith("-") && unknown[0] !== "--" && operands.length === 0)
    throw new CliError("ERR_BAD_OPTION", `unknown option "${unknown[0]}"`, {
      hint: "Put -- before a command that starts with a dash; `coder ssh --help` lists the options.",
    });
  return [...operands, ...unknown];
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

/**
 * Waits for the agent as long as its template says (`connection_timeout`; 0: for ever).
 *
 * @throws {CliError} ERR_AGENT_TIMEOUT, or as connectToAgent
 */
async function reach(mesh: Mesh, name: string, agent: WorkspaceAgent): Promise<AgentConnection> {
  const seconds = agent.connection_timeout_seconds;
  const late = new AbortController();
  const timer = seconds > 0 ? setTimeout(() => late.abort(), seconds * 1_000) : undefined;
  try {
    return await connectToAgent(mesh, { agentId: agent.id, what: `workspace ${name}`, signal: late.signal });
  } catch (error) {
    if (!late.signal.aborted) throw error;
    throw new CliError(
      "ERR_AGENT_TIMEOUT",
      `the agent of workspace ${name} did not connect in ${seconds} s`,
      {
        hint: `Its log in the workspace says why. \`coder stop ${name}\` and \`coder start ${name}\` replace it.`,
        exitCode: EXIT.connection,
      },
    );
  } finally {
    clearTimeout(timer);
  }
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
    const connection = await reach(mesh, workspace.name, agent);
    await waitForStartup(api, agent, options.wait);
    // Until here a signal simply ends the process; from here there is a terminal to restore and a shell to hang up on.
    return await endOnSignals(async (abort) => {
      const code = await runInteractive(connection, {
        command: commandWords.length > 0 ? commandWords.join(" ") : undefined,
        tty: options.forceTty ? true : options.disableTty ? false : undefined,
        env,
        abort,
      });
      await mesh.close(); // tells the agent
      return code;
    });
  } finally {
    await mesh.close();
    api.close();
  }
}
