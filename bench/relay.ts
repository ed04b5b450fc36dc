// npm run bench -- relay: a session over one relay, each part in a process of its own, beside raw TCP through a Node
// process that only copies bytes; and what the relay itself carries (relay-flows.ts). Everything runs bundled, as it is
// shipped, and nothing leaves this machine.
import { type ChildProcess, fork, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { markHeapAtOnce } from "../mesh/node/collector.ts";
import type { MeshNode, MeshStream } from "../mesh/node/node.ts";
import { meshLab } from "../test/mesh-lab.ts";
import { labNode } from "../test/mesh-lab-node.ts";
import { isFlowsPart, relayFlows, runFlowsPart } from "./relay-flows.ts";
import { median, percentile, type Row, report, rounds, row } from "./report.ts";

const BULK_BYTES = 512 << 20;
const CHUNK = Buffer.alloc(64 * 1024, 0x5a);
const ECHOES = 2_000;
const LOADED_ECHOES = 300;
const ROUNDS = rounds(5, 1);
/** Added round trips for the first byte of a stream, in ms. */
const DELAYS_MS = [20, 50];
const FIRST_BYTES = rounds(40, 5);
/** What a timer of the delaying process may be late by, and the loop of each process on the way. */
const FIRST_BYTE_SLACK_MS = 2;
const FLOWS = 16;
const FLOWS_MS = rounds(6_000, 2_000);
const AGENT_ID = "5a0b5f9e-6f0b-4c55-9a50-3a2f5d0f7c11";
const USER = { kind: "user", userId: AGENT_ID, username: "bench", tokenId: "bench" } as const;

const self = fileURLToPath(import.meta.url);
const [role, ...args] = process.argv.slice(2);

interface Part {
  process: ChildProcess;
  ready: string;
}

async function part(name: string, ...rest: string[]): Promise<Part> {
  const started = fork(self, [name, ...rest]);
  const [ready] = (await once(started, "message")) as [string];
  return { process: started, ready };
}

const ready = (message: string): void => {
  process.send?.(message);
};

/** Writes BULK_BYTES and waits for the one byte that says they arrived. @returns Mbit/s */
async function bulk(stream: NodeJS.ReadWriteStream): Promise<number> {
  const startedAt = performance.now();
  const arrived = once(stream, "data");
  for (let sent = 0; sent < BULK_BYTES; sent += CHUNK.length)
    if (!stream.write(CHUNK)) await once(stream, "drain");
  await arrived;
  return (BULK_BYTES * 8) / 1000 / (performance.now() - startedAt);
}

/** @returns round trips of one byte, in ms */
async function echoes(stream: NodeJS.ReadWriteStream, count: number): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i < count; i++) {
    const startedAt = performance.now();
    stream.write(Buffer.of(i));
    await once(stream, "data");
    times.push(performance.now() - startedAt);
  }
  return times;
}

/** Echoes on one stream while another one is never short of bytes to send. @returns round trips in ms */
async function loadedEchoes(load: NodeJS.ReadWriteStream, echo: NodeJS.ReadWriteStream): Promise<number[]> {
  let isOver = false;
  const flood = (): void => {
    while (!isOver && load.write(CHUNK));
  };
  load.on("drain", flood);
  flood();
  await echoes(echo, LOADED_ECHOES / 10); // the load is up by then
  const times = await echoes(echo, LOADED_ECHOES);
  isOver = true;
  load.off("drain", flood);
  return times;
}

/** Answers one byte per BULK_BYTES received. */
function sink(stream: NodeJS.ReadWriteStream): void {
  let received = 0;
  stream.on("data", (chunk: Buffer) => {
    received += chunk.length;
    if (received < BULK_BYTES) return;
    received -= BULK_BYTES;
    stream.write("k");
  });
  stream.on("error", () => undefined);
}

const listen = (server: net.Server): Promise<number> =>
  new Promise((resolve) =>
    server.listen(0, "127.0.0.1", () => resolve((server.address() as net.AddressInfo).port)),
  );

const connectTo = async (port: string | number): Promise<net.Socket> => {
  const socket = net.connect({ port: Number(port), host: "127.0.0.1", noDelay: true });
  await once(socket, "connect");
  return socket;
};

/** Passes on what `from` brings, each chunk `ms` later. */
function delayed(from: net.Socket, to: net.Socket, ms: number): void {
  from.on("data", (chunk) => setTimeout(() => to.write(chunk), ms));
  from.on("end", () => setTimeout(() => to.end(), ms));
  from.on("error", () => to.destroy());
}

const roles: Record<string, () => Promise<void>> = {
  async lab() {
    markHeapAtOnce(); // as the relay's own process does
    ready((await meshLab()).url);
  },
  async agent() {
    const { node } = await labNode(args[0], { kind: "agent", agentId: AGENT_ID });
    node.listen("sink", sink);
    node.listen("echo", (stream) => stream.pipe(stream));
    node.listen("hello", (stream) => stream.end("h"));
    ready("");
  },
  /** Copies bytes to a port. */
  async proxy() {
    const target = Number(args[0]);
    const server = net.createServer({ noDelay: true }, (near) => {
      const far = net.connect({ port: target, host: "127.0.0.1", noDelay: true });
      near.pipe(far).pipe(near);
      for (const socket of [near, far]) socket.on("error", () => undefined);
    });
    ready(String(await listen(server)));
  },
  /** The same, with a round trip of so many ms. */
  async delay() {
    const [target, rttMs] = args.map(Number);
    const server = net.createServer({ noDelay: true }, (near) => {
      const far = net.connect({ port: target, host: "127.0.0.1", noDelay: true });
      delayed(near, far, rttMs / 2);
      delayed(far, near, rttMs / 2);
    });
    ready(String(await listen(server)));
  },
  async target() {
    const servers = [
      net.createServer({ noDelay: true }, sink),
      net.createServer({ noDelay: true }, (s) => s.pipe(s).on("error", () => undefined)),
    ];
    ready((await Promise.all(servers.map(listen))).join(","));
  },
};

interface Parts {
  labUrl: string;
  /** Of the byte-copy proxies. */
  sinkPort: string;
  echoPort: string;
}

async function session({ labUrl, sinkPort, echoPort }: Parts): Promise<Row[]> {
  const { node } = await labNode(labUrl, USER);
  const mesh = { bulk: await node.dial(AGENT_ID, "sink"), echo: await node.dial(AGENT_ID, "echo") };
  const raw = { bulk: await connectTo(sinkPort), echo: await connectTo(echoPort) };
  const [meshBulk, rawBulk, meshEcho, rawEcho, loaded, idle] = [[], [], [], [], [], []] as number[][];
  for (let round = -1; round < ROUNDS; round++) {
    const bulks = [await bulk(mesh.bulk), await bulk(raw.bulk)];
    const times = [await echoes(mesh.echo, ECHOES), await echoes(raw.echo, ECHOES)];
    const load = await node.dial(AGENT_ID, "sink");
    load.on("error", () => undefined).resume();
    const underLoad = await loadedEchoes(load, mesh.echo);
    load.destroy();
    if (round < 0) continue; // warm-up
    meshBulk.push(bulks[0]);
    rawBulk.push(bulks[1]);
    meshEcho.push(...times[0]);
    rawEcho.push(...times[1]);
    loaded.push(percentile(underLoad, 0.95));
    idle.push(median(times[1]));
  }
  await node.close();
  raw.bulk.destroy();
  raw.echo.destroy();
  const copy = (values: number[]) => ({ name: "byte-copy proxy", values });
  return [
    row({
      id: "bulk",
      what: `one stream, bulk, ${BULK_BYTES >> 20} MB`,
      unit: "Mbit/s",
      better: "higher",
      ours: meshBulk,
      control: copy(rawBulk),
      paired: true,
      goal: { text: ">= 0.5 x control", holds: (_ours, _control, ratio = 0) => ratio >= 0.5 },
    }),
    row({
      id: "echo",
      what: "one-byte echo",
      unit: "ms",
      ours: meshEcho,
      control: copy(rawEcho),
      goal: {
        text: "<= control + 0.15 ms",
        holds: (ours, control) => ours.median <= (control?.median ?? 0) + 0.15,
      },
    }),
    row({
      id: "echo-under-bulk",
      what: "one-byte echo while bulk fills the same session, 95th percentile by round; control: idle",
      unit: "ms",
      ours: loaded,
      control: copy(idle),
      goal: {
        text: "<= control + 20 ms",
        holds: (ours, control) => ours.median <= (control?.median ?? 0) + 20,
      },
    }),
  ];
}

/** From the dial of a stream on an open session to its first byte. @returns ms */
async function firstByte(node: MeshNode): Promise<number> {
  const startedAt = performance.now();
  const stream: MeshStream = await node.dial(AGENT_ID, "hello");
  await once(stream, "data");
  const tookMs = performance.now() - startedAt;
  stream.resume().end();
  return tookMs;
}

/** Between the client and all else lies a line with a round trip of `rttMs`. */
async function firstBytes({ labUrl, echoPort }: Parts, rttMs: number): Promise<Row> {
  const lines = await Promise.all([
    part("delay", new URL(labUrl).port, String(rttMs)),
    part("delay", echoPort, String(rttMs)),
  ]);
  try {
    const { node } = await labNode(`http://127.0.0.1:${lines[0].ready}`, USER);
    await node.connect(AGENT_ID);
    const raw = await connectTo(lines[1].ready);
    const [ours, control] = [[], []] as number[][];
    for (let i = -2; i < FIRST_BYTES; i++) {
      const values = [await firstByte(node), (await echoes(raw, 1))[0]];
      if (i < 0) continue;
      ours.push(values[0]);
      control.push(values[1]);
    }
    await node.close();
    raw.destroy();
    return row({
      id: `first-byte-${rttMs}`,
      what: `first byte of a new stream on an open session, ${rttMs} ms of round trip added`,
      unit: "ms",
      ours,
      control: { name: "one-byte echo, byte-copy proxy", values: control },
      goal: {
        text: `<= control + ${FIRST_BYTE_SLACK_MS} ms`,
        holds: (mine, other) => mine.median <= (other?.median ?? 0) + FIRST_BYTE_SLACK_MS,
      },
    });
  } finally {
    for (const line of lines) line.process.kill();
  }
}

/** Throughput of the relay process for its own CPU time, and how fair it is. */
async function flows(tls: boolean): Promise<Row[]> {
  const results = [];
  for (let round = 0; round < rounds(3, 1); round++)
    results.push(await relayFlows({ tls, flows: FLOWS, ms: FLOWS_MS }));
  const kind = tls ? "TLS" : "plain";
  const goal = tls ? 2 : 5;
  return [
    row({
      id: `per-core-${kind.toLowerCase()}`,
      what: `relay, ${kind}, ${FLOWS} flows of 16 KB packets and a slow reader, per CPU-second of its process`,
      unit: "Gbit",
      better: "higher",
      ours: results.map(({ gbitPerCpuSecond }) => gbitPerCpuSecond),
      goal: { text: `>= ${goal}`, holds: (ours) => ours.median >= goal },
    }),
    row({
      id: `fairness-${kind.toLowerCase()}`,
      what: `the same: least over most that a flow got`,
      unit: "",
      better: "higher",
      ours: results.map(({ fairness }) => fairness),
    }),
    row({
      id: `lost-${kind.toLowerCase()}`,
      what: `the same: share of packets dropped, the slow reader's left out`,
      unit: "",
      ours: results.map(({ lostShare }) => lostShare),
    }),
  ];
}

async function main(): Promise<void> {
  const lab = await part("lab");
  const agent = await part("agent", lab.ready);
  const target = await part("target");
  const [sink, echo] = target.ready.split(",");
  const proxies = await Promise.all([part("proxy", sink), part("proxy", echo)]);
  const parts = { labUrl: lab.ready, sinkPort: proxies[0].ready, echoPort: proxies[1].ready };
  const rows: Row[] = [];
  try {
    rows.push(...(await session(parts)));
    for (const rttMs of DELAYS_MS) rows.push(await firstBytes(parts, rttMs));
  } finally {
    for (const one of [lab, agent, target, ...proxies]) one.process.kill();
  }
  for (const tls of [false, true]) rows.push(...(await flows(tls)));
  report({ group: "relay", title: "one stream over one relay, and the relay itself; loopback", rows });
}

/** Runs this file again as a bundle, beside node_modules, where its packages are found. @returns the exit code */
async function bundledRun(): Promise<number> {
  const folder = fileURLToPath(new URL("../node_modules/.cache/", import.meta.url));
  mkdirSync(folder, { recursive: true });
  const outfile = path.join(folder, `bench-relay-${process.pid}.mjs`);
  const options = { bundle: true, packages: "external", platform: "node", format: "esm" } as const;
  try {
    await build({ entryPoints: [self], outfile, target: "node20", logLevel: "error", ...options });
    return spawnSync(process.execPath, [outfile], { stdio: "inherit" }).status ?? 1;
  } finally {
    rmSync(outfile, { force: true });
  }
}

if (self.endsWith(".ts")) process.exitCode = await bundledRun();
else if (role === undefined) await main();
else if (isFlowsPart(role)) await runFlowsPart(role, args);
else await roles[role]();
