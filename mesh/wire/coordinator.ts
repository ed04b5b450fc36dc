// Coordinator protocol: one WebSocket per node, JSON text messages, at most MAX_MESSAGE_BYTES each. Every message
// has `type`; unknown types and members are ignored, so that versions can mix. Base64 is the standard alphabet.
//
//   node -> coordinator
//     hello          first; who I am. Agents list the grants of their live sessions and learn which are void
//     home           my home region changed
//     grant-request  may I reach this agent (by id), or the agent of this workspace (by name)? (clients)
//     still-granted  are these grants still good? (agents, on reconnect and before maxUnrenewed runs out)
//   coordinator -> node
//     welcome        answer to hello: server time, signing keys, resume token, relay ticket, void grants
//     relay-map      the relays there are; again on change
//     relay-ticket   again well before the last one expires; so is the resume token
//     signing-keys   again on rotation; those of before are replaced
//     grant          answer to grant-request; `record` is missing while the agent is away. Asked by name, it also
//                    says which workspace and agent that are and how they do
//     void-grants    answer to still-granted
//     record         a node record of an agent I hold a grant for; again on change
//     record-gone    that agent left
//     revoke         grants that are void from now on
//     error          a request failed (`request` names it), or the connection is about to close
//
// A node need not wait for an answer before it says the next thing. Its first messages may even travel in the upgrade
// request, which saves a round trip: header FIRST_MESSAGES_HEADER, base64 of a JSON array of messages, at most
// MAX_FIRST_BYTES of JSON. A coordinator that took them says so by the same header, value "taken", in its 101; else
// they are said as usual.
//
// A resume token goes back in the upgrade request, header RESUME_TOKEN_HEADER, beside the credential it was made for. It
// is opaque to nodes, names one node key and one subject, and lets the coordinator take a node it welcomed
// before without asking the database first.
//
// Close codes (RFC 6455 section 7.4.2); the reason is "ERR_CODE: text for people":
//   4400 the node broke this protocol      4401 its credential was refused or taken back: the same one never helps
//   4408 no hello, no sign of life         4409 replaced by a newer build       4429 too much of something; later
//   4500 our failure; again                4503 shutting down; again            4504 our clock was set; again
//
// History: version 1, first.
import * as z from "zod";
import { fromUtf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import { NodeKey, PublicSigningKey } from "./signed.ts";

export const COORDINATOR_VERSION = 1;
export const MAX_MESSAGE_BYTES = 256 * 1024;
export const MAX_LIVE_GRANTS = 4096;
export const FIRST_MESSAGES_HEADER = "Coder-Mesh-First";
/** Servers take 16 KiB of headers in all, cookies and tokens among them. */
export const MAX_FIRST_BYTES = 4096;
export const RESUME_TOKEN_HEADER = "Coder-Mesh-Resume";
export const MAX_RESUME_TOKEN_CHARS = 2048;

export const CLOSE_CODES = {
  protocol: 4400,
  unauthorized: 4401,
  silent: 4408,
  replaced: 4409,
  tooMuch: 4429,
  failed: 4500,
  shuttingDown: 4503,
  clockSet: 4504,
} as const;

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
  }),
  z.object({ type: z.literal("home"), homeRegion: region }),
  z
    .object({
      type: z.literal("grant-request"),
      request,
      agentId: z.uuid().optional(),
      /** "name" (one's own), "me/name" or "owner/name". */
      workspace: z.string().min(1).max(130).optional(),
      /** Of `workspace`; may be left out when it has just one. */
      agent: z.string().min(1).max(64).optional(),
    })
    .refine(
      ({ agentId, workspace, agent }) =>
        (agentId === undefined) !== (workspace === undefined) &&
        (agent === undefined || workspace !== undefined),
      "names an agent either by agentId or by workspace",
    ),
  z.object({ type: z.literal("still-granted"), request, grants: z.array(z.uuid()).max(MAX_LIVE_GRANTS) }),
]);
export type NodeMessage = z.infer<typeof NodeMessage>;
export type NodeMessageInput = z.input<typeof NodeMessage>;

/**
 * What a command needs to know of a workspace it reaches, in the API's own names (control/contract/workspaces.ts), so
 * that it needs no request to the API before it connects. Words are open: a newer server may know more of them.
 */
export const ReachedWorkspace = z.object({
  id: z.uuid(),
  name: z.string().max(64),
  owner_name: z.string().max(128),
  outdated: z.boolean(),
  latest_build: z.object({
    id: z.uuid(),
    build_number: z.number().int(),
    transition: z.string().max(32),
    status: z.string().max(32),
  }),
});
export type ReachedWorkspace = z.infer<typeof ReachedWorkspace>;

export const ReachedAgent = z.object({
  id: z.uuid(),
  name: z.string().max(64),
  status: z.string().max(32),
  lifecycle_state: z.string().max(32),
  startup_script_behavior: z.string().max(32),
  connection_timeout_seconds: z.number().int(),
  troubleshooting_url: z.string(),
  operating_system: z.string().max(64),
  directory: z.string(),
  expanded_directory: z.string(),
});
export type ReachedAgent = z.infer<typeof ReachedAgent>;

/** Shape of a DERP map as far as this protocol cares; `derp/map.ts` validates it whole. */
const RelayMap = z.looseObject({ Regions: z.record(z.string(), z.unknown()) });

export const CoordinatorMessage = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("welcome"),
    version: z.number().int().min(1),
    /** Unix ms: judge expiry by this, carried forward on a monotonic clock. */
    serverTimeMs: z.number().int(),
    signingKeys: z.array(PublicSigningKey).min(1).max(16),
    resumeToken: z.string().max(MAX_RESUME_TOKEN_CHARS).optional(),
    /** A signed statement, for the relays. */
    relayTicket: statement.optional(),
    voidGrants: z.array(z.uuid()).max(MAX_LIVE_GRANTS),
    /** To agents: which agent their token makes them. A later build of the workspace may change it. */
    agentId: z.uuid().optional(),
  }),
  z.object({ type: z.literal("relay-map"), map: RelayMap }),
  z.object({
    type: z.literal("relay-ticket"),
    ticket: statement,
    resumeToken: z.string().max(MAX_RESUME_TOKEN_CHARS).optional(),
  }),
  z.object({ type: z.literal("signing-keys"), signingKeys: z.array(PublicSigningKey).min(1).max(16) }),
  z.object({
    type: z.literal("grant"),
    request,
    grant: statement,
    record: statement.optional(),
    agentId: z.uuid().optional(),
    workspace: ReachedWorkspace.optional(),
    agent: ReachedAgent.optional(),
  }),
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
