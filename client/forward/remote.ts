import { randomBytes } from "node:crypto";
import { connect } from "node:net";
import type { Duplex } from "node:stream";
import { encodeMetadata, LISTEN_SERVICE } from "../../mesh/wire/forward.ts";
import { readAnswer } from "./answer.ts";
import type { ForwardConnection } from "./dial.ts";
import { join } from "./join.ts";
import { type Endpoint, formatEndpoint, type SshForward } from "./spec.ts";

/** For a local program that should be there at once. */
const CONNECT_TIMEOUT_MS = 10_000;

/** What lets exactly one use of this client be called back: 16 random bytes in base64. */
export const newToken = (): string => randomBytes(16).toString("base64");

/**
 * Connects a stream that the agent opened with something on this machine.
 *
 * @param first bytes for the local side before the stream's own
 */
export function serveCallback(stream: Duplex, target: Endpoint, onProblem: (text: string) => void): void {
  stream.on("error", () => undefined);
  const socket =
    target.kind === "unix"
      ? connect({ path: target.path, allowHalfOpen: true })
      : connect({
          host: target.host,
          port: target.port,
          allowHalfOpen: true,
          noDelay: true,
          // Node drops an address after 250 ms, and "localhost" is often one where nobody listens beside the right one.
          autoSelectFamilyAttemptTimeout: Math.ceil(CONNECT_TIMEOUT_MS / 3),
        });
  const fail = (why: string) => {
    onProblem(`cannot reach ${formatEndpoint(target)} on this machine: ${why}`);
    socket.destroy();
    stream.destroy();
  };
  const timer = setTimeout(
    () => fail(`no answer within ${CONNECT_TIMEOUT_MS / 1_000} s`),
    CONNECT_TIMEOUT_MS,
  );
  const onError = (error: Error) => fail(error.message);
  const onGone = () => socket.destroy();
  stream.once("close", onGone);
  socket.once("error", onError).once("close", () => clearTimeout(timer));
  socket.once("connect", () => {
    clearTimeout(timer);
    stream.off("close", onGone);
    socket.off("error", onError);
    join(socket, stream);
  });
}

export interface RemoteForward {
  /** The port in the workspace, as the agent chose it for 0; 0 for a unix socket. */
  port: number;
  close(): void;
}

/**
 * `ssh -R`: connections to the workspace go on from this machine.
 *
 * @param onProblem told of connections that could not be carried, and when the listener in the workspace ends
 * @param onLost the listener in the workspace ended, and not by `close`
 * @throws {CliError} ERR_AGENT_REFUSED when the agent can't listen there; else as the dial
 */
export async function forwardRemote(
  { dial, accept }: ForwardConnection,
  { listen: asked, target }: SshForward,
  onProblem: (text: string) => void,
  onLost: () => void = () => undefined,
): Promise<RemoteForward> {
  // Without an address ssh's server listens on the loopback alone.
  const listen = asked.kind === "tcp" && asked.host === "" ? { ...asked, host: "localhost" } : asked;
  const token = newToken();
  const undo = accept(token, (stream) => serveCallback(stream, target, onProblem));
  const metadata =
    listen.kind === "unix"
      ? ({ v: 1, token, kind: "unix", path: listen.path } as const)
      : ({ v: 1, token, kind: "tcp", host: listen.host, port: listen.port } as const);
  let stream: Duplex | undefined;
  try {
    stream = await dial(LISTEN_SERVICE, encodeMetadata(metadata));
    stream.on("error", () => undefined);
    const text = await readAnswer(stream, `to listen on ${formatEndpoint(listen)}`);
    const port = listen.kind === "tcp" ? portOf(text) || listen.port : 0;
    let closed = false;
    stream.once("close", () => {
      undo();
      if (closed) return;
      onProblem(`the workspace no longer listens on ${formatEndpoint(listen)}`);
      onLost();
    });
    stream.resume();
    return {
      port,
      close: () => {
        closed = true;
        stream?.destroy();
      },
    };
  } catch (error) {
    undo();
    stream?.destroy();
    throw error;
  }
}

function portOf(text: string): number {
  try {
    const { port } = JSON.parse(text) as { port?: unknown };
    return typeof port === "number" && Number.isInteger(port) && port > 0 && port <= 65_535 ? port : 0;
  } catch {
    return 0;
  }
}
