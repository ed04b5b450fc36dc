// `coder ssh`: everything behind the command line.
import path from "node:path";
import type { MeshLogger } from "../../mesh/node/node.ts";
import type { AgentConnection, Mesh } from "../connect.ts";
import { pause } from "../duration.ts";
import { ApiClient } from "../http.ts";
import { reachWorkspace, startMeshFor } from "../reach.ts";
import { printable } from "../text.ts";
import { interactiveSession } from "./interactive.ts";
import { Notifier } from "./notifier.ts";
import type { SshPlan } from "./options.ts";
import { EXIT_CONNECTION } from "./run.ts";
import { endOnSignals } from "./signals.ts";

/** A user who left a silent session does not wait for its orderly end. */
const LEAVE_MS = 250;

export interface SshTarget {
  url: string;
  token: string;
  configDir: string;
  workspace: string;
  /** Joined by spaces, as ssh does. */
  words: readonly string[];
}

/** @returns the exit code: the command's own, or 255 @throws {CliError} what kept the session from starting */
export async function runSsh(plan: SshPlan, target: SshTarget): Promise<number> {
  const logger = plan.logDir ? (await import("./log-file.ts")).openLogFile(plan.logDir, "ssh") : undefined;
  const api = new ApiClient(target.url, target.token);
  // The mesh comes up at once, and the first thing it asks for is this workspace's agent.
  const mesh = startMeshFor(api, target.workspace, { logger });
  const reach = () =>
    reachWorkspace(api, mesh, target.workspace, {
      autostart: plan.autostart,
      wait: plan.wait,
      resumeWindowMs: plan.resumeWindowMs,
      eager: true,
    });
  const release = plan.stdio ? ignoreHangups() : undefined;
  try {
    if (plan.stdio) return await stdio(plan, target, logger, reach);
    const { connection } = await reach();
    // Until here a signal simply ends the process; from here there is a terminal to restore and a shell to hang up on.
    return await endOnSignals((abort) => session(plan, target, mesh, connection, abort));
  } finally {
    await mesh.close();
    api.close();
    release?.();
  }
}

/**
 * An SSH client sends its ProxyCommand SIGHUP when it leaves. That must not cut off our goodbye: the agent would keep the
 * session, its listeners and its programs for as long as it keeps one that was lost.
 */
function ignoreHangups(): () => void {
  const ignore = () => undefined;
  const signals = ["SIGHUP", "SIGINT"] as const;
  for (const signal of signals) process.on(signal, ignore);
  return () => {
    for (const signal of signals) process.off(signal, ignore);
  };
}

async function session(
  plan: SshPlan,
  { words }: SshTarget,
  mesh: Mesh,
  connection: AgentConnection,
  abort: AbortSignal,
): Promise<number> {
  const tty = plan.tty ?? words.length === 0;
  const raw = !plan.noCommand && tty && process.stdin.isTTY === true;
  const notifier = process.stderr.isTTY ? new Notifier({ stderr: process.stderr, raw }) : undefined;
  const unwatch = notifier && connection.watch((event) => notifier.onEvent(event));
  const undo: (() => unknown)[] = [];
  try {
    const onProblem = await problemTeller(plan, raw);
    const lost = onceLost();
    for (const close of await openForwards(plan, connection, onProblem, lost.tell)) undo.push(close);
    const { accept } = connection;
    const agent = plan.agent
      ? (await import("../forward/agent-forward.ts")).forwardSshAgent(accept, {
          socket: plan.agent.socket,
          env: process.env,
          onProblem,
        })
      : undefined;
    const x11 = plan.x11
      ? await (await import("../forward/x11-serve.ts")).forwardX11(accept, {
          display: process.env["DISPLAY"],
          trusted: plan.x11.trusted,
          onProblem,
        })
      : undefined;
    if (plan.networkInfo)
      undo.push((await import("./network-info.ts")).writeNetworkInfo(connection, plan.networkInfo));

    if (plan.noCommand) {
      await Promise.race([lost.happened, aborted(abort)]);
      await mesh.close();
      return abort.aborted ? 0 : EXIT_CONNECTION;
    }
    const result = await interactiveSession(connection, {
      command: words.length > 0 ? words.join(" ") : undefined,
      tty: plan.tty,
      env: plan.env,
      agent,
      x11,
      abort,
      onOutput: raw && notifier ? (bytes) => notifier.onOutput(bytes) : undefined,
      describe: async () => {
        const { via, rttMs } = await connection.ping();
        return `connected ${via}, round trip ${rttMs.toFixed(1)} ms`;
      },
    });
    if (result.left) {
      // The agent may be out of reach: it is told as far as that goes at once.
      await Promise.race([mesh.close(), pause(LEAVE_MS, new AbortController().signal)]);
      process.exit(result.exitCode);
    }
    // The agent is told. What a command that ended has not read by now it never will; forwards may have more to say.
    await mesh.close({ deliver: result.cutShort === true || needsTelling(plan) });
    return result.exitCode;
  } finally {
    unwatch?.();
    notifier?.stop();
    for (const step of undo) step();
  }
}

const aborted = (signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    if (signal.aborted) return resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
    // What is forwarded may all be idle: something must keep the process.
    const alive = setInterval(() => undefined, 60_000);
    signal.addEventListener("abort", () => clearInterval(alive), { once: true });
  });

function onceLost(): { tell: () => void; happened: Promise<void> } {
  let tell: () => void = () => undefined;
  const happened = new Promise<void>((resolve) => {
    tell = resolve;
  });
  return { tell: () => tell(), happened };
}

const needsTelling = ({ agent, x11, local, remote }: SshPlan) =>
  agent !== undefined || x11 !== undefined || local.length + remote.length > 0;

/** Lines about forwards, each kind not too often. A shell without forwards doesn't pay for it. */
async function problemTeller(plan: SshPlan, raw: boolean): Promise<(text: string) => void> {
  if (!needsTelling(plan)) return () => undefined;
  const { Complaints } = await import("../forward/complaints.ts");
  const complaints = new Complaints();
  return (text) => {
    const line = complaints.line(printable(text), performance.now());
    if (line !== undefined) process.stderr.write(raw ? `\r\n[coder] ${line}\r\n` : `[coder] ${line}\n`);
  };
}

/** @returns how to close each @throws {CliError} for the first that can't be had; those before it are closed */
async function openForwards(
  { local, remote }: SshPlan,
  connection: AgentConnection,
  onProblem: (text: string) => void,
  onLost: () => void,
): Promise<(() => unknown)[]> {
  const closers: (() => unknown)[] = [];
  if (local.length + remote.length === 0) return closers;
  const [{ forwardLocal }, { forwardRemote }, { formatEndpoint }] = await Promise.all([
    import("../forward/local.ts"),
    import("../forward/remote.ts"),
    import("../forward/spec.ts"),
  ]);
  try {
    for (const { listen, target } of local) {
      // As ssh: "*" is all addresses, none is this machine alone.
      const where =
        listen.kind === "tcp"
          ? ({
              ...listen,
              host: listen.host === "" ? undefined : listen.host === "*" ? "::" : listen.host,
            } as const)
          : listen;
      const listener = await forwardLocal({
        dial: connection.dial,
        listen: where as typeof listen,
        target,
        onProblem,
      });
      closers.push(() => listener.close());
    }
    for (const forward of remote) {
      const { port, close } = await forwardRemote(connection, forward, (text) => onProblem(text), onLost);
      closers.push(close);
      if (forward.listen.kind === "tcp" && forward.listen.port === 0)
        process.stderr.write(
          `Allocated port ${port} for remote forward to ${formatEndpoint(forward.target)}\r\n`,
        );
    }
    return closers;
  } catch (error) {
    for (const close of closers) close();
    throw error;
  }
}

/** Serves the SSH protocol itself on stdin and stdout; it begins while the workspace is still being reached. */
async function stdio(
  plan: SshPlan,
  { configDir }: SshTarget,
  logger: MeshLogger | undefined,
  reach: () => Promise<{ connection: AgentConnection }>,
): Promise<number> {
  const connection = reach().then((reached) => reached.connection);
  connection.catch(() => undefined); // runStdio tells it
  const { runStdio } = await import("../ssh-server/stdio.ts");
  const { HOST_KEY_FILE } = await import("../ssh-server/hostkey.ts");
  // OpenSSH hands its own stderr to the proxy command: a notice there reaches the terminal, which is raw.
  const notifier = process.stderr.isTTY ? new Notifier({ stderr: process.stderr, raw: true }) : undefined;
  const undo: (() => void)[] = [];
  connection.then(
    (ready) => {
      if (notifier) undo.push(ready.watch((event) => notifier.onEvent(event)));
      if (plan.networkInfo) {
        const { networkInfo } = plan;
        void import("./network-info.ts").then(({ writeNetworkInfo }) =>
          undo.push(writeNetworkInfo(ready, networkInfo)),
        );
      }
    },
    () => undefined,
  );
  try {
    return await runStdio({
      connection,
      hostKeyPath: path.join(configDir, HOST_KEY_FILE),
      stdin: process.stdin,
      stdout: process.stdout,
      stderr: process.stderr,
      log: (message) => logger?.debug({}, message),
    });
  } finally {
    for (const step of undo) step();
    notifier?.stop();
  }
}
