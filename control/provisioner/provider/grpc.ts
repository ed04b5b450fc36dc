// gRPC over HTTP/2 without TLS, on a unix socket: unary calls only, which is all Terraform makes of a provider.
// A message is flag u8 (0 = not compressed) | length u32 BE | body.
//
// @see https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
import {
  createServer,
  type Http2Session,
  type IncomingHttpHeaders,
  type ServerHttp2Stream,
} from "node:http2";

const PREFIX_BYTES = 5;
/** What Terraform itself allows for one message; states and plans are far smaller. */
const MAX_MESSAGE_BYTES = 64 << 20;
/** A call that has not sent its request by then is given up; Terraform sends at once. */
const REQUEST_TIMEOUT_MS = 60_000;
const CLOSE_TIMEOUT_MS = 1_000;
/** Terraform walks ten nodes at a time, over two connections per provider block; further calls wait. */
const MAX_CALLS_PER_CONNECTION = 64;
const MAX_CONNECTIONS = 256;

const OK = 0;
const INVALID_ARGUMENT = 3;
const RESOURCE_EXHAUSTED = 8;
const UNIMPLEMENTED = 12;
const INTERNAL = 13;

export interface GrpcServer {
  close(): Promise<void>;
}

export interface GrpcHandler<Session> {
  /** In front of the method's name: "/tfplugin5.Provider/". */
  prefix: string;
  newSession(): Session;
  methods: ReadonlyMap<string, (request: Uint8Array, session: Session) => Uint8Array>;
}

/** Listens at `socketPath`, whose directory must keep strangers out: there is no authentication. */
export async function serveGrpc<Session>(
  socketPath: string,
  handler: GrpcHandler<Session>,
): Promise<GrpcServer> {
  const sessions = new Map<Http2Session, Session>();
  const server = createServer({ settings: { maxConcurrentStreams: MAX_CALLS_PER_CONNECTION } });
  server.maxConnections = MAX_CONNECTIONS;
  server.on("session", (session) => {
    sessions.set(session, handler.newSession());
    session.on("close", () => sessions.delete(session));
    session.on("error", () => session.destroy());
  });
  server.on("sessionError", () => {}); // the session's own listener has closed it
  server.on("stream", (stream, headers) => {
    stream.on("error", () => stream.destroy());
    stream.setTimeout(REQUEST_TIMEOUT_MS, () => stream.destroy());
    const session = stream.session && sessions.get(stream.session);
    if (session === undefined) return stream.destroy();
    answer(stream, headers, handler, session);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(socketPath, () => {
      server.off("error", reject);
      resolve();
    });
  });
  server.on("error", () => {}); // an accept that failed; the next one may not

  return {
    close: () =>
      new Promise((resolve) => {
        const timer = setTimeout(resolve, CLOSE_TIMEOUT_MS);
        server.close(() => {
          clearTimeout(timer);
          resolve();
        });
        for (const session of sessions.keys()) session.destroy();
      }),
  };
}

function answer<Session>(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  handler: GrpcHandler<Session>,
  session: Session,
): void {
  const path = String(headers[":path"]);
  const method = path.startsWith(handler.prefix)
    ? handler.methods.get(path.slice(handler.prefix.length))
    : undefined;
  if (!method) {
    fail(stream, UNIMPLEMENTED, `no method ${path}`);
    return;
  }

  const chunks: Buffer[] = [];
  let length = 0;
  stream.on("data", (chunk: Buffer) => {
    length += chunk.length;
    if (length > MAX_MESSAGE_BYTES + PREFIX_BYTES) {
      chunks.length = 0;
      fail(stream, RESOURCE_EXHAUSTED, `a request of more than ${MAX_MESSAGE_BYTES} bytes`);
    } else chunks.push(chunk);
  });
  stream.on("end", () => {
    if (stream.headersSent || stream.destroyed) return;
    const body = Buffer.concat(chunks);
    if (body.length < PREFIX_BYTES || body.readUInt32BE(1) !== body.length - PREFIX_BYTES)
      return fail(stream, INVALID_ARGUMENT, "not one whole message");
    if (body[0] !== 0) return fail(stream, UNIMPLEMENTED, "compressed messages are not supported");
    let reply: Uint8Array;
    try {
      reply = method(body.subarray(PREFIX_BYTES), session);
    } catch (problem) {
      // Terraform shows the text to the user, as the provider's own words.
      return fail(stream, INTERNAL, problem instanceof Error ? problem.message : String(problem));
    }
    const prefix = Buffer.alloc(PREFIX_BYTES);
    prefix.writeUInt32BE(reply.length, 1);
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": String(OK) }));
    stream.end(Buffer.concat([prefix, reply]));
  });
}

function fail(stream: ServerHttp2Stream, status: number, message: string): void {
  if (stream.headersSent || stream.destroyed) return;
  stream.respond(
    {
      ":status": 200,
      "content-type": "application/grpc",
      "grpc-status": String(status),
      "grpc-message": encodeURIComponent(message),
    },
    { endStream: true },
  );
  stream.resume();
}
