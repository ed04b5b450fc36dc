import { MeshError } from "../mesh/wire/errors.ts";

export type CoordinatorErrorCode = `ERR_${string}`;

/** The coordinator refused, or could not be reached. `code` is its own, or ERR_COORDINATOR_UNREACHABLE. */
export class CoordinatorError extends MeshError {
  readonly code: CoordinatorErrorCode;
  /** True when the credential was refused or taken back: a retry with the same one cannot help. */
  readonly unauthorized: boolean;
  constructor(
    code: CoordinatorErrorCode,
    message: string,
    options?: ErrorOptions & { unauthorized?: boolean },
  ) {
    super(message, options);
    this.code = code;
    this.unauthorized = options?.unauthorized ?? false;
  }
}
