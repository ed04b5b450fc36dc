// What clients ask about the mesh over HTTP, and the keys it is signed with.
import * as z from "zod";
import { embeddedRelayMap } from "../../derp/map.ts";
import { toBase64 } from "../../mesh/wire/bytes.ts";
import { Uuid } from "../contract/common.ts";
import {
  AgentConnectionInfo,
  DeploymentSigningKeys,
  RelayMap,
  RotateSigningKeysRequest,
} from "../contract/mesh.ts";
import { loadSigningKeys, rotateSigningKeys } from "../db/queries/signing.ts";
import { must } from "./access.ts";
import { readableAgent } from "./agents.ts";
import type { ApiDeps } from "./deps.ts";
import { HOSTNAME_SUFFIX } from "./meta.ts";
import { type Route, userRoute } from "./route.ts";
import { time } from "./views/jobs.ts";

export function meshRoutes(deps: ApiDeps): Route[] {
  const { knex, logger, accessUrl, relayMap = () => embeddedRelayMap(accessUrl()) } = deps;
  const connectionInfo = (): AgentConnectionInfo => ({
    derp_map: relayMap(),
    derp_force_websockets: false,
    disable_direct_connections: false,
    hostname_suffix: HOSTNAME_SUFFIX,
  });

  async function keys(now: Date): Promise<z.input<typeof DeploymentSigningKeys>> {
    return (await loadSigningKeys(knex, now)).map((key) => ({
      id: key.keyId,
      public_key: toBase64(key.publicKey),
      status: key.activeAt > now ? "published" : key.privateKey ? "signing" : "retired",
      created_at: time(key.createdAt),
      active_at: time(key.activeAt),
      retired_at: key.retiredAt && time(key.retiredAt),
    }));
  }

  return [
    userRoute({ method: "get", path: "/derp-map", out: RelayMap, handle: async () => relayMap() }),
    userRoute({
      method: "get",
      path: "/workspaceagents/connection",
      out: AgentConnectionInfo,
      handle: async () => connectionInfo(),
    }),
    userRoute({
      method: "get",
      path: "/workspaceagents/:id/connection",
      params: z.object({ id: Uuid }),
      out: AgentConnectionInfo,
      async handle({ user, params }) {
        await readableAgent(deps, user, params.id);
        return connectionInfo();
      },
    }),
    userRoute({
      method: "get",
      path: "/deployment/signing-keys",
      out: DeploymentSigningKeys,
      async handle({ user, now }) {
        must(user, "read", { type: "deployment_config" });
        return keys(now);
      },
    }),
    userRoute({
      method: "post",
      path: "/deployment/signing-keys/rotate",
      body: RotateSigningKeysRequest,
      out: DeploymentSigningKeys,
      status: 201,
      async handle({ user, body, now }) {
        must(user, "update", { type: "deployment_config" });
        await rotateSigningKeys(knex, now, body);
        logger.warn({ userId: user.userId, revoke: body.revoke }, "rotated the signing keys");
        return keys(now);
      },
    }),
  ];
}
