// Coordinator and relay as parts of the control plane: what they ask of it, answered from the database.
import { randomUUID } from "node:crypto";
import type { Knex } from "knex";
import type { Logger } from "pino";
import type { WebSocket } from "ws";
import { Coordinator, type NodeSubject } from "../coordinator/coordinator.ts";
import { serveNode } from "../coordinator/server.ts";
import { Signer } from "../coordinator/signing.ts";
import { MemoryStore } from "../coordinator/store.ts";
import { embeddedRelayMap } from "../derp/map.ts";
import { DerpServer } from "../derp/server/server.ts";
import type { Identity } from "./api/authenticate.ts";
import { canConnect, isCurrentAgent, setAgentConnected, setAgentDisconnected } from "./db/queries/agents.ts";
import { errorText } from "./db/queries/error-text.ts";
import type { UserRow } from "./db/queries/rows.ts";
import { loadSigningKeys } from "./db/queries/signing.ts";
import type { Topics } from "./db/queries/topics.ts";

export interface MeshServicesOptions {
  knex: Knex;
  topics: Topics;
  accessUrl: () => string;
  logger: Logger;
}

export interface MeshServices {
  relay: DerpServer;
  coordinator: Coordinator;
  /** Joins an upgraded and authenticated WebSocket. */
  serve(socket: WebSocket, identity: Identity): void;
  stop(): Promise<void>;
}

/** Grants what the control plane allows; shell access means every service of the agent. */
const ALL_SERVICES = ["*"];

export async function startMeshServices({
  knex,
  topics,
  accessUrl,
  logger,
}: MeshServicesOptions): Promise<MeshServices> {
  const relay = new DerpServer({ logger });
  // One writer at a time and agent: a late "connected" must not overtake its "disconnected".
  const writes = new Map<string, Promise<void>>();
  const record = (agentId: string, connected: boolean) => {
    const write = connected ? setAgentConnected : setAgentDisconnected;
    const done = (writes.get(agentId) ?? Promise.resolve())
      .then(() => write(knex, agentId, new Date()))
      .catch((error: Error) =>
        logger.warn({ agentId, error: error.message }, "could not record an agent's presence"),
      )
      .finally(() => {
        if (writes.get(agentId) === done) writes.delete(agentId);
      });
    writes.set(agentId, done);
  };
  const coordinator = new Coordinator({
    store: new MemoryStore(),
    signer: new Signer(await loadSigningKeys(knex)),
    authorize: async ({ userId, scope }, agentId) => {
      const user: UserRow | undefined = await knex("users").where({ id: userId, deleted: false }).first();
      if (!user) return { allowed: false, code: "ERR_FORBIDDEN", message: "The user no longer exists." };
      const verdict = await canConnect(knex, { userId, roles: user.roles, scope }, agentId);
      if (!verdict.ok) return { allowed: false, code: verdict.code, message: verdict.reason };
      logger.info({ userId, agentId, workspaceId: verdict.workspace.id }, "granted a session");
      return { allowed: true, permissions: ALL_SERVICES };
    },
    relayMap: () => embeddedRelayMap(accessUrl()),
    onAgentPresence: record,
    nowMs: Date.now,
    newId: randomUUID,
  });
  const failed = (error: unknown) => logger.error({ error: errorText(error) }, "could not follow a change");
  // A build that succeeded replaced its workspace's agents, also those whose process and token live on.
  const unwatchWorkspaces = topics.watch("workspace", "*", (workspaceId) => {
    for (const { agentId, workspaceId: of } of coordinator.agents()) {
      if (of !== workspaceId) continue;
      isCurrentAgent(knex, agentId)
        .then((current) => (current ? undefined : coordinator.dismissAgent(agentId)))
        .catch(failed);
    }
  });
  const unwatchUsers = topics.watch("user", "*", (userId) => {
    knex("users")
      .where({ id: userId, status: "active", deleted: false })
      .first("id")
      .then((active: unknown) => (active ? 0 : coordinator.revoke((grant) => grant.userId === userId)))
      .catch(failed);
  });
  return {
    relay,
    coordinator,
    serve: (socket, identity) => serveNode(coordinator, socket, subjectOf(identity)),
    async stop() {
      unwatchWorkspaces();
      unwatchUsers();
      coordinator.close();
      await relay.close();
      await Promise.all(writes.values());
    },
  };
}

const subjectOf = (identity: Identity): NodeSubject =>
  identity.kind === "agent"
    ? { kind: "agent", agentId: identity.agentId, workspaceId: identity.workspaceId }
    : {
        kind: "user",
        userId: identity.userId,
        username: identity.username,
        tokenId: identity.keyId,
        scope: identity.subject.scope,
      };
