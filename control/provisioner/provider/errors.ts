import { MeshError } from "../../../mesh/wire/errors.ts";

export type ProviderErrorCode =
  | "ERR_PROVIDER_MSGPACK"
  | "ERR_PROVIDER_PROTOBUF"
  | "ERR_PROVIDER_VALUE"
  | "ERR_PROVIDER_SOCKET"
  | "ERR_PROVIDER_UNKNOWN_TYPE"
  | "ERR_PROVIDER_REGEX"
  | "ERR_PROVIDER_CRON";

/** What Terraform sent, or a place we were told to listen at, can't be used; the message says what to change. */
export class ProviderError extends MeshError {
  readonly code: ProviderErrorCode;
  constructor(code: ProviderErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
