import { createPublicKey, verify as edVerify } from "node:crypto";
import { WebSocket } from "ws";
import type { Coordinator, GrantedAgent } from "../mesh/node/coordinator.ts";
import { withDeadline } from "../mesh/node/wait.ts";
import { fromBase64 } from "../mesh/wire/bytes.ts";
import {
  COORDINATOR_VERSION,
  type CoordinatorMessage,
  decodeCoordinatorMessage,
  MAX_MESSAGE_BYTES,
  type NodeMessageInput,
} from "../mesh/wire/coordinator.ts";
import { MeshError } from "../mesh/wire/errors.ts";
import {
  type NodeRecord,
  openStatement,
  type PublicSigningKey,
  StatementError,
} from "../mesh/wire/signed.ts";

export type CoordinatorErrorCode = `ERR_${string}`;

/** The coordinator refused, or could not be reached. `code` is its own, or ERR_COORDINATOR_UNREACHABLE. */
export class CoordinatorError extends MeshError {
  readonly code: CoordinatorErrorCode;
  /** True when the credential was refused: a retry with the same one cannot help. */
  readonly unauthorized: boolean;
  constructor(
    code: CoordinatorErrorCode,
    message: string,
    options?: ErrorOptions & { unauthorized?: boolean },
  ) {
    super(message, options);
    this.code = code;
    this.unauthorized = options?.unauthorized ?? false;
  }
}

/** DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410 section 4). */
const SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex");

/** Ed25519 by node:crypto; 0.1 ms against 5.9 in JavaScript. */
export function verifyEd25519(publicKey: Uint8Array, message: Uint8Array, signature: Uint8Array): boolean {
  const key = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, publicKey]), format: "der", type: "spki" });
  return edVerify(null, message, key, signature);
}

export interface CoordinatorClientOptions {
  /** http(s) address of the WebSocket route. */
  url: string;
  /** Session or agent token, sent as `Coder-Session-Token`. */
  token: string;
  nodeKey: string;
  homeRegion?: number;
  onRelayMap?: (map: { Regions: Record<string, unknown> }) => void;
  onState?: (state: { connected: boolean; error?: Error }) => void;
  /** Reconnect for ever (an agent, a daemon), or give up on the first refusal (a command). */
  random?: () => number;
}

/** Two pings of the server; without either the connection is dead (a sleeping laptop, a lost NAT entry). */
const SILENCE_TIMEOUT_MS = 35_000;
const CONNECT_TIMEOUT_MS = 10_000;
const REQUEST_TIMEOUT_MS = 10_000;
const BACKOFF_MIN_MS = 200;
const BACKOFF_MAX_MS = 15_000;

/** Next wait: exponential, capped, times a random 0.5..1.5 so that a restarted server is not stormed. */
export function backoffMs(failures: number, random: number): number {
  return Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(failures, 16)) * (0.5 + random);
}

/** Our coordinator closes with "ERR_CODE: text" as the reason; proxies and crashes with anything. */
function saidAtClose(reason: Uint8Array): CoordinatorError | undefined {
  const said = /^(ERR_[A-Z_]+): (.+)$/.exec(Buffer.from(reason).toString("utf8"));
  return said
    ? new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", `the coordinator hung up: ${said[2]} (${said[1]})`)
    : undefined;
}

interface Pending {
  resolve(message: CoordinatorMessage): void;
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
  onConnected: Coordinator["onConnected"];
  onRecord: Coordinator["onRecord"];
  onRecordGone: Coordinator["onRecordGone"];
  onRevoke: Coordinator["onRevoke"];
  liveGrants: Coordinator["liveGrants"];

  readonly #options: CoordinatorClientOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #welcomed = new Set<Waiter>();
  #socket: WebSocket | undefined;
  #ready = false;
  #closed = false;
  #failures = 0;
  #nextRequest = 1;
  #homeRegion: number | undefined;
  #resumeToken: string | undefined;
  #clockOffsetMs = Date.now() - performance.now();
  #retry: NodeJS.Timeout | undefined;
  #silence: NodeJS.Timeout | undefined;
  #lastError: CoordinatorError | undefined;

  constructor(options: CoordinatorClientOptions) {
    this.#options = options;
    this.#homeRegion = options.homeRegion;
  }

  get connected(): boolean {
    return this.#ready;
  }

  nowMs(): number {
    return performance.now() + this.#clockOffsetMs;
  }

  /** Starts connecting (and keeps reconnecting). @returns once welcomed @throws {CoordinatorError} when the first try fails for good */
  async connect(signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    if (!this.#closed && !this.#socket && !this.#retry) this.#open();
    await this.#whenReady(signal);
  }

  async requestGrant(agentId: string, signal?: AbortSignal): Promise<GrantedAgent> {
    await this.connect(signal);
    const reply = await this.#request((request) => ({ type: "grant-request", request, agentId }), signal);
    if (reply.type !== "grant")
      throw new CoordinatorError("ERR_BAD_VALUE", `answer ${reply.type} to a grant request`);
    return {
      grant: fromBase64(reply.grant),
      record: reply.record ? this.#openRecord(reply.record) : undefined,
    };
  }

  setHomeRegion(region: number): void {
    if (this.#homeRegion === region) return;
    this.#homeRegion = region;
    if (this.#ready) this.#send({ type: "home", homeRegion: region });
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    clearTimeout(this.#silence);
    const socket = this.#socket;
    this.#fail(new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "closed"));
    if (!socket) return;
    await new Promise<void>((resolve) => {
      const force = setTimeout(() => socket.terminate(), 1000);
      socket.once("close", () => {
        clearTimeout(force);
        resolve();
      });
      if (socket.readyState === WebSocket.CLOSED) {
        clearTimeout(force);
        resolve();
      } else socket.close(1000);
    });
  }

  #open(): void {
    this.#retry = undefined;
    const url = this.#options.url.replace(/^http/, "ws");
    const socket = new WebSocket(url, {
      headers: { "Coder-Session-Token": this.#options.token },
      handshakeTimeout: CONNECT_TIMEOUT_MS,
      maxPayload: MAX_MESSAGE_BYTES,
      perMessageDeflate: false,
    });
    this.#socket = socket;
    let failure: CoordinatorError | undefined;
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
      this.#heard();
      this.#send({
        type: "hello",
        version: COORDINATOR_VERSION,
        nodeKey: this.#options.nodeKey,
        homeRegion: this.#homeRegion,
        liveGrants: this.liveGrants?.() ?? [],
        resumeToken: this.#resumeToken,
      });
    });
    socket.on("ping", () => this.#heard());
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
      if (this.#socket !== socket) return;
      this.#socket = undefined;
      this.#ready = false;
      clearTimeout(this.#silence);
      const error = failure ?? new CoordinatorError("ERR_COORDINATOR_UNREACHABLE", "the coordinator hung up");
      this.#fail(error);
      if (this.#closed) return;
      this.#retry = setTimeout(
        () => this.#open(),
        backoffMs(this.#failures++, (this.#options.random ?? Math.random)()),
      );
      this.#options.onState?.({ connected: false, error });
    };
    socket.on("close", (_code, reason) => {
      failure ??= saidAtClose(reason);
      onLost();
    });
    // `terminate` during the opening handshake may report only an error.
    socket.on("error", () => setImmediate(() => socket.readyState === WebSocket.CLOSED && onLost()));
  }

  #heard(): void {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#socket?.terminate(), SILENCE_TIMEOUT_MS);
  }

  #send(message: NodeMessageInput): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #receive(message: CoordinatorMessage): void {
    switch (message.type) {
      case "welcome":
        this.#clockOffsetMs = message.serverTimeMs - performance.now();
        this.signingKeys = message.signingKeys;
        this.agentId = message.agentId;
        this.#resumeToken = message.resumeToken;
        this.#failures = 0;
        this.#ready = true;
        this.#lastError = undefined;
        if (message.voidGrants.length > 0) this.onRevoke?.(message.voidGrants);
        for (const waiter of this.#welcomed) waiter.resolve();
        this.#welcomed.clear();
        this.#options.onState?.({ connected: true });
        this.onConnected?.();
        return;
      case "relay-map":
        this.#options.onRelayMap?.(message.map);
        return;
      case "signing-keys":
        this.signingKeys = message.signingKeys;
        return;
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

  async #request(
    make: (request: number) => NodeMessageInput,
    signal?: AbortSignal,
  ): Promise<CoordinatorMessage> {
    const request = this.#nextRequest++;
    const answer = new Promise<CoordinatorMessage>((resolve, reject) => {
      this.#pending.set(request, { resolve, reject });
    });
    this.#send(make(request));
    try {
      return await withDeadline(answer, {
        ms: REQUEST_TIMEOUT_MS,
        signal,
        onTimeout: () =>
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

  /** Requests in flight fail; those waiting for a connection wait on, unless the token was refused. */
  #fail(error: CoordinatorError): void {
    this.#lastError = error;
    for (const { reject } of [...this.#pending.values()]) reject(error);
    this.#pending.clear();
    if (!error.unauthorized && !this.#closed) return;
    for (const { reject } of [...this.#welcomed]) reject(error);
    this.#welcomed.clear();
  }
}
