// A route is data: method, path, who may call, zod in, zod out, and a handler that only decides. Everything that
// must hold for each of them (limits, login, parsing, checking what goes out) is here, once.
import type { IncomingMessage } from "node:http";
import type Router from "@koa/router";
import type { Context } from "koa";
import * as z from "zod";
import {
  type AgentIdentity,
  authenticateAgent,
  authenticateUser,
  type UserIdentity,
} from "./authenticate.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest } from "./errors.ts";
import { LIMITS, type LimitName, RateLimiter } from "./ratelimit.ts";
import { findUnstorable } from "./storable.ts";

export const API_PREFIX = "/api/v2";

interface Parsed<P, Q, B> {
  params: P;
  query: Q;
  body: B;
  ctx: Context;
  now: Date;
}

interface Spec<P extends z.ZodType, Q extends z.ZodType, B extends z.ZodType, O extends z.ZodType, Who> {
  method: "get" | "post" | "put" | "patch" | "delete";
  /** Below /api/v2. */
  path: string;
  params?: P;
  query?: Q;
  body?: B;
  /** What goes out: unknown fields are stripped, so that no column leaks by accident. Absent: 204, no body. */
  out?: O;
  /** Of a success, 200 unless said; a handler with two sets ctx.status. */
  status?: number;
  limit?: LimitName;
  handle(request: Parsed<z.output<P>, z.output<Q>, z.output<B>> & Who): Promise<z.input<O>>;
}

export type Route = Spec<z.ZodType, z.ZodType, z.ZodType, z.ZodType, Record<never, never>> & {
  who: "anyone" | "user" | "agent";
};

type Void = z.ZodVoid;
type Any = z.ZodUnknown;

/** Needs no login. */
export function publicRoute<
  P extends z.ZodType = Any,
  Q extends z.ZodType = Any,
  B extends z.ZodType = Any,
  O extends z.ZodType = Void,
>(spec: Spec<P, Q, B, O, Record<never, never>>): Route {
  return { ...spec, who: "anyone" } as unknown as Route;
}

/** 401 unless a user's key comes along. */
export function userRoute<
  P extends z.ZodType = Any,
  Q extends z.ZodType = Any,
  B extends z.ZodType = Any,
  O extends z.ZodType = Void,
>(spec: Spec<P, Q, B, O, { user: UserIdentity }>): Route {
  return { ...spec, who: "user" } as unknown as Route;
}

/** 401 unless the token of a workspace agent comes along. */
export function agentRoute<
  P extends z.ZodType = Any,
  Q extends z.ZodType = Any,
  B extends z.ZodType = Any,
  O extends z.ZodType = Void,
>(spec: Spec<P, Q, B, O, { agent: AgentIdentity }>): Route {
  return { ...spec, who: "agent" } as unknown as Route;
}

export function mountRoutes(router: Router, routes: Route[], deps: ApiDeps): void {
  const limiters = Object.fromEntries(
    Object.entries(LIMITS).map(([name, limit]) => [name, new RateLimiter(limit)]),
  ) as Record<LimitName, RateLimiter>;
  for (const route of routes) {
    router[route.method](API_PREFIX + route.path, async (ctx: Context) => {
      ctx.state.route = route.path;
      const now = deps.now();
      const identity = await identify(route, deps, ctx, now);
      const limiter = limiters[route.limit ?? "api"];
      const verdict = limiter.take(identity?.key ?? `ip ${ctx.ip}`, now.getTime());
      ctx.set("X-RateLimit-Limit", String(limiter.perMinute));
      ctx.set("X-RateLimit-Remaining", String(verdict.remaining));
      if (!verdict.ok)
        throw new ApiError(429, "ERR_RATE_LIMITED", "Too many requests. Wait a little, then try again.", {
          retryAfterSeconds: Math.ceil(verdict.retryAfterMs / 1000),
        });
      if (route.who !== "anyone" && !identity) throw signedOut(route.who);

      const request = {
        ...identity?.who,
        ctx,
        now,
        params: parse(route.params, ctx.params, "path"),
        query: parse(route.query, ctx.query, "query"),
        body: route.body
          ? parse(route.body, await readJson(ctx.req, deps.limits.bodyBytes), "body")
          : undefined,
      };
      ctx.status = route.status ?? (route.out ? 200 : 204);
      const result = await route.handle(request);
      if (route.out) ctx.body = checkOut(route, result);
    });
  }
}

const signedOut = (who: "user" | "agent"): ApiError =>
  who === "user"
    ? new ApiError(
        401,
        "ERR_SIGNED_OUT",
        "You are signed out or your session has expired. Please sign in again.",
        {
          detail: "Sign in with `coder login`, or send a token in the header Coder-Session-Token.",
        },
      )
    : new ApiError(401, "ERR_AGENT_TOKEN", "The agent's token is not valid.", {
        detail: "Its workspace was stopped, deleted or built anew. Start the workspace again.",
      });

async function identify(
  { who }: Route,
  deps: ApiDeps,
  ctx: Context,
  now: Date,
): Promise<{ key: string; who: { user: UserIdentity } | { agent: AgentIdentity } } | undefined> {
  if (who === "user") {
    const user = await authenticateUser(deps, ctx.req, now);
    return user && { key: `user ${user.userId}`, who: { user } };
  }
  if (who === "agent") {
    const agent = await authenticateAgent(deps, ctx.req);
    return agent && { key: `agent ${agent.agentId}`, who: { agent } };
  }
  return undefined;
}

function parse(schema: z.ZodType | undefined, value: unknown, where: string): unknown {
  if (!schema) return value;
  const result = schema.safeParse(value);
  if (result.success) {
    // What is kept of the request, after what the schema drops or cleans.
    const unstorable = findUnstorable(result.data);
    if (!unstorable) return result.data;
    throw badRequest(`The request's ${where} is not valid.`, [
      { field: unstorable.join(".") || where, detail: "Must not contain U+0000 or half a surrogate pair." },
    ]);
  }
  throw badRequest(
    where === "body" ? "The request's body is not valid." : `The request's ${where} is not valid.`,
    result.error.issues.slice(0, 20).map((issue) => ({
      field: issue.path.join(".") || where,
      detail: issue.message,
    })),
  );
}

function checkOut(route: Route, result: unknown): unknown {
  const checked = route.out!.safeParse(result);
  if (checked.success) return checked.data;
  // Ours, not the caller's: becomes a 500 whose log names the field.
  throw new Error(
    `${route.method} ${route.path} answers against its contract: ${z.prettifyError(checked.error)}`,
  );
}

/**
 * Reads a JSON body.
 *
 * @throws {ApiError} ERR_BODY_TOO_LARGE, ERR_REQUEST_INVALID
 */
export async function readJson(req: IncomingMessage, maxBytes: number): Promise<unknown> {
  const bytes = await readBody(req, maxBytes, () => {
    return new ApiError(413, "ERR_BODY_TOO_LARGE", `The request's body is larger than ${maxBytes} bytes.`);
  });
  if (bytes.length === 0) return {};
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw badRequest(`The request's body is not JSON: ${(cause as Error).message}`);
  }
}

/** Beyond a body's limit so much more is read and dropped: a client that still writes would miss our answer. */
const DRAIN_BYTES = 32 << 20;

/** Reads at most `maxBytes`; `tooLarge` is thrown above it, once the client has stopped sending. */
export async function readBody(
  req: IncomingMessage,
  maxBytes: number,
  tooLarge: () => ApiError,
  onChunk: (chunk: Buffer) => void = () => {},
): Promise<Buffer> {
  const declared = Number(req.headers["content-length"] ?? 0);
  if (declared > maxBytes + DRAIN_BYTES) throw tooLarge();
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of req as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > maxBytes) {
      chunks.length = 0;
      if (length > maxBytes + DRAIN_BYTES) throw tooLarge();
    } else {
      onChunk(chunk);
      chunks.push(chunk);
    }
  }
  if (length > maxBytes) throw tooLarge();
  return Buffer.concat(chunks, length);
}
