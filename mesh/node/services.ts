// Which streams a peer may open at this node, and who gets them. An agent has services, which grants permit; a client
// has doors: tokens it made for one agent, without which that agent can open nothing here.

import { WireError } from "../wire/errors.ts";
import { CALLBACK_SERVICE, CallbackMetadata, decodeMetadata } from "../wire/forward.ts";
import { type Grant, isPermitted } from "../wire/signed.ts";
import { type MeshStream, STREAM_CODES } from "./stream.ts";

/** What an agent's handler knows of who opened a stream. */
export interface StreamPeer {
  nodeKey: string;
  /** What let the session in. */
  grant: Grant;
  /** Opens a stream back to that client, on the same session. @throws {SessionError} ERR_SESSION_CLOSED, ERR_STREAM_LIMIT */
  open(service: string, metadata: Uint8Array): MeshStream;
}
export type StreamHandler = (stream: MeshStream, peer: StreamPeer) => void;
export type CallbackHandler = (stream: MeshStream, metadata: CallbackMetadata) => void;

/** Why a stream was not taken: its code on the wire, and words for the log. */
export interface Refusal {
  code: number;
  reason: string;
}

/** Services of an agent by name; one whose name ends in ":" is for all names that begin so. */
export class Services {
  readonly #handlers = new Map<string, StreamHandler>();

  set(service: string, handler: StreamHandler): void {
    this.#handlers.set(service, handler);
  }

  find(service: string, grant: Grant): StreamHandler | Refusal {
    if (!isPermitted(grant, service))
      return { code: STREAM_CODES.refused, reason: `not permitted: ${service}` };
    const handler = this.#handlers.get(service) ?? this.#byPrefix(service);
    return handler ?? { code: STREAM_CODES.noService, reason: `no such service: ${service}` };
  }

  /** The longest prefix wins, so that a special case can be taken out of a general one. */
  #byPrefix(service: string): StreamHandler | undefined {
    for (let end = service.lastIndexOf(":"); end >= 0; end = service.lastIndexOf(":", end - 1)) {
      const handler = this.#handlers.get(service.slice(0, end + 1));
      if (handler) return handler;
      if (end === 0) return undefined;
    }
    return undefined;
  }
}

/** The doors of a client. */
export class Doors {
  readonly #handlers = new Map<string, CallbackHandler>();

  /** @returns closes the door again */
  open(agentId: string, token: string, handler: CallbackHandler): () => void {
    const key = doorKey(agentId, token);
    this.#handlers.set(key, handler);
    return () => {
      if (this.#handlers.get(key) === handler) this.#handlers.delete(key);
    };
  }

  /** @param agentId whose session the stream came on */
  find(
    agentId: string | undefined,
    stream: Pick<MeshStream, "service" | "metadata">,
  ): { handler: CallbackHandler; metadata: CallbackMetadata } | Refusal {
    if (agentId === undefined || stream.service !== CALLBACK_SERVICE)
      return { code: STREAM_CODES.refused, reason: "a client takes callbacks only" };
    let metadata: CallbackMetadata;
    try {
      metadata = decodeMetadata(CallbackMetadata, stream.metadata);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      return { code: STREAM_CODES.refused, reason: error.message };
    }
    const handler = this.#handlers.get(doorKey(agentId, metadata.token));
    // The token stays out of the log: it may be another agent's.
    return handler
      ? { handler, metadata }
      : { code: STREAM_CODES.refused, reason: "a callback with a token this node gave no such agent" };
  }
}

const doorKey = (agentId: string, token: string): string => `${agentId} ${token}`;
