// The relay map: which relays exist, by region. JSON names are those deployed clients read, hence their spelling.
import * as z from "zod";

export const EMBEDDED_REGION_ID = 999;

const MAX_REGIONS = 1_000;
const MAX_NODES_PER_REGION = 64;

const RegionId = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER);
const Port = z.number().int().min(0).max(65_535);

/** One relay or STUN server. */
export const DerpNode = z.object({
  /** Unique over the map, for example "1a". */
  Name: z.string().min(1).max(128),
  RegionID: RegionId,
  HostName: z.string().min(1).max(255),
  /** Verify this name, or `sha256-raw:<hex>`, instead of HostName. */
  CertName: z.string().max(255).optional(),
  /** A literal address: use it. Empty: resolve HostName. Other text ("none"): the family is off. */
  IPv4: z.string().max(64).optional(),
  IPv6: z.string().max(64).optional(),
  /** 0: 3478; -1: none. */
  STUNPort: z.number().int().min(-1).max(65_535).optional(),
  STUNOnly: z.boolean().optional(),
  /** 0: 443, or 80 with ForceHTTP. */
  DERPPort: Port.optional(),
  InsecureForTests: z.boolean().optional(),
  STUNTestIP: z.string().max(64).optional(),
  CanPort80: z.boolean().optional(),
  /** Plain HTTP (and ws:) instead of TLS. */
  ForceHTTP: z.boolean().optional(),
});
export type DerpNode = z.infer<typeof DerpNode>;

export const DerpRegion = z.object({
  /** The control plane's own relay: clients reach it at the address they reach the control plane at. */
  EmbeddedRelay: z.boolean().default(false),
  RegionID: RegionId,
  RegionCode: z.string().min(1).max(64),
  RegionName: z.string().max(128).default(""),
  Latitude: z.number().optional(),
  Longitude: z.number().optional(),
  /** Deprecated: never becomes a home anew. */
  Avoid: z.boolean().optional(),
  /** Not measured and never a home, yet usable to reach a peer that is there. */
  NoMeasureNoHome: z.boolean().optional(),
  /** In order of preference. */
  Nodes: z.preprocess((nodes) => nodes ?? [], z.array(DerpNode).max(MAX_NODES_PER_REGION)),
});
export type DerpRegion = z.infer<typeof DerpRegion>;

export const DerpMap = z
  .object({
    Regions: z.record(z.string().regex(/^[1-9]\d*$/), DerpRegion),
    HomeParams: z
      .object({
        /** Latency factors by region id; 0 and less are ignored, null means unchanged. */
        RegionScore: z.record(z.string().regex(/^[1-9]\d*$/), z.number()).nullish(),
      })
      .nullish(),
    omitDefaultRegions: z.boolean().optional(),
  })
  .superRefine((map, context) => {
    const fail = (path: (string | number)[], message: string): void =>
      context.addIssue({ code: "custom", path, message });
    const regions = Object.entries(map.Regions);
    if (regions.length > MAX_REGIONS) fail(["Regions"], `more than ${MAX_REGIONS} regions`);
    const names = new Set<string>();
    for (const [id, region] of regions) {
      if (String(region.RegionID) !== id)
        fail(["Regions", id, "RegionID"], `is ${region.RegionID}, but the region is listed as ${id}`);
      for (const [i, node] of region.Nodes.entries()) {
        const at = ["Regions", id, "Nodes", i];
        if (node.RegionID !== region.RegionID)
          fail([...at, "RegionID"], `is ${node.RegionID}, but the node stands in region ${region.RegionID}`);
        if (names.has(node.Name))
          fail([...at, "Name"], `"${node.Name}" is used twice; names are unique over the map`);
        names.add(node.Name);
      }
    }
    if (!regions.some(([, region]) => region.Nodes.some((node) => !node.STUNOnly)))
      fail(["Regions"], "no region has a relay: add a node without STUNOnly");
  });
export type DerpMap = z.infer<typeof DerpMap>;

/** The map of a control plane that is its own only relay. `accessUrl`: where clients reach it, http: or https:. */
export function embeddedRelayMap(accessUrl: string | URL): DerpMap {
  const url = new URL(accessUrl);
  const forceHttp = url.protocol === "http:";
  return {
    Regions: {
      [EMBEDDED_REGION_ID]: {
        EmbeddedRelay: true,
        RegionID: EMBEDDED_REGION_ID,
        RegionCode: "coder",
        RegionName: "Coder Embedded Relay",
        Nodes: [
          {
            Name: "999b",
            RegionID: EMBEDDED_REGION_ID,
            HostName: url.hostname.replace(/^\[|\]$/g, ""),
            DERPPort: Number(url.port) || (forceHttp ? 80 : 443),
            STUNPort: -1,
            ForceHTTP: forceHttp,
          },
        ],
      },
    },
  };
}
