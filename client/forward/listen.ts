import { unlinkSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { CliError } from "../errors.ts";
import { type Endpoint, formatEndpoint } from "./spec.ts";

/** Streams one session has open or waiting; a connection beyond that could not be carried anyway. */
const MAX_CONNECTIONS = 1_024;

export interface Listener {
  /** Where it listens, as a person may type it: "127.0.0.1:8080". */
  readonly at: string;
  readonly port: number;
  /** Stops listening and breaks off what is connected. */
  close(): Promise<void>;
}

/** Why this machine won't listen there, and what to do. */
export function listenError(error: NodeJS.ErrnoException, at: string, protocol = "tcp"): CliError {
  const options = { cause: error };
  switch (error.code) {
    case "EADDRINUSE":
      return new CliError("ERR_PORT_TAKEN", `${at} (${protocol}) is taken by another program`, {
        ...options,
        hint: "Choose another local port, such as 18080:8080, or end that program.",
      });
    case "EACCES":
    case "EPERM":
      return new CliError("ERR_PORT_FORBIDDEN", `you may not listen on ${at} (${protocol})`, {
        ...options,
        hint: "Choose a local port from 1024 up, such as 8080:80.",
      });
    case "EADDRNOTAVAIL":
    case "EAFNOSUPPORT":
    case "ENOTFOUND":
      return new CliError("ERR_BAD_ADDRESS", `${at} is no address of this machine`, {
        ...options,
        hint: "Use 127.0.0.1, 0.0.0.0 for all of its addresses, or leave the address out.",
      });
    default:
      return new CliError("ERR_LISTEN", `cannot listen on ${at} (${protocol}): ${error.message}`, options);
  }
}

function listening(server: Server, where: { host: string; port: number } | { path: string }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen({ ...where, exclusive: true }, () => {
      server.off("error", reject);
      resolve();
    });
  });
}

/** Who may connect is let into the workspace: the socket is this user's alone, as OpenSSH's StreamLocalBindMask has it. */
function listeningPrivately(server: Server, where: { host: string; port: number } | { path: string }) {
  const before = process.umask(0o177);
  try {
    return listening(server, where); // binds within the call
  } finally {
    process.umask(before);
  }
}

/**
 * Listens for connections on this machine. Without an address: 127.0.0.1, and ::1 where it is to be had.
 *
 * @param onConnection gets each connection, half-open allowed
 * @throws {CliError} ERR_PORT_TAKEN, ERR_PORT_FORBIDDEN, ERR_BAD_ADDRESS, ERR_LISTEN
 */
export async function listen(
  where: Endpoint | { kind: "tcp"; host: undefined; port: number },
  onConnection: (socket: Socket) => void,
): Promise<Listener> {
  const sockets = new Set<Socket>();
  const servers: Server[] = [];
  const open = async (
    target: { host: string; port: number } | { path: string },
    start = listening,
  ): Promise<Server> => {
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      sockets.add(socket);
      socket.on("close", () => sockets.delete(socket));
      socket.on("error", () => undefined); // whoever joins it listens too, but perhaps not yet
      onConnection(socket);
    });
    server.maxConnections = MAX_CONNECTIONS;
    await start(server, target);
    servers.push(server);
    // Running out of file descriptors must not end the others' connections.
    server.on("error", () => undefined);
    return server;
  };
  const close = async () => {
    for (const socket of sockets) socket.destroy();
    await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  };

  if (where.kind === "unix") {
    try {
      await open({ path: where.path }, listeningPrivately);
    } catch (error) {
      throw listenError(error as NodeJS.ErrnoException, where.path, "unix socket");
    }
    const remove = () => {
      try {
        unlinkSync(where.path);
      } catch {
        // gone already: the server removes it when it is closed in order
      }
    };
    process.once("exit", remove);
    return {
      at: where.path,
      port: 0,
      close: async () => {
        process.off("exit", remove);
        await close();
      },
    };
  }

  const host = where.host ?? "127.0.0.1";
  try {
    const { port } = (await open({ host, port: where.port })).address() as { port: number };
    if (where.host === undefined)
      // "localhost" is either; a machine without IPv6, or another program on that one, is no reason to give up.
      await open({ host: "::1", port }).catch(() => undefined);
    return { at: formatEndpoint({ kind: "tcp", host, port }), port, close };
  } catch (error) {
    throw listenError(
      error as NodeJS.ErrnoException,
      formatEndpoint({ kind: "tcp", host, port: where.port }),
    );
  }
}
