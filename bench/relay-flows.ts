// How much a relay carries for a second of its processor's time: the real relay process of dist/, many flows of 16 KB
// packets between clients in other processes, with TLS and without, a receiver among them that hardly reads.
import { type ChildProcess, execFileSync, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { keyPair } from "../derp/box.ts";
import { DerpClient } from "../derp/client/client.ts";
import { RelayProcess } from "../derp/server/process.ts";
import { fromBase64, toBase64 } from "../mesh/wire/bytes.ts";

const PACKET_BYTES = 16_384;
/** What the slow reader takes; its sender sends as fast as the others. */
const SLOW_BYTES_PER_SECOND = 1 << 20;
const WARM_UP_MS = 1_000;

export interface FlowsResult {
  /** Bytes of payload that reached receivers, per second of the relay process's user and system time, in Gbit. */
  gbitPerCpuSecond: number;
  /** Least and most that a flow got, the slow one left out, as a ratio. */
  fairness: number;
  /** All flows together. */
  mbitPerSecond: number;
  /** Of what the senders sent, the slow flow left out: what the relay dropped because a receiver was behind. */
  lostShare: number;
}

interface Relay {
  url: string;
  ca: string | undefined;
  pid: number;
}

interface Counts {
  /** By flow; the slow one last. */
  packets: number[];
}

const self = fileURLToPath(import.meta.url);
/** Also seen from the bundle in node_modules/.cache. */
const dist = path.join(
  self.split(`${path.sep}node_modules`)[0].replace(/\/bench\/[^/]*$/, ""),
  "dist/relay.mjs",
);

/** User and system time of a process so far, in s. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1].split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // in ticks, of which Linux shows 100 a second
}

/** @returns a process of this file in a role, and what it said first */
async function part<T>(role: string, ...args: string[]): Promise<{ child: ChildProcess; ready: T }> {
  const child = fork(self, [`flows-${role}`, ...args]);
  const [ready] = (await once(child, "message")) as [T];
  return { child, ready };
}

async function ask<T>(child: ChildProcess, question: object): Promise<T> {
  child.send(question);
  return ((await once(child, "message")) as [T])[0];
}

/** `flows` clients send to as many others for `ms`, through a relay with or without TLS. */
export async function relayFlows(options: { tls: boolean; flows: number; ms: number }): Promise<FlowsResult> {
  const relay = await part<Relay>("relay", options.tls ? "tls" : "plain");
  const count = String(options.flows + 1);
  const receivers = await part<string[]>("receivers", JSON.stringify(relay.ready), count);
  const senders = await part<string[]>(
    "senders",
    JSON.stringify(relay.ready),
    JSON.stringify(receivers.ready),
  );
  try {
    await ask(senders.child, { start: true });
    await new Promise((resolve) => setTimeout(resolve, WARM_UP_MS));
    const before = {
      cpu: cpuSeconds(relay.ready.pid),
      sent: await ask<Counts>(senders.child, {}),
      got: await ask<Counts>(receivers.child, {}),
    };
    const startedAt = performance.now();
    await new Promise((resolve) => setTimeout(resolve, options.ms));
    const got = await ask<Counts>(receivers.child, {});
    const cpu = cpuSeconds(relay.ready.pid) - before.cpu;
    const seconds = (performance.now() - startedAt) / 1_000;
    const sent = await ask<Counts>(senders.child, {});
    const since = (now: Counts, then: Counts) => now.packets.map((packets, i) => packets - then.packets[i]);
    const received = since(got, before.got).slice(0, -1);
    const offered = since(sent, before.sent).slice(0, -1);
    const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
    const bits = sum(received) * PACKET_BYTES * 8;
    return {
      gbitPerCpuSecond: bits / 1e9 / cpu,
      fairness: Math.min(...received) / Math.max(...received),
      mbitPerSecond: bits / 1e6 / seconds,
      lostShare: Math.max(0, 1 - sum(received) / sum(offered)),
    };
  } finally {
    for (const { child } of [senders, receivers]) child.kill();
    relay.child.send({ end: true });
    await once(relay.child, "exit");
  }
}

// --- parts ---

async function relayPart(kind: string): Promise<void> {
  const folder = mkdtempSync(path.join(os.tmpdir(), "bench-relay-"));
  const files = { cert: path.join(folder, "cert.pem"), key: path.join(folder, "key.pem") };
  if (kind === "tls")
    execFileSync(
      "openssl",
      [
        ..."req -x509 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -days 2".split(" "),
        ..."-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout".split(" "),
        ...[files.key, "-out", files.cert],
      ],
      { stdio: "ignore" },
    );
  const relay = new RelayProcess({
    modulePath: dist,
    ...(kind === "tls" && {
      listen: {
        host: "127.0.0.1",
        port: 0,
        tls: { certFiles: [files.cert], keyFiles: [files.key], minVersion: "TLSv1.2" },
      },
    }),
  });
  const http = createServer();
  http.on("upgrade", (request, socket, head) => relay.handleUpgrade(request, socket, head));
  await relay.ready;
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  const url =
    kind === "tls"
      ? `https://127.0.0.1:${relay.port}/derp`
      : `http://127.0.0.1:${(http.address() as net.AddressInfo).port}/derp`;
  const ca = kind === "tls" ? readFileSync(files.cert, "utf8") : undefined;
  rmSync(folder, { recursive: true });
  process.send?.({ url, ca, pid: relay.pid });
  await once(process, "message");
  await relay.close();
  process.exit(0);
}

async function clientOf({ url, ca }: Relay): Promise<DerpClient> {
  const client = new DerpClient({ url, ca, privateKey: keyPair().privateKey });
  client.on("close", (error) => {
    console.error(`a client of the relay was closed: ${error?.message ?? "in order"}`);
    process.exit(1);
  });
  const confirmed = once(client, "confirmed");
  await client.connect();
  await confirmed;
  return client;
}

async function receiversPart(relay: Relay, count: number): Promise<void> {
  const packets = new Array<number>(count).fill(0);
  const clients = await Promise.all(Array.from({ length: count - 1 }, () => clientOf(relay)));
  for (const [i, client] of clients.entries()) client.on("packet", () => packets[i]++);
  const slow = await slowClient(relay);
  clients.push(slow);
  process.on("message", () => process.send?.({ packets } satisfies Counts));
  process.send?.(clients.map(({ publicKey }) => toBase64(publicKey)));
}

/** A client behind a proxy that passes on SLOW_BYTES_PER_SECOND towards it. */
async function slowClient(relay: Relay): Promise<DerpClient> {
  const { port } = new URL(relay.url);
  const proxy = net.createServer((near) => {
    const far = net.connect(Number(port), "127.0.0.1");
    near.pipe(far);
    far.on("data", (chunk) => {
      near.write(chunk);
      far.pause();
      setTimeout(() => far.resume(), (chunk.length / SLOW_BYTES_PER_SECOND) * 1_000);
    });
    for (const socket of [near, far]) socket.on("error", () => undefined);
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  const url = new URL(relay.url);
  url.port = String((proxy.address() as net.AddressInfo).port);
  return clientOf({ ...relay, url: url.href });
}

async function sendersPart(relay: Relay, keys: string[]): Promise<void> {
  const packets = new Array<number>(keys.length).fill(0);
  const clients = await Promise.all(keys.map(() => clientOf(relay)));
  const data = Buffer.alloc(PACKET_BYTES, 0x5a);
  process.on("message", (message: { start?: boolean }) => {
    if (message.start)
      for (const [i, client] of clients.entries()) {
        const key = fromBase64(keys[i]);
        const send = (): void => {
          while (client.send(key, data)) packets[i]++;
        };
        client.on("drain", send);
        send();
      }
    process.send?.({ packets } satisfies Counts);
  });
  process.send?.([]);
}

/** Whether a process of the bundle was started as a part of this file. */
export const isFlowsPart = (role: string): boolean => role.startsWith("flows-");

export async function runFlowsPart(role: string, [first, second]: string[]): Promise<void> {
  if (role === "flows-relay") await relayPart(first);
  else if (role === "flows-receivers") await receiversPart(JSON.parse(first) as Relay, Number(second));
  else await sendersPart(JSON.parse(first) as Relay, JSON.parse(second) as string[]);
}
