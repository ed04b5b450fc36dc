// What the routes work with, handed in by server.ts (or a test).
import type { Knex } from "knex";
import type { Logger } from "pino";
import type { Topics } from "../db/queries/topics.ts";

export interface ApiLimits {
  /** Of one upload; the answer above it is 413. */
  templateArchiveBytes: number;
  /** Of any other body. */
  bodyBytes: number;
  /** Of one agent's startup log. */
  agentLogBytes: number;
}

export interface ApiDeps {
  knex: Knex;
  /** Started with every topic. */
  topics: Topics;
  logger: Logger;
  /** The URL people and workspaces reach this deployment at, no trailing slash. Known once the server listens. */
  accessUrl: () => string;
  /** Strict semver, no leading v. */
  version: string;
  deploymentId: string;
  limits: ApiLimits;
  /** The relays there are, as nodes are told; default: the one at the access URL. */
  relayMap?: () => { Regions: Record<string, unknown> };
  /** Longest lifetime of an API token, ms. */
  maxTokenLifetimeMs: number;
  now: () => Date;
}
