// A WebSocket pair on a virtual connection, as far as the coordinator's client and server use the one of `ws`.
import { EventEmitter } from "node:events";
import type { ClientOptions, WebSocket } from "ws";
import { End, type Line, SYN_AT_MS } from "./line.ts";
import type { Process } from "./machine.ts";
import type { Random } from "./random.ts";

type Message =
  | { kind: "upgrade"; headers: Record<string, string> }
  | { kind: "accepted"; headers: Record<string, string> }
  | { kind: "refused"; status: number }
  | { kind: "text"; text: Buffer }
  | { kind: "ping" | "pong" }
  | { kind: "close"; code: number; reason: string };

const [CONNECTING, OPEN, CLOSING, CLOSED] = [0, 1, 2, 3];
const NO_STATUS = 1005;
const ABNORMAL = 1006;

/** Who takes upgrade requests; undefined while it is down. */
export type Accept = (
  headers: Record<string, string>,
) => { refuse: number } | { accept: (socket: WebSocket) => void; headers: Record<string, string> };

export class SimSocket extends EventEmitter {
  readonly OPEN = OPEN;
  readyState = CONNECTING;
  readonly #process: Process;
  #end: End<Message> | undefined;
  #isPaused = false;
  #waiting: Message[] = [];
  #closeCode = ABNORMAL;
  #closeReason = "";
  #handshakeTimer: object | undefined;

  constructor(process: Process) {
    super();
    this.#process = process;
  }

  get bufferedAmount(): number {
    return this.#end?.outstandingBytes ?? 0;
  }

  /** @param server where upgrade requests go as long as it runs */
  static open(
    process: Process,
    server: { process: Process; accept: Accept } | undefined,
    line: Line,
    random: Random,
    options: ClientOptions,
  ): WebSocket {
    const socket = new SimSocket(process);
    const fail = (why: string) => {
      if (socket.readyState !== CONNECTING) return;
      socket.emit("error", new Error(why));
      socket.#closed();
    };
    socket.#handshakeTimer = process.setTimer(
      () => fail("Opening handshake has timed out"),
      options.handshakeTimeout ?? 10_000,
    );
    const tripMs = 2 * line.delayMs + line.jitterMs * random.float();
    const attempt = (): void => {
      if (
        socket.readyState !== CONNECTING ||
        socket.#end ||
        line.isBlocked ||
        server?.process.machine.isAsleep
      )
        return;
      if (!server || server.process.isDead) return fail("connect ECONNREFUSED");
      const [near, far] = End.pair<Message>(process, server.process, line, random);
      socket.#attach(near);
      new SimSocket(server.process).#serve(far, server.accept);
      near.send({ kind: "upgrade", headers: options.headers as Record<string, string> }, 1_024);
    };
    for (const atMs of SYN_AT_MS) process.setWorkTimer(attempt, atMs + tripMs);
    return socket as unknown as WebSocket;
  }

  send(text: string): void {
    if (this.readyState !== OPEN) return;
    const bytes = Buffer.from(text);
    this.#end?.send({ kind: "text", text: bytes }, bytes.length + 8);
  }

  ping(): void {
    if (this.readyState === OPEN) this.#end?.send({ kind: "ping" }, 8);
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    while (!this.#isPaused && this.#waiting.length > 0) this.#onMessage(this.#waiting.shift()!);
  }

  close(code = NO_STATUS, reason = ""): void {
    if (this.readyState === CONNECTING) return this.terminate();
    if (this.readyState !== OPEN) return;
    this.readyState = CLOSING;
    this.#end?.send({ kind: "close", code, reason }, 16 + reason.length);
  }

  terminate(): void {
    if (this.readyState === CLOSED) return;
    const wasConnecting = this.readyState === CONNECTING;
    this.readyState = CLOSING;
    this.#end?.close(true);
    if (wasConnecting && this.listenerCount("error") > 0)
      this.emit("error", new Error("WebSocket was closed before the connection was established"));
    process.nextTick(() => this.#closed());
  }

  #attach(end: End<Message>): void {
    this.#end = end;
    end.onMessage = (message) => {
      if (this.#isPaused) this.#waiting.push(message);
      else this.#onMessage(message);
    };
    end.onClose = () => {
      if (this.readyState === CONNECTING) this.emit("error", new Error("socket hang up"));
      this.#closed();
    };
  }

  #serve(end: End<Message>, accept: Accept): void {
    this.#attach(end);
    end.onMessage = (message) => {
      if (message.kind !== "upgrade") return;
      const verdict = accept(message.headers);
      if ("refuse" in verdict) {
        end.send({ kind: "refused", status: verdict.refuse }, 256);
        end.close();
        return;
      }
      this.readyState = OPEN;
      end.send({ kind: "accepted", headers: verdict.headers }, 256);
      this.#attach(end);
      verdict.accept(this as unknown as WebSocket);
    };
  }

  #onMessage(message: Message): void {
    if (this.#process.isDead || this.readyState === CLOSED) return;
    switch (message.kind) {
      case "accepted":
        this.#process.clearTimer(this.#handshakeTimer);
        this.readyState = OPEN;
        this.emit("upgrade", { headers: message.headers });
        this.emit("open");
        return;
      case "refused":
        this.emit(
          "unexpected-response",
          { destroy: () => undefined },
          { statusCode: message.status, resume: () => undefined },
        );
        return;
      case "text":
        if (this.readyState === OPEN) this.emit("message", message.text, false);
        return;
      case "ping":
        this.#end?.send({ kind: "pong" }, 8);
        this.emit("ping");
        return;
      case "pong":
        this.emit("pong");
        return;
      case "close": {
        this.#closeCode = message.code;
        this.#closeReason = message.reason;
        if (this.readyState === OPEN) this.#end?.send(message, 16);
        this.readyState = CLOSING;
        this.#end?.close();
        this.#closed();
      }
    }
  }

  #closed(): void {
    if (this.readyState === CLOSED) return;
    this.readyState = CLOSED;
    this.#process.clearTimer(this.#handshakeTimer);
    this.#end?.close(true);
    if (!this.#process.isDead) this.emit("close", this.#closeCode, Buffer.from(this.#closeReason));
  }
}
