import { existsSync, realpathSync } from "node:fs";
import path from "node:path";
import { type Command, Option } from "commander";
import { contextOf } from "../context.ts";
import { CliError } from "../errors.ts";
import { ApiClient } from "../http.ts";
import { confirm, prompt, say } from "../output.ts";
import { type DeploymentSsh, fetchDeploymentSsh } from "../ssh-config/deployment.ts";
import { unifiedDiff } from "../ssh-config/diff.ts";
import { expandHome, readText, replaceText } from "../ssh-config/file.ts";
import {
  findSection,
  HOST_KEY_ALIAS,
  recordedOptions,
  renderSection,
  replaceSection,
  type SectionOptions,
} from "../ssh-config/section.ts";
import { HOST_KEY_FILE, knownHostsLine, loadHostKey } from "../ssh-server/hostkey.ts";
import { printable } from "../text.ts";

const KNOWN_HOSTS_FILE = "ssh_known_hosts";
const NO_DEPLOYMENT: DeploymentSsh = {
  hostnamePrefix: undefined,
  hostnameSuffix: undefined,
  options: [],
  ignored: [],
  foreignNames: [],
};

interface Flags {
  sshConfigFile: string;
  sshOption: string[];
  usePreviousOptions?: boolean;
  dryRun?: boolean;
  yes?: boolean;
  skipProxyCommand?: boolean;
  hostnameSuffix?: string;
  sshHostPrefix?: string;
  wait?: SectionOptions["wait"];
  disableAutostart?: boolean;
  forceUnixFilepaths?: boolean;
  coderBinaryPath?: string;
  remove?: boolean;
}

const isTrue = (text: string | undefined) => text === "true" || text === "1";

export function register(program: Command): void {
  program
    .command("config-ssh")
    .description('Add an entry to your SSH configuration: "ssh coder.WORKSPACE" then works')
    .addOption(
      new Option("--ssh-config-file <file>", "the configuration to change")
        .default("~/.ssh/config")
        .env("CODER_SSH_CONFIG_FILE"),
    )
    .option(
      "-o, --ssh-option <option>",
      'an option of ssh for all workspaces, as "ForwardAgent=yes" (repeatable)',
      (value: string, all: string[]) => [...all, value],
      [],
    )
    .option("--use-previous-options", "keep what the configuration has from the last time")
    .option("-n, --dry-run", "print what would change, as a diff, and change nothing")
    .option("-y, --yes", "don't ask")
    .addOption(
      new Option("--ssh-host-prefix <prefix>", 'hosts are called PREFIXworkspace (default "coder.")').env(
        "CODER_CONFIGSSH_SSH_HOST_PREFIX",
      ),
    )
    .addOption(
      new Option("--hostname-suffix <suffix>", 'and also workspace.SUFFIX (default "coder")').env(
        "CODER_CONFIGSSH_HOSTNAME_SUFFIX",
      ),
    )
    .addOption(
      new Option("--wait <mode>", "wait for startup scripts: yes, no, or as the template says (default)")
        .choices(["yes", "no", "auto"])
        .env("CODER_CONFIGSSH_WAIT"),
    )
    .option("--disable-autostart", "don't start stopped workspaces (CODER_CONFIGSSH_DISABLE_AUTOSTART)")
    .option("--force-unix-filepaths", "write / where Windows writes \\ (CODER_CONFIGSSH_UNIX_FILE_PATHS)")
    .addOption(
      new Option("--coder-binary-path <file>", "the coder command that ssh is to run; default: this one").env(
        "CODER_CONFIGSSH_BINARY_PATH",
      ),
    )
    .addOption(new Option("--skip-proxy-command", "leave ProxyCommand out").hideHelp())
    .option("--remove", "take our entry out again")
    .addHelpText(
      "after",
      `
Examples:
  coder config-ssh
  coder config-ssh --dry-run
  coder config-ssh -o ForwardAgent=yes --wait no
  coder config-ssh --remove

Then: ssh coder.dev, scp file coder.dev:, or "coder.dev" as the host in an editor. With an owner or an agent:
coder.OWNER--WORKSPACE, coder.WORKSPACE.AGENT.`,
    )
    .action(configSsh);
}

async function configSsh(flags: Flags, command: Command): Promise<void> {
  const file = expandHome(flags.sshConfigFile);
  const before = readText(file);
  const old = findSection(before ?? "")?.section;
  if (flags.remove) {
    if (old === undefined) return say(`${file} has no entry of coder's.`);
    return await apply(flags, file, before, replaceSection(before ?? "", undefined));
  }
  const { configDir, url, token } = contextOf(command);
  const deployment = await deploymentOf(url, token);
  const given = optionsOf(flags, deployment, process.env);
  const options = await chosenOptions(flags, given, old);
  const knownHosts = path.join(configDir, KNOWN_HOSTS_FILE);
  const section = renderSection(withServerOptions(options, deployment), {
    program: [...thisProgram(options), "--global-config", configDir],
    knownHosts,
    isWindows: process.platform === "win32",
  });
  await apply(flags, file, before, replaceSection(before ?? "", section));
  if (flags.dryRun) return;
  const line = knownHostsLine(HOST_KEY_ALIAS, loadHostKey(path.join(configDir, HOST_KEY_FILE)));
  const known = readText(knownHosts);
  if (known !== line) replaceText(knownHosts, line, known);
  const name = options.sshHostPrefix ? `${options.sshHostPrefix}dev` : `dev.${options.hostnameSuffix}`;
  say(`Workspaces are hosts of ssh now. For one called "dev": ssh ${name}`);
}

async function apply(flags: Flags, file: string, before: string | undefined, after: string): Promise<void> {
  if ((before ?? "") === after) return say(`${file} needs no change.`);
  const diff = printable(Buffer.from(unifiedDiff(file, before ?? "", after), "latin1").toString());
  if (flags.dryRun) return void process.stdout.write(diff);
  if (!flags.yes) {
    process.stderr.write(`${diff}\n`);
    await confirm(`Change ${file}?`, false);
  }
  replaceText(file, after, before);
  say(`${file} was changed.`);
}

/** A login is not needed: without one, or while the server is away, the defaults serve. */
async function deploymentOf(url: string | undefined, token: string | undefined): Promise<DeploymentSsh> {
  if (!url || !token) {
    say("You are not logged in; `coder login` before you use it.");
    return NO_DEPLOYMENT;
  }
  const api = new ApiClient(url, token);
  try {
    const deployment = await fetchDeploymentSsh(api);
    if (deployment.ignored.length > 0)
      say(
        `The server wants options that only you may set, with --ssh-option: ${deployment.ignored.join(", ")}`,
      );
    if (deployment.foreignNames.length > 0)
      say(
        "The server wants workspaces to have names that other hosts may have. If you trust it: " +
          deployment.foreignNames.join(" "),
      );
    return deployment;
  } catch (error) {
    if (!(error instanceof CliError)) throw error;
    say(`The server's own SSH options could not be asked for: ${error.message}`);
    return NO_DEPLOYMENT;
  } finally {
    api.close();
  }
}

function optionsOf(flags: Flags, deployment: DeploymentSsh, env: NodeJS.ProcessEnv): SectionOptions {
  return {
    wait: flags.wait ?? "auto",
    disableAutostart: flags.disableAutostart ?? isTrue(env["CODER_CONFIGSSH_DISABLE_AUTOSTART"]),
    forceUnixFilePaths: flags.forceUnixFilepaths ?? isTrue(env["CODER_CONFIGSSH_UNIX_FILE_PATHS"]),
    skipProxyCommand: flags.skipProxyCommand ?? false,
    sshHostPrefix: flags.sshHostPrefix ?? deployment.hostnamePrefix ?? "coder.",
    hostnameSuffix: (flags.hostnameSuffix ?? deployment.hostnameSuffix ?? "coder").replace(/^\.+/, ""),
    coderBinaryPath: flags.coderBinaryPath ? path.resolve(flags.coderBinaryPath) : "",
    sshOptions: flags.sshOption,
  };
}

/** The user's own come first, which is what counts in ssh_config. They alone are recorded. */
function withServerOptions(options: SectionOptions, { options: fromServer }: DeploymentSsh): SectionOptions {
  const keyword = (line: string) => line.trim().split(/[\s=]/, 1)[0].toLowerCase();
  const own = new Set(options.sshOptions.map(keyword));
  return { ...options, serverOptions: fromServer.filter((line) => !own.has(keyword(line))) };
}

/** Options of the last time are neither lost nor kept by accident. */
async function chosenOptions(
  flags: Flags,
  given: SectionOptions,
  old: string | undefined,
): Promise<SectionOptions> {
  if (old === undefined) return given;
  const previous = recordedOptions(old, given);
  if (flags.usePreviousOptions) return previous;
  if (flags.yes || flags.dryRun || JSON.stringify(previous) === JSON.stringify(given)) return given;
  const answer = await prompt(
    "The entry was made with other options. Use the new ones? (yes = new, no = previous)",
    "--yes (new) or --use-previous-options",
  );
  return /^y(es)?$/i.test(answer.trim()) ? given : previous;
}

/** argv that starts this program again, whatever the current folder and PATH are. */
function thisProgram({ coderBinaryPath }: SectionOptions): string[] {
  if (coderBinaryPath) return [coderBinaryPath];
  const script = process.argv[1];
  const file = script && existsSync(script) ? realpathSync(script) : undefined;
  // A single-file executable has no script.
  if (!file || file === realpathSync(process.execPath)) return [process.execPath];
  if (!file.endsWith(".ts")) return [process.execPath, file];
  throw new CliError("ERR_NOT_BUILT", "ssh can't run the source of this program", {
    hint: "Run `npm run build`, then `node dist/coder.js config-ssh`; or give --coder-binary-path.",
  });
}
