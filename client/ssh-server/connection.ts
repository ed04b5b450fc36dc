import type { Duplex } from "node:stream";
import { MeshError } from "../../mesh/wire/errors.ts";
import type { CallbackMetadata } from "../../mesh/wire/forward.ts";
import { CliError } from "../errors.ts";

/** An agent within reach, as the SSH server uses it. */
export interface ServerConnection {
  /** Opens a stream to one of the agent's services. The stream ends half by half; `destroy` resets it. */
  dial(service: string, metadata: Uint8Array): Promise<Duplex>;
  /** Lets the agent open streams that carry `token`. @returns the undo */
  accept(token: string, handler: (stream: Duplex, metadata: CallbackMetadata) => void): () => void;
}

/** What kept a session from starting, or cut it off: lines for the user's terminal. */
export function describeFailure(error: unknown): string {
  if (error instanceof CliError) return `error: ${error.message}\n${error.hint ? `${error.hint}\n` : ""}`;
  const message = error instanceof Error ? error.message : String(error);
  // An agent resets a session only when it stops, or when we broke the protocol.
  const reason =
    error instanceof MeshError && error.code === "ERR_STREAM_RESET"
      ? "the workspace ended it, as it does when it is stopped"
      : message;
  return (
    `error: the session was cut off: ${reason}\n` +
    "Run the command again; `coder show` says whether the workspace still runs.\n"
  );
}

/** Why the workspace hung up on a session, in its own words: lines for the user's terminal. */
export const describeEnding = (reason: string): string =>
  `error: the session was cut off: the workspace ended it (${reason})\n` +
  "`coder show` says how it is; `coder start` starts it again.\n";
