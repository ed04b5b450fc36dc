// DERP over WebSocket, for networks that let no other upgrade pass: the messages' payloads, joined, are the same byte
// stream. Loaded only when it is needed, since most nodes never do.
import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { type RawData, WebSocket } from "ws";
import { RelayError } from "./errors.ts";
import { refused } from "./upgrade.ts";

/** Other relays take at most 32 KiB in one message. */
const MAX_MESSAGE_BYTES = 16_384;
/** Largest frame there is, and its header: a relay may send it as one message. */
const MAX_PAYLOAD_BYTES = (1 << 20) + 5;
const CLOSE_NORMAL = 1000;
const CLOSE_GOING_AWAY = 1001;
/** Never sent: the other side closed without a code. */
const CLOSE_NO_CODE = 1005;
const CLOSE_UNSUPPORTED_DATA = 1003;

/**
 * Speaks WebSocket over a connected socket (TLS included).
 *
 * @throws {RelayError} ERR_RELAY_REFUSED with the status, ERR_RELAY_CLOSED, or the signal's reason
 */
export function openWebSocket(
  socket: Socket,
  url: URL,
  headers: Record<string, string>,
  signal: AbortSignal,
): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const target = new URL(url);
    target.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const webSocket = new WebSocket(target, "derp", {
      createConnection: () => socket,
      headers,
      perMessageDeflate: false, // packets are ciphertext
      followRedirects: false,
      maxPayload: MAX_PAYLOAD_BYTES,
    });
    const settle = (error?: unknown): void => {
      signal.removeEventListener("abort", onAbort);
      webSocket.off("error", onError);
      if (error === undefined) {
        resolve(new WebSocketStream(webSocket));
        return;
      }
      webSocket.on("error", () => {}); // of the destruction
      webSocket.terminate();
      socket.destroy();
      reject(error);
    };
    const onAbort = (): void => settle(signal.reason);
    const onError = (cause: Error): void =>
      settle(
        new RelayError("ERR_RELAY_CLOSED", `${url.origin} speaks no DERP over WebSocket: ${cause.message}`, {
          cause,
        }),
      );
    webSocket.once("open", () => settle());
    webSocket.once("unexpected-response", (_request, response) =>
      settle(refused(url.origin, response.statusCode ?? 0)),
    );
    webSocket.on("error", onError);
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
  });
}

class WebSocketStream extends Duplex {
  #webSocket: WebSocket;

  constructor(webSocket: WebSocket) {
    super({ allowHalfOpen: false, decodeStrings: false });
    this.#webSocket = webSocket;
    webSocket.on("message", (data: RawData, isBinary) => {
      if (!isBinary) webSocket.close(CLOSE_UNSUPPORTED_DATA, "DERP messages are binary");
      else if (!this.push(data)) webSocket.pause();
    });
    webSocket.on("error", (error) => this.destroy(error));
    webSocket.on("close", (code) => {
      if ([CLOSE_NORMAL, CLOSE_GOING_AWAY, CLOSE_NO_CODE].includes(code)) this.push(null);
      else this.destroy(new RelayError("ERR_RELAY_CLOSED", `the relay's WebSocket closed with code ${code}`));
    });
  }

  override _read(): void {
    this.#webSocket.resume();
  }

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#send(chunk, done);
  }

  override _writev(chunks: { chunk: Uint8Array }[], done: (error?: Error | null) => void): void {
    this.#send(Buffer.concat(chunks.map(({ chunk }) => chunk)), done);
  }

  override _final(done: () => void): void {
    this.#webSocket.close(CLOSE_NORMAL);
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#webSocket.terminate();
    done(error);
  }

  #send(bytes: Uint8Array, done: (error?: Error | null) => void): void {
    let at = 0;
    while (bytes.length - at > MAX_MESSAGE_BYTES) {
      this.#webSocket.send(bytes.subarray(at, at + MAX_MESSAGE_BYTES), { binary: true });
      at += MAX_MESSAGE_BYTES;
    }
    this.#webSocket.send(bytes.subarray(at), { binary: true }, done);
  }
}
