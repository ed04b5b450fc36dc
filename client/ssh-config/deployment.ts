import type { ApiClient } from "../http.ts";

/** What the server's administrator wants for everyone's SSH configuration. */
export interface DeploymentSsh {
  hostnamePrefix: string | undefined;
  hostnameSuffix: string | undefined;
  /** As ssh_config lines. */
  options: string[];
  /** Keywords that a server may not set. */
  ignored: string[];
}

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
  return {
    hostnamePrefix: name(fields["hostname_prefix"]),
    hostnameSuffix: name(fields["hostname_suffix"])?.replace(/^\.+/, ""),
    options: entries.filter(isHarmless).map(([keyword, value]) => `${keyword} ${value}`),
    ignored: entries.filter((entry) => !isHarmless(entry)).map(([keyword]) => keyword),
  };
}
