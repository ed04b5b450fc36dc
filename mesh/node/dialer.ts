// Which agents a client reaches, where they are, and with which session: one each, opened once for all who want it.
import { MeshError } from "../wire/errors.ts";
import type { NodeRecord } from "../wire/signed.ts";
import type { Coordinator } from "./coordinator.ts";
import type { SessionLink } from "./link.ts";
import type { Runtime } from "./runtime.ts";
import { MeshNodeError } from "./stream.ts";
import { withDeadline, withSignal } from "./wait.ts";

/** What sessions are kept for while silent, unless somebody asks for longer. */
export const DEFAULT_RESUME_WINDOW_MS = 300_000;
export const MAX_RESUME_WINDOW_MS = 24 * 3_600_000;
/** An agent whose record is gone may be reconnecting; after this the control plane is asked whether it still is one. */
const GONE_TIMEOUT_MS = 30_000;
/** Refusals that tell of a busy moment, not of the agent. */
const PASSING_CODES: ReadonlySet<string> = new Set([
  "ERR_COORDINATOR_UNREACHABLE",
  "ERR_BUSY",
  "ERR_INTERNAL",
  "ERR_TOO_MANY_GRANTS",
  "ERR_TOO_MANY_AGENTS",
  "ERR_SHUTTING_DOWN",
]);
/** A session that may be with a process that is gone: the coordinator is asked before it is used, for this long. */
const DOUBT_MS = 3_000;
/** Grants last an hour: a session that lives longer carries a new one well before. */
const RENEW_AFTER_MS = 40 * 60_000;
const RENEW_RETRY_MS = 60_000;

/** Where an agent was said to be. */
export interface Place {
  nodeKey: string;
  region: number;
}

export interface DialerHost {
  readonly runtime: Runtime;
  now(): number;
  /** Begins a session with the node at `place`; it says nothing before `reach`. */
  start(place: Place, grant: Uint8Array, agentId: string, resumeWindowMs: number): SessionLink;
  /** Resolves once packets of the session can leave. @throws the relay's error */
  reach(link: SessionLink): Promise<void>;
  /** The node of a session is heard in another region now. */
  moved(link: SessionLink, region: number): void;
  /** There is no way to the node now, or it has stopped answering. */
  isDoubtful(link: SessionLink): boolean;
  debug(fields: object, message: string): void;
}

/** The work of one `#open`, shared by all who wait for it. */
interface Opening {
  result: Promise<SessionLink>;
  abort: AbortController;
  callers: number;
  /** Who is to be told that the agent is not there yet; undefined once told. */
  onWait: Set<() => void> | undefined;
}

interface Target {
  agentId: string;
  grant: Uint8Array;
  /** The longest anybody asked for. */
  resumeWindowMs: number;
  /** When the next grant is due to be asked for. */
  renewAt: number;
  /** When the coordinator was asked last; ms. */
  askedAt: number;
  isRenewing: boolean;
  link: SessionLink | undefined;
  opening: Opening | undefined;
  /** When its record went; undefined while it is there. */
  goneAt: number | undefined;
  /** While it is being opened: the record that came by itself. */
  said: NodeRecord | undefined;
  /** The coordinator is being asked whether the session is still with a living process. */
  doubt: Promise<void> | undefined;
  /** Who waits for the agent to come. */
  waiting: { arrived(place: Place): void; failed(error: unknown): void } | undefined;
}

export interface ConnectOptions {
  signal?: AbortSignal;
  onWait?: (what: "agent") => void;
  /** How long the agent should keep the session while this node is silent; the longest asked for holds. */
  resumeWindowMs?: number;
}

export class Dialer {
  readonly #host: DialerHost;
  readonly #coordinator: Coordinator;
  readonly #targets = new Map<string, Target>();
  #closed: Error | undefined;

  constructor(host: DialerHost, coordinator: Coordinator) {
    this.#host = host;
    this.#coordinator = coordinator;
  }

  /**
   * The session with an agent, opened if there is none. Waits for an agent that is away, for as long as `signal` lets it;
   * one caller's signal ends only its own wait.
   *
   * @throws the coordinator's refusal, the relay's error, the signal's reason; {MeshNodeError} ERR_NODE_CLOSED
   */
  async connect(
    agentId: string,
    { signal, onWait, resumeWindowMs }: ConnectOptions = {},
  ): Promise<SessionLink> {
    if (this.#closed) throw this.#closed;
    signal?.throwIfAborted();
    let target = this.#wanted(agentId, resumeWindowMs);
    if (!target.opening && target.link && this.#host.isDoubtful(target.link)) {
      await this.#settleDoubt(target, signal);
      // What was doubted may have been forgotten, and somebody may have begun anew, who must not be forgotten in turn.
      target = this.#wanted(agentId, resumeWindowMs);
    }
    if (this.#closed) throw this.#closed;
    if (!target.opening && target.link && !target.link.session.isClosed) return target.link;
    const opening = target.opening ?? this.#begin(target);
    const tell = () => onWait?.("agent");
    if (opening.onWait) opening.onWait.add(tell);
    else tell();
    opening.callers++;
    try {
      return await withSignal(opening.result, signal);
    } finally {
      opening.onWait?.delete(tell);
      if (--opening.callers === 0) {
        if (target.opening === opening) target.opening = undefined;
        opening.abort.abort(signal?.reason);
        this.#forgetIfUnused(target);
      }
    }
  }

  onRecord(record: NodeRecord): void {
    const { agentId, nodeKey, homeRegion } = record;
    const target = this.#targets.get(agentId);
    if (!target || homeRegion === undefined) return;
    target.goneAt = undefined;
    target.said = record;
    target.waiting?.arrived({ nodeKey, region: homeRegion });
    const { link } = target;
    if (!link || link.session.isClosed) return;
    // A new process has a new key and none of our state.
    if (link.peerKey !== nodeKey) link.close("unknownSession", "the agent was restarted; connect again");
    else this.#host.moved(link, homeRegion);
  }

  onRecordGone(agentId: string): void {
    const target = this.#targets.get(agentId);
    if (!target) return;
    target.goneAt ??= this.#host.now();
    target.said = undefined;
  }

  /** The coordinator is back and knows nothing of us: what it would have told meanwhile is asked for. */
  onConnected(): void {
    for (const target of this.#targets.values()) void this.#renew(target);
  }

  onClosed(link: SessionLink): void {
    for (const target of this.#targets.values()) {
      if (target.link !== link) continue;
      target.link = undefined;
      this.#forgetIfUnused(target);
    }
  }

  /** Now and then: renews grants, and gives up agents that left. */
  sweep(): void {
    const now = this.#host.now();
    for (const target of this.#targets.values()) {
      // Its network may be away for hours; only the control plane knows that it won't come back.
      if (this.#isLongGone(target))
        target.renewAt = Math.min(target.renewAt, target.askedAt + RENEW_RETRY_MS);
      if (now >= target.renewAt) void this.#renew(target);
    }
  }

  /** Ends all waits with `error`; sessions are the host's to close. */
  close(error: Error): void {
    this.#closed = error;
    for (const { opening } of this.#targets.values()) opening?.abort.abort(error);
  }

  /** The target, kept by whoever asked for the longest window. */
  #wanted(agentId: string, resumeWindowMs = DEFAULT_RESUME_WINDOW_MS): Target {
    const target = this.#target(agentId);
    target.resumeWindowMs = Math.min(Math.max(target.resumeWindowMs, resumeWindowMs), MAX_RESUME_WINDOW_MS);
    target.link?.askResumeWindow(target.resumeWindowMs);
    return target;
  }

  #target(agentId: string): Target {
    const known = this.#targets.get(agentId);
    if (known) return known;
    const target: Target = {
      agentId,
      grant: new Uint8Array(),
      resumeWindowMs: 0,
      askedAt: Number.NEGATIVE_INFINITY,
      renewAt: Number.POSITIVE_INFINITY,
      isRenewing: false,
      link: undefined,
      opening: undefined,
      goneAt: undefined,
      said: undefined,
      doubt: undefined,
      waiting: undefined,
    };
    this.#targets.set(agentId, target);
    return target;
  }

  #forgetIfUnused(target: Target): void {
    const { agentId, link, opening } = target;
    if (!link && !opening && this.#targets.get(agentId) === target) this.#targets.delete(agentId);
  }

  #begin(target: Target): Opening {
    const abort = new AbortController();
    const onWait = () => {
      const tell = opening.onWait;
      opening.onWait = undefined;
      for (const one of tell ?? []) one();
    };
    const result = withSignal(this.#open(target, abort.signal, onWait), abort.signal).finally(() => {
      if (target.opening === opening) target.opening = undefined;
    });
    const opening: Opening = { result, abort, callers: 0, onWait: new Set() };
    target.opening = opening;
    return opening;
  }

  async #open(target: Target, signal: AbortSignal, onWait: () => void): Promise<SessionLink> {
    target.said = undefined;
    const { grant, record } = await this.#coordinator.requestGrant(target.agentId, signal);
    signal.throwIfAborted();
    this.#granted(target, grant);
    // One message behind the grant, a record is here before we are.
    let place = placeOf(newest(record, target.said));
    if (!place) {
      onWait();
      place = await this.#agentComes(target, signal);
    }
    signal.throwIfAborted();
    target.goneAt = undefined;
    const link = this.#host.start(place, target.grant, target.agentId, target.resumeWindowMs);
    target.link = link;
    try {
      await withSignal(this.#host.reach(link), signal);
    } catch (error) {
      link.close("normal");
      throw error;
    }
    if (link.session.isClosed)
      throw new MeshNodeError("ERR_SESSION_CLOSED", "the agent was restarted meanwhile; connect again");
    return link;
  }

  #granted(target: Target, grant: Uint8Array): void {
    target.grant = grant;
    target.renewAt = this.#host.now() + RENEW_AFTER_MS;
  }

  /** Neither the coordinator nor we have heard of the agent for a while. */
  #isLongGone({ link, goneAt }: Target): boolean {
    if (!link || goneAt === undefined) return false;
    return this.#host.now() - Math.max(goneAt, link.lastHeardAt) > GONE_TIMEOUT_MS;
  }

  /**
   * Asks where the agent is before its old session is used: a process that was killed said no goodbye, and what is
   * opened on its session would only fail. Without an answer the session is believed.
   */
  async #settleDoubt(target: Target, signal: AbortSignal | undefined): Promise<void> {
    target.doubt ??= withDeadline(this.#renew(target), {
      runtime: this.#host.runtime,
      ms: DOUBT_MS,
      onTimeout: () => new MeshNodeError("ERR_TIMEOUT", "no answer"),
    })
      .catch(() => undefined)
      .finally(() => {
        target.doubt = undefined;
      });
    await withSignal(target.doubt, signal);
  }

  async #agentComes(target: Target, signal: AbortSignal): Promise<Place> {
    let waiting: Target["waiting"];
    const comes = new Promise<Place>((arrived, failed) => {
      waiting = { arrived, failed };
    });
    target.waiting = waiting;
    try {
      return await withSignal(comes, signal);
    } finally {
      if (target.waiting === waiting) target.waiting = undefined;
    }
  }

  /** Asks for a new grant, which also makes the coordinator tell us about the agent. Never rejects. */
  async #renew(target: Target): Promise<void> {
    // Whoever is still being opened asks anyway, unless it only waits for the agent.
    if (target.isRenewing || this.#closed || (target.opening && !target.waiting)) return;
    target.isRenewing = true;
    target.askedAt = this.#host.now();
    try {
      const { grant, record } = await this.#coordinator.requestGrant(target.agentId);
      this.#granted(target, grant);
      const { link } = target;
      if (link && !link.session.isClosed) link.renew(grant);
      if (record) this.onRecord(record);
      else this.onRecordGone(target.agentId);
    } catch (error) {
      target.renewAt = this.#host.now() + RENEW_RETRY_MS;
      const code = error instanceof MeshError ? error.code : undefined;
      this.#host.debug({ agentId: target.agentId, code }, "a grant was not renewed");
      // Refused: nobody comes for us any more. Unreachable: the next connection asks again.
      if (code !== "ERR_COORDINATOR_UNREACHABLE") target.waiting?.failed(error);
      if (error instanceof MeshError && !PASSING_CODES.has(error.code) && this.#isLongGone(target))
        target.link?.close("idle", `the agent went away: ${error.message}`);
    } finally {
      target.isRenewing = false;
    }
  }
}

const newest = (a: NodeRecord | undefined, b: NodeRecord | undefined): NodeRecord | undefined =>
  a && b ? (b.issuedAt >= a.issuedAt ? b : a) : (a ?? b);

const placeOf = (record: NodeRecord | undefined): Place | undefined =>
  record?.homeRegion === undefined ? undefined : { nodeKey: record.nodeKey, region: record.homeRegion };
