// What forwards need of the connection to an agent; client/connect.ts has it.
import type { Duplex } from "node:stream";
import type { CallbackMetadata } from "../../mesh/wire/forward.ts";

/** A stream to a service of the agent, which may carry datagrams beside its bytes. */
export interface DatagramStream extends Duplex {
  /** @returns false when it was dropped */
  sendDatagram(bytes: Uint8Array): boolean;
  onDatagram: ((bytes: Uint8Array) => void) | undefined;
}

/** Opens a stream; it can be written to at once. Ends its wait with the signal. */
export type Dial = (service: string, metadata: Uint8Array, signal?: AbortSignal) => Promise<DatagramStream>;

/** Lets the agent open callbacks that carry `token` (16 bytes in base64). @returns ends it */
export type Accept = (
  token: string,
  handler: (stream: Duplex, metadata: CallbackMetadata) => void,
) => () => void;

export interface ForwardConnection {
  dial: Dial;
  accept: Accept;
}
