// What a node needs of relays. The relay client in derp/ satisfies it; mesh/ knows no relay itself.

/** One packet that came through the relay of `region`. Valid until `onPacket` returns: its memory is used again. */
export interface RelayPacket {
  /** Node key of the sender, 32 bytes: the relay vouches for it, the session must prove it. */
  src: Uint8Array;
  region: number;
  data: Uint8Array;
}

export interface RelayState {
  region: number;
  connected: boolean;
  /** Why the connection ended or could not be made. */
  error?: Error;
}

/** A node of a DERP map, as far as a client reads it (names as in the map's JSON). */
export interface DerpNodeLike {
  Name: string;
  RegionID: number;
  HostName: string;
  /** Literal: connect there. Empty or absent: resolve HostName. Any other text: this family is off. */
  IPv4?: string;
  IPv6?: string;
  /** 0 or absent: 443, or 80 with ForceHTTP. */
  DERPPort?: number;
  /** 0 or absent: 3478; -1: none. */
  STUNPort?: number;
  STUNOnly?: boolean;
  ForceHTTP?: boolean;
  InsecureForTests?: boolean;
}

export interface DerpRegionLike {
  RegionID: number;
  RegionCode: string;
  RegionName: string;
  /** The region is the control plane's own relay, reached at whatever address the control plane is. */
  EmbeddedRelay?: boolean;
  Avoid?: boolean;
  NoMeasureNoHome?: boolean;
  /** In order of preference. */
  Nodes: DerpNodeLike[];
}

export interface DerpMapLike {
  Regions: Record<string, DerpRegionLike>;
}

/** Connections to relays, one per region, made and kept by the implementation. */
export interface Relay {
  readonly homeRegion: number | undefined;
  /**
   * Sends `data` (at most 65,536 bytes, not changed afterwards) to the node key `peer`.
   *
   * @returns false when dropped: the queue is full (`onDrain` follows) or there is no connection (`onState` follows)
   */
  send(peer: Uint8Array, region: number, data: Uint8Array): boolean;
  /** As `send`, of data in pieces that follow one another, where that saves joining them. */
  sendPieces?(peer: Uint8Array, region: number, pieces: readonly Uint8Array[]): boolean;
  /**
   * Whether the next `send` to `region` would be taken. After false, `onDrain` or `onState` follows: ask before a packet
   * is made that must not be lost.
   */
  isWritable(region: number): boolean;
  onPacket: ((packet: RelayPacket) => void) | undefined;
  /** `reason`: 0 disconnected, 1 not here. */
  onPeerGone: ((peer: Uint8Array, region: number, reason: number) => void) | undefined;
  onState: ((state: RelayState) => void) | undefined;
  onDrain: ((region: number) => void) | undefined;
  /** Bytes accepted by `send` that the operating system has not taken yet. */
  bufferedBytes(region: number): number;
  setMap(map: DerpMapLike): void;
  /** Resolves once packets can be sent to `region`. */
  connect(region: number): Promise<void>;
  /**
   * The network may have changed, or a path seems dead: tests the connection to `region` (all of them without one)
   * within 3 s, and reconnects at once when it does not answer; a pause before a reconnect is cut short.
   */
  check(region?: number): void;
  /** @returns round-trip time to the region's relay, in ms */
  ping(region: number): Promise<number>;
  close(): Promise<void>;
}
