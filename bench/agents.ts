// A process that is many agents towards the coordinator: the agent's own client, one connection each, no relay, no sessions.
// bench/agents.ts is started by `startAgents`; run by itself it does nothing.
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { CoordinatorClient } from "../coordinator/client.ts";
import { EMBEDDED_REGION_ID } from "../derp/map.ts";
import { toBase64 } from "../mesh/wire/bytes.ts";
import type { FarmAgent } from "./farm.ts";

/** Agents of a machine room come up over some time. */
const START_WITHIN_MS = 2_000;
const self = fileURLToPath(import.meta.url);

export interface AgentsStatus {
  connected: number;
  /** Connections lost since the start. */
  lost: number;
  /** performance.timeOrigin + performance.now(), ms, when the last one that was missing came (back). */
  allSince: number | undefined;
}

export class Agents {
  readonly #child: ChildProcess;
  readonly #count: number;

  private constructor(child: ChildProcess, count: number) {
    this.#child = child;
    this.#count = count;
  }

  /** @param prefix a command that starts another, as ["taskset", "-c", "1"] */
  static start(
    url: string,
    agents: readonly FarmAgent[],
    file: string,
    prefix: readonly string[] = [],
  ): Agents {
    writeFileSync(file, JSON.stringify({ url, agents }), { mode: 0o600 });
    const [command, ...args] = [...prefix, process.execPath, "--import", "tsx", self, file];
    const child = spawn(command, args, { stdio: ["ignore", "inherit", "inherit", "ipc"] });
    return new Agents(child, agents.length);
  }

  async status(): Promise<AgentsStatus> {
    const answer = once(this.#child, "message");
    this.#child.send("status");
    const [status] = (await answer) as [AgentsStatus];
    return status;
  }

  /** @param since as `allSince` counts @returns ms from `since` until all were connected @throws after `limitMs` */
  async allConnected(since: number, limitMs: number): Promise<number> {
    for (const endAt = performance.now() + limitMs; ; ) {
      const { connected, allSince } = await this.status();
      if (allSince !== undefined && allSince > since) return allSince - since;
      if (performance.now() > endAt)
        throw new Error(`${connected} of ${this.#count} agents are connected after ${limitMs / 1000} s`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill("SIGKILL");
    await once(this.#child, "exit");
  }
}

export const instant = (): number => performance.timeOrigin + performance.now();

async function beAgents(file: string): Promise<void> {
  const { readFileSync } = await import("node:fs");
  const { url, agents } = JSON.parse(readFileSync(file, "utf8")) as { url: string; agents: FarmAgent[] };
  let connectedCount = 0;
  let lost = 0;
  let allSince: number | undefined;
  process.on("message", () => process.send?.({ connected: connectedCount, lost, allSince }));
  process.on("disconnect", () => process.exit());
  for (const [i, { token }] of agents.entries()) {
    let isConnected = false;
    const client = new CoordinatorClient({
      url: `${url}/api/v2/mesh/coordinate`,
      token,
      nodeKey: toBase64(randomBytes(32)),
      homeRegion: EMBEDDED_REGION_ID,
      onState: ({ connected }) => {
        if (connected === isConnected) return;
        isConnected = connected;
        connectedCount += connected ? 1 : -1;
        if (!connected) lost++;
        allSince = connectedCount === agents.length ? instant() : undefined;
      },
    });
    setTimeout(
      () => client.connect().catch(() => undefined), // it goes on by itself
      (START_WITHIN_MS * i) / agents.length,
    );
  }
}

if (process.argv[1] === self && process.argv[2]) await beAgents(process.argv[2]);
