// Hours of mixed, moderate load on the real programs, while connections, agents, relay and server come and go. What
// each process holds is measured at rest every few minutes; a table at the end says what grew.
//
//   npx tsx test/soak/mixed.ts [--minutes 120] [--level 1] [--seed N] [--out FILE]
//
// It builds its own copy of the programs, so that the checkout may change meanwhile. Every transfer's content is
// checked. What fails while the server is away is counted; all else that fails is printed with its time, and makes the
// run end with 1, as does a measure above its bound.

import { setMaxListeners } from "node:events";
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { newClient } from "../../control/db/open.ts";
import { seededRandom } from "../../mesh/wire/testing.ts";
import { SshLab } from "../e2e/lab.ts";
import { bundle, type Running } from "../e2e/sandbox.ts";
import { Beat } from "./beat.ts";
import { EVENTS, type Event, prepareSpare, SPARE } from "./chaos.ts";
import { type Inside, Installation } from "./install.ts";
import { Corrupt, type LoadContext, prepare, serveTargets, TASKS, type Task } from "./load.ts";
import { type Bound, descendant, folderSize, judge, look, MIB, type Outside, type Point } from "./watch.ts";

const { values: flags } = parseArgs({
  options: {
    minutes: { type: "string", default: "120" },
    level: { type: "string", default: "1" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    out: { type: "string" },
  },
});
const MINUTES = Number(flags.minutes);
const LEVEL = Number(flags.level);
const SAMPLE_MS = 60_000;
/** Everything stands still this often, so that what is held can be compared. */
const REST_EVERY_MS = Math.min(300_000, (MINUTES * 60_000) / 6);
/** The database's pool lets idle connections go after 30 s. */
const REST_MS = MINUTES >= 30 ? 45_000 : 5_000;
/** A task that is not done by then never will be. */
const STUCK_MS = 6 * 60_000;
/** After an outage clients and agents need this long until nothing fails any more. */
const AFTERMATH_MS = 10_000;
/** Only in these parts of a run are the watched programs replaced. */
const REPLACED_UNTIL = 0.15;
const REPLACED_FROM = 0.96;

interface Sample {
  kind: "rest" | "busy";
  minutes: number;
  processes: Record<string, (Outside & { pid: number; inside?: Inside }) | undefined>;
  database: Record<string, number>;
  rows: Record<string, number>;
  disk: { dataBytes: number; dataFiles: number; tmpEntries: number };
  /** Processes of the run in all, by what they are. */
  programs: number;
}

class Soak {
  readonly #lab: SshLab;
  readonly #install: Installation;
  readonly #it: LoadContext;
  readonly #random: () => number;
  readonly #startedAt = performance.now();
  readonly #samples: Sample[] = [];
  readonly #counts = new Map<string, number>();
  readonly #running = new Map<string, { name: string; since: number }>();
  readonly #beats: Beat[] = [];
  readonly #forward: Running;
  readonly #stopping = new AbortController();
  #surprises = 0;
  #taskId = 0;
  #isResting = false;
  /** Outages of the API: from, to; ms. */
  #outages: { from: number; to: number; name: string }[] = [];

  constructor(lab: SshLab, install: Installation, it: LoadContext, forward: Running) {
    this.#lab = lab;
    this.#install = install;
    this.#it = it;
    this.#random = it.random;
    this.#forward = forward;
    setMaxListeners(0, this.#stopping.signal);
    const env = { ...lab.sandbox.env, CODER_CONFIG_DIR: lab.alice.configDir, SOAK_PROBE: "1" };
    const loop = 'while read -r line; do echo "$line"; done';
    this.#beats.push(
      new Beat("ssh", ["ssh", "-F", lab.sshConfig, "coder.dev", loop], env),
      new Beat("coder ssh", [process.execPath, bundle, "ssh", "dev", "--", loop], env),
    );
  }

  get minutes(): number {
    return (performance.now() - this.#startedAt) / 60_000;
  }

  stop(): void {
    this.#stopping.abort();
  }

  #say(text: string): void {
    console.log(`${new Date().toISOString()} ${this.minutes.toFixed(1).padStart(6)} min  ${text}`);
  }

  #surprise(what: string): void {
    this.#surprises++;
    this.#say(`UNEXPECTED ${what}`);
  }

  #count(name: string): void {
    this.#counts.set(name, (this.#counts.get(name) ?? 0) + 1);
  }

  async #pause(seconds: number): Promise<void> {
    await delay(seconds * 1_000, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
  }

  async #untilBusy(): Promise<void> {
    while (this.#isResting && !this.#stopping.signal.aborted) await this.#pause(0.5);
  }

  /** Runs one piece of work, and judges how it ended. */
  async #attempt(name: string, work: () => Promise<void>): Promise<void> {
    const id = String(++this.#taskId);
    const since = performance.now();
    this.#running.set(id, { name, since });
    try {
      await work();
      this.#count(`${name}: done`);
    } catch (error) {
      const text = (error as Error).message.replaceAll(/\d{3,}|[0-9a-f]{8,}/g, "#").split("\n")[0];
      const met = this.#outages.findLast(
        ({ from, to }) => from <= performance.now() && to + AFTERMATH_MS >= since,
      );
      if (met && !(error instanceof Corrupt))
        this.#count(`${name}: failed (${met.name}): ${text.slice(0, 200)}`);
      else this.#surprise(`${name}: ${(error as Error).message}`);
    } finally {
      this.#running.delete(id);
    }
  }

  async #repeat(task: Task): Promise<void> {
    while (!this.#stopping.signal.aborted) {
      await this.#pause((-Math.log(1 - this.#random()) * task.everySeconds) / LEVEL);
      await this.#untilBusy();
      if (this.#stopping.signal.aborted) return;
      await this.#attempt(task.name, () => task.run(this.#it));
    }
  }

  #isDue(event: Event): boolean {
    const share = this.minutes / MINUTES;
    return !event.replaces || share < REPLACED_UNTIL || share > REPLACED_FROM;
  }

  /** One thing at a time happens to the deployment. */
  async #happen(): Promise<void> {
    const dueAt = new Map<Event, number>();
    const next = (event: Event): number =>
      performance.now() + (-Math.log(1 - this.#random()) * event.everySeconds * 1_000) / LEVEL;
    for (const event of EVENTS) dueAt.set(event, next(event));
    while (!this.#stopping.signal.aborted) {
      await this.#pause(1);
      await this.#untilBusy();
      if (this.#stopping.signal.aborted) return;
      const event = EVENTS.find((one) => (dueAt.get(one) as number) <= performance.now() && this.#isDue(one));
      if (!event) continue;
      const outage = { from: performance.now(), to: Number.POSITIVE_INFINITY, name: event.name };
      if (event.hitsApi) this.#outages.push(outage);
      this.#say(event.name);
      await this.#attempt(event.name, () => event.run(this.#lab, this.#random));
      outage.to = performance.now();
      dueAt.set(event, next(event));
    }
  }

  async #watch(): Promise<void> {
    let restAt = performance.now() + REST_EVERY_MS;
    let sampleAt = performance.now() + SAMPLE_MS;
    while (!this.#stopping.signal.aborted) {
      await this.#pause(1);
      for (const beat of this.#beats) {
        try {
          beat.check();
        } catch (error) {
          this.#surprise((error as Error).message);
          await this.#pause(30);
        }
      }
      for (const [id, { name, since }] of this.#running)
        if (performance.now() - since > STUCK_MS) {
          this.#surprise(`${name}: not done after ${STUCK_MS / 60_000} min`);
          this.#running.set(id, { name, since: Number.POSITIVE_INFINITY });
        }
      if (performance.now() >= restAt) {
        await this.#rest();
        restAt = performance.now() + REST_EVERY_MS;
      } else if (performance.now() >= sampleAt) {
        await this.#sample("busy");
        sampleAt = performance.now() + SAMPLE_MS;
      }
    }
  }

  async #rest(): Promise<void> {
    this.#isResting = true;
    const giveUpAt = performance.now() + STUCK_MS;
    const isBusy = (): boolean =>
      [...this.#running.values()].some(({ since }) => since !== Number.POSITIVE_INFINITY);
    while (isBusy() && performance.now() < giveUpAt && !this.#stopping.signal.aborted) await this.#pause(0.5);
    await this.#pause(REST_MS / 1_000);
    await this.#sample("rest");
    this.#isResting = false;
  }

  #pids(): Record<string, number | undefined> {
    const server = this.#lab.server.running.child.pid;
    const agentFile = path.join(path.dirname(this.#lab.home), "agent.pid");
    const [ssh, own] = this.#beats;
    return {
      server,
      relay: server && descendant(server, /relay\.mjs/),
      agent: Number(readFileSync(agentFile, "utf8").split("\n")[0]),
      "port-forward": this.#forward.child.pid,
      "coder ssh": own.child.pid,
      "ssh --stdio": descendant(ssh.child.pid as number, /--stdio/) ?? ssh.child.pid,
    };
  }

  async #database(): Promise<Pick<Sample, "database" | "rows">> {
    const { sandbox, server } = this.#lab;
    const folder = readdirSync(sandbox.tmp).find((name) => name.startsWith("coder-pg-"));
    if (!folder) return { database: {}, rows: {} };
    const password = readFileSync(path.join(server.dir, "postgres/password"), "utf8").trim();
    const host = encodeURIComponent(path.join(sandbox.tmp, folder));
    const client = newClient(`postgres://coder:${password}@/coder?host=${host}`);
    await client.connect();
    try {
      const states = await client.query<{ state: string; n: number }>(
        "select coalesce(state, 'none') as state, count(*)::int as n from pg_stat_activity where datname = 'coder' and pid <> pg_backend_pid() group by 1",
      );
      const tables = await client.query<{ name: string; n: number }>(
        "select relname as name, n_live_tup::int as n from pg_stat_user_tables where n_live_tup > 0",
      );
      return {
        database: Object.fromEntries(states.rows.map(({ state, n }) => [state, n])),
        rows: Object.fromEntries(tables.rows.map(({ name, n }) => [name, n])),
      };
    } finally {
      await client.end();
    }
  }

  async #sample(kind: Sample["kind"]): Promise<void> {
    try {
      const processes: Sample["processes"] = {};
      for (const [name, pid] of Object.entries(this.#pids())) {
        const outside = pid === undefined ? undefined : look(pid);
        if (!pid || !outside) continue;
        // A collection costs: only where it can be compared. What is held after it is seen from outside, too.
        const inside = kind === "rest" ? await this.#install.ask(pid) : undefined;
        processes[name] = { pid, ...(look(pid) ?? outside), ...(inside && { inside }) };
      }
      const data = folderSize(this.#lab.server.dir);
      const sample: Sample = {
        kind,
        minutes: this.minutes,
        processes,
        ...(await this.#database()),
        disk: {
          dataBytes: data.bytes,
          dataFiles: data.files,
          tmpEntries: readdirSync(this.#lab.sandbox.tmp).length,
        },
        programs: this.#lab.sandbox.processes().length,
      };
      this.#samples.push(sample);
      if (flags.out) appendFileSync(flags.out, `${JSON.stringify(sample)}\n`);
      if (kind === "rest") this.#say(`at rest: ${summary(sample)}`);
    } catch (error) {
      const isAway = this.#outages.some(({ to }) => to === Number.POSITIVE_INFINITY);
      if (!isAway || kind === "rest") this.#surprise(`sample: ${(error as Error).message}`);
    }
  }

  /** Runs until the time is over or it is stopped. @returns whether nothing was unexpected and nothing grew */
  async run(): Promise<boolean> {
    const over = setTimeout(() => this.stop(), MINUTES * 60_000);
    const load = [...TASKS.map((task) => this.#repeat(task)), this.#happen(), this.#watch()];
    await Promise.all(load);
    clearTimeout(over);
    for (const beat of this.#beats) {
      try {
        await beat.stop(60_000);
        this.#say(
          `${beat.name}: ${beat.sent} lines and all of them back, longest gap ${Math.round(beat.longestGapMs)} ms`,
        );
      } catch (error) {
        this.#surprise((error as Error).message);
      }
    }
    console.log("\nWhat was done:");
    for (const [name, n] of [...this.#counts].sort(([a], [b]) => a.localeCompare(b)))
      console.log(`  ${n}\t${name}`);
    const flat = report(this.#samples);
    console.log(`\n${this.#surprises} unexpected`);
    return flat && this.#surprises === 0;
  }
}

const mib = (bytes: number): string => (bytes / MIB).toFixed(1);

function summary({ processes, database, disk }: Sample): string {
  const parts = Object.entries(processes).map(([name, it]) => {
    const heap = it?.inside ? ` heap ${mib(it.inside.memory.heapUsed)}` : "";
    return `${name} ${it?.fds} fds ${mib(it?.rssBytes ?? 0)} MiB${heap}`;
  });
  const connections = Object.entries(database).map(([state, n]) => `${n} ${state}`);
  return `${parts.join(", ")}; database ${connections.join(" ")}; data ${mib(disk.dataBytes)} MiB, ${disk.tmpEntries} in tmp`;
}

type Measure = [name: string, pick: (it: Outside & { inside?: Inside }) => number | undefined, bound: Bound];

const sum = (counts: Record<string, number>): number => Object.values(counts).reduce((a, b) => a + b, 0);
const flows = (it: { inside?: Inside }): number => it.inside?.resources["UDPWrap"] ?? 0;
const MEASURES: Measure[] = [
  // A UDP flow ends after five silent minutes, longer than the rest: how many there are is chance. An agent keeps 24 to
  // 33 pipes ready.
  ["open descriptors, no flows", (it) => it.inside && it.fds - flows(it), { rise: 9 }],
  ["threads", (it) => it.threads, { rise: 1 }],
  ["children", (it) => it.children, { rise: 1 }],
  // One that ended a moment ago is not a leak; one that is always there is.
  ["zombies", (it) => it.zombies, { rise: 0 }],
  ["handles, requests", (it) => it.inside && sum(it.inside.resources) - 2 * flows(it), { rise: 3 }],
  ["timers", (it) => it.inside && (it.inside.resources["Timeout"] ?? 0) - flows(it), { rise: 3 }],
  ["heap, MiB", (it) => it.inside && it.inside.memory.heapUsed / MIB, { perHour: 1 }],
  ["buffers, MiB", (it) => it.inside && it.inside.memory.external / MIB, { perHour: 1 }],
  ["resident, MiB", (it) => it.rssBytes / MIB, { perHour: 2 }],
];

/** Prints how each measure went at rest, while the watched programs were not replaced. @returns whether all is flat */
function report(samples: readonly Sample[]): boolean {
  const rest = samples.filter(
    ({ kind, minutes }) =>
      kind === "rest" && minutes / MINUTES > REPLACED_UNTIL && minutes / MINUTES <= REPLACED_FROM,
  );
  let isFlat = true;
  const rows: Record<string, string | number>[] = [];
  const add = (what: string, points: Point[], bound: Bound): void => {
    if (points.length === 0) return;
    const it = judge(points, bound);
    if (it.verdict === "grows") isFlat = false;
    const wanted = [
      bound.rise !== undefined && `last - first <= ${bound.rise}`,
      bound.perHour !== undefined && `second half <= ${bound.perHour}/h`,
      bound.most !== undefined && `most <= ${bound.most}`,
    ].filter(Boolean);
    const round = (value: number): number => Number(value.toFixed(2));
    rows.push({
      what,
      n: it.n,
      "first third": round(it.first),
      "last third": round(it.last),
      "per hour, first half": round(it.firstHalfPerHour),
      "second half": round(it.secondHalfPerHour),
      most: round(it.most),
      bound: wanted.join(", "),
      verdict: it.verdict,
    });
  };
  const names = [...new Set(rest.flatMap(({ processes }) => Object.keys(processes)))];
  for (const name of names) {
    const lives = new Map<number, Sample[]>();
    for (const sample of rest) {
      const pid = sample.processes[name]?.pid;
      if (pid !== undefined) lives.set(pid, [...(lives.get(pid) ?? []), sample]);
    }
    // One that should have lived through all of it.
    const [longest] = [...lives.values()].sort((a, b) => b.length - a.length);
    for (const [measure, pick, bound] of MEASURES) {
      const points = longest.flatMap(({ minutes, processes }) => {
        const value = pick(processes[name] as Outside);
        return value === undefined ? [] : [{ hours: minutes / 60, value }];
      });
      add(`${name}: ${measure}`, points, bound);
    }
  }
  const over = (pick: (sample: Sample) => number): Point[] =>
    rest.map((sample) => ({ hours: sample.minutes / 60, value: pick(sample) }));
  add(
    "database: connections",
    over(({ database }) => sum(database)),
    { rise: 3, most: 25 },
  );
  add(
    "database: idle in transaction",
    over(({ database }) => database["idle in transaction"] ?? 0),
    { rise: 0 },
  );
  add(
    "temporary folder: entries",
    over(({ disk }) => disk.tmpEntries),
    { rise: 0 },
  );
  add(
    "programs",
    over(({ programs }) => programs),
    { rise: 2 },
  );
  add(
    "data folder, MiB",
    over(({ disk }) => disk.dataBytes / MIB),
    { most: 600 },
  );
  for (const table of new Set(rest.flatMap(({ rows: tables }) => Object.keys(tables))))
    add(
      `rows of ${table}`,
      over(({ rows: tables }) => tables[table] ?? 0),
      {},
    );
  console.log(`\nAt rest, from ${REPLACED_UNTIL * 100} % to ${REPLACED_FROM * 100} % of the run:`);
  console.table(rows);
  return isFlat;
}

async function main(): Promise<void> {
  const dir = mkdtempSync(path.join(os.tmpdir(), "soak-"));
  const install = await Installation.make(path.join(dir, "installation"));
  console.log(`seed ${flags.seed}, ${MINUTES} minutes, level ${LEVEL}, programs in ${install.dir}`);
  const lab = await SshLab.start();
  const targets = await serveTargets();
  try {
    await prepare(lab);
    await prepareSpare(lab);
    const bob = await lab.alice.invite("bob");
    const { echo, hash, udp } = targets.ports;
    const forwards = ["--tcp", `0:${echo}`, "--tcp", `0:${hash}`, "--udp", `0:${udp}`];
    const forward = lab.alice.start("port-forward", "dev", ...forwards);
    await lab.sandbox.until(forward, "stderr", /^Ready\./m);
    const [here, hashed, datagrams] = [
      ...forward.stdout.matchAll(/^Forwarding \w+:\/\/127\.0\.0\.1:(\d+) /gm),
    ].map((match) => Number(match[1]));
    const it: LoadContext = {
      lab,
      bob,
      ports: { echo: here, hash: hashed, udp: datagrams },
      random: seededRandom(Number(flags.seed)),
    };
    const soak = new Soak(lab, install, it, forward);
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => soak.stop());
    if (!(await soak.run())) process.exitCode = 1;
    forward.child.kill("SIGINT");
    const ended = await forward.finished;
    if (ended.code !== 0)
      throw new Error(`port-forward ended with ${ended.code}: ${ended.stderr.slice(-500)}`);
    await lab.alice.must("delete", SPARE, "--yes");
  } finally {
    targets.close();
    // Throws when a process or a temporary file is left: that is a finding too.
    await lab.close();
    rmSync(dir, { recursive: true, force: true });
  }
}

await main();
