// Who may do what, as the routes ask it. The rules are auth/authorize.ts; here is only what a refusal looks like:
// 404 for what the caller may not even read, 403 for the rest.
import { type AccessObject, type Action, authorize } from "../auth/authorize.ts";
import type { UserIdentity } from "./authenticate.ts";
import { forbidden, notFound } from "./errors.ts";

export function may(user: UserIdentity, action: Action, object: AccessObject): boolean {
  return authorize(user.subject, action, object);
}

/** @throws {ApiError} 404 when `user` may not read `object`, 403 when they may, but not `action` */
export function must(user: UserIdentity, action: Action, object: AccessObject, what?: string): void {
  if (may(user, action, object)) return;
  throw action !== "read" && may(user, "read", object) ? forbidden() : notFound(what);
}

/** For things that aren't there yet: 403, there is nothing to hide. */
export function mustBeAllowed(user: UserIdentity, action: Action, object: AccessObject): void {
  if (!may(user, action, object)) throw forbidden();
}
