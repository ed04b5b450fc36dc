// Whether load that passes by the API, or builds, make others wait. The server, its database and who measures run on
// one core; the relay's process, the agent, the clients and their load on the other (Linux, `taskset`).
//
//   npm run build && npx tsx test/soak/isolation.ts [--rounds 3] [--seconds 8] [--relay load|api] [--only api|builds]
//
// 1. API requests, one at a time with pauses, without and with a saturated relay: bulk between two nodes, bulk over
//    SSH and 20 forwarded connections at once. Wanted: p99 with load at most twice that without.
// 2. A counter that a shell in the workspace echoes, without and with three builds at once: gaps between its lines.
// --relay api leaves the relay's process on the API's core, as on a machine that has one: for comparison.
import { execFileSync, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { hardware, percentile } from "../../bench/report.ts";
import { SshLab } from "../e2e/lab.ts";
import { bundle } from "../e2e/sandbox.ts";
import { PASSWORD, templates } from "../e2e/server.ts";
import { descendant, look } from "./watch.ts";

const { values: flags } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "8" },
    relay: { type: "string", default: "load" },
    only: { type: "string" },
  },
});
const ROUNDS = Number(flags.rounds);
const WINDOW_MS = Number(flags.seconds) * 1_000;
const API_CORE = "0";
const LOAD_CORE = "1";
/** One user may ask 512 times a minute. */
const PEOPLE = 12;
const REQUEST_EVERY_MS = 10;
const CONNECTIONS = 20;
const ECHO_EVERY_MS = 20;
const WARM_UP_MS = 1_500;
const BUILDS = 3;
const MAX_RATIO = 2;
/** Above this, before anything of ours runs, the ratio says nothing about us. */
const QUIET_LOAD = 0.5;
const [loadAtStart] = os.loadavg();

/** All threads of a process, and those it starts from now on. */
const pin = (pid: number, core: string): void =>
  void execFileSync("taskset", ["-apc", core, String(pid)], { stdio: "ignore" });

/** Bytes to and fro over all connections at once, in a process of its own. $1: its echo's port is printed; stdin: where. */
const PUMP = `
const net = require("node:net");
const echo = net.createServer((socket) => socket.on("error", () => {}).pipe(socket)).listen(0, "127.0.0.1", () => console.log(echo.address().port));
process.stdin.once("data", (text) => {
  const block = Buffer.alloc(65536);
  for (let i = 0; i < ${CONNECTIONS}; i++) {
    const socket = net.connect(Number(text), "127.0.0.1");
    socket.on("error", () => {}).resume();
    const write = () => { while (socket.write(block)); };
    socket.on("drain", write).on("connect", write);
  }
});`;

interface Load {
  stop(): Promise<void>;
}

/** Everything at once, on the load's core. */
async function saturate(lab: SshLab): Promise<Load> {
  const env = { ...lab.sandbox.env, CODER_CONFIG_DIR: lab.alice.configDir };
  const start = (args: readonly string[], stdout: "pipe" | "ignore" = "pipe") =>
    spawn("taskset", ["-c", LOAD_CORE, ...args], { env, stdio: ["pipe", stdout, "ignore"] });
  const coder = [process.execPath, bundle];
  const pump = start([process.execPath, "-e", PUMP]);
  const firstLine = async (child: typeof pump, pattern: RegExp): Promise<string> => {
    let text = "";
    for await (const chunk of child.stdout?.iterator({ destroyOnReturn: false }) ?? []) {
      text += chunk;
      const found = pattern.exec(text)?.[1];
      if (found) return found;
    }
    throw new Error(`ended before it said ${pattern}: ${text}`);
  };
  const target = await firstLine(pump, /(\d+)\n/);
  const forward = start([...coder, "port-forward", "dev", "--tcp", `0:${target}`]);
  const port = await firstLine(forward, /127\.0\.0\.1:(\d+) ->/);
  // Their bytes must not pass through this process, which measures.
  const bulk = start(["ssh", "-F", lab.sshConfig, "coder.dev", "cat /dev/zero"], "ignore");
  const nodes = start([...coder, "ssh", "dev", "--", "cat /dev/zero"], "ignore");
  const all = [pump, forward, bulk, nodes];
  forward.stdout?.resume();
  pump.stdin?.write(port);
  return {
    async stop() {
      const ended = all.map((child) => new Promise((resolve) => child.once("exit", resolve)));
      for (const child of all) child.kill("SIGTERM");
      await Promise.all(ended);
    },
  };
}

/** Durations in ms of requests that a page of the dashboard makes, each with a token of its own turn. */
async function requests(url: string, tokens: readonly string[]): Promise<number[]> {
  const taken: number[] = [];
  const until = performance.now() + WINDOW_MS;
  for (let i = 0; performance.now() < until; i++) {
    const pathname = i % 2 ? "/users/me" : "/workspaces";
    const startedAt = performance.now();
    const answer = await fetch(`${url}/api/v2${pathname}`, {
      headers: { "coder-session-token": tokens[i % tokens.length] },
    });
    await answer.arrayBuffer();
    if (answer.status !== 200) throw new Error(`${pathname} answers ${answer.status}`);
    taken.push(performance.now() - startedAt);
    await delay(REQUEST_EVERY_MS);
  }
  return taken;
}

interface Row {
  what: string;
  n: number;
  "median ms": string;
  "p99 ms": string;
  "worst ms": string;
}

const row = (what: string, values: number[]): Row => ({
  what,
  n: values.length,
  "median ms": percentile(values, 0.5).toFixed(2),
  "p99 ms": percentile(values, 0.99).toFixed(2),
  "worst ms": Math.max(...values).toFixed(2),
});

/** @returns the ratio of the p99 with load to that without */
async function api(lab: SshLab): Promise<number> {
  const tokens = [];
  for (let i = 0; i < PEOPLE; i++) {
    const email = `p${i}@example.com`;
    await lab.alice.api("POST", "/users", { username: `p${i}`, email, password: PASSWORD });
    const { body } = await lab.alice.api("POST", `/users/p${i}/keys`);
    tokens.push((JSON.parse(body) as { key: string }).key);
  }
  await requests(lab.server.url, tokens); // warm-up
  const [quiet, loaded]: number[][] = [[], []];
  const server = lab.server.running.child.pid as number;
  const relay = descendant(server, /relay\.mjs/) as number;
  const cpu = (): number => look(relay)?.cpuSeconds ?? 0;
  let relaySeconds = 0;
  for (let round = 0; round < ROUNDS; round++) {
    quiet.push(...(await requests(lab.server.url, tokens)));
    const load = await saturate(lab);
    try {
      await delay(WARM_UP_MS);
      const before = cpu();
      loaded.push(...(await requests(lab.server.url, tokens)));
      relaySeconds += cpu() - before;
    } finally {
      await load.stop();
    }
    await delay(500);
  }
  console.table([row("API, no load", quiet), row("API, relay saturated", loaded)]);
  const share = (relaySeconds * 1_000) / (ROUNDS * WINDOW_MS);
  const ratio = percentile(loaded, 0.99) / percentile(quiet, 0.99);
  if (loadAtStart > QUIET_LOAD)
    console.log(
      `the machine was busy with something else (load ${loadAtStart.toFixed(1)}), which the load drove to the API's core: no verdict`,
    );
  console.log(
    `the relay used ${(share * 100).toFixed(0)} % of a core; p99 with load / without: ${ratio.toFixed(2)}`,
  );
  return ratio;
}

/** Times between two lines of a counter that went to the workspace and back, ms, while `meanwhile` runs. */
async function echoGaps(lab: SshLab, meanwhile: () => Promise<unknown>): Promise<number[]> {
  const child = spawn(
    process.execPath,
    [bundle, "ssh", "dev", "--", 'while read -r line; do echo "$line"; done'],
    {
      env: { ...lab.sandbox.env, CODER_CONFIG_DIR: lab.alice.configDir },
      stdio: ["pipe", "pipe", "ignore"],
    },
  );
  const gaps: number[] = [];
  let [sent, seen, lastAt] = [0, "", 0];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    const now = performance.now();
    if (lastAt > 0) gaps.push(now - lastAt);
    lastAt = now;
    seen += text;
  });
  const timer = setInterval(() => child.stdin.write(`${++sent}\n`), ECHO_EVERY_MS);
  while (lastAt === 0) await delay(20);
  await delay(1_000);
  gaps.length = 0;
  await meanwhile();
  const found = gaps.slice();
  clearInterval(timer);
  child.stdin.end();
  await new Promise((resolve) => child.once("close", resolve));
  const wanted = Array.from({ length: sent }, (_, i) => `${i + 1}\n`).join("");
  if (seen !== wanted) throw new Error(`the echo is wrong: ${seen.length} of ${wanted.length} characters`);
  return found;
}

async function builds(lab: SshLab): Promise<void> {
  await lab.alice.mustPush("empty", templates.empty);
  const [quiet, building]: number[][] = [[], []];
  const startedAt = performance.now();
  let buildMs = 0;
  for (let round = 0; round < ROUNDS; round++) {
    quiet.push(...(await echoGaps(lab, () => delay(WINDOW_MS))));
    building.push(
      ...(await echoGaps(lab, async () => {
        const from = performance.now();
        const names = Array.from({ length: BUILDS }, (_, i) => `b${round}-${i}`);
        await Promise.all(
          names.map((name) => lab.alice.must("create", name, "--template", "empty", "--yes")),
        );
        await Promise.all(names.map((name) => lab.alice.must("delete", name, "--yes")));
        buildMs += performance.now() - from;
      })),
    );
  }
  console.table([row("echo gap, no build", quiet), row(`echo gap, ${BUILDS} builds`, building)]);
  console.log(
    `${BUILDS} creates and deletes took ${(buildMs / ROUNDS / 1_000).toFixed(1)} s a round; all ${((performance.now() - startedAt) / 1_000).toFixed(0)} s`,
  );
}

async function main(): Promise<void> {
  const lab = await SshLab.start({ direct: true });
  try {
    console.log(hardware());
    const server = lab.server.running.child.pid as number;
    if (flags.only !== "builds") {
      pin(process.pid, API_CORE);
      pin(server, API_CORE);
      // PostgreSQL is the server's, and its processes are many.
      for (const line of lab.sandbox.processes())
        if (/postgres/.test(line)) pin(Number(line.split(" ")[0]), API_CORE);
      const relay = descendant(server, /relay\.mjs/);
      if (relay === undefined) throw new Error("the relay has no process of its own");
      pin(relay, flags.relay === "api" ? API_CORE : LOAD_CORE);
      pin(
        Number(readFileSync(path.join(path.dirname(lab.home), "agent.pid"), "utf8").split("\n")[0]),
        LOAD_CORE,
      );
      const ratio = await api(lab);
      if (flags.relay !== "api" && loadAtStart <= QUIET_LOAD && ratio > MAX_RATIO) process.exitCode = 1;
      const all = `0-${Number(LOAD_CORE)}`;
      for (const pid of [process.pid, server, relay]) pin(pid, all);
      pin(Number(readFileSync(path.join(path.dirname(lab.home), "agent.pid"), "utf8").split("\n")[0]), all);
    }
    if (flags.only !== "api") await builds(lab);
  } finally {
    await lab.close();
  }
}

await main();
