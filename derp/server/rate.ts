// How much a client may send: token buckets that make the reader wait, never drop. No clock: `now` (ms) is given.
import * as z from "zod";
import { KEY_BYTES, MAX_PACKET_BYTES } from "../../mesh/wire/derp.ts";

/** Whatever is asked for, one packet of full size fits a bucket. */
export const MIN_BURST_BYTES = KEY_BYTES + MAX_PACKET_BYTES;

export interface Rate {
  /** 0: no limit. */
  bytesPerSecond: number;
  /** Raised to MIN_BURST_BYTES. */
  burstBytes: number;
}

export const NO_LIMIT: Rate = { bytesPerSecond: 0, burstBytes: 0 };

/** Tokens may go below zero, by what was read at once; then the reader waits until they are back at zero. */
export class TokenBucket {
  #perMs = 0;
  #burst = 0;
  #tokens = 0;
  #at = 0;
  #minBurst: number;

  /** `minBurst`: a smaller burst is raised to it. */
  constructor(rate: Rate, now: number, minBurst = MIN_BURST_BYTES) {
    this.#minBurst = minBurst;
    this.configure(rate, now);
    this.#tokens = this.#burst;
  }

  /** Changes the rate. Debt stays, so that a client can't be freed of it by a reload; the rest is cut to the burst. */
  configure({ bytesPerSecond, burstBytes }: Rate, now: number): void {
    const wasOff = this.#perMs === 0;
    this.#refill(now);
    this.#perMs = bytesPerSecond / 1_000;
    this.#burst = bytesPerSecond > 0 ? Math.max(burstBytes, this.#minBurst) : 0;
    if (wasOff) this.#tokens = this.#burst;
    this.#tokens = Math.min(this.#tokens, this.#burst);
    this.#at = now;
  }

  /** @returns ms to wait before anything more is read; 0: go on */
  take(bytes: number, now: number): number {
    if (this.#perMs === 0) return 0;
    this.#refill(now);
    this.#tokens -= bytes;
    return this.waitMs(now);
  }

  /** Takes tokens only if there are enough. */
  tryTake(tokens: number, now: number): boolean {
    if (this.#perMs === 0) return true;
    this.#refill(now);
    if (this.#tokens < tokens) return false;
    this.#tokens -= tokens;
    return true;
  }

  waitMs(now: number): number {
    if (this.#perMs === 0) return 0;
    this.#refill(now);
    return this.#tokens >= 0 ? 0 : -this.#tokens / this.#perMs;
  }

  #refill(now: number): void {
    this.#tokens = Math.min(this.#burst, this.#tokens + Math.max(0, now - this.#at) * this.#perMs);
    this.#at = now;
  }
}

const bytes = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional();

/** The file an operator writes; names as other relays have them, and two kinds of ours. Absent or 0: no limit. */
const RateFile = z.strictObject({
  PerClientRateLimitBytesPerSec: bytes,
  PerClientRateBurstBytes: bytes,
  PerSubjectRateLimitBytesPerSec: bytes,
  PerSubjectRateBurstBytes: bytes,
  AnonymousRateLimitBytesPerSec: bytes,
  AnonymousRateBurstBytes: bytes,
});

export interface RateConfig {
  /** Each connection. */
  perClient?: Rate;
  /** All connections that came with tickets of one subject, together. */
  perSubject?: Rate;
  /** All connections without a ticket from one address, together. */
  anonymous?: Rate;
}

/** @throws {Error} that says what is wrong with the file */
export function parseRateConfig(json: string): RateConfig {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (cause) {
    throw new Error("the rate configuration is not JSON", { cause });
  }
  const parsed = RateFile.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new Error(
      `the rate configuration is wrong at ${issue.path.join(".") || "its top"}: ${issue.message}`,
    );
  }
  const rate = (bytesPerSecond: number | undefined, burstBytes = 0): Rate | undefined =>
    bytesPerSecond === undefined ? undefined : { bytesPerSecond, burstBytes };
  const file = parsed.data;
  return {
    perClient: rate(file.PerClientRateLimitBytesPerSec, file.PerClientRateBurstBytes),
    perSubject: rate(file.PerSubjectRateLimitBytesPerSec, file.PerSubjectRateBurstBytes),
    anonymous: rate(file.AnonymousRateLimitBytesPerSec, file.AnonymousRateBurstBytes),
  };
}
