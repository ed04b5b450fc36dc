import type { Duplex } from "node:stream";
import { CoordinatorClient, verifyEd25519 } from "../coordinator/client.ts";
import { RelayClient } from "../derp/client/regions.ts";
import { MeshNode, newIdentity } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";
import { MeshError } from "../mesh/wire/errors.ts";
import { CliError, EXIT } from "./errors.ts";
import type { ApiClient } from "./http.ts";
import { say } from "./output.ts";

/** This process as a node of the mesh. */
export interface Mesh {
  node: MeshNode;
  relay: RelayClient;
  close(): Promise<void>;
}

/** An agent within reach. */
export interface AgentConnection {
  /** How the agent is reached, for people: "via relay coder (999)". */
  readonly via: string;
  openStream(service: string, metadata: Uint8Array): Promise<Duplex>;
  ping(timeoutMs?: number): Promise<{ rttMs: number; via: string; path: "relay"; region: number }>;
}

/**
 * Starts a node for this command. Coordinator and relay are connected in the background; failures show when they are
 * needed.
 */
export function startMesh(api: ApiClient): Mesh {
  const { privateKey, nodeKey } = newIdentity();
  const relay = new RelayClient({ privateKey, accessUrl: api.url });
  const coordinator = new CoordinatorClient({
    url: `${api.url}/api/v2/mesh/coordinate`,
    token: api.token,
    nodeKey,
    onRelayMap: (map) => relay.setMap(map as unknown as DerpMapLike),
  });
  const node = new MeshNode({ role: "client", privateKey, relay, coordinator, verify: verifyEd25519 });
  // Whoever needs the connection waits for it, and hears the reason, again.
  coordinator.connect().catch(() => undefined);
  return { node, relay, close: () => node.close() };
}

/**
 * Reaches an agent and waits until it has let us in.
 *
 * @throws {CliError} with exit code 255, the reason, and what to do
 */
export async function connectToAgent(
  mesh: Mesh,
  target: { agentId: string; what: string; signal?: AbortSignal },
): Promise<AgentConnection> {
  const { agentId, what, signal } = target;
  try {
    await mesh.node.connect(agentId, {
      signal,
      onWait: () => say(`==> Waiting for the agent of ${what} to connect`),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw explain(error, what);
  }
  const describe = (region: number) => `via relay ${mesh.relay.regionName(region)} (${region})`;
  const { region } = await mesh.node.connect(agentId);
  return {
    via: describe(region),
    openStream: (service, metadata) => mesh.node.dial(agentId, service, { metadata, signal }),
    ping: async (timeoutMs) => {
      const { rttMs, path } = await mesh.node.ping(agentId, timeoutMs);
      return { rttMs, via: describe(path.region), path: path.kind, region: path.region };
    },
  };
}

const HINTS: Record<string, string> = {
  ERR_UNAUTHORIZED: "Log in with `coder login`.",
  ERR_COORDINATOR_UNREACHABLE: "Is the server running, and do proxies on the way let WebSockets through?",
  ERR_PEER_UNREACHABLE: "The agent may be stuck: look at its log, or restart the workspace.",
  ERR_RELAY_CONNECT: "Do proxies on the way let `Upgrade: DERP` through?",
};

function explain(error: unknown, what: string): unknown {
  if (!(error instanceof MeshError)) return error;
  return new CliError(error.code, `cannot reach ${what}: ${error.message}`, {
    cause: error,
    hint: HINTS[error.code],
    exitCode: EXIT.connection,
  });
}
