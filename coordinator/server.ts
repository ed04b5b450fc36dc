import type { RawData, WebSocket } from "ws";
import type { Coordinator, NodeSubject } from "./coordinator.ts";

/** A node that neither spoke nor answered for two of these is gone. */
export const PING_INTERVAL_MS = 15_000;
/** Slow consumers are cut rather than buffered for: a node can always reconnect and ask again. */
const MAX_BUFFERED_BYTES = 4 << 20;
/** Messages a node may have waiting; more is a flood. */
const MAX_WAITING_MESSAGES = 256;
/** Application close codes (RFC 6455 section 7.4.2); the reason carries our stable code. */
const CLOSE_PROTOCOL = 4400;
const CLOSE_SHUTDOWN = 4503;

/** Joins a WebSocket, upgraded and authenticated by the caller, to the coordinator. */
export function serveNode(coordinator: Coordinator, socket: WebSocket, subject: NodeSubject): void {
  let waiting = 0;
  let heard = true;
  const close = (code: string, message: string) =>
    socket.close(
      code === "ERR_SHUTTING_DOWN" ? CLOSE_SHUTDOWN : CLOSE_PROTOCOL,
      `${code}: ${message}`.slice(0, 120),
    );

  const link = coordinator.accept(subject, {
    send: (message) => {
      if (socket.readyState !== socket.OPEN) return;
      if (socket.bufferedAmount > MAX_BUFFERED_BYTES) return socket.terminate();
      socket.send(JSON.stringify(message));
    },
    close,
  });

  socket.on("message", (data: RawData, isBinary: boolean) => {
    heard = true;
    if (isBinary) return close("ERR_BAD_VALUE", "messages are text");
    if (++waiting > MAX_WAITING_MESSAGES) return socket.terminate();
    void coordinator.receive(link, data as Buffer).finally(() => waiting--);
  });
  socket.on("pong", () => {
    heard = true;
    coordinator.heard(link);
  });
  const pings = setInterval(() => {
    if (!heard) return socket.terminate();
    heard = false;
    socket.ping();
  }, PING_INTERVAL_MS);
  socket.on("error", () => socket.terminate());
  socket.on("close", () => {
    clearInterval(pings);
    void coordinator.disconnect(link);
  });
}
