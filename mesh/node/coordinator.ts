import type { NodeRecord, PublicSigningKey } from "../wire/signed.ts";

export interface GrantedAgent {
  /** The signed grant, as it goes into HELLO. */
  grant: Uint8Array;
  /** Where the agent is; undefined while it is not connected to the coordinator. */
  record: NodeRecord | undefined;
}

/** The coordinator as a node sees it. `coordinator/client.ts` implements it over a WebSocket. */
export interface Coordinator {
  readonly signingKeys: readonly PublicSigningKey[];
  /** Agents: which agent their token makes them, as the coordinator last said. */
  readonly agentId: string | undefined;
  /** Unix ms by the coordinator's clock, carried forward on a monotonic one. */
  nowMs(): number;
  /** @throws a MeshError with the coordinator's code (ERR_FORBIDDEN, ERR_WORKSPACE_STOPPED, ...) or ERR_COORDINATOR_UNREACHABLE */
  requestGrant(agentId: string, signal?: AbortSignal): Promise<GrantedAgent>;
  setHomeRegion(region: number): void;
  /** The machine slept or its network changed: finds out within seconds whether the connection still lives. */
  check?(): void;
  /** Said hello, for the first time or again: it remembers neither grants asked for nor agents watched before. */
  onConnected: (() => void) | undefined;
  onRecord: ((record: NodeRecord) => void) | undefined;
  onRecordGone: ((agentId: string) => void) | undefined;
  onRevoke: ((grantIds: readonly string[]) => void) | undefined;
  /** Grants of live sessions, listed on every (re)connect so that no revocation is lost while away. */
  liveGrants: (() => string[]) | undefined;
  close(): Promise<void>;
}
