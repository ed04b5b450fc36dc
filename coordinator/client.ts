import { type ClientOptions, WebSocket } from "ws";
import { ADDRESS_ATTEMPT_MS } from "../mesh/node/addresses.ts";
import type { Coordinator, GrantedAgent } from "../mesh/node/coordinator.ts";
import { type Runtime, systemRuntime, type Timer } from "../mesh/node/runtime.ts";
import { withDeadline } from "../mesh/node/wait.ts";
import { fromBase64, toBase64, utf8 } from "../mesh/wire/bytes.ts";
import {
  CLOSE_CODES,
  COORDINATOR_VERSION,
  type CoordinatorMessage,
  decodeCoordinatorMessage,
  FIRST_MESSAGES_HEADER,
  MAX_FIRST_BYTES,
  MAX_LIVE_GRANTS,
  MAX_MESSAGE_BYTES,
  type NodeMessageInput,
  RESUME_TOKEN_HEADER,
  type ReachedAgent,
  type ReachedWorkspace,
} from "../mesh/wire/coordinator.ts";
import {
  type NodeRecord,
  openStatement,
  type PublicSigningKey,
  StatementError,
} from "../mesh/wire/signed.ts";
import { verifyEd25519 } from "./ed25519.ts";
import { CoordinatorError, type CoordinatorErrorCode } from "./errors.ts";
import { reconnectDelayMs } from "./reconnect.ts";

export { verifyEd25519 } from "./ed25519.ts";
export { CoordinatorError, type CoordinatorErrorCode } from "./errors.ts";

export interface CoordinatorClientOptions {
  /** http(s) address of the WebSocket route. */
  url: string;
  /** Session or agent token, sent as `Coder-Session-Token`. */
  token: string;
  nodeKey: string;
  homeRegion?: number;
  onRelayMap?: (map: { Regions: Record<string, unknown> }) => void;
  /** A relay ticket, base64: the first one, and each that takes its place. */
  onRelayTicket?: (ticket: string) => void;
  /** `error.unauthorized`: the credential was refused or taken back, and `error.message` says what to do. */
  onState?: (state: { connected: boolean; error?: CoordinatorError }) => void;
  /** `close` does not wait for the coordinator's farewell: a command's user would wait a round trip for nothing. */
  leavesAtOnce?: boolean;
  /** 0 <= n < 1 */
  random?: () => number;
  /** Clocks and timers; the process's by default. */
  runtime?: Runtime;
  /** Begins to connect; a WebSocket of `ws` by default. */
  openSocket?: (url: string, options: ClientOptions) => WebSocket;
}

/** What a grant is asked for: an agent, or the agent of a workspace ("name", "me/name", "owner/name"). */
export type GrantTarget = { agentId: string } | { workspace: string; agent?: string };

export interface ReachedGrant extends GrantedAgent {
  agentId: string;
  /** When the workspace was named: how it and its agent do, so that nobody need ask the API first. */
  workspace?: ReachedWorkspace;
  agent?: ReachedAgent;
}

/** The server pings every 15 s: two went missing (a sleeping laptop, a lost NAT entry), and a little slack. */
const SILENCE_TIMEOUT_MS = 31_000;
/** After a sleep: a living connection answers a ping sooner than this. */
const CHECK_TIMEOUT_MS = 3_000;
const CONNECT_TIMEOUT_MS = 10_000;
/** Two clocks read one after the other differ by less. */
const MIN_SLEEP_MS = 1_000;
/** For connecting, where that is needed, and the answer. */
const REQUEST_TIMEOUT_MS = 15_000;
/** Connections that may be lost under one request before it fails: it may be what ends them. */
const MAX_SENDS = 4;

/** Our coordinator closes with "ERR_CODE: text" as the reason; proxies and crashes with anything. */
function saidAtClose(closeCode: number, reason: Uint8Array): CoordinatorError | undefined {
  const said = /^(ERR_[A-Z_]+): (.+)$/s.exec(Buffer.from(reason).toString("utf8"));
  if (!said) return undefined;
  if (closeCode === CLOSE_CODES.unauthorized)
    return new CoordinatorError(said[1] as CoordinatorErrorCode, said[2], { unauthorized: true });
  return new CoordinatorError(
    "ERR_COORDINATOR_UNREACHABLE",
    `the coordinator hung up: ${said[2]} (${said[1]})`,
  );
}

type Answer = Extract<CoordinatorMessage, { type: "grant" | "void-grants" }>;

/** A request not yet answered: said anew on the next connection when this one is lost. */
interface Pending {
  message: NodeMessageInput;
  sends: number;
  resolve(message: Answer): void;
  reject(error: Error): void;
}

interface Waiter {
  resolve(): void;
  reject(error: Error): void;
}

/** Keeps one connection to the coordinator and says hello again after each loss. */
export class CoordinatorClient implements Coordinator {
  signingKeys: readonly PublicSigningKey[] = [];
  agentId: string | undefined;
  /** For the relays, base64; undefined before the first welcome. */
  relayTicket: string | undefined;
  onConnected: Coordinator["onConnected"];
  onRecord: Coordinator["onRecord"];
  onRecordGone: Coordinator["onRecordGone"];
  onRevoke: Coordinator["onRevoke"];
  liveGrants: Coordinator["liveGrants"];

  readonly #options: CoordinatorClientOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #welcomed = new Set<Waiter>();
  #socket: WebSocket | undefined;
  #starting = false;
  #ready = false;
  #closed = false;
  #failures = 0;
  /** When the last connection was lost, or the first begun; undefined while welcome. Monotonic ms. */
  #awaySince: number | undefined;
  #nextRequest = 1;
  #homeRegion: number | undefined;
  /** What the coordinator was last told of it. */
  #saidHomeRegion: number | undefined;
  #resumeToken: string | undefined;
  readonly #runtime: Runtime;
  #clockOffsetMs: number;
  /** By how much the time since boot was ahead of monotonic time at that moment. */
  #bootOffsetAtWelcomeMs: number;
  #retry: Timer | undefined;
  #silence: Timer | undefined;
  #lastError: CoordinatorError | undefined;

  constructor(options: CoordinatorClientOptions) {
    this.#options = options;
    this.#runtime = options.runtime ?? systemRuntime;
    this.#clockOffsetMs = this.#runtime.wallClockMs() - this.#runtime.nowMs();
    this.#bootOffsetAtWelcomeMs = this.#bootOffsetMs();
    this.#homeRegion = options.homeRegion;
  }

  get connected(): boolean {
    return this.#ready;
  }

  nowMs(): number {
    // Monotonic time may stand still while the machine sleeps; grants made meanwhile must not seem to be of the future.
    const sleptMs = this.#bootOffsetMs() - this.#bootOffsetAtWelcomeMs;
    return this.#runtime.nowMs() + this.#clockOffsetMs + (sleptMs > MIN_SLEEP_MS ? sleptMs : 0);
  }

  #bootOffsetMs(): number {
    return this.#runtime.uptimeMs() - this.#runtime.nowMs();
  }

  /** Starts connecting (and keeps reconnecting). @returns once welcomed @throws {CoordinatorError} when the first try fails for good */
  async connect(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    this.#start();
    await this.#whenReady(signal);
  }

  /**
   * Asks for a grant, connecting first if need be. What is asked before the connection is made goes out with its
   * upgrade request: the answer is then there one round trip after TCP and TLS. So ask, rather than `connect` and ask.
   *
   * @throws {CoordinatorError} ERR_NOT_FOUND, ERR_FORBIDDEN, ERR_WORKSPACE_NOT_RUNNING, ERR_AGENT_GONE,
   *   ERR_AGENT_NOT_FOUND, ERR_AGENT_AMBIGUOUS, ERR_TOO_MANY_GRANTS, ..., as the coordinator says;
   *   ERR_COORDINATOR_UNREACHABLE; with `unauthorized`, what became of the credential
   */
  async requestGrant(target: string | GrantTarget, signal?: AbortSignal): Promise<ReachedGrant> {
    const what = typeof target === "string" ? { agentId: target } : target;
    const reply = await this.#request((request) => ({ type: "grant-request", request, ...what }), signal);
    if (reply.type !== "grant")
      throw new CoordinatorError("ERR_BAD_VALUE", `answer ${reply.type} to a grant request`);
    const agentId = "agentId" in what ? what.agentId : reply.agentId;
    if (agentId === undefined)
      throw new CoordinatorError("ERR_BAD_VALUE", "the coordinator named no agent for the workspace");
    const record = reply.record ? this.#openRecord(reply.record) : undefined;
    if (record && record.agentId !== agentId)
      throw new CoordinatorError("ERR_BAD_VALUE", "the coordinator sent another agent's node record");
    const { workspace, agent } = reply;
    return { grant: fromBase64(reply.grant), record, agentId, workspace, agent };
  }

  /** Agents: those of `grants` that are void. At most MAX_LIVE_GRANTS ids. */
  async voidGrants(grants: string[], signal?: AbortSignal): Promise<string[]> {
    const reply = await this.#request((request) => ({ type: "still-granted", request, grants }), signal);
    if (reply.type !== "void-grants")
      throw new CoordinatorError("ERR_BAD_VALUE", `answer ${reply.type} to still-granted`);
    return reply.grants;
  }

  setHomeRegion(region: number): void {
    if (this.#homeRegion === region) return;
    this.#homeRegion = region;
    if (this.#ready) this.#sayHome(region);
  }

  /**
   * The machine slept or changed networks: a connection that died meanwhile says nothing. It is asked, and taken for
   * dead after 3 s; a wait for the next try ends now.
   */
  check(): void {
    if (this.#closed) return;
    if (this.#retry) {
      this.#runtime.clearTimer(this.#retry);
      this.#failures = 0;
      return this.#open();
    }
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.ping();
    this.#expectWithin(CHECK_TIMEOUT_MS);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#runtime.clearTimer(this.#retry);
    this.#runtime.clearTimer(this.#silence);
    const socket = this.#socket;
    this.#fail(new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "closed"));
    if (!socket) return;
    await new Promise<void>((resolve) => {
      const force = this.#runtime.setTimer(() => socket.terminate(), 1000);
      socket.once("close", () => {
        this.#runtime.clearTimer(force);
        resolve();
      });
      if (socket.readyState === WebSocket.CLOSED) {
        this.#runtime.clearTimer(force);
        resolve();
      } else socket.close(1000);
      // By then the kernel has our half of it.
      if (this.#options.leavesAtOnce) setImmediate(() => socket.terminate());
    });
  }

  /** Connects if nothing is under way. In a microtask: what is asked in the same turn shall be in the first flight. */
  #start(): void {
    if (this.#closed || this.#socket || this.#retry || this.#starting) return;
    this.#starting = true;
    this.#awaySince ??= this.#runtime.nowMs();
    queueMicrotask(() => {
      this.#starting = false;
      if (!this.#closed) this.#open();
    });
  }

  #open(): void {
    this.#retry = undefined;
    const first = this.#firstMessages();
    const early = base64Json(first);
    const { openSocket = openWebSocket } = this.#options;
    const socket = openSocket(this.#options.url.replace(/^http/, "ws"), {
      headers: {
        "Coder-Session-Token": this.#options.token,
        ...(early ? { [FIRST_MESSAGES_HEADER]: early } : {}),
        ...(this.#resumeToken ? { [RESUME_TOKEN_HEADER]: this.#resumeToken } : {}),
      },
      handshakeTimeout: CONNECT_TIMEOUT_MS,
      maxPayload: MAX_MESSAGE_BYTES,
      perMessageDeflate: false,
    });
    this.#socket = socket;
    let failure: CoordinatorError | undefined;
    let taken = false;
    socket.on("upgrade", (response) => {
      taken = response.headers[FIRST_MESSAGES_HEADER.toLowerCase()] === "taken";
    });
    socket.on("unexpected-response", (request, response) => {
      const unauthorized = response.statusCode === 401 || response.statusCode === 403;
      failure = new CoordinatorError(
        unauthorized ? "ERR_UNAUTHORIZED" : "ERR_COORDINATOR_UNREACHABLE",
        unauthorized
          ? "the server refused the token; log in again (`coder login`)"
          : `the coordinator answered with status ${response.statusCode}`,
        { unauthorized },
      );
      response.resume();
      request.destroy();
      // `ws` leaves the rest to whoever takes this event: without it no close event would follow.
      socket.emit("error", failure);
      socket.terminate();
    });
    socket.on("open", () => {
      this.#expectWithin(CONNECT_TIMEOUT_MS);
      if (!taken) for (const message of first) this.#send(message);
      // What was asked since, or did not fit.
      for (const pending of this.#pending.values()) if (!first.includes(pending.message)) this.#say(pending);
    });
    socket.on("ping", () => this.#heard());
    socket.on("pong", () => this.#heard());
    socket.on("message", (data) => {
      this.#heard();
      try {
        const message = decodeCoordinatorMessage(data as Buffer);
        if (message) this.#receive(message);
      } catch (error) {
        failure = new CoordinatorError("ERR_BAD_VALUE", (error as Error).message, { cause: error });
        socket.terminate();
      }
    });
    socket.on("error", (cause) => {
      failure ??= new CoordinatorError(
        "ERR_COORDINATOR_UNREACHABLE",
        `cannot reach the coordinator at ${this.#options.url}: ${cause.message}`,
        { cause },
      );
    });
    let lost = false;
    const onLost = () => {
      if (lost) return;
      lost = true;
      if (this.#socket === socket) this.#lost(failure);
    };
    socket.on("close", (code, reason) => {
      failure ??= saidAtClose(code, reason);
      // We are not who the token says any more: next time the credential stands alone.
      if (failure?.unauthorized || code === CLOSE_CODES.replaced) this.#resumeToken = undefined;
      onLost();
    });
    // `terminate` during the opening handshake may report only an error.
    socket.on("error", () => setImmediate(() => socket.readyState === WebSocket.CLOSED && onLost()));
  }

  #lost(error = new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "the coordinator hung up")): void {
    this.#socket = undefined;
    this.#ready = false;
    this.#runtime.clearTimer(this.#silence);
    this.#fail(error);
    if (this.#closed) return;
    this.#awaySince ??= this.#runtime.nowMs();
    const outageMs = this.#runtime.nowMs() - this.#awaySince;
    this.#retry = this.#runtime.setTimer(
      () => this.#open(),
      reconnectDelayMs(
        { failures: this.#failures++, outageMs },
        this.#options.random?.() ?? this.#runtime.random(),
      ),
    );
    this.#options.onState?.({ connected: false, error });
  }

  /** Hello, and what waits for an answer, as far as it fits into the upgrade request. */
  #firstMessages(): NodeMessageInput[] {
    this.#saidHomeRegion = this.#homeRegion;
    const first: NodeMessageInput[] = [
      {
        type: "hello",
        version: COORDINATOR_VERSION,
        nodeKey: this.#options.nodeKey,
        homeRegion: this.#homeRegion,
        liveGrants: (this.liveGrants?.() ?? []).slice(0, MAX_LIVE_GRANTS),
      },
    ];
    for (const pending of this.#pending.values()) {
      if (base64Json([...first, pending.message]) === undefined) break;
      pending.sends++;
      first.push(pending.message);
    }
    return first;
  }

  #sayHome(homeRegion: number): void {
    this.#saidHomeRegion = homeRegion;
    this.#send({ type: "home", homeRegion });
  }

  #heard(): void {
    this.#expectWithin(this.#ready ? SILENCE_TIMEOUT_MS : CONNECT_TIMEOUT_MS);
  }

  #expectWithin(ms: number): void {
    this.#runtime.clearTimer(this.#silence);
    this.#silence = this.#runtime.setTimer(() => this.#socket?.terminate(), ms);
  }

  #send(message: NodeMessageInput): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #say(pending: Pending): void {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    pending.sends++;
    this.#send(pending.message);
  }

  #receive(message: CoordinatorMessage): void {
    switch (message.type) {
      case "welcome":
        return this.#welcome(message);
      case "relay-map":
        this.#options.onRelayMap?.(message.map);
        return;
      case "relay-ticket":
        if (message.resumeToken !== undefined) this.#resumeToken = message.resumeToken;
        return this.#gotTicket(message.ticket);
      case "signing-keys": {
        const isGone = ({ id }: PublicSigningKey) => message.signingKeys.every((key) => key.id !== id);
        const lost = this.signingKeys.some(isGone);
        this.signingKeys = message.signingKeys;
        // What such a key signed opens nothing any more: whoever holds grants asks for new ones.
        if (lost) this.onConnected?.();
        return;
      }
      case "record":
        this.onRecord?.(this.#openRecord(message.record));
        return;
      case "record-gone":
        this.onRecordGone?.(message.agentId);
        return;
      case "revoke":
        this.onRevoke?.(message.grants);
        return;
      case "error":
      case "grant":
      case "void-grants": {
        if (message.request === undefined) return;
        const pending = this.#pending.get(message.request);
        this.#pending.delete(message.request);
        if (message.type === "error")
          pending?.reject(new CoordinatorError(message.code as CoordinatorErrorCode, message.message));
        else pending?.resolve(message);
      }
    }
  }

  #welcome(message: Extract<CoordinatorMessage, { type: "welcome" }>): void {
    this.#clockOffsetMs = message.serverTimeMs - this.#runtime.nowMs();
    this.#bootOffsetAtWelcomeMs = this.#bootOffsetMs();
    this.signingKeys = message.signingKeys;
    this.agentId = message.agentId;
    this.#resumeToken = message.resumeToken;
    this.#failures = 0;
    this.#awaySince = undefined;
    this.#ready = true;
    this.#lastError = undefined;
    this.#heard();
    // It moved while hello was under way.
    if (this.#homeRegion !== undefined && this.#homeRegion !== this.#saidHomeRegion)
      this.#sayHome(this.#homeRegion);
    if (message.relayTicket !== undefined) this.#gotTicket(message.relayTicket);
    if (message.voidGrants.length > 0) this.onRevoke?.(message.voidGrants);
    for (const waiter of this.#welcomed) waiter.resolve();
    this.#welcomed.clear();
    this.#options.onState?.({ connected: true });
    this.onConnected?.();
    this.#askAboutTheRest();
  }

  /** Grants that had no room in hello. */
  #askAboutTheRest(): void {
    const grants = this.liveGrants?.() ?? [];
    for (let at = MAX_LIVE_GRANTS; at < grants.length; at += MAX_LIVE_GRANTS)
      this.voidGrants(grants.slice(at, at + MAX_LIVE_GRANTS)).then(
        (ids) => ids.length > 0 && this.onRevoke?.(ids),
        () => undefined, // the next welcome asks again
      );
  }

  #gotTicket(ticket: string): void {
    this.relayTicket = ticket;
    this.#options.onRelayTicket?.(ticket);
  }

  /** Only the deployment's signature makes a key the agent's; the coordinator's word alone does not. */
  #openRecord(statement: string): NodeRecord {
    try {
      return openStatement("nodeRecord", fromBase64(statement), {
        keys: this.signingKeys,
        verify: verifyEd25519,
        nowMs: this.nowMs(),
      });
    } catch (cause) {
      if (!(cause instanceof StatementError)) throw cause;
      throw new CoordinatorError(cause.code, `the agent's node record is not valid: ${cause.message}`, {
        cause,
      });
    }
  }

  async #request(make: (request: number) => NodeMessageInput, signal?: AbortSignal): Promise<Answer> {
    signal?.throwIfAborted();
    if (this.#closed) throw new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "closed");
    const request = this.#nextRequest++;
    const answer = new Promise<Answer>((resolve, reject) => {
      const pending: Pending = { message: make(request), sends: 0, resolve, reject };
      this.#pending.set(request, pending);
      this.#say(pending);
    });
    this.#start();
    try {
      return await withDeadline(answer, {
        runtime: this.#runtime,
        ms: REQUEST_TIMEOUT_MS,
        signal,
        onTimeout: () =>
          this.#lastError ??
          new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "the coordinator did not answer in time"),
      });
    } finally {
      this.#pending.delete(request);
    }
  }

  async #whenReady(signal?: AbortSignal): Promise<void> {
    if (this.#ready) return;
    if (this.#closed) throw new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "closed");
    let waiter: Waiter | undefined;
    const welcomed = new Promise<void>((resolve, reject) => {
      waiter = { resolve, reject };
      this.#welcomed.add(waiter);
    });
    try {
      await withDeadline(welcomed, {
        runtime: this.#runtime,
        ms: CONNECT_TIMEOUT_MS,
        signal,
        onTimeout: () =>
          this.#lastError ??
          new CoordinatorError(
            "ERR_COORDINATOR_UNREACHABLE",
            `no answer from the coordinator at ${this.#options.url}`,
          ),
      });
    } finally {
      if (waiter) this.#welcomed.delete(waiter);
    }
  }

  /** Whoever waits goes on waiting for the next connection, unless the credential was refused or there is none. */
  #fail(error: CoordinatorError): void {
    this.#lastError = error;
    const isFinal = error.unauthorized || this.#closed;
    for (const [request, pending] of [...this.#pending]) {
      if (!isFinal && pending.sends < MAX_SENDS) continue;
      this.#pending.delete(request);
      pending.reject(error);
    }
    if (!isFinal) return;
    for (const { reject } of [...this.#welcomed]) reject(error);
    this.#welcomed.clear();
  }
}

function openWebSocket(url: string, options: ClientOptions): WebSocket {
  const connecting = { autoSelectFamilyAttemptTimeout: ADDRESS_ATTEMPT_MS }; // handed on to node:net
  return new WebSocket(url, { ...options, ...connecting });
}

/** @returns undefined when it is too much for a header */
function base64Json(messages: NodeMessageInput[]): string | undefined {
  const bytes = utf8(JSON.stringify(messages));
  return bytes.length <= MAX_FIRST_BYTES ? toBase64(bytes) : undefined;
}
