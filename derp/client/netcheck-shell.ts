// Performs a net check: UDP sockets, timers, and requests for latency. Loaded only when one is made.
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { networkInterfaces } from "node:os";
import { performance } from "node:perf_hooks";
import { parseStunBindingResponse, stunBindingRequest } from "../../mesh/wire/stun.ts";
import { type DialOptions, dialRelay, exchange } from "./dial.ts";
import { RelayError } from "./errors.ts";
import { requestHead } from "./http-head.ts";
import { MAX_CHECK_MS, Netcheck, type NetcheckReport, type PlanOptions, type StunProbe } from "./netcheck.ts";
import { type ClientNode, nodeAddresses, nodeUrl } from "./nodes.ts";

const DEFAULT_STUN_PORT = 3_478;
const TX_ID_BYTES = 12;

export interface NetcheckOptions extends Omit<PlanOptions, "hasV4" | "hasV6"> {
  ca?: string;
  environment?: DialOptions["environment"];
  signal?: AbortSignal;
}

/**
 * One check; resolves within MAX_CHECK_MS, with every socket closed.
 *
 * @throws {RelayError} ERR_RELAY_ABORTED
 */
export async function runNetcheck(options: NetcheckOptions): Promise<NetcheckReport> {
  const { signal } = options;
  const aborted = (): RelayError => new RelayError("ERR_RELAY_ABORTED", "the net check was given up");
  if (signal?.aborted) throw aborted();
  const sockets = new Map<4 | 6, Socket>();
  for (const family of [4, 6] as const) {
    const socket = hasFamily(family) ? await openSocket(family) : undefined;
    if (socket) sockets.set(family, socket);
  }
  const stop = new AbortController();
  const requests: Promise<void>[] = [];
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<NetcheckReport>((resolve, reject) => {
      const addresses = new Map<string, Promise<string>>();
      const core = new Netcheck(
        { ...options, hasV4: sockets.has(4), hasV6: sockets.has(6) },
        () => new Uint8Array(randomBytes(TX_ID_BYTES)),
        performance.now(),
      );
      const perform = (): void => {
        clearTimeout(timer);
        for (const output of core.takeOutputs()) {
          if (output.kind === "done") {
            resolve(output.report);
            return;
          }
          if (output.kind === "https") requests.push(measure(output.region, output.node));
          else sendStun(output.txId, output.probe);
        }
        const at = core.nextTimeout();
        if (at === undefined) return;
        timer = setTimeout(
          () => {
            core.handleTimeout(performance.now());
            perform();
          },
          Math.max(0, at - performance.now()),
        );
      };
      const sendStun = (txId: Uint8Array, { node, family }: StunProbe): void => {
        const failed = (): void => {
          core.onStunFailed(txId, performance.now());
          perform();
        };
        const key = `${family} ${node.Name}`;
        let address = addresses.get(key);
        if (!address) {
          address = stunAddress(node, family);
          address.catch(() => {}); // told to each probe
          addresses.set(key, address);
        }
        address.then(
          (host) => {
            if (stop.signal.aborted) return;
            sockets
              .get(family)
              ?.send(stunBindingRequest(txId), node.STUNPort || DEFAULT_STUN_PORT, host, (error) => {
                if (error && !stop.signal.aborted) failed();
              });
          },
          () => {
            if (!stop.signal.aborted) failed();
          },
        );
      };
      const measure = async (region: number, node: ClientNode): Promise<void> => {
        const latencyMs = await latencyOf(node, options, stop.signal).catch(() => undefined);
        if (stop.signal.aborted) return;
        core.onHttps(region, latencyMs, performance.now());
        perform();
      };
      for (const socket of sockets.values())
        socket.on("message", (bytes) => {
          const response = parseStunBindingResponse(new Uint8Array(bytes));
          if (!response) return;
          core.onStun(response.txId, response, performance.now());
          perform();
        });
      signal?.addEventListener("abort", () => reject(aborted()), { signal: stop.signal });
      perform();
    });
  } finally {
    clearTimeout(timer);
    stop.abort();
    await Promise.all([...sockets.values()].map((socket) => closeSocket(socket)));
    await Promise.all(requests);
  }
}

/** The round trip of a small request on a fresh connection, name, TCP and TLS not counted. @returns ms */
async function latencyOf(node: ClientNode, options: NetcheckOptions, stop: AbortSignal): Promise<number> {
  const url = nodeUrl(node);
  const signal = AbortSignal.any([stop, AbortSignal.timeout(MAX_CHECK_MS)]);
  const { socket } = await dialRelay({
    url,
    addresses: nodeAddresses(node),
    certName: node.CertName,
    insecure: node.InsecureForTests,
    ca: options.ca,
    environment: options.environment,
    signal,
  });
  try {
    const startedAt = performance.now();
    const request = requestHead("GET", `${url.pathname}/latency-check`, {
      Host: url.host,
      Connection: "close",
    });
    const { status } = await exchange(socket, request, signal);
    if (status > 299) throw new RelayError("ERR_RELAY_REFUSED", `status ${status}`, { status });
    return performance.now() - startedAt;
  } finally {
    socket.destroy();
  }
}

async function stunAddress(node: ClientNode, family: 4 | 6): Promise<string> {
  if (node.STUNTestIP && node.STUNTestIP.includes(":") === (family === 6)) return node.STUNTestIP;
  const { v4, v6, host } = nodeAddresses(node);
  const rule = family === 4 ? v4 : v6;
  if (rule.kind === "literal") return rule.address;
  return (await lookup(host, { family })).address;
}

function hasFamily(family: 4 | 6): boolean {
  try {
    return Object.values(networkInterfaces())
      .flatMap((list) => list ?? [])
      .some((one) => one.family === `IPv${family}` && (family === 4 || !/^fe80:/i.test(one.address)));
  } catch {
    return family === 4; // a sandbox may not tell
  }
}

async function openSocket(family: 4 | 6): Promise<Socket | undefined> {
  const socket = createSocket(family === 4 ? { type: "udp4" } : { type: "udp6", ipv6Only: true });
  try {
    socket.bind(0);
    await once(socket, "listening");
  } catch {
    return undefined; // the family is off
  }
  socket.on("error", () => {}); // a probe without answer says enough
  return socket;
}

async function closeSocket(socket: Socket): Promise<void> {
  const closed = once(socket, "close");
  socket.close();
  await closed;
}
