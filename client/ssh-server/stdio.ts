import type { EventEmitter } from "node:events";
import type { Readable, Writable } from "node:stream";
import { CliError, EXIT } from "../errors.ts";
import type { ServerConnection } from "./connection.ts";
import { loadHostKey } from "./hostkey.ts";
import { SshServer } from "./server.ts";
import { Transport } from "./transport.ts";

/** How long an SSH client may take to ask for something and hear from it that the workspace can't be reached. */
const FAILURE_GRACE_MS = 2_000;

export interface StdioOptions {
  /** May come later: key exchange and login do not wait for it. A rejection is told where the user sees it. */
  connection: Promise<ServerConnection>;
  /** Made if it does not exist. */
  hostKeyPath: string;
  stdin: Readable & { isTTY?: boolean };
  stdout: Writable;
  stderr: Writable;
  /** Support's view of what happens; never the user's data. */
  log?: (message: string) => void;
  /** Where signals come from. Default: the process. */
  signals?: EventEmitter;
}

/**
 * Serves SSH on a pair of pipes to the program that started us, the `ProxyCommand` of an SSH client, until that goes
 * away. Its end of the pipe is what ends us: Ctrl-C and a closed terminal reach us too, but a client in the background
 * or under nohup stays, and so do we. Every session still open gets SIGHUP.
 *
 * @returns the process's exit code: 0 when the client left, 255 when a session was told why it failed
 * @throws {CliError} ERR_HOST_KEY, ERR_STDIO_TERMINAL
 * @throws what `connection` was rejected with, unless a session has told it
 */
export async function runStdio(options: StdioOptions): Promise<number> {
  const { connection, hostKeyPath, stdin, stdout, stderr, log = () => {}, signals = process } = options;
  connection.catch(() => {}); // handled below, or by the first session
  if (stdin.isTTY)
    throw new CliError(
      "ERR_STDIO_TERMINAL",
      "--stdio speaks SSH on its standard input, which is a terminal",
      {
        hint: "It is what `coder config-ssh` makes ssh run. For a shell, leave --stdio out.",
        exitCode: EXIT.connection,
      },
    );
  const hostKey = loadHostKey(hostKeyPath);
  let told = false;
  let timer: NodeJS.Timeout | undefined;
  const undo: (() => void)[] = [];
  let server: SshServer | undefined;
  try {
    return await new Promise<number>((resolve, reject) => {
      server = new SshServer(
        (handler) => new Transport({ input: stdin, output: stdout }, hostKey, handler),
        connection,
        {
          onEnd: (error) => {
            log(error ? `the SSH connection failed: ${error.message}` : "the SSH client has left");
            if (error) stderr.write(`error: ${error.message}\n`);
            resolve(error || told ? EXIT.connection : 0);
          },
          onFailureTold: () => {
            told = true;
          },
          log,
        },
      );
      connection.catch((error: unknown) => {
        timer = setTimeout(() => (told ? resolve(EXIT.connection) : reject(error)), FAILURE_GRACE_MS);
      });
      const on = (signal: NodeJS.Signals, listener: () => void) => {
        signals.on(signal, listener);
        undo.push(() => signals.removeListener(signal, listener));
      };
      on("SIGINT", () => {});
      on("SIGHUP", () => {});
      on("SIGTERM", () => resolve(EXIT.connection));
    });
  } finally {
    clearTimeout(timer);
    for (const step of undo) step();
    server?.close();
    stdin.destroy(); // else the pipe keeps the process alive
  }
}
