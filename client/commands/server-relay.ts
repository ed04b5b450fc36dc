// The flags of `coder server` about its relay, TLS and Prometheus, and what they mean together.
import path from "node:path";
import { type Command, Option } from "commander";
import type { RelayConfig } from "../../control/relay.ts";
import { CliError } from "../errors.ts";
import { installRoot } from "../resources.ts";
import { parseAddress } from "./address.ts";

export interface RelayFlags {
  tlsEnable: boolean;
  tlsAddress: string;
  tlsCertFile: string[];
  tlsKeyFile: string[];
  tlsMinVersion: "tls12" | "tls13";
  derpServerEnable: boolean;
  derpServerRegionId: string;
  derpServerRegionCode: string;
  derpServerRegionName: string;
  derpServerStunAddresses: string[];
  derpServerStunAddress?: string;
  derpServerAdmission: "open" | "ticket";
  derpServerProcess: "own" | "shared";
  derpServerRelayAddress?: string;
  derpServerRateConfig?: string;
  derpConfigUrl?: string;
  derpConfigPath?: string;
  blockDirectConnections: boolean;
  prometheusEnable: boolean;
  prometheusAddress: string;
}

/** What `startServer` takes of them. */
export interface RelaySettings {
  relay: RelayConfig;
  tls?: { host: string; port: number };
  prometheus?: { host: string; port: number };
}

const DEFAULT_STUN_PORT = 3_478;

export function addRelayFlags(command: Command): Command {
  const flag = (flags: string, text: string, variable: string, fallback?: unknown): Option => {
    const option = new Option(flags, text).env(variable);
    return fallback === undefined ? option : option.default(fallback);
  };
  const toggle = (flags: string, text: string, variable: string, fallback: boolean): Option =>
    flag(flags, text, variable, fallback).argParser((value) => parseToggle(flags, value));
  const list = (flags: string, text: string, variable: string): Option =>
    flag(flags, text, variable, []).argParser((value: string, before: string[]) => [
      ...(before ?? []),
      ...value.split(",").filter((part) => part !== ""),
    ]);
  return command
    .addOption(toggle("--tls-enable [on]", "listen with TLS as well", "CODER_TLS_ENABLE", false))
    .addOption(flag("--tls-address <host:port>", "where, with TLS", "CODER_TLS_ADDRESS", "127.0.0.1:3443"))
    .addOption(
      list("--tls-cert-file <files>", "certificates with their chains, in PEM", "CODER_TLS_CERT_FILE"),
    )
    .addOption(list("--tls-key-file <files>", "their keys, in the same order", "CODER_TLS_KEY_FILE"))
    .addOption(
      flag(
        "--tls-min-version <version>",
        "oldest TLS that is accepted",
        "CODER_TLS_MIN_VERSION",
        "tls12",
      ).choices(["tls12", "tls13"]),
    )
    .addOption(toggle("--derp-server-enable [on]", "be a relay", "CODER_DERP_SERVER_ENABLE", true))
    .addOption(flag("--derp-server-region-id <id>", "its region", "CODER_DERP_SERVER_REGION_ID", "999"))
    .addOption(
      flag("--derp-server-region-code <code>", "its short name", "CODER_DERP_SERVER_REGION_CODE", "coder"),
    )
    .addOption(
      flag(
        "--derp-server-region-name <name>",
        "its name for people",
        "CODER_DERP_SERVER_REGION_NAME",
        "Coder Embedded Relay",
      ),
    )
    .addOption(
      list(
        "--derp-server-stun-addresses <addresses>",
        "other STUN servers, host:port, or `disable`",
        "CODER_DERP_SERVER_STUN_ADDRESSES",
      ),
    )
    .addOption(
      flag(
        "--derp-server-stun-address <host:port>",
        "where our own STUN server listens, by default port 3478 of --http-address; or `disable`",
        "CODER_DERP_SERVER_STUN_ADDRESS",
      ),
    )
    .addOption(
      flag(
        "--derp-server-admission <mode>",
        "whether nodes without a ticket are admitted, under tight limits",
        "CODER_DERP_SERVER_ADMISSION",
        "open",
      ).choices(["open", "ticket"]),
    )
    .addOption(
      flag(
        "--derp-server-process <mode>",
        "relay in a process of its own, or in the server's",
        "CODER_DERP_SERVER_PROCESS",
        "own",
      ).choices(["own", "shared"]),
    )
    .addOption(
      flag(
        "--derp-server-relay-address <host:port>",
        "with TLS, a port of the relay's own process",
        "CODER_DERP_SERVER_RELAY_ADDRESS",
      ),
    )
    .addOption(
      flag("--derp-server-rate-config <file>", "JSON with rate limits", "CODER_DERP_SERVER_RATE_CONFIG"),
    )
    .addOption(flag("--derp-config-url <url>", "relay map with further regions", "CODER_DERP_CONFIG_URL"))
    .addOption(flag("--derp-config-path <file>", "the same from a file", "CODER_DERP_CONFIG_PATH"))
    .addOption(
      toggle("--block-direct-connections [on]", "have nodes use relays only", "CODER_BLOCK_DIRECT", false),
    )
    .addOption(toggle("--prometheus-enable [on]", "serve metrics", "CODER_PROMETHEUS_ENABLE", false))
    .addOption(
      flag(
        "--prometheus-address <host:port>",
        "where, at /metrics",
        "CODER_PROMETHEUS_ADDRESS",
        "127.0.0.1:2112",
      ),
    );
}

/** @throws {CliError} that says which flags don't fit together */
export function relaySettings(flags: RelayFlags, http: { host: string }): RelaySettings {
  const regionId = Number(flags.derpServerRegionId);
  if (!Number.isSafeInteger(regionId) || regionId < 1)
    throw new CliError("ERR_BAD_COUNT", `"${flags.derpServerRegionId}" is no region id`, {
      hint: "Write a number from 1; 900 to 999 are reserved for deployments' own.",
    });
  if (flags.tlsEnable && flags.tlsCertFile.length === 0)
    throw new CliError("ERR_BAD_OPTION", "TLS needs a certificate", {
      hint: "Name it with --tls-cert-file, and its key with --tls-key-file.",
    });
  if (flags.derpServerRelayAddress !== undefined && !(flags.tlsEnable && flags.derpServerProcess === "own"))
    throw new CliError(
      "ERR_BAD_OPTION",
      "--derp-server-relay-address is for TLS and a relay in its own process",
      {
        hint: "Without TLS the relay's process takes over connections from the server's port.",
      },
    );
  const stunAddresses = flags.derpServerStunAddresses.filter((address) => address !== "disable");
  for (const address of stunAddresses) parseAddress(address);
  const stunFlag = flags.derpServerStunAddress;
  const relayAddress = flags.derpServerRelayAddress;
  return {
    relay: {
      isEnabled: flags.derpServerEnable,
      regionId,
      regionCode: flags.derpServerRegionCode,
      regionName: flags.derpServerRegionName,
      admission: flags.derpServerAdmission,
      process: flags.derpServerProcess,
      modulePath: path.join(installRoot(), "dist/relay.mjs"),
      listen: relayAddress === undefined ? undefined : parseAddress(relayAddress),
      stun:
        stunFlag === "disable"
          ? undefined
          : stunFlag === undefined
            ? { host: http.host, port: DEFAULT_STUN_PORT }
            : parseAddress(stunFlag),
      stunAddresses,
      mapUrl: flags.derpConfigUrl,
      mapPath: flags.derpConfigPath,
      rateConfigPath: flags.derpServerRateConfig,
      isDirectBlocked: flags.blockDirectConnections,
      tls: flags.tlsEnable
        ? {
            certFiles: flags.tlsCertFile,
            keyFiles: flags.tlsKeyFile,
            minVersion: flags.tlsMinVersion === "tls13" ? "TLSv1.3" : "TLSv1.2",
          }
        : undefined,
    },
    tls: flags.tlsEnable ? parseAddress(flags.tlsAddress) : undefined,
    prometheus: flags.prometheusEnable ? parseAddress(flags.prometheusAddress) : undefined,
  };
}

function parseToggle(flag: string, value: string): boolean {
  if (/^(true|1|yes|on)$/i.test(value)) return true;
  if (/^(false|0|no|off)$/i.test(value)) return false;
  throw new CliError("ERR_BAD_OPTION", `"${value}" is neither true nor false (${flag.split(" ", 1)[0]})`);
}
