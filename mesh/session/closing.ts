import { CLOSE_NUMBER, clipReason, type PacketWriter } from "../wire/session.ts";

/** After CLOSE, the 1st, 2nd, 4th ... packet that still comes is answered, up to this one. */
const MAX_ANSWERED_PACKET = 4_096;
/** A packet under way for longer than this is answered by whoever knows no such session. */
export const CLOSE_LINGER_MS = 3_000;

/** A session that has ended: why, and where CLOSE is still to be said. */
export class Closing {
  readonly code: number;
  readonly reason: string;
  readonly byPeer: boolean;
  readonly at: number;
  readonly #lanes: Set<number>;
  #packets = 0;
  #peerKnows: boolean;

  constructor(code: number, reason: string, byPeer: boolean, at: number, lanes: Iterable<number>) {
    this.code = code;
    this.reason = clipReason(reason);
    this.byPeer = byPeer;
    this.at = at;
    this.#lanes = new Set(byPeer ? [] : lanes);
    this.#peerKnows = byPeer;
  }

  get endsAt(): number | undefined {
    return this.#peerKnows ? undefined : this.at + CLOSE_LINGER_MS;
  }

  addLane(lane: number): void {
    if (!this.#peerKnows) this.#lanes.add(lane);
  }

  removeLane(lane: number): void {
    this.#lanes.delete(lane);
  }

  /** Both said it at once. */
  onPeerClosed(): void {
    this.#peerKnows = true;
    this.#lanes.clear();
  }

  /** The peer has not heard: tell it again, less and less often. */
  onPacket(lane: number): void {
    const count = ++this.#packets;
    if (count <= MAX_ANSWERED_PACKET && (count & (count - 1)) === 0) this.addLane(lane);
  }

  /** @returns whether `lane` has a CLOSE to carry; it is in `writer` then */
  fill(lane: number, tag: number, writer: PacketWriter): boolean {
    if (!this.#lanes.delete(lane)) return false;
    writer.header(tag, CLOSE_NUMBER);
    const { code, reason } = this;
    return (
      writer.tryFrame({ kind: "close", code, reason }) || writer.tryFrame({ kind: "close", code, reason: "" })
    );
  }
}
