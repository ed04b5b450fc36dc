// npm run bench -- relay: one stream of a session over one relay, each part in a process of its own, beside raw TCP
// through a Node process that only copies bytes. Prints both and the ratio; nothing leaves this machine.
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { fileURLToPath } from "node:url";
import { meshLab } from "../test/mesh-lab.ts";
import { labNode } from "../test/mesh-lab-node.ts";
import { hardware, median, percentile, print } from "./report.ts";

const BULK_BYTES = 512 << 20;
const CHUNK = Buffer.alloc(64 * 1024, 0x5a);
const ECHOES = 2_000;
const ROUNDS = 5;
const AGENT_ID = "5a0b5f9e-6f0b-4c55-9a50-3a2f5d0f7c11";

const self = fileURLToPath(import.meta.url);
const [role, ...args] = process.argv.slice(2);

async function child(name: string, ...rest: string[]): Promise<{ process: ChildProcess; ready: string }> {
  const started = fork(self, [name, ...rest], { execArgv: ["--import", "tsx"] });
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
async function echoes(stream: NodeJS.ReadWriteStream): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; i < ECHOES; i++) {
    const startedAt = performance.now();
    stream.write(Buffer.of(i));
    await once(stream, "data");
    times.push(performance.now() - startedAt);
  }
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

const roles: Record<string, () => Promise<void>> = {
  async lab() {
    ready((await meshLab()).url);
  },
  async agent() {
    const { node } = await labNode(args[0], { kind: "agent", agentId: AGENT_ID });
    node.listen("sink", sink);
    node.listen("echo", (stream) => stream.pipe(stream));
    ready("");
  },
  async proxy() {
    const target = Number(args[0]);
    const server = net.createServer({ noDelay: true }, (near) => {
      const far = net.connect({ port: target, host: "127.0.0.1", noDelay: true });
      near.pipe(far).pipe(near);
      for (const socket of [near, far]) socket.on("error", () => undefined);
    });
    ready(String(await listen(server)));
  },
  async target() {
    const servers = [
      net.createServer({ noDelay: true }, sink),
      net.createServer({ noDelay: true }, (s) => s.pipe(s)),
    ];
    ready((await Promise.all(servers.map(listen))).join(","));
  },
};

async function main(): Promise<void> {
  const lab = await child("lab");
  const agent = await child("agent", lab.ready);
  const target = await child("target");
  const [sinkPort, echoPort] = target.ready.split(",");
  const proxies = await Promise.all([child("proxy", sinkPort), child("proxy", echoPort)]);
  const children = [lab, agent, target, ...proxies];
  try {
    const { node } = await labNode(lab.ready, {
      kind: "user",
      userId: AGENT_ID,
      username: "bench",
      tokenId: "bench",
    });
    const mesh = { bulk: await node.dial(AGENT_ID, "sink"), echo: await node.dial(AGENT_ID, "echo") };
    const connect = async (port: string) => {
      const socket = net.connect({ port: Number(port), host: "127.0.0.1", noDelay: true });
      await once(socket, "connect");
      return socket;
    };
    const raw = { bulk: await connect(proxies[0].ready), echo: await connect(proxies[1].ready) };
    const [meshBulk, rawBulk, meshEcho, rawEcho] = [[], [], [], []] as number[][];
    for (let round = -1; round < ROUNDS; round++) {
      const results = [await bulk(mesh.bulk), await bulk(raw.bulk)];
      const times = [await echoes(mesh.echo), await echoes(raw.echo)];
      if (round < 0) continue; // warm-up
      meshBulk.push(results[0]);
      rawBulk.push(results[1]);
      meshEcho.push(...times[0]);
      rawEcho.push(...times[1]);
    }
    print({
      title: "one stream over one relay, plain HTTP, loopback",
      hardware: hardware(),
      rows: [
        {
          what: `bulk, ${BULK_BYTES >> 20} MB, Mbit/s`,
          n: ROUNDS,
          ours: median(meshBulk),
          control: median(rawBulk),
          controlName: "byte-copy proxy",
          ratio: median(meshBulk.map((value, i) => value / rawBulk[i])),
        },
        {
          what: "one-byte echo, median ms",
          n: meshEcho.length,
          ours: median(meshEcho),
          control: median(rawEcho),
          controlName: "byte-copy proxy",
          ratio: median(meshEcho) / median(rawEcho),
        },
        {
          what: "one-byte echo, p99 ms",
          n: meshEcho.length,
          ours: percentile(meshEcho, 0.99),
          control: percentile(rawEcho, 0.99),
          controlName: "byte-copy proxy",
          ratio: percentile(meshEcho, 0.99) / percentile(rawEcho, 0.99),
        },
      ],
    });
    await node.close();
    raw.bulk.destroy();
    raw.echo.destroy();
  } finally {
    for (const one of children) one.process.kill();
  }
}

await (role === undefined ? main() : roles[role]());
