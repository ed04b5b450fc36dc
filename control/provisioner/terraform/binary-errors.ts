import { MeshError } from "../../../mesh/wire/errors.ts";

export type TerraformBinaryErrorCode =
  | "ERR_TERRAFORM_MISSING"
  | "ERR_TERRAFORM_TOO_OLD"
  | "ERR_TERRAFORM_FETCH"
  | "ERR_TERRAFORM_CHECKSUM";

/** There is no terraform to run builds with; the message says what to install or set. */
export class TerraformBinaryError extends MeshError {
  readonly code: TerraformBinaryErrorCode;
  constructor(code: TerraformBinaryErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
