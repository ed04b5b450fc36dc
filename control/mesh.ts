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

/** What watchers of everything hear after the database connection was away: anything may have changed. */
const ANY = "*";
const ACCESS_ENDED: ReadonlySet<string> = new Set(["ERR_NOT_FOUND", "ERR_FORBIDDEN"]);

/** Grants what the control plane allows; shell access means every service of the agent. */
const ALL_SERVICES = ["*"];

export async function startMeshServices({
  knex,
  topics,
  accessUrl,
  logger,
}: MeshServicesOptions): Promise<MeshServices> {
  const relay = new DerpServer({ logger });
  const presence = presenceWriter(knex, logger);
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
    onAgentPresence: presence.record,
    nowMs: Date.now,
    newId: randomUUID,
  });
  const failed = (error: unknown) => logger.error({ error: errorText(error) }, "could not follow a change");
  // A build that succeeded replaced its workspace's agents, also those whose process and token live on.
  const unwatchWorkspaces = topics.watch("workspace", "*", (workspaceId) => {
    for (const { agentId, workspaceId: of } of coordinator.agents()) {
      if (of !== workspaceId && workspaceId !== ANY) continue;
      isCurrentAgent(knex, agentId)
        .then((current) => (current ? undefined : coordinator.dismissAgent(agentId)))
        .catch(failed);
    }
  });
  const unwatchUsers = topics.watch("user", "*", (userId) => {
    const users =
      userId === ANY
        ? coordinator.grants().then((grants) => [...new Set(grants.map((grant) => grant.userId))])
        : Promise.resolve([userId]);
    users
      .then(async (ids) => {
        for (const id of ids) await revokeWhatEnded(knex, coordinator, id);
      })
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
      await presence.settled();
    },
  };
}

/** Takes back the grants of a user who was suspended or deleted, or may no longer reach an agent. */
async function revokeWhatEnded(knex: Knex, coordinator: Coordinator, userId: string): Promise<void> {
  const user: UserRow | undefined = await knex("users")
    .where({ id: userId, status: "active", deleted: false })
    .first();
  const ended = new Set<string>();
  for (const agentId of new Set((await coordinator.grants(userId)).map((grant) => grant.agentId))) {
    const verdict = user && (await canConnect(knex, { userId, roles: user.roles }, agentId));
    // A workspace that is stopped, or rebuilt, ends its agent itself.
    if (!verdict || (!verdict.ok && ACCESS_ENDED.has(verdict.code))) ended.add(agentId);
  }
  if (ended.size > 0)
    await coordinator.revoke((grant) => grant.userId === userId && ended.has(grant.agentId));
}

/**
 * Writes down which agents are connected. One write at a time and agent, and of what came meanwhile the last counts:
 * a late "connected" can't overtake its "disconnected", and an agent that flaps can't make us queue.
 */
function presenceWriter(
  knex: Knex,
  logger: Logger,
): { record(agentId: string, connected: boolean): void; settled(): Promise<unknown> } {
  const wanted = new Map<string, boolean>();
  const writing = new Map<string, Promise<void>>();
  const writeAll = async (agentId: string): Promise<void> => {
    for (let is = wanted.get(agentId); is !== undefined; is = wanted.get(agentId)) {
      wanted.delete(agentId);
      try {
        await (is ? setAgentConnected : setAgentDisconnected)(knex, agentId, new Date());
      } catch (error) {
        logger.warn({ agentId, error: errorText(error) }, "could not record an agent's presence");
      }
    }
    writing.delete(agentId);
  };
  return {
    record(agentId, connected) {
      wanted.set(agentId, connected);
      if (!writing.has(agentId)) writing.set(agentId, writeAll(agentId));
    },
    settled: () => Promise.all(writing.values()),
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
