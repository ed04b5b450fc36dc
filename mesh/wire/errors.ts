/** Base of every expected failure of ours. `code` is stable: callers, logs and the edge tables switch on it. */
export abstract class MeshError extends Error {
  abstract readonly code: `ERR_${string}`;
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

export type WireErrorCode =
  | "ERR_FRAME_TOO_LARGE"
  | "ERR_FRAME_TRUNCATED"
  | "ERR_BAD_MAGIC"
  | "ERR_BAD_VALUE"
  | "ERR_UNEXPECTED_FRAME";

/** The peer broke the protocol: close the link (or drop the datagram); a retry of the same bytes can't help. */
export class WireError extends MeshError {
  readonly code: WireErrorCode;
  constructor(code: WireErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
