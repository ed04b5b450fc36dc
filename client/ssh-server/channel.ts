/** What we let the client send before we took it: large enough that no local pipe waits for us. */
export const RECEIVE_WINDOW_BYTES = 2 * 1024 * 1024;
/** The largest DATA payload either way. OpenSSH sends and takes 32 KiB; ssh2 takes no larger packet. */
export const MAX_PACKET_BYTES = 32 * 1024;
/** Window is given back in pieces of this size, not per packet. */
const ADJUST_BYTES = RECEIVE_WINDOW_BYTES / 8;

/** What a channel asks of the SSH connection; ids are the client's. */
export interface ChannelWire {
  data(remoteId: number, bytes: Buffer): void;
  stderr(remoteId: number, bytes: Buffer): void;
  eof(remoteId: number): void;
  close(remoteId: number): void;
  adjust(remoteId: number, bytes: number): void;
  /** The client does not read its pipe: what is sent now only waits in memory. */
  isFull(): boolean;
}

interface Piece {
  isStderr: boolean;
  bytes: Buffer;
}

/**
 * One channel of the SSH connection, RFC 4254 section 5: both windows, the order of data, EOF and CLOSE. Decides only;
 * what goes out goes to `wire`.
 */
export class Channel {
  readonly localId: number;
  readonly remoteId: number;
  /** Bytes of the client, to be acknowledged with `consumed`. */
  onData: (bytes: Buffer) => void = () => {};
  onEof: () => void = () => {};
  /** The client closed the channel, or the connection is gone. Once; nothing follows. */
  onClose: () => void = () => {};
  /** All that was written is out: more is welcome. */
  onDrain: () => void = () => {};
  readonly #wire: ChannelWire;
  readonly #maxPacketBytes: number;
  #sendWindow: number;
  #queue: Piece[] = [];
  #receiveWindow = RECEIVE_WINDOW_BYTES;
  #consumed = 0;
  #isAwaited = false;
  /** What to do once the queue is empty, in order. */
  #afterQueue: (() => void)[] = [];
  #sentEof = false;
  #sentClose = false;
  #gotEof = false;
  #gotClose = false;

  constructor(
    wire: ChannelWire,
    ids: { localId: number; remoteId: number },
    limits: { window: number; packetSize: number },
  ) {
    this.#wire = wire;
    this.localId = ids.localId;
    this.remoteId = ids.remoteId;
    this.#sendWindow = limits.window;
    this.#maxPacketBytes = Math.max(1, Math.min(limits.packetSize, MAX_PACKET_BYTES));
  }

  /** Nothing can be sent any more. */
  get isClosed(): boolean {
    return this.#sentClose || this.#gotClose;
  }

  /** @returns false when the caller should wait for `onDrain`; the bytes are kept all the same */
  write(bytes: Uint8Array, kind: "data" | "stderr" = "data"): boolean {
    if (this.isClosed || this.#sentEof) return true;
    if (bytes.length > 0) {
      const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
      this.#queue.push({ isStderr: kind === "stderr", bytes: view });
      this.pump();
    }
    this.#isAwaited = this.#queue.length > 0;
    return !this.#isAwaited;
  }

  /** Runs `action` behind everything written so far, unless the channel closes before. */
  whenWritten(action: () => void): void {
    if (this.isClosed) return;
    this.#afterQueue.push(action);
    this.pump();
  }

  /** No more data from us, behind what is queued. */
  eof(): void {
    this.whenWritten(() => {
      if (this.#sentEof) return;
      this.#sentEof = true;
      this.#wire.eof(this.remoteId);
    });
  }

  /** Behind what is queued. Data of the client is ignored from then on. */
  close(): void {
    this.whenWritten(() => this.abort());
  }

  /** CLOSE at once; what is queued is dropped. */
  abort(): void {
    if (this.#sentClose) return;
    this.#sentClose = true;
    this.#queue = [];
    this.#afterQueue = [];
    this.#wire.close(this.remoteId);
  }

  /** `bytes` that `onData` handed over went on; the client may send as many again. */
  consumed(bytes: number): void {
    this.#consumed += bytes;
    if (this.#consumed < ADJUST_BYTES || this.isClosed || this.#gotEof) return;
    this.#receiveWindow += this.#consumed;
    this.#wire.adjust(this.remoteId, this.#consumed);
    this.#consumed = 0;
  }

  /** @returns false when the client sent more than its window: it broke the protocol */
  receiveData(bytes: Buffer): boolean {
    if (bytes.length > this.#receiveWindow) return false;
    this.#receiveWindow -= bytes.length;
    if (this.isClosed || this.#gotEof) return true;
    if (bytes.length > 0) this.onData(bytes);
    return true;
  }

  receiveEof(): void {
    if (this.isClosed || this.#gotEof) return;
    this.#gotEof = true;
    this.onEof();
  }

  receiveAdjust(bytes: number): void {
    // RFC 4254 section 5.2: a window never exceeds 2^32 - 1.
    this.#sendWindow = Math.min(this.#sendWindow + bytes, 0xffffffff);
    this.pump();
  }

  /** The client's CLOSE is answered with ours, if that did not go out before. */
  receiveClose(): void {
    if (this.#gotClose) return;
    this.#gotClose = true;
    this.abort();
    this.onClose();
  }

  /** The connection is gone: nothing can be said any more. */
  lose(): void {
    this.#sentClose = true;
    this.#queue = [];
    this.#afterQueue = [];
    if (this.#gotClose) return;
    this.#gotClose = true;
    this.onClose();
  }

  /** Sends what window and pipe allow. To be called again once the pipe has drained. */
  pump(): void {
    while (this.#queue.length > 0 && this.#sendWindow > 0 && !this.#wire.isFull()) {
      const piece = this.#queue[0];
      const length = Math.min(piece.bytes.length, this.#sendWindow, this.#maxPacketBytes);
      const head = piece.bytes.subarray(0, length);
      if (length === piece.bytes.length) this.#queue.shift();
      else piece.bytes = piece.bytes.subarray(length);
      this.#sendWindow -= length;
      if (piece.isStderr) this.#wire.stderr(this.remoteId, head);
      else this.#wire.data(this.remoteId, head);
    }
    if (this.#queue.length > 0) return;
    for (const action of this.#afterQueue.splice(0)) if (!this.isClosed) action();
    if (!this.#isAwaited || this.isClosed) return;
    this.#isAwaited = false;
    this.onDrain();
  }
}
