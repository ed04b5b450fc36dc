import { MeshError } from "../../mesh/wire/errors.ts";

/** A password that may not be set. The message tells its chooser what to change. */
export class PasswordError extends MeshError {
  readonly code = "ERR_PASSWORD_WEAK";
}
