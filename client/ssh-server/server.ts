import { randomBytes } from "node:crypto";
import type { Duplex } from "node:stream";
import type { ChannelOpen } from "ssh2/lib/protocol/Protocol.js";
import { Channel, type ChannelWire, MAX_PACKET_BYTES, RECEIVE_WINDOW_BYTES } from "./channel.ts";
import type { ServerConnection } from "./connection.ts";
import type { Forwards } from "./forwards.ts";
import type { PtyRequestMessage } from "./modes.ts";
import { type ClientOpen, OPEN_FAILURE } from "./opens.ts";
import { joinStreams } from "./pipe.ts";
import { type SessionHost, SshSession } from "./session.ts";
import { type ConnectionHandler, DISCONNECT, type Transport } from "./transport.ts";

/** A session of the mesh holds 256 streams; remote forwards need some of them beside the channels. */
export const MAX_CHANNELS = 224;
/** Global requests and opens that wait for an answer; a client asks for some dozen forwards at its start. */
const MAX_PENDING_REQUESTS = 512;
/** A client answers an open at once; a person may be asked first only about agent keys, later. */
const OPEN_TIMEOUT_MS = 30_000;

/**
 * While a forward waits for a workspace that starts, a client's keepalives wait behind it for their answers, and it would
 * give us up. Any packet of ours tells it that we are there; ServerAliveInterval is in seconds.
 */
const ALIVE_MS = 1_000;

interface Opening {
  confirmed(remote: { id: number; window: number; packetSize: number }): void;
  failed(): void;
}

export interface ServerEvents {
  /** Once. `error`: one side broke the protocol; else the client went away. */
  onEnd(error: Error | undefined): void;
  /** A session was told, on its standard error, why it can't be or was cut off. */
  onFailureTold(): void;
  log(message: string): void;
}

/**
 * The connection layer of SSH (RFC 4254) for one client, each channel a stream of the mesh. Channels open only once
 * the workspace is reached, while key exchange and login, which need no workspace, go on.
 */
export class SshServer implements ConnectionHandler {
  readonly connection: Promise<ServerConnection>;
  readonly #transport: Transport;
  readonly #events: ServerEvents;
  readonly #channels = new Map<number, Channel>();
  readonly #sessions = new Map<number, SshSession>();
  readonly #openings = new Map<number, Opening>();
  #nextId = 0;
  #refusesSessions = false;
  #forwards: Promise<Forwards> | undefined;
  /** Global requests are answered in their order: RFC 4254 section 4. */
  #replies: Promise<void> = Promise.resolve();
  #pendingReplies = 0;
  #alive: NodeJS.Timeout | undefined;
  #deferredOpens = 0;
  #isOver = false;

  constructor(
    openTransport: (handler: ConnectionHandler) => Transport,
    connection: Promise<ServerConnection>,
    events: ServerEvents,
  ) {
    this.connection = connection;
    this.#events = events;
    this.#transport = openTransport(this);
  }

  /** Closes everything: processes of sessions get SIGHUP. */
  close(reason: number = DISCONNECT.byApplication): void {
    this.#release();
    this.#transport.disconnect(reason);
  }

  /** Asks the client for a channel and joins `stream` with it; a refusal resets the stream. */
  openToClient(open: ClientOpen, stream: Duplex): void {
    stream.on("error", () => {});
    if (this.#isOver || this.#count() >= MAX_CHANNELS) return void stream.destroy();
    const localId = this.#newId();
    const settle = () => {
      clearTimeout(timer);
      this.#openings.delete(localId);
    };
    const timer = setTimeout(() => {
      // The id stays taken, so that a late answer finds nothing else.
      settle();
      stream.destroy();
    }, OPEN_TIMEOUT_MS);
    this.#openings.set(localId, {
      confirmed: (remote) => {
        settle();
        joinStreams(this.#addChannel(localId, remote), stream);
      },
      failed: () => {
        settle();
        stream.destroy();
      },
    });
    this.#announce(localId, open);
  }

  exitStatus(channel: Channel, status: number): void {
    this.#transport.exitStatus(channel.remoteId, status);
  }

  exitSignal(channel: Channel, name: string, coreDumped: boolean, text: string): void {
    this.#transport.exitSignal(channel.remoteId, name, coreDumped, text);
  }

  onAuthenticated(): void {
    this.#events.log("the client has logged in");
  }

  onGlobalRequest(name: string, wantReply: boolean, data: unknown): void {
    if (name === "no-more-sessions@openssh.com") this.#refusesSessions = true;
    if (this.#pendingReplies >= MAX_PENDING_REQUESTS) return this.#protocolError("too many requests at once");
    this.#pendingReplies++;
    this.#alive ??= setInterval(() => this.#transport.message((ssh) => ssh.ping()), ALIVE_MS);
    const answer = this.#serveRequest(name, data);
    this.#replies = this.#replies.then(async () => {
      const reply = await answer;
      if (--this.#pendingReplies === 0) this.#stopAlive();
      if (!wantReply) return;
      this.#transport.message((ssh) => (reply ? ssh.requestSuccess(reply) : ssh.requestFailure()));
    });
  }

  /** Behind the forwards asked for before, as sshd: the command may need them, and `ExitOnForwardFailure` does. */
  onOpen(open: ChannelOpen): void {
    // Judged now: "no more sessions" often follows right behind the one session that is meant.
    const isRefused = open.type === "session" && this.#refusesSessions;
    if (this.#pendingReplies === 0) return this.#serveOpen(open, isRefused);
    if (this.#deferredOpens >= MAX_PENDING_REQUESTS) return this.#protocolError("too many channels at once");
    this.#deferredOpens++;
    this.#replies = this.#replies.then(() => {
      this.#deferredOpens--;
      if (!this.#isOver) this.#serveOpen(open, isRefused);
    });
  }

  #serveOpen(open: ChannelOpen, isRefused: boolean): void {
    const refuse = (reason: number, text: string) =>
      this.#transport.message((ssh) => ssh.channelOpenFail(open.sender, reason, text));
    if (isRefused) return refuse(OPEN_FAILURE.prohibited, "the client wanted no more sessions");
    if (this.#count() >= MAX_CHANNELS)
      return refuse(OPEN_FAILURE.resourceShortage, `at most ${MAX_CHANNELS} channels at once`);
    const remote = { id: open.sender, window: open.window, packetSize: open.packetSize };
    switch (open.type) {
      case "session": {
        const channel = this.#addChannel(this.#newId(), remote);
        this.#sessions.set(channel.localId, new SshSession(channel, this.#sessionHost()));
        return this.#confirm(channel);
      }
      case "direct-tcpip":
      case "direct-streamlocal@openssh.com": {
        // Holds its place while the workspace connects.
        const localId = this.#newId();
        this.#openings.set(localId, { confirmed: () => {}, failed: () => {} });
        void this.#direct(open, refuse).then((stream) => {
          this.#openings.delete(localId);
          if (!stream) return;
          if (this.#isOver) return void stream.destroy();
          const channel = this.#addChannel(localId, remote);
          this.#confirm(channel);
          joinStreams(channel, stream);
        });
        return;
      }
      default:
        return refuse(OPEN_FAILURE.unknownType, "no such channel type");
    }
  }

  onOpenConfirmed(localId: number, remote: { id: number; window: number; packetSize: number }): void {
    const opening = this.#openings.get(localId);
    if (opening) return opening.confirmed(remote);
    this.#transport.close(remote.id); // too late: nobody waits for it any more
  }

  onOpenFailed(localId: number): void {
    this.#openings.get(localId)?.failed();
  }

  onAdjust(localId: number, bytes: number): void {
    this.#channels.get(localId)?.receiveAdjust(bytes);
  }

  onData(localId: number, bytes: Buffer): void {
    const channel = this.#channels.get(localId);
    if (channel && !channel.receiveData(bytes))
      this.#protocolError("the client sent more than the channel's window");
  }

  onEof(localId: number): void {
    this.#channels.get(localId)?.receiveEof();
  }

  onClose(localId: number): void {
    const channel = this.#channels.get(localId);
    this.#channels.delete(localId);
    this.#sessions.delete(localId);
    channel?.receiveClose();
  }

  onPtyRequest(request: PtyRequestMessage): void {
    const session = this.#sessions.get(request.recipient);
    this.#answer(request.recipient, request.wantReply, session?.onPtyRequest(request) ?? false);
  }

  onRequest(localId: number, type: string, wantReply: boolean, data: unknown): void {
    const session = this.#sessions.get(localId);
    this.#answer(localId, wantReply, session?.onRequest(type, data) ?? false);
  }

  onDrain(): void {
    for (const channel of this.#channels.values()) channel.pump();
  }

  onEnd(error: Error | undefined): void {
    this.#release();
    this.#events.onEnd(error);
  }

  #answer(localId: number, wantReply: boolean, isDone: boolean): void {
    const channel = this.#channels.get(localId);
    if (!wantReply || !channel || channel.isClosed) return;
    const { remoteId } = channel;
    this.#transport.message((ssh) => (isDone ? ssh.channelSuccess(remoteId) : ssh.channelFailure(remoteId)));
  }

  /** @returns what success carries, undefined for a failure; never rejects */
  async #serveRequest(name: string, data: unknown): Promise<Buffer | undefined> {
    switch (name) {
      case "tcpip-forward":
      case "cancel-tcpip-forward":
      case "streamlocal-forward@openssh.com":
      case "cancel-streamlocal-forward@openssh.com":
        try {
          const forwards = await this.#loadForwards();
          return await forwards.request(name, data);
        } catch (error) {
          this.#events.log(`${name}: ${error instanceof Error ? error.message : String(error)}`);
          return undefined;
        }
      case "no-more-sessions@openssh.com":
        return Buffer.alloc(0);
      default:
        // keepalive@openssh.com among them: any answer does.
        return undefined;
    }
  }

  /** Only who forwards pays for it: the messages' schemas alone cost several milliseconds of every start. */
  #loadForwards(): Promise<Forwards> {
    this.#forwards ??= import("./forwards.ts").then(
      ({ Forwards }) =>
        new Forwards({
          connection: this.connection,
          openToClient: (open, stream) => this.openToClient(open, stream),
          newToken,
          log: (message) => this.#events.log(message),
          lost: (reason) => {
            if (this.#isOver) return;
            this.close(DISCONNECT.connectionLost);
            this.#events.onEnd(new Error(reason));
          },
        }),
    );
    return this.#forwards;
  }

  async #direct(
    open: ChannelOpen,
    refuse: (reason: number, text: string) => void,
  ): Promise<Duplex | undefined> {
    try {
      const forwards = await this.#loadForwards();
      const result = await forwards.connect(open);
      if ("stream" in result) return result.stream;
      refuse(result.reason, result.text);
    } catch (error) {
      refuse(OPEN_FAILURE.connectFailed, error instanceof Error ? error.message : String(error));
    }
    return undefined;
  }

  #sessionHost(): SessionHost {
    return {
      connection: this.connection,
      exitStatus: (channel, status) => this.exitStatus(channel, status),
      exitSignal: (channel, name, dumped, text) => this.exitSignal(channel, name, dumped, text),
      newToken,
      failureTold: () => this.#events.onFailureTold(),
      acceptCallbacks: (connection, token, type, once) => {
        const undo = connection.accept(token, (stream, { origin }) => {
          if (once) undo();
          const { address = "127.0.0.1", port = 0 } = origin ?? {};
          this.openToClient(
            type === "x11" ? { type, originAddress: address, originPort: port } : { type },
            stream,
          );
        });
        return undo;
      },
    };
  }

  #confirm({ remoteId, localId }: Channel): void {
    this.#transport.message((ssh) =>
      ssh.channelOpenConfirm(remoteId, localId, RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES),
    );
  }

  #announce(id: number, open: ClientOpen): void {
    this.#transport.message((ssh) => {
      switch (open.type) {
        case "auth-agent":
          return ssh.openssh_authAgent(id, RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES);
        case "x11":
          return ssh.x11(id, RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES, {
            originAddr: open.originAddress,
            originPort: open.originPort,
          });
        case "forwarded-tcpip":
          return ssh.forwardedTcpip(id, RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES, {
            boundAddr: open.boundAddress,
            boundPort: open.boundPort,
            remoteAddr: open.originAddress,
            remotePort: open.originPort,
          });
        case "forwarded-streamlocal":
          return ssh.openssh_forwardedStreamLocal(id, RECEIVE_WINDOW_BYTES, MAX_PACKET_BYTES, {
            socketPath: open.path,
          });
      }
    });
  }

  #stopAlive(): void {
    clearInterval(this.#alive);
    this.#alive = undefined;
  }

  #newId(): number {
    return this.#nextId++;
  }

  #count(): number {
    return this.#channels.size + this.#openings.size + this.#deferredOpens;
  }

  #addChannel(localId: number, remote: { id: number; window: number; packetSize: number }): Channel {
    const wire: ChannelWire = this.#transport;
    const channel = new Channel(wire, { localId, remoteId: remote.id }, remote);
    this.#channels.set(localId, channel);
    return channel;
  }

  #protocolError(reason: string): void {
    this.close(DISCONNECT.protocolError);
    this.#events.onEnd(new Error(reason));
  }

  #release(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stopAlive();
    for (const opening of [...this.#openings.values()]) opening.failed();
    for (const channel of this.#channels.values()) channel.lose();
    this.#channels.clear();
    this.#sessions.clear();
    void this.#forwards?.then((forwards) => forwards.close());
  }
}

const newToken = () => randomBytes(16).toString("base64");
