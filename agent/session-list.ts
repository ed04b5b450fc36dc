import { decodeHeader, SESSION_SERVICE } from "../mesh/wire/channel.ts";
import {
  ANSWER,
  decodeMetadata,
  LISTEN_SERVICE,
  ListenMetadata,
  MAX_ANSWER_BYTES,
  type SessionSummary,
  SessionsMetadata,
} from "../mesh/wire/forward.ts";
import { describe, type Logger } from "./logging.ts";
import { conclude, type IncomingStream, type Peer } from "./streams.ts";

const MAX_WHAT_CHARS = 200;
/** Streams told of each session; a forwarded port has one for each connection. */
const MAX_LISTED_STREAMS = 64;

/** What the list is made of: the mesh's own view of a session. Instants: Unix ms. */
export interface LiveSession {
  id: string;
  peerKey: string;
  grant: { userId: string } | undefined;
  startedAtMs: number;
  lastHeardAtMs: number;
  resumeWindowMs: number;
  path: unknown;
  rttMs: number | undefined;
  streams: { service: string; metadata: Uint8Array; openedAtMs: number }[];
}

/** The node, as far as its sessions go. */
export interface SessionDirectory {
  sessions(): LiveSession[];
  /** @returns whether there was one */
  endSession(id: string): boolean;
}

/** What runs on a stream, in words a user knows. */
export function describeStream(service: string, metadata: Uint8Array): string {
  try {
    if (service === SESSION_SERVICE) {
      const header = decodeHeader(metadata);
      if (header.kind === "exec") return clip(header.command ?? "a long command");
      return header.kind === "subsystem" ? header.subsystem : "shell";
    }
    if (service === LISTEN_SERVICE) {
      const wanted = decodeMetadata(ListenMetadata, metadata);
      return clip(wanted.kind === "tcp" ? `${wanted.host || "*"}:${wanted.port}` : wanted.path);
    }
  } catch {
    // It was refused; until it is gone it has nothing to say.
  }
  return "";
}

const clip = (text: string) => (text.length <= MAX_WHAT_CHARS ? text : `${text.slice(0, MAX_WHAT_CHARS)}…`);

function pathName(path: unknown): string {
  if (typeof path === "string") return path.slice(0, 128);
  if (typeof path !== "object" || path === null || !("kind" in path)) return "";
  const region = "region" in path && path.region !== undefined ? ` ${String(path.region)}` : "";
  return `${String(path.kind)}${region}`.slice(0, 128);
}

/** One line of the list. */
export function summarize(session: LiveSession, askedBy: string): SessionSummary {
  return {
    id: session.id,
    startedAt: session.startedAtMs,
    lastHeardAt: session.lastHeardAtMs,
    isCurrent: session.peerKey === askedBy,
    resumeWindowMs: session.resumeWindowMs,
    path: pathName(session.path),
    ...(session.rttMs === undefined ? {} : { rttMs: session.rttMs }),
    streams: session.streams.slice(0, MAX_LISTED_STREAMS).map(({ service, metadata, openedAtMs }) => ({
      service: service.slice(0, 512),
      what: describeStream(service, metadata),
      openedAt: openedAtMs,
    })),
  };
}

/** Newest first, as many as an ANSWER carries. */
export function encodeList(summaries: readonly SessionSummary[]): string {
  const lines: string[] = [];
  let bytes = 2;
  for (const summary of [...summaries].sort((a, b) => b.startedAt - a.startedAt)) {
    const line = JSON.stringify(summary);
    bytes += Buffer.byteLength(line) + 1;
    if (bytes > MAX_ANSWER_BYTES) break;
    lines.push(line);
  }
  return `[${lines.join(",")}]`;
}

/**
 * Serves "sessions": the live sessions of the user who asks, and ending one of them. Others' sessions are neither
 * shown nor ended, and an id of theirs is answered as one that doesn't exist. Never rejects.
 */
export async function serveSessionList(
  stream: IncomingStream,
  peer: Pick<Peer, "nodeKey" | "grant">,
  directory: SessionDirectory,
  logger: Logger,
): Promise<void> {
  stream.on("error", () => {});
  let wanted: SessionsMetadata;
  try {
    wanted = decodeMetadata(SessionsMetadata, stream.metadata);
  } catch (error) {
    return conclude(stream, ANSWER.badRequest, describe(error));
  }
  const own = directory.sessions().filter(({ grant }) => grant?.userId === peer.grant.userId);
  if (wanted.op === "list") {
    const text = encodeList(own.map((session) => summarize(session, peer.nodeKey)));
    return conclude(stream, ANSWER.ok, text);
  }
  const { id } = wanted;
  if (!own.some((session) => session.id === id))
    return conclude(stream, ANSWER.connectFailed, "you have no session of that id with this workspace");
  logger.info({ session: id, user: peer.grant.username }, "a session is ended by its user");
  // The answer first: it may be the session this came over.
  await conclude(stream, ANSWER.ok, "");
  directory.endSession(id);
}
