// The one place that decides who may do what. The table below is the policy: what no row grants is refused.
// Every route asks here; a list asks listFilter() and puts the answer into its query.
import type { KeyScope } from "./token.ts";

export const ROLES = ["owner", "user-admin", "template-admin", "auditor", "member"] as const;
export type Role = (typeof ROLES)[number];

export const ACTIONS = [
  "create",
  "read",
  "update",
  "delete",
  /** Build a workspace from a template. */
  "use",
  "start",
  "stop",
  /** Open a shell, a port or a file transfer. */
  "ssh",
  /** Open an app of a workspace in the browser. */
  "application_connect",
  /** Give or take a role. */
  "assign",
  /** What a user alone should see and change: git keys, preferences. */
  "read_personal",
  "update_personal",
] as const;
export type Action = (typeof ACTIONS)[number];

export const OBJECT_TYPES = [
  "api_key",
  "assign_role",
  "audit_log",
  "deployment_config",
  "file",
  "organization",
  "organization_member",
  "provisioner_daemon",
  "provisioner_job",
  "system",
  "template",
  "user",
  "workspace",
] as const;
export type ObjectType = (typeof OBJECT_TYPES)[number];

export interface Subject {
  userId: string;
  /** Unknown names grant nothing. Everybody who may log in is a member, named or not. */
  roles: readonly string[];
  /** Of the key that was shown; absent: all. */
  scope?: KeyScope;
}

export interface AccessObject {
  type: ObjectType;
  id?: string;
  /** Whose it is; for a user, that user's own id. */
  ownerId?: string;
  organizationId?: string;
  /** For a user: the roles that user has. */
  roles?: readonly string[];
}

/** "own": ownerId must be the subject's. */
type Reach = "any" | "own";
interface Grant {
  role: Role;
  reach: Reach;
  types: readonly ObjectType[];
  actions: readonly Action[];
}

export const GRANTS: readonly Grant[] = [
  { role: "owner", reach: "any", types: OBJECT_TYPES, actions: withoutPersonal(ACTIONS) },

  { role: "member", reach: "any", types: ["organization"], actions: ["read"] },
  { role: "member", reach: "any", types: ["template"], actions: ["read", "use"] },
  {
    role: "member",
    reach: "own",
    types: ["user"],
    actions: ["read", "update", "read_personal", "update_personal"],
  },
  { role: "member", reach: "own", types: ["organization_member"], actions: ["read"] },
  { role: "member", reach: "own", types: ["api_key"], actions: ["create", "read", "update", "delete"] },
  { role: "member", reach: "own", types: ["file"], actions: ["create", "read"] },
  { role: "member", reach: "own", types: ["provisioner_job"], actions: ["read", "update"] },
  {
    role: "member",
    reach: "own",
    types: ["workspace"],
    actions: ["create", "read", "update", "delete", "start", "stop", "ssh", "application_connect"],
  },

  {
    role: "template-admin",
    reach: "any",
    types: ["template"],
    actions: ["create", "read", "update", "delete", "use"],
  },
  { role: "template-admin", reach: "any", types: ["file"], actions: ["create", "read"] },
  { role: "template-admin", reach: "any", types: ["workspace", "provisioner_daemon"], actions: ["read"] },
  { role: "template-admin", reach: "any", types: ["provisioner_job"], actions: ["read", "update"] },

  {
    role: "user-admin",
    reach: "any",
    types: ["user", "organization_member"],
    actions: ["create", "read", "update", "delete"],
  },
  { role: "user-admin", reach: "any", types: ["assign_role"], actions: ["read", "assign"] },

  { role: "auditor", reach: "any", types: ["audit_log"], actions: ["read"] },
  { role: "auditor", reach: "any", types: ["user", "template", "organization_member"], actions: ["read"] },
];

/** What a key's scope leaves of its user's rights. Scopes only ever take away. */
const SCOPES: Record<KeyScope, ((action: Action, type: ObjectType) => boolean) | undefined> = {
  all: undefined,
  application_connect: (action, type) => type === "workspace" && action === "application_connect",
};

export interface Decision {
  allowed: boolean;
  /** For the server's log and for `authcheck`; a refused caller gets 403 or 404, not this. */
  reason: string;
}

export function explain(subject: Subject, action: Action, object: AccessObject): Decision {
  const what = `${action} ${object.type}`;
  if (!inScope(subject, action, object.type)) {
    return { allowed: false, reason: `the key's scope ${subject.scope} doesn't include ${what}` };
  }
  const isOwn = object.ownerId !== undefined && object.ownerId === subject.userId;
  const grant = grantsFor(subject, action, object.type).find(({ reach }) => reach === "any" || isOwn);
  if (!grant)
    return { allowed: false, reason: `no role of the user grants ${what}${isOwn ? "" : " of others"}` };
  // Whoever resets an owner's password is an owner from then on.
  if (
    object.type === "user" &&
    object.roles?.includes("owner") &&
    !isOwn &&
    !subject.roles.includes("owner")
  ) {
    if (action !== "read") return { allowed: false, reason: `only an owner may ${what} with the role owner` };
  }
  return {
    allowed: true,
    reason: `${grant.role} may ${what}${grant.reach === "own" ? " of their own" : ""}`,
  };
}

export function authorize(subject: Subject, action: Action, object: AccessObject): boolean {
  return explain(subject, action, object).allowed;
}

/** What a query may list: "all", "none", or the rows whose owner is `ownerId`. */
export type ListFilter = { kind: "all" } | { kind: "none" } | { kind: "owner"; ownerId: string };

/** The same decision as authorize(), for all objects of a type at once. */
export function listFilter(subject: Subject, action: Action, type: ObjectType): ListFilter {
  if (!inScope(subject, action, type)) return { kind: "none" };
  const reaches = grantsFor(subject, action, type).map(({ reach }) => reach);
  if (reaches.includes("any")) return { kind: "all" };
  return reaches.includes("own") ? { kind: "owner", ownerId: subject.userId } : { kind: "none" };
}

/** Whether `subject` may give or take `role`: an administrator of users can't make owners. */
export function canAssignRole(subject: Subject, role: Role): boolean {
  if (!authorize(subject, "assign", { type: "assign_role" })) return false;
  return subject.roles.includes("owner") || (role !== "owner" && role !== "user-admin");
}

function grantsFor({ roles }: Subject, action: Action, type: ObjectType): Grant[] {
  return GRANTS.filter(
    (grant) =>
      (grant.role === "member" || roles.includes(grant.role)) &&
      grant.types.includes(type) &&
      grant.actions.includes(action),
  );
}

function inScope({ scope = "all" }: Subject, action: Action, type: ObjectType): boolean {
  if (!Object.hasOwn(SCOPES, scope)) return false; // an unknown scope, of a newer version perhaps, allows nothing
  return SCOPES[scope]?.(action, type) ?? true;
}

function withoutPersonal(actions: readonly Action[]): Action[] {
  return actions.filter((action) => action !== "read_personal" && action !== "update_personal");
}
