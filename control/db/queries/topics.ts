// Wake-ups between replicas: a row changed, whoever watches it reads it again. A message is only ever a hint
// (LISTEN loses what is said while the connection is away), so every watcher polls slowly as well.
import type { Knex } from "knex";
import { type DatabaseListener, notify, notifyAll } from "../listen.ts";

export type Topic =
  /** A job is waiting; the id is the job's. */
  | "provisioner_job_posted"
  /** A job's log or status changed. */
  | "provisioner_job"
  /** An agent's log, lifecycle or connection changed. */
  | "workspace_agent"
  /** A workspace has a new build, or its build finished, or it was renamed. */
  | "workspace"
  /** What a user may do changed: suspended, roles, deleted. */
  | "user"
  /** API keys of this user were deleted; said by a trigger of the table. */
  | "api_key"
  /** Coordinators among themselves: "<replica> <agent id>,...", records of these changed. */
  | "mesh_node"
  /** "<replica> <user id>,...": grants of these were revoked. */
  | "mesh_grant"
  /** The signing keys changed. */
  | "signing_key";

/** Says within the caller's transaction that `id` changed; heard when it commits. */
export async function announce(knex: Knex, topic: Topic, id: string): Promise<void> {
  await notify(knex, topic, id);
}

/** As `announce`, of many, in one statement. */
export async function announceAll(knex: Knex, topic: Topic, ids: readonly string[]): Promise<void> {
  if (ids.length > 0) await notifyAll(knex, topic, ids);
}

export const POLL_MS = 5_000;

type Callback = (id: string) => void;
export type Watched = [topic: Topic, id: string];
export interface Waiter {
  next(signal: AbortSignal): Promise<void>;
  close(): void;
}

export class Topics {
  #listener: Pick<DatabaseListener, "subscribe">;
  #watchers = new Map<Topic, Map<string, Set<Callback>>>();
  #unsubscribe: (() => Promise<void>)[] = [];
  constructor(listener: Pick<DatabaseListener, "subscribe">) {
    this.#listener = listener;
  }

  /** Subscribes to `topics`, before any watcher of them; those started before stay as they are. */
  async start(topics: Topic[]): Promise<void> {
    for (const topic of topics) {
      if (this.#watchers.has(topic)) continue;
      const watchers = new Map<string, Set<Callback>>();
      this.#watchers.set(topic, watchers);
      this.#unsubscribe.push(
        await this.#listener.subscribe(
          topic,
          (id) => {
            for (const key of [id, "*"]) for (const callback of [...(watchers.get(key) ?? [])]) callback(id);
          },
          // Whatever was said while the connection was away is lost: everyone looks again.
          () => {
            for (const [key, all] of [...watchers]) for (const callback of [...all]) callback(key);
          },
        ),
      );
    }
  }

  async stop(): Promise<void> {
    for (const unsubscribe of this.#unsubscribe.splice(0)) await unsubscribe();
    this.#watchers.clear();
  }

  /** Calls back when `id` (`"*"`: anything) changes. @returns ends it */
  watch(topic: Topic, id: string, callback: Callback): () => void {
    const watchers = this.#watchers.get(topic);
    if (!watchers) throw new Error(`topic ${topic} was not started`);
    const set = watchers.get(id) ?? new Set();
    watchers.set(id, set);
    set.add(callback);
    return () => {
      set.delete(callback);
      if (set.size === 0 && watchers.get(id) === set) watchers.delete(id);
    };
  }

  /**
   * A wait that can't miss a change of any of `watched`: what happens between two `next()` calls ends the second
   * one at once. `next()` resolves after a change, `pollMs`, or the signal.
   */
  waiter(watched: Watched[], pollMs: number = POLL_MS): Waiter {
    let changed = false;
    let wake: (() => void) | undefined;
    const ends = watched.map(([topic, id]) =>
      this.watch(topic, id, () => {
        changed = true;
        wake?.();
      }),
    );
    return {
      close: () => {
        for (const end of ends) end();
      },
      next: (signal) =>
        new Promise((resolve) => {
          const done = () => {
            clearTimeout(timer);
            signal.removeEventListener("abort", done);
            wake = undefined;
            changed = false;
            resolve();
          };
          const timer = setTimeout(done, pollMs);
          wake = done;
          signal.addEventListener("abort", done);
          if (changed || signal.aborted) done();
        }),
    };
  }
}
