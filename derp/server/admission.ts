// Who may use the relay, and at whose expense: relay tickets, what all connections of one subject may have together,
// and what was revoked. No clock: `nowMs` is Unix time, `now` monotonic ms.
import { fromBase64, toBase64 } from "../../mesh/wire/bytes.ts";
import { MeshError } from "../../mesh/wire/errors.ts";
import { openStatement, type PublicSigningKey, type VerifySignature } from "../../mesh/wire/signed.ts";
import { NO_LIMIT, type Rate, TokenBucket } from "./rate.ts";
import type { KeyText } from "./relay.ts";

/** `open`: a key without a ticket comes in under tight limits. `ticket`: it doesn't. */
export type AdmissionMode = "open" | "ticket";

/** How tickets are checked. Without it nobody has one, and nobody is limited for it. */
export interface TicketChecks {
  /** The deployment's current public signing keys. */
  keys(): readonly PublicSigningKey[];
  /** Ed25519. */
  verify: VerifySignature;
}

export interface AdmissionLimits {
  /** Connections with tickets of one subject. */
  connectionsPerSubject: number;
  /** Connections without a ticket, per address. */
  anonymousPerAddress: number;
  /** The same over all addresses: whoever has many must leave room for those with tickets. */
  anonymousTotal: number;
  perSubject: Rate;
  anonymous: Rate;
}

export const DEFAULT_ADMISSION: AdmissionLimits = {
  // A user's machines and windows, or one agent's reconnects; beyond it something is broken.
  connectionsPerSubject: 256,
  // Enough for an office behind one address whose nodes can't show tickets yet, and for shells rather than transfers.
  anonymousPerAddress: 64,
  // Half of what a relay takes in all.
  anonymousTotal: 10_000,
  perSubject: NO_LIMIT,
  anonymous: { bytesPerSecond: 1 << 20, burstBytes: 4 << 20 },
};

/** For as long revocations are remembered, so no ticket may live longer. */
export const MAX_TICKET_LIFETIME_MS = 24 * 3_600_000;
const MAX_BLOCKS = 65_536;
/** Who has no connection is forgotten after this, or a reconnect would refill a bucket. */
const FORGET_MS = 60_000;
const MAX_SUBJECTS = 65_536;
/** Of these addresses, which are cheap to have: an IPv6 /48 holds that many. */
const MAX_ADDRESSES = 32_768;

/** Who pays: a ticket's subject, or an address. */
export interface Subject {
  /** "user:<uuid>", "agent:<uuid>", "address:<group>". */
  readonly name: string;
  readonly bucket: TokenBucket;
  connections: number;
  idleSince: number;
}

export type Verdict = { ok: true; subject: Subject | undefined } | { ok: false; why: string };

export class Admissions {
  #mode: AdmissionMode;
  #tickets: TicketChecks | undefined;
  #limits: AdmissionLimits;
  #subjects = new Map<string, Subject>();
  /** Of `#subjects` those that are addresses, and their connections. */
  #addresses = 0;
  #anonymous = 0;
  /** Key (latin1) or subject -> Unix ms until which it was revoked: tickets issued before that are void. */
  #blocks = new Map<string, number>();

  /** @throws {TypeError} when tickets are required but can't be checked */
  constructor(mode: AdmissionMode, tickets: TicketChecks | undefined, limits: AdmissionLimits) {
    if (mode === "ticket" && !tickets) throw new TypeError("admission by ticket needs the deployment's keys");
    this.#mode = mode;
    this.#tickets = tickets;
    this.#limits = limits;
  }

  /**
   * Decides about a key its client has proven, and counts its connection until `release`.
   *
   * @param ticket base64 of the statement, as it came
   * @param address what counts as one address
   */
  admit(
    { key, ticket, address }: { key: Uint8Array; ticket: string | undefined; address: string },
    nowMs: number,
    now: number,
  ): Verdict {
    const keyText = latin1(key);
    let subject: string | undefined;
    let why = "it has no ticket";
    if (ticket !== undefined && this.#tickets) {
      try {
        const opened = this.#open(ticket, key, nowMs, this.#tickets);
        if (this.#isBlocked(keyText, opened.issuedAt) || this.#isBlocked(opened.subject, opened.issuedAt))
          return { ok: false, why: "its ticket was revoked" };
        subject = opened.subject;
      } catch (error) {
        if (!(error instanceof MeshError)) throw error;
        why = error.message;
      }
    }
    if (subject === undefined && this.#isBlocked(keyText, 0))
      return { ok: false, why: "its key was revoked" };
    if (subject !== undefined)
      return this.#take(subject, this.#limits.connectionsPerSubject, this.#limits.perSubject, now);
    if (this.#mode === "ticket") return { ok: false, why };
    if (!this.#tickets) return { ok: true, subject: undefined };
    if (this.#anonymous >= this.#limits.anonymousTotal)
      return { ok: false, why: `${why}, and too many have none` };
    return this.#take(`${ADDRESS}${address}`, this.#limits.anonymousPerAddress, this.#limits.anonymous, now);
  }

  /** A connection that was admitted has ended. */
  release(subject: Subject, now: number): void {
    subject.connections--;
    if (isAddress(subject.name)) this.#anonymous--;
    subject.idleSince = now;
  }

  /** Voids the tickets a key or subject has; ones issued later count again. */
  block(what: { key: Uint8Array } | { subject: string }, nowMs: number): void {
    const text = "key" in what ? latin1(what.key) : what.subject;
    this.#blocks.delete(text);
    this.#blocks.set(text, nowMs); // last in order
    for (const [oldest, at] of this.#blocks) {
      if (at + MAX_TICKET_LIFETIME_MS > nowMs && this.#blocks.size <= MAX_BLOCKS) break;
      this.#blocks.delete(oldest);
    }
  }

  setRates({ perSubject, anonymous }: { perSubject?: Rate; anonymous?: Rate }, now: number): void {
    this.#limits = {
      ...this.#limits,
      perSubject: perSubject ?? DEFAULT_ADMISSION.perSubject,
      anonymous: anonymous ?? DEFAULT_ADMISSION.anonymous,
    };
    for (const { name, bucket } of this.#subjects.values())
      bucket.configure(isAddress(name) ? this.#limits.anonymous : this.#limits.perSubject, now);
  }

  /** Forgets who has been away long enough; at most once a second. */
  sweep(now: number): void {
    for (const [name, subject] of this.#subjects)
      if (subject.connections === 0 && now - subject.idleSince >= FORGET_MS) {
        this.#subjects.delete(name);
        if (isAddress(name)) this.#addresses--;
      }
  }

  #open(ticket: string, key: Uint8Array, nowMs: number, { keys, verify }: TicketChecks) {
    const opened = openStatement("relayTicket", fromAnyBase64(ticket), { keys: keys(), verify, nowMs });
    if (opened.nodeKey !== toBase64(key)) throw new TicketError("its ticket is for another key");
    if (opened.expiresAt - nowMs > MAX_TICKET_LIFETIME_MS)
      throw new TicketError("its ticket lives longer than a day");
    return opened;
  }

  #isBlocked(text: KeyText, issuedAt: number): boolean {
    const blockedAt = this.#blocks.get(text);
    return blockedAt !== undefined && issuedAt <= blockedAt;
  }

  #take(name: string, maxConnections: number, rate: Rate, now: number): Verdict {
    let subject = this.#subjects.get(name);
    if (!subject) {
      if (this.#subjects.size >= MAX_SUBJECTS || (isAddress(name) && this.#addresses >= MAX_ADDRESSES))
        return { ok: false, why: "the relay serves too many subjects" };
      subject = { name, bucket: new TokenBucket(rate, now), connections: 0, idleSince: now };
      this.#subjects.set(name, subject);
      if (isAddress(name)) this.#addresses++;
    }
    if (subject.connections >= maxConnections)
      return { ok: false, why: `${name} has ${maxConnections} connections already` };
    subject.connections++;
    if (isAddress(name)) this.#anonymous++;
    return { ok: true, subject };
  }
}

const ADDRESS = "address:";
const isAddress = (name: string): boolean => name.startsWith(ADDRESS);

class TicketError extends MeshError {
  readonly code = "ERR_RELAY_TICKET";
}

const latin1 = (key: Uint8Array): KeyText => Buffer.from(key).toString("latin1");

/** Also the URL alphabet, with padding or without; and a query's "+" that became a space. */
function fromAnyBase64(text: string): Uint8Array {
  const standard = text.trim().replace(/[- ]/g, "+").replace(/_/g, "/");
  // Not /=+$/: of a header full of "=" that ends in something else it would try every one.
  let end = standard.length;
  while (standard[end - 1] === "=") end--;
  return fromBase64(standard.slice(0, end) + "=".repeat((4 - (end % 4)) % 4));
}
