// How Go reads numbers, bools and URLs from text. Templates written for Coder were checked by a provider in Go;
// what passed there has to pass here, and the other way round.

/** strconv.Atoi: decimal, optional sign, 64 bit. @returns undefined when it is not one */
export function parseGoInt(text: string): bigint | undefined {
  if (!/^[+-]?\d{1,32}$/.test(text)) return undefined;
  const value = BigInt(text.startsWith("+") ? text.slice(1) : text);
  return BigInt.asIntN(64, value) === value ? value : undefined;
}

/** strconv.ParseFloat's grammar without digit separators; a number too large for a double is not one. */
export function isGoFloat(text: string): boolean {
  if (/^[+-]?(inf|infinity)$|^nan$/i.test(text)) return true;
  if (/^[+-]?0x([0-9a-f]+(\.[0-9a-f]*)?|\.[0-9a-f]+)p[+-]?\d+$/i.test(text)) return true;
  return /^[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/i.test(text) && Number.isFinite(Number(text));
}

const GO_TRUE = new Set(["1", "t", "T", "TRUE", "true", "True"]);
const GO_FALSE = new Set(["0", "f", "F", "FALSE", "false", "False"]);

/** strconv.ParseBool. @returns undefined when it is not one */
export function parseGoBool(text: string): boolean | undefined {
  if (GO_TRUE.has(text)) return true;
  return GO_FALSE.has(text) ? false : undefined;
}

/**
 * What Go's url.Parse finds wrong with `text`, or undefined. It is lenient: `/icon/code.svg` and an empty text
 * are URLs to it.
 */
export function urlProblem(text: string): string | undefined {
  if (/[\x00-\x1f\x7f]/.test(text)) return "it contains a control character";
  const withoutFragment = text.split("#", 1)[0];
  const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]*):/.exec(withoutFragment);
  if (!scheme && withoutFragment.startsWith(":")) return "the scheme in front of the colon is missing";
  const rest = (scheme ? withoutFragment.slice(scheme[0].length) : withoutFragment).split("?", 1)[0];
  if (!scheme && /^[^/]*:/.test(rest)) return "its first part has a colon but is no scheme";
  if (scheme && !rest.startsWith("/")) return undefined; // opaque, such as mailto:someone
  if (/%(?![0-9a-fA-F]{2})/.test(rest)) return "a % is not followed by two hexadecimal digits";
  if (!rest.startsWith("//") || (!scheme && rest.startsWith("///"))) return undefined;
  const authority = rest.slice(2).split("/", 1)[0];
  const host = authority.slice(authority.lastIndexOf("@") + 1);
  if (/[\s<>"\\^`{|}]/.test(host)) return "its host name contains a character that host names can't have";
  if (host.startsWith("["))
    return /^\[[^\]]+\](:\d*)?$/.test(host) ? undefined : "its IPv6 address or port is malformed";
  return /^[^:]*(:\d*)?$/.test(host) ? undefined : "its port is not a number";
}
