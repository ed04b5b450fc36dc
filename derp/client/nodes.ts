// Reading a relay map as a client does: which nodes are relays, where they are, which region is home.
import { isIP } from "node:net";
import type { DerpMapLike, DerpNodeLike, DerpRegionLike } from "../../mesh/node/relay.ts";

/** The region's relays, in order of preference. */
export function relayNodes(region: DerpRegionLike): DerpNodeLike[] {
  return region.Nodes.filter((node) => !node.STUNOnly);
}

export function nodeUrl(node: DerpNodeLike): URL {
  const host = isIP(node.HostName) === 6 ? `[${node.HostName}]` : node.HostName;
  const port = node.DERPPort ? `:${node.DERPPort}` : "";
  return new URL(`${node.ForceHTTP ? "http" : "https"}://${host}${port}/derp`);
}

/** The address the map gives for the node, so that no name server is needed. */
export function nodeAddress(node: DerpNodeLike): string | undefined {
  return [node.IPv4, node.IPv6].find((address) => address !== undefined && isIP(address) !== 0);
}

/**
 * The home region without measurements: the one in use while it is eligible, else the control plane's own relay,
 * else the lowest id. Undefined when no region has a relay.
 */
export function chooseHome(map: DerpMapLike, current?: number): number | undefined {
  const regions = Object.values(map.Regions)
    .filter((region) => relayNodes(region).length > 0)
    .sort((a, b) => a.RegionID - b.RegionID);
  const eligible = regions.filter((region) => !region.NoMeasureNoHome);
  if (eligible.some((region) => region.RegionID === current)) return current;
  const preferred = eligible.filter((region) => !region.Avoid);
  const [best] = [preferred.filter((region) => region.EmbeddedRelay), preferred, eligible, regions].flat();
  return best?.RegionID;
}

/**
 * The same map with the control plane's own relay at `accessUrl`: a client reaches it where it reaches the control
 * plane, which may be another address than the one the server knows itself by.
 */
export function withAccessUrl<T extends DerpMapLike>(map: T, accessUrl: string | URL): T {
  const url = new URL(accessUrl);
  const forceHttp = url.protocol === "http:";
  const Regions = Object.fromEntries(
    Object.entries(map.Regions).map(([id, region]) => {
      if (!region.EmbeddedRelay) return [id, region];
      const Nodes = region.Nodes.map((node) => ({
        ...node,
        HostName: url.hostname.replace(/^\[|\]$/g, ""),
        DERPPort: Number(url.port) || (forceHttp ? 80 : 443),
        ForceHTTP: forceHttp,
        IPv4: undefined,
        IPv6: undefined,
      }));
      return [id, { ...region, Nodes }];
    }),
  );
  return { ...map, Regions };
}
