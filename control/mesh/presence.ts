import type { Knex } from "knex";
import type { Logger } from "pino";
import { setAgentsConnected, setAgentsDisconnected, setAgentsHeard } from "../db/queries/agents.ts";
import { errorText } from "../db/queries/error-text.ts";

/** Heartbeats of thousands of agents are written together; those who show an agent allow it 40 s. */
const HEARTBEATS_EVERY_MS = 5_000;

export interface PresenceWriter {
  record(agentId: string, connected: boolean): void;
  /** Writes what is left. */
  stop(): Promise<void>;
}

/** Agents in one statement. */
const MAX_AT_ONCE = 500;

/**
 * Writes down which agents are connected. One write at a time, of all that came since the last, and of what came about an
 * agent the last counts: a late "connected" can't overtake its "disconnected", an agent that flaps can't make us queue, and
 * thousands that come back at once cost few statements. What is only a sign of life waits for the next round of heartbeats.
 */
export function presenceWriter(knex: Knex, logger: Logger): PresenceWriter {
  /** Agents we have written down as connected. */
  const connectedIds = new Set<string>();
  let heard = new Set<string>();
  const wanted = new Map<string, boolean>();
  let writing: Promise<void> | undefined;

  const writeSome = async (ids: readonly string[], is: boolean): Promise<void> => {
    if (ids.length === 0) return;
    try {
      await (is ? setAgentsConnected : setAgentsDisconnected)(knex, ids, new Date());
      if (is) for (const id of ids) if (wanted.get(id) !== false) connectedIds.add(id);
    } catch (error) {
      logger.warn({ agents: ids.length, error: errorText(error) }, "could not record agents' presence");
    }
  };
  const writeAll = async (): Promise<void> => {
    // Who comes together is written together.
    await new Promise((resolve) => setImmediate(resolve));
    while (wanted.size > 0) {
      const some = [...wanted].slice(0, MAX_AT_ONCE);
      for (const [id] of some) wanted.delete(id);
      for (const is of [true, false])
        await writeSome(
          some.filter(([, wants]) => wants === is).map(([id]) => id),
          is,
        );
    }
    writing = undefined;
  };
  const writeHeard = async (): Promise<void> => {
    const ids = [...heard].filter((id) => connectedIds.has(id) && !wanted.has(id));
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
      if (connected && connectedIds.has(agentId) && !wanted.has(agentId)) return void heard.add(agentId);
      if (!connected) connectedIds.delete(agentId);
      heard.delete(agentId);
      wanted.set(agentId, connected);
      writing ??= writeAll();
    },
    async stop() {
      clearInterval(timer);
      await writeHeard();
      await writing;
    },
  };
}
