// A STUN server beside the relay: tells nodes the address their datagrams come from (RFC 8489).
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { performance } from "node:perf_hooks";
import {
  DEFAULT_STUN_PORT,
  isStun,
  parseStunBindingRequest,
  stunBindingResponse,
} from "../../mesh/wire/stun.ts";
import { counter, type Metric } from "./metrics.ts";
import { addressGroup, type DerpLogger } from "./server.ts";

export interface StunServerOptions {
  /** UDP; 3478 by default, 0: any free one. */
  port?: number;
  /** Address to listen on; all by default, IPv4 and IPv6. */
  host?: string;
  logger?: DerpLogger;
  limits?: Partial<StunLimits>;
}

export interface StunLimits {
  /** Answers to one source (IPv6: one /64) at once and per second. */
  burstPerSource: number;
  perSecondPerSource: number;
  /** Answers per second in all: whoever forges many sources can't make us a hose. */
  perSecond: number;
  /** Sources remembered; when there are more, those silent longest are forgotten. */
  sources: number;
}

export const DEFAULT_STUN_LIMITS: StunLimits = {
  // A full check of a node is some ten requests; a hundred nodes may sit behind one address.
  burstPerSource: 256,
  perSecondPerSource: 64,
  perSecond: 20_000,
  sources: 16_384,
};

export interface StunCounters {
  answered: number;
  notStun: number;
  malformed: number;
  limited: number;
  sendErrors: number;
}

/** Tokens per source, refilled with time; the core of the limits, without a clock. `now`: ms. */
export class SourceLimiter {
  #limits: StunLimits;
  #sources = new Map<string, { tokens: number; at: number }>();
  #total: { tokens: number; at: number } | undefined;

  constructor(limits: StunLimits) {
    this.#limits = limits;
  }

  get sources(): number {
    return this.#sources.size;
  }

  take(source: string, now: number): boolean {
    const { burstPerSource, perSecondPerSource, perSecond, sources } = this.#limits;
    this.#total ??= { tokens: perSecond, at: now };
    if (!refilled(this.#total, perSecond, perSecond, now)) return false;
    const entry = this.#sources.get(source) ?? { tokens: burstPerSource, at: now };
    this.#sources.delete(source);
    this.#sources.set(source, entry); // last in order
    if (this.#sources.size > sources) this.#sources.delete(this.#sources.keys().next().value!);
    if (!refilled(entry, burstPerSource, perSecondPerSource, now)) return false;
    entry.tokens--;
    this.#total.tokens--;
    return true;
  }
}

/** @returns whether there is a token */
function refilled(
  bucket: { tokens: number; at: number },
  burst: number,
  perSecond: number,
  now: number,
): boolean {
  bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1_000) * perSecond);
  bucket.at = now;
  return bucket.tokens >= 1;
}

export class StunServer {
  readonly port: number;
  readonly counters: StunCounters = { answered: 0, notStun: 0, malformed: 0, limited: 0, sendErrors: 0 };
  #socket: Socket;
  #limiter: SourceLimiter;
  #closed: Promise<void> | undefined;

  private constructor(socket: Socket, limits: StunLimits) {
    this.#socket = socket;
    this.#limiter = new SourceLimiter(limits);
    this.port = socket.address().port;
    socket.on("message", (bytes, from) => this.#message(bytes, from));
    socket.on("error", () => this.counters.sendErrors++); // of datagrams; the socket lives on
  }

  /**
   * Listens.
   *
   * @returns undefined when the port can't be had: that is logged, and relaying works without
   */
  static async listen(options: StunServerOptions = {}): Promise<StunServer | undefined> {
    const port = options.port ?? DEFAULT_STUN_PORT;
    const limits = { ...DEFAULT_STUN_LIMITS, ...options.limits };
    const hosts = options.host === undefined ? ["::", "0.0.0.0"] : [options.host];
    let failure: Error | undefined;
    for (const host of hosts) {
      // A machine without IPv6 refuses "::".
      const socket = createSocket({ type: host.includes(":") ? "udp6" : "udp4", ipv6Only: false });
      try {
        await bind(socket, port, host);
        return new StunServer(socket, limits);
      } catch (error) {
        socket.close();
        if (!(error instanceof Error)) throw error;
        failure = error;
        if ("code" in error && error.code === "EADDRINUSE") break;
      }
    }
    options.logger?.warn(
      { port, err: failure?.message },
      "no STUN server: the port can't be used. Nodes find their addresses by other STUN servers of the relay map, " +
        "if there are any; choose another with --derp-server-stun-address",
    );
    return undefined;
  }

  metrics(): Metric[] {
    const { answered, notStun, malformed, limited } = this.counters;
    return [
      counter("stun_answered", "Binding requests answered.", answered),
      counter("stun_not_stun", "Datagrams that were no STUN.", notStun),
      counter("stun_malformed", "STUN messages that were no well-formed binding request.", malformed),
      counter("stun_limited", "Binding requests beyond the limits.", limited),
    ];
  }

  close(): Promise<void> {
    this.#closed ??= new Promise((resolve) => {
      this.#socket.close(() => resolve());
    });
    return this.#closed;
  }

  #message(bytes: Uint8Array, { address, port }: RemoteInfo): void {
    const request = isStun(bytes) ? parseStunBindingRequest(bytes) : undefined;
    if (!request) {
      if (isStun(bytes)) this.counters.malformed++;
      else this.counters.notStun++;
      return;
    }
    const response = stunBindingResponse(request.txId, { address, port });
    // An IPv6 answer is 4 bytes longer than the usual request, and WebRTC's bare ones are shorter still: limits, not
    // sizes, keep us from being worth abusing.
    if (!this.#limiter.take(addressGroup(address), performance.now())) {
      this.counters.limited++;
      return;
    }
    this.counters.answered++;
    this.#socket.send(response, port, address, (error) => {
      if (error) this.counters.sendErrors++;
    });
  }
}

function bind(socket: Socket, port: number, address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once("error", reject);
    socket.bind({ port, address }, () => {
      socket.off("error", reject);
      resolve();
    });
  });
}
