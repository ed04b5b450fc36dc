import { Duplex } from "node:stream";
import { MeshError } from "../wire/errors.ts";

export type MeshNodeErrorCode =
  | "ERR_PEER_UNREACHABLE"
  | "ERR_SESSION_CLOSED"
  | "ERR_STREAM_RESET"
  | "ERR_NODE_CLOSED"
  | "ERR_TIMEOUT";

/** A session, stream or dial that ended otherwise than by its own end. `closeCode`: the session's, when it had one. */
export class MeshNodeError extends MeshError {
  readonly code: MeshNodeErrorCode;
  readonly closeCode: number | undefined;
  constructor(code: MeshNodeErrorCode, message: string, options?: ErrorOptions & { closeCode?: number }) {
    super(message, options);
    this.code = code;
    this.closeCode = options?.closeCode;
  }
}

/** What a stream asks of its session; the node implements it and pumps packets after each call. */
export interface StreamOwner {
  /** @returns how many bytes were taken; the rest waits for `onWritable` */
  write(stream: number, bytes: Uint8Array): number;
  end(stream: number): void;
  read(stream: number): Uint8Array | undefined;
  reset(stream: number, code: number): void;
  stopSending(stream: number, code: number): void;
  sendDatagram(stream: number, bytes: Uint8Array): boolean;
}

/** Application codes in RESET_STREAM and STOP_SENDING. */
export const STREAM_CODES = { cancelled: 0, refused: 1, noService: 2, failed: 3 } as const;

/**
 * One stream of a session as a Duplex: each direction ends by itself (`end()` is our FIN, 'end' the peer's),
 * `destroy()` resets both, and back-pressure reaches the peer through the session's windows.
 */
export class MeshStream extends Duplex {
  readonly id: number;
  readonly service: string;
  readonly metadata: Uint8Array;
  readonly #owner: StreamOwner;
  /** Gets each datagram of this stream as it comes; without it they are dropped. They share no order with the bytes. */
  onDatagram: ((bytes: Uint8Array) => void) | undefined;
  #waiting: { bytes: Uint8Array; done: (error?: Error | null) => void } | undefined;
  #wanted = false;
  #ended = false;
  #settled = false;

  /** Monotonic ms. */
  readonly openedAt: number;

  constructor(id: number, service: string, metadata: Uint8Array, owner: StreamOwner, openedAt = 0) {
    super({ allowHalfOpen: true, highWaterMark: 128 * 1024 });
    this.id = id;
    this.service = service;
    this.metadata = metadata;
    this.#owner = owner;
    this.openedAt = openedAt;
  }

  /**
   * Sends one datagram beside the stream: at once or never, at most once, in no certain order.
   *
   * @param bytes at most 56,000; kept until sent: don't change them
   * @returns false when one was dropped: the queue is full (then it is the oldest), it is too large, the stream is closed
   */
  sendDatagram(bytes: Uint8Array): boolean {
    return !this.destroyed && this.#owner.sendDatagram(this.id, bytes);
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    const taken = this.#owner.write(this.id, chunk);
    if (taken >= chunk.length) done();
    else this.#waiting = { bytes: chunk.subarray(taken), done };
  }

  override _writev(
    chunks: { chunk: Buffer; encoding: BufferEncoding }[],
    done: (error?: Error | null) => void,
  ): void {
    this._write(
      chunks.length === 1 ? chunks[0].chunk : Buffer.concat(chunks.map(({ chunk }) => chunk)),
      "binary",
      done,
    );
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#owner.end(this.id);
    done();
  }

  override _read(): void {
    this.#wanted = true;
    this.onReadable();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    // After a clean end of both directions there is nothing left to take back.
    if (!this.#settled && !(this.writableFinished && this.#ended)) {
      const code = error ? STREAM_CODES.failed : STREAM_CODES.cancelled;
      if (!this.writableFinished) this.#owner.reset(this.id, code);
      if (!this.#ended) this.#owner.stopSending(this.id, code);
    }
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.done(error ?? new MeshNodeError("ERR_STREAM_RESET", "the stream was closed"));
    done(error);
  }

  /** The session has bytes for this stream. Taking them is what gives the peer credit for more. */
  onReadable(): void {
    while (this.#wanted && !this.destroyed) {
      const bytes = this.#owner.read(this.id);
      if (bytes === undefined) return;
      this.#wanted = this.push(bytes);
    }
  }

  onWritable(): void {
    const waiting = this.#waiting;
    if (!waiting) return;
    const taken = this.#owner.write(this.id, waiting.bytes);
    if (taken < waiting.bytes.length) {
      waiting.bytes = waiting.bytes.subarray(taken);
      return;
    }
    this.#waiting = undefined;
    waiting.done();
  }

  /** The peer's end, after the last byte was read. */
  onFin(): void {
    if (this.#ended || this.destroyed) return;
    this.#ended = true;
    this.push(null);
  }

  /** The peer wants no more of what we write; what it writes may still come. */
  onStopped(): void {
    if (this.writableFinished) return; // all was said: the answer is still ours to read
    const waiting = this.#waiting;
    this.#waiting = undefined;
    const error = new MeshNodeError("ERR_STREAM_RESET", "the other side stopped reading");
    if (waiting) waiting.done(error);
    else this.destroy(error);
  }

  /** The peer gave up what it was sending; we give up the other direction, which nobody can use any more. */
  onReset(error: MeshNodeError): void {
    this.#ended = true;
    this.destroy(error);
  }

  /** The stream ended from outside: refused by us, or its session is gone (without an error: we closed it). */
  onFailed(error: MeshNodeError | undefined): void {
    this.#settled = true;
    this.destroy(error);
  }
}
