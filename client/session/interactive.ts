import type { Duplex, Readable, Writable } from "node:stream";
import { encodeOpening, HeaderError, SESSION_SERVICE } from "../../mesh/wire/channel.ts";
import { MeshError } from "../../mesh/wire/errors.ts";
import { CliError, EXIT } from "../errors.ts";
import { forwardedEnvironment, ptyRequest, sessionHeader } from "./header.ts";
import { runSession } from "./run.ts";
import { windowSize } from "./terminal.ts";

/** Whatever opens a stream to an agent. */
export interface StreamOpener {
  openStream(service: string, metadata: Uint8Array): Promise<Duplex>;
}

export interface InteractiveOptions {
  /** For the login shell, unparsed; without it a shell. */
  command?: string;
  /** Default: a terminal for a shell when stdin is one. */
  tty?: boolean;
  /** Set in the session, over what follows the user by itself. */
  env?: Record<string, string>;
  abort?: AbortSignal;
  /** Default: this process's own. */
  io?: {
    stdin: Readable & { isTTY?: boolean };
    stdout: Writable;
    stderr: Writable;
    env: NodeJS.ProcessEnv;
  };
}

/**
 * A shell or command on this process's terminal, pipes or files.
 *
 * @returns the exit code: the command's own, or 255 when the session failed, the reason then on stderr
 * @throws {CliError} ERR_BAD_COMMAND when command and environment can't be carried
 */
export async function runInteractive(connection: StreamOpener, options: InteractiveOptions): Promise<number> {
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
  const stream = await connection.openStream(SESSION_SERVICE, opening.metadata);
  const { exitCode } = await runSession(stream, {
    stdin,
    stdout,
    stderr,
    isTerminal: wantsPty && localTerminal,
    size,
    first: opening.first,
    abort: options.abort,
  });
  return exitCode;
}
