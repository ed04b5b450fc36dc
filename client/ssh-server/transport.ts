import type { Readable, Writable } from "node:stream";
import { SIGNALS } from "ssh2/lib/protocol/constants.js";
import Protocol, { type ChannelOpen, type MessageHandlers } from "ssh2/lib/protocol/Protocol.js";
import { VERSION } from "../version.ts";
import type { ChannelWire } from "./channel.ts";
import { HOST_KEY_TYPE, type HostKey } from "./hostkey.ts";
import { decodePtyRequest, type PtyRequestMessage } from "./modes.ts";

/**
 * The client is on this machine and behind a pipe: what counts is speed, and every OpenSSH since 6.5 (2014) has these.
 * AES-GCM only: without a native addon anything else costs several times as much in Node.
 */
const KEX = ["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"];
const CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"];
const CIPHER_OFFER = {
  cipher: CIPHERS,
  mac: ["hmac-sha2-256-etm@openssh.com"],
  compress: ["none"],
  lang: [],
};
/**
 * Begins as OpenSSH's, since that is what the OpenSSH client goes by when it decides whether the other side knows its
 * extensions. We know those it then uses; without eow@openssh.com `ssh host yes | head -1` would never end.
 */
const IDENT = `OpenSSH_coder_${VERSION.replace(/[^\w.]/g, "_")}`;
const STDERR_TYPE = 1;
/** RFC 4253 section 11.1. */
export const DISCONNECT = { protocolError: 2, connectionLost: 10, byApplication: 11 } as const;
/** With more unread in its pipe the client gets no more; windows alone would allow 2 MiB for each channel. */
const MAX_UNREAD_BYTES = 512 * 1024;

/** Messages of the connection layer, RFC 4254, in the order the client sent them. */
export interface ConnectionHandler {
  onAuthenticated(): void;
  /** @param data as ssh2 parses it: an object for the forwards, raw bytes for what it doesn't know */
  onGlobalRequest(name: string, wantReply: boolean, data: unknown): void;
  onOpen(open: ChannelOpen): void;
  onOpenConfirmed(localId: number, remote: { id: number; window: number; packetSize: number }): void;
  onOpenFailed(localId: number): void;
  onAdjust(localId: number, bytes: number): void;
  onData(localId: number, bytes: Buffer): void;
  onEof(localId: number): void;
  onClose(localId: number): void;
  onPtyRequest(request: PtyRequestMessage): void;
  onRequest(localId: number, type: string, wantReply: boolean, data: unknown): void;
  /** The pipe takes data again. */
  onDrain(): void;
  /** Once: the client went away, or one side broke the protocol. */
  onEnd(error: Error | undefined): void;
}

/**
 * SSH's transport and login on a pair of pipes; nothing of it blocks. Login is for whoever holds the pipe: any user
 * name, no secret. Keys are taken from ssh2, and so are packets and their encryption.
 */
export class Transport implements ChannelWire {
  readonly #protocol: Protocol;
  readonly #output: Writable;
  readonly #handler: ConnectionHandler;
  #isAuthenticated = false;
  #isEnded = false;
  #isCorked = false;

  constructor(pipes: { input: Readable; output: Writable }, hostKey: HostKey, handler: ConnectionHandler) {
    const { input, output } = pipes;
    this.#output = output;
    this.#handler = handler;
    this.#protocol = new Protocol({
      server: true,
      hostKeys: { [HOST_KEY_TYPE]: hostKey },
      ident: IDENT,
      offer: { kex: [...KEX], serverHostKey: [HOST_KEY_TYPE], cs: CIPHER_OFFER, sc: CIPHER_OFFER },
      onWrite: (bytes) => this.#write(bytes),
      onError: (error) => this.#end(error),
      messageHandlers: this.#handlers(),
    });
    // ssh2 1.17 reads the modes of a pty-req one byte too late, so that they come out empty or as an error.
    const onPayload = this.#protocol._onPayload;
    this.#protocol._onPayload = (payload) => {
      const pty = this.#isAuthenticated ? decodePtyRequest(payload) : undefined;
      return pty ? handler.onPtyRequest(pty) : onPayload(payload);
    };
    input.on("data", (chunk: Buffer) => {
      if (this.#isEnded) return;
      try {
        this.#protocol.parse(chunk, 0, chunk.length);
      } catch (error) {
        this.#end(error instanceof Error ? error : new Error(String(error)));
      }
    });
    input.on("end", () => this.#end(undefined));
    input.on("close", () => this.#end(undefined));
    input.on("error", () => this.#end(undefined));
    output.on("error", () => this.#end(undefined)); // the client is gone
    output.on("drain", () => {
      if (!this.#isEnded) handler.onDrain();
    });
    this.#protocol.start();
  }

  /** Says goodbye, if there is anybody to say it to. `onEnd` is not called. */
  disconnect(reason: number = DISCONNECT.byApplication): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    try {
      this.#protocol.disconnect(reason);
    } catch {
      // it was never up
    }
    this.#protocol.cleanup();
  }

  isFull(): boolean {
    return this.#output.writableLength > MAX_UNREAD_BYTES;
  }

  data(remoteId: number, bytes: Buffer): void {
    this.#send((ssh) => ssh.channelData(remoteId, bytes));
  }

  stderr(remoteId: number, bytes: Buffer): void {
    this.#send((ssh) => ssh.channelExtData(remoteId, bytes, STDERR_TYPE));
  }

  eof(remoteId: number): void {
    this.#send((ssh) => ssh.channelEOF(remoteId));
  }

  close(remoteId: number): void {
    this.#send((ssh) => ssh.channelClose(remoteId));
  }

  adjust(remoteId: number, bytes: number): void {
    this.#send((ssh) => ssh.channelWindowAdjust(remoteId, bytes));
  }

  exitStatus(remoteId: number, status: number): void {
    this.#send((ssh) => ssh.exitStatus(remoteId, status));
  }

  /** `name`: without SIG, as the channel format allows it. */
  exitSignal(remoteId: number, name: string, coreDumped: boolean, text: string): void {
    SIGNALS[name] = 1; // RFC 4254 section 6.10 allows others than the thirteen of its list
    this.#send((ssh) => ssh.exitSignal(remoteId, name, coreDumped, text));
  }

  /** Sends one message through ssh2's encoder, unless the connection is over. */
  message(encode: (ssh: Protocol) => void): void {
    this.#send(encode);
  }

  #send(encode: (ssh: Protocol) => void): void {
    if (!this.#isEnded) encode(this.#protocol);
  }

  /** ssh2 writes three pieces a packet: they, and the packets of one turn, leave in one system call. */
  #write(bytes: Buffer): void {
    if (this.#output.destroyed || this.#output.writableEnded) return;
    if (!this.#isCorked) {
      this.#isCorked = true;
      this.#output.cork();
      process.nextTick(() => {
        this.#isCorked = false;
        this.#output.uncork();
      });
    }
    this.#output.write(bytes);
  }

  #end(error: Error | undefined): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#protocol.cleanup();
    this.#handler.onEnd(error);
  }

  #handlers(): MessageHandlers {
    const handler = this.#handler;
    /** Nothing of the connection layer counts before login. */
    const authenticated =
      <T extends unknown[]>(take: (...args: T) => void) =>
      (_: Protocol, ...args: T) => {
        if (this.#isAuthenticated) take(...args);
      };
    return {
      DISCONNECT: () => this.#end(undefined),
      SERVICE_REQUEST: (ssh, service) => {
        if (service === "ssh-userauth") ssh.serviceAccept(service);
        else this.#refuse(`the client asked for service ${JSON.stringify(service)}`);
      },
      USERAUTH_REQUEST: (ssh, _user, service) => {
        // RFC 4252 section 5.1: requests behind a success are ignored.
        if (this.#isAuthenticated) return;
        if (service !== "ssh-connection") return this.#refuse("the client wants to log in to something else");
        this.#isAuthenticated = true;
        ssh.authSuccess();
        handler.onAuthenticated();
      },
      GLOBAL_REQUEST: authenticated((name, wantReply, data) =>
        handler.onGlobalRequest(name, wantReply, data),
      ),
      CHANNEL_OPEN: authenticated((open) => handler.onOpen(open)),
      CHANNEL_OPEN_CONFIRMATION: authenticated(({ recipient, sender, window, packetSize }) =>
        handler.onOpenConfirmed(recipient, { id: sender, window, packetSize }),
      ),
      CHANNEL_OPEN_FAILURE: authenticated((localId) => handler.onOpenFailed(localId)),
      CHANNEL_WINDOW_ADJUST: authenticated((localId, bytes) => handler.onAdjust(localId, bytes)),
      CHANNEL_DATA: authenticated((localId, bytes) => handler.onData(localId, bytes)),
      CHANNEL_EOF: authenticated((localId) => handler.onEof(localId)),
      CHANNEL_CLOSE: authenticated((localId) => handler.onClose(localId)),
      CHANNEL_REQUEST: authenticated((localId, type, wantReply, data) =>
        handler.onRequest(localId, type, wantReply, data),
      ),
    };
  }

  #refuse(reason: string): void {
    this.#protocol.disconnect(DISCONNECT.protocolError);
    this.#end(new Error(reason));
  }
}
