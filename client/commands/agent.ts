// Composition of an agent: its session service and scripts, on a node of the mesh.
import { type Command, Option } from "commander";
import { parseServerUrl } from "../config.ts";
import { CliError } from "../errors.ts";
import { VERSION } from "../version.ts";

interface AgentFlags {
  agentUrl?: string;
  agentToken?: string;
  logFile?: string;
  logDir?: string;
  scriptDataDir?: string;
  logLevel: string;
}

export function register(program: Command): void {
  program
    .command("agent")
    .description("Run in a workspace: let its users in (started by the template's init script)")
    .option("--agent-url <url>", "server address (CODER_AGENT_URL)", process.env["CODER_AGENT_URL"])
    .option("--agent-token <token>", "the agent's token; CODER_AGENT_TOKEN keeps it out of the process list")
    .option(
      "--log-file <file>",
      "JSON lines go here instead of stderr (CODER_AGENT_LOG_FILE)",
      process.env["CODER_AGENT_LOG_FILE"],
    )
    .option(
      "--log-dir <dir>",
      "where scripts' logs go; the temporary folder by default (CODER_AGENT_LOG_DIR)",
      process.env["CODER_AGENT_LOG_DIR"],
    )
    .option(
      "--script-data-dir <dir>",
      "where scripts keep data; in the temporary folder by default (CODER_AGENT_SCRIPT_DATA_DIR)",
      process.env["CODER_AGENT_SCRIPT_DATA_DIR"],
    )
    .addOption(
      new Option("--log-level <level>", "how much to log")
        .choices(["debug", "info", "warn", "error"])
        .default("info")
        .env("CODER_AGENT_LOG_LEVEL"),
    )
    .action((flags: AgentFlags) => run(flags));
}

async function run(flags: AgentFlags): Promise<void> {
  const token = flags.agentToken ?? process.env["CODER_AGENT_TOKEN"];
  if (!flags.agentUrl || !token)
    throw new CliError("ERR_NO_AGENT_TOKEN", "The agent needs the server's address and its token.", {
      hint: "Set CODER_AGENT_URL and CODER_AGENT_TOKEN; in a template, run coder_agent.<name>.init_script.",
    });
  const url = parseServerUrl(flags.agentUrl);
  const { leaveProcessOneToReaper } = await import("../../agent/reaper.ts");
  const nobodyReaps = leaveProcessOneToReaper();
  const [{ Agent }, { createAgentLogger }, { connectAgentMesh }] = await Promise.all([
    import("../../agent/agent.ts"),
    import("../../agent/logging.ts"),
    import("../../agent/mesh.ts"),
  ]);
  const logger = createAgentLogger({ file: flags.logFile, level: flags.logLevel });
  if (nobodyReaps) logger.warn({}, nobodyReaps);
  const agent: InstanceType<typeof Agent> = new Agent({
    url,
    token,
    logger,
    dataDir: flags.scriptDataDir,
    logDir: flags.logDir,
    connectMesh: () =>
      connectAgentMesh({ url, token, logger, onAgentId: (agentId) => void agent.identify(agentId) }),
    version: VERSION,
  });
  const stopping = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const)
    process.on(name, () => {
      logger.info({ signal: name }, "stopping");
      stopping.abort();
    });
  await agent.run(stopping.signal);
}
