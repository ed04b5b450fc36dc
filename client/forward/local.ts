import type { Socket } from "node:net";
import { hostPortService } from "../../mesh/wire/forward.ts";
import type { Dial } from "./dial.ts";
import { breakOff, joinAnswered } from "./join.ts";
import { type Listener, listen } from "./listen.ts";
import { type Endpoint, formatEndpoint } from "./spec.ts";

/** A program that connects waits no longer than this for a session to be there (the agent may be restarting). */
const DIAL_TIMEOUT_MS = 30_000;

export const serviceOf = (target: Endpoint): string =>
  target.kind === "tcp" ? hostPortService("tcp", target.host, target.port) : `unix:${target.path}`;

export interface LocalForwardOptions {
  dial: Dial;
  listen: Endpoint | { kind: "tcp"; host: undefined; port: number };
  target: Endpoint;
  /** A connection could not be carried; the listener goes on. */
  onProblem(text: string): void;
}

/** `ssh -L`: connections to this machine go on from the workspace. @throws {CliError} as `listen` */
export function forwardLocal({
  dial,
  listen: where,
  target,
  onProblem,
}: LocalForwardOptions): Promise<Listener> {
  return listen(where, (socket) => carry(socket, dial, target, onProblem));
}

function carry(socket: Socket, dial: Dial, target: Endpoint, onProblem: (text: string) => void): void {
  const gone = new AbortController();
  const timer = setTimeout(
    () => gone.abort(new Error("there is no connection to the workspace")),
    DIAL_TIMEOUT_MS,
  );
  const onClose = () => gone.abort();
  socket.once("close", onClose);
  dial(serviceOf(target), new Uint8Array(), gone.signal)
    .then(
      (stream) => {
        if (socket.destroyed) return void stream.destroy();
        joinAnswered(socket, stream, ({ text }) =>
          onProblem(`${formatEndpoint(target)}: ${text || "refused by the workspace"}`),
        );
      },
      (error: Error) => {
        if (!socket.destroyed) onProblem(`${formatEndpoint(target)}: ${error.message}`);
        breakOff(socket);
      },
    )
    .finally(() => {
      clearTimeout(timer);
      socket.off("close", onClose);
    });
}
