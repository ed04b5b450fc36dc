// What a failed file call is to the client.
import { getSystemErrorMap } from "node:util";
import { type Reply, STATUS, type StatusCode } from "./wire.ts";

/** As OpenSSH's server maps them; whatever is not here is a plain Failure. */
const CODES: Record<string, StatusCode> = {
  ENOENT: STATUS.noSuchFile,
  ENOTDIR: STATUS.noSuchFile,
  EBADF: STATUS.noSuchFile,
  ELOOP: STATUS.noSuchFile,
  EPERM: STATUS.permissionDenied,
  EACCES: STATUS.permissionDenied,
  EFAULT: STATUS.permissionDenied,
  ENAMETOOLONG: STATUS.badMessage,
  EINVAL: STATUS.badMessage,
  ENOSYS: STATUS.opUnsupported,
};

/** An outcome decided here, without a call to fail. `errno` as in errno(3): ENOENT, EINVAL, … */
export class PathError extends Error {
  readonly code: string;
  constructor(errno: string) {
    super(errno);
    this.code = errno;
  }
}

export function errnoOf(error: unknown): string | undefined {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" ? code : undefined;
}

/** @returns e.g. "no space left on device", or undefined for what is no failed call */
function describeErrno(error: unknown): string | undefined {
  const errno = error instanceof Error && "errno" in error ? error.errno : undefined;
  return typeof errno === "number" ? getSystemErrorMap().get(errno)?.[1] : undefined;
}

/** A plain Failure says what failed behind OpenSSH's word for it: clients that show the text then show a reason. */
export function failureReply(error: unknown): Reply {
  const code = CODES[errnoOf(error) ?? ""];
  if (code !== undefined) return { kind: "status", code };
  const reason = describeErrno(error);
  return reason === undefined
    ? { kind: "status", code: STATUS.failure }
    : { kind: "status", code: STATUS.failure, text: `Failure: ${reason}` };
}
