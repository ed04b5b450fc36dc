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
import { fromUtf8 } from "./bytes.ts";
import { WireError } from "./errors.ts";
import * as s from "./shape.ts";
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

const request = s.integer({ min: 1 });
const statement = s.base64(8192);
const region = s.integer({ min: 1 });
const version = s.integer({ min: 1 });
const grantIds = s.list(s.uuid, { max: MAX_LIVE_GRANTS });
const signingKeys = s.list(PublicSigningKey, { min: 1, max: 16 });
const resumeToken = s.optional(s.text({ max: MAX_RESUME_TOKEN_CHARS }));

export const NodeMessage = s.variants("type", {
  hello: s.object({
    version,
    nodeKey: NodeKey,
    homeRegion: s.optional(region),
    liveGrants: s.defaulted(grantIds, () => []),
  }),
  home: s.object({ homeRegion: region }),
  "grant-request": s.refined(
    s.object({
      request,
      agentId: s.optional(s.uuid),
      /** "name" (one's own), "me/name" or "owner/name". */
      workspace: s.optional(s.text({ min: 1, max: 130 })),
      /** Of `workspace`; may be left out when it has just one. */
      agent: s.optional(s.text({ min: 1, max: 64 })),
    }),
    ({ agentId, workspace, agent }) =>
      (agentId === undefined) !== (workspace === undefined) &&
      (agent === undefined || workspace !== undefined),
    "to name an agent either by agentId or by workspace",
  ),
  "still-granted": s.object({ request, grants: grantIds }),
});
export type NodeMessage = s.infer<typeof NodeMessage>;
export type NodeMessageInput = s.input<typeof NodeMessage>;

/**
 * What a command needs to know of a workspace it reaches, in the API's own names (control/contract/workspaces.ts), so
 * that it needs no request to the API before it connects. Words are open: a newer server may know more of them.
 */
export const ReachedWorkspace = s.object({
  id: s.uuid,
  name: s.text({ max: 64 }),
  owner_name: s.text({ max: 128 }),
  outdated: s.boolean,
  latest_build: s.object({
    id: s.uuid,
    build_number: s.integer(),
    transition: s.text({ max: 32 }),
    status: s.text({ max: 32 }),
  }),
});
export type ReachedWorkspace = s.infer<typeof ReachedWorkspace>;

export const ReachedAgent = s.object({
  id: s.uuid,
  name: s.text({ max: 64 }),
  status: s.text({ max: 32 }),
  lifecycle_state: s.text({ max: 32 }),
  startup_script_behavior: s.text({ max: 32 }),
  connection_timeout_seconds: s.integer(),
  troubleshooting_url: s.text(),
  operating_system: s.text({ max: 64 }),
  directory: s.text(),
  expanded_directory: s.text(),
});
export type ReachedAgent = s.infer<typeof ReachedAgent>;

export const CoordinatorMessage = s.variants("type", {
  welcome: s.object({
    version,
    /** Unix ms: judge expiry by this, carried forward on a monotonic clock. */
    serverTimeMs: s.integer(),
    signingKeys,
    resumeToken,
    /** A signed statement, for the relays. */
    relayTicket: s.optional(statement),
    voidGrants: grantIds,
    /** To agents: which agent their token makes them. A later build of the workspace may change it. */
    agentId: s.optional(s.uuid),
  }),
  /** A DERP map as far as this protocol cares; `derp/map.ts` validates it whole. */
  "relay-map": s.object({ map: s.looseObjectWith("Regions") }),
  "relay-ticket": s.object({ ticket: statement, resumeToken }),
  "signing-keys": s.object({ signingKeys }),
  grant: s.object({
    request,
    grant: statement,
    record: s.optional(statement),
    agentId: s.optional(s.uuid),
    workspace: s.optional(ReachedWorkspace),
    agent: s.optional(ReachedAgent),
  }),
  record: s.object({ agentId: s.uuid, record: statement }),
  "record-gone": s.object({ agentId: s.uuid }),
  revoke: s.object({ grants: grantIds }),
  "void-grants": s.object({ request, grants: grantIds }),
  error: s.object({
    request: s.optional(request),
    code: s.text({ max: 64 }),
    message: s.text({ max: 1024 }),
  }),
});
export type CoordinatorMessage = s.infer<typeof CoordinatorMessage>;

/**
 * @returns undefined for a type this version does not know
 * @throws {WireError} ERR_FRAME_TOO_LARGE, ERR_BAD_VALUE
 */
function decode<T>(
  schema: s.Shape<T, unknown> & { has(type: string): boolean },
  text: string | Uint8Array,
): T | undefined {
  if (text.length > MAX_MESSAGE_BYTES)
    throw new WireError("ERR_FRAME_TOO_LARGE", `message of ${text.length}`);
  let json: unknown;
  try {
    json = JSON.parse(typeof text === "string" ? text : fromUtf8(text));
  } catch (cause) {
    throw new WireError("ERR_BAD_VALUE", "message is not JSON", { cause });
  }
  const type = typeOf(json);
  if (type !== undefined && !schema.has(type)) return undefined;
  try {
    return schema.parse(json);
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause;
    throw new WireError("ERR_BAD_VALUE", `message ${type ?? "without type"}: ${cause.message}`, { cause });
  }
}

function typeOf(json: unknown): string | undefined {
  if (typeof json !== "object" || json === null || !("type" in json)) return undefined;
  return typeof json.type === "string" ? json.type : undefined;
}

export const decodeNodeMessage = (text: string | Uint8Array): NodeMessage | undefined =>
  decode(NodeMessage, text);
export const decodeCoordinatorMessage = (text: string | Uint8Array): CoordinatorMessage | undefined =>
  decode(CoordinatorMessage, text);
