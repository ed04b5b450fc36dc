import { ReceiveHalf } from "./receive-half.ts";
import type { Schedulable } from "./scheduler.ts";
import { SendHalf } from "./send-half.ts";

/** One stream: two halves and what must still be said about it. */
export class Stream implements Schedulable {
  readonly id: number;
  readonly isLocal: boolean;
  readonly send: SendHalf;
  readonly receive: ReceiveHalf;
  service = "";
  metadata: Uint8Array = new Uint8Array();
  /** OPEN: ours waits for credit, is queued, sent, known to the peer; the peer's is awaited or done. */
  open: "waiting" | "queued" | "sent" | "done" = "waiting";
  stop: { code: number; state: "queued" | "sent" | "acked" } | undefined;
  /** A MAX_STREAM_DATA was lost: say it again even if no more room came. */
  windowLost = false;
  /** write() took less than it was given. */
  isWriterBlocked = false;
  isReadableTold = false;
  isEndTold = false;
  stopReceived: number | undefined;
  scheduled: "no" | "new" | "old" = "no";
  deficitBytes = 0;

  constructor(id: number, isLocal: boolean, sendCredit: number, receiveBytes: number, maxBytes: number) {
    this.id = id;
    this.isLocal = isLocal;
    this.send = new SendHalf(sendCredit);
    this.receive = new ReceiveHalf(receiveBytes, maxBytes);
  }

  /** Frames about the stream may be sent: its OPEN is on the way, or has come. */
  get isAnnounced(): boolean {
    return this.open === "sent" || this.open === "done";
  }

  onOpenAcked(): void {
    this.open = "done";
    this.metadata = new Uint8Array(); // it was only kept to be sent again
  }

  get windowIsDue(): boolean {
    const { receive } = this;
    if (receive.finalSize !== undefined || receive.isDone) return false;
    return this.windowLost || receive.window.isDue;
  }

  get isDone(): boolean {
    return this.open === "done" && this.send.isDone && this.receive.isDone;
  }
}
