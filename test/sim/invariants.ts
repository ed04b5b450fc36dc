// What must hold at each look, and what must hold once the network is well again and nothing is left to do.
import { CLOSE_CODES } from "../../mesh/wire/session.ts";
import type { Flow } from "./flow.ts";
import { BUDGET_BYTES, type SimNode } from "./node.ts";
import { CONTROL, type Town } from "./town.ts";

/** Of a node that has nothing to do: clocks of the node itself, its relays and its coordinator connection. */
const IDLE_TIMERS = 16;
const TIMERS_PER_SESSION = 4;
/** What a session may hold in any case: first windows and the sure part of the send buffer. */
const SESSION_BYTES = 3 << 20;
const MAX_ACK_RANGES = 256;
const MAX_REORDER_RANGES = 4_096;
const MAX_SESSIONS_PER_PEER = 4;
/** How soon an agent that the coordinator can reach has acted on a revocation. */
const REVOKED_WITHIN_MS = 5_000;

/** A session goes on so soon once all is well: a reconnect, the peer's, a handshake that was lost and its retry. */
const FLOWS_WITHIN_MS = 20_000;

const SETTLED_AFTER_MS = 5_000;
/** Lane numbers are a node's, not a session's; relays that are asked for an absent peer cost one each. */
const MAX_LANES_WHEN_WELL = 100;

/** Cheap enough for every second of a run. */
export function look(town: Town): void {
  for (const node of [...town.agents, ...town.clients]) if (node.isRunning) lookAt(town, node);
  const wellForMs = town.world.now - town.wellAt;
  if (wellForMs < 0) return;
  if (wellForMs > SETTLED_AFTER_MS)
    for (const node of [...town.agents, ...town.clients]) if (node.isRunning) lookAtPaths(town, node);
  // An agent with nothing of its own to say learns nothing of its path; what it has to say its client waits for.
  for (const { name, node, isRunning } of town.clients)
    for (const { isStalled, id, peerKey } of isRunning ? node.sessions() : []) {
      const key = `${name} ${id}`;
      if (!isStalled || !isHere(town, peerKey)) town.stalledSince.delete(key);
      else if (!town.stalledSince.has(key)) town.stalledSince.set(key, town.world.now);
      // One that comes and goes is a line with more on it than it carries.
      const forMs = town.world.now - (town.stalledSince.get(key) ?? town.world.now);
      town.counts.stalledMs = Math.max(town.counts.stalledMs, Math.round(forMs));
      if (forMs > FLOWS_WITHIN_MS)
        town.world.violated("what is well again flows", `${key} is stalled for ${Math.round(forMs)} ms`);
    }
}

/** The process at the other end runs, and knows the sessions made under that key. */
const isHere = (town: Town, nodeKey: string): boolean =>
  town.nodes.some((other) => other.isRunning && !other.hasKeptKey && other.nodeKey === nodeKey);

/** Settled, a session keeps its path: it changes it for one that is better, not again and again. */
function lookAtPaths(town: Town, { name, node }: SimNode): void {
  for (const { id, stats, peerKey } of node.held.sessions) {
    const [lane] = stats.lanes;
    // Who is not there is asked for again and again, each time with a lane of its own.
    if (!lane || !isHere(town, peerKey)) continue;
    const key = `${name} ${id}`;
    const known = town.settledLanes.get(key);
    if (known === undefined) town.settledLanes.set(key, lane.lane);
    else if (lane.lane - known > MAX_LANES_WHEN_WELL)
      town.world.violated("a good path is kept", `${key} is on lane ${lane.lane} after ${known}`);
  }
}

function lookAt({ world }: Town, { name, node, process, subject }: SimNode): void {
  const { sessions, device, budgetBytes, peers } = node.held;
  const most = IDLE_TIMERS + TIMERS_PER_SESSION * sessions.length;
  if (process.armedTimers > most)
    world.violated(
      "timers are bounded",
      `${name} has ${process.armedTimers} with ${sessions.length} sessions`,
    );
  // Promised before may be counted anyway: the largest window once more.
  if (budgetBytes > BUDGET_BYTES + (32 << 20) || budgetBytes < 0)
    world.violated("memory is bounded", `${name} took ${budgetBytes} of ${BUDGET_BYTES} bytes`);
  const heldBytes = sessions.reduce((sum, { stats }) => sum + stats.bufferedBytes + stats.flow.heldBytes, 0);
  if (heldBytes > BUDGET_BYTES + SESSION_BYTES * sessions.length)
    world.violated("memory is bounded", `${name} holds ${heldBytes} bytes in ${sessions.length} sessions`);
  const perPeer = new Map<string, number>();
  for (const { peerKey, stats, id } of sessions) {
    perPeer.set(peerKey, (perPeer.get(peerKey) ?? 0) + 1);
    if (stats.ackRanges > MAX_ACK_RANGES || stats.reorderRanges > MAX_REORDER_RANGES)
      world.violated("maps are bounded", `${name} ${id}: ${stats.ackRanges}/${stats.reorderRanges} ranges`);
    if (stats.flow.heldBytes < 0 || stats.flow.creditBytes < 0 || stats.bufferedBytes < 0)
      world.violated("credit adds up", `${name} ${id}: ${JSON.stringify(stats.flow)}`);
    for (const { inFlightBytes, lane } of stats.lanes)
      if (inFlightBytes < 0)
        world.violated("credit adds up", `${name} lane ${lane}: ${inFlightBytes} in flight`);
  }
  for (const [peer, count] of perPeer)
    if (subject.kind === "agent" && count > MAX_SESSIONS_PER_PEER)
      world.violated("maps are bounded", `${name}: ${count} sessions of ${peer}`);
  if (device.peers > 1_024 || peers > 1_024 || device.indices > 4 * 1_024)
    world.violated("maps are bounded", `${name}: ${JSON.stringify(device)}, ${peers} peers`);
}

/** Whether what the coordinator says to this node now reaches it. */
const hears = (town: Town, { isRunning, machine, lines, coordinator }: SimNode): boolean =>
  isRunning &&
  coordinator.connected &&
  !machine.isAsleep &&
  !lines.get(CONTROL)?.isBlocked &&
  town.coordination.isUp &&
  !town.coordination.machine.isAsleep;

/** Just revoked: agents that can hear of it all the time have ended those sessions in time. */
export function expectCut(town: Town, ids: readonly string[]): void {
  const { world, faultsBegun } = town;
  const agents = town.agents
    .filter((agent) => hears(town, agent))
    .map((agent) => ({ agent, process: agent.process }));
  world.after(REVOKED_WITHIN_MS, () => {
    if (town.faultsBegun !== faultsBegun) return; // one of them may have been cut off for a moment
    for (const { agent, process } of agents) {
      if (agent.process !== process || !hears(town, agent)) continue;
      for (const { id, grant } of agent.node.sessions())
        if (grant && ids.includes(grant.id))
          world.violated("revoked means cut", `${agent.name} serves ${id} ${REVOKED_WITHIN_MS} ms later`);
    }
  });
}

/** The agent was told that grants are void: their sessions are over, and their streams give it nothing any more. */
export function onVoid(town: Town, agent: SimNode): void {
  const alive = new Set<string>();
  for (const { id, grant } of agent.node.sessions()) {
    if (grant && agent.heardVoid.has(grant.id))
      town.world.violated("revoked means cut", `${agent.name} goes on with ${id} though it knows`);
    if (grant) alive.add(grant.userId);
  }
  for (const flow of town.flows.values())
    if (flow.agent === agent.name && flow.half.agent.process === agent.process && !alive.has(flow.userId))
      flow.cut();
}

/** Well again for long, agents serve no session under a grant that is void. */
export function checkVoid(town: Town): void {
  if (town.hasLostStore || town.isClockFar) return;
  for (const agent of town.agents)
    for (const { id, grant } of agent.isRunning ? agent.node.sessions() : [])
      if (grant && town.voidGrants.has(grant.id))
        town.world.violated("revoked means cut", `${agent.name} still serves ${id}, whose grant is void`);
}

/** No flow may be left, and what ended otherwise than planned has an excuse. */
export function checkFlows(town: Town): void {
  for (const flow of town.flows.values()) {
    if (!flow.isOver) town.world.violated("no stream is stranded", String(flow));
    else if (flow.isPlannedWhole && !flow.excuse && !flow.isWhole && !isExcused(town, flow))
      town.world.violated("streams end for a reason only", String(flow));
    for (const side of ["client", "agent"] as const) {
      const { error } = flow.half[side];
      if (error && error.code === undefined)
        town.world.violated("errors carry codes", `${flow}: ${error.stack ?? error}`);
    }
  }
}

/** A dial that failed, or a session that never came to be, while things went wrong. */
function isExcused(town: Town, { startedAt, dialFailed, half, userId, client, agent }: Flow): boolean {
  const { error } = half.client;
  // Opened on the session of before, whose client nobody had told.
  const { revoked, unknownSession, normal } = CLOSE_CODES;
  const isCut = [revoked, unknownSession, normal].some(({ code }) => code === error?.closeCode);
  if (isCut && (town.revoked.has(userId) || town.endedBy.has(client) || town.endedBy.has(agent))) return true;
  if (dialFailed?.startsWith("ERR_NODE_CLOSED")) return true; // it was about to leave
  if (startedAt >= town.wellAt) return false;
  return dialFailed !== undefined || error?.message.startsWith("the agent did not answer") === true;
}

/** With no stream left, credit is back and nothing is buffered, at both ends of every session. */
export function checkCredit(town: Town): void {
  const here = new Set(town.nodes.filter(({ isRunning }) => isRunning).map(({ nodeKey }) => nodeKey));
  const bySession = new Map<string, { name: string; sent: number; received: number }[]>();
  for (const { name, node, isRunning } of town.nodes) {
    if (!isRunning) continue;
    for (const { id, stats, isClosed, peerKey } of node.held.sessions) {
      if (isClosed || id === undefined) continue;
      const { flow, streams, bufferedBytes, reorderRanges } = stats;
      if (!here.has(peerKey)) continue; // kept for a client that died
      if (streams > 0 || bufferedBytes > 0 || reorderRanges > 0 || flow.heldBytes > 0)
        town.world.violated(
          "credit returns",
          `${name} ${id}: ${streams} streams, ${bufferedBytes} to send, ${flow.heldBytes} held, ${reorderRanges} gaps`,
        );
      const ends = bySession.get(id) ?? [];
      ends.push({ name, sent: flow.sentBytes, received: flow.receivedBytes });
      bySession.set(id, ends);
      if (flow.creditBytes < (1 << 20) / 2)
        town.world.violated("credit returns", `${name} ${id}: may send only ${flow.creditBytes} bytes`);
    }
  }
  for (const [id, [a, b]] of bySession) {
    if (!b) continue;
    if (a.sent !== b.received || b.sent !== a.received)
      town.world.violated("credit returns", `${id}: ${JSON.stringify([a, b])}`);
  }
}
