// One connection to one relay as regions.ts uses it, so that another kind than DerpClient can stand in.
import type { DerpClient, DerpClientEvents } from "./client.ts";

export interface RelayConnection
  extends Pick<
      DerpClient,
      | "abandon"
      | "bufferedBytes"
      | "close"
      | "confirmed"
      | "connect"
      | "connected"
      | "family"
      | "fastStarted"
      | "isWritable"
      | "lastFrameAt"
      | "notePreferred"
      | "ping"
      | "send"
      | "stranded"
    >,
    Partial<Pick<DerpClient, "sendPieces">> {
  on<K extends keyof DerpClientEvents>(event: K, listener: (...args: DerpClientEvents[K]) => void): unknown;
}
