// Everything a server is made of, in one import: the command that composes it loads this once, dynamically.
import type { Knex } from "knex";
import { insertUser } from "./api/users.ts";
import { hashPassword } from "./auth/password.ts";
import { createApiKey, deleteNamedKey } from "./db/queries/keys.ts";
import type { UserRow } from "./db/queries/rows.ts";

export { handleDerpRequest } from "../derp/server/http.ts";
export { startEmbeddedPostgres } from "./db/embedded.ts";
export { openDatabase } from "./db/open.ts";
export { startMeshServices } from "./mesh.ts";
export { startDaemons } from "./provisioner/daemon.ts";
export { locateTerraform } from "./provisioner/terraform/binary.ts";
export { startControlPlane } from "./server.ts";

const FIRST_USER = { username: "admin", email: "admin@localhost.localdomain", name: "" };
const OPERATOR_TOKEN = "operator";
const OPERATOR_TOKEN_LIFETIME_MS = 24 * 3_600_000;

/**
 * A token for the oldest owner, for commands run by whoever runs the server (who could write to the database
 * anyway). Makes the first user when there is none. The operator's previous token ends.
 */
export async function operatorLogin(
  knex: Knex,
  newPassword: () => string,
): Promise<{ token: string; email: string; created?: { password: string } }> {
  const now = new Date();
  let created: { password: string } | undefined;
  let owner: UserRow | undefined = await oldestOwner(knex);
  if (!owner) {
    created = { password: newPassword() };
    const passwordHash = await hashPassword(created.password);
    await knex.transaction((trx) =>
      insertUser(trx, { ...FIRST_USER, loginType: "password", passwordHash, roles: ["owner"], now }),
    );
    owner = (await oldestOwner(knex)) as UserRow;
  }
  await deleteNamedKey(knex, owner.id, OPERATOR_TOKEN);
  const token = await createApiKey(knex, {
    userId: owner.id,
    loginType: "token",
    tokenName: OPERATOR_TOKEN,
    lifetimeMs: OPERATOR_TOKEN_LIFETIME_MS,
    now,
  });
  return { token, email: owner.email, ...(created ? { created } : {}) };
}

const oldestOwner = (knex: Knex): Promise<UserRow | undefined> =>
  knex("users")
    .where({ deleted: false, status: "active" })
    .andWhereRaw("'owner' = any(roles)")
    .orderBy("created_at")
    .first();
