// Coordinator protocol: one WebSocket per node, JSON text messages, at most MAX_MESSAGE_BYTES each. Every message
// has `type`; unknown types and members are ignored, so that versions can mix. Base64 is the standard alphabet.
//
//   node -> coordinator
//     hello          first; who I am. Agents list the grants of their live sessions and learn which are void
//     home           my home region changed
//     grant-request  may I reach this agent? (clients)
//     still-granted  are these grants still good? (agents, on reconnect and before maxUnrenewed runs out)
//   coordinator -> node
//     welcome        answer to hello: server time, signing keys, resume token, void grants
//     relay-map      the relays there are; again on change
//     signing-keys   again on rotation
//     grant          answer to grant-request; `record` is missing while the agent is away
//     record         a node record of an agent I hold a grant for; again on change
//     record-gone    that agent left
//     revoke         grants that are void from now on
//     error          a request failed (`request` names it), or the connection is about to close
//
// History: version 1, first.
import * as z from "zod";
import { fromUtf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import { NodeKey, PublicSigningKey } from "./signed.ts";

export const COORDINATOR_VERSION = 1;
export const MAX_MESSAGE_BYTES = 256 * 1024;
export const MAX_LIVE_GRANTS = 4096;

const request = z.number().int().min(1);
const statement = z.base64().max(8192);
const region = z.number().int().min(1);

export const NodeMessage = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("hello"),
    version: z.number().int().min(1),
    nodeKey: NodeKey,
    homeRegion: region.optional(),
    liveGrants: z.array(z.uuid()).max(MAX_LIVE_GRANTS).default([]),
    resumeToken: z.string().max(1024).optional(),
  }),
  z.object({ type: z.literal("home"), homeRegion: region }),
  z.object({ type: z.literal("grant-request"), request, agentId: z.uuid() }),
  z.object({ type: z.literal("still-granted"), request, grants: z.array(z.uuid()).max(MAX_LIVE_GRANTS) }),
]);
export type NodeMessage = z.infer<typeof NodeMessage>;
export type NodeMessageInput = z.input<typeof NodeMessage>;

/** Shape of a DERP map as far as this protocol cares; `derp/map.ts` validates it whole. */
const RelayMap = z.looseObject({ Regions: z.record(z.string(), z.unknown()) });

export const CoordinatorMessage = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("welcome"),
    version: z.number().int().min(1),
    /** Unix ms: judge expiry by this, carried forward on a monotonic clock. */
    serverTimeMs: z.number().int(),
    signingKeys: z.array(PublicSigningKey).min(1).max(16),
    resumeToken: z.string().max(1024).optional(),
    voidGrants: z.array(z.uuid()).max(MAX_LIVE_GRANTS),
    /** To agents: which agent their token makes them. A later build of the workspace may change it. */
    agentId: z.uuid().optional(),
  }),
  z.object({ type: z.literal("relay-map"), map: RelayMap }),
  z.object({ type: z.literal("signing-keys"), signingKeys: z.array(PublicSigningKey).min(1).max(16) }),
  z.object({ type: z.literal("grant"), request, grant: statement, record: statement.optional() }),
  z.object({ type: z.literal("record"), agentId: z.uuid(), record: statement }),
  z.object({ type: z.literal("record-gone"), agentId: z.uuid() }),
  z.object({ type: z.literal("revoke"), grants: z.array(z.uuid()).max(MAX_LIVE_GRANTS) }),
  z.object({ type: z.literal("void-grants"), request, grants: z.array(z.uuid()).max(MAX_LIVE_GRANTS) }),
  z.object({
    type: z.literal("error"),
    request: request.optional(),
    code: z.string().max(64),
    message: z.string().max(1024),
  }),
]);
export type CoordinatorMessage = z.infer<typeof CoordinatorMessage>;

/**
 * @returns undefined for a type this version does not know
 * @throws {WireError} ERR_FRAME_TOO_LARGE, ERR_BAD_VALUE
 */
function decode<T extends z.ZodDiscriminatedUnion>(
  schema: T,
  text: string | Uint8Array,
): z.infer<T> | undefined {
  if (text.length > MAX_MESSAGE_BYTES)
    throw new WireError("ERR_FRAME_TOO_LARGE", `message of ${text.length}`);
  let json: unknown;
  try {
    json = JSON.parse(typeof text === "string" ? text : fromUtf8(text));
  } catch (cause) {
    throw new WireError("ERR_BAD_VALUE", "message is not JSON", { cause });
  }
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  if (result.error.issues.some(({ code }) => code === "invalid_union") && typeOf(json) !== undefined)
    return undefined;
  throw new WireError(
    "ERR_BAD_VALUE",
    `message ${typeOf(json) ?? "without type"}: ${result.error.issues[0].message}`,
  );
}

function typeOf(json: unknown): string | undefined {
  if (typeof json !== "object" || json === null || !("type" in json)) return undefined;
  return typeof json.type === "string" ? json.type : undefined;
}

export const decodeNodeMessage = (text: string | Uint8Array): NodeMessage | undefined =>
  decode(NodeMessage, text);
export const decodeCoordinatorMessage = (text: string | Uint8Array): CoordinatorMessage | undefined =>
  decode(CoordinatorMessage, text);
