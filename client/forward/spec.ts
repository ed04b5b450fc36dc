// What a user writes to say what is forwarded where. Pure: text in, forwards out.
import { CliError } from "../errors.ts";

/** Listeners one command opens: more is a slip of the keyboard ("1-65535"), and each costs a file descriptor. */
export const MAX_FORWARDS = 512;
/** Longest path a unix socket may have, in bytes: Linux has 108 with the final NUL, macOS 104. */
const MAX_SOCKET_PATH_BYTES = 103;

/** `coder port-forward`: a local port (0: any free one) to a port of the workspace. */
export interface PortForward {
  protocol: "tcp" | "udp";
  /** undefined: this machine only, by IPv4 and IPv6. */
  address: string | undefined;
  localPort: number;
  remotePort: number;
}

export type Endpoint = { kind: "tcp"; host: string; port: number } | { kind: "unix"; path: string };

/** ssh's -L and -R. `listen.host` "": as ssh does without one, this machine only. */
export interface SshForward {
  listen: Endpoint;
  target: Endpoint;
}

const portForwardError = (spec: string, why: string) =>
  new CliError("ERR_BAD_FORWARD", `"${spec}" is no port forward: ${why}`, {
    hint: "Write it as 8080, 8080:3000 (local:remote), 0.0.0.0:8080:3000, 8080-8090, or several with commas.",
  });

/** "8080", "8080-8090". */
function parseRange(text: string, spec: string, min: number): { first: number; count: number } {
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text);
  if (!match) throw portForwardError(spec, text === "" ? "a port is missing" : `"${text}" is no port`);
  const first = Number(match[1]);
  const last = match[2] === undefined ? first : Number(match[2]);
  if (first < min || last > 65_535) throw portForwardError(spec, `ports go from ${min} to 65535`);
  if (last < first) throw portForwardError(spec, `the range ${text} runs backwards`);
  if (last > first && first === 0) throw portForwardError(spec, "0 (any free port) begins no range");
  return { first, count: last - first + 1 };
}

function parseOne(spec: string, protocol: "tcp" | "udp"): PortForward[] {
  const match = /^(?:(\[[^\]]*\]|[^:[\]]*[^:[\]\d-][^:[\]]*|):)?([^:]*)(?::([^:]*))?$/.exec(spec);
  if (!match) throw portForwardError(spec, "it is not [ADDRESS:]LOCAL[:REMOTE]");
  const [, address, localText, remoteText] = match;
  if (
    address !== undefined &&
    !/^(?:\[[0-9A-Fa-f:.]{2,45}\]|\d{1,3}(?:\.\d{1,3}){3}|localhost)$/.test(address)
  )
    throw portForwardError(
      spec,
      `"${address}" is no local address: use an IPv4 address, an IPv6 address in brackets, or localhost`,
    );
  const local = parseRange(localText, spec, 0);
  if (local.first === 0 && remoteText === undefined)
    throw portForwardError(spec, "with local port 0 (any free one) the remote port must be named");
  const remote = remoteText === undefined ? local : parseRange(remoteText, spec, 1);
  if (local.count !== remote.count)
    throw portForwardError(
      spec,
      `there are ${local.count} local ports for ${remote.count} remote ones; the ranges must be as long as each other`,
    );
  return Array.from({ length: local.count }, (_, i) => ({
    protocol,
    address: address === undefined || address === "localhost" ? undefined : address.replace(/[[\]]/g, ""),
    localPort: local.first + i,
    remotePort: remote.first + i,
  }));
}

/**
 * `[ADDRESS:]LOCAL[:REMOTE]`, each port a number or a range, several joined by commas.
 *
 * @throws {CliError} ERR_BAD_FORWARD
 */
export function parsePortForwards(texts: readonly string[], protocol: "tcp" | "udp"): PortForward[] {
  const all: PortForward[] = [];
  const taken = new Set<string>();
  for (const text of texts)
    for (const spec of text.split(",").map((part) => part.trim())) {
      for (const forward of parseOne(spec, protocol)) {
        const place = `${forward.address ?? "localhost"} ${forward.localPort}`;
        if (forward.localPort !== 0 && taken.has(place))
          throw portForwardError(spec, `local ${protocol} port ${forward.localPort} is named twice`);
        taken.add(place);
        all.push(forward);
        if (all.length > MAX_FORWARDS)
          throw portForwardError(spec, `that makes more than ${MAX_FORWARDS} forwards`);
      }
    }
  return all;
}

/** Cuts at colons outside of brackets. */
function fields(spec: string): string[] | undefined {
  const parts = spec.match(/\[[^\]]*\]|[^:[\]]+|:/g);
  if (!parts || parts.join("") !== spec) return undefined;
  const out = [""];
  for (const part of parts) {
    if (part === ":") out.push("");
    else out[out.length - 1] += part;
  }
  return out;
}

const unbracket = (host: string) => host.replace(/^\[(.*)\]$/, "$1");

/**
 * What `ssh -L` (`flag` "-L") and `ssh -R` take: `[BIND:]PORT:HOST:HOSTPORT`, either side also a unix socket's path.
 * For -R a listening port of 0 asks for any free one.
 *
 * @throws {CliError} ERR_BAD_FORWARD
 */
export function parseSshForward(spec: string, flag: "-L" | "-R"): SshForward {
  const bad = (why: string) =>
    new CliError("ERR_BAD_FORWARD", `"${spec}" is nothing ${flag} can forward: ${why}`, {
      hint: `Write ${flag} 8080:localhost:3000, ${flag} /path/to/socket:localhost:3000, or ${flag} 8080:/path/to/socket.`,
    });
  const port = (text: string, min: number): number => {
    const value = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= 65_535)) throw bad(`"${text}" is no port`);
    return value;
  };
  const socket = (path: string): Endpoint => {
    if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES)
      throw bad(`a socket's path has at most ${MAX_SOCKET_PATH_BYTES} bytes`);
    return { kind: "unix", path };
  };
  const parts = fields(spec);
  if (!parts) throw bad("it is not [ADDRESS:]PORT:HOST:HOSTPORT");
  const isPath = (text: string) => text.startsWith("/");

  let target: Endpoint;
  if (isPath(parts[parts.length - 1]) && parts.length > 1) target = socket(parts.pop() as string);
  else {
    if (parts.length < 3 || parts.length > 4)
      throw bad(
        parts.length === 1 && flag === "-R"
          ? "a target is missing (a SOCKS proxy in the workspace is not supported)"
          : "it is not [ADDRESS:]PORT:HOST:HOSTPORT",
      );
    const targetPort = port(parts.pop() as string, 1);
    const host = unbracket(parts.pop() as string);
    if (!host || /[\s/]/.test(host) || host.length > 255) throw bad(`"${host}" is no host`);
    target = { kind: "tcp", host, port: targetPort };
  }

  if (parts.length === 1 && isPath(parts[0])) return { listen: socket(parts[0]), target };
  if (parts.length > 2) throw bad("it is not [ADDRESS:]PORT:HOST:HOSTPORT");
  const listenPort = port(parts[parts.length - 1], 0);
  // As ssh: "*" and an empty address before the colon mean all of them, no address means this machine.
  const bind = parts.length === 2 ? unbracket(parts[0]) || "*" : "";
  if (/[\s/]/.test(bind) || bind.length > 255) throw bad(`"${bind}" is no address`);
  return { listen: { kind: "tcp", host: bind, port: listenPort }, target };
}

/** For people: "127.0.0.1:8080", "[::1]:80", "/run/x.sock". */
export function formatEndpoint(endpoint: Endpoint): string {
  if (endpoint.kind === "unix") return endpoint.path;
  const { host, port } = endpoint;
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}
