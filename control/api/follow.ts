// Logs as they happen, over a WebSocket: what exists first, then each new line, then a normal close. Rows are
// read again whenever somebody says they changed; the last look comes after the job was seen to be over, so no
// line is lost between the two.
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { type WebSocket, WebSocketServer } from "ws";
import * as z from "zod";
import { LogsQuery } from "../contract/jobs.ts";
import { isCurrentAgent } from "../db/queries/agents.ts";
import { errorText } from "../db/queries/error-text.ts";
import { jobLogs } from "../db/queries/jobs.ts";
import type { JobRow } from "../db/queries/rows.ts";
import type { Watched } from "../db/queries/topics.ts";
import { isFinished } from "../templates/status.ts";
import { agentLogs, readableAgent } from "./agents.ts";
import type { Identity, UserIdentity } from "./authenticate.ts";
import { readableBuild } from "./builds.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, notFound } from "./errors.ts";
import { LIMITS, RateLimiter } from "./ratelimit.ts";
import { readableVersion } from "./template-versions.ts";
import { jobLogView } from "./views/jobs.ts";

/** Answers one upgrade request. What it throws becomes an HTTP answer, as for any route. */
export interface Upgrade {
  /** Tried on the path, without the query. */
  path: RegExp;
  handle(
    req: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    /** @throws {ApiError} 401 unless a user's key or an agent's token came along */
    authenticate: () => Promise<Identity>,
  ): void | Promise<void>;
}

const PAGE = 1000;
/** Two of them unanswered and the reader is gone. */
const PING_EVERY_MS = 20_000;
const MAX_FOLLOWS_PER_USER = 100;

export interface Source {
  watched: Watched[];
  /** Messages for rows above `after`, and the highest id among them; at most PAGE rows. */
  read(after: number): Promise<{ messages: string[]; last: number; more: boolean }>;
  /** No more rows will come. */
  isOver(): Promise<boolean>;
}

export interface FollowServer {
  upgrades: Upgrade[];
  /** Closes every socket as "going away". */
  close(): void;
}

export function followServer(deps: ApiDeps): FollowServer {
  const server = new WebSocketServer({ noServer: true, perMessageDeflate: false, maxPayload: 4096 });
  const limiter = new RateLimiter(LIMITS.api);
  const perUser = new Map<string, number>();
  const closing = new AbortController();

  async function sourceOf(kind: string, user: UserIdentity, id: string): Promise<Source> {
    switch (kind) {
      case "templateversions":
        return jobSource(deps, (await readableVersion(deps, user, id)).job_id);
      case "workspacebuilds":
        return jobSource(deps, (await readableBuild(deps, user, id)).build.job_id);
      case "workspaceagents": {
        const { agent, workspace } = await readableAgent(deps, user, id);
        return agentSource(deps, agent.id, workspace.id);
      }
      default:
        throw notFound();
    }
  }

  const handle: Upgrade["handle"] = async (req, socket, head, authenticate) => {
    const user = await authenticate();
    if (user.kind !== "user") throw notFound();
    if (!limiter.take(user.userId, deps.now().getTime()).ok) throw tooMany();
    const url = new URL(req.url ?? "/", "http://localhost");
    const [, kind, id] = FOLLOWED.exec(url.pathname) ?? [];
    if (!z.uuid().safeParse(id).success) throw badRequest("The request's path is not valid.");
    const query = LogsQuery.safeParse(Object.fromEntries(url.searchParams));
    if (!query.success) throw badRequest("The request's query is not valid.");
    const source = await sourceOf(kind, user, id);
    // Nothing is awaited between this and counting it: many that come at once pass one by one.
    if ((perUser.get(user.userId) ?? 0) >= MAX_FOLLOWS_PER_USER) throw tooMany();

    server.handleUpgrade(req, socket, head, (ws) => {
      perUser.set(user.userId, (perUser.get(user.userId) ?? 0) + 1);
      const stop = new AbortController();
      const end = (code: number, reason: string) => {
        stop.abort();
        ws.close(code, reason);
      };
      // Rights may have changed: the client comes back and is asked who it is again.
      const unwatch = deps.topics.watch("user", user.userId, () => end(1008, "signed out"));
      const onClosing = () => end(1001, "the server is stopping");
      closing.signal.addEventListener("abort", onClosing);
      const stopPings = keepAlive(ws);
      ws.on("error", () => ws.terminate());
      ws.on("close", () => {
        stop.abort();
        stopPings();
        unwatch();
        closing.signal.removeEventListener("abort", onClosing);
        const left = (perUser.get(user.userId) ?? 1) - 1;
        if (left > 0) perUser.set(user.userId, left);
        else perUser.delete(user.userId);
      });
      pump(deps, ws, source, query.data.after ?? 0, stop.signal).then(
        () => ws.close(1000, "the log is complete"),
        (error: Error) => {
          if (stop.signal.aborted) return;
          deps.logger.error({ error: errorText(error), path: url.pathname }, "following a log failed");
          end(1011, "the log can't be read; try again");
        },
      );
    });
  };

  return {
    upgrades: [{ path: FOLLOWED, handle }],
    close() {
      closing.abort();
      server.close();
    },
  };
}

const tooMany = (): ApiError =>
  new ApiError(429, "ERR_RATE_LIMITED", "Too many logs followed at once. Close some, then try again.", {
    retryAfterSeconds: 10,
  });

const FOLLOWED = /^\/api\/v2\/(templateversions|workspacebuilds|workspaceagents)\/([^/]+)\/logs$/;

/** Sends what is there and what comes, until the source is over or the signal. */
export async function pump(
  { topics }: Pick<ApiDeps, "topics">,
  ws: Pick<WebSocket, "send">,
  source: Source,
  after: number,
  signal: AbortSignal,
): Promise<void> {
  const waiter = topics.waiter(source.watched);
  try {
    while (!signal.aborted) {
      const over = await source.isOver();
      let page: Awaited<ReturnType<Source["read"]>>;
      do {
        page = await source.read(after);
        after = Math.max(after, page.last);
        await sendAll(ws, page.messages);
      } while (page.more && !signal.aborted);
      if (over) return;
      await waiter.next(signal);
    }
  } finally {
    waiter.close();
  }
}

/** Resolves once the last is handed to the socket: a slow reader is read for slowly. */
function sendAll(ws: Pick<WebSocket, "send">, messages: string[]): Promise<void> {
  return new Promise((resolve, reject) => {
    if (messages.length === 0) return resolve();
    for (const message of messages.slice(0, -1)) ws.send(message);
    ws.send(messages.at(-1)!, (error) => (error ? reject(error) : resolve()));
  });
}

function keepAlive(ws: WebSocket): () => void {
  let unanswered = 0;
  ws.on("pong", () => {
    unanswered = 0;
  });
  const timer = setInterval(() => {
    if (unanswered++ >= 2) ws.terminate();
    else ws.ping();
  }, PING_EVERY_MS);
  return () => clearInterval(timer);
}

function jobSource({ knex }: ApiDeps, jobId: string): Source {
  return {
    watched: [["provisioner_job", jobId]],
    async read(after) {
      const rows = await jobLogs(knex, jobId, { after, limit: PAGE });
      return {
        messages: rows.map((row) => JSON.stringify(jobLogView(row))),
        last: Number(rows.at(-1)?.id ?? after),
        more: rows.length === PAGE,
      };
    },
    async isOver() {
      const job: Pick<JobRow, "status"> | undefined = await knex("provisioner_jobs")
        .where({ id: jobId })
        .first("status");
      return !job || isFinished(job.status);
    },
  };
}

function agentSource({ knex }: ApiDeps, agentId: string, workspaceId: string): Source {
  return {
    watched: [
      ["workspace_agent", agentId],
      ["workspace", workspaceId],
    ],
    async read(after) {
      const lines = await agentLogs(knex, agentId, { after, limit: PAGE });
      return {
        messages: lines.length > 0 ? [JSON.stringify(lines)] : [],
        last: lines.at(-1)?.id ?? after,
        more: lines.length === PAGE,
      };
    },
    // An agent may say something as long as it lives; once its workspace was stopped or built anew it won't.
    isOver: async () => !(await isCurrentAgent(knex, agentId)),
  };
}
