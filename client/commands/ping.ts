import type { Command } from "commander";
import { apiOf } from "../context.ts";
import { durationMsIn, pause } from "../duration.ts";
import { CliError, EXIT } from "../errors.ts";
import { outputOption, printJson } from "../output.ts";
import { formatReply, formatSummary, type Reply, summarize, WHY_RELAYED } from "../pings.ts";
import { onPresses } from "../presses.ts";
import { reachWorkspace, startMeshFor } from "../reach.ts";
import { printable } from "../text.ts";

interface PingOptions {
  num: string;
  timeout: string;
  wait: string;
  output: string;
}

const MAX_COUNT = 1_000_000;

export function register(program: Command): void {
  program
    .command("ping")
    .argument("<workspace>", "name, or owner/name")
    .description("Measure the round trip to a workspace, and show the path it takes")
    .option("-n, --num <count>", "how many to send; 0 = until interrupted", "10")
    .option("-t, --timeout <duration>", "wait this long for each", "5s")
    .option("--wait <duration>", "between two", "1s")
    .addOption(outputOption("text", "json"))
    .addHelpText(
      "after",
      `
Examples:
  coder ping dev
  coder ping dev -n 100 --wait 100ms
  coder ping dev -n 3 -o json

The exit code is 0 when there was an answer, 1 when there was none.`,
    )
    .action(async (workspace: string, options: PingOptions, command: Command) => {
      process.exitCode = await ping(workspace, options, command);
    });
}

async function ping(text: string, options: PingOptions, command: Command): Promise<number> {
  const count = Number(options.num);
  if (!/^\d+$/.test(options.num) || count > MAX_COUNT)
    throw new CliError("ERR_BAD_COUNT", `"${options.num}" is no count`, { hint: "Write --num 5" });
  const timeoutMs = durationMsIn(options.timeout, "--timeout", 1, 600_000);
  const waitMs = durationMsIn(options.wait, "--wait", 0, 3_600_000);
  const isText = options.output === "text";
  const api = apiOf(command);
  const mesh = startMeshFor(api, text);
  const interrupted = new AbortController();
  const release = onPresses(["SIGINT", "SIGTERM"], () => interrupted.abort(new Error("interrupted")));
  const replies: Reply[] = [];
  let lost = 0;
  try {
    const { name, connection } = await reachWorkspace(api, mesh, text, {
      autostart: false,
      signal: interrupted.signal,
    });
    for (let i = 0; count === 0 || i < count; i++) {
      if (i > 0) await pause(waitMs, interrupted.signal);
      if (interrupted.signal.aborted) break;
      try {
        const reply = await untilAborted(connection.ping(timeoutMs), interrupted.signal);
        if (!reply) break;
        replies.push(reply);
        if (isText) process.stdout.write(`${printable(formatReply(name, reply, i + 1, count))}\n`);
      } catch (error) {
        lost++;
        if (isText) process.stdout.write(`no reply: ${printable((error as Error).message)}\n`);
      }
    }
  } catch (error) {
    if (interrupted.signal.aborted) return EXIT.interrupted;
    throw error;
  } finally {
    release();
    await mesh.close();
    api.close();
  }
  const summary = summarize(replies, lost);
  if (!isText)
    printJson({
      replies: replies.map(({ rttMs, path, region }) => ({ rtt_ms: Number(rttMs.toFixed(3)), path, region })),
      ...summary,
    });
  else process.stdout.write(`${formatSummary(summary)}${replies.length > 0 ? `${WHY_RELAYED}\n` : ""}`);
  return replies.length > 0 ? 0 : EXIT.failure;
}

function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const onAbort = () => resolve(undefined);
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
