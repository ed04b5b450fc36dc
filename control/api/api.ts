import { randomUUID } from "node:crypto";
import Router from "@koa/router";
import Koa, { type Context, type Next } from "koa";
import { BUILD_VERSION_HEADER } from "../contract/common.ts";
import { errorTrace } from "../db/queries/error-text.ts";
import { agentRoutes } from "./agents.ts";
import { buildRoutes } from "./builds.ts";
import type { ApiDeps } from "./deps.ts";
import { ApiError, badRequest, toApiError, toErrorBody } from "./errors.ts";
import { fileRoutes } from "./files.ts";
import { keyRoutes } from "./keys.ts";
import { loginRoutes } from "./login.ts";
import { meshRoutes } from "./mesh.ts";
import { metaRoutes } from "./meta.ts";
import { organizationRoutes } from "./organizations.ts";
import { mountRoutes, type Route } from "./route.ts";
import { templateVersionRoutes } from "./template-versions.ts";
import { templateRoutes } from "./templates.ts";
import { userRoutes } from "./users.ts";
import { workspaceRoutes } from "./workspaces.ts";

/** Every route, in the order it is tried: fixed words before parameters. */
export const apiRoutes = (deps: ApiDeps): Route[] => [
  ...metaRoutes(deps),
  ...loginRoutes(deps),
  ...keyRoutes(deps),
  ...organizationRoutes(deps),
  ...userRoutes(deps),
  ...fileRoutes(deps),
  ...templateVersionRoutes(deps),
  ...templateRoutes(deps),
  ...workspaceRoutes(deps),
  ...buildRoutes(deps),
  ...meshRoutes(deps),
  ...agentRoutes(deps),
];

export function createApi(deps: ApiDeps): Koa {
  const app = new Koa();
  const router = new Router();
  mountRoutes(router, apiRoutes(deps), deps);
  router.get("/healthz", (ctx) => {
    ctx.body = "OK";
  });
  router.get("/latency-check", (ctx) => {
    ctx.set("Access-Control-Allow-Origin", "*");
    ctx.set("Timing-Allow-Origin", "*");
    ctx.body = "OK";
  });
  router.get("/", (ctx) => {
    ctx.body = `Workspaces are served here. On your machine: coder login ${deps.accessUrl()}\n`;
  });

  app.use(requests(deps));
  app.use(headers(deps));
  app.use(router.routes());
  app.use((ctx: Context & { matched?: unknown[] }) => {
    throw ctx.matched?.length
      ? new ApiError(405, "ERR_METHOD", `${ctx.method} is not answered here.`)
      : new ApiError(404, "ERR_NO_ROUTE", "Route not found.");
  });
  app.on("error", (error: Error) => deps.logger.error({ error: errorTrace(error) }, "answering failed"));
  return app;
}

/** Outermost: gives each request an id, turns what was thrown into an answer, logs. Never the query: it may hold a token. */
function requests({ logger }: ApiDeps) {
  return async (ctx: Context, next: Next): Promise<void> => {
    const requestId = randomUUID();
    const startedAt = performance.now();
    ctx.state.requestId = requestId;
    ctx.set("X-Request-Id", requestId);
    let failure: unknown;
    try {
      void ctx.path;
    } catch {
      // Such as "GET http://[ HTTP/1.1": nothing behind this could say what was asked for.
      return answer(ctx, badRequest("The request's address is not valid."), requestId);
    }
    try {
      await next();
    } catch (error) {
      const known = toApiError(error);
      if (!known || known.status >= 500) failure = error;
      answer(ctx, known ?? internal(), requestId);
    }
    const line = {
      requestId,
      method: ctx.method,
      path: ctx.path,
      status: ctx.status,
      ms: Math.round(performance.now() - startedAt),
    };
    if (failure) logger.error({ ...line, error: errorTrace(failure) }, "request failed");
    else logger.debug(line, "request");
  };
}

const internal = (): ApiError =>
  new ApiError(500, "ERR_INTERNAL", "An internal error occurred.", {
    detail: "The server's log names the cause beside this request's id.",
  });

function answer(ctx: Context, error: ApiError, requestId: string): void {
  if (error.retryAfterSeconds) ctx.set("Retry-After", String(error.retryAfterSeconds));
  ctx.status = error.status;
  ctx.type = "application/json";
  ctx.body = JSON.stringify(toErrorBody(error, requestId));
}

function headers({ version, accessUrl }: ApiDeps) {
  return async (ctx: Context, next: Next): Promise<void> => {
    ctx.set({
      [BUILD_VERSION_HEADER]: `v${version}`,
      "X-Content-Type-Options": "nosniff",
      "X-Frame-Options": "DENY",
      "Referrer-Policy": "no-referrer",
      "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
      "Cache-Control": "no-store",
    });
    if (accessUrl().startsWith("https:")) ctx.set("Strict-Transport-Security", "max-age=31536000");
    await next();
  };
}
