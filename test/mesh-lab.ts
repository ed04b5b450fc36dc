// A relay, a coordinator and nodes on loopback, for tests of the mesh without a control plane.
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { WebSocketServer } from "ws";
import { Coordinator, type GrantDecision, type NodeSubject } from "../coordinator/coordinator.ts";
import { serveNode } from "../coordinator/server.ts";
import { generateSigningKey, Signer } from "../coordinator/signing.ts";
import { MemoryStore, type NodeStore } from "../coordinator/store.ts";
import { embeddedRelayMap } from "../derp/map.ts";
import { DerpServer } from "../derp/server/server.ts";
import type { MeshNode, MeshNodeOptions } from "../mesh/node/node.ts";
import { toBase64 } from "../mesh/wire/bytes.ts";
import { type LabNode, labNode } from "./mesh-lab-node.ts";
import { type LabProxy, labProxy } from "./mesh-lab-proxy.ts";

export interface MeshLab {
  url: string;
  coordinator: Coordinator;
  relay: DerpServer;
  /** Node keys the relay turns away. */
  unwanted: Set<string>;
  signer: Signer;
  /** What the next grant request is answered with. */
  decision: GrantDecision;
  /** Resolves once clients can find it. */
  agent(agentId?: string, options?: Partial<MeshNodeOptions>): Promise<LabNode & { agentId: string }>;
  client(): Promise<MeshNode>;
  /** A client with its parts. @param url another way to the server than the direct one */
  clientParts(url?: string): Promise<LabNode>;
  /** A way to the server that can go silent. */
  proxy(): Promise<LabProxy>;
  /** Resets every relay connection, as a lost relay does. */
  cutRelay(): void;
  /** Resets every connection to the coordinator. */
  cutCoordinator(): void;
  /** The server dies without a word; another one, that knows nothing, takes its port `downMs` later. */
  restart(downMs: number): Promise<void>;
  close(): Promise<void>;
}

/** @param options.makeStore what the coordinator keeps grants in, anew after each restart */
export async function meshLab({
  makeStore = () => new MemoryStore(),
}: {
  makeStore?: () => NodeStore;
} = {}): Promise<MeshLab> {
  const signer = new Signer([generateSigningKey()]);
  const makeCoordinator = () =>
    new Coordinator({
      store: makeStore(),
      signer,
      authorize: async () => lab.decision,
      relayMap: () => embeddedRelayMap(lab.url),
      nowMs: Date.now,
      newId: randomUUID,
    });
  const sockets = new WebSocketServer({ noServer: true });
  const connections = new Set<Socket>();
  const relaySockets = new Set<Socket>();
  let server: Server;

  async function listen(port: number): Promise<number> {
    server = createServer();
    server.on("connection", (socket) => {
      connections.add(socket);
      socket.on("close", () => connections.delete(socket));
    });
    server.on("upgrade", (request, socket, head) => {
      if (request.url === "/derp") {
        relaySockets.add(socket as Socket);
        socket.on("close", () => relaySockets.delete(socket as Socket));
        return lab.relay.handleUpgrade(request, socket, head);
      }
      const subject = JSON.parse(String(request.headers["coder-session-token"])) as NodeSubject;
      sockets.handleUpgrade(request, socket, head, (ws) => serveNode(lab.coordinator, ws, subject));
    });
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  }

  const nodes: MeshNode[] = [];
  const proxies: LabProxy[] = [];
  async function join(
    subject: NodeSubject,
    options?: Partial<MeshNodeOptions>,
    url = lab.url,
  ): Promise<LabNode> {
    const made = await labNode(url, subject, options);
    nodes.push(made.node);
    return made;
  }

  const makeRelay = () => new DerpServer({ admit: ({ key }) => !lab.unwanted.has(toBase64(key)) });
  const lab: MeshLab = {
    url: "",
    coordinator: makeCoordinator(),
    relay: makeRelay(),
    unwanted: new Set(),
    signer,
    decision: { allowed: true, permissions: ["*"] },
    async agent(agentId = randomUUID(), options) {
      const stored = new Promise<void>((resolve) => {
        const unwatch = lab.coordinator.store.watch((id, record) => {
          if (id !== agentId || !record) return;
          unwatch();
          resolve();
        });
      });
      const made = await join({ kind: "agent", agentId }, options);
      await stored;
      return { ...made, agentId };
    },
    client: async () => (await lab.clientParts()).node,
    clientParts: (url) =>
      join({ kind: "user", userId: randomUUID(), username: "alice", tokenId: "token" }, {}, url),
    async proxy() {
      const made = await labProxy(Number(new URL(lab.url).port));
      proxies.push(made);
      return made;
    },
    cutRelay() {
      for (const socket of relaySockets) socket.resetAndDestroy();
    },
    cutCoordinator() {
      for (const socket of connections) if (!relaySockets.has(socket)) socket.resetAndDestroy();
    },
    async restart(downMs) {
      const { port } = server.address() as AddressInfo;
      const closed = once(server, "close");
      server.close();
      for (const socket of connections) socket.resetAndDestroy();
      await closed;
      lab.coordinator.close();
      await lab.relay.close();
      lab.coordinator = makeCoordinator();
      lab.relay = makeRelay();
      await new Promise((resolve) => setTimeout(resolve, downMs));
      await listen(port);
    },
    async close() {
      await Promise.all(nodes.map((one) => one.close()));
      await Promise.all(proxies.map((one) => one.close()));
      lab.coordinator.close();
      await lab.relay.close();
      for (const socket of sockets.clients) socket.terminate();
      server.closeAllConnections();
      server.close();
    },
  };
  lab.url = `http://127.0.0.1:${await listen(0)}`;
  return lab;
}
