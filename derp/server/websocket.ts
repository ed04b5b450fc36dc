// DERP over WebSocket: for browsers, and for networks that let no other upgrade pass. The messages' payloads, joined,
// are the same byte stream; where one message ends means nothing.
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { createWebSocketStream, type WebSocket, WebSocketServer } from "ws";
import { HEADER_BYTES, KEY_BYTES, MAX_CLIENT_INFO_BYTES, MAX_PACKET_BYTES } from "../../mesh/wire/derp.ts";
import type { UpgradeRequest } from "./http.ts";

const CLOSE_UNSUPPORTED_DATA = 1003;

const acceptor = new WebSocketServer({
  noServer: true,
  clientTracking: false,
  perMessageDeflate: false, // packets are ciphertext
  maxPayload: Math.max(MAX_CLIENT_INFO_BYTES, MAX_PACKET_BYTES) + HEADER_BYTES + 2 * KEY_BYTES,
  handleProtocols: () => "derp",
});

/** Answers the upgrade (subprotocol `derp`, any origin) and hands over the byte stream; nothing when it is malformed. */
export function acceptWebSocket(
  req: UpgradeRequest,
  socket: Duplex,
  head: Uint8Array,
  onStream: (stream: Duplex) => void,
): void {
  // Of the request it reads method, headers and URL alone.
  acceptor.handleUpgrade(req as IncomingMessage, socket, Buffer.from(head), (webSocket: WebSocket) => {
    webSocket.on("message", (_data, isBinary) => {
      if (!isBinary) webSocket.close(CLOSE_UNSUPPORTED_DATA, "DERP messages are binary");
    });
    onStream(createWebSocketStream(webSocket));
  });
}
