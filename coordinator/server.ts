import type { IncomingMessage } from "node:http";
import type { RawData, WebSocket } from "ws";
import { type Runtime, systemRuntime, type Timer } from "../mesh/node/runtime.ts";
import { fromBase64, fromUtf8 } from "../mesh/wire/bytes.ts";
import {
  CLOSE_CODES,
  FIRST_MESSAGES_HEADER,
  MAX_FIRST_BYTES,
  MAX_MESSAGE_BYTES,
} from "../mesh/wire/coordinator.ts";
import type { AcceptOptions, Coordinator, NodeLink, NodeSubject } from "./coordinator.ts";

/** A node that neither spoke nor answered for two of these is gone. */
export const PING_INTERVAL_MS = 15_000;
const HELLO_TIMEOUT_MS = 10_000;
/** Slow consumers are cut rather than buffered for: a node can always reconnect and ask again. */
const MAX_BUFFERED_BYTES = 4 << 20;
/** Messages a node may have waiting; more is a flood. */
const MAX_WAITING_MESSAGES = 256;
const MAX_WAITING_BYTES = 4 * MAX_MESSAGE_BYTES;
/** Messages are read at this pace: each may cost a signature and a query. A daemon asks for many agents at once. */
const MESSAGE_BURST = 128;
const MESSAGES_PER_SECOND = 20;
/** And at this one: parsing costs by the byte. A hello with 4,096 grants has 160 KB. */
const BYTE_BURST = 1 << 20;
const BYTES_PER_SECOND = 64 << 10;
/** First messages in an upgrade request: hello and some questions. */
const MAX_FIRST_MESSAGES = 32;
/** Nodes carry the time of their welcome forward. When our clock was set by more than this they must ask again. */
const CLOCK_SET_MS = 20_000;
/** A close that is not answered: the other end is gone, or means harm. */
const CLOSE_TIMEOUT_MS = 5_000;
/** What each reason to close says in the close code; anything else is a breach of the protocol. */
const CLOSE_CODE_OF: Record<string, number> = {
  ERR_SHUTTING_DOWN: CLOSE_CODES.shuttingDown,
  ERR_CLOCK_SET: CLOSE_CODES.clockSet,
  ERR_INTERNAL: CLOSE_CODES.failed,
  ERR_AGENT_REPLACED: CLOSE_CODES.replaced,
  ERR_RECONNECTED: CLOSE_CODES.replaced,
  ERR_SILENT: CLOSE_CODES.silent,
  ERR_TOO_MANY_CONNECTIONS: CLOSE_CODES.tooMuch,
  ERR_TOO_MANY_MESSAGES: CLOSE_CODES.tooMuch,
  ERR_UNAUTHORIZED: CLOSE_CODES.unauthorized,
  ERR_TOKEN_REVOKED: CLOSE_CODES.unauthorized,
  ERR_TOKEN_EXPIRED: CLOSE_CODES.unauthorized,
  ERR_USER_SUSPENDED: CLOSE_CODES.unauthorized,
  ERR_USER_DELETED: CLOSE_CODES.unauthorized,
};
/** RFC 6455 section 5.5: a control frame has 125 bytes, two of them the code. */
const MAX_REASON_BYTES = 123;

export interface ServeOptions extends AcceptOptions {
  pingIntervalMs?: number;
  helloTimeoutMs?: number;
  /** Unix ms; the runtime's by default. */
  wallClockMs?: () => number;
  /** Clocks and timers; the process's by default. */
  runtime?: Runtime;
  /** What the upgrade request already said: firstMessages(). */
  first?: string[];
}

/**
 * The messages in an upgrade request, as text; undefined when there are none that can be taken: then the node says them
 * again. Whoever takes them answers with FIRST_MESSAGES_HEADER: "taken" in the 101.
 */
export function firstMessages(request: IncomingMessage): string[] | undefined {
  const header = request.headers[FIRST_MESSAGES_HEADER.toLowerCase()];
  if (typeof header !== "string" || header.length > (MAX_FIRST_BYTES / 3) * 4 + 4) return undefined;
  try {
    const messages: unknown = JSON.parse(fromUtf8(fromBase64(header)));
    if (!Array.isArray(messages) || messages.length === 0 || messages.length > MAX_FIRST_MESSAGES)
      return undefined;
    return messages.map((message) => JSON.stringify(message));
  } catch {
    return undefined;
  }
}

/** Joins a WebSocket, upgraded and authenticated by the caller, to the coordinator. */
export function serveNode(
  coordinator: Coordinator,
  socket: WebSocket,
  subject: NodeSubject,
  {
    pingIntervalMs = PING_INTERVAL_MS,
    helloTimeoutMs = HELLO_TIMEOUT_MS,
    runtime = systemRuntime,
    wallClockMs = () => runtime.wallClockMs(),
    first = [],
    ...accept
  }: ServeOptions = {},
): NodeLink {
  let waiting = 0;
  let waitingBytes = 0;
  let heard = true;
  const close = (code: string, message: string) => {
    const reason = Buffer.from(`${code}: ${message}`).subarray(0, MAX_REASON_BYTES).toString("latin1");
    // A node that reads nothing would keep the connection half closed.
    runtime.setIdleTimer(() => socket.terminate(), CLOSE_TIMEOUT_MS);
    socket.close(CLOSE_CODE_OF[code] ?? CLOSE_CODES.protocol, reason.replace(/[^\x20-\x7e]/g, "?"));
  };

  const link = coordinator.accept(
    subject,
    {
      send: (message) => {
        if (socket.readyState !== socket.OPEN) return;
        if (socket.bufferedAmount > MAX_BUFFERED_BYTES) return socket.terminate();
        socket.send(JSON.stringify(message));
      },
      close,
    },
    accept,
  );
  const end = (code: `ERR_${string}`, message: string) =>
    void coordinator.dismiss(link, code, message).catch(() => undefined);

  for (const message of first) void coordinator.receive(link, message);
  const hello = runtime.setTimer(() => {
    if (link.nodeKey === undefined) end("ERR_SILENT", "no hello came");
  }, helloTimeoutMs);
  const pace = messagePace(socket, runtime);
  socket.on("message", (data: RawData, isBinary: boolean) => {
    heard = true;
    if (isBinary) return end("ERR_BAD_VALUE", "messages are text");
    const message = data as Buffer;
    waiting++;
    waitingBytes += message.length;
    if (waiting > MAX_WAITING_MESSAGES || waitingBytes > MAX_WAITING_BYTES)
      return end("ERR_TOO_MANY_MESSAGES", "messages come faster than they can be handled");
    pace.took(message.length);
    void coordinator.receive(link, message).finally(() => {
      waiting--;
      waitingBytes -= message.length;
    });
  });
  socket.on("pong", () => {
    heard = true;
    coordinator.heard(link);
  });
  const clockOffsetMs = wallClockMs() - runtime.nowMs();
  const pings = runtime.repeat(() => {
    // Nothing was heard, so no close would be answered either.
    if (!heard) return socket.terminate();
    heard = false;
    if (Math.abs(wallClockMs() - runtime.nowMs() - clockOffsetMs) > CLOCK_SET_MS)
      return end("ERR_CLOCK_SET", "the coordinator's clock was set");
    socket.ping();
  }, pingIntervalMs);
  socket.on("error", () => socket.terminate());
  socket.on("close", () => {
    runtime.clearTimer(pings);
    runtime.clearTimer(hello);
    pace.stop();
    // A store that fails here keeps a record nobody renews: it expires.
    coordinator.disconnect(link).catch(() => undefined);
  });
  return link;
}

/** Stops reading from a node that says more than it may, until it may again. */
function messagePace(socket: WebSocket, runtime: Runtime): { took(bytes: number): void; stop(): void } {
  let messages = MESSAGE_BURST;
  let bytes = BYTE_BURST;
  let at = runtime.nowMs();
  let timer: Timer | undefined;
  return {
    took(length) {
      const now = runtime.nowMs();
      const seconds = (now - at) / 1000;
      at = now;
      messages = Math.min(MESSAGE_BURST, messages + seconds * MESSAGES_PER_SECOND) - 1;
      bytes = Math.min(BYTE_BURST, bytes + seconds * BYTES_PER_SECOND) - length;
      const waitMs = Math.max((-messages * 1000) / MESSAGES_PER_SECOND, (-bytes * 1000) / BYTES_PER_SECOND);
      if (waitMs <= 0 || timer) return;
      socket.pause();
      timer = runtime.setTimer(() => {
        timer = undefined;
        socket.resume();
      }, waitMs);
    },
    stop: () => runtime.clearTimer(timer),
  };
}
