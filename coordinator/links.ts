import type { AgentSubject, NodeSubject, UserSubject } from "./coordinator.ts";
import type { NodeLink } from "./link.ts";

const keyOf = (subject: NodeSubject): string =>
  subject.kind === "agent" ? `agent:${subject.agentId}` : `user:${subject.userId}`;

const NONE: ReadonlySet<NodeLink> = new Set();

/** The connections of a coordinator, by whom they are and by whom they want to hear of. */
export class LinkSet {
  readonly #byId = new Map<string, NodeLink>();
  readonly #bySubject = new Map<string, Set<NodeLink>>();
  readonly #watchers = new Map<string, Set<NodeLink>>();

  get size(): number {
    return this.#byId.size;
  }

  [Symbol.iterator](): IterableIterator<NodeLink> {
    return this.#byId.values();
  }

  has(link: NodeLink): boolean {
    return this.#byId.get(link.id) === link;
  }

  byId(id: string): NodeLink | undefined {
    return this.#byId.get(id);
  }

  add(link: NodeLink): void {
    this.#byId.set(link.id, link);
    addTo(this.#bySubject, keyOf(link.subject), link);
  }

  /** @returns whether it was there */
  delete(link: NodeLink): boolean {
    if (!this.has(link)) return false;
    this.#byId.delete(link.id);
    removeFrom(this.#bySubject, keyOf(link.subject), link);
    for (const agentId of link.watched?.keys() ?? []) removeFrom(this.#watchers, agentId, link);
    link.watched = undefined;
    return true;
  }

  clear(): void {
    this.#byId.clear();
    this.#bySubject.clear();
    this.#watchers.clear();
  }

  /** All connections of one agent or one user, oldest first. */
  of(
    subject: Pick<AgentSubject, "kind" | "agentId"> | Pick<UserSubject, "kind" | "userId">,
  ): ReadonlySet<NodeLink> {
    return this.#bySubject.get(keyOf(subject as NodeSubject)) ?? NONE;
  }

  *agents(): Generator<NodeLink & { readonly subject: AgentSubject }> {
    for (const link of this.#byId.values())
      if (link.subject.kind === "agent") yield link as NodeLink & { readonly subject: AgentSubject };
  }

  users(userId?: string): (NodeLink & { readonly subject: UserSubject })[] {
    const links = userId === undefined ? this.#byId.values() : this.of({ kind: "user", userId });
    return [...links].filter(
      (link): link is NodeLink & { readonly subject: UserSubject } => link.subject.kind === "user",
    );
  }

  watchersOf(agentId: string): ReadonlySet<NodeLink> {
    return this.#watchers.get(agentId) ?? NONE;
  }

  /** Whether it may watch one more agent; what it may no longer is forgotten first. */
  mayWatch(link: NodeLink, agentId: string, nowMs: number, max: number): boolean {
    const { watched } = link;
    if (!watched || watched.has(agentId) || watched.size < max) return true;
    this.unwatchExpired(link, nowMs);
    return (link.watched?.size ?? 0) < max;
  }

  watch(link: NodeLink, agentId: string, untilMs: number): void {
    if (!this.has(link)) return;
    link.watched ??= new Map();
    link.watched.set(agentId, untilMs);
    addTo(this.#watchers, agentId, link);
  }

  unwatchExpired(link: NodeLink, nowMs: number): void {
    for (const [agentId, untilMs] of link.watched ?? []) {
      if (untilMs > nowMs) continue;
      link.watched?.delete(agentId);
      removeFrom(this.#watchers, agentId, link);
    }
    if (link.watched?.size === 0) link.watched = undefined;
  }
}

function addTo(map: Map<string, Set<NodeLink>>, key: string, link: NodeLink): void {
  const set = map.get(key);
  if (set) set.add(link);
  else map.set(key, new Set([link]));
}

function removeFrom(map: Map<string, Set<NodeLink>>, key: string, link: NodeLink): void {
  const set = map.get(key);
  if (set?.delete(link) && set.size === 0) map.delete(key);
}
