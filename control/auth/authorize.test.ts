import assert from "node:assert/strict";
import fc from "fast-check";
import {
  ACTIONS,
  type AccessObject,
  type Action,
  authorize,
  canAssignRole,
  explain,
  listFilter,
  OBJECT_TYPES,
  ROLES,
  type Subject,
} from "./authorize.ts";

const ann: Subject = { userId: "ann", roles: ["member"] };
const root: Subject = { userId: "root", roles: ["owner", "member"] };
const templates: Subject = { userId: "tom", roles: ["template-admin"] };
const users: Subject = { userId: "una", roles: ["user-admin"] };
const audit: Subject = { userId: "aud", roles: ["auditor"] };

const annsWorkspace: AccessObject = { type: "workspace", ownerId: "ann", organizationId: "o" };
const bobsWorkspace: AccessObject = { type: "workspace", ownerId: "bob", organizationId: "o" };

const decisions: [string, Subject, Action, AccessObject, boolean][] = [
  ["a member opens a shell in their own workspace", ann, "ssh", annsWorkspace, true],
  ["a member opens no shell in another's", ann, "ssh", bobsWorkspace, false],
  ["a member doesn't even see another's", ann, "read", bobsWorkspace, false],
  ["a member creates no workspace for another", ann, "create", bobsWorkspace, false],
  ["a member uses templates", ann, "use", { type: "template" }, true],
  ["a member makes no template", ann, "create", { type: "template" }, false],
  ["a member makes no user", ann, "create", { type: "user" }, false],
  ["a member changes their own profile", ann, "update", { type: "user", ownerId: "ann" }, true],
  ["a member doesn't delete their own account", ann, "delete", { type: "user", ownerId: "ann" }, false],
  ["a member makes tokens for themself", ann, "create", { type: "api_key", ownerId: "ann" }, true],
  ["a member makes no tokens for others", ann, "create", { type: "api_key", ownerId: "root" }, false],
  ["a member gives nobody a role", ann, "assign", { type: "assign_role" }, false],
  ["a member doesn't read the configuration", ann, "read", { type: "deployment_config" }, false],
  ["an owner deletes another's workspace", root, "delete", bobsWorkspace, true],
  ["an owner makes templates", root, "create", { type: "template" }, true],
  ["an owner doesn't read another's git key", root, "read_personal", { type: "user", ownerId: "bob" }, false],
  ["an owner reads their own git key", root, "read_personal", { type: "user", ownerId: "root" }, true],
  ["a template admin edits templates", templates, "update", { type: "template" }, true],
  ["a template admin sees workspaces", templates, "read", bobsWorkspace, true],
  ["a template admin opens no shell in them", templates, "ssh", bobsWorkspace, false],
  ["a user admin suspends a member", users, "update", { type: "user", ownerId: "ann", roles: [] }, true],
  [
    "a user admin can't touch an owner",
    users,
    "update",
    { type: "user", ownerId: "root", roles: ["owner"] },
    false,
  ],
  ["a user admin sees an owner", users, "read", { type: "user", ownerId: "root", roles: ["owner"] }, true],
  ["an auditor reads the audit log", audit, "read", { type: "audit_log" }, true],
  ["an auditor changes nothing", audit, "update", { type: "template" }, false],
];

describe("authorize", () => {
  for (const [name, subject, action, object, allowed] of decisions) {
    it(name, () => {
      const decision = explain(subject, action, object);
      assert.equal(decision.allowed, allowed, decision.reason);
      assert.equal(authorize(subject, action, object), allowed);
    });
  }

  it("lets a key for apps open apps and nothing else, whatever its user may", () => {
    for (const user of [ann, root]) {
      const key: Subject = { ...user, scope: "application_connect" };
      const own: AccessObject = { type: "workspace", ownerId: user.userId };
      assert.deepEqual(
        ACTIONS.filter((action) => authorize(key, action, own)),
        ["application_connect"],
      );
      assert.equal(authorize(key, "read", { type: "template" }), false);
      assert.deepEqual(listFilter(key, "read", "workspace"), { kind: "none" });
    }
  });

  const anySubject = fc.record({
    userId: fc.constantFrom("ann", "bob"),
    roles: fc.subarray([...ROLES, "root", "__proto__", ""]),
  });
  const anyAction = fc.constantFrom(...ACTIONS);
  const anyType = fc.constantFrom(...OBJECT_TYPES);

  it("grants nothing for a role, scope, action or type it doesn't know", () => {
    for (const role of ["admin", "OWNER", "__proto__", "constructor", "owner "]) {
      assert.equal(authorize({ userId: "x", roles: [role] }, "create", { type: "user" }), false, role);
    }
    for (const scope of ["everything", "__proto__", "toString"]) {
      const subject = { ...root, scope } as unknown as Subject;
      assert.equal(authorize(subject, "read", { type: "template" }), false, scope);
    }
    assert.equal(authorize(root, "fly" as Action, { type: "template" }), false);
    assert.equal(authorize(root, "read", { type: "moon" } as unknown as AccessObject), false);
  });

  it("never takes an object without an owner for the subject's own", () => {
    const nobody = { userId: undefined, roles: [] } as unknown as Subject;
    assert.equal(authorize(nobody, "read", { type: "workspace" }), false);
    assert.equal(authorize(ann, "read", { type: "workspace" }), false);
  });

  it("only ever allows more with one role more", () => {
    fc.assert(
      fc.property(
        anySubject,
        fc.constantFrom(...ROLES),
        anyAction,
        anyType,
        (subject, role, action, type) => {
          const object: AccessObject = { type, ownerId: "ann" };
          const more = { ...subject, roles: [...subject.roles, role] };
          assert.ok(!authorize(subject, action, object) || authorize(more, action, object));
        },
      ),
    );
  });

  it("lists exactly what it would allow one by one", () => {
    fc.assert(
      fc.property(anySubject, anyAction, anyType, (subject, action, type) => {
        const filter = listFilter(subject, action, type);
        for (const ownerId of ["ann", "bob", "eve"]) {
          const listed = filter.kind === "all" || (filter.kind === "owner" && filter.ownerId === ownerId);
          assert.equal(listed, authorize(subject, action, { type, ownerId }));
        }
      }),
    );
  });

  it("lets only an owner make owners and administrators of users", () => {
    assert.deepEqual(
      ROLES.filter((role) => canAssignRole(root, role)),
      [...ROLES],
    );
    assert.deepEqual(
      ROLES.filter((role) => canAssignRole(users, role)),
      ["template-admin", "auditor", "member"],
    );
    assert.deepEqual(
      ROLES.filter((role) => canAssignRole(ann, role)),
      [],
    );
  });
});
