// Nodes of the hostile world: like the lab's, but with a relay that need not be the coordinator's.
import { CoordinatorClient, verifyEd25519 } from "../../coordinator/client.ts";
import type { NodeSubject } from "../../coordinator/coordinator.ts";
import { RelayClient } from "../../derp/client/regions.ts";
import { embeddedRelayMap } from "../../derp/map.ts";
import { MeshNode, type MeshNodeOptions, newIdentity } from "../../mesh/node/node.ts";
import type { DerpMapLike } from "../../mesh/node/relay.ts";
import type { LabNode } from "../mesh-lab-node.ts";

/** Where a node joins. */
export interface Place {
  /** The coordinator's server. */
  url: string;
  /** Another relay than the coordinator's map says. */
  relayUrl?: string;
}

/** Resolves once the coordinator has said welcome. */
export async function joinAt(
  { url, relayUrl }: Place,
  subject: NodeSubject,
  options: Partial<MeshNodeOptions> = {},
): Promise<LabNode> {
  const { privateKey, nodeKey } = newIdentity();
  const relay = new RelayClient({ privateKey, accessUrl: relayUrl ?? url, random: () => 0 });
  if (relayUrl !== undefined) relay.setMap(embeddedRelayMap(relayUrl) as unknown as DerpMapLike);
  const coordinator = new CoordinatorClient({
    url: `${url}/coordinate`,
    token: JSON.stringify(subject),
    nodeKey,
    onRelayMap: (map) => {
      if (relayUrl === undefined) relay.setMap(map as unknown as DerpMapLike);
    },
    random: () => 0,
  });
  const role = subject.kind === "agent" ? "agent" : "client";
  const node = new MeshNode({ role, privateKey, relay, coordinator, verify: verifyEd25519, ...options });
  await coordinator.connect();
  return { node, coordinator, relay };
}
