import * as z from "zod";
import { Timestamp } from "./common.ts";

/** Coder's DERPMap; derp/map.ts has its schema whole. */
export const RelayMap = z.looseObject({ Regions: z.record(z.string(), z.unknown()) });

/** GET workspaceagents/connection, workspaceagents/{id}/connection: how agents are reached. */
export const AgentConnectionInfo = z.object({
  derp_map: RelayMap,
  derp_force_websockets: z.boolean(),
  disable_direct_connections: z.boolean(),
  hostname_suffix: z.string(),
});
export type AgentConnectionInfo = z.infer<typeof AgentConnectionInfo>;

/** A key the deployment signs grants, node records and relay tickets with. */
export const DeploymentSigningKey = z.object({
  /** 16 hex digits, as in what it signed. */
  id: z.string(),
  /** base64, 32 bytes. */
  public_key: z.string(),
  status: z.enum(["published", "signing", "retired"]),
  created_at: Timestamp,
  /** Signs from then on. */
  active_at: Timestamp,
  /** No longer signs from then on; verified for a day more. */
  retired_at: Timestamp.nullable(),
});

/** GET deployment/signing-keys: owners only. */
export const DeploymentSigningKeys = z.array(DeploymentSigningKey);

/**
 * POST deployment/signing-keys/rotate: 201 the keys | 409 too many. `revoke`: for a key that leaked. The others are worth
 * nothing at once; connected nodes get new statements, and sessions go on.
 */
export const RotateSigningKeysRequest = z.object({ revoke: z.boolean().default(false) });
