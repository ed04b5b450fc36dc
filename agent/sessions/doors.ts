import type { SessionHeader } from "../../mesh/wire/channel.ts";
import { type Listener, listenUnix } from "../forward/listener.ts";
import { describe, type Logger } from "../logging.ts";
import type { Peer } from "../streams.ts";
import type { Environment } from "./environment.ts";
import { PrivateDir } from "./private-dir.ts";
import { openDisplay } from "./x11.ts";

/** Connections at once to one session's SSH agent, or to its X server. */
export const MAX_DOOR_CONNECTIONS = 64;

/** What a session's programs reach on the client's machine: its SSH agent, its X server. */
export interface Doors {
  env: Environment;
  close(): void;
}

const NONE: Doors = { env: {}, close() {} };

/**
 * Opens what the header asks for. A session is worth more than its extras: what can't be opened is logged and left
 * out, as under sshd. Never rejects.
 */
export async function openDoors(
  header: SessionHeader,
  peer: Pick<Peer, "open"> | undefined,
  logger: Logger,
): Promise<Doors> {
  if (!peer || (!header.agent && !header.x11)) return NONE;
  const options = { peer, logger, maxConnections: MAX_DOOR_CONNECTIONS };
  const env: Environment = {};
  const listeners: Listener[] = [];
  let dir: PrivateDir;
  try {
    dir = new PrivateDir();
  } catch (error) {
    logger.warn(
      { reason: describe(error) },
      "no folder for a session's sockets; agent and X11 are not forwarded",
    );
    return NONE;
  }
  if (header.agent)
    try {
      const file = dir.file("agent");
      listeners.push(await listenUnix(file, { ...options, token: header.agent.token }));
      env["SSH_AUTH_SOCK"] = file;
    } catch (error) {
      logger.warn({ reason: describe(error) }, "the SSH agent could not be forwarded");
    }
  if (header.x11)
    try {
      const display = await openDisplay(header.x11, dir.file("xauthority"), options);
      listeners.push(display.listener);
      Object.assign(env, display.env);
    } catch (error) {
      logger.warn({ reason: describe(error) }, "X11 could not be forwarded");
    }
  return {
    env,
    close() {
      for (const listener of listeners.splice(0)) listener.close();
      dir.remove();
    },
  };
}
