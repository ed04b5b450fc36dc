// How many sessions a node keeps, and how much of that room one peer and one user may take.
import type { CloseName } from "../wire/session.ts";

/** Sessions a node keeps; each holds at most its windows. */
const MAX_LINKS = 4_096;
/** Sessions of one peer; a client opens one and perhaps its successor. */
const MAX_LINKS_PER_PEER = 4;
/** Sessions of one user with one agent: an eighth of what a node holds, so that nobody keeps the others out. */
export const MAX_LINKS_PER_USER = 512;
/** Three keepalives are missing: the client is away, or was killed without a goodbye. */
export const GIVES_WAY_AFTER_MS = 60_000;

/** A session, as far as this needs to know it. */
export interface Crowded {
  readonly grant: { userId: string } | undefined;
  /** ms, monotonic. */
  readonly lastHeardAt: number;
  readonly session: { readonly isClosed: boolean };
  close(name: CloseName, reason: string): void;
}

/** The sessions of a node. */
export interface House<L> {
  readonly linkCount: number;
  links(): L[];
}

/**
 * May a peer with so many sessions have one more? What has ended, and only lingers to say so, keeps nobody out.
 *
 * @param forget takes a session out of the house at once
 */
export function hasRoom<L extends { readonly session: { readonly isClosed: boolean } }>(
  house: House<L>,
  ofPeer: number,
  forget: (ended: L) => void,
): boolean {
  if (ofPeer >= MAX_LINKS_PER_PEER) return false;
  if (house.linkCount >= MAX_LINKS) for (const link of house.links()) if (link.session.isClosed) forget(link);
  return house.linkCount < MAX_LINKS;
}

/**
 * May this user have one session more? In a full house the one that has been silent longest gives way, if it has been
 * for a minute: what killed clients left behind must not keep their user out.
 */
export function makeRoom(userId: string, links: Iterable<Crowded>, now: number): boolean {
  let count = 0;
  let quietest: Crowded | undefined;
  for (const link of links) {
    if (link.grant?.userId !== userId || link.session.isClosed) continue;
    count++;
    if (!quietest || link.lastHeardAt < quietest.lastHeardAt) quietest = link;
  }
  if (!quietest || count < MAX_LINKS_PER_USER) return true;
  if (now - quietest.lastHeardAt < GIVES_WAY_AFTER_MS) return false;
  quietest.close("resourceLimit", "it was silent, and its user opened too many others");
  return true;
}
