import net from "node:net";
import type { Duplex } from "node:stream";
import { ANSWER, encodeAnswer, MAX_ANSWER_BYTES } from "../mesh/wire/forward.ts";

/** A stream as the mesh hands it over: `metadata` is its OPEN frame's. */
export type IncomingStream = Duplex & { readonly service: string; readonly metadata: Uint8Array };

/** A stream whose service exchanges datagrams beside its bytes. */
export type DatagramStream = IncomingStream & {
  /** @returns false when it was dropped: queue full, too large, closed */
  sendDatagram(bytes: Uint8Array): boolean;
  onDatagram: ((bytes: Uint8Array) => void) | undefined;
};

/** The client at the other end of the session a stream came on. */
export interface Peer {
  readonly nodeKey: string;
  readonly grant: { readonly userId: string; readonly username: string };
  /** Opens a stream back to it. @throws when the session is gone or has too many streams */
  open(service: string, metadata: Uint8Array): Duplex;
}

/** How long a peer that was answered for good may take to end its side. */
const LINGER_MS = 10_000;

/** The first thing said on a stream of mesh/wire/forward.ts; raw bytes may follow. */
export function accept(stream: Duplex, text = ""): void {
  stream.write(encodeAnswer(ANSWER.ok, text));
}

/** The answer, and our end. Resolves once the stream is closed. `text`: cut to what an ANSWER carries */
export function conclude(stream: Duplex, status: number, text: string): Promise<void> {
  const fits = Buffer.byteLength(text) <= MAX_ANSWER_BYTES;
  // Four bytes is the most one character takes.
  return lastWords(stream, encodeAnswer(status, fits ? text : text.slice(0, MAX_ANSWER_BYTES / 4)));
}

/** Writes `bytes`, ends our side, and waits (bounded) until the peer has ended its own. Never rejects. */
export async function lastWords(stream: Duplex, bytes: Uint8Array): Promise<void> {
  if (stream.destroyed) return;
  const closed = closeOf(stream);
  stream.on("error", () => {}); // reset meanwhile
  stream.end(bytes);
  stream.resume();
  const timer = setTimeout(() => stream.destroy(), LINGER_MS);
  timer.unref();
  await closed;
  clearTimeout(timer);
}

/** Resolves when the stream is closed, also if it already is. */
export function closeOf(stream: Duplex): Promise<void> {
  if (stream.closed) return Promise.resolve();
  return new Promise((resolve) => stream.once("close", () => resolve()));
}

/** A peer that waits for more must not take this for an end. Only TCP can say so. */
function reset(socket: net.Socket): void {
  if (socket.remoteFamily === undefined) socket.destroy();
  else socket.resetAndDestroy();
}

/**
 * Joins two streams for good: each direction ends by itself, back-pressure crosses, and one that is reset takes the
 * other with it. Resolves when both are closed.
 */
export async function join(a: Duplex, b: Duplex): Promise<void> {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    let failure: Error | undefined;
    from.on("error", (error) => {
      failure = error;
    });
    from.once("close", () => {
      if (to.destroyed) return;
      // A clean close comes after the end of both directions: then the pipes have said all there is.
      if (!failure && from.readableEnded && from.writableFinished) return;
      if (to instanceof net.Socket) reset(to);
      else to.destroy(failure);
    });
    if (from.destroyed) to.destroy();
    from.pipe(to);
  }
  await Promise.all([closeOf(a), closeOf(b)]);
}
