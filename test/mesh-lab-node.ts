import { CoordinatorClient, verifyEd25519 } from "../coordinator/client.ts";
import type { NodeSubject } from "../coordinator/coordinator.ts";
import { RelayClient } from "../derp/client/regions.ts";
import { MeshNode, type MeshNodeOptions, newIdentity } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";

export interface LabNode {
  node: MeshNode;
  coordinator: CoordinatorClient;
  relay: RelayClient;
}

/** A node of the lab at `url`, also from another process. There the token is the subject itself. */
export async function labNode(
  url: string,
  subject: NodeSubject,
  options: Partial<MeshNodeOptions> = {},
): Promise<LabNode> {
  const { privateKey, nodeKey } = newIdentity();
  const relay = new RelayClient({ privateKey, accessUrl: url, random: () => 0 });
  const coordinator = new CoordinatorClient({
    url: `${url}/coordinate`,
    token: JSON.stringify(subject),
    nodeKey,
    onRelayMap: (map) => relay.setMap(map as unknown as DerpMapLike),
    random: () => 0,
  });
  const role = subject.kind === "agent" ? "agent" : "client";
  const node = new MeshNode({ role, privateKey, relay, coordinator, verify: verifyEd25519, ...options });
  try {
    await coordinator.connect();
  } catch (error) {
    await node.close();
    throw error;
  }
  return { node, coordinator, relay };
}
