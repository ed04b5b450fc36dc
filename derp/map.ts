// The relay map: which relays exist, by region. JSON names are those deployed clients read, hence their spelling.
import * as z from "zod";
import { toHex } from "../mesh/wire/bytes.ts";

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
  /** Ours: the relay's key, 64 hex digits. A client that knows it saves a round trip, without TLS too. */
  PublicKey: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
  /**
   * Ours: DERPPort is a port of the relay alone, beside the control plane's. A client that reaches the control plane
   * at another address than the map says keeps this port.
   */
  OwnPort: z.boolean().optional(),
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

export interface EmbeddedRelayOptions {
  /** 999, code "coder", "Coder Embedded Relay" by default. */
  regionId?: number;
  regionCode?: string;
  regionName?: string;
  /** Where the server's own STUN listens, at the host of the access URL; -1, the default: nowhere. */
  stunPort?: number;
  /** The relay's own TLS port at the same host: the first that clients try. */
  relayPort?: number;
  /**
   * The relay's, 32 bytes, for a key that outlives restarts and no HTTP proxy in front: a client that trusts a stale
   * one, or whose request goes unanswered through a proxy, has lost its first attempt. Left out by default.
   */
  publicKey?: Uint8Array;
  /** Other STUN servers, "host:port". Each is a region of its own, since probes of a region end at its first answer. */
  stunAddresses?: readonly string[];
}

/** The map of a control plane that is its own only relay. `accessUrl`: where clients reach it, http: or https:. */
export function embeddedRelayMap(accessUrl: string | URL, options: EmbeddedRelayOptions = {}): DerpMap {
  const url = new URL(accessUrl);
  const forceHttp = url.protocol === "http:";
  const HostName = url.hostname.replace(/^\[|\]$/g, "");
  const { regionId = EMBEDDED_REGION_ID, stunPort = -1, relayPort, stunAddresses = [] } = options;
  const PublicKey = options.publicKey && toHex(options.publicKey);
  const Nodes: DerpNode[] = [
    {
      Name: `${regionId}b`,
      RegionID: regionId,
      HostName,
      DERPPort: Number(url.port) || (forceHttp ? 80 : 443),
      STUNPort: stunPort,
      ForceHTTP: forceHttp,
      ...(PublicKey && { PublicKey }),
    },
  ];
  if (relayPort !== undefined)
    Nodes.unshift({
      Name: `${regionId}a`,
      RegionID: regionId,
      HostName,
      DERPPort: relayPort,
      STUNPort: stunPort,
      ForceHTTP: false,
      OwnPort: true,
      ...(PublicKey && { PublicKey }),
    });
  const map: DerpMap = {
    Regions: {
      [regionId]: {
        EmbeddedRelay: true,
        RegionID: regionId,
        RegionCode: options.regionCode ?? "coder",
        RegionName: options.regionName ?? "Coder Embedded Relay",
        Nodes,
      },
    },
  };
  addStunRegions(map, regionId + 1, stunAddresses);
  return map;
}

/** Adds a STUN-only region for each of `addresses`, "host:port", from `firstId` on. */
function addStunRegions(map: DerpMap, firstId: number, addresses: readonly string[]): void {
  for (const [i, address] of addresses.entries()) {
    const colon = address.lastIndexOf(":");
    const id = firstId + i;
    map.Regions[id] = {
      EmbeddedRelay: false,
      RegionID: id,
      RegionCode: `coder_stun_${i + 1}`,
      RegionName: `Coder STUN ${i + 1}`,
      Nodes: [
        {
          Name: `${id}stun0`,
          RegionID: id,
          HostName: address.slice(0, colon).replace(/^\[|\]$/g, ""),
          STUNPort: Number(address.slice(colon + 1)),
          STUNOnly: true,
        },
      ],
    };
  }
}

/**
 * One map of two; what `extra` says about latencies of regions holds.
 *
 * @throws {z.ZodError} when both have a region or node name, or no region has a relay
 */
export function mergeRelayMaps(own: { Regions: DerpMap["Regions"] }, extra: DerpMap): DerpMap {
  const twice = Object.keys(extra.Regions).find((id) => id in own.Regions);
  if (twice !== undefined)
    throw new z.ZodError([
      {
        code: "custom",
        path: ["Regions", twice],
        message: "is the id of this server's own region; give that another one with --derp-server-region-id",
        input: twice,
      },
    ]);
  return DerpMap.parse({ ...extra, Regions: { ...own.Regions, ...extra.Regions } });
}

/** The same map for a deployment whose nodes use relays only: nobody is to look for direct paths. */
export function withoutStun(map: DerpMap): DerpMap {
  const Regions = Object.fromEntries(
    Object.entries(map.Regions).flatMap(([id, region]) => {
      const Nodes = region.Nodes.filter((node) => !node.STUNOnly).map((node) => ({ ...node, STUNPort: -1 }));
      return Nodes.length > 0 ? [[id, { ...region, Nodes }]] : [];
    }),
  );
  return { ...map, Regions };
}
