// A relay in a process of its own, seen from its server: relaying then shares no event loop with the API. Sockets of
// `/derp` are handed over as they are; where TLS ends in the server, their bytes go through it.
import { type ChildProcess, fork } from "node:child_process";
import { type AddressInfo, createServer, connect as netConnect, type Server, Socket } from "node:net";
import { performance } from "node:perf_hooks";
import type { Duplex } from "node:stream";
import { MeshError } from "../../mesh/wire/errors.ts";
import type { PublicSigningKey } from "../../mesh/wire/signed.ts";
import { keyPair } from "../box.ts";
import { type AdmissionMode, MAX_TICKET_LIFETIME_MS } from "./admission.ts";
import { answer, type UpgradeRequest } from "./http.ts";
import { counter, gauge, type Metric } from "./metrics.ts";
import type { FromRelay, RelayListen, ToRelay } from "./process-protocol.ts";
import type { RateConfig } from "./rate.ts";
import type { DerpLogger, RelayService } from "./server.ts";

export interface RelayProcessOptions {
  /** Program and arguments of the relay, run by this Node. */
  modulePath: string;
  execArgv?: string[];
  /** Curve25519; a fresh one by default. The same again after a crash. */
  privateKey?: Uint8Array;
  logger?: DerpLogger;
  meshKey?: string;
  admission?: AdmissionMode;
  /** The deployment's current signing keys; without it tickets aren't checked. */
  signingKeys?: () => readonly PublicSigningKey[];
  rates?: RateConfig;
  /** A port of its own, with TLS. */
  listen?: RelayListen;
  /**
   * A relay in this process, with the same key, for when no other can be started: the machine has no memory or process
   * left for it, or the program is broken. Without it starts are tried for ever.
   */
  fallback?: () => RelayService;
  /** 0..1, for the pause before a restart. */
  random?: () => number;
}

export class RelayProcessError extends MeshError {
  readonly code = "ERR_RELAY_PROCESS";
}

const FIRST_RESTART_MS = 100;
const MAX_RESTART_MS = 5_000;
/** Starts in a row that led to nothing: one more would be no better, and nobody is served meanwhile. */
const MAX_FAILED_STARTS = 4;
/** A process that lived this long was well: its next restart is quick again. */
const STABLE_MS = 60_000;
/** Upgrades that wait for a process which starts, and how long; beyond that they are answered 503. */
const MAX_WAITING = 256;
const MAX_WAIT_MS = 5_000;
/** Sockets on their way to the process, each acknowledged by it. */
const MAX_HANDOVERS = 1_024;
/** Connections whose bytes pass through us. */
const MAX_PIPED = 2_048;
const PING_MS = 5_000;
/** A process that hangs this long is ended; far above any pause of a healthy one. */
const HANG_MS = 30_000;
const METRICS_MS = 2_000;
const CLOSE_MS = 3_000;
const MAX_REVOKED = 65_536;

interface Waiting {
  request: UpgradeRequest;
  socket: Duplex;
  head: Uint8Array;
  timer: NodeJS.Timeout;
}

type Revocation = Extract<ToRelay, { kind: "closePeer" | "closeSubject" }>;

export class RelayProcess implements RelayService {
  readonly publicKey: Uint8Array;
  #options: RelayProcessOptions;
  #privateKey: Uint8Array;
  #child: ChildProcess | undefined;
  #isReady = false;
  #port: number | undefined;
  #startedAt = 0;
  #failures = 0;
  /** Of these, the last ones that never served. */
  #failedStarts = 0;
  #fallback: RelayService | undefined;
  #restarts = 0;
  #restartTimer: NodeJS.Timeout | undefined;
  #pingTimer: NodeJS.Timeout | undefined;
  #pongAt = 0;
  #waiting: Waiting[] = [];
  /** On their way to the process: its death loses them, and Node says no word of it. */
  readonly #handovers = new Map<Socket, NativeHandle | undefined>();
  /** The latest that was written: Node keeps it open until the process has confirmed it, which it may never do. */
  #written: NativeHandle | undefined;
  #piped = 0;
  #pairs: Promise<SocketPairs> | undefined;
  #health = "";
  #rates: RateConfig;
  #siblings: Extract<ToRelay, { kind: "siblings" }> | undefined;
  #toldKeys = "";
  /** What a restarted process must know again; the oldest first. */
  #revocations = new Map<string, Revocation>();
  #metricCalls = new Map<number, (metrics: Metric[]) => void>();
  #metricId = 0;
  #closing: Promise<void> | undefined;
  #ready: Promise<void>;
  #settleReady: { resolve(): void; reject(error: Error): void } | undefined;

  /** Starts the process; `ready` tells when it serves. Upgrades may come before. */
  constructor(options: RelayProcessOptions) {
    this.#options = options;
    const keys = keyPair(options.privateKey);
    this.publicKey = keys.publicKey;
    this.#privateKey = keys.privateKey;
    this.#rates = options.rates ?? {};
    this.#ready = new Promise((resolve, reject) => {
      this.#settleReady = { resolve, reject };
    });
    this.#ready.catch(() => {}); // whoever awaits it hears
    this.#start();
  }

  /**
   * Resolves once the process serves.
   *
   * @throws {RelayProcessError} when the first one can't: its port is taken, its certificates are wrong
   */
  get ready(): Promise<void> {
    return this.#ready;
  }

  get isUp(): boolean {
    return this.#isReady || this.#fallback !== undefined;
  }

  /** Its own TLS port. */
  get port(): number | undefined {
    return this.#port;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Sockets on their way to the process. */
  get handovers(): number {
    return this.#handovers.size;
  }

  /** How often it was started again. */
  get restarts(): number {
    return this.#restarts;
  }

  handleUpgrade(request: UpgradeRequest, socket: Duplex, head: Uint8Array): void {
    if (this.#closing) {
      answer(socket, "503 Service Unavailable", "The relay is shutting down.\n");
      return;
    }
    if (this.#isReady) {
      this.#handOver(request, socket, head);
      return;
    }
    if (this.#fallback) {
      this.#fallback.handleUpgrade(request, socket, head);
      return;
    }
    if (this.#waiting.length >= MAX_WAITING) {
      answer(socket, "503 Service Unavailable", "The relay is starting. Try again.\n");
      return;
    }
    const waiting: Waiting = {
      request,
      socket,
      head,
      timer: setTimeout(() => {
        this.#waiting = this.#waiting.filter((other) => other !== waiting);
        answer(socket, "503 Service Unavailable", "The relay is starting. Try again.\n");
      }, MAX_WAIT_MS),
    };
    this.#waiting.push(waiting);
  }

  setHealth(problem: string): void {
    this.#health = problem;
    this.#fallback?.setHealth(problem);
    this.#tell({ kind: "health", problem });
  }

  disconnect(key: Uint8Array): number | undefined {
    this.#tell({ kind: "disconnect", key });
    return this.#fallback?.disconnect(key);
  }

  closePeer(key: Uint8Array, nowMs = Date.now()): void {
    this.#revoke(`key ${Buffer.from(key).toString("latin1")}`, { kind: "closePeer", key, nowMs });
  }

  closeSubject(subject: string, nowMs = Date.now()): void {
    this.#revoke(subject, { kind: "closeSubject", subject, nowMs });
  }

  setRates(rates: RateConfig): void {
    this.#rates = rates;
    this.#fallback?.setRates(rates);
    this.#tell({ kind: "rates", rates });
  }

  /** Not in the server's own process, should the relay have fallen back to it. */
  setSiblings(urls: readonly (string | URL)[], { ca }: { ca?: string } = {}): void {
    this.#siblings = { kind: "siblings", urls: urls.map(String), ca };
    this.#tell(this.#siblings);
  }

  /** Reads the certificates of its own port again. */
  reloadCertificates(): void {
    this.#tell({ kind: "reloadCertificates" });
  }

  /** The relay's, when it answers in time, and ours. */
  async metrics(): Promise<Metric[]> {
    const own = [
      gauge("process_up", "Whether the relay's process serves.", this.#isReady ? 1 : 0),
      gauge("process_piped", "Connections whose bytes pass through the server.", this.#piped),
      counter("process_restarts", "Times the relay's process was started again.", this.#restarts),
      gauge(
        "process_fallback",
        "Whether the relay had to make do with the server's process.",
        this.#fallback ? 1 : 0,
      ),
    ];
    if (this.#fallback) return [...(await this.#fallback.metrics()), ...own];
    if (!this.#isReady) return own;
    const id = ++this.#metricId;
    const metrics = await new Promise<Metric[]>((resolve) => {
      const timer = setTimeout(() => settle([]), METRICS_MS);
      const settle = (result: Metric[]): void => {
        clearTimeout(timer);
        this.#metricCalls.delete(id);
        resolve(result);
      };
      this.#metricCalls.set(id, settle);
      this.#tell({ kind: "metrics", id });
    });
    return [...metrics, ...own];
  }

  close({ reconnectInMs, tryForMs }: { reconnectInMs?: number; tryForMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(reconnectInMs, tryForMs);
    return this.#closing;
  }

  async #close(reconnectInMs: number | undefined, tryForMs: number | undefined): Promise<void> {
    clearTimeout(this.#restartTimer);
    for (const { socket, timer } of this.#waiting.splice(0)) {
      clearTimeout(timer);
      answer(socket, "503 Service Unavailable", "The relay is shutting down.\n");
    }
    const child = this.#child;
    if (child) {
      const exited = new Promise<void>((resolve) => child.once("exit", () => resolve()));
      const kill = setTimeout(() => child.kill("SIGKILL"), CLOSE_MS);
      if (this.#isReady) this.#tell({ kind: "close", reconnectInMs, tryForMs });
      else child.kill("SIGKILL");
      await exited;
      clearTimeout(kill);
    }
    this.#loseHandovers();
    await this.#fallback?.close({ reconnectInMs, tryForMs });
    (await this.#pairs?.catch(() => undefined))?.close();
  }

  #start(): void {
    // Its environment has nothing of the server's: no database address, no tokens.
    const env = Object.fromEntries(
      ["PATH", "NODE_EXTRA_CA_CERTS", "TZ"].flatMap((name) => {
        const value = process.env[name];
        return value === undefined ? [] : [[name, value]];
      }),
    );
    this.#startedAt = performance.now();
    this.#pongAt = this.#startedAt;
    let child: ChildProcess;
    try {
      child = fork(this.#options.modulePath, [], {
        execArgv: this.#options.execArgv ?? [],
        env,
        serialization: "advanced",
        stdio: ["ignore", "ignore", "inherit", "ipc"],
      });
    } catch (error) {
      this.#failed((error as Error).message);
      return;
    }
    this.#child = child;
    child.on("message", (message: FromRelay) => this.#hear(child, message));
    child.on("error", (error) => {
      this.#options.logger?.warn({ err: error.message }, "relay process");
      // It was never there, so no `exit` follows.
      if (child.pid === undefined) this.#exited(child, null, null);
    });
    child.once("exit", (code, signal) => this.#exited(child, code, signal));
    this.#pingTimer = setInterval(() => this.#check(child), PING_MS);
    const { meshKey, admission, signingKeys, listen } = this.#options;
    const keys = signingKeys?.();
    this.#toldKeys = JSON.stringify(keys);
    this.#send(child, {
      kind: "configure",
      privateKey: this.#privateKey,
      meshKey,
      admission: admission ?? "open",
      signingKeys: keys,
      rates: this.#rates,
      // The same port again after a crash, where any free one was asked for.
      listen: listen && { ...listen, port: this.#port ?? listen.port },
    });
    for (const revocation of this.#revocations.values()) this.#send(child, revocation);
    if (this.#health) this.#send(child, { kind: "health", problem: this.#health });
    if (this.#siblings) this.#send(child, this.#siblings);
  }

  #hear(child: ChildProcess, message: FromRelay): void {
    if (child !== this.#child) return;
    switch (message.kind) {
      case "ready":
        this.#isReady = true;
        this.#failedStarts = 0;
        this.#port = message.port;
        this.#settleReady?.resolve();
        this.#settleReady = undefined;
        for (const { request, socket, head, timer } of this.#waiting.splice(0)) {
          clearTimeout(timer);
          this.#handOver(request, socket, head);
        }
        return;
      case "failed":
        this.#options.logger?.warn({ err: message.message }, "the relay process can't serve");
        this.#settleReady?.reject(
          new RelayProcessError(`the relay can't serve on its own port: ${message.message}`),
        );
        this.#settleReady = undefined;
        return;
      case "log":
        this.#options.logger?.[message.level](message.fields, message.message);
        return;
      case "metrics":
        this.#metricCalls.get(message.id)?.(message.metrics);
        return;
      case "pong":
        this.#pongAt = performance.now();
    }
  }

  #exited(child: ChildProcess, code: number | null, signal: string | null): void {
    if (child !== this.#child) return;
    clearInterval(this.#pingTimer);
    if (child.connected) child.disconnect();
    this.#child = undefined;
    if (!this.#isReady) this.#failedStarts++;
    this.#isReady = false;
    this.#loseHandovers();
    this.#restartLater({ code, signal });
  }

  /** No process could be made. */
  #failed(err: string): void {
    this.#failedStarts++;
    this.#restartLater({ err });
  }

  #restartLater(why: { code: number | null; signal: string | null } | { err: string }): void {
    if (this.#closing) return;
    if (this.#failedStarts >= MAX_FAILED_STARTS && this.#options.fallback) {
      this.#options.logger?.warn(
        why,
        "no relay process can be started; the server's own process relays from now on",
      );
      this.#fallBack(this.#options.fallback());
      return;
    }
    this.#failures = performance.now() - this.#startedAt >= STABLE_MS ? 1 : this.#failures + 1;
    const pauseMs = Math.min(FIRST_RESTART_MS * 2 ** (this.#failures - 1), MAX_RESTART_MS);
    this.#options.logger?.warn({ ...why, pauseMs }, "the relay process ended; it is started again");
    const random = this.#options.random ?? Math.random;
    this.#restartTimer = setTimeout(
      () => {
        this.#restarts++;
        this.#start();
      },
      pauseMs * (0.5 + random()),
    );
  }

  /** For good: of two relays with one key neither would know the other's clients. */
  #fallBack(relay: RelayService): void {
    this.#fallback = relay;
    this.#port = undefined;
    for (const revocation of this.#revocations.values()) {
      if (revocation.kind === "closePeer") relay.closePeer(revocation.key, revocation.nowMs);
      else relay.closeSubject(revocation.subject, revocation.nowMs);
    }
    relay.setRates(this.#rates);
    if (this.#health) relay.setHealth(this.#health);
    this.#settleReady?.resolve();
    this.#settleReady = undefined;
    for (const { request, socket, head, timer } of this.#waiting.splice(0)) {
      clearTimeout(timer);
      relay.handleUpgrade(request, socket, head);
    }
  }

  /** Clients whose sockets never arrived must not wait for an answer. */
  #loseHandovers(): void {
    for (const [socket, handle] of this.#handovers) {
      socket.destroy();
      handle?.close();
    }
    this.#handovers.clear();
    this.#written?.close();
    this.#written = undefined;
  }

  #check(child: ChildProcess): void {
    if (performance.now() - this.#pongAt >= HANG_MS) {
      child.kill("SIGKILL");
      return;
    }
    this.#tellKeys();
    this.#send(child, { kind: "ping" });
  }

  #tellKeys(): void {
    const keys = this.#options.signingKeys?.();
    const text = JSON.stringify(keys);
    if (!keys || text === this.#toldKeys) return;
    this.#toldKeys = text;
    this.#tell({ kind: "signingKeys", keys });
  }

  #revoke(name: string, message: Revocation): void {
    this.#revocations.delete(name);
    this.#revocations.set(name, message); // last in order
    for (const [oldest, { nowMs }] of this.#revocations) {
      if (nowMs + MAX_TICKET_LIFETIME_MS > message.nowMs && this.#revocations.size <= MAX_REVOKED) break;
      this.#revocations.delete(oldest);
    }
    if (message.kind === "closePeer") this.#fallback?.closePeer(message.key, message.nowMs);
    else this.#fallback?.closeSubject(message.subject, message.nowMs);
    this.#tell(message);
  }

  #handOver(request: UpgradeRequest, socket: Duplex, head: Uint8Array): void {
    if (socket.destroyed) return;
    this.#tellKeys();
    const { method, url, headers } = request;
    const { remoteAddress, remotePort } = request.socket;
    const told: UpgradeRequest = {
      method,
      url,
      headers: relayHeaders(headers),
      socket: { remoteAddress, remotePort },
    };
    const isPlain = socket instanceof Socket && !("encrypted" in socket) && stopReading(socket);
    if (isPlain) {
      const early = socket.read() as Uint8Array | null;
      this.#sendSocket(told, socket, early ? Buffer.concat([head, early]) : head);
    } else void this.#pipe(told, socket, head);
  }

  #sendSocket(request: UpgradeRequest, socket: Socket, head: Uint8Array): void {
    const child = this.#child;
    if (!child?.connected || this.#handovers.size >= MAX_HANDOVERS) {
      answer(socket, "503 Service Unavailable", "The relay is busy. Try again.\n");
      return;
    }
    const handle = nativeHandle(socket);
    this.#handovers.set(socket, handle);
    // A plain Uint8Array: structured cloning keeps its class, and a view of its own bytes alone.
    const message: ToRelay = { kind: "upgrade", request, head: new Uint8Array(head) };
    // Else Node counts the connection off its server twice, now and when the rest of it is destroyed, and that server
    // would never be done closing.
    Object.assign(socket, { server: null });
    child.send(message, socket, { keepOpen: false }, () => {
      if (this.#handovers.delete(socket)) this.#written = handle;
      socket.destroy(); // what is left of it here; the connection itself is the process's now
    });
  }

  /** TLS ends here: the process gets one end of a loopback connection, and we carry the bytes. */
  async #pipe(request: UpgradeRequest, socket: Duplex, head: Uint8Array): Promise<void> {
    if (this.#piped >= MAX_PIPED) {
      answer(
        socket,
        "503 Service Unavailable",
        "Too many connections. Try again, or use the relay's own port.\n",
      );
      return;
    }
    this.#piped++;
    let isOver = false;
    const over = (): void => {
      if (isOver) return;
      isOver = true;
      this.#piped--;
    };
    socket.once("close", over);
    try {
      this.#pairs ??= SocketPairs.open();
      const { near, far } = await (await this.#pairs).make();
      const end = (): void => {
        socket.destroy();
        near.destroy();
      };
      socket.on("error", end).on("close", end);
      near.on("error", end).on("close", end);
      if (socket.destroyed) {
        far.destroy(); // nobody reads it, so it would never notice that the other end is gone
        return end();
      }
      this.#sendSocket(request, far, head);
      socket.pipe(near);
      near.pipe(socket);
    } catch (error) {
      this.#pairs = undefined;
      this.#options.logger?.warn(
        { err: (error as Error).message },
        "a connection can't be passed to the relay",
      );
      socket.destroy();
      over();
    }
  }

  #tell(message: ToRelay): void {
    if (this.#child) this.#send(this.#child, message);
  }

  #send(child: ChildProcess, message: ToRelay): void {
    if (child.connected) child.send(message, () => {}); // when it fails, the process is gone, which `exit` tells
  }
}

/** What a relay reads of a request. Cookies and tokens for the API are none of its business. */
const RELAY_HEADERS = /^(host|upgrade|connection|sec-websocket-.*|derp-.*|ideal-node)$/;

const relayHeaders = (headers: UpgradeRequest["headers"]): UpgradeRequest["headers"] =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => RELAY_HEADERS.test(name)));

/**
 * Keeps bytes that arrive from now on in the kernel, for whoever gets the socket. Node has no public call for it;
 * without it, what arrives while the socket is handed over would be read here and lost.
 *
 * @returns false when this Node can't: the bytes must be piped then
 */
function stopReading(socket: Socket): boolean {
  const handle = nativeHandle(socket);
  if (typeof handle?.readStop !== "function") return false;
  handle.readStop();
  return true;
}

/** What Node has below a socket; closing it twice does no harm. */
interface NativeHandle {
  close(): void;
  readStop?: () => number;
}

function nativeHandle(socket: Socket): NativeHandle | undefined {
  return (socket as Socket & { _handle?: NativeHandle | null })._handle ?? undefined;
}

/** Makes connected pairs of loopback sockets, of which one can be handed to another process. */
class SocketPairs {
  #server: Server;
  #expected = new Map<number, (far: Socket) => void>();
  /** Accepted before we knew the port of the other end. */
  #early = new Map<number, Socket>();

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (far) => this.#accepted(far));
  }

  static async open(): Promise<SocketPairs> {
    const server = createServer({ pauseOnConnect: true });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(0, "127.0.0.1", () => resolve());
    });
    return new SocketPairs(server);
  }

  async make(): Promise<{ near: Socket; far: Socket }> {
    const near = netConnect((this.#server.address() as AddressInfo).port, "127.0.0.1");
    await new Promise<void>((resolve, reject) => {
      near.once("connect", resolve);
      near.once("error", reject);
    });
    near.setNoDelay(true);
    const port = near.localPort!;
    const early = this.#early.get(port);
    this.#early.delete(port);
    if (early) return { near, far: early };
    const far = await new Promise<Socket>((resolve, reject) => {
      this.#expected.set(port, resolve);
      near.once("close", () => {
        this.#expected.delete(port);
        reject(new RelayProcessError("a loopback connection ended at once"));
      });
    });
    return { near, far };
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#early.values()) socket.destroy();
  }

  #accepted(far: Socket): void {
    far.on("error", () => far.destroy());
    const port = far.remotePort;
    const expected = port === undefined ? undefined : this.#expected.get(port);
    if (expected && port !== undefined) {
      this.#expected.delete(port);
      expected(far);
      return;
    }
    // Ours, a moment early, or another program's, which gets nothing.
    if (port === undefined || this.#early.size >= 64) return void far.destroy();
    this.#early.set(port, far);
    setTimeout(() => {
      if (this.#early.get(port) !== far) return;
      this.#early.delete(port);
      far.destroy();
    }, 1_000).unref();
  }
}
