// The part of ssh2's transport that transport.ts uses. ssh2 publishes types for its client and server only.

declare module "ssh2/lib/protocol/Protocol.js" {
  /** Sends and receives one side's SSH packets: identification, key exchange, encryption, and the codec of messages. */
  export default class Protocol {
    constructor(config: ProtocolConfig);
    /** Sends our identification. Gone once it was called. */
    start(): void;
    /** @throws on what can't be parsed or authenticated */
    parse(chunk: Uint8Array, offset: number, length: number): void;
    cleanup(): void;
    disconnect(reason: number): void;

    serviceAccept(service: string): void;
    authSuccess(): void;
    requestSuccess(data?: Buffer): void;
    requestFailure(): void;
    /** A global request keepalive@openssh.com, which any client answers. */
    ping(): void;
    channelSuccess(channel: number): void;
    channelFailure(channel: number): void;
    channelData(channel: number, data: Buffer): void;
    channelExtData(channel: number, data: Buffer, type: number): void;
    channelEOF(channel: number): void;
    channelClose(channel: number): void;
    channelWindowAdjust(channel: number, bytes: number): void;
    channelOpenConfirm(remote: number, local: number, window: number, maxPacket: number): void;
    channelOpenFail(remote: number, reason: number, text: string): void;
    exitStatus(channel: number, status: number): void;
    /** @throws for a name that is not in SIGNALS */
    exitSignal(channel: number, name: string, coreDumped: boolean, text: string): void;
    forwardedTcpip(
      channel: number,
      window: number,
      maxPacket: number,
      from: { boundAddr: string; boundPort: number; remoteAddr: string; remotePort: number },
    ): void;
    openssh_forwardedStreamLocal(
      channel: number,
      window: number,
      maxPacket: number,
      from: { socketPath: string },
    ): void;
    x11(
      channel: number,
      window: number,
      maxPacket: number,
      from: { originAddr: string; originPort: number },
    ): void;
    openssh_authAgent(channel: number, window: number, maxPacket: number): void;

    /** Where decrypted payloads arrive; read when keys are taken into use. @returns what the decipher wants back */
    _onPayload: (payload: Buffer) => unknown;
  }

  export interface ProtocolConfig {
    server: true;
    /** By algorithm name. */
    hostKeys: Record<string, { getPublicSSH(): Buffer; sign(data: Buffer): Buffer | Error }>;
    ident: string;
    offer: Offer;
    onWrite(bytes: Buffer): void;
    onError(error: Error): void;
    onHandshakeComplete?(): void;
    messageHandlers: MessageHandlers;
  }

  export interface Offer {
    kex: string[];
    serverHostKey: string[];
    cs: OfferedCiphers;
    sc: OfferedCiphers;
  }

  interface OfferedCiphers {
    cipher: string[];
    mac: string[];
    compress: string[];
    lang: string[];
  }

  export interface MessageHandlers {
    DISCONNECT(protocol: Protocol, reason: number, text: string): void;
    SERVICE_REQUEST(protocol: Protocol, service: string): void;
    USERAUTH_REQUEST(protocol: Protocol, user: string, service: string, method: string): void;
    GLOBAL_REQUEST(protocol: Protocol, name: string, wantReply: boolean, data: unknown): void;
    CHANNEL_OPEN(protocol: Protocol, open: ChannelOpen): void;
    CHANNEL_OPEN_CONFIRMATION(
      protocol: Protocol,
      opened: { recipient: number; sender: number; window: number; packetSize: number },
    ): void;
    CHANNEL_OPEN_FAILURE(protocol: Protocol, recipient: number, reason: number, text: string): void;
    CHANNEL_WINDOW_ADJUST(protocol: Protocol, recipient: number, bytes: number): void;
    CHANNEL_DATA(protocol: Protocol, recipient: number, data: Buffer): void;
    CHANNEL_EOF(protocol: Protocol, recipient: number): void;
    CHANNEL_CLOSE(protocol: Protocol, recipient: number): void;
    CHANNEL_REQUEST(
      protocol: Protocol,
      recipient: number,
      type: string,
      wantReply: boolean,
      data: unknown,
    ): void;
  }

  export type ChannelOpen = {
    sender: number;
    window: number;
    packetSize: number;
  } & (
    | { type: "session"; data: object }
    | {
        type: "direct-tcpip";
        data: { destIP: string; destPort: number; srcIP: string; srcPort: number };
      }
    | { type: "direct-streamlocal@openssh.com"; data: { socketPath: string } }
  );
}

declare module "ssh2/lib/protocol/constants.js" {
  /** Signal names that exit-signal may carry. */
  export const SIGNALS: Record<string, 1>;
}
