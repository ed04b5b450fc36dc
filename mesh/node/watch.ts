// Who wants to know how the session with an agent is doing.

/** How a peer is reached now. */
export interface PathInfo {
  kind: "relay";
  region: number;
}

export type PeerEvent =
  /** More than 3 s without progress though something is outstanding, or without any way to the agent. Told once. */
  | { kind: "stalled"; forMs: number }
  /** The end of a stall; bytes flow again. */
  | { kind: "resumed"; afterMs: number }
  /** The session started, or goes another way now. */
  | { kind: "path"; path: PathInfo };
export type PeerListener = (event: PeerEvent) => void;

export class Watchers {
  readonly #listeners = new Map<string, Set<PeerListener>>();
  readonly #onError: (error: unknown) => void;

  /** @param onError a listener threw: its own trouble, not the session's */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  add(agentId: string, listener: PeerListener): () => void {
    const listeners = this.#listeners.get(agentId) ?? new Set();
    this.#listeners.set(agentId, listeners);
    const own: PeerListener = (event) => listener(event); // the same function may watch twice
    listeners.add(own);
    return () => {
      listeners.delete(own);
      if (listeners.size === 0 && this.#listeners.get(agentId) === listeners) this.#listeners.delete(agentId);
    };
  }

  tell(agentId: string, event: PeerEvent): void {
    for (const listener of [...(this.#listeners.get(agentId) ?? [])]) {
      try {
        listener(event);
      } catch (error) {
        this.#onError(error);
      }
    }
  }
}
