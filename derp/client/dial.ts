// The connection to a relay below HTTP: the forward proxy if the environment names one, the addresses raced, TLS.
import { lookup as dnsLookup } from "node:dns";
import { connect, isIP, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { EarlyDial } from "./early.ts";
import { RelayError } from "./errors.ts";
import { ResponseHeadReader, requestHead } from "./http-head.ts";
import type { AddressRule, NodeAddresses } from "./nodes.ts";
import { type Environment, proxyAuthorization, proxyFor } from "./proxy.ts";
import type { TrustOptions } from "./tls.ts";

export interface DialOptions extends Omit<TrustOptions, "host"> {
  /** http: or https:, with the path, for example https://relay.example.com/derp. */
  url: URL;
  /** Connect to this IP address; `url`'s host is still what is asked for and verified. */
  address?: string;
  /** The same by address family; a host name is looked up by default. */
  addresses?: NodeAddresses;
  /** For name, TCP and proxy; a relay with others behind it must not use up the whole time. */
  connectMs?: number;
  /** IPv6 was seen to work: it gets a head start. */
  v6KnownGood?: boolean;
  /** Where HTTPS_PROXY, HTTP_PROXY and NO_PROXY are read; the process's by default. */
  environment?: Environment;
  /** Perhaps there already. */
  early?: EarlyDial;
  /** Ends the attempt with its reason. */
  signal: AbortSignal;
}

export interface Dialled {
  socket: Socket | TLSSocket;
  /** Of the TCP connection; undefined through a proxy. */
  family: 4 | 6 | undefined;
  /** The relay's key, told by its certificates: fast start is possible, since TLS ends at the relay itself. */
  relayKey: Uint8Array | undefined;
  /** The upgrade was asked for already, by the ordinary request without a ticket; its answer comes next. */
  isRequested?: boolean;
}

/** How long IPv4 waits where IPv6 is known to work. */
export const V4_DELAY_MS = 200;
/** Between further addresses of one name, and before a name is looked up at all where the map gives an address. */
const NEXT_ADDRESS_MS = 250;
/** Of one family that are tried. */
const MAX_ADDRESSES = 4;

/** One thing to try, this long after the one before it (at once when that failed). */
export type DialStep =
  | { kind: "address"; address: string; afterMs: number }
  | { kind: "lookup"; family: 0 | 4 | 6; afterMs: number };

/** What to try first. Pure. Empty when both families are off. */
export function dialSteps({ v4, v6 }: NodeAddresses, v6KnownGood: boolean): DialStep[] {
  const literal = (rule: AddressRule): string[] => (rule.kind === "literal" ? [rule.address] : []);
  const steps = raceOrder(literal(v4), literal(v6), v6KnownGood);
  // A name server that hangs must not hold up an address that is known.
  const afterMs = steps.length > 0 ? NEXT_ADDRESS_MS : 0;
  if (v4.kind === "resolve" && v6.kind === "resolve") steps.push({ kind: "lookup", family: 0, afterMs });
  else if (v4.kind === "resolve") steps.push({ kind: "lookup", family: 4, afterMs });
  else if (v6.kind === "resolve") steps.push({ kind: "lookup", family: 6, afterMs });
  return steps;
}

/** Both families at once, IPv4 later where IPv6 is known to work; then further addresses, in turn. Pure. */
export function raceOrder(v4: string[], v6: string[], v6KnownGood: boolean): DialStep[] {
  const steps: DialStep[] = [];
  for (let i = 0; i < MAX_ADDRESSES; i++) {
    const nextMs = steps.length === 0 ? 0 : NEXT_ADDRESS_MS;
    if (i < v6.length) steps.push({ kind: "address", address: v6[i], afterMs: nextMs });
    const together = i === 0 && v6.length > 0;
    if (i < v4.length)
      steps.push({
        kind: "address",
        address: v4[i],
        afterMs: together ? (v6KnownGood ? V4_DELAY_MS : 0) : nextMs,
      });
  }
  return steps;
}

/** @throws {RelayError} ERR_RELAY_UNREACHABLE, ERR_RELAY_TLS, or the signal's reason */
export async function dialRelay(options: DialOptions): Promise<Dialled> {
  const early = await options.early?.take(options);
  return early ?? (await dial(options));
}

async function dial(options: DialOptions): Promise<Dialled> {
  const { url, signal } = options;
  signal.throwIfAborted();
  const secure = url.protocol === "https:";
  const host = bareHost(url);
  const port = Number(url.port) || (secure ? 443 : 80);
  const tlsModule = secure ? import("./tls.ts") : undefined; // meanwhile
  const proxy = proxyFor(options.environment ?? process.env, { host, port, secure });
  const budget = new AbortController();
  const onAbort = (): void => budget.abort(signal.reason);
  signal.addEventListener("abort", onAbort);
  const timer =
    options.connectMs === undefined
      ? undefined
      : setTimeout(() => {
          const what = `the relay at ${url.origin} doesn't answer a TCP connection`;
          budget.abort(new RelayError("ERR_RELAY_UNREACHABLE", what));
        }, options.connectMs);
  let socket: Socket;
  try {
    socket = proxy
      ? await throughProxy(proxy, host, port, budget.signal)
      : await connectFirst(
          dialSteps(addressesOf(options, host), options.v6KnownGood ?? false),
          { host, port, origin: url.origin, v6KnownGood: options.v6KnownGood ?? false },
          budget.signal,
        );
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
  const family = proxy ? undefined : isIP(socket.remoteAddress ?? "") === 6 ? 6 : 4;
  if (!tlsModule) return { socket, family, relayKey: undefined };
  const { presentedCertificates, relayKeyOf, startTls, tlsOptions, verifyPin } = await tlsModule;
  const trust = { host, certName: options.certName, ca: options.ca, insecure: options.insecure };
  const secured = await startTls(socket, tlsOptions(trust), signal);
  try {
    const presented = presentedCertificates(secured);
    if (!options.insecure) verifyPin(presented, trust, Date.now());
    const relayKey = secured.getProtocol() === "TLSv1.3" ? relayKeyOf(presented) : undefined;
    return { socket: secured, family, relayKey };
  } catch (error) {
    secured.destroy();
    throw error;
  }
}

function bareHost(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, "");
}

function addressesOf({ address, addresses }: DialOptions, host: string): NodeAddresses {
  if (!address && addresses) return addresses;
  const literal = address ?? host;
  const family = isIP(literal);
  const rule = (wanted: 4 | 6): AddressRule =>
    family === 0
      ? { kind: "resolve" }
      : family === wanted
        ? { kind: "literal", address: literal }
        : { kind: "off" };
  return { host, v4: rule(4), v6: rule(6) };
}

/** The first TCP connection that stands; the others are given up. */
function connectFirst(
  given: DialStep[],
  { host, port, origin, v6KnownGood }: { host: string; port: number; origin: string; v6KnownGood: boolean },
  signal: AbortSignal,
): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const steps = [...given];
    const sockets = new Set<Socket>();
    const reasons: string[] = [];
    let lookups = 0;
    let timer: NodeJS.Timeout | undefined;
    let over = false;
    const settle = (): void => {
      over = true;
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      for (const socket of sockets) socket.destroy();
    };
    const onAbort = (): void => {
      settle();
      reject(signal.reason);
    };
    const failed = (reason: string): void => {
      reasons.push(reason);
      if (!over) next();
    };
    const next = (): void => {
      clearTimeout(timer);
      const step = steps.shift();
      if (!step) {
        if (sockets.size > 0 || lookups > 0) return;
        settle();
        const why =
          reasons.length > 0 ? [...new Set(reasons)].join("; ") : "the relay map turns off all its addresses";
        reject(new RelayError("ERR_RELAY_UNREACHABLE", `can't reach the relay at ${origin}: ${why}`));
        return;
      }
      if (step.kind === "address") tryAddress(step.address);
      else resolveName(step.family);
      if (!over && steps.length > 0) timer = setTimeout(next, steps[0].afterMs);
    };
    const tryAddress = (address: string): void => {
      const socket = connect({ host: address, port, noDelay: true });
      sockets.add(socket);
      const onError = (error: Error): void => {
        sockets.delete(socket);
        failed(error.message || error.name);
      };
      socket.once("error", onError);
      socket.once("connect", () => {
        sockets.delete(socket);
        // Whoever gets the socket sees `close`; until it listens, an error must not end the process.
        socket.on("error", () => {});
        settle();
        resolve(socket);
      });
    };
    const resolveName = (family: 0 | 4 | 6): void => {
      lookups++;
      dnsLookup(host, { all: true, family }, (error, found) => {
        lookups--;
        if (over) return;
        if (error) {
          failed(error.code === "ENOTFOUND" ? `the name ${host} is not known` : error.message);
          return;
        }
        const of = (wanted: number): string[] =>
          found.filter((one) => one.family === wanted).map((one) => one.address);
        steps.push(...raceOrder(of(4), of(6), v6KnownGood));
        next();
      });
    };
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
    else next();
  });
}

/** A tunnel by CONNECT, for TLS and for plain upgrades alike: proxies pass no other upgrade on. */
async function throughProxy(proxy: URL, host: string, port: number, signal: AbortSignal): Promise<Socket> {
  const origin = `${proxy.protocol}//${proxy.host}`; // without the credentials
  if (proxy.protocol !== "http:" && proxy.protocol !== "https:")
    throw new RelayError(
      "ERR_RELAY_UNREACHABLE",
      `the proxy ${origin} is of an unsupported kind; set HTTPS_PROXY to an http: or https: proxy, or NO_PROXY=${host}`,
    );
  const secure = proxy.protocol === "https:";
  const proxyHost = bareHost(proxy);
  const raw = await connectFirst(
    dialSteps(addressesOf({ url: proxy, signal }, proxyHost), false),
    {
      host: proxyHost,
      port: Number(proxy.port) || (secure ? 443 : 80),
      origin: `proxy ${origin}`,
      v6KnownGood: false,
    },
    signal,
  );
  let socket: Socket = raw;
  if (secure) {
    const { startTls, tlsOptions } = await import("./tls.ts");
    socket = await startTls(raw, tlsOptions({ host: proxyHost }), signal);
  }
  const target = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
  const authorization = proxyAuthorization(proxy);
  const head = await exchange(
    socket,
    requestHead("CONNECT", target, {
      Host: target,
      ...(authorization && { "Proxy-Authorization": authorization }),
    }),
    signal,
  );
  if (head.status < 200 || head.status > 299) {
    socket.destroy();
    const hint = head.status === 407 ? "; put user:password@ into the proxy's URL" : "";
    throw new RelayError(
      "ERR_RELAY_UNREACHABLE",
      `the proxy ${origin} answered CONNECT ${target} with status ${head.status}${hint}`,
    );
  }
  if (head.rest.length > 0) socket.unshift(head.rest);
  return socket;
}

/**
 * One request and the head of its answer. The socket is paused afterwards, and destroyed on failure.
 *
 * @throws {RelayError} ERR_RELAY_CLOSED, ERR_RELAY_PROTOCOL, or the signal's reason
 */
export function exchange(
  socket: Socket,
  request: Uint8Array,
  signal: AbortSignal,
): Promise<{ status: number; rest: Uint8Array }> {
  return new Promise((resolve, reject) => {
    const reader = new ResponseHeadReader();
    const settle = (error?: unknown): void => {
      signal.removeEventListener("abort", onAbort);
      socket.off("data", onData).off("error", onError).off("close", onClose);
      socket.pause();
      if (error === undefined) return;
      socket.on("error", () => {}); // of the destruction
      socket.destroy();
      reject(error);
    };
    const onAbort = (): void => settle(signal.reason);
    const onError = (cause: Error): void =>
      settle(new RelayError("ERR_RELAY_CLOSED", `the connection broke: ${cause.message}`, { cause }));
    const onClose = (): void => settle(new RelayError("ERR_RELAY_CLOSED", "closed without an answer"));
    const onData = (chunk: Uint8Array): void => {
      try {
        const head = reader.push(chunk);
        if (!head) return;
        settle();
        resolve(head);
      } catch (error) {
        settle(error);
      }
    };
    signal.addEventListener("abort", onAbort);
    socket.on("data", onData).on("error", onError).on("close", onClose);
    if (signal.aborted) onAbort();
    else socket.write(request);
  });
}
