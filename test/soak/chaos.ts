// What happens to a deployment in a week, compressed: cut and silent connections, an agent that dies and returns, a
// server that is away or restarted, a relay that is killed.
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { SshLab } from "../e2e/lab.ts";
import { freePort } from "../e2e/outage.ts";
import { lastLine } from "./load.ts";
import { descendant } from "./watch.ts";

/** The workspace that may lose its agent. */
export const SPARE = "spare";
const BACK_MS = 120_000;
const SILENT_MS = 40_000;

export interface Event {
  name: string;
  everySeconds: number;
  /** Requests that meet it may fail. */
  hitsApi: boolean;
  /** New programs take the place of those that are watched: only at the ends of a run. */
  replaces?: boolean;
  run(lab: SshLab, random: () => number): Promise<void>;
}

async function must(lab: SshLab, ...args: string[]): Promise<string> {
  const done = await lab.alice.coder(...args);
  if (done.code !== 0)
    throw new Error(`coder ${args.join(" ")} ended with ${done.code}: ${lastLine(done.stderr)}`);
  return done.stdout;
}

/** Until a command runs in the spare workspace again. */
async function returned(lab: SshLab): Promise<void> {
  const giveUpAt = performance.now() + BACK_MS;
  for (;;) {
    const done = await lab.alice.coder("ssh", SPARE, "--", "echo here");
    if (done.code === 0 && done.stdout === "here\n") return;
    if (performance.now() > giveUpAt) throw new Error(`the agent does not return: ${lastLine(done.stderr)}`);
    await delay(500);
  }
}

async function spareAgent(lab: SshLab): Promise<{ pid: number; folder: string }> {
  const home = (await must(lab, "ssh", SPARE, "--", "pwd")).trim();
  const folder = path.dirname(home);
  return { pid: Number(readFileSync(path.join(folder, "agent.pid"), "utf8").split("\n")[0]), folder };
}

/** As agent.sh of the template writes it down: the number, and what tells whether it is still that process. */
function noteAgent(folder: string, pid: number): void {
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const startedAt = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  writeFileSync(path.join(folder, "agent.pid"), `${pid}\n${bootId} ${startedAt}\n`);
}

/** Kills the agent as a machine's death would, and starts it as its machine would: same token, new process. */
async function killAgent(lab: SshLab, random: () => number): Promise<void> {
  const { pid, folder } = await spareAgent(lab);
  const open = lab.alice.start("ssh", SPARE, "--resume-window", "20s", "--", "sleep 100");
  await delay(1_000);
  const env = Object.fromEntries(
    readFileSync(`/proc/${pid}/environ`, "utf8")
      .split("\0")
      .filter((line) => line.includes("="))
      .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
  );
  process.kill(pid, "SIGKILL");
  await delay(random() * 5_000);
  const child = spawn("/bin/sh", [path.join(folder, "init.sh")], {
    cwd: path.join(folder, "home"),
    env,
    detached: true,
    stdio: "ignore",
  });
  child.unref();
  noteAgent(folder, child.pid as number);
  try {
    await returned(lab);
  } finally {
    open.child.kill("SIGTERM");
    await open.finished;
  }
}

async function freezeAgent(lab: SshLab, random: () => number): Promise<void> {
  const { pid } = await spareAgent(lab);
  process.kill(pid, "SIGSTOP");
  try {
    await delay(3_000 + random() * 40_000);
  } finally {
    process.kill(pid, "SIGCONT");
  }
  await returned(lab);
}

/** For all who come through the gate, which is everybody but the relay's own process: nobody answers. */
async function away(lab: SshLab, random: () => number): Promise<void> {
  const port = lab.gate.targetPort;
  lab.gate.targetPort = await freePort();
  for (const purpose of ["derp", "coordinator", "api"] as const) lab.gate.cut(purpose);
  await delay(1_000 + random() * 15_000);
  lab.gate.targetPort = port;
  await returned(lab);
}

/** Both ends are told only much later, as by a NAT that forgot and a kernel that gives up. */
async function silence(lab: SshLab, purpose: "derp" | "coordinator"): Promise<void> {
  lab.gate.freeze(purpose);
  await delay(SILENT_MS);
  lab.gate.cut(purpose);
}

async function restart(lab: SshLab, signal: "SIGTERM" | "SIGKILL", random: () => number): Promise<void> {
  await lab.restartServer({ signal, awayMs: random() * 4_000 });
  await returned(lab);
}

export const EVENTS: readonly Event[] = [
  {
    name: "relay connections cut",
    everySeconds: 100,
    hitsApi: false,
    run: async (lab) => void lab.gate.cut("derp"),
  },
  {
    name: "coordinator connections cut",
    everySeconds: 150,
    hitsApi: true,
    run: async (lab) => void lab.gate.cut("coordinator"),
  },
  {
    name: "requests cut",
    everySeconds: 300,
    hitsApi: true,
    run: async (lab) => void lab.gate.cut("api"),
  },
  {
    name: "relay connections silent",
    everySeconds: 600,
    hitsApi: false,
    run: (lab) => silence(lab, "derp"),
  },
  {
    name: "coordinator connections silent",
    everySeconds: 900,
    hitsApi: true,
    run: (lab) => silence(lab, "coordinator"),
  },
  { name: "server away", everySeconds: 700, hitsApi: true, run: away },
  { name: "agent killed", everySeconds: 600, hitsApi: false, run: killAgent },
  { name: "agent frozen", everySeconds: 700, hitsApi: false, run: freezeAgent },
  {
    name: "workspace stopped and started",
    everySeconds: 420,
    hitsApi: false,
    async run(lab) {
      await must(lab, "stop", SPARE, "--yes");
      await must(lab, "start", SPARE);
      await returned(lab);
    },
  },
  {
    name: "relay killed",
    everySeconds: 180,
    hitsApi: false,
    replaces: true,
    async run(lab) {
      const relay = descendant(lab.server.running.child.pid as number, /relay\.mjs/);
      if (relay === undefined) throw new Error("the server has no relay process");
      process.kill(relay, "SIGKILL");
      await returned(lab);
    },
  },
  {
    name: "server restarted",
    everySeconds: 240,
    hitsApi: true,
    replaces: true,
    run: (lab, random) => restart(lab, "SIGTERM", random),
  },
  {
    name: "server killed",
    everySeconds: 240,
    hitsApi: true,
    replaces: true,
    run: (lab, random) => restart(lab, "SIGKILL", random),
  },
];

export async function prepareSpare(lab: SshLab): Promise<void> {
  await must(lab, "create", SPARE, "--template", "local", "--yes");
}
