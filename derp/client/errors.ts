import { MeshError } from "../../mesh/wire/errors.ts";

export type RelayErrorCode =
  /** No connection, handshake or answer in time. */
  | "ERR_RELAY_TIMEOUT"
  /** No address, no TCP connection, no way through the proxy. */
  | "ERR_RELAY_UNREACHABLE"
  /** The TLS certificate is not the one the relay map asks for, or TLS failed otherwise. */
  | "ERR_RELAY_TLS"
  /** Another answer than an upgrade; `status` is the HTTP status. */
  | "ERR_RELAY_REFUSED"
  /** The connection ended. */
  | "ERR_RELAY_CLOSED"
  /** What answers does not speak DERP, or speaks it wrongly. */
  | "ERR_RELAY_PROTOCOL"
  /** The relay has another key than the one its first packets were sealed for; without knowing it, it works. */
  | "ERR_RELAY_KEY_CHANGED"
  | "ERR_RELAY_ABORTED"
  /** The relay map has no such region, or no relay in it. */
  | "ERR_RELAY_NO_REGION";

export class RelayError extends MeshError {
  readonly code: RelayErrorCode;
  readonly status: number | undefined;
  constructor(code: RelayErrorCode, message: string, options?: ErrorOptions & { status?: number }) {
    super(message, options);
    this.code = code;
    this.status = options?.status;
  }
}

/** By code: a loader may hold the modules that are loaded later, and so their class, a second time. */
export function isRelayError(error: unknown): error is RelayError {
  return (
    error instanceof Error &&
    "code" in error &&
    typeof error.code === "string" &&
    error.code.startsWith("ERR_RELAY_")
  );
}
