// Reading a relay map as a client does: which nodes are relays, where they are, which region is home at first.
import { isIP } from "node:net";
import type { DerpMapLike, DerpNodeLike, DerpRegionLike } from "../../mesh/node/relay.ts";

/** All a client reads of a node of the map. */
export interface ClientNode extends DerpNodeLike {
  /** Verify this name, or `sha256-raw:<hex>`, instead of HostName. */
  CertName?: string;
  /** Probe STUN here instead. */
  STUNTestIP?: string;
  /**
   * The relay's key, 64 hex digits. Ours: whoever makes the map sets it where nothing but relays of that one key answer
   * at HostName, and no HTTP proxy stands in between; it saves the first round trip.
   */
  PublicKey?: string;
  /** Ours: DERPPort is the relay's alone, so it stays where the control plane is reached at another address. */
  OwnPort?: boolean;
}

export interface ClientRegion extends DerpRegionLike {
  Nodes: ClientNode[];
}

export interface ClientMap extends DerpMapLike {
  Regions: Record<string, ClientRegion>;
  HomeParams?: {
    /** Latency factors by region id. */
    RegionScore?: Record<string, number> | null;
  } | null;
}

/** What to do for one address family. */
export type AddressRule = { kind: "literal"; address: string } | { kind: "resolve" } | { kind: "off" };
export interface NodeAddresses {
  host: string;
  v4: AddressRule;
  v6: AddressRule;
}

/** The region's relays, in order of preference. */
export function relayNodes(region: ClientRegion): ClientNode[] {
  return region.Nodes.filter((node) => !node.STUNOnly);
}

export function nodeUrl(node: DerpNodeLike): URL {
  const host = isIP(node.HostName) === 6 ? `[${node.HostName}]` : node.HostName;
  const port = node.DERPPort ? `:${node.DERPPort}` : "";
  return new URL(`${node.ForceHTTP ? "http" : "https"}://${host}${port}/derp`);
}

/** Literal addresses of the map are used as they are; empty ones are looked up; any other text turns the family off. */
export function nodeAddresses(node: DerpNodeLike): NodeAddresses {
  const hostFamily = isIP(node.HostName);
  const rule = (family: 4 | 6, text: string | undefined): AddressRule => {
    if (text) return isIP(text) === family ? { kind: "literal", address: text } : { kind: "off" };
    if (hostFamily === 0) return { kind: "resolve" };
    return hostFamily === family ? { kind: "literal", address: node.HostName } : { kind: "off" };
  };
  return { host: node.HostName, v4: rule(4, node.IPv4), v6: rule(6, node.IPv6) };
}

/** The address the map gives for the node, so that no name server is needed. */
export function nodeAddress(node: DerpNodeLike): string | undefined {
  const { v4, v6 } = nodeAddresses(node);
  if (v4.kind === "literal") return v4.address;
  return v6.kind === "literal" ? v6.address : undefined;
}

/** The key the map names for the node, if it is one. */
export function nodeKey(node: ClientNode): Uint8Array | undefined {
  const hex = node.PublicKey;
  return hex !== undefined && /^[0-9a-f]{64}$/i.test(hex) ? Buffer.from(hex, "hex") : undefined;
}

/** Regions that may be home by measurement: with a relay, and not excluded. */
export function isEligibleHome(region: ClientRegion): boolean {
  return !region.NoMeasureNoHome && relayNodes(region).length > 0;
}

/**
 * The home region without measurements: the one in use while it is eligible, else the control plane's own relay,
 * else the lowest id. Undefined when no region has a relay.
 */
export function chooseHome(map: DerpMapLike, current?: number): number | undefined {
  const regions = sortRegions(map).filter((region) => relayNodes(region).length > 0);
  const eligible = regions.filter(isEligibleHome);
  if (eligible.some((region) => region.RegionID === current)) return current;
  const preferred = eligible.filter((region) => !region.Avoid);
  const [best] = [preferred.filter((region) => region.EmbeddedRelay), preferred, eligible, regions].flat();
  return best?.RegionID;
}

/** By latency, unmeasured ones last; equal ones by id. */
export function sortRegions(
  map: DerpMapLike,
  latencyMs: ReadonlyMap<number, number> = new Map(),
): ClientRegion[] {
  const of = (region: ClientRegion): number => latencyMs.get(region.RegionID) ?? Number.MAX_VALUE;
  return Object.values(map.Regions).sort((a, b) => of(a) - of(b) || a.RegionID - b.RegionID);
}

/**
 * The same map with the control plane's own relay at `accessUrl`: a client reaches it where it reaches the control
 * plane, which may be another address than the one the server knows itself by.
 */
export function withAccessUrl<T extends ClientMap>(map: T, accessUrl: string | URL): T {
  const url = new URL(accessUrl);
  const forceHttp = url.protocol === "http:";
  const Regions = Object.fromEntries(
    Object.entries(map.Regions).map(([id, region]) => {
      if (!region.EmbeddedRelay) return [id, region];
      const Nodes = region.Nodes.map((node) => ({
        ...node,
        HostName: url.hostname.replace(/^\[|\]$/g, ""),
        ...(!node.OwnPort && {
          DERPPort: Number(url.port) || (forceHttp ? 80 : 443),
          ForceHTTP: forceHttp,
        }),
        IPv4: undefined,
        IPv6: undefined,
      }));
      return [id, { ...region, Nodes }];
    }),
  );
  return { ...map, Regions };
}
