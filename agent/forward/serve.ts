import { WireError } from "../../mesh/wire/errors.ts";
import { ANSWER, decodeMetadata, ListenMetadata, parseHostPort } from "../../mesh/wire/forward.ts";
import { describe, type Logger } from "../logging.ts";
import {
  accept,
  closeOf,
  conclude,
  type DatagramStream,
  type IncomingStream,
  join,
  type Peer,
} from "../streams.ts";
import { type Listener, listenTcp, listenUnix } from "./listener.ts";
import { connectTcp, connectUnix, TargetError } from "./target.ts";
import { serveUdp } from "./udp.ts";

/** Connections, flows and listeners at once, of all clients. A stream's window is 256 KB and more each way. */
export const MAX_FORWARDS = 1_024;
/** Of which so many may still be connecting: a name server that is away holds each for 10 s. */
export const MAX_CONNECTING = 256;

export interface ForwardDeps {
  logger: Logger;
  /** Makes a unix socket's path absolute. */
  resolvePath(path: string): string;
  maxForwards?: number;
  maxConnecting?: number;
  connectTimeoutMs?: number;
  udpIdleMs?: number;
}

/** Every forward of the agent: connections and flows to targets, and listeners in the workspace. */
export class ForwardService {
  readonly #deps: ForwardDeps;
  readonly #streams = new Set<IncomingStream>();
  #connecting = 0;
  #closing = false;

  constructor(deps: ForwardDeps) {
    this.#deps = deps;
  }

  /** Open now. */
  get count(): number {
    return this.#streams.size;
  }

  /** Serves a stream opened to "tcp:HOST:PORT". Never rejects. */
  tcp(stream: IncomingStream): Promise<void> {
    return this.#admit(stream, () => {
      const target = parseHostPort(stream.service);
      if (target?.protocol !== "tcp") throw badRequest("a forward needs a host and a port from 1 to 65535");
      return this.#connect(stream, (signal) =>
        connectTcp(target.host, target.port, signal, this.#deps.connectTimeoutMs),
      );
    });
  }

  /** "unix:PATH" */
  unix(stream: IncomingStream): Promise<void> {
    return this.#admit(stream, () => {
      const path = stream.service.slice("unix:".length);
      if (!stream.service.startsWith("unix:") || path === "")
        throw badRequest("a forward needs a socket's path");
      return this.#connect(stream, (signal) =>
        connectUnix(this.#deps.resolvePath(path), signal, this.#deps.connectTimeoutMs),
      );
    });
  }

  /** "udp:HOST:PORT" */
  udp(stream: DatagramStream): Promise<void> {
    return this.#admit(stream, () => {
      const target = parseHostPort(stream.service);
      if (target?.protocol !== "udp") throw badRequest("a forward needs a host and a port from 1 to 65535");
      return serveUdp(stream, target.host, target.port, this.#deps.udpIdleMs);
    });
  }

  /** "listen": answers, then takes connections until the stream ends. */
  listen(stream: IncomingStream, peer: Pick<Peer, "open">): Promise<void> {
    return this.#admit(stream, async () => {
      const wanted = decodeMetadata(ListenMetadata, stream.metadata);
      const options = { peer, token: wanted.token, logger: this.#deps.logger };
      let listener: Listener;
      if (wanted.kind === "tcp") listener = await listenTcp(wanted.host, wanted.port, options);
      else listener = await listenUnix(this.#deps.resolvePath(wanted.path), options);
      stream.on("error", () => {});
      const stop = () => {
        listener.close();
        if (!stream.destroyed) stream.end();
      };
      const closed = closeOf(stream);
      if (stream.destroyed) return stop();
      stream.once("end", stop);
      stream.once("close", stop);
      stream.resume();
      const { kind } = wanted;
      this.#deps.logger.info({ kind, port: listener.port || undefined }, "listening for a client");
      accept(stream, kind === "tcp" ? JSON.stringify({ port: listener.port }) : "");
      await closed;
    });
  }

  /** Ends every forward and takes no more. */
  close(): void {
    this.#closing = true;
    for (const stream of this.#streams) stream.destroy(new Error("the workspace is stopping"));
  }

  async #connect(
    stream: IncomingStream,
    connect: (signal: AbortSignal) => ReturnType<typeof connectTcp>,
  ): Promise<void> {
    if (this.#connecting >= (this.#deps.maxConnecting ?? MAX_CONNECTING))
      throw new TargetError(
        ANSWER.resourceShortage,
        "the workspace is busy with other connections; try again",
      );
    const abandoned = new AbortController();
    const onClose = () => abandoned.abort();
    stream.once("close", onClose);
    this.#connecting++;
    let socket: Awaited<ReturnType<typeof connectTcp>>;
    try {
      socket = await connect(abandoned.signal);
    } finally {
      this.#connecting--;
      stream.removeListener("close", onClose);
    }
    if (!stream.destroyed) accept(stream);
    await join(stream, socket);
  }

  async #admit(stream: IncomingStream, serve: () => Promise<void>): Promise<void> {
    stream.on("error", () => {}); // reset by the client: its right
    if (this.#closing) return conclude(stream, ANSWER.resourceShortage, "the workspace is stopping");
    const limit = this.#deps.maxForwards ?? MAX_FORWARDS;
    if (this.#streams.size >= limit)
      return conclude(
        stream,
        ANSWER.resourceShortage,
        `the workspace already serves ${limit} forwarded connections; close some and try again`,
      );
    this.#streams.add(stream);
    try {
      await serve();
    } catch (error) {
      if (stream.destroyed) return;
      const { status, message } = answerTo(error);
      this.#deps.logger.debug({ service: stream.service.slice(0, 300), reason: message }, "a forward failed");
      await conclude(stream, status, message);
    } finally {
      this.#streams.delete(stream);
    }
  }
}

const badRequest = (message: string) => new TargetError(ANSWER.badRequest, message);

function answerTo(error: unknown): { status: number; message: string } {
  if (error instanceof TargetError) return { status: error.status, message: error.message };
  if (error instanceof WireError) return { status: ANSWER.badRequest, message: error.message };
  return { status: ANSWER.connectFailed, message: describe(error) };
}
