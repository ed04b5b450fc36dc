// A relay, a coordinator and nodes on loopback, for tests of the mesh without a control plane.
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { WebSocketServer } from "ws";
import { CoordinatorClient, verifyEd25519 } from "../coordinator/client.ts";
import { Coordinator, type GrantDecision, type NodeSubject } from "../coordinator/coordinator.ts";
import { serveNode } from "../coordinator/server.ts";
import { generateSigningKey, Signer } from "../coordinator/signing.ts";
import { MemoryStore } from "../coordinator/store.ts";
import { RelayClient } from "../derp/client/regions.ts";
import { embeddedRelayMap } from "../derp/map.ts";
import { DerpServer } from "../derp/server/server.ts";
import { MeshNode, newIdentity } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";

export interface MeshLab {
  url: string;
  coordinator: Coordinator;
  relay: DerpServer;
  /** What the next grant request is answered with. */
  decision: GrantDecision;
  /** Resolves once clients can find it. */
  agent(agentId?: string): Promise<{ node: MeshNode; agentId: string }>;
  client(): Promise<MeshNode>;
  /** Resets every relay connection, as a restarted or lost relay does. */
  cutRelay(): void;
  close(): Promise<void>;
}

export async function meshLab(): Promise<MeshLab> {
  const relay = new DerpServer();
  let url = "";
  const decision: GrantDecision = { allowed: true, permissions: ["*"] };
  const coordinator = new Coordinator({
    store: new MemoryStore(),
    signer: new Signer([generateSigningKey()]),
    authorize: async () => lab.decision,
    relayMap: () => embeddedRelayMap(url),
    nowMs: Date.now,
    newId: randomUUID,
  });
  const sockets = new WebSocketServer({ noServer: true });
  const server = createServer();
  const relaySockets = new Set<Socket>();
  server.on("upgrade", (request, socket, head) => {
    if (request.url === "/derp") {
      relaySockets.add(socket as Socket);
      socket.on("close", () => relaySockets.delete(socket as Socket));
      return relay.handleUpgrade(request, socket, head);
    }
    const subject = JSON.parse(String(request.headers["coder-session-token"])) as NodeSubject;
    sockets.handleUpgrade(request, socket, head, (ws) => serveNode(coordinator, ws, subject));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

  const nodes: MeshNode[] = [];
  async function node(subject: NodeSubject): Promise<MeshNode> {
    const { privateKey, nodeKey } = newIdentity();
    const relayClient = new RelayClient({ privateKey, accessUrl: url, random: () => 0 });
    const client = new CoordinatorClient({
      url: `${url}/coordinate`,
      token: JSON.stringify(subject),
      nodeKey,
      onRelayMap: (map) => relayClient.setMap(map as unknown as DerpMapLike),
      random: () => 0,
    });
    const role = subject.kind === "agent" ? "agent" : "client";
    const made = new MeshNode({
      role,
      privateKey,
      relay: relayClient,
      coordinator: client,
      verify: verifyEd25519,
    });
    nodes.push(made);
    await client.connect();
    return made;
  }

  const lab: MeshLab = {
    url,
    coordinator,
    relay,
    decision,
    async agent(agentId = randomUUID()) {
      const stored = new Promise<void>((resolve) => {
        const unwatch = coordinator.store.watch((id, record) => {
          if (id !== agentId || !record) return;
          unwatch();
          resolve();
        });
      });
      const made = await node({ kind: "agent", agentId });
      await stored;
      return { node: made, agentId };
    },
    client: () => node({ kind: "user", userId: randomUUID(), username: "alice", tokenId: "token" }),
    cutRelay() {
      for (const socket of relaySockets) socket.resetAndDestroy();
    },
    async close() {
      await Promise.all(nodes.map((one) => one.close()));
      coordinator.close();
      await relay.close();
      for (const socket of sockets.clients) socket.terminate();
      server.closeAllConnections();
      server.close();
    },
  };
  return lab;
}
