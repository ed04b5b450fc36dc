// The relay of a server as its flags describe it: in this process or its own, with STUN beside it, its regions in the
// relay map, and everything that is counted for Prometheus.
import { existsSync, readFileSync, unwatchFile, watchFile } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import type { Logger } from "pino";
import * as z from "zod";
import { verifyEd25519 } from "../coordinator/ed25519.ts";
import { keyPair } from "../derp/box.ts";
import { DerpMap, embeddedRelayMap, mergeRelayMaps, withoutStun } from "../derp/map.ts";
import type { AdmissionMode } from "../derp/server/admission.ts";
import { type Metric, prometheusText } from "../derp/server/metrics.ts";
import { RelayProcess } from "../derp/server/process.ts";
import type { RelayListen, TlsFiles } from "../derp/server/process-protocol.ts";
import { parseRateConfig, type RateConfig } from "../derp/server/rate.ts";
import { DerpServer, type RelayService } from "../derp/server/server.ts";
import { StunServer } from "../derp/server/stun.ts";
import { readTls, type TlsOptions } from "../derp/server/tls.ts";
import { MeshError } from "../mesh/wire/errors.ts";
import type { PublicSigningKey } from "../mesh/wire/signed.ts";

export interface RelayConfig {
  /** false: only relays of the configured map. */
  isEnabled: boolean;
  regionId?: number;
  regionCode?: string;
  regionName?: string;
  admission: AdmissionMode;
  /** "own": relaying shares no event loop with the API. */
  process: "own" | "shared";
  /** With TLS, where a relay in its own process listens itself. */
  listen?: { host: string; port: number };
  /** Our own STUN server; undefined: none. */
  stun?: { host: string; port: number };
  /** Others, "host:port". */
  stunAddresses?: readonly string[];
  /** Further regions: a map in a file or at a URL. */
  mapPath?: string;
  mapUrl?: string;
  rateConfigPath?: string;
  /** Nodes are to use relays only. */
  isDirectBlocked?: boolean;
  tls?: TlsFiles;
  /** Program of the relay's own process; undefined, or missing: the relay shares ours. */
  modulePath?: string;
}

export interface RelayServices {
  /** Starts the relay, once. `signingKeys`: of tickets, as they are now. */
  makeRelay(signingKeys: () => readonly PublicSigningKey[]): RelayService;
  /** For nodes that reach the control plane at `accessUrl`. */
  relayMap(accessUrl: string): DerpMap;
  /** Certificates of the server with the relay's meta certificate; undefined without TLS. @throws {TlsError} */
  readTls(): TlsOptions | undefined;
  /** Resolves when the relay serves. @throws {MeshError} */
  ready(): Promise<void>;
  /** Reads certificates and rates again; what is wrong is logged and stays as it was. */
  reload(): void;
  /** Called when certificates were read again, by `reload` or since their files changed. */
  onTls: ((options: TlsOptions) => void) | undefined;
  metrics(): Promise<Metric[]>;
  stop(): Promise<void>;
}

export class RelayConfigError extends MeshError {
  readonly code = "ERR_RELAY_CONFIG";
}

const MAP_TIMEOUT_MS = 10_000;
const MAX_MAP_BYTES = 1 << 20;
/** Certificates are renewed weeks before they end. */
const WATCH_FILES_MS = 30_000;

/** @throws {RelayConfigError} ERR_RELAY_CONFIG, {TlsError} ERR_TLS_FILES */
export async function startRelayServices(config: RelayConfig, logger: Logger): Promise<RelayServices> {
  const keys = keyPair();
  const rates = config.rateConfigPath === undefined ? undefined : readRates(config.rateConfigPath);
  const extra = await readExtraMap(config);
  if (!config.isEnabled && !extra)
    throw new RelayConfigError(
      "without the server's own relay nobody reaches a workspace: name others with --derp-config-url or --derp-config-path",
    );
  if (config.tls) readTls(config.tls, keys.publicKey, Date.now()); // found wrong now, not when it is too late
  const stun =
    config.stun && config.isEnabled && !config.isDirectBlocked
      ? await StunServer.listen({ ...config.stun, logger })
      : undefined;

  let relay: RelayService | undefined;
  let ownProcess: RelayProcess | undefined;
  /** Each node that connects is told the map, so it is made once. */
  let made: { of: string; map: DerpMap } | undefined;
  const makeMap = (accessUrl: string): DerpMap => {
    const { regionId, regionCode, regionName, stunAddresses } = config;
    const region = { regionId, regionCode, regionName, stunAddresses };
    const own = config.isEnabled
      ? embeddedRelayMap(accessUrl, { ...region, stunPort: stun?.port ?? -1, relayPort: ownProcess?.port })
      : { Regions: {} };
    const map = extra ? mergeRelayMaps(own, extra) : DerpMap.parse(own);
    return config.isDirectBlocked ? withoutStun(map) : map;
  };
  const services: RelayServices = {
    onTls: undefined,
    makeRelay(signingKeys) {
      if (relay) throw new TypeError("the relay was started already");
      const { admission, modulePath } = config;
      const shared = { privateKey: keys.privateKey, logger, admission, rates };
      const inThisProcess = () =>
        new DerpServer({ ...shared, tickets: { keys: signingKeys, verify: verifyEd25519 } });
      if (config.process === "own" && modulePath !== undefined && existsSync(modulePath)) {
        const listen: RelayListen | undefined =
          config.tls && config.listen ? { ...config.listen, tls: config.tls } : undefined;
        ownProcess = new RelayProcess({
          ...shared,
          modulePath,
          listen,
          signingKeys,
          fallback: inThisProcess,
        });
        relay = ownProcess;
      } else relay = inThisProcess();
      return relay;
    },
    relayMap(accessUrl) {
      const of = `${accessUrl} ${ownProcess?.port}`;
      if (made?.of !== of) made = { of, map: makeMap(accessUrl) };
      return made.map;
    },
    readTls: () => config.tls && readTls(config.tls, keys.publicKey, Date.now()),
    ready: () => ownProcess?.ready ?? Promise.resolve(),
    reload() {
      try {
        if (config.tls) services.onTls?.(readTls(config.tls, keys.publicKey, Date.now()));
        ownProcess?.reloadCertificates();
        if (config.rateConfigPath !== undefined) relay?.setRates(readRates(config.rateConfigPath));
        logger.info("certificates and rates were read again");
      } catch (error) {
        if (!(error instanceof MeshError)) throw error;
        logger.error({ error: error.message }, "reloading failed; what was in use stays in use");
      }
    },
    async metrics() {
      return [...((await relay?.metrics()) ?? []), ...(stun?.metrics() ?? [])];
    },
    async stop() {
      for (const file of watched) unwatchFile(file, services.reload);
      await Promise.all([relay?.close(), stun?.close()]);
    },
  };
  const watched = [
    ...(config.tls?.certFiles ?? []),
    ...(config.tls?.keyFiles ?? []),
    ...(config.rateConfigPath === undefined ? [] : [config.rateConfigPath]),
  ];
  for (const file of watched)
    watchFile(file, { interval: WATCH_FILES_MS, persistent: false }, services.reload);
  try {
    services.relayMap("http://localhost"); // found wrong now
  } catch (error) {
    await services.stop();
    throw new RelayConfigError(`the relay map doesn't fit: ${mapProblem(error)}`, { cause: error });
  }
  return services;
}

/** Text for Prometheus at /metrics of its own listener, so that it need not be reachable where the API is. */
export async function startMetricsListener(
  { host, port }: { host: string; port: number },
  metrics: () => Promise<Metric[]>,
): Promise<{ port: number; close(): Promise<void> }> {
  const server: Server = createServer((req, res) => {
    if ((req.url ?? "").split("?", 1)[0] !== "/metrics" || (req.method !== "GET" && req.method !== "HEAD")) {
      res.writeHead(404).end();
      return;
    }
    metrics().then(
      (all) => {
        res.writeHead(200, { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" });
        res.end(prometheusText(all));
      },
      () => res.writeHead(500).end(),
    );
  });
  server.requestTimeout = 10_000;
  server.headersTimeout = 5_000;
  server.maxConnections = 64;
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, host, () => resolve());
    });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new RelayConfigError(`can't listen for Prometheus: ${why}. Choose another --prometheus-address`, {
      cause,
    });
  }
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function readRates(file: string): RateConfig {
  try {
    return parseRateConfig(readFileSync(file, "utf8"));
  } catch (cause) {
    throw new RelayConfigError(`${file}: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    });
  }
}

async function readExtraMap({ mapPath, mapUrl }: RelayConfig): Promise<DerpMap | undefined> {
  const from = mapPath ?? mapUrl;
  if (from === undefined) return undefined;
  if (mapPath !== undefined && mapUrl !== undefined)
    throw new RelayConfigError("give --derp-config-url or --derp-config-path, not both");
  try {
    const text = mapUrl === undefined ? readFileSync(from, "utf8") : await fetchText(mapUrl);
    return DerpMap.parse(JSON.parse(text));
  } catch (cause) {
    throw new RelayConfigError(`${from} gives no relay map: ${mapProblem(cause)}`, { cause });
  }
}

async function fetchText(url: string): Promise<string> {
  const response = await fetch(url, { signal: AbortSignal.timeout(MAP_TIMEOUT_MS) });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const part of response.body ?? []) {
    bytes += part.length;
    if (bytes > MAX_MAP_BYTES) throw new Error(`more than ${MAX_MAP_BYTES} bytes`);
    parts.push(part);
  }
  return Buffer.concat(parts).toString("utf8");
}

function mapProblem(error: unknown): string {
  if (error instanceof z.ZodError) {
    const [issue] = error.issues;
    return `${issue.path.join(".") || "it"} ${issue.message}`;
  }
  return error instanceof Error ? error.message : String(error);
}
