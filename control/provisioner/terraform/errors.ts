import { MeshError } from "../../../mesh/wire/errors.ts";
import type { TemplateVariable } from "../protocol.ts";

export type TerraformErrorCode =
  /** The uploaded archive is unsafe, damaged, too large, or holds no Terraform files. */
  | "ERR_TEMPLATE_ARCHIVE"
  /** The template is readable but says something we can't accept (two agents of one name, ...). */
  | "ERR_TEMPLATE_INVALID"
  /** Terraform ended with an error; the message carries its first diagnostic with file and line. */
  | "ERR_TERRAFORM_FAILED"
  /** Terraform could not be started, died of a signal, or printed more than we hold. */
  | "ERR_TERRAFORM_CRASHED"
  /** CODER_TERRAFORM_CLI_CONFIG names a file that isn't there. */
  | "ERR_TERRAFORM_CLI_CONFIG"
  | "ERR_JOB_CANCELED";

/** A job that cannot go on: shown to the person who started it, in these words. */
export class TerraformError extends MeshError {
  readonly code: TerraformErrorCode;
  constructor(code: TerraformErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** Template variables without a value; a client asks for them and imports again. */
export class MissingVariablesError extends MeshError {
  readonly code = "ERR_TEMPLATE_VARIABLES_MISSING";
  readonly variables: TemplateVariable[];
  constructor(missing: string[], variables: TemplateVariable[]) {
    super(
      `required template variables have no value: ${[...missing].sort().join(", ")}; ` +
        "give each one with --variable NAME=VALUE",
    );
    this.variables = variables;
  }
}
