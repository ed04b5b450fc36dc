// Is the peer there? Says when to ask it, and when there was no progress for so long that people should hear of it.
// Idle sessions stay quiet: they have their keepalive.

/** No acknowledgement for this long though one is due, or no way to the peer at all: stalled. */
export const STALL_AFTER_MS = 3_000;
/**
 * A session in use that heard nothing for this long asks. The agent waits a little longer, so that only one of two
 * asks. With STALL_AFTER_MS, a path that died silently shows within 4 s of the last sign of life.
 */
export const ASK_AFTER_MS = { client: 1_000, agent: 1_500 } as const;
/** In use: bytes of streams went either way within this time. Then silence is an answer as good as any. */
export const IN_USE_MS = 10_000;

export type LivenessNews = { kind: "stalled"; forMs: number } | { kind: "flowing"; afterMs: number };

/** Pure: `now` is monotonic ms. */
export class Liveness {
  readonly #askAfterMs: number;
  #heardAt: number;
  #usedAt = Number.NEGATIVE_INFINITY;
  /** Something is due from the peer since then, and nothing of it came. */
  #waitingSince: number | undefined;
  /** As #waitingSince when the stall was told. */
  #stalledSince: number | undefined;

  constructor(role: "client" | "agent", now: number) {
    this.#askAfterMs = ASK_AFTER_MS[role];
    this.#heardAt = now;
  }

  get isStalled(): boolean {
    return this.#stalledSince !== undefined;
  }

  /** Bytes of a stream left or came. */
  onUse(now: number): void {
    this.#usedAt = now;
  }

  /** A packet came. */
  onHeard(now: number): void {
    this.#heardAt = now;
  }

  /** Something of ours was acknowledged. @returns news when that ends a stall */
  onProgress(now: number): LivenessNews | undefined {
    if (this.#waitingSince !== undefined) this.#waitingSince = now;
    if (this.#stalledSince === undefined) return undefined;
    const afterMs = now - this.#stalledSince;
    this.#stalledSince = undefined;
    return { kind: "flowing", afterMs };
  }

  /** @param isWaiting an acknowledgement is due, something can't leave, or there is no way to the peer */
  update(isWaiting: boolean, now: number): void {
    if (!isWaiting) this.#waitingSince = undefined;
    else this.#waitingSince ??= now;
  }

  /** When to ask the peer whether it is there; of use only while nothing else is under way to it. */
  askAt(): number | undefined {
    const at = this.#heardAt + this.#askAfterMs;
    return at < this.#usedAt + IN_USE_MS ? at : undefined;
  }

  /** When `check` may have news. */
  stallAt(): number | undefined {
    if (this.#waitingSince === undefined || this.isStalled) return undefined;
    return this.#waitingSince + STALL_AFTER_MS;
  }

  /** @returns news once per stall */
  check(now: number): LivenessNews | undefined {
    const at = this.stallAt();
    if (at === undefined || now < at) return undefined;
    this.#stalledSince = this.#waitingSince!;
    return { kind: "stalled", forMs: now - this.#stalledSince };
  }
}
