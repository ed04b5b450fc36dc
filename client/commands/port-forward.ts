import type { Command } from "commander";
import { apiOf } from "../context.ts";
import { durationMsIn } from "../duration.ts";
import { CliError, EXIT } from "../errors.ts";
import { Complaints } from "../forward/complaints.ts";
import type { Listener } from "../forward/listen.ts";
import { forwardLocal } from "../forward/local.ts";
import { MAX_FORWARDS, type PortForward, parsePortForwards } from "../forward/spec.ts";
import { forwardUdp } from "../forward/udp.ts";
import { outputOption, printJson, say } from "../output.ts";
import { onPresses } from "../presses.ts";
import { reachWorkspace, startMeshFor } from "../reach.ts";
import { Notifier } from "../session/notifier.ts";

interface PortForwardOptions {
  tcp: string[];
  udp: string[];
  disableAutostart?: boolean;
  resumeWindow?: string;
  output: string;
}

const DEFAULT_RESUME_WINDOW = "24h";
const collect = (value: string, all: string[]) => [...all, value];

export function register(program: Command): void {
  program
    .command("port-forward")
    .alias("tunnel")
    .argument("<workspace>", "name, or owner/name, each with .agent behind if it has several")
    .description("Forward ports of this machine to a workspace")
    .option(
      "-p, --tcp <spec>",
      "[address:]local[:remote], ranges, lists (repeatable; CODER_PORT_FORWARD_TCP)",
      collect,
      [],
    )
    .option("--udp <spec>", "the same for UDP (repeatable; CODER_PORT_FORWARD_UDP)", collect, [])
    .option("--disable-autostart", "don't start a stopped workspace (CODER_SSH_DISABLE_AUTOSTART)")
    .option(
      "--resume-window <duration>",
      `how long open connections are kept while the workspace is unreachable (default ${DEFAULT_RESUME_WINDOW}; CODER_SSH_RESUME_WINDOW)`,
    )
    .addOption(outputOption("text", "json"))
    .addHelpText(
      "after",
      `
Examples:
  coder port-forward dev --tcp 8080                  # 127.0.0.1:8080 here to 8080 there
  coder port-forward dev --tcp 8080:3000,9000        # 8080 here to 3000 there, and 9000
  coder port-forward dev --tcp 8080-8090:9080-9090   # ranges of the same length
  coder port-forward dev --tcp 0.0.0.0:8080:80       # for the whole network
  coder port-forward dev --udp 5353:53
  coder port-forward dev --tcp 0:8080                # any free port here

Ctrl-C ends it. A connection that fails is resumed by itself, with everything that is open.`,
    )
    .action(async (workspace: string, options: PortForwardOptions, command: Command) => {
      process.exitCode = await portForward(workspace, options, command);
    });
}

/** Flags, or else the variables that stand for them. @throws {CliError} ERR_BAD_FORWARD */
export function forwardsOf(
  { tcp, udp }: Pick<PortForwardOptions, "tcp" | "udp">,
  env: NodeJS.ProcessEnv,
): PortForward[] {
  const texts = (flag: readonly string[], variable: string) =>
    flag.length > 0 ? flag : env[variable] ? [env[variable]] : [];
  const forwards = [
    ...parsePortForwards(texts(tcp, "CODER_PORT_FORWARD_TCP"), "tcp"),
    ...parsePortForwards(texts(udp, "CODER_PORT_FORWARD_UDP"), "udp"),
  ];
  if (forwards.length === 0)
    throw new CliError("ERR_BAD_FORWARD", "no port to forward was named", {
      hint: "Name one with --tcp 8080 or --udp 53; `coder port-forward --help` has examples.",
    });
  if (forwards.length > MAX_FORWARDS)
    throw new CliError("ERR_BAD_FORWARD", `that makes more than ${MAX_FORWARDS} forwards`, {
      hint: "Forward fewer ports.",
    });
  return forwards;
}

async function portForward(text: string, options: PortForwardOptions, command: Command): Promise<number> {
  const forwards = forwardsOf(options, process.env);
  const resumeWindowMs = durationMsIn(
    options.resumeWindow ?? process.env["CODER_SSH_RESUME_WINDOW"] ?? DEFAULT_RESUME_WINDOW,
    "--resume-window",
    10_000,
    86_400_000,
  );
  const autostart = !options.disableAutostart && process.env["CODER_SSH_DISABLE_AUTOSTART"] !== "true";
  const api = apiOf(command);
  const mesh = startMeshFor(api, text);
  const interrupted = new AbortController();
  const release = onPresses(["SIGINT", "SIGTERM", "SIGHUP"], () => {
    if (interrupted.signal.aborted) process.exit(EXIT.interrupted);
    interrupted.abort(new CliError("ERR_INTERRUPTED", "interrupted", { exitCode: EXIT.interrupted }));
  });
  const notifier = process.stderr.isTTY ? new Notifier({ stderr: process.stderr, raw: false }) : undefined;
  const listeners: Listener[] = [];
  try {
    const { connection, name } = await reachWorkspace(api, mesh, text, {
      autostart,
      resumeWindowMs,
      signal: interrupted.signal,
    });
    const complaints = new Complaints();
    const onProblem = (problem: string) => {
      const line = complaints.line(problem, performance.now());
      if (line !== undefined) say(`error: ${line}`);
    };
    if (notifier) connection.watch((event) => notifier.onEvent(event));
    // A dial must not end with the command's own signal: connections are closed below, all at once.
    const dial = (service: string, metadata: Uint8Array, signal?: AbortSignal) =>
      connection.dial(service, metadata, signal);
    const shown: { protocol: string; local: string; remote: string }[] = [];
    for (const { protocol, address, localPort, remotePort } of forwards) {
      const listener =
        protocol === "tcp"
          ? await forwardLocal({
              dial,
              listen: { kind: "tcp", host: address as undefined, port: localPort },
              target: { kind: "tcp", host: "localhost", port: remotePort },
              onProblem,
            })
          : await forwardUdp({ dial, address, localPort, remotePort, onProblem });
      listeners.push(listener);
      const line = { protocol, local: listener.at, remote: `${name}:${remotePort}` };
      if (options.output === "json") shown.push(line);
      else process.stdout.write(`Forwarding ${protocol}://${line.local} -> ${line.remote}\n`);
    }
    if (options.output === "json") printJson(shown);
    else say("Ready. Ctrl-C ends it.");
    await untilAborted(interrupted.signal);
    return 0;
  } catch (error) {
    if (interrupted.signal.aborted && error === interrupted.signal.reason) return EXIT.interrupted;
    throw error;
  } finally {
    release();
    notifier?.stop();
    await Promise.all(listeners.map((listener) => listener.close()));
    await mesh.close();
    api.close();
  }
}

function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
