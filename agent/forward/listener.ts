import { randomBytes } from "node:crypto";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { ANSWER, CALLBACK_SERVICE, encodeMetadata } from "../../mesh/wire/forward.ts";
import { describe, type Logger } from "../logging.ts";
import { join, type Peer } from "../streams.ts";
import { checkSocketPath, isLocalhost, TargetError } from "./target.ts";

/** Open connections of one listener: each holds a stream of the client's session. */
export const MAX_LISTENER_CONNECTIONS = 256;
const PROBE_TIMEOUT_MS = 1_000;
/** How often a taken second loopback address makes us ask the system for another port. */
const LOOPBACK_TRIES = 8;

export interface ListenerOptions {
  peer: Pick<Peer, "open">;
  token: string;
  logger: Logger;
  maxConnections?: number;
  /** Only the first connection is taken (RFC 4254 section 6.3.1). */
  singleConnection?: boolean;
}

/** Something that takes connections in the workspace and hands each to the client as a callback. */
export interface Listener {
  /** 0 for unix sockets. */
  readonly port: number;
  readonly connections: number;
  /** No more connections are taken; those there are go on. */
  close(): void;
}

function listen(server: net.Server, options: net.ListenOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(options, () => {
      server.removeListener("error", reject);
      server.on("error", () => {}); // EMFILE while accepting: the connection waits in the kernel's queue
      resolve();
    });
  });
}

function whyNot(error: NodeJS.ErrnoException, where: string): TargetError {
  const prohibited = (why: string) =>
    new TargetError(ANSWER.prohibited, `the workspace can't listen on ${where}: ${why}`, { cause: error });
  if (error.code === "EADDRINUSE") return prohibited("it is already in use there");
  if (error.code === "EACCES" || error.code === "EPERM") return prohibited("permission denied");
  if (error.code === "EADDRNOTAVAIL" || error.code === "ENOTFOUND")
    return prohibited("it has no such address");
  return prohibited(error.message);
}

class Callbacks implements Listener {
  readonly port: number = 0;
  readonly servers: net.Server[] = [];
  /** What closing leaves behind. */
  cleanUp: () => void = () => {};
  readonly #options: ListenerOptions;
  #connections = 0;
  #closed = false;

  constructor(options: ListenerOptions) {
    this.#options = options;
  }

  get connections(): number {
    return this.#connections;
  }

  server(): net.Server {
    return net.createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) =>
      this.#onConnection(socket),
    );
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const server of this.servers) server.close();
    this.cleanUp();
  }

  #onConnection(socket: net.Socket): void {
    const {
      peer,
      token,
      logger,
      maxConnections = MAX_LISTENER_CONNECTIONS,
      singleConnection,
    } = this.#options;
    socket.on("error", () => {});
    if (this.#closed) return void socket.destroy();
    if (this.#connections >= maxConnections) {
      logger.warn(
        { connections: this.#connections },
        "a forwarded port has too many connections; one was refused",
      );
      return void socket.destroy();
    }
    if (singleConnection === true) this.close();
    const { remoteAddress, remotePort } = socket;
    const origin =
      remoteAddress === undefined
        ? undefined
        : { address: remoteAddress.slice(0, 255), port: remotePort ?? 0 };
    let stream: ReturnType<Peer["open"]>;
    try {
      stream = peer.open(CALLBACK_SERVICE, encodeMetadata({ token, origin }));
    } catch (error) {
      logger.warn({ reason: describe(error) }, "a connection could not be handed to the client");
      return void socket.destroy();
    }
    this.#connections++;
    void join(socket, stream).then(() => {
      this.#connections--;
    });
  }
}

/**
 * Listens on a port. `host` as in RFC 4254 section 7.1, all of it granted (sshd: GatewayPorts clientspecified): ""
 * and "*" all addresses, "localhost" both loopback addresses, else the one named. `port` 0: any.
 *
 * @throws {TargetError} with the ANSWER
 */
export async function listenTcp(host: string, port: number, options: ListenerOptions): Promise<Listener> {
  const callbacks = new Callbacks(options);
  const where = `${host || "*"}:${port}`;
  try {
    if (isLocalhost(host)) return await listenLoopback(callbacks, port);
    const everywhere = host === "" || host === "*";
    const server = callbacks.server();
    // Without IPv6 in the kernel Node takes 0.0.0.0 when it is given no host.
    await listen(server, { port, host: everywhere ? undefined : host, exclusive: true });
    callbacks.servers.push(server);
    return withPort(callbacks, server);
  } catch (error) {
    callbacks.close();
    throw whyNot(error as NodeJS.ErrnoException, where);
  }
}

function withPort(callbacks: Callbacks, server: net.Server): Listener {
  return Object.assign(callbacks, { port: (server.address() as net.AddressInfo).port });
}

async function listenLoopback(callbacks: Callbacks, port: number): Promise<Listener> {
  for (let tries = 1; ; tries++) {
    const v4 = callbacks.server();
    const v6 = callbacks.server();
    let first: net.Server | undefined;
    let failure: unknown;
    try {
      await listen(v4, { host: "127.0.0.1", port, exclusive: true });
      first = v4;
    } catch (error) {
      failure = error;
    }
    try {
      const wanted = first ? (first.address() as net.AddressInfo).port : port;
      await listen(v6, { host: "::1", port: wanted, ipv6Only: true, exclusive: true });
      first ??= v6;
      callbacks.servers.push(v6);
    } catch (error) {
      const taken = (error as NodeJS.ErrnoException).code === "EADDRINUSE";
      if (first && taken && port === 0 && tries < LOOPBACK_TRIES) {
        first.close();
        continue;
      }
      // As sshd: one of the two addresses is enough, there may be no IPv6 at all.
      if (!first) throw failure;
    }
    if (first === v4) callbacks.servers.push(v4);
    return withPort(callbacks, first);
  }
}

/** Whether somebody answers at a unix socket. */
function isServed(file: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = net.connect(file);
    const timer = setTimeout(() => settle(true), PROBE_TIMEOUT_MS); // a full queue: somebody is there, but slow
    const settle = (served: boolean) => {
      clearTimeout(timer);
      probe.destroy();
      resolve(served);
    };
    probe.once("connect", () => settle(true));
    probe.once("error", (error: NodeJS.ErrnoException) => settle(error.code !== "ECONNREFUSED"));
  });
}

/** Makes way for a socket: removes one of our own that nobody serves any more. @throws {TargetError} */
async function makeWay(file: string): Promise<void> {
  let found: fs.Stats;
  try {
    found = fs.lstatSync(file); // not through a link: what it points to is not ours to judge
  } catch {
    return;
  }
  const prohibited = (why: string) =>
    new TargetError(ANSWER.prohibited, `the workspace can't listen on ${file}: ${why}`);
  if (!found.isSocket()) throw prohibited("a file of that name exists, and it is no socket");
  if (process.getuid !== undefined && found.uid !== process.getuid())
    throw prohibited("a socket of another user has that name");
  if (await isServed(file)) throw prohibited("somebody already listens there");
  const now = fs.lstatSync(file, { throwIfNoEntry: false });
  if (now && now.ino === found.ino && now.dev === found.dev) fs.unlinkSync(file);
}

/**
 * Listens on a unix socket that only this user may open (0600). A stale socket of ours makes way; anything else that
 * has the name stays, and the answer says so. At the end the name is removed if it still is ours.
 *
 * @throws {TargetError} with the ANSWER
 */
export async function listenUnix(file: string, options: ListenerOptions): Promise<Listener> {
  checkSocketPath(file);
  // libuv unlinks the name it bound, whatever lies there by then. So it binds another, and the real name is a link.
  const bound = path.join(path.dirname(file), `.${randomBytes(4).toString("hex")}`);
  checkSocketPath(bound);
  // libuv says EACCES for it.
  if (!fs.existsSync(path.dirname(file)))
    throw new TargetError(
      ANSWER.prohibited,
      `the workspace can't listen on ${file}: there is no such folder`,
    );
  const callbacks = new Callbacks(options);
  const server = callbacks.server();
  try {
    await makeWay(file);
    const before = process.umask(0o177); // the bind happens within the call
    let listening: Promise<void>;
    try {
      listening = listen(server, { path: bound });
    } finally {
      process.umask(before);
    }
    await listening;
    callbacks.servers.push(server);
    const ours = fs.lstatSync(bound);
    fs.linkSync(bound, file); // unlike rename it never replaces what came meanwhile
    callbacks.cleanUp = () => removeIfStill(ours, file);
    fs.unlinkSync(bound);
    return callbacks;
  } catch (error) {
    callbacks.close();
    removeQuietly(bound);
    throw error instanceof TargetError ? error : whyNot(error as NodeJS.ErrnoException, file);
  }
}

/** Whoever uses the workspace may have put anything in a socket's place, or in its folder's. Never throws. */
function removeIfStill(ours: fs.Stats, file: string): void {
  try {
    const now = fs.lstatSync(file, { throwIfNoEntry: false });
    if (now && now.ino === ours.ino && now.dev === ours.dev) fs.rmSync(file, { force: true });
  } catch {
    // its folder is no folder any more, or closed to us: nothing of ours is there
  }
}

function removeQuietly(file: string): void {
  try {
    fs.rmSync(file, { force: true });
  } catch {
    // as above
  }
}
