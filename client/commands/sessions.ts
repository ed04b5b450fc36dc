import type { Command } from "commander";
import type { Workspace } from "../../control/contract/index.ts";
import {
  encodeMetadata,
  SESSIONS_SERVICE,
  SessionSummary,
  type SessionsMetadata,
} from "../../mesh/wire/forward.ts";
import { list as listOf } from "../../mesh/wire/shape.ts";
import { type AgentConnection, connectToAgent, type Mesh, startMesh } from "../connect.ts";
import { apiOf } from "../context.ts";
import { CliError, EXIT, reportError } from "../errors.ts";
import { readAnswer } from "../forward/answer.ts";
import type { ApiClient } from "../http.ts";
import { outputOption, printJson, printTable, say } from "../output.ts";
import { reachWorkspace, startMeshFor } from "../reach.ts";
import { sessionRow } from "../sessions.ts";

/** An answer is at most 64 KiB; these many lines fit. */
const MAX_SESSIONS = 4_096;
const Summaries = listOf(SessionSummary, { max: MAX_SESSIONS });
/** Agents asked at once for the list over all workspaces. */
const MAX_AT_ONCE = 8;
/** An agent that is not there must not hold the list up. */
const REACH_MS = 10_000;

export function register(program: Command): void {
  const sessions = program
    .command("sessions")
    .enablePositionalOptions()
    .description("Sessions that workspaces keep for you, also while you are away")
    .addHelpText(
      "after",
      `
Examples:
  coder sessions                       # of all your running workspaces
  coder sessions list dev
  coder sessions close dev 1f0c        # as much of the id as is unique
  coder sessions close dev --all-others

Closing a session ends what runs in it.`,
    );
  sessions
    .command("list", { isDefault: true })
    .alias("ls")
    .argument("[workspace]", "name, or owner/name; without it all of yours that run")
    .description("List them")
    .addOption(outputOption("table", "json"))
    .action(async (workspace: string | undefined, { output }: { output: string }, command: Command) => {
      process.exitCode = await list(workspace, output === "json", command);
    });
  sessions
    .command("close")
    .argument("<workspace>", "name, or owner/name")
    .argument("[id]", "of the session, or its unique beginning")
    .option("--all-others", "all but the one this command uses", false)
    .description("End one of them, or all")
    .action(
      async (
        workspace: string,
        id: string | undefined,
        { allOthers }: { allOthers: boolean },
        command: Command,
      ) => {
        process.exitCode = await close(workspace, id, allOthers, command);
      },
    );
}

async function ask(connection: AgentConnection, metadata: SessionsMetadata): Promise<string> {
  const stream = await connection.dial(SESSIONS_SERVICE, encodeMetadata(metadata));
  try {
    return await readAnswer(stream, "the list of sessions");
  } finally {
    stream.on("error", () => undefined).destroy();
  }
}

async function sessionsOf(connection: AgentConnection): Promise<SessionSummary[]> {
  const text = await ask(connection, { v: 1, op: "list" });
  try {
    return Summaries.parse(JSON.parse(text));
  } catch (cause) {
    throw new CliError("ERR_BAD_ANSWER", "the agent's list of sessions can't be read", {
      cause,
      hint: "Its version may differ from this command's: restart the workspace, or update this command.",
    });
  }
}

interface Listed extends SessionSummary {
  workspace: string;
}

async function list(text: string | undefined, asJson: boolean, command: Command): Promise<number> {
  const api = apiOf(command);
  const mesh = text === undefined ? startMesh(api) : startMeshFor(api, text);
  try {
    const { found, failed } =
      text === undefined ? await ofAll(api, mesh) : { found: await ofOne(api, mesh, text), failed: 0 };
    const others = found.filter(({ isCurrent }) => !isCurrent);
    if (asJson) printJson(others);
    else {
      const now = Date.now();
      printTable(
        others.map((session) => ({ workspace: session.workspace, ...sessionRow(session, now) })),
        ["workspace", "id", "started", "last heard", "kept", "path", "runs"],
      );
    }
    return failed > 0 ? EXIT.failure : 0;
  } finally {
    await mesh.close();
    api.close();
  }
}

async function ofOne(api: ApiClient, mesh: Mesh, text: string): Promise<Listed[]> {
  const { connection } = await reachWorkspace(api, mesh, text, { autostart: false });
  return (await sessionsOf(connection)).map((session) => ({ ...session, workspace: text }));
}

/** One workspace that can't be reached is told, and does not hide the others. */
async function ofAll(api: ApiClient, mesh: Mesh): Promise<{ found: Listed[]; failed: number }> {
  const { workspaces } = await api.get<{ workspaces: Workspace[] }>(
    `/workspaces?q=${encodeURIComponent("owner:me status:running")}`,
  );
  const agents = workspaces.flatMap((workspace) => {
    const all = workspace.latest_build.resources.flatMap((resource) => resource.agents);
    return all.map((agent) => ({
      id: agent.id,
      name: all.length > 1 ? `${workspace.name}.${agent.name}` : workspace.name,
    }));
  });
  const found: Listed[][] = agents.map(() => []);
  let failed = 0;
  let next = 0;
  const worker = async () => {
    while (next < agents.length) {
      const index = next++;
      const { id: agentId, name } = agents[index];
      try {
        const signal = AbortSignal.timeout(REACH_MS);
        const connection = await connectToAgent(mesh, { agentId, what: `workspace ${name}`, signal });
        found[index] = (await sessionsOf(connection)).map((session) => ({ ...session, workspace: name }));
      } catch (error) {
        failed++;
        const isLate = error instanceof Error && error.name === "TimeoutError";
        reportError(
          isLate
            ? new CliError("ERR_TIMEOUT", `workspace ${name} did not answer within ${REACH_MS / 1_000} s`)
            : error,
        );
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(MAX_AT_ONCE, agents.length) }, worker));
  return { found: found.flat(), failed };
}

async function close(text: string, id: string | undefined, all: boolean, command: Command): Promise<number> {
  if ((id === undefined) !== all)
    throw new CliError(
      "ERR_BAD_OPTION",
      all ? "name a session or --all-others, not both" : "no session was named",
      {
        hint: `\`coder sessions list ${text}\` shows their ids; --all-others closes all of them.`,
      },
    );
  if (id !== undefined && !/^[0-9a-f]{1,32}$/i.test(id))
    throw new CliError("ERR_BAD_OPTION", `"${id}" is no session's id`, {
      hint: `\`coder sessions list ${text}\` shows them.`,
    });
  const api = apiOf(command);
  const mesh = startMeshFor(api, text);
  try {
    const { connection } = await reachWorkspace(api, mesh, text, { autostart: false });
    const known = await sessionsOf(connection);
    const chosen = known.filter((session) =>
      id === undefined ? !session.isCurrent : session.id.startsWith(id.toLowerCase()),
    );
    if (id !== undefined && chosen.length !== 1)
      throw new CliError(
        "ERR_SESSION_NOT_FOUND",
        chosen.length === 0
          ? `workspace ${text} keeps no session ${id} of yours`
          : `several sessions begin with ${id}`,
        { hint: `\`coder sessions list ${text}\` shows them; write more of the id.` },
      );
    if (chosen.some(({ isCurrent }) => isCurrent))
      throw new CliError("ERR_SESSION_NOT_FOUND", `session ${id} is the one this command uses`);
    for (const { id: one } of chosen) await ask(connection, { v: 1, op: "close", id: one });
    say(chosen.length === 1 ? `Closed session ${chosen[0].id}.` : `Closed ${chosen.length} sessions.`);
    return 0;
  } finally {
    await mesh.close();
    api.close();
  }
}
