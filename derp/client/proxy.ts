// Which forward proxy the environment asks for, as curl and Go read it. Pure but for the environment given.
import { BlockList, isIP } from "node:net";

export type Environment = Record<string, string | undefined>;

/**
 * The proxy for `host:port`, from HTTPS_PROXY (`secure`) or HTTP_PROXY, unless NO_PROXY names the host. Loopback is
 * never proxied. `host`: without brackets.
 */
export function proxyFor(
  environment: Environment,
  { host, port, secure }: { host: string; port: number; secure: boolean },
): URL | undefined {
  const read = (name: string): string => environment[name.toLowerCase()] || environment[name] || "";
  const text = read(secure ? "HTTPS_PROXY" : "HTTP_PROXY").trim();
  if (text === "" || isLoopback(host) || isExempt(read("NO_PROXY"), host.toLowerCase(), port))
    return undefined;
  const url = text.includes("://") ? text : `http://${text}`;
  return URL.canParse(url) ? new URL(url) : undefined;
}

/** The credentials in the proxy's URL as a header value. */
export function proxyAuthorization(proxy: URL): string | undefined {
  if (proxy.username === "" && proxy.password === "") return undefined;
  const credentials = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`;
  return `Basic ${Buffer.from(credentials).toString("base64")}`;
}

function isLoopback(host: string): boolean {
  if (host.toLowerCase() === "localhost" || host.toLowerCase().endsWith(".localhost")) return true;
  const family = isIP(host);
  return family === 4 ? host.startsWith("127.") : family === 6 && LOOPBACK_V6.check(host, "ipv6");
}

const LOOPBACK_V6 = new BlockList();
LOOPBACK_V6.addAddress("::1", "ipv6");
LOOPBACK_V6.addSubnet("::ffff:127.0.0.0", 104, "ipv6");

/** `list`: names (with their subdomains), addresses, networks, each with an optional :port; `*` is everything. */
function isExempt(list: string, host: string, port: number): boolean {
  return list
    .toLowerCase()
    .split(/[\s,]+/)
    .filter((entry) => entry !== "")
    .some((entry) => matches(entry, host, port));
}

function matches(entry: string, host: string, port: number): boolean {
  if (entry === "*") return true;
  const withPort = /^\[?([^\]]*?)\]?(?::(\d+))?$/.exec(isIP(entry) === 6 ? `[${entry}]` : entry);
  if (!withPort) return false;
  const [, name, onlyPort] = withPort;
  if (onlyPort !== undefined && Number(onlyPort) !== port) return false;
  const family = isIP(host);
  if (family === 0) {
    const bare = name.replace(/^\*?\.+/, ""); // ".example.com" is its subdomains alone
    return bare !== "" && (host === bare ? bare === name : host.endsWith(`.${bare}`));
  }
  const [address, prefix] = name.split("/");
  if (isIP(address) !== family) return false;
  const block = new BlockList();
  const kind = family === 4 ? "ipv4" : "ipv6";
  const bits = prefix === undefined ? (family === 4 ? 32 : 128) : Number(prefix);
  if (!Number.isInteger(bits) || bits < 0 || bits > (family === 4 ? 32 : 128)) return false;
  block.addSubnet(address, bits, kind);
  return block.check(host, kind);
}
