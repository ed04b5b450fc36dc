// Opens the byte stream to a relay: TCP or TLS, then the HTTP/1.1 upgrade to DERP.
import http from "node:http";
import https from "node:https";
import { isIP } from "node:net";
import type { Duplex } from "node:stream";
import { RelayError } from "./errors.ts";

export interface UpgradeOptions {
  /** http: or https:, with the path, for example https://relay.example.com/derp. */
  url: URL;
  /** Connect to this IP address; `url`'s host is still what is asked for and verified. */
  address?: string;
  headers?: Record<string, string>;
  /** For TCP alone; a relay with others behind it must not use up the whole time. */
  connectMs?: number;
  /** Ends the attempt with its reason. */
  signal: AbortSignal;
  /** A certificate authority in PEM beside the system's. */
  ca?: string;
  /** Takes any certificate. Only for a map that says so. */
  insecure?: boolean;
}

/** @throws {RelayError} ERR_RELAY_UNREACHABLE, ERR_RELAY_REFUSED, or the signal's reason */
export function openUpgrade(options: UpgradeOptions): Promise<{ socket: Duplex; head: Uint8Array }> {
  const { url, signal } = options;
  const secure = url.protocol === "https:";
  const hostname = url.hostname.replace(/^\[|\]$/g, "");
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const request = (secure ? https : http).request({
      hostname: options.address ?? hostname,
      port: url.port || (secure ? 443 : 80),
      path: url.pathname + url.search,
      agent: false,
      setHost: false,
      headers: { ...options.headers, Host: url.host, Upgrade: "DERP", Connection: "Upgrade" },
      ...(secure && {
        ALPNProtocols: ["http/1.1"],
        servername: isIP(hostname) ? "" : hostname,
        rejectUnauthorized: !options.insecure,
        ca: options.ca,
      }),
    });
    let connectTimer: NodeJS.Timeout | undefined;
    const settle = (): void => {
      clearTimeout(connectTimer);
      signal.removeEventListener("abort", onAbort);
    };
    const fail = (error: unknown): void => {
      settle();
      request.on("error", () => {}); // of the destruction
      request.destroy();
      reject(error);
    };
    const onAbort = (): void => fail(signal.reason);
    signal.addEventListener("abort", onAbort);
    request.on("error", (cause: Error) =>
      fail(
        new RelayError(
          "ERR_RELAY_UNREACHABLE",
          `can't reach the relay at ${url.origin}: ${reasonOf(cause)}`,
          {
            cause,
          },
        ),
      ),
    );
    request.on("socket", (socket) => {
      socket.setNoDelay(true);
      if (options.connectMs === undefined || !socket.connecting) return;
      connectTimer = setTimeout(
        () =>
          fail(
            new RelayError(
              "ERR_RELAY_UNREACHABLE",
              `the relay at ${url.origin} doesn't answer a TCP connection`,
            ),
          ),
        options.connectMs,
      );
      socket.once("connect", () => clearTimeout(connectTimer));
    });
    request.on("response", (response) => {
      const status = response.statusCode ?? 0;
      fail(
        new RelayError(
          "ERR_RELAY_REFUSED",
          `${url.origin} answered the relay upgrade with status ${status}; does a proxy in between strip upgrades?`,
          { status },
        ),
      );
    });
    request.on("upgrade", (_response, socket, head) => {
      settle();
      resolve({ socket, head });
    });
    request.end();
  });
}

/** Node leaves the message of a failed attempt on several addresses empty. */
function reasonOf(error: Error): string {
  if (error instanceof AggregateError && error.errors.length > 0)
    return error.errors.map((one: unknown) => (one instanceof Error ? one.message : String(one))).join("; ");
  return error.message || error.name;
}
