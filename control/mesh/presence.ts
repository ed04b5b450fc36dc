import type { Knex } from "knex";
import type { Logger } from "pino";
import { setAgentConnected, setAgentDisconnected, setAgentsHeard } from "../db/queries/agents.ts";
import { errorText } from "../db/queries/error-text.ts";

/** Heartbeats of thousands of agents are written together; those who show an agent allow it 40 s. */
const HEARTBEATS_EVERY_MS = 5_000;

export interface PresenceWriter {
  record(agentId: string, connected: boolean): void;
  /** Writes what is left. */
  stop(): Promise<void>;
}

/**
 * Writes down which agents are connected. One write at a time and agent, and of what came meanwhile the last counts:
 * a late "connected" can't overtake its "disconnected", and an agent that flaps can't make us queue. What is only a sign
 * of life waits for the next round of heartbeats.
 */
export function presenceWriter(knex: Knex, logger: Logger): PresenceWriter {
  /** Agents we have written down as connected. */
  const connectedIds = new Set<string>();
  let heard = new Set<string>();
  const wanted = new Map<string, boolean>();
  const writing = new Map<string, Promise<void>>();

  const writeAll = async (agentId: string): Promise<void> => {
    for (let is = wanted.get(agentId); is !== undefined; is = wanted.get(agentId)) {
      wanted.delete(agentId);
      try {
        await (is ? setAgentConnected : setAgentDisconnected)(knex, agentId, new Date());
        if (is) connectedIds.add(agentId);
      } catch (error) {
        logger.warn({ agentId, error: errorText(error) }, "could not record an agent's presence");
      }
    }
    writing.delete(agentId);
  };
  const writeHeard = async (): Promise<void> => {
    const ids = [...heard].filter((id) => connectedIds.has(id) && !writing.has(id));
    heard = new Set();
    if (ids.length === 0) return;
    try {
      await setAgentsHeard(knex, ids, new Date());
    } catch (error) {
      logger.warn({ agents: ids.length, error: errorText(error) }, "could not record agents' heartbeats");
    }
  };
  const timer = setInterval(() => void writeHeard(), HEARTBEATS_EVERY_MS);

  return {
    record(agentId, connected) {
      if (connected && connectedIds.has(agentId) && !writing.has(agentId)) return void heard.add(agentId);
      if (!connected) connectedIds.delete(agentId);
      heard.delete(agentId);
      wanted.set(agentId, connected);
      if (!writing.has(agentId)) writing.set(agentId, writeAll(agentId));
    },
    async stop() {
      clearInterval(timer);
      await writeHeard();
      await Promise.all(writing.values());
    },
  };
}
