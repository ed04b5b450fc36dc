import { CoordinatorClient, verifyEd25519 } from "../coordinator/client.ts";
import { RelayClient } from "../derp/client/regions.ts";
import { MeshNode, newIdentity } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";
import type { Logger } from "./logging.ts";

export interface AgentMeshOptions {
  /** The server's address. */
  url: string;
  token: string;
  logger: Logger;
  /** The token now makes this another agent: a newer build of the workspace kept it. */
  onAgentId?: (agentId: string) => void;
}

/** This agent's node: connects out to coordinator and relay, and keeps reconnecting to both until closed. */
export async function connectAgentMesh({
  url,
  token,
  logger,
  onAgentId,
}: AgentMeshOptions): Promise<MeshNode> {
  const { privateKey, nodeKey } = newIdentity();
  let isConnected = false;
  const relay = new RelayClient({
    privateKey,
    accessUrl: url,
    ticket: () => coordinator.relayTicket,
    // Peers learn of a new home from the coordinator only.
    canMoveHome: () => isConnected,
  });
  relay.onFallback = (region, reason) => logger.warn({ region, reason }, "using WebSockets to the relay");
  relay.onHealth = (region, problem) => logger.warn({ region, problem }, "the relay reports");
  const coordinator: CoordinatorClient = new CoordinatorClient({
    url: `${url}/api/v2/mesh/coordinate`,
    token,
    nodeKey,
    onRelayMap: (map) => relay.setMap(map as unknown as DerpMapLike),
    onState: ({ connected, error }) => {
      isConnected = connected;
      if (!connected) return logger.warn({ error: error?.message }, "lost the coordinator, reconnecting");
      logger.info({}, "connected to the coordinator");
      if (coordinator.agentId !== undefined) onAgentId?.(coordinator.agentId);
    },
  });
  const node = new MeshNode({
    role: "agent",
    privateKey,
    relay,
    coordinator,
    verify: verifyEd25519,
    logger,
  });
  // Not awaited: sessions that run don't need it, and it reconnects by itself.
  coordinator.connect().catch((error: Error) => logger.warn({ error: error.message }, "no coordinator yet"));
  return node;
}
