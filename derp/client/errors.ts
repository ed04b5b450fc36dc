import { MeshError } from "../../mesh/wire/errors.ts";

export type RelayErrorCode =
  /** No connection, handshake or answer in time. */
  | "ERR_RELAY_TIMEOUT"
  /** No TCP or TLS connection. */
  | "ERR_RELAY_UNREACHABLE"
  /** Another answer than an upgrade; `status` is the HTTP status. */
  | "ERR_RELAY_REFUSED"
  /** The connection ended. */
  | "ERR_RELAY_CLOSED"
  /** What answers does not speak DERP, or speaks it wrongly. */
  | "ERR_RELAY_PROTOCOL"
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
