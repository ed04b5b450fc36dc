import type { Knex } from "knex";
import { Signer } from "../../coordinator/signing.ts";
import { loadSigningKeys, nextKeyChange, rotateWhenDue } from "../db/queries/signing.ts";
import type { Topics } from "../db/queries/topics.ts";

/** How often a key's age is looked at. */
const CHECK_EVERY_MS = 3_600_000;
const FAILED_RETRY_MS = 30_000;
/** A clock that is a little behind must not find the change still to come, again and again. */
const SLACK_MS = 50;

export interface KeyKeeperOptions {
  knex: Knex;
  /** Started with "signing_key". */
  topics: Topics;
  now: () => Date;
  /** `isRevoked`: keys were taken out of use at once. */
  onChange(signer: Signer, isRevoked: boolean): void;
  onError(error: unknown): void;
}

/** Keeps up with the deployment's signing keys: rotates them when they are old, and follows what others did. */
export async function keepSigningKeys(options: KeyKeeperOptions): Promise<{ signer: Signer; stop(): void }> {
  const { knex, topics, now, onChange, onError } = options;
  let timer: NodeJS.Timeout | undefined;
  let stopped = false;
  let tail: Promise<unknown> = Promise.resolve();

  async function load(): Promise<Signer> {
    const keys = await loadSigningKeys(knex, now());
    const changeMs = (nextKeyChange(keys, now())?.getTime() ?? Number.POSITIVE_INFINITY) - now().getTime();
    plan(Math.min(CHECK_EVERY_MS, changeMs + SLACK_MS));
    return new Signer(keys);
  }
  function plan(ms: number): void {
    clearTimeout(timer);
    if (!stopped) timer = setTimeout(() => refresh(false), ms);
  }
  /** One after the other: what was read earlier must not be put in place later. */
  function refresh(isRevoked: boolean): void {
    tail = tail.then(async () => {
      if (stopped) return;
      try {
        await rotateWhenDue(knex, now());
        const signer = await load();
        if (!stopped) onChange(signer, isRevoked);
      } catch (error) {
        onError(error);
        plan(FAILED_RETRY_MS);
      }
    });
  }

  const unwatch = topics.watch("signing_key", "*", (what) => refresh(what === "revoked"));
  const signer = await load();
  return {
    signer,
    stop() {
      stopped = true;
      clearTimeout(timer);
      unwatch();
    },
  };
}
