import type { Command } from "commander";
import { Option } from "commander";
import { contextOf } from "../context.ts";
import { CliError, EXIT, reportError } from "../errors.ts";
import { planSsh, type SshFlags } from "../session/options.ts";
import { runSsh } from "../session/ssh.ts";
import { workspaceOfHost } from "../workspace.ts";

const collect = (value: string, all: string[]) => [...all, value];
const hidden = (flags: string, description: string) => new Option(flags, description).hideHelp();

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
    .addOption(hidden("--no-wait", "the same as --wait=no"))
    .option("--disable-autostart", "don't start a stopped workspace (CODER_SSH_DISABLE_AUTOSTART)")
    .option("-e, --env <name=value>", "set a variable in the session (repeatable)", collect, [])
    .option("-t, --force-tty", "give the command a terminal")
    .option("-T, --disable-tty", "give the shell none")
    .option("-A, --forward-agent", "let ssh in the workspace use your SSH agent (CODER_SSH_FORWARD_AGENT)")
    .addOption(
      new Option("--identity-agent <socket>", "the SSH agent to forward, instead of SSH_AUTH_SOCK's").env(
        "CODER_SSH_IDENTITY_AGENT",
      ),
    )
    .option(
      "-L, --local-forward <spec>",
      "[bind:]port:host:hostport from here, as ssh (repeatable)",
      collect,
      [],
    )
    .option(
      "-R, --remote-forward <spec>",
      "[bind:]port:host:hostport from the workspace, or sockets' paths, as ssh (repeatable)",
      collect,
      [],
    )
    .option("-N, --no-command", "only forward; no shell, no command")
    .option("-X, --forward-x11", "let programs there open restricted windows on your X display")
    .option("-Y, --forward-x11-trusted", "let them do there what local programs may")
    .addOption(
      new Option("--resume-window <duration>", "how long an unreachable session is kept for you")
        .default("24h")
        .env("CODER_SSH_RESUME_WINDOW"),
    )
    .option("--stdio", "speak SSH on stdin and stdout: for OpenSSH's ProxyCommand")
    .addOption(
      new Option(
        "--ssh-host-prefix <prefix>",
        "take this off the workspace's name, as written by config-ssh",
      ).env("CODER_SSH_SSH_HOST_PREFIX"),
    )
    .addOption(
      new Option("--hostname-suffix <suffix>", "take this off the end of the workspace's name").env(
        "CODER_SSH_HOSTNAME_SUFFIX",
      ),
    )
    .addOption(
      new Option("-l, --log-dir <folder>", "write what happens to the connection to a file there").env(
        "CODER_SSH_LOG_DIR",
      ),
    )
    // Editors' extensions pass these.
    .addOption(hidden("--network-info-dir <folder>", "keep a file about the connection there"))
    .addOption(hidden("--network-info-interval <duration>", "how often it is written").default("5s"))
    .addOption(hidden("--usage-app <name>", "accepted, without effect"))
    .addOption(hidden("--workspace-poll-interval <duration>", "accepted, without effect"))
    .passThroughOptions()
    .addHelpText(
      "after",
      `
Examples:
  coder ssh dev
  coder ssh dev -- 'cd project && make'
  tar c . | coder ssh dev tar x -C /tmp
  coder ssh dev -A -- git push
  coder ssh dev -N -R 8080:localhost:3000

A connection that fails is resumed by itself; what runs goes on meanwhile. On a terminal, ~. at the start of a
line leaves a session that no longer answers, and ~? lists what else there is.
The exit code is the command's; ${EXIT.connection} means the connection failed.`,
    )
    .action(async (workspace: string, words: string[], _: SshFlags, command: Command) => {
      try {
        const rest = optionsBehindName(words, command);
        process.exitCode = await ssh(workspace, rest, command);
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

async function ssh(host: string, behind: string[], command: Command): Promise<number> {
  const flags = command.opts<SshFlags>();
  const words = behind[0] === "--" ? behind.slice(1) : behind;
  const plan = planSsh(flags, process.env, words);
  const { url, token, configDir } = contextOf(command);
  if (!url || !token)
    throw new CliError("ERR_NOT_LOGGED_IN", "You are not logged in.", { hint: "Try `coder login <url>`." });
  const workspace = workspaceOfHost(host, { prefix: flags.sshHostPrefix, suffix: flags.hostnameSuffix });
  return await runSsh(plan, { url, token, configDir, workspace, words });
}
