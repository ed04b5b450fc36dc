import type { Duplex } from "node:stream";
import type { ChannelOpen } from "ssh2/lib/protocol/Protocol.js";
import {
  ANSWER,
  AnswerDecoder,
  encodeMetadata,
  FORWARD_VERSION,
  hostPortService,
  LISTEN_SERVICE,
  type ListenMetadata,
  parseHostPort,
} from "../../mesh/wire/forward.ts";
import type { ServerConnection } from "./connection.ts";
import { type ClientOpen, OPEN_FAILURE } from "./opens.ts";

/** Listeners in the workspace for one client. */
const MAX_LISTENERS = 64;
/** With "unix:" before it, what a service name may have. */
const MAX_PATH_BYTES = 251;
/** An agent gives a connection 10 s; a stalled path may cost some more. */
const ANSWER_TIMEOUT_MS = 30_000;

export interface ForwardsHost {
  connection: Promise<ServerConnection>;
  openToClient(open: ClientOpen, stream: Duplex): void;
  newToken(): string;
  log(message: string): void;
  /** What the client relies on is gone and can't be told in any other way. */
  lost(reason: string): void;
}

export type DirectResult = { stream: Duplex } | { reason: number; text: string };

interface Listener {
  stop(): void;
}

/** Forwards of an SSH client: direct-tcpip and direct-streamlocal to the workspace, listeners there and back. */
export class Forwards {
  readonly #host: ForwardsHost;
  readonly #listeners = new Map<string, Listener>();
  /** Asked for, not answered yet. */
  #starting = 0;

  constructor(host: ForwardsHost) {
    this.#host = host;
  }

  /**
   * Connects from the workspace to where a direct channel wants to.
   *
   * @throws {MeshError} when the workspace can't be reached
   */
  async connect(open: ChannelOpen): Promise<DirectResult> {
    const service = directService(open);
    if (service === undefined) return { reason: OPEN_FAILURE.connectFailed, text: "no such address" };
    const connection = await this.#host.connection;
    const stream = await connection.dial(service, new Uint8Array());
    const answer = await readAnswer(stream);
    if (answer.status === ANSWER.ok) return { stream };
    stream.destroy();
    // 5, a bad request, is none of SSH's reasons.
    const reason =
      answer.status <= OPEN_FAILURE.resourceShortage ? answer.status : OPEN_FAILURE.connectFailed;
    return { reason, text: answer.text };
  }

  /**
   * Serves a global request of RFC 4254 section 7.1 or OpenSSH's streamlocal ones.
   *
   * @returns what the success carries, or undefined: refused
   * @throws {MeshError} when the workspace can't be reached
   */
  async request(name: string, data: unknown): Promise<Buffer | undefined> {
    switch (name) {
      case "tcpip-forward": {
        const { bindAddr, bindPort } = data as { bindAddr: string; bindPort: number };
        if (bindPort > 65_535 || bindAddr.length > 255) return undefined;
        return await this.#listenTcp(bindAddr, bindPort);
      }
      case "cancel-tcpip-forward": {
        const { bindAddr, bindPort } = data as { bindAddr: string; bindPort: number };
        return this.#cancel(`tcp:${bindAddr}:${bindPort}`);
      }
      case "streamlocal-forward@openssh.com":
        return await this.#listenUnix((data as { socketPath: string }).socketPath);
      case "cancel-streamlocal-forward@openssh.com":
        return this.#cancel(`unix:${(data as { socketPath: string }).socketPath}`);
      default:
        return undefined;
    }
  }

  close(): void {
    for (const listener of [...this.#listeners.values()]) listener.stop();
  }

  async #listenTcp(address: string, port: number): Promise<Buffer | undefined> {
    let boundPort = port;
    const text = await this.#listen(
      { v: FORWARD_VERSION, token: this.#host.newToken(), kind: "tcp", host: address, port },
      (answer) => {
        if (port === 0) boundPort = portIn(answer);
        return `tcp:${address}:${boundPort}`;
      },
      (origin) => ({
        type: "forwarded-tcpip",
        boundAddress: address,
        boundPort,
        originAddress: origin?.address ?? "127.0.0.1",
        originPort: origin?.port ?? 0,
      }),
    );
    if (text === undefined) return undefined;
    if (port !== 0) return Buffer.alloc(0);
    const reply = Buffer.alloc(4);
    reply.writeUInt32BE(boundPort);
    return reply;
  }

  async #listenUnix(path: string): Promise<Buffer | undefined> {
    if (path.length === 0 || path.length > 4_096) return undefined;
    const text = await this.#listen(
      { v: FORWARD_VERSION, token: this.#host.newToken(), kind: "unix", path },
      () => `unix:${path}`,
      () => ({ type: "forwarded-streamlocal", path }),
    );
    return text === undefined ? undefined : Buffer.alloc(0);
  }

  /**
   * @param keyOf by which the listener is cancelled, from the answer's text
   * @returns the answer's text, or undefined: refused, with the reason in the log
   */
  async #listen(
    metadata: ListenMetadata,
    keyOf: (answer: string) => string,
    openFor: (origin: { address: string; port: number } | undefined) => ClientOpen,
  ): Promise<string | undefined> {
    if (this.#listeners.size + this.#starting >= MAX_LISTENERS) return undefined;
    this.#starting++;
    try {
      const connection = await this.#host.connection;
      // Before the agent can know the token, so that no connection comes too early.
      const undo = connection.accept(metadata.token, (stream, { origin }) =>
        this.#host.openToClient(openFor(origin), stream),
      );
      try {
        const stream = await connection.dial(LISTEN_SERVICE, encodeMetadata(metadata));
        const answer = await readAnswer(stream);
        if (answer.status !== ANSWER.ok) {
          stream.destroy();
          throw new Error(answer.text);
        }
        const key = keyOf(answer.text);
        this.#keep(key, stream, undo);
        return answer.text;
      } catch (error) {
        undo();
        throw error;
      }
    } finally {
      this.#starting--;
    }
  }

  #keep(key: string, stream: Duplex, undo: () => void): void {
    let isStopped = false;
    const listener: Listener = {
      stop: () => {
        isStopped = true;
        this.#listeners.delete(key);
        undo();
        stream.end();
        stream.destroy();
      },
    };
    this.#listeners.set(key, listener);
    stream.resume();
    stream.on("error", () => {});
    stream.on("close", () => {
      if (isStopped) return;
      listener.stop();
      this.#host.lost(
        `the workspace stopped listening (${key}): its agent was restarted or cannot be reached`,
      );
    });
    stream.on("end", () => stream.destroy());
  }

  #cancel(key: string): Buffer | undefined {
    const listener = this.#listeners.get(key);
    if (!listener) return undefined;
    listener.stop();
    return Buffer.alloc(0);
  }
}

function directService(open: ChannelOpen): string | undefined {
  if (open.type === "direct-streamlocal@openssh.com") {
    const { socketPath } = open.data;
    return socketPath.length > 0 && Buffer.byteLength(socketPath) <= MAX_PATH_BYTES
      ? `unix:${socketPath}`
      : undefined;
  }
  if (open.type !== "direct-tcpip") return undefined;
  const service = hostPortService("tcp", open.data.destIP, open.data.destPort);
  return parseHostPort(service) ? service : undefined;
}

function portIn(answer: string): number {
  try {
    const { port } = JSON.parse(answer) as { port?: unknown };
    if (Number.isInteger(port) && (port as number) > 0 && (port as number) <= 65_535) return port as number;
  } catch {
    // as below
  }
  throw new Error("the agent did not say which port it listens on");
}

/** Reads the ANSWER; what came behind it is put back. @throws {Error} the stream's, or that it ended before, or too late */
async function readAnswer(stream: Duplex): Promise<{ status: number; text: string }> {
  const decoder = new AnswerDecoder();
  return await new Promise((resolve, reject) => {
    const settle = () => {
      clearTimeout(timer);
      stream.off("data", onData).off("end", onEnd).off("error", onError).off("close", onEnd);
      stream.pause();
      stream.on("error", () => {});
    };
    const fail = (error: Error) => {
      settle();
      stream.destroy();
      reject(error);
    };
    const onData = (chunk: Uint8Array) => {
      try {
        const answer = decoder.push(chunk);
        if (!answer) return;
        settle();
        if (answer.rest.length > 0) stream.unshift(Buffer.from(answer.rest));
        resolve({ status: answer.status, text: answer.text });
      } catch (error) {
        fail(error instanceof Error ? error : new Error(String(error)));
      }
    };
    const onEnd = () => fail(new Error("the workspace gave no answer"));
    const onError = (error: Error) => fail(error);
    const timer = setTimeout(
      () => fail(new Error("the workspace did not answer in time")),
      ANSWER_TIMEOUT_MS,
    );
    stream.on("data", onData).on("end", onEnd).on("error", onError).on("close", onEnd);
  });
}
