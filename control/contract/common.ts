// Pieces every part of the API shares. The schemas in this folder are the API (names and fields follow Coder's
// API v2): the server checks input and output with them, the client and the agent take their types from them.
// The client ignores fields it doesn't know, so adding one breaks nobody; renaming or removing one does.
import * as z from "zod";

/** RFC 3339 with a zone. The server writes UTC with milliseconds. */
export const Timestamp = z.iso.datetime({ offset: true });
export const Uuid = z.uuid();

/** Body of every answer with a status >= 400. `code` is stable: `ERR_...` (ours; Coder has none). */
export const ErrorBody = z.object({
  message: z.string(),
  detail: z.string().optional(),
  validations: z.array(z.object({ field: z.string(), detail: z.string() })).optional(),
  code: z.string().optional(),
  request_id: z.string().optional(),
});
export type ErrorBody = z.infer<typeof ErrorBody>;

/** Body of a success that has nothing else to say: `{"message": "Logged out!"}`. */
export const MessageBody = z.object({ message: z.string(), detail: z.string().optional() });
export type MessageBody = z.infer<typeof MessageBody>;

export const MAX_PAGE = 1000;

/** `limit` 0 or absent = the server's maximum; `after_id` = the last id of the page before. */
export const Paging = z.object({
  limit: z.coerce.number().int().min(0).max(MAX_PAGE).optional(),
  offset: z.coerce.number().int().min(0).max(10_000_000).optional(),
  after_id: Uuid.optional(),
});
export type Paging = z.infer<typeof Paging>;

/** Users, workspaces, templates and organizations: letters, digits, single hyphens inside; at most 32. */
export const Name = z
  .string()
  .min(1)
  .max(32)
  .regex(
    /^[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*$/,
    "must hold only letters, digits and single hyphens between them",
  );

/** Words that would clash with paths of the dashboard. */
export const Username = Name.refine((name) => !["new", "create", "me"].includes(name.toLowerCase()), {
  error: "is a reserved word",
});

export const TemplateVersionName = z
  .string()
  .min(1)
  .max(64)
  .regex(
    /^[a-zA-Z0-9]+(?:[_.-][a-zA-Z0-9]+)*$/,
    "must hold only letters, digits and single . _ - between them",
  );

export const DisplayName = z.string().max(64);

/** Names the session token travels under. */
export const SESSION_TOKEN_HEADER = "Coder-Session-Token";
export const SESSION_TOKEN_COOKIE = "coder_session_token";
export const SESSION_TOKEN_QUERY = "coder_session_token";
export const BUILD_VERSION_HEADER = "X-Coder-Build-Version";
