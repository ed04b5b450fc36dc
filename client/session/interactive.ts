import type { Duplex, Readable, Writable } from "node:stream";
import { encodeOpening, HeaderError, SESSION_SERVICE, type X11Request } from "../../mesh/wire/channel.ts";
import { MeshError } from "../../mesh/wire/errors.ts";
import { CliError, EXIT } from "../errors.ts";
import { forwardedEnvironment, ptyRequest, sessionHeader } from "./header.ts";
import { type RunSessionOptions, runSession, type SessionResult } from "./run.ts";
import { windowSize } from "./terminal.ts";

/** Whatever opens a stream to an agent. */
export interface StreamOpener {
  dial(service: string, metadata: Uint8Array): Promise<Duplex>;
}

export interface InteractiveOptions extends Pick<RunSessionOptions, "abort" | "onOutput" | "describe"> {
  /** For the login shell, unparsed; without it a shell. */
  command?: string;
  /** Default: a terminal for a shell when stdin is one. */
  tty?: boolean;
  /** Set in the session, over what follows the user by itself. */
  env?: Record<string, string>;
  /** Programs of the session may use the SSH agent, or the display, that the token leads back to. */
  agent?: { token: string };
  x11?: X11Request;
  /** Default: this process's own. */
  io?: {
    stdin: Readable & { isTTY?: boolean };
    stdout: Writable;
    stderr: Writable;
    env: NodeJS.ProcessEnv;
  };
}

/** As `interactiveSession`. @returns the exit code alone */
export async function runInteractive(connection: StreamOpener, options: InteractiveOptions): Promise<number> {
  return (await interactiveSession(connection, options)).exitCode;
}

/**
 * A shell or command on this process's terminal, pipes or files.
 *
 * @returns with the command's own exit code, or 255 when the session failed, the reason then on stderr
 * @throws {CliError} ERR_BAD_COMMAND when command and environment can't be carried
 */
export async function interactiveSession(
  connection: StreamOpener,
  options: InteractiveOptions,
): Promise<SessionResult> {
  const { stdin, stdout, stderr, env } = options.io ?? {
    stdin: process.stdin,
    stdout: process.stdout,
    stderr: process.stderr,
    env: process.env,
  };
  const localTerminal = stdin.isTTY === true;
  const wantsPty = options.tty ?? (options.command === undefined && localTerminal);
  const size = windowSize(stdout);
  const header = sessionHeader({
    command: options.command,
    env: { ...forwardedEnvironment(env), ...options.env },
    pty: wantsPty ? ptyRequest(size, env["TERM"]) : undefined,
    agent: options.agent,
    x11: options.x11,
  });
  let opening: ReturnType<typeof encodeOpening>;
  try {
    opening = encodeOpening(header);
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    throw new CliError("ERR_BAD_COMMAND", `the command can't be sent: ${error.message}`, {
      cause: error,
      hint: error instanceof HeaderError ? "Set fewer or shorter variables." : "Put it into a script file.",
      exitCode: EXIT.failure,
    });
  }
  const stream = await connection.dial(SESSION_SERVICE, opening.metadata);
  return await runSession(stream, {
    stdin,
    stdout,
    stderr,
    isTerminal: wantsPty && localTerminal,
    size,
    first: opening.first,
    abort: options.abort,
    onOutput: options.onOutput,
    describe: options.describe,
  });
}
