import { lookup } from "node:dns";
import net from "node:net";
import { ANSWER } from "../../mesh/wire/forward.ts";

/** Coder and sshd leave this to the kernel, which takes two minutes. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** sun_path of Linux holds 108 bytes with its NUL; macOS 104. */
export const MAX_SOCKET_PATH_BYTES = process.platform === "linux" ? 107 : 103;

/** "localhost" whatever /etc/hosts says: a server that listens on one of the two families only is the usual case. */
const LOOPBACK = [
  { address: "127.0.0.1", family: 4 },
  { address: "::1", family: 6 },
];

/** A target that can't be reached: the ANSWER to give. */
export class TargetError extends Error {
  readonly code = "ERR_TARGET";
  readonly status: number;
  constructor(status: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "TargetError";
    this.status = status;
  }
}

export const isLocalhost = (host: string): boolean => /^localhost\.?$/i.test(host);

const lookupLocalhost: net.LookupFunction = (_host, _options, done) => done(null, LOOPBACK);

function codeOf(error: NodeJS.ErrnoException): string {
  const causes = error instanceof AggregateError ? (error.errors as NodeJS.ErrnoException[]) : [];
  // Several addresses failed: a refusal says more than a family that isn't there.
  for (const code of ["ECONNREFUSED", "ETIMEDOUT"])
    if (causes.some((cause) => cause.code === code)) return code;
  return error.code ?? causes[0]?.code ?? "";
}

/** What a failure means to who asked. `where`: "db:5432" or a path */
export function explain(error: NodeJS.ErrnoException, where: string): TargetError {
  const code = codeOf(error);
  const failed = (why: string) =>
    new TargetError(ANSWER.connectFailed, `${where} can't be reached from the workspace: ${why}`, {
      cause: error,
    });
  switch (code) {
    case "ECONNREFUSED":
      return failed("connection refused; nothing listens there (yet)");
    case "ETIMEDOUT":
      return failed(`no answer within ${CONNECT_TIMEOUT_MS / 1_000} s`);
    case "ENOTFOUND":
    case "EAI_NODATA":
    case "EAI_NONAME":
      return failed("unknown host; the name is looked up in the workspace, not on your machine");
    case "EAI_AGAIN":
      return failed("the workspace's name server does not answer");
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EADDRNOTAVAIL":
      return failed("there is no route to it");
    case "ENOENT":
      return failed("there is no such socket");
    case "ENOTSOCK":
      return failed("it is no socket");
    case "EACCES":
    case "EPERM":
      return new TargetError(ANSWER.prohibited, `${where}: permission denied in the workspace`, {
        cause: error,
      });
    case "EMFILE":
    case "ENFILE":
    case "ENOBUFS":
    case "ENOMEM":
    case "EAGAIN":
      return new TargetError(
        ANSWER.resourceShortage,
        `${where}: the workspace is out of resources (${code})`,
        {
          cause: error,
        },
      );
    default:
      return failed(error.message || code || "unknown error");
  }
}

function connect(
  socket: net.Socket,
  where: string,
  signal: AbortSignal,
  timeoutMs: number,
): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const settle = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      socket.removeListener("error", onError);
    };
    const onError = (error: NodeJS.ErrnoException) => {
      settle();
      reject(explain(error, where));
    };
    const giveUp = (error: NodeJS.ErrnoException) => {
      socket.once("error", () => {});
      socket.destroy();
      onError(error);
    };
    const onAbort = () => giveUp(new Error("given up"));
    const timer = setTimeout(
      () => giveUp(Object.assign(new Error("timed out"), { code: "ETIMEDOUT" })),
      timeoutMs,
    );
    socket.once("error", onError);
    signal.addEventListener("abort", onAbort, { once: true });
    socket.once("connect", () => {
      settle();
      resolve(socket);
    });
    if (signal.aborted) onAbort();
  });
}

/** Of several addresses, so many are given a fair chance within the time there is. */
const FAIR_ATTEMPTS = 3;

/**
 * Node tries addresses one after the other and drops each, for good, after 250 ms: less than a far host or a busy
 * moment of this process takes, and the next may be an address nobody listens on. Loopback answers at once or never.
 */
const attemptTimeoutMs = (host: string, timeoutMs: number): number =>
  isLocalhost(host) ? timeoutMs : Math.ceil(timeoutMs / FAIR_ATTEMPTS);

/**
 * Connects to a port. Every address of the name is tried; for "localhost" both loopback addresses.
 *
 * @throws {TargetError} with the ANSWER
 */
export function connectTcp(
  host: string,
  port: number,
  signal: AbortSignal,
  timeoutMs = CONNECT_TIMEOUT_MS,
): Promise<net.Socket> {
  const socket = net.connect({
    host,
    port,
    allowHalfOpen: true,
    noDelay: true,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: attemptTimeoutMs(host, timeoutMs),
    ...(isLocalhost(host) ? { lookup: lookupLocalhost } : {}),
  });
  return connect(socket, `${host.includes(":") ? `[${host}]` : host}:${port}`, signal, timeoutMs);
}

/** @throws {TargetError} with the ANSWER */
export async function connectUnix(
  path: string,
  signal: AbortSignal,
  timeoutMs = CONNECT_TIMEOUT_MS,
): Promise<net.Socket> {
  checkSocketPath(path);
  return connect(net.connect({ path, allowHalfOpen: true }), path, signal, timeoutMs);
}

/** @throws {TargetError} badRequest: libuv would cut the name, or the kernel would refuse it without saying why */
export function checkSocketPath(path: string): void {
  if (path.includes("\0")) throw new TargetError(ANSWER.badRequest, "the socket's path contains a NUL");
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_SOCKET_PATH_BYTES)
    throw new TargetError(
      ANSWER.badRequest,
      `the socket's path is ${bytes} bytes long; the system takes ${MAX_SOCKET_PATH_BYTES}`,
    );
}

/** One address for UDP, where nothing tells which of several works. @throws {TargetError} with the ANSWER */
export async function resolveOne(
  host: string,
  where: string,
  timeoutMs = CONNECT_TIMEOUT_MS,
): Promise<{ address: string; family: 4 | 6 }> {
  const literal = net.isIP(host);
  if (literal !== 0) return { address: host, family: literal as 4 | 6 };
  if (isLocalhost(host)) return { address: "127.0.0.1", family: 4 };
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise((resolve, reject) => {
      timer = setTimeout(
        () => reject(Object.assign(new Error("timed out"), { code: "EAI_AGAIN" })),
        timeoutMs,
      );
      lookup(host, (error, address, family) => {
        if (error) reject(error);
        else resolve({ address, family: family as 4 | 6 });
      });
    });
  } catch (error) {
    throw explain(error as NodeJS.ErrnoException, where);
  } finally {
    clearTimeout(timer);
  }
}
