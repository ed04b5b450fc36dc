import { MeshError } from "../mesh/wire/errors.ts";
import { printable } from "./text.ts";

/** What a command exits with. `ssh` passes the remote command's own code through instead. */
export const EXIT = {
  failure: 1,
  /** As OpenSSH: the connection failed, so the code is not the remote command's. */
  connection: 255,
  interrupted: 130,
} as const;

export type CliErrorCode = `ERR_${string}`;

/** A failure to tell the user about: `message` in a sentence, `hint` with the next step, no stack trace. */
export class CliError extends MeshError {
  readonly code: CliErrorCode;
  readonly hint: string | undefined;
  readonly exitCode: number;
  constructor(
    code: CliErrorCode,
    message: string,
    options: ErrorOptions & { hint?: string; exitCode?: number } = {},
  ) {
    super(message, options);
    this.code = code;
    this.hint = options.hint;
    this.exitCode = options.exitCode ?? EXIT.failure;
  }
}

/** The server answered with a status of 400 or above. */
export class ApiError extends CliError {
  readonly status: number;
  constructor(
    status: number,
    body: {
      message?: string;
      detail?: string;
      code?: string;
      validations?: { field: string; detail: string }[];
    },
    request: string,
  ) {
    const lines = [
      body.message ?? `${request} answered with status ${status}`,
      ...(body.validations ?? []).map(({ field, detail }) => `${field}: ${detail}`),
      ...(body.detail ? [body.detail] : []),
    ];
    super((body.code as CliErrorCode | undefined) ?? `ERR_HTTP_${status}`, lines.join("\n  "), {
      // A refused login says its own next step.
      hint: status === 401 && !body.detail ? "Log in with `coder login`." : undefined,
    });
    this.status = status;
  }
}

/** One message on stderr for whatever went wrong. @returns the exit code */
export function reportError(error: unknown, stderr: NodeJS.WritableStream = process.stderr): number {
  if (error instanceof CliError) {
    stderr.write(`error: ${printable(error.message)}\n`);
    if (error.hint) stderr.write(`${printable(error.hint)}\n`);
    return error.exitCode;
  }
  if (error instanceof MeshError) {
    // The code as well: that of a refused grant is the coordinator's word.
    stderr.write(`error: ${printable(`${error.message} (${error.code})`)}\n`);
    return EXIT.failure;
  }
  if (isSystemError(error)) {
    stderr.write(`error: ${printable(error.message)}\n`);
    return EXIT.failure;
  }
  // A defect of ours: the stack is what a report needs.
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  stderr.write(`internal error: ${printable(text)}\n`);
  return EXIT.failure;
}

/** A file that can't be written, a disk that is full: the machine's doing, and the message names call and path. */
function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "syscall" in error && "path" in error;
}
