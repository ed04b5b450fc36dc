// Resume tokens: "this node was welcomed under this key, as this subject, with this credential". A node shows one when it
// reconnects, so that after a restart thousands of nodes are taken back without a query each, also while
// the database is away. It stands beside the credential, never in its place, and whoever takes it looks the credential
// up as soon as the database answers.
//
//   base64url( key id [8] | signature [64] | body: UTF-8 JSON )
//
// The signature (Ed25519) covers CONTEXT | body. CONTEXT keeps it from being read as a statement, and statements
// from being read as tokens. Only coordinators read it, so its form may change with any version.
import { createHash } from "node:crypto";
import * as z from "zod";
import { concatBytes, fromBase64, fromUtf8, toHex, utf8 } from "../mesh/wire/bytes.ts";
import { MAX_RESUME_TOKEN_CHARS } from "../mesh/wire/coordinator.ts";
import { isNodeKey, KEY_ID_BYTES, type PublicSigningKey, SIGNATURE_BYTES } from "../mesh/wire/signed.ts";
import type { NodeSubject } from "./coordinator.ts";
import { verifyEd25519 } from "./ed25519.ts";

const CONTEXT = utf8("workspace-mesh resume token v1\0");

const Subject: z.ZodType<NodeSubject> = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("user"),
    userId: z.uuid(),
    username: z.string(),
    tokenId: z.string(),
    scope: z.enum(["all", "application_connect"]).optional(),
  }),
  z.object({ kind: z.literal("agent"), agentId: z.uuid(), workspaceId: z.uuid().optional() }),
]);

const ResumeToken = z.object({
  subject: Subject,
  nodeKey: z.string().refine(isNodeKey),
  /** hashCredential() of what the node logged in with. */
  credential: z.string().max(64),
  /** The id its connection had: what it had published stays its own. */
  linkId: z.uuid(),
  expiresAt: z.number().int(),
});
export type ResumeToken = z.infer<typeof ResumeToken>;

/** What a token is bound to, of the secret a node logs in with. */
export const hashCredential = (secret: string): string =>
  createHash("sha256").update(CONTEXT).update(secret).digest("base64");

export function encodeResumeToken(
  body: ResumeToken,
  key: { id: Uint8Array; sign(message: Uint8Array): Uint8Array },
): string {
  const bytes = utf8(JSON.stringify(body));
  return Buffer.from(concatBytes(key.id, key.sign(concatBytes(CONTEXT, bytes)), bytes)).toString("base64url");
}

/** @returns undefined for anything that is not ours, not theirs, or too old: they log in as usual */
export function openResumeToken(
  token: string,
  { keys, credential, nowMs }: { keys: readonly PublicSigningKey[]; credential: string; nowMs: number },
): ResumeToken | undefined {
  if (token.length > MAX_RESUME_TOKEN_CHARS) return undefined;
  const bytes = Uint8Array.from(Buffer.from(token, "base64url"));
  const body = bytes.subarray(KEY_ID_BYTES + SIGNATURE_BYTES);
  const key = keys.find(({ id }) => id === toHex(bytes.subarray(0, KEY_ID_BYTES)));
  const signature = bytes.subarray(KEY_ID_BYTES, KEY_ID_BYTES + SIGNATURE_BYTES);
  if (!key || body.length === 0) return undefined;
  if (!verifyEd25519(fromBase64(key.publicKey), concatBytes(CONTEXT, body), signature)) return undefined;
  const parsed = ResumeToken.safeParse(jsonOf(body));
  if (!parsed.success || parsed.data.credential !== credential || parsed.data.expiresAt <= nowMs)
    return undefined;
  return parsed.data;
}

/** @returns undefined for what is no JSON: another version of us may have signed it */
function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(fromUtf8(bytes));
  } catch {
    return undefined;
  }
}
