import type { ApiClient } from "../http.ts";

/** What the server's administrator wants for everyone's SSH configuration. */
export interface DeploymentSsh {
  hostnamePrefix: string | undefined;
  hostnameSuffix: string | undefined;
  /** As ssh_config lines. */
  options: string[];
  /** Keywords that a server may not set. */
  ignored: string[];
  /** What it would call workspaces but may not, as flags with which the user can have it. */
  foreignNames: string[];
}

/**
 * Names no other host has. What matches goes to the workspace instead of where it went before, so a server that was
 * taken over must not be able to say "github." or "com".
 */
const OWN_PREFIX = /^(?:[a-z0-9-]+[.-])?coder(?:\.|-{1,2})$/i;
const OWN_SUFFIX = /^(?:[a-z0-9.-]+\.)?coder$/i;

/**
 * Options that can neither run a program on this machine, nor read its files, nor hand out its keys: a server that was
 * taken over writes into the user's configuration too. Others are the user's to set, with --ssh-option.
 */
const HARMLESS = new Set([
  "compression",
  "connectionattempts",
  "connecttimeout",
  "ipqos",
  "loglevel",
  "rekeylimit",
  "requesttty",
  "serveralivecountmax",
  "serveraliveinterval",
  "setenv",
  "tcpkeepalive",
  "user",
]);

/** @throws {CliError} as the API client */
export async function fetchDeploymentSsh(api: ApiClient): Promise<DeploymentSsh> {
  return parseDeploymentSsh(await api.get<unknown>("/deployment/ssh"));
}

export function parseDeploymentSsh(body: unknown): DeploymentSsh {
  const fields = (typeof body === "object" && body !== null ? body : {}) as Record<string, unknown>;
  const name = (value: unknown) => (typeof value === "string" && value !== "" ? value : undefined);
  const all = fields["ssh_config_options"];
  const entries = typeof all === "object" && all !== null ? Object.entries(all) : [];
  const isHarmless = ([keyword, value]: [string, unknown]) =>
    HARMLESS.has(keyword.toLowerCase()) && typeof value === "string" && /^[^\r\n\0]{1,1024}$/.test(value);
  const prefix = name(fields["hostname_prefix"]);
  const suffix = name(fields["hostname_suffix"])?.replace(/^\.+/, "");
  const isOwn = {
    prefix: prefix === undefined || OWN_PREFIX.test(prefix),
    suffix: suffix === undefined || OWN_SUFFIX.test(suffix),
  };
  return {
    hostnamePrefix: isOwn.prefix ? prefix : undefined,
    hostnameSuffix: isOwn.suffix ? suffix : undefined,
    options: entries.filter(isHarmless).map(([keyword, value]) => `${keyword} ${value}`),
    ignored: entries.filter((entry) => !isHarmless(entry)).map(([keyword]) => keyword),
    foreignNames: [
      ...(isOwn.prefix ? [] : [`--ssh-host-prefix ${prefix}`]),
      ...(isOwn.suffix ? [] : [`--hostname-suffix ${suffix}`]),
    ],
  };
}
