import { Duplex } from "node:stream";
import { ChannelDecoder, type ChannelMessage, encodeMessage } from "../mesh/wire/channel.ts";
import { type Answer, AnswerDecoder, CallbackMetadata, decodeMetadata } from "../mesh/wire/forward.ts";
import type { Logger } from "./logging.ts";
import type { DatagramStream, Peer } from "./streams.ts";

class PairEnd extends Duplex {
  #peer: PairEnd | undefined;
  #waiting: (() => void) | undefined;

  constructor(highWaterMark: number) {
    super({ allowHalfOpen: true, highWaterMark });
  }

  join(peer: PairEnd): void {
    this.#peer = peer;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    const peer = this.#peer;
    if (!peer || peer.destroyed) return done(new Error("the peer is gone"));
    // The peer's next _read is what finishes this write, so that back-pressure crosses the pair.
    if (peer.push(chunk)) done();
    else peer.#waiting = done;
  }

  override _read(): void {
    const done = this.#waiting;
    this.#waiting = undefined;
    done?.();
  }

  override _final(done: () => void): void {
    this.#peer?.push(null);
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    const peer = this.#peer;
    const clean = this.writableFinished && this.readableEnded;
    if (peer && !peer.destroyed && !clean) peer.destroy(new Error("reset by the peer"));
    this.#waiting?.();
    this.#waiting = undefined;
    done(error);
  }
}

/** Two joined streams that behave as the ends of a mesh stream: half-close, reset, back-pressure. */
export function duplexPair(highWaterMark = 64 * 1024): [Duplex, Duplex] {
  const a = new PairEnd(highWaterMark);
  const b = new PairEnd(highWaterMark);
  a.join(b);
  b.join(a);
  return [a, b];
}

class ServiceEnd extends PairEnd {
  readonly service: string;
  readonly metadata: Uint8Array;
  onDatagram: ((bytes: Uint8Array) => void) | undefined;
  other: ServiceEnd | undefined;

  constructor(service: string, metadata: Uint8Array) {
    super(64 * 1024);
    this.service = service;
    this.metadata = metadata;
  }

  sendDatagram(bytes: Uint8Array): boolean {
    if (this.destroyed || !this.other || this.other.destroyed) return false;
    const copy = bytes.slice();
    setImmediate(() => this.other?.onDatagram?.(copy));
    return true;
  }
}

/** Two ends of a stream to a service, with datagrams. @returns the client's and the agent's */
export function servicePair(
  service: string,
  metadata: Uint8Array = new Uint8Array(),
): [DatagramStream, DatagramStream] {
  const [client, agent] = [new ServiceEnd(service, metadata), new ServiceEnd(service, metadata)];
  for (const [end, other] of [
    [client, agent],
    [agent, client],
  ]) {
    end.join(other);
    end.other = other;
  }
  return [client, agent];
}

/** Reads the ANSWER of a stream, and puts what came behind it back. Rejects when the stream ends before it. */
export function readAnswer(stream: Duplex): Promise<Answer> {
  const decoder = new AnswerDecoder();
  return new Promise((resolve, reject) => {
    const onData = (chunk: Uint8Array) => {
      const answer = decoder.push(chunk);
      if (!answer) return;
      stream.removeListener("data", onData);
      stream.pause();
      if (answer.rest.length > 0) stream.unshift(answer.rest);
      resolve(answer);
    };
    stream.on("data", onData);
    stream.resume();
    stream.once("error", reject);
    stream.once("close", () => reject(new Error("closed before an answer")));
  });
}

export interface FakePeer extends Peer {
  /** The client's ends of what was opened. */
  opened: { stream: Duplex; metadata: CallbackMetadata }[];
  /** Resolves with the next one. */
  next(): Promise<{ stream: Duplex; metadata: CallbackMetadata }>;
}

/** A client that takes every callback. */
export function fakePeer(userId = "0d3b5d0e-2222-4222-8222-000000000001"): FakePeer {
  const opened: FakePeer["opened"] = [];
  const waiting: (() => void)[] = [];
  let taken = 0;
  return {
    nodeKey: "client",
    grant: { userId, username: "ada" },
    opened,
    open(service, metadata) {
      const [client, agent] = servicePair(service, metadata);
      opened.push({ stream: client, metadata: decodeMetadata(CallbackMetadata, metadata) });
      for (const wake of waiting.splice(0)) wake();
      return agent;
    },
    async next() {
      while (opened.length <= taken) await new Promise<void>((resolve) => waiting.push(resolve));
      return opened[taken++];
    },
  };
}

export interface LogEntry {
  level: "debug" | "info" | "warn" | "error";
  fields: object;
  message: string;
}

/** A logger that only remembers. */
export function memoryLogger(): Logger & { entries: LogEntry[] } {
  const entries: LogEntry[] = [];
  const at = (level: LogEntry["level"]) => (fields: object, message: string) => {
    entries.push({ level, fields, message });
  };
  return { entries, debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

export interface CollectedSession {
  client: Duplex;
  messages: ChannelMessage[];
  stdout(): Buffer;
  stderr(): Buffer;
  send(...messages: ChannelMessage[]): void;
  /** Resolves once `text` has been seen on stdout (from the start of the session). */
  sees(text: string): Promise<void>;
  /** Resolves with the last message when the agent has ended its side; rejects if it reset the stream. */
  ended: Promise<ChannelMessage | undefined>;
}

/** The client end of a session, read as fast as it comes and kept. */
export function collectSession(client: Duplex): CollectedSession {
  const decoder = new ChannelDecoder();
  const messages: ChannelMessage[] = [];
  const out: Uint8Array[] = [];
  const err: Uint8Array[] = [];
  let seen = "";
  let waiting: { text: string; resolve: () => void }[] = [];
  const ended = new Promise<ChannelMessage | undefined>((resolve, reject) => {
    client.on("data", (chunk: Uint8Array) => {
      for (const message of decoder.push(chunk)) {
        if (message.kind === "data") {
          out.push(message.bytes);
          if (waiting.length > 0 || seen.length < 65_536)
            seen += Buffer.from(message.bytes).toString("latin1");
        } else if (message.kind === "stderr") err.push(message.bytes);
        else messages.push(message);
      }
      waiting = waiting.filter(({ text, resolve: found }) => {
        if (!seen.includes(text)) return true;
        found();
        return false;
      });
    });
    client.once("end", () => {
      decoder.end();
      client.end();
      resolve(messages.at(-1));
    });
    client.on("error", reject);
  });
  ended.catch(() => {}); // a test that resets the stream does not wait for it
  return {
    client,
    messages,
    ended,
    stdout: () => Buffer.concat(out),
    stderr: () => Buffer.concat(err),
    send: (...list) => {
      for (const message of list) client.write(encodeMessage(message));
    },
    sees: (text) =>
      new Promise((resolve) => {
        if (seen.includes(text)) resolve();
        else waiting.push({ text, resolve });
      }),
  };
}
