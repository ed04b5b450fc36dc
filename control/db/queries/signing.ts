// The deployment's Ed25519 keys: made on first use, shared by every replica.
import { createPublicKey, generateKeyPairSync, randomBytes } from "node:crypto";
import type { Knex } from "knex";

export interface SigningKey {
  /** 16 hex digits; travels with each signature. */
  keyId: string;
  /** Raw, 32 bytes. */
  publicKey: Uint8Array;
  /** Raw seed, 32 bytes. Absent once the key is retired: it then only verifies. */
  privateKey?: Uint8Array;
  createdAt: Date;
}

interface SigningKeyRow {
  id: string;
  public_key: Buffer;
  private_key: Buffer;
  created_at: Date;
  retired_at: Date | null;
}

/** Keys valid for this long after they retire: longer than any grant or record lives. */
export const RETIRED_KEY_MS = 24 * 3600_000;

/** Any constant of ours: replicas starting together make one key, not one each. */
const LOCK_ID = 0x6d657368;

/** @returns newest first; the first signs, all of them verify */
export async function loadSigningKeys(knex: Knex, now: Date = new Date()): Promise<SigningKey[]> {
  const read = (db: Knex) =>
    db<SigningKeyRow>("signing_keys")
      .where((where) =>
        where.whereNull("retired_at").orWhere("retired_at", ">", new Date(now.getTime() - RETIRED_KEY_MS)),
      )
      .orderByRaw("(retired_at is null) desc, created_at desc, id");
  let rows = await read(knex);
  if (!rows.some((row) => row.retired_at === null)) {
    rows = await knex.transaction(async (trx) => {
      await trx.raw("select pg_advisory_xact_lock(?)", [LOCK_ID]);
      const current = await read(trx);
      if (current.some((row) => row.retired_at === null)) return current;
      await trx("signing_keys").insert({ ...newKey(), algorithm: "ed25519", created_at: now });
      return read(trx);
    });
  }
  return rows.map((row) => ({
    keyId: row.id,
    publicKey: Uint8Array.from(row.public_key),
    ...(row.retired_at === null ? { privateKey: Uint8Array.from(row.private_key) } : {}),
    createdAt: row.created_at,
  }));
}

function newKey(): { id: string; public_key: Buffer; private_key: Buffer } {
  const { privateKey } = generateKeyPairSync("ed25519");
  const raw = (value: string | undefined) => Buffer.from(value ?? "", "base64url");
  const secret = privateKey.export({ format: "jwk" });
  const open = createPublicKey(privateKey).export({ format: "jwk" });
  return { id: randomBytes(8).toString("hex"), public_key: raw(open.x), private_key: raw(secret.d) };
}
