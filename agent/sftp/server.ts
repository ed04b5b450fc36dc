import type { Logger } from "../logging.ts";
import type { ExitResult, ProcessEvents, SessionProcess } from "../sessions/process.ts";
import { Accounts } from "./accounts.ts";
import { createCalls } from "./calls.ts";
import { Gate, SESSION_THREADS, transferGate } from "./gate.ts";
import { HandleTable } from "./handles.ts";
import { accessOf, costOf, Operations } from "./operations.ts";
import { RequestQueue, type Ticket } from "./order.ts";
import {
  decodePacket,
  encodeReply,
  encodeVersion,
  type Incoming,
  PacketDecoder,
  type Request,
} from "./wire.ts";

/** More than any client opens: sshfs has the open files of every program on its mount. */
export const MAX_HANDLES = 1_024;
/** Requests not answered yet. Clients keep 64 outstanding; what is beyond waits in the stream. */
const MAX_REQUESTS = 128;
/** What they and their replies may hold: 64 reads or writes of 32 KiB and their packets. */
const MAX_REQUEST_BYTES = 64 * 33 * 1024;
/** Replies up to this size are joined: one write for many is cheaper than one for each. */
const JOIN_BELOW_BYTES = 8 * 1024;
const JOINED_BYTES = 64 * 1024;
/** What OpenSSH's server exits with when a packet is too long or cut. */
const PROTOCOL_STATUS = 11;
const ENDING_SIGNALS = new Set(["HUP", "INT", "KILL", "PIPE", "QUIT", "TERM"]);

export interface SftpOptions {
  /** Absolute: where relative paths start. "/" is taken when it is no directory, as sshd does. */
  directory: string;
  /** Absolute: what `~` stands for. */
  home: string;
  logger?: Logger;
  /** Default MAX_HANDLES. */
  maxHandles?: number;
}

/**
 * Serves SFTP version 3 with the rights of this process: what comes in by `write` is the client's half of the
 * protocol, what goes out as "data" the server's. Ends with status 0 after the client's last request, and with
 * status 11 (and a line on "stderr") when the client breaks the protocol.
 */
export function startSftp(options: SftpOptions, events: ProcessEvents): SessionProcess {
  return new SftpSession(options, events);
}

type Outcome = { packet: Buffer };

class SftpSession implements SessionProcess {
  /** There is no process of its own: the agent's, and never one to send signals to. */
  readonly pid = process.pid;
  readonly #events: ProcessEvents;
  readonly #logger: Logger | undefined;
  readonly #input = new PacketDecoder();
  readonly #queue = new RequestQueue<Incoming, Outcome>({ requests: MAX_REQUESTS, bytes: MAX_REQUEST_BYTES });
  readonly #handles: HandleTable;
  #operations: Operations | undefined;
  #initialized = false;
  #running = 0;
  #requests = 0;
  /** Replies in order, cut off from the queue but not handed out. */
  #outbox: Buffer[] = [];
  #flushing = false;
  #paused = false;
  /** The caller was told to wait for `drain`. */
  #inputHeld = false;
  /** No more input is taken; the result is told once all is answered. */
  #ending: ExitResult | undefined;
  /** Nobody reads any more. */
  #aborted = false;
  #exited = false;

  constructor(options: SftpOptions, events: ProcessEvents) {
    this.#events = events;
    this.#logger = options.logger;
    this.#handles = new HandleTable(options.maxHandles ?? MAX_HANDLES);
    void this.#prepare(options);
  }

  async #prepare({ directory, home }: SftpOptions): Promise<void> {
    const calls = createCalls(new Gate(SESSION_THREADS, transferGate));
    const usable = await calls.stat(directory).then(
      (stats) => stats.isDirectory(),
      () => false,
    );
    if (!usable) this.#logger?.warn({ directory }, "sftp starts in /: its directory is missing");
    this.#operations = new Operations({
      calls,
      handles: this.#handles,
      accounts: new Accounts(),
      directory: Buffer.from(usable ? directory : "/"),
      home: Buffer.from(home),
      aborted: () => this.#aborted,
    });
    this.#pump();
  }

  write(bytes: Uint8Array): boolean {
    if (this.#ending) return true; // too late to matter
    this.#input.push(bytes);
    this.#pump();
    // A packet that is not complete needs more input; only complete ones wait for room.
    this.#inputHeld = this.#full;
    return !this.#inputHeld;
  }

  endInput(): void {
    this.#end({ kind: "exited", status: 0 });
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#scheduleFlush();
  }

  resize(): void {} // there is no window

  signal(name: string): void {
    if (ENDING_SIGNALS.has(name)) this.#abort({ kind: "signaled", name });
  }

  hangUp(): void {
    this.#abort({ kind: "signaled", name: "HUP" });
  }

  get #full(): boolean {
    return this.#operations === undefined || this.#queue.full;
  }

  /** Takes requests as far as there is room, and starts what may start. */
  #pump(): void {
    try {
      while (!this.#stopped && !this.#full) {
        const packet = this.#input.take();
        if (!packet) break;
        this.#accept(decodePacket(packet));
      }
    } catch (error) {
      this.#breakOff(error);
    }
    const operations = this.#operations;
    if (operations)
      for (let next = this.#queue.next(); next; next = this.#queue.next()) this.#start(operations, next);
    this.#settle();
    if (this.#inputHeld && !this.#full) {
      this.#inputHeld = false;
      this.#events.drain();
    }
  }

  /** Input that came before its end is served also after it. */
  get #stopped(): boolean {
    return this.#aborted || this.#exited || (this.#ending?.kind === "exited" && this.#ending.status !== 0);
  }

  #accept(incoming: Incoming): void {
    this.#requests++;
    if (incoming.kind === "init") {
      this.#initialized = true;
      this.#queue.add(incoming, { kind: "none" }, 1_024);
      return;
    }
    if (!this.#initialized) throw new Error("a request came before INIT");
    this.#queue.add(incoming, accessOf(incoming, this.#handles), costOf(incoming));
  }

  #start(operations: Operations, ticket: Ticket<Incoming, Outcome>): void {
    const { request } = ticket;
    if (request.kind === "init") return this.#finish(ticket, encodeVersion());
    this.#running++;
    void this.#perform(operations, ticket, request);
  }

  async #perform(operations: Operations, ticket: Ticket<Incoming, Outcome>, request: Request): Promise<void> {
    const reply = await operations.run(request);
    this.#running--;
    this.#finish(ticket, encodeReply(request.id, reply));
    this.#pump();
  }

  #finish(ticket: Ticket<Incoming, Outcome>, packet: Buffer): void {
    this.#queue.finish(ticket, { packet });
    // A client that waits for each answer gets it at once.
    if (this.#queue.size === 1 && !this.#flushing) this.#flush();
    else this.#scheduleFlush();
  }

  /** At the end of this turn of the event loop, so that what finished together leaves together. */
  #scheduleFlush(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#aborted) return;
    while (!this.#paused) {
      // Only what leaves stops counting, so that a client that doesn't read is not read from either.
      if (this.#outbox.length === 0)
        this.#outbox = joinSmall(this.#queue.takeReplies().map(({ packet }) => packet));
      const chunk = this.#outbox.shift();
      if (!chunk) break;
      this.#events.output("data", chunk);
    }
    this.#pump();
  }

  #breakOff(error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error);
    this.#logger?.warn({ reason }, "an SFTP client broke the protocol");
    this.#events.output("stderr", Buffer.from(`sftp: ${reason}; ending the session\n`));
    this.#end({ kind: "exited", status: PROTOCOL_STATUS }, true);
  }

  #end(result: ExitResult, force = false): void {
    if (force || !this.#ending) this.#ending = result;
    if (!force) this.#pump();
  }

  #abort(result: ExitResult): void {
    if (this.#aborted || this.#exited) return;
    this.#aborted = true;
    this.#ending = result;
    this.#queue.dropWaiting();
    this.#outbox = [];
    this.#settle();
  }

  /** Tells the result when nothing is left to do. */
  #settle(): void {
    if (this.#exited || !this.#ending || this.#running > 0 || !this.#operations) return;
    if (!this.#aborted && (this.#queue.size > 0 || this.#outbox.length > 0)) return;
    this.#exited = true;
    void this.#close(this.#operations, this.#ending);
  }

  async #close(operations: Operations, result: ExitResult): Promise<void> {
    await operations.closeAll();
    this.#logger?.debug({ requests: this.#requests }, "sftp session ended");
    this.#events.leaderExit?.(result);
    this.#events.exit(result);
  }
}

/** Neighbours that are small become one chunk. */
function joinSmall(packets: Buffer[]): Buffer[] {
  const out: Buffer[] = [];
  let small: Buffer[] = [];
  let bytes = 0;
  const close = () => {
    if (small.length > 0) out.push(small.length === 1 ? small[0] : Buffer.concat(small, bytes));
    small = [];
    bytes = 0;
  };
  for (const packet of packets) {
    if (packet.length > JOIN_BELOW_BYTES || bytes + packet.length > JOINED_BYTES) close();
    if (packet.length > JOIN_BELOW_BYTES) {
      out.push(packet);
      continue;
    }
    small.push(packet);
    bytes += packet.length;
  }
  close();
  return out;
}
