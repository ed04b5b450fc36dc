import type { CloseName } from "../wire/session.ts";
import {
  type Grant,
  openStatement,
  StatementError,
  type StatementErrorCode,
  sameNodeKey,
  type VerifySignature,
} from "../wire/signed.ts";
import type { Coordinator } from "./coordinator.ts";

/** A session whose grant was not renewed for this long ends; until then it goes on with an expired one. */
export const MAX_UNRENEWED_MS = 12 * 3_600_000;
/**
 * What a session that comes back after it was silent has left at least, once, to bring a new grant: a laptop wakes up
 * before its coordinator connection is back. What was revoked meanwhile opens nothing all the same.
 */
export const WAKE_GRACE_MS = 120_000;
/** Revoked grants remembered; more than one user can be given before the first of them expires. */
export const MAX_REVOKED = 32_768;

/** Why a grant was refused, as the session's CLOSE says it. */
const REFUSALS: Record<StatementErrorCode, CloseName> = {
  ERR_STATEMENT_MALFORMED: "protocolViolation",
  ERR_STATEMENT_UNKNOWN_KEY: "notYours",
  ERR_STATEMENT_SIGNATURE: "notYours",
  ERR_STATEMENT_EXPIRED: "grantExpired",
  ERR_STATEMENT_NOT_YET_VALID: "clockSkewed",
};

/** What an agent knows of a session's permission. */
export interface Admitted {
  /** Undefined before the first grant was accepted. */
  grant: Grant | undefined;
  /** When `grant` was accepted; ms, monotonic. */
  renewedAt: number;
}

/** An agent's gate: judges grants offline and remembers which were revoked. */
export class Admission {
  readonly #coordinator: Pick<Coordinator, "signingKeys" | "agentId" | "nowMs">;
  readonly #verify: VerifySignature;
  readonly #revoked = new Set<string>();

  constructor(coordinator: Pick<Coordinator, "signingKeys" | "agentId" | "nowMs">, verify: VerifySignature) {
    this.#coordinator = coordinator;
    this.#verify = verify;
  }

  /** These open nothing any more, neither a session nor a resumed one. */
  revoke(ids: Iterable<string>): void {
    for (const id of ids) this.#revoked.add(id);
    for (const id of this.#revoked) {
      if (this.#revoked.size <= MAX_REVOKED) return;
      this.#revoked.delete(id);
    }
  }

  /**
   * Judges the grant in a HELLO, first or resumed, or in a renewal.
   *
   * @param nodeKey whose session it is, as WireGuard proved it
   * @param held what let the session in before
   * @returns the grant that holds from now on: the new one or `held`'s; or why not, with the statement's error
   */
  judge(
    statement: Uint8Array,
    nodeKey: Uint8Array,
    held: Admitted,
    now: number,
  ): Grant | { refuse: CloseName; code?: StatementErrorCode } {
    const { signingKeys: keys, agentId } = this.#coordinator;
    try {
      const grant = openStatement("grant", statement, {
        keys,
        verify: this.#verify,
        nowMs: this.#coordinator.nowMs(),
      });
      // A later build may have made another agent of this process: what it let in before goes on.
      const isOurs = grant.agentId === agentId || grant.agentId === held.grant?.agentId;
      if (!isOurs || !sameNodeKey(grant.nodeKey, nodeKey)) return { refuse: "notYours" };
      return this.#revoked.has(grant.id) ? { refuse: "revoked" } : grant;
    } catch (error) {
      if (!(error instanceof StatementError)) throw error;
      // A session that goes on after a lost path needs no newer permission than it had, for a while.
      if (held.grant && error.code === "ERR_STATEMENT_EXPIRED" && !isUnrenewed(held, now)) return held.grant;
      return { refuse: REFUSALS[error.code], code: error.code };
    }
  }
}

/** When the grant of a session counts as accepted, after a silence that is not held against it. */
export const renewedAfterSilence = (renewedAt: number, now: number): number =>
  Math.max(renewedAt, now - MAX_UNRENEWED_MS + WAKE_GRACE_MS);

/** Whether a session has gone on without a new permission for too long. */
export const isUnrenewed = ({ grant, renewedAt }: Admitted, now: number): boolean =>
  grant !== undefined && now - renewedAt >= MAX_UNRENEWED_MS;
