import type { Command } from "commander";
import { connectToAgent, startMesh } from "../connect.ts";
import { apiOf } from "../context.ts";
import { CliError, EXIT } from "../errors.ts";
import { outputOption, printJson } from "../output.ts";
import { runningWorkspace } from "../ready.ts";

interface PingOptions {
  num: string;
  timeout: string;
  wait: string;
  output: string;
}

/** "5s", "200ms", "1m" in ms. @throws {CliError} ERR_BAD_DURATION */
export function parseDurationMs(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)$/.exec(text);
  if (!match)
    throw new CliError("ERR_BAD_DURATION", `"${text}" is no duration`, {
      hint: "Write it as 200ms, 5s or 1m.",
    });
  return Number(match[1]) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[match[2] as "ms" | "s" | "m" | "h"];
}

export function register(program: Command): void {
  program
    .command("ping")
    .argument("<workspace>", "name, or owner/name")
    .description("Measure the round trip to a workspace, and show the path it takes")
    .option("-n, --num <count>", "how many replies to wait for; 0 = until interrupted", "10")
    .option("-t, --timeout <duration>", "wait this long for each", "5s")
    .option("--wait <duration>", "between two", "1s")
    .addOption(outputOption("text", "json"))
    .action(async (workspace: string, options: PingOptions, command: Command) => {
      process.exitCode = await ping(workspace, options, command);
    });
}

async function ping(name: string, options: PingOptions, command: Command): Promise<number> {
  const count = Number(options.num);
  if (!Number.isInteger(count) || count < 0)
    throw new CliError("ERR_BAD_COUNT", `"${options.num}" is no count`, { hint: "Write --num 5" });
  const timeoutMs = parseDurationMs(options.timeout);
  const waitMs = parseDurationMs(options.wait);
  const api = apiOf(command);
  const mesh = startMesh(api);
  const interrupted = new AbortController();
  const onSignal = () => interrupted.abort();
  process.once("SIGINT", onSignal);
  const replies: { rtt_ms: number; path: string; region: number }[] = [];
  let lost = 0;
  try {
    const { workspace, agent } = await runningWorkspace(api, name, { autostart: false });
    const connection = await connectToAgent(mesh, { agentId: agent.id, what: `workspace ${workspace.name}` });
    for (let i = 0; (count === 0 || i < count) && !interrupted.signal.aborted; i++) {
      if (i > 0) await pause(waitMs, interrupted.signal);
      if (interrupted.signal.aborted) break;
      try {
        const reply = await connection.ping(timeoutMs);
        replies.push({ rtt_ms: Number(reply.rttMs.toFixed(3)), path: reply.path, region: reply.region });
        if (options.output === "text")
          process.stdout.write(
            `pong from ${workspace.name} ${reply.via} in ${reply.rttMs.toFixed(2)} ms (${i + 1}${count ? `/${count}` : ""})\n`,
          );
      } catch (error) {
        lost++;
        if (options.output === "text") process.stdout.write(`no reply: ${(error as Error).message}\n`);
      }
    }
  } finally {
    process.off("SIGINT", onSignal);
    await mesh.close();
    api.close();
  }
  if (options.output === "json") printJson({ replies, lost });
  else if (replies.length > 0) {
    const sorted = replies.map(({ rtt_ms }) => rtt_ms).sort((a, b) => a - b);
    process.stdout.write(
      `${replies.length} replies, ${lost} lost; round trip min ${sorted[0]} / median ${sorted[sorted.length >> 1]} / max ${sorted.at(-1)} ms\n`,
    );
  }
  return replies.length > 0 ? 0 : EXIT.failure;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const finish = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", finish);
      resolve();
    };
    const timer = setTimeout(finish, ms);
    signal.addEventListener("abort", finish, { once: true });
  });
}
