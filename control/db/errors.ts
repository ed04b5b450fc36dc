import { MeshError } from "../../mesh/wire/errors.ts";

export type DatabaseErrorCode =
  | "ERR_DATABASE_IN_USE"
  | "ERR_DATABASE_PLATFORM"
  | "ERR_DATABASE_START"
  | "ERR_DATABASE_UNREACHABLE"
  | "ERR_DATABASE_TOO_OLD"
  | "ERR_DATABASE_NEWER"
  | "ERR_MIGRATION_FAILED"
  | "ERR_MIGRATION_LOCKED"
  | "ERR_NOTIFY_INVALID"
  | "ERR_TOO_MANY_KEYS";

/** The database can't be used as asked. The message never holds a password. */
export class DatabaseError extends MeshError {
  readonly code: DatabaseErrorCode;
  constructor(code: DatabaseErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
