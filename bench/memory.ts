// npm run bench -- memory: what real processes hold: the server, its relay and an agent, and how much more with each agent,
// client and idle session. "held" is what V8 and Node hold after a collection (heap and external memory), per one of many; what
// the kernel keeps for sockets comes on top, in any program.
import { mkdirSync } from "node:fs";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { CoordinatorClient, verifyEd25519 } from "../coordinator/client.ts";
import { RelayClient } from "../derp/client/regions.ts";
import { MeshNode, newIdentity } from "../mesh/node/node.ts";
import type { DerpMapLike } from "../mesh/node/relay.ts";
import { SESSIONS_SERVICE } from "../mesh/wire/forward.ts";
import { bundle, type Running } from "../test/e2e/sandbox.ts";
import { Agents, instant } from "./agents.ts";
import { Farm, type FarmAgent } from "./farm.ts";
import { heldBytes, look, probed } from "./probe.ts";
import { quick, type Row, report, residentBytesOf, rounds, row } from "./report.ts";

const AGENTS = rounds(1_000, 200);
const CLIENTS = rounds(100, 20);
const IDLE_MS = quick ? 5_000 : 60_000;
/** After which nothing that just came is still under way. */
const SETTLE_MS = quick ? 2_000 : 8_000;
const JOIN_LIMIT_MS = 120_000;
const KB = 1_024;
const MB = 1 << 20;

const rows: Row[] = [];
const most = (limit: number, unit: string) => ({
  text: `<= ${limit} ${unit}`,
  holds: (ours: { median: number }) => ours.median <= limit,
});
const single = (
  id: string,
  what: string,
  unit: "KB" | "MB",
  bytes: number,
  options: { goal?: number; n?: number } = {},
) => {
  const made = row({
    id,
    what,
    unit,
    ours: [bytes / (unit === "KB" ? KB : MB)],
    ...(options.goal !== undefined && { goal: most(options.goal, unit) }),
  });
  rows.push({ ...made, n: options.n ?? 1 });
};

/** A client's node towards the agent, with a session that has done something and does nothing now. */
async function idleSession(url: string, token: string, agentId: string): Promise<() => Promise<void>> {
  const { privateKey, nodeKey } = newIdentity();
  const relay = new RelayClient({ privateKey, accessUrl: url, ticket: () => coordinator.relayTicket });
  const coordinator: CoordinatorClient = new CoordinatorClient({
    url: `${url}/api/v2/mesh/coordinate`,
    token,
    nodeKey,
    onRelayMap: (map) => relay.setMap(map as unknown as DerpMapLike),
  });
  const node = new MeshNode({ role: "client", privateKey, relay, coordinator, verify: verifyEd25519 });
  await coordinator.connect();
  const stream = await node.dial(agentId, SESSIONS_SERVICE);
  stream.end();
  for await (const _ of stream);
  return () => node.close();
}

async function realAgent(farm: Farm, { token }: FarmAgent, env: NodeJS.ProcessEnv): Promise<Running> {
  const running = farm.sandbox.start(process.execPath, [bundle, "agent", "--agent-url", farm.server.url], {
    ...env,
    CODER_AGENT_TOKEN: token,
  });
  await farm.sandbox.until(running, "stderr", /connected to the coordinator/);
  return running;
}

const farm = await Farm.start({ copies: AGENTS + 1 });
const closing: (() => Promise<unknown>)[] = [];
try {
  const probe = path.join(farm.sandbox.dir, "probe");
  mkdirSync(probe, { mode: 0o700 });
  farm.serverEnv = probed(probe);
  await farm.restart("SIGTERM");
  const held = async (pid: number) => heldBytes(await look(probe, pid, { collect: true }));
  const relayPid = farm.relayPid;
  if (relayPid === undefined) throw new Error("the server has no relay process");
  await delay(SETTLE_MS);
  single("server-rss", "server with an empty coordinator, resident", "MB", residentBytesOf(farm.pid));
  single("relay-rss", "relay process without clients, resident", "MB", residentBytesOf(relayPid));

  // The agent process, as it runs in a workspace: without the probe's collections.
  const [first, ...others] = farm.agents;
  const plain = await realAgent(farm, others[0], {});
  const plainPid = plain.child.pid ?? 0;
  await delay(SETTLE_MS);
  single("agent-rss", "agent process after its start, resident", "MB", residentBytesOf(plainPid), {
    goal: 80,
  });
  await delay(IDLE_MS);
  single(
    "agent-rss-idle",
    `idle agent process, ${IDLE_MS / 1000} s later, resident`,
    "MB",
    residentBytesOf(plainPid),
    { goal: 80 },
  );
  plain.child.kill("SIGTERM");
  await plain.finished;

  // Agents at the coordinator.
  await look(probe, farm.pid, { collect: true });
  const empty = { held: await held(farm.pid), rss: residentBytesOf(farm.pid) };
  const startedAt = instant();
  const agents = Agents.start(
    farm.server.url,
    others.slice(0, AGENTS),
    path.join(farm.sandbox.dir, "agents.json"),
  );
  closing.push(() => agents.stop());
  await agents.allConnected(startedAt, JOIN_LIMIT_MS);
  await delay(SETTLE_MS);
  const full = { held: await held(farm.pid), rss: residentBytesOf(farm.pid) };
  single(
    "agent-at-coordinator",
    "an agent at the coordinator, held",
    "KB",
    (full.held - empty.held) / AGENTS,
    {
      goal: 60,
      n: AGENTS,
    },
  );
  single(
    "agent-at-coordinator-rss",
    "an agent at the coordinator, resident",
    "KB",
    (full.rss - empty.rss) / AGENTS,
    { goal: 60, n: AGENTS },
  );
  single("server-rss-agents", `server with ${AGENTS} agents, resident`, "MB", full.rss);
  await agents.stop();

  // Sessions at the agent, clients at the relay.
  const agent = await realAgent(farm, first, probed(probe));
  closing.push(() => {
    agent.child.kill("SIGTERM");
    return agent.finished;
  });
  const pid = agent.child.pid ?? 0;
  const open = () => idleSession(farm.server.url, farm.owner.token, first.id);
  closing.push(await open()); // what the first one loads is not its own
  await delay(SETTLE_MS);
  const before = { agent: await held(pid), relay: residentBytesOf(relayPid) };
  for (let i = 0; i < CLIENTS; i++) closing.push(await open());
  await delay(SETTLE_MS);
  const after = { agent: await held(pid), relay: residentBytesOf(relayPid) };
  single("session", "an idle session at the agent, held", "KB", (after.agent - before.agent) / CLIENTS, {
    goal: 64,
    n: CLIENTS,
  });
  single("relay-client", "a client at the relay, resident", "KB", (after.relay - before.relay) / CLIENTS, {
    n: CLIENTS,
  });
  report({ group: "memory", title: "resident and held memory of real processes", rows });
} finally {
  await Promise.all(closing.map((close) => close().catch(() => undefined)));
  await farm.close();
}
