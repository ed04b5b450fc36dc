// From an upgrade request to a node of the coordinator: by its credential, or, after a restart and while the database is
// away, by the resume token it got before, whose credential is then looked up as soon as that can be done.
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { type WebSocket, WebSocketServer } from "ws";
import type { Coordinator, NodeLink, NodeSubject } from "../../coordinator/coordinator.ts";
import { hashCredential, openResumeToken, type ResumeToken } from "../../coordinator/resume.ts";
import { firstMessages, serveNode } from "../../coordinator/server.ts";
import {
  FIRST_MESSAGES_HEADER,
  MAX_MESSAGE_BYTES,
  RESUME_TOKEN_HEADER,
} from "../../mesh/wire/coordinator.ts";
import { type Identity, tokenOf } from "../api/authenticate.ts";
import { ApiError, toApiError } from "../api/errors.ts";
import { CREDENTIAL_ENDS, type CredentialEnd } from "../db/queries/reach.ts";

/** Credentials looked up at once behind resume tokens: a storm of reconnects must leave the database to others. */
const MAX_CHECKS = 4;
/** The first look comes within a second, later ones, should the database be away, at growing intervals. */
const FIRST_CHECK_MS = 500;
const MAX_CHECK_MS = 30_000;

export interface NodeUpgradesOptions {
  coordinator: Coordinator;
  nowMs: () => number;
  random?: () => number;
  onError(error: unknown): void;
}

export interface NodeUpgrades {
  /** @throws what `authenticate` throws; then the caller refuses the request */
  handle(
    req: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    authenticate: () => Promise<Identity>,
  ): Promise<void>;
  stop(): void;
}

export function nodeUpgrades({
  coordinator,
  nowMs,
  random = Math.random,
  onError,
}: NodeUpgradesOptions): NodeUpgrades {
  const stopping = new AbortController();
  const checks = limiter(MAX_CHECKS);
  const sockets = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: MAX_MESSAGE_BYTES,
  });
  /** Requests whose first messages we take. */
  const taken = new WeakMap<IncomingMessage, string[]>();
  sockets.on("headers", (headers: string[], req: IncomingMessage) => {
    if (taken.has(req)) headers.push(`${FIRST_MESSAGES_HEADER}: taken`);
  });

  async function check(
    link: NodeLink,
    resumed: ResumeToken,
    socket: WebSocket,
    authenticate: () => Promise<Identity>,
  ): Promise<void> {
    for (let ms = FIRST_CHECK_MS; ; ms = Math.min(2 * ms, MAX_CHECK_MS)) {
      // Not bound to `stopping`: thousands would listen to one signal, and each of them looks whether it is among them.
      await new Promise((resolve) => setTimeout(resolve, ms * (0.5 + random())).unref());
      if (stopping.signal.aborted || socket.readyState !== socket.OPEN) return;
      try {
        const identity = await checks(authenticate);
        const isSame = keyOf(subjectOf(identity)) === keyOf(resumed.subject);
        if (!isSame)
          await coordinator.dismiss(
            link,
            "ERR_AGENT_REPLACED",
            "a newer build of the workspace replaced this agent",
          );
        else coordinator.confirm(link);
        return;
      } catch (error) {
        const refusal = toApiError(error);
        if (refusal && [401, 403].includes(refusal.status)) {
          const code: CredentialEnd =
            refusal.code === "ERR_USER_SUSPENDED" ? refusal.code : "ERR_TOKEN_REVOKED";
          const message =
            resumed.subject.kind === "user"
              ? CREDENTIAL_ENDS[code]
              : "the agent's token is not valid any more";
          return coordinator.dismiss(link, code, message);
        }
        onError(error);
      }
    }
  }

  return {
    async handle(req, socket, head, authenticate) {
      const found = tokenOf(req);
      const credential = found && !found.fromCookie ? hashCredential(found.token) : undefined;
      const shown = req.headers[RESUME_TOKEN_HEADER.toLowerCase()];
      const resumed =
        credential !== undefined && typeof shown === "string"
          ? openResumeToken(shown, { keys: coordinator.signer.publicKeys, credential, nowMs: nowMs() })
          : undefined;
      const subject = resumed?.subject ?? subjectOf(await authenticate());
      if (stopping.signal.aborted)
        throw new ApiError(503, "ERR_SHUTTING_DOWN", "The server is stopping. Try again.", {
          retryAfterSeconds: 1,
        });
      const first = firstMessages(req);
      if (first) taken.set(req, first);
      sockets.handleUpgrade(req, socket, head, (ws) => {
        const link = serveNode(coordinator, ws, subject, {
          first,
          credential,
          resumed: resumed && { ...resumed, token: shown as string },
        });
        if (resumed)
          check(link, resumed, ws, authenticate).catch((error: unknown) => {
            if (!stopping.signal.aborted) onError(error);
          });
      });
    },
    stop: () => stopping.abort(),
  };
}

const keyOf = (subject: NodeSubject): string =>
  subject.kind === "agent" ? subject.agentId : `${subject.userId} ${subject.tokenId}`;

export const subjectOf = (identity: Identity): NodeSubject =>
  identity.kind === "agent"
    ? { kind: "agent", agentId: identity.agentId, workspaceId: identity.workspaceId }
    : {
        kind: "user",
        userId: identity.userId,
        username: identity.username,
        tokenId: identity.keyId,
        scope: identity.subject.scope,
      };

/** Runs at most `max` at once, the rest in turn. */
function limiter(max: number): <T>(work: () => Promise<T>) => Promise<T> {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (work) => {
    if (running >= max) await new Promise<void>((resolve) => waiting.push(resolve));
    else running++;
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else running--;
    }
  };
}
