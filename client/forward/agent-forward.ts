import { existsSync } from "node:fs";
import { CliError } from "../errors.ts";
import type { Accept } from "./dial.ts";
import { newToken, serveCallback } from "./remote.ts";

/** Where Windows' own OpenSSH agent listens. */
const WINDOWS_AGENT = "\\\\.\\pipe\\openssh-ssh-agent";

/**
 * Lets ssh in the workspace use this machine's SSH agent. Keys stay here; the workspace can ask for signatures while the
 * session lasts.
 *
 * @param socket of the agent; undefined: SSH_AUTH_SOCK
 * @returns the token for the session's header
 * @throws {CliError} ERR_NO_SSH_AGENT
 */
export function forwardSshAgent(
  accept: Accept,
  options: { socket: string | undefined; env: NodeJS.ProcessEnv; onProblem(text: string): void },
): { token: string } {
  const { env, onProblem } = options;
  const isWindows = process.platform === "win32";
  const socket = options.socket ?? env["SSH_AUTH_SOCK"] ?? (isWindows ? WINDOWS_AGENT : undefined);
  if (!socket)
    throw new CliError("ERR_NO_SSH_AGENT", "there is no SSH agent to forward: SSH_AUTH_SOCK is not set", {
      hint: "Start one with `eval $(ssh-agent)` and `ssh-add`, or leave -A out.",
    });
  if (!isWindows && !existsSync(socket))
    throw new CliError("ERR_NO_SSH_AGENT", `there is no SSH agent at ${socket}`, {
      hint: "Is it still running? `ssh-add -l` tells.",
    });
  const token = newToken();
  accept(token, (stream) => serveCallback(stream, { kind: "unix", path: socket }, onProblem));
  return { token };
}
