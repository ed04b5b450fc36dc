// Statements signed by the deployment: who a node is, and what a client may do. They travel as bytes (in HELLO)
// or base64 (in coordinator messages) and are checked offline with the deployment's public keys.
//
//   version u8 = 1 | kind u8 | key id [8] | signature [64] | body: UTF-8 JSON, 2..4,096 bytes
//
// The signature (Ed25519, RFC 8032) covers CONTEXT | version | kind | key id | body. CONTEXT and kind keep a
// signature from being read as anything else. Key id = the first 8 bytes of SHA-256 over the public key; several
// keys may be valid at once, so that they can be rotated. Unknown members of a body are ignored.
//
// kind 1  node record  coordinator -> clients   this agent runs under this node key, home region, until then
// kind 2  grant        coordinator -> client -> agent   this user may open these services at this agent, until then
// kind 3  relay ticket coordinator -> node -> relay     this node may use the deployment's relays, until then
//
// History: version 1, first.
import { concatBytes, equalBytes, fromBase64, fromUtf8, toHex, utf8 } from "./bytes.ts";
import { MeshError } from "./errors.ts";
import * as s from "./shape.ts";

export const STATEMENT_VERSION = 1;
export const STATEMENT_KINDS = { nodeRecord: 1, grant: 2, relayTicket: 3 } as const;
export type StatementKind = keyof typeof STATEMENT_KINDS;
export const KEY_ID_BYTES = 8;
export const SIGNATURE_BYTES = 64;
export const MAX_BODY_BYTES = 4096;
const HEADER_BYTES = 2 + KEY_ID_BYTES + SIGNATURE_BYTES;
export const MAX_STATEMENT_BYTES = HEADER_BYTES + MAX_BODY_BYTES;
const NODE_KEY_BYTES = 32;
const CONTEXT = utf8("workspace-mesh statement v1\0");

/** Why a statement is no good. A peer's CLOSE code and the text a user sees come from these. */
export type StatementErrorCode =
  | "ERR_STATEMENT_MALFORMED"
  | "ERR_STATEMENT_UNKNOWN_KEY"
  | "ERR_STATEMENT_SIGNATURE"
  | "ERR_STATEMENT_EXPIRED"
  | "ERR_STATEMENT_NOT_YET_VALID";

export class StatementError extends MeshError {
  readonly code: StatementErrorCode;
  constructor(code: StatementErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** A node's Curve25519 public key in base64, as `wg pubkey` prints it. */
export const NodeKey = s.base64Bytes(NODE_KEY_BYTES, "no 32-byte key in base64");
export const isNodeKey = (text: string): boolean => s.isBase64Of(text, NODE_KEY_BYTES);

const instantMs = s.integer({ min: 0 });

/** Kind 1. Instants are Unix ms by the coordinator's clock. */
export const NodeRecord = s.object({
  agentId: s.uuid,
  nodeKey: NodeKey,
  homeRegion: s.optional(s.integer({ min: 1 })),
  issuedAt: instantMs,
  expiresAt: instantMs,
});
export type NodeRecord = s.infer<typeof NodeRecord>;

/**
 * Kind 2. `permissions`: "*" for every service, else exact service names ("tcp:127.0.0.1:8080").
 */
export const Grant = s.object({
  id: s.uuid,
  nodeKey: NodeKey,
  userId: s.uuid,
  username: s.text({ max: 128 }),
  agentId: s.uuid,
  permissions: s.list(s.text({ max: 256 }), { min: 1, max: 32 }),
  issuedAt: instantMs,
  expiresAt: instantMs,
});
export type Grant = s.infer<typeof Grant>;

/** Kind 3. Who pays for the traffic: limits are per `subject`. */
export const RelayTicket = s.object({
  nodeKey: NodeKey,
  /** "user:<uuid>" or "agent:<uuid>". */
  subject: s.text({ pattern: /^(user|agent):[0-9a-f-]{36}$/ }),
  issuedAt: instantMs,
  expiresAt: instantMs,
});
export type RelayTicket = s.infer<typeof RelayTicket>;

const BODIES = { nodeRecord: NodeRecord, grant: Grant, relayTicket: RelayTicket } as const;
export type SignedKind = keyof typeof BODIES;
type BodyOf<K extends SignedKind> = s.infer<(typeof BODIES)[K]>;

/** One of the deployment's signing keys, as handed to nodes. `id`: 16 hex digits; `publicKey`: base64, 32 bytes. */
export const PublicSigningKey = s.object({
  id: s.text({ pattern: /^[0-9a-f]{16}$/ }),
  publicKey: NodeKey,
});
export type PublicSigningKey = s.infer<typeof PublicSigningKey>;

/** Ed25519 verification: RFC 8032 section 5.1.7. */
export type VerifySignature = (publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array) => boolean;

/** Clocks of machines may differ by this much before a statement from "the future" is refused. */
export const CLOCK_SLACK_MS = 60_000;

function signedBytes(kind: number, keyId: Uint8Array, body: Uint8Array): Uint8Array {
  return concatBytes(CONTEXT, Uint8Array.of(STATEMENT_VERSION, kind), keyId, body);
}

/** @param sign Ed25519 over the bytes given, with the private key that `keyId` names */
export function encodeStatement<K extends SignedKind>(
  kind: K,
  body: BodyOf<K>,
  key: { id: Uint8Array; sign(message: Uint8Array): Uint8Array },
): Uint8Array {
  const bodyBytes = utf8(JSON.stringify(BODIES[kind].parse(body)));
  if (bodyBytes.length > MAX_BODY_BYTES)
    throw new StatementError("ERR_STATEMENT_MALFORMED", `statement body of ${bodyBytes.length} bytes`);
  const kindByte = STATEMENT_KINDS[kind];
  const signature = key.sign(signedBytes(kindByte, key.id, bodyBytes));
  return concatBytes(Uint8Array.of(STATEMENT_VERSION, kindByte), key.id, signature, bodyBytes);
}

/**
 * Reads a statement and checks its key, signature and dates, in this order.
 *
 * @param nowMs Unix ms by the coordinator's clock carried forward, not by this machine's wall clock
 * @throws {StatementError} with the reason
 */
export function openStatement<K extends SignedKind>(
  kind: K,
  statement: Uint8Array,
  options: { keys: readonly PublicSigningKey[]; verify: VerifySignature; nowMs: number },
): BodyOf<K> {
  const malformed = (why: string, cause?: unknown) =>
    new StatementError("ERR_STATEMENT_MALFORMED", `malformed ${kind}: ${why}`, { cause });
  if (statement.length < HEADER_BYTES + 2 || statement.length > MAX_STATEMENT_BYTES)
    throw malformed(`${statement.length} bytes`);
  if (statement[0] !== STATEMENT_VERSION) throw malformed(`version ${statement[0]}`);
  if (statement[1] !== STATEMENT_KINDS[kind]) throw malformed(`kind ${statement[1]}`);
  const keyId = statement.subarray(2, 2 + KEY_ID_BYTES);
  const signature = statement.subarray(2 + KEY_ID_BYTES, HEADER_BYTES);
  const bodyBytes = statement.subarray(HEADER_BYTES);

  const key = options.keys.find(({ id }) => id === toHex(keyId));
  if (!key)
    throw new StatementError("ERR_STATEMENT_UNKNOWN_KEY", `${kind} signed with unknown key ${toHex(keyId)}`);
  if (!options.verify(fromBase64(key.publicKey), signedBytes(statement[1], keyId, bodyBytes), signature))
    throw new StatementError("ERR_STATEMENT_SIGNATURE", `${kind} with a signature that does not verify`);

  let parsed: BodyOf<K>;
  try {
    parsed = BODIES[kind].parse(JSON.parse(fromUtf8(bodyBytes))) as BodyOf<K>;
  } catch (cause) {
    throw malformed("body does not match its schema", cause);
  }
  if (parsed.expiresAt <= options.nowMs)
    throw new StatementError(
      "ERR_STATEMENT_EXPIRED",
      `${kind} expired ${options.nowMs - parsed.expiresAt} ms ago`,
    );
  if (parsed.issuedAt > options.nowMs + CLOCK_SLACK_MS)
    throw new StatementError(
      "ERR_STATEMENT_NOT_YET_VALID",
      `${kind} issued ${parsed.issuedAt - options.nowMs} ms in the future`,
    );
  return parsed;
}

/** Whether a grant covers a service. */
export function isPermitted(grant: Pick<Grant, "permissions">, service: string): boolean {
  return grant.permissions.includes("*") || grant.permissions.includes(service);
}

export const sameNodeKey = (a: string, b: Uint8Array): boolean => equalBytes(fromBase64(a), b);
