import type { RawData, WebSocket } from "ws";
import { MAX_MESSAGE_BYTES } from "../mesh/wire/coordinator.ts";
import type { Coordinator, NodeSubject } from "./coordinator.ts";

/** A node that neither spoke nor answered for two of these is gone. */
export const PING_INTERVAL_MS = 15_000;
/** Slow consumers are cut rather than buffered for: a node can always reconnect and ask again. */
const MAX_BUFFERED_BYTES = 4 << 20;
/** Messages a node may have waiting; more is a flood. */
const MAX_WAITING_MESSAGES = 256;
const MAX_WAITING_BYTES = 4 * MAX_MESSAGE_BYTES;
/** Messages are read at this pace: each may cost a signature and a query. A daemon asks for many agents at once. */
const MESSAGE_BURST = 128;
const MESSAGES_PER_SECOND = 20;
/** Nodes carry the time of their welcome forward. When our clock was set by more than this they must ask again. */
const CLOCK_SET_MS = 20_000;
/** Application close codes (RFC 6455 section 7.4.2); the reason carries our stable code. */
const CLOSE_PROTOCOL = 4400;
const CLOSE_SHUTDOWN = 4503;
const CLOSE_AGAIN = 4504;
const CLOSE_CODES: Record<string, number> = {
  ERR_SHUTTING_DOWN: CLOSE_SHUTDOWN,
  ERR_CLOCK_SET: CLOSE_AGAIN,
};

export interface ServeOptions {
  pingIntervalMs?: number;
  /** Unix ms; Date.now by default. */
  wallClockMs?: () => number;
}

/** Joins a WebSocket, upgraded and authenticated by the caller, to the coordinator. */
export function serveNode(
  coordinator: Coordinator,
  socket: WebSocket,
  subject: NodeSubject,
  { pingIntervalMs = PING_INTERVAL_MS, wallClockMs = Date.now }: ServeOptions = {},
): void {
  let waiting = 0;
  let waitingBytes = 0;
  let heard = true;
  const close = (code: string, message: string) =>
    socket.close(CLOSE_CODES[code] ?? CLOSE_PROTOCOL, `${code}: ${message}`.slice(0, 120));

  const link = coordinator.accept(subject, {
    send: (message) => {
      if (socket.readyState !== socket.OPEN) return;
      if (socket.bufferedAmount > MAX_BUFFERED_BYTES) return socket.terminate();
      socket.send(JSON.stringify(message));
    },
    close,
  });

  const pace = messagePace(socket);
  socket.on("message", (data: RawData, isBinary: boolean) => {
    heard = true;
    if (isBinary) return close("ERR_BAD_VALUE", "messages are text");
    const message = data as Buffer;
    waiting++;
    waitingBytes += message.length;
    if (waiting > MAX_WAITING_MESSAGES || waitingBytes > MAX_WAITING_BYTES) return socket.terminate();
    pace.took();
    void coordinator.receive(link, message).finally(() => {
      waiting--;
      waitingBytes -= message.length;
    });
  });
  socket.on("pong", () => {
    heard = true;
    coordinator.heard(link);
  });
  const clockOffsetMs = wallClockMs() - performance.now();
  const pings = setInterval(() => {
    if (!heard) return socket.terminate();
    heard = false;
    if (Math.abs(wallClockMs() - performance.now() - clockOffsetMs) > CLOCK_SET_MS)
      return close("ERR_CLOCK_SET", "the coordinator's clock was set");
    socket.ping();
  }, pingIntervalMs);
  socket.on("error", () => socket.terminate());
  socket.on("close", () => {
    clearInterval(pings);
    pace.stop();
    // A store that fails here keeps a record nobody renews: it expires.
    coordinator.disconnect(link).catch(() => undefined);
  });
}

/** Stops reading from a node that says more than it may, until it may again. */
function messagePace(socket: WebSocket): { took(): void; stop(): void } {
  let tokens = MESSAGE_BURST;
  let at = performance.now();
  let timer: NodeJS.Timeout | undefined;
  return {
    took() {
      const now = performance.now();
      tokens = Math.min(MESSAGE_BURST, tokens + ((now - at) / 1000) * MESSAGES_PER_SECOND) - 1;
      at = now;
      if (tokens >= 0 || timer) return;
      socket.pause();
      timer = setTimeout(
        () => {
          timer = undefined;
          socket.resume();
        },
        (-tokens * 1000) / MESSAGES_PER_SECOND,
      );
    },
    stop: () => clearTimeout(timer),
  };
}
