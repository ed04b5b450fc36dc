// What goes wrong in a request, and the one table from an error to a status and an ErrorBody.

import { MeshError } from "../../mesh/wire/errors.ts";
import { PasswordError } from "../auth/errors.ts";
import type { ErrorBody } from "../contract/common.ts";
import { BuildError } from "../templates/create-build.ts";

export type Validation = { field: string; detail: string };

/** An expected refusal. `message` is for people and says the next step; `code` is for programs. */
export class ApiError extends MeshError {
  readonly code: `ERR_${string}`;
  readonly status: number;
  readonly detail?: string;
  readonly validations?: Validation[];
  readonly retryAfterSeconds?: number;
  constructor(
    status: number,
    code: `ERR_${string}`,
    message: string,
    more: {
      detail?: string;
      validations?: Validation[];
      retryAfterSeconds?: number;
      cause?: unknown;
    } = {},
  ) {
    super(message, { cause: more.cause });
    this.status = status;
    this.code = code;
    this.detail = more.detail;
    this.validations = more.validations;
    this.retryAfterSeconds = more.retryAfterSeconds;
  }
}

/** Also the answer for what the caller may not read: whether it exists is not theirs to know. */
export const notFound = (what = "Resource"): ApiError =>
  new ApiError(404, "ERR_NOT_FOUND", `${what} not found or you do not have access to this resource.`);

export const forbidden = (detail?: string): ApiError =>
  new ApiError(403, "ERR_FORBIDDEN", "You may not do this.", {
    detail: detail ?? "Ask an owner of this deployment for the role it takes.",
  });

export const badRequest = (message: string, validations?: Validation[]): ApiError =>
  new ApiError(400, "ERR_REQUEST_INVALID", message, { validations });

export const conflict = (code: `ERR_${string}`, message: string, field?: string): ApiError =>
  new ApiError(409, code, message, {
    validations: field
      ? [{ field, detail: "This value is already in use and should be unique." }]
      : undefined,
  });

/** Unique indexes that a request can run into, by name; any other violation is our mistake and a 500. */
const UNIQUE: Record<string, { field: string; message: string }> = {
  users_username_key: { field: "username", message: "A user with this username already exists." },
  users_email_key: { field: "email", message: "A user with this email already exists." },
  api_keys_name_key: { field: "token_name", message: "A token with this name already exists." },
  templates_name_key: {
    field: "name",
    message: "A template with this name already exists. Choose another, or push a new version of it.",
  },
  template_versions_name_key: {
    field: "name",
    message: "A version with this name already exists in this template.",
  },
  workspaces_name_key: {
    field: "name",
    message: "A workspace with this name already exists. Choose another name, or delete the old one.",
  },
  workspace_builds_number_key: {
    field: "build_number",
    message: "Another build of this workspace began at the same moment. Try again.",
  },
};

/** Refusals of other folders that a request can meet, and the status each becomes. */
const STATUS_OF: Record<string, number> = {
  ERR_PASSWORD_WEAK: 400,
  ERR_BUILD_PARAMETERS: 400,
  ERR_NOT_FOUND: 404,
  ERR_BUILD_ACTIVE: 409,
  ERR_TOO_MANY_KEYS: 409,
  ERR_VERSION_NOT_USABLE: 412,
  ERR_DATABASE_UNREACHABLE: 503,
};

function validationsOf(error: MeshError): Validation[] | undefined {
  if (error instanceof PasswordError) return [{ field: "password", detail: error.message }];
  return error instanceof BuildError && error.problems.length > 0 ? error.problems : undefined;
}

interface PostgresError {
  code: string;
  constraint?: string;
}

function isPostgresError(error: unknown): error is PostgresError {
  return error instanceof Error && typeof (error as Partial<PostgresError>).code === "string";
}

/**
 * Connection-level trouble: SQLSTATE classes 08 and 57P, a database or account that is gone (3D000, 28), sockets, and a
 * pool with no connection left.
 */
function isDatabaseAway(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  if (error.name === "KnexTimeoutError") return true;
  return (
    isPostgresError(error) &&
    /^(08...|57P0[1-4]|53300|3D000|28000|28P01|ECONNREFUSED|ECONNRESET|ENOENT|EPIPE|ETIMEDOUT)$/.test(
      error.code,
    )
  );
}

/** @returns the refusal `error` stands for, or undefined when it is none: log it, answer 500 */
export function toApiError(error: unknown): ApiError | undefined {
  if (error instanceof ApiError) return error;
  if (isPostgresError(error) && error.code === "23505" && error.constraint) {
    const known = UNIQUE[error.constraint];
    if (known) return conflict("ERR_NAME_TAKEN", known.message, known.field);
  }
  // A row named in the request was deleted between our look and our write.
  if (isPostgresError(error) && error.code === "23503" && error.constraint) return notFound();
  if (isDatabaseAway(error))
    return new ApiError(503, "ERR_DATABASE_UNREACHABLE", "The database isn't reachable. Try again shortly.", {
      cause: error,
      retryAfterSeconds: 5,
    });
  if (error instanceof MeshError && STATUS_OF[error.code])
    return new ApiError(STATUS_OF[error.code], error.code, error.message, {
      validations: validationsOf(error),
      cause: error,
    });
  return undefined;
}

export function toErrorBody(error: ApiError, requestId: string): ErrorBody {
  return {
    message: error.message,
    ...(error.detail ? { detail: error.detail } : {}),
    ...(error.validations ? { validations: error.validations } : {}),
    code: error.code,
    request_id: requestId,
  };
}
