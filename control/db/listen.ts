// LISTEN/NOTIFY between replicas, on one connection of its own (a pool's connection can't listen).
//
// NOTIFY is a hint, not a queue: what is sent while we reconnect is lost. Whoever subscribes therefore gets
// `onGap` after every reconnect, and must then read the rows again.
import type { Knex } from "knex";
import type pg from "pg";
import { DatabaseError } from "./errors.ts";
import { newClient, unreachable } from "./open.ts";

/** PostgreSQL's own limits: a name is an identifier, a payload less than 8000 bytes. */
export const MAX_CHANNEL_BYTES = 63;
export const MAX_PAYLOAD_BYTES = 7_999;
const FIRST_RETRY_MS = 100;
const MAX_RETRY_MS = 10_000;
/** A connection whose other end vanished says nothing, for ever: ask. */
const PROBE_EVERY_MS = 30_000;
const PROBE_TIMEOUT_MS = 10_000;
const SUBSCRIBE_TIMEOUT_MS = 15_000;

export interface ListenerOptions {
  url: string;
  logger?: { warn(message: string): void };
  /** 0 <= n < 1 */
  random?: () => number;
}

export interface Subscription {
  channel: string;
  onPayload: (payload: string) => void;
  onGap?: () => void;
}

/** Wait before attempt n (0, 1, …): doubling up to a limit, each between half and all of it. */
export function retryDelayMs(attempt: number, random: number): number {
  const full = Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(attempt, 16));
  return full / 2 + (full / 2) * random;
}

/**
 * Sends within `knex`'s transaction if it is one: delivered at commit, to every replica and to ourselves.
 *
 * @throws {DatabaseError} ERR_NOTIFY_INVALID when channel or payload is too long
 */
export async function notify(knex: Knex, channel: string, payload: string): Promise<void> {
  checkChannel(channel);
  checkPayload(payload);
  await knex.raw("select pg_notify(?, ?)", [channel, payload]);
}

/** As `notify`, of many payloads in one statement. @throws {DatabaseError} as notify; then none is sent */
export async function notifyAll(knex: Knex, channel: string, payloads: readonly string[]): Promise<void> {
  checkChannel(channel);
  for (const payload of payloads) checkPayload(payload);
  await knex.raw("select pg_notify(?, payload) from unnest(?::text[]) as payload", [
    channel,
    [...payloads],
  ] as never);
}

function checkPayload(payload: string): void {
  if (Buffer.byteLength(payload) > MAX_PAYLOAD_BYTES)
    throw new DatabaseError(
      "ERR_NOTIFY_INVALID",
      `a payload may have ${MAX_PAYLOAD_BYTES} bytes: send the row's id and let the other side read the row`,
    );
}

export class DatabaseListener {
  #options: ListenerOptions;
  #subscriptions = new Map<string, Set<Subscription>>();
  #client: pg.Client | undefined;
  /** Settles when the connection attempt under way has succeeded. */
  #connected: Promise<void> | undefined;
  #retry: NodeJS.Timeout | undefined;
  #probe: NodeJS.Timeout | undefined;
  #attempt = 0;
  #hadConnection = false;
  #closed = false;
  #waiting = new Set<{ resolve(): void; reject(error: Error): void }>();

  constructor(options: ListenerOptions) {
    this.#options = options;
  }

  /**
   * Connects at the first call. Resolves once the server delivers the channel to us.
   *
   * @returns a function that ends the subscription
   * @throws {DatabaseError} ERR_DATABASE_UNREACHABLE when that takes longer than 15 s; ERR_NOTIFY_INVALID
   */
  async subscribe(
    channel: string,
    onPayload: (payload: string) => void,
    onGap?: () => void,
  ): Promise<() => Promise<void>> {
    checkChannel(channel);
    if (this.#closed) throw new DatabaseError("ERR_DATABASE_UNREACHABLE", "this listener was closed");
    const subscription: Subscription = { channel, onPayload, onGap };
    const others = this.#subscriptions.get(channel);
    if (others) others.add(subscription);
    else this.#subscriptions.set(channel, new Set([subscription]));
    const unsubscribe = () => this.#unsubscribe(subscription);
    try {
      if (this.#client) await this.#client.query(`listen ${this.#client.escapeIdentifier(channel)}`);
      else await this.#untilConnected(); // connecting listens to every channel in the map
    } catch (error) {
      await unsubscribe();
      throw error instanceof DatabaseError ? error : unreachable(this.#options.url, error);
    }
    return unsubscribe;
  }

  /** Ends everything; nothing is delivered afterwards. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#subscriptions.clear();
    clearTimeout(this.#retry);
    clearInterval(this.#probe);
    for (const { reject } of this.#waiting) {
      reject(new DatabaseError("ERR_DATABASE_UNREACHABLE", "this listener was closed"));
    }
    const client = this.#client;
    this.#client = undefined;
    await client?.end().catch(() => undefined);
    await this.#connected?.catch(() => undefined);
  }

  async #unsubscribe(subscription: Subscription): Promise<void> {
    const { channel } = subscription;
    const all = this.#subscriptions.get(channel);
    if (!all?.delete(subscription) || all.size > 0) return;
    this.#subscriptions.delete(channel);
    await this.#client?.query(`unlisten ${this.#client.escapeIdentifier(channel)}`).catch(() => undefined);
  }

  async #untilConnected(): Promise<void> {
    this.#connect();
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        settle();
        const late = Object.assign(new Error(`no connection after ${SUBSCRIBE_TIMEOUT_MS} ms`), {
          code: "ETIMEDOUT",
        });
        reject(unreachable(this.#options.url, late));
      }, SUBSCRIBE_TIMEOUT_MS);
      const settle = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(entry);
      };
      const entry = {
        resolve: () => {
          settle();
          resolve();
        },
        reject: (error: Error) => {
          settle();
          reject(error);
        },
      };
      this.#waiting.add(entry);
    });
  }

  #connect(): void {
    if (this.#connected || this.#retry || this.#client || this.#closed) return;
    this.#connected = this.#open()
      .catch((error: Error) => {
        if (this.#closed) return;
        this.#options.logger?.warn(unreachable(this.#options.url, error).message);
        this.#retryLater();
      })
      .finally(() => {
        this.#connected = undefined;
      });
  }

  #retryLater(): void {
    if (this.#closed || this.#retry) return;
    const random = (this.#options.random ?? Math.random)();
    this.#retry = setTimeout(
      () => {
        this.#retry = undefined;
        this.#connect();
      },
      retryDelayMs(this.#attempt++, random),
    );
  }

  async #open(): Promise<void> {
    const client = newClient(this.#options.url, "coder listen");
    let lost = false;
    const onLost = (): void => {
      lost = true;
      if (this.#client !== client) return;
      this.#client = undefined;
      clearInterval(this.#probe);
      void client.end().catch(() => undefined);
      this.#retryLater();
    };
    client.on("error", onLost);
    client.on("end", onLost);
    client.on("notification", ({ channel, payload = "" }) => this.#deliver(channel, payload));
    try {
      await client.connect();
      for (const channel of this.#subscriptions.keys()) {
        await client.query(`listen ${client.escapeIdentifier(channel)}`);
      }
      if (lost || this.#closed) throw new Error("connection lost");
    } catch (error) {
      await client.end().catch(() => undefined);
      throw error;
    }
    this.#client = client;
    this.#attempt = 0;
    this.#probe = setInterval(() => void this.#check(client, onLost), PROBE_EVERY_MS).unref();
    // A channel added while the loop above ran was seen by it (a Map iterates over later additions too).
    for (const { resolve } of this.#waiting) resolve();
    if (this.#hadConnection) this.#announceGap();
    this.#hadConnection = true;
  }

  async #check(client: pg.Client, onLost: () => void): Promise<void> {
    const timer = setTimeout(onLost, PROBE_TIMEOUT_MS);
    await client.query("select 1").catch(onLost);
    clearTimeout(timer);
  }

  #deliver(channel: string, payload: string): void {
    for (const { onPayload } of [...(this.#subscriptions.get(channel) ?? [])]) {
      this.#guard(channel, () => onPayload(payload));
    }
  }

  #announceGap(): void {
    for (const [channel, all] of [...this.#subscriptions]) {
      for (const { onGap } of [...all]) this.#guard(channel, () => onGap?.());
    }
  }

  /** One subscriber's mistake must cost neither the connection nor the other subscribers. */
  #guard(channel: string, call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#options.logger?.warn(`a subscriber of ${channel} failed: ${(error as Error).stack ?? error}`);
    }
  }
}

function checkChannel(channel: string): void {
  if (channel.length > 0 && Buffer.byteLength(channel) <= MAX_CHANNEL_BYTES) return;
  throw new DatabaseError("ERR_NOTIFY_INVALID", `a channel's name has 1 to ${MAX_CHANNEL_BYTES} bytes`);
}
