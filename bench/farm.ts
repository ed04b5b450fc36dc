// A real server with PostgreSQL and as many workspaces as asked, for benchmarks: one is built by Terraform, the others are copies of
// its rows with ids and tokens of their own. Nothing outside a temporary folder.
import { createHash, randomUUID } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import type { Knex } from "knex";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../control/db/embedded.ts";
import { openDatabase } from "../control/db/open.ts";
import { freePort } from "../test/e2e/outage.ts";
import { Sandbox } from "../test/e2e/sandbox.ts";
import { Person, TestServer } from "../test/e2e/server.ts";
import { cpuSecondsOf } from "./report.ts";

/** Quick to build, and has what a workspace of any template has: an agent, a script, a resource beside. */
const TEMPLATE = `terraform {
  required_providers {
    coder = { source = "coder/coder" }
  }
}
data "coder_workspace" "me" {}
resource "coder_agent" "main" {
  os   = "linux"
  arch = "amd64"
  startup_script = "echo ready"
}
resource "terraform_data" "machine" {
  count = data.coder_workspace.me.start_count
  input = coder_agent.main.token
}
`;

export interface FarmAgent {
  id: string;
  token: string;
}

export interface CpuSeconds {
  server: number;
  relay: number;
  postgres: number;
}

export interface FarmOptions {
  /** How many there are besides the one that was built. */
  copies: number;
}

export class Farm {
  readonly sandbox: Sandbox;
  readonly postgres: EmbeddedPostgres;
  readonly knex: Knex;
  readonly owner: Person;
  readonly port: string;
  server: TestServer;
  /** The copies' agents. */
  agents: FarmAgent[] = [];
  /** Added to the environment of the next start of the server. */
  serverEnv: NodeJS.ProcessEnv = {};

  private constructor(parts: {
    sandbox: Sandbox;
    postgres: EmbeddedPostgres;
    knex: Knex;
    owner: Person;
    server: TestServer;
    port: string;
  }) {
    this.sandbox = parts.sandbox;
    this.postgres = parts.postgres;
    this.knex = parts.knex;
    this.owner = parts.owner;
    this.server = parts.server;
    this.port = parts.port;
  }

  static async start({ copies }: FarmOptions): Promise<Farm> {
    const sandbox = new Sandbox();
    const closing: (() => unknown)[] = [() => sandbox.dispose()];
    try {
      const postgres = await startEmbeddedPostgres({ dataDir: path.join(sandbox.dir, "postgres") });
      closing.push(() => postgres.stop());
      const port = String(await freePort());
      const server = await TestServer.start(sandbox, {
        port,
        env: { CODER_PG_CONNECTION_URL: postgres.connectionUrl },
      });
      closing.push(() => server.stop());
      const knex = await openDatabase({ url: postgres.connectionUrl, poolMax: 4 });
      closing.push(() => knex.destroy());
      const owner = await Person.first(sandbox, server.url, "alice");
      const farm = new Farm({ sandbox, postgres, knex, owner, server, port });
      await owner.mustPush("small", TEMPLATE);
      await owner.must("create", "original", "--template", "small", "--yes");
      farm.agents = await copyWorkspaces(knex, "original", copies);
      return farm;
    } catch (error) {
      for (const close of closing.reverse()) await close();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.server.stop().catch(() => undefined);
    await this.knex.destroy();
    await this.postgres.stop();
    this.sandbox.dispose();
  }

  /** Ends the server by `signal`, and starts it again at its port. @returns ms from the signal until it served again */
  async restart(signal: "SIGTERM" | "SIGKILL"): Promise<number> {
    const startedAt = performance.now();
    this.server.running.child.kill(signal);
    await this.server.running.finished;
    const env = { CODER_PG_CONNECTION_URL: this.postgres.connectionUrl, ...this.serverEnv };
    this.server = await TestServer.start(this.sandbox, { port: this.port, env });
    return performance.now() - startedAt;
  }

  get pid(): number {
    return this.server.running.child.pid ?? 0;
  }

  /** The relay, a child of the server. */
  get relayPid(): number | undefined {
    return childrenOf(this.pid).find((pid) => commandLine(pid).includes("relay.mjs"));
  }

  /** What server, relay and PostgreSQL have used so far. PostgreSQL's processes that ended count with it. */
  cpu(): CpuSeconds {
    // The first of them has a path for a name; the others call themselves "postgres: what they do".
    const postgres = descendantsOf(process.pid).filter((pid) =>
      /^(\S*\/)?postgres[ :]/.test(commandLine(pid)),
    );
    return {
      server: cpuSecondsOf(this.pid),
      relay: this.relayPid === undefined ? 0 : cpuSecondsOf(this.relayPid),
      postgres: postgres.reduce((sum, pid) => sum + cpuSecondsOf(pid, true), 0),
    };
  }
}

/** Copies the rows of a workspace, its build and what that made. Other fields stay as they are. */
async function copyWorkspaces(knex: Knex, name: string, count: number): Promise<FarmAgent[]> {
  const copies = Array.from({ length: count }, (_, i) => ({
    n: i,
    workspace: randomUUID(),
    build: randomUUID(),
    job: randomUUID(),
    agent: randomUUID(),
    token: randomUUID(),
  }));
  await knex.transaction(async (trx) => {
    await trx.raw(
      "create temp table copies (n int, workspace uuid, build uuid, job uuid, agent uuid, hash text) on commit drop",
    );
    const rows = copies.map(({ token, ...ids }) => ({
      ...ids,
      hash: `\\x${createHash("sha256").update(token).digest("hex")}`,
    }));
    for (let at = 0; at < rows.length; at += 5_000) await trx("copies").insert(rows.slice(at, at + 5_000));
    await trx.raw("create temp table new_resources (old uuid, n int, id uuid) on commit drop");
    await trx.raw(
      `insert into new_resources select r.id, c.n, gen_random_uuid() from copies c, workspaces w
       join workspace_builds b on b.id = w.latest_build_id join workspace_resources r on r.job_id = b.job_id
       where w.name = ?`,
      [name],
    );
    const copy = async (table: string, fields: string, from: string) => {
      const { rows: columns } = await trx.raw<{ rows: { column_name: string }[] }>(
        `select column_name from information_schema.columns
         where table_schema = current_schema() and table_name = ? and is_generated = 'NEVER'`,
        [table],
      );
      const names = columns.map(({ column_name }) => column_name).join(", ");
      await trx.raw(
        `insert into ${table} (${names}) select ${names} from
         (select (jsonb_populate_record(t, jsonb_build_object(${fields}))).* from ${from}) as made`,
        [name],
      );
    };
    const original = "workspaces w join workspace_builds b on b.id = w.latest_build_id";
    await copy(
      "provisioner_jobs",
      "'id', c.job",
      `copies c, ${original} join provisioner_jobs t on t.id = b.job_id where w.name = ?`,
    );
    await copy(
      "workspaces",
      "'id', c.workspace, 'name', 'ws-' || c.n, 'latest_build_id', c.build",
      "copies c, workspaces t where t.name = ?",
    );
    await copy(
      "workspace_builds",
      "'id', c.build, 'workspace_id', c.workspace, 'job_id', c.job",
      "copies c, workspaces w join workspace_builds t on t.id = w.latest_build_id where w.name = ?",
    );
    await copy(
      "workspace_resources",
      "'id', n.id, 'job_id', c.job",
      `copies c join new_resources n on n.n = c.n, ${original} join workspace_resources t on t.job_id = b.job_id
       where n.old = t.id and w.name = ?`,
    );
    await copy(
      "workspace_agents",
      "'id', c.agent, 'resource_id', n.id, 'token_hash', c.hash",
      `copies c join new_resources n on n.n = c.n, ${original} join workspace_resources r on r.job_id = b.job_id
       join workspace_agents t on t.resource_id = r.id where n.old = r.id and w.name = ?`,
    );
  });
  await knex.raw("vacuum analyze");
  return copies.map(({ agent, token }) => ({ id: agent, token }));
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return ""; // ended meanwhile
  }
}

export function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
      readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").split(" ").filter(Boolean).map(Number),
    );
  } catch {
    return [];
  }
}

function descendantsOf(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendantsOf(child)]);
}
