// The deployment's Ed25519 keys: made on first use, shared by every replica, rotated by age or by hand.
//
//   published ──PUBLISHED_AHEAD_MS──▶ active: signs ──ROTATE_AFTER_MS──▶ retired: verifies ──RETIRED_KEY_MS──▶ gone
//
// A key is published before it signs, so that by then every node knows it, and verifies for longer than anything it
// signed lives. One that leaked is revoked instead: from that moment it neither signs nor verifies.
import { createPublicKey, generateKeyPairSync } from "node:crypto";
import type { Knex } from "knex";
import { keyIdOf, type SigningKeyPair } from "../../../coordinator/signing.ts";
import { DatabaseError } from "../errors.ts";
import { announce } from "./topics.ts";

export interface SigningKey extends SigningKeyPair {
  createdAt: Date;
  /** Signs from then on. */
  activeAt: Date;
  /** Signs no longer from then on; null: not planned yet. */
  retiredAt: Date | null;
}

interface SigningKeyRow {
  id: string;
  public_key: Buffer;
  private_key: Buffer;
  created_at: Date;
  active_at: Date;
  retired_at: Date | null;
}

/** Longer than any record, ticket or resume token (24 h), and than a session goes on with a grant (13 h). */
export const RETIRED_KEY_MS = 26 * 3_600_000;
export const ROTATE_AFTER_MS = 30 * 24 * 3_600_000;
/** Connected nodes hear of a new key at once, others when they connect: a short outage is over by then. */
export const PUBLISHED_AHEAD_MS = 3_600_000;
/** Nodes take 16. */
const MAX_KEYS = 8;

/** Any constant of ours: replicas starting together make one key, not one each. */
const LOCK_ID = 0x6d657368;

const read = (db: Knex, now: Date): Promise<SigningKeyRow[]> =>
  db<SigningKeyRow>("signing_keys")
    .where((where) =>
      where.whereNull("retired_at").orWhere("retired_at", ">", new Date(now.getTime() - RETIRED_KEY_MS)),
    )
    .orderBy([{ column: "active_at", order: "desc" }, "id"]);

/**
 * Those that sign now. When there is none but one that is still to come, a replica whose clock is ahead has just made it,
 * or one that looked at its clock a moment later: it signs already, else each of them would make a key of its own.
 *
 * @param rows as `read` orders them, the newest first
 */
function signing(rows: SigningKeyRow[], now: Date): SigningKeyRow[] {
  const active = rows.filter(
    ({ active_at, retired_at }) => active_at <= now && (retired_at === null || retired_at > now),
  );
  if (active.length > 0) return active;
  return rows.filter(({ active_at, retired_at }) => active_at > now && retired_at === null).slice(-1);
}

/** @returns the first signs, all of them verify; only those that sign now have their private half */
export async function loadSigningKeys(knex: Knex, now: Date = new Date()): Promise<SigningKey[]> {
  let rows = await read(knex, now);
  if (signing(rows, now).length === 0)
    rows = await locked(knex, async (trx) => {
      const found = await read(trx, now);
      if (signing(found, now).length > 0) return found;
      await trx("signing_keys").insert({ ...newKey(), created_at: now, active_at: now });
      return read(trx, now);
    });
  const signers = new Set(signing(rows, now));
  return rows
    .map((row) => ({
      keyId: row.id,
      publicKey: Uint8Array.from(row.public_key),
      ...(signers.has(row) ? { privateKey: Uint8Array.from(row.private_key) } : {}),
      createdAt: row.created_at,
      activeAt: row.active_at,
      retiredAt: row.retired_at,
    }))
    .sort((a, b) => Number(b.privateKey !== undefined) - Number(a.privateKey !== undefined));
}

/**
 * Makes a new key, which takes over after PUBLISHED_AHEAD_MS, and plans the old ones' end. With `revoke` at once: what
 * the others signed is worth nothing from now on, and everybody asks anew.
 *
 * @throws {DatabaseError} ERR_TOO_MANY_KEYS
 */
export function rotateSigningKeys(knex: Knex, now: Date, { revoke = false } = {}): Promise<void> {
  return locked(knex, async (trx) => {
    const rows = await read(trx, now);
    if (rows.length >= MAX_KEYS && !revoke)
      throw new DatabaseError(
        "ERR_TOO_MANY_KEYS",
        `${rows.length} signing keys are in use: wait a day until the oldest is forgotten`,
      );
    const activeAt = revoke ? now : new Date(now.getTime() + PUBLISHED_AHEAD_MS);
    if (revoke) await trx("signing_keys").delete();
    else
      await trx("signing_keys")
        .where((where) => where.whereNull("retired_at").orWhere("retired_at", ">", activeAt))
        .update({ retired_at: activeAt });
    await trx("signing_keys").insert({ ...newKey(), created_at: now, active_at: activeAt });
    await announce(trx, "signing_key", revoke ? "revoked" : "rotated");
  });
}

/** Rotates when the newest key is old, and forgets those long retired. @returns whether it made one */
export async function rotateWhenDue(knex: Knex, now: Date): Promise<boolean> {
  const isDue = (rows: SigningKeyRow[]) =>
    rows.every((row) => now.getTime() - row.active_at.getTime() >= ROTATE_AFTER_MS);
  if (!isDue(await read(knex, now))) return false;
  const made = await locked(knex, async (trx) => {
    if (!isDue(await read(trx, now))) return false;
    await rotateSigningKeys(trx, now);
    return true;
  });
  await knex("signing_keys")
    .where("retired_at", "<", new Date(now.getTime() - RETIRED_KEY_MS))
    .delete();
  return made;
}

/** When the list, or who signs, changes next by itself. */
export function nextKeyChange(keys: readonly SigningKey[], now: Date): Date | undefined {
  const times = keys.flatMap(({ activeAt, retiredAt }) => [
    activeAt.getTime(),
    ...(retiredAt ? [retiredAt.getTime(), retiredAt.getTime() + RETIRED_KEY_MS] : []),
  ]);
  const next = Math.min(...times.filter((time) => time > now.getTime()));
  return Number.isFinite(next) ? new Date(next) : undefined;
}

function locked<T>(knex: Knex, work: (trx: Knex) => Promise<T>): Promise<T> {
  return knex.transaction(async (trx) => {
    await trx.raw("select pg_advisory_xact_lock(?)", [LOCK_ID]);
    return work(trx);
  });
}

function newKey(): { id: string; algorithm: "ed25519"; public_key: Buffer; private_key: Buffer } {
  const { privateKey } = generateKeyPairSync("ed25519");
  const raw = (value: string | undefined) => Buffer.from(value ?? "", "base64url");
  const secret = privateKey.export({ format: "jwk" });
  const open = createPublicKey(privateKey).export({ format: "jwk" });
  const publicKey = raw(open.x);
  return { id: keyIdOf(publicKey), algorithm: "ed25519", public_key: publicKey, private_key: raw(secret.d) };
}
