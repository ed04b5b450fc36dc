// Coordinator and relay as parts of the control plane: what they ask of it, answered from the database.
import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import type { Knex } from "knex";
import type { Logger } from "pino";
import type { WebSocket } from "ws";
import {
  Coordinator,
  type GrantDecision,
  type ReachTarget,
  type UserSubject,
} from "../coordinator/coordinator.ts";
import { verifyEd25519 } from "../coordinator/ed25519.ts";
import { serveNode } from "../coordinator/server.ts";
import { embeddedRelayMap } from "../derp/map.ts";
import { DerpServer, type RelayService } from "../derp/server/server.ts";
import type { PublicSigningKey } from "../mesh/wire/signed.ts";
import { type Identity, markUsed } from "./api/authenticate.ts";
import { errorText } from "./db/queries/error-text.ts";
import { PostgresStore } from "./db/queries/mesh-store.ts";
import { judgeReach, parseWorkspaceName, type ReachRow, reachRows } from "./db/queries/reach.ts";
import type { Topics } from "./db/queries/topics.ts";
import { keepSigningKeys } from "./mesh/keys.ts";
import { presenceWriter } from "./mesh/presence.ts";
import { Revocation } from "./mesh/revocation.ts";
import { nodeUpgrades, subjectOf } from "./mesh/upgrade.ts";
import { agentStatus, buildStatus } from "./templates/status.ts";

export interface MeshServicesOptions {
  knex: Knex;
  topics: Topics;
  accessUrl: () => string;
  logger: Logger;
  /** The relay to offer; default: one in this process. `keys`: the deployment's signing keys, as they are now. */
  makeRelay?: (keys: () => readonly PublicSigningKey[]) => RelayService;
  /** The relays there are; default: the one at the access URL. */
  relayMap?: () => { Regions: Record<string, unknown> };
  now?: () => Date;
}

export interface MeshServices {
  relay: RelayService;
  coordinator: Coordinator;
  /** Takes an upgrade request of the coordinator's route. `authenticate` is asked unless a resume token will do. */
  handleUpgrade(
    req: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    authenticate: () => Promise<Identity>,
  ): Promise<void>;
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
  makeRelay = (keys) => new DerpServer({ logger, tickets: { keys, verify: verifyEd25519 } }),
  relayMap = () => embeddedRelayMap(accessUrl()),
  now = () => new Date(),
}: MeshServicesOptions): Promise<MeshServices> {
  const onError = (error: unknown) => logger.error({ error: errorText(error) }, "the coordinator failed");
  await topics.start(["api_key", "mesh_node", "mesh_grant", "signing_key"]);
  const presence = presenceWriter(knex, logger);
  const keys = await keepSigningKeys({
    knex,
    topics,
    now,
    onError,
    onChange(signer, isRevoked) {
      coordinator.setSigner(signer);
      if (isRevoked) coordinator.renewAll().catch(onError);
    },
  });
  const store = new PostgresStore({ knex, topics, replicaId: randomUUID(), onError });
  const coordinator = new Coordinator({
    store,
    signer: keys.signer,
    authorize: (subject, target) => decide(subject, target),
    relayMap,
    onAgentPresence: presence.record,
    onError,
    nowMs: () => now().getTime(),
    newId: randomUUID,
  });
  const relay = makeRelay(() => coordinator.signer.publicKeys);
  const revocation = new Revocation({ knex, topics, store, coordinator, relay, now, onError });
  const upgrades = nodeUpgrades({ coordinator, nowMs: () => now().getTime(), onError });

  async function decide(subject: UserSubject, target: ReachTarget): Promise<GrantDecision> {
    const { userId, tokenId } = subject;
    const query = "agentId" in target ? target : parseWorkspaceName(target.workspace);
    if (!query)
      return {
        allowed: false,
        code: "ERR_NOT_FOUND",
        message: "A workspace is named NAME or OWNER/NAME.",
      };
    const agentName = "agentId" in target ? undefined : target.agent;
    const verdict = judgeReach(await reachRows(knex, userId, tokenId, query), agentName, now());
    if (!verdict.ok) return { allowed: false, code: verdict.code, message: verdict.reason };
    const { row } = verdict;
    logger.info({ userId, agentId: row.agent_id, workspaceId: row.workspace_id }, "granted a session");
    if (row.key_expires_at) revocation.noteExpiry(row.key_expires_at);
    // Somebody works with it: a login must not expire under an open session.
    slide(row);
    return { allowed: true, permissions: ALL_SERVICES, ...described(row, now()) };
  }

  function slide(row: ReachRow): void {
    if (row.key_id === null || !row.key_expires_at || !row.key_last_used_at) return;
    const key = {
      id: row.key_id,
      token_name: row.key_token_name ?? "",
      expires_at: row.key_expires_at,
      lifetime_seconds: row.key_lifetime_seconds ?? "0",
      last_used_at: row.key_last_used_at,
    };
    markUsed(knex, key, { id: row.user_id }, now()).catch(onError);
  }

  return {
    relay,
    coordinator,
    handleUpgrade: upgrades.handle,
    serve: (socket, identity) => void serveNode(coordinator, socket, subjectOf(identity)),
    async stop() {
      keys.stop();
      upgrades.stop();
      await revocation.stop();
      coordinator.close();
      await relay.close();
      await presence.stop();
      await store.close();
    },
  };
}

/** What whoever named a workspace wants to know before they connect. */
function described(
  row: ReachRow,
  now: Date,
): Pick<Extract<GrantDecision, { allowed: true }>, "agentId" | "workspace" | "agent"> {
  const id = row.agent_id ?? "";
  return {
    agentId: id,
    workspace: {
      id: row.workspace_id ?? "",
      name: row.workspace_name,
      owner_name: row.owner_name,
      outdated: row.outdated,
      latest_build: {
        id: row.build_id,
        build_number: row.build_number,
        transition: row.latest_transition,
        status: buildStatus(row.latest_transition, row.latest_job_status),
      },
    },
    agent: {
      id,
      name: row.agent_name,
      status: agentStatus(row, now.getTime()),
      lifecycle_state: row.lifecycle_state,
      startup_script_behavior: row.startup_script_behavior,
      connection_timeout_seconds: row.connection_timeout_seconds,
      troubleshooting_url: row.troubleshooting_url,
      operating_system: row.operating_system,
      directory: row.directory,
      expanded_directory: row.expanded_directory,
    },
  };
}
