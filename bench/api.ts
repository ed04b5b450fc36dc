// npm run bench -- api: requests to a real server with 1,000 workspaces, one at a time over a kept connection, beside a bare
// node:http server in a process of its own that asks the same PostgreSQL, through pg, what the request is mainly about.
import { fork } from "node:child_process";
import { once } from "node:events";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { verify } from "@node-rs/argon2";
import pg from "pg";
import { workspacesQuery } from "../control/db/queries/workspaces.ts";
import { PASSWORD } from "../test/e2e/server.ts";
import { Farm } from "./farm.ts";
import { quick, type Row, report, row } from "./report.ts";

const WORKSPACES = 1_000;
const WARM_UP = 5;
const self = fileURLToPath(import.meta.url);
const CONTROL = "node:http and pg";

interface Statement {
  text: string;
  values: unknown[];
}
type Statements = Record<string, Statement[]>;

/** What each route of the control asks, after the login's two look-ups that all but "login" share. */
function statements(farm: Farm, keyId: string, userId: string): Statements {
  const login = [
    { text: "select * from api_keys where id = $1 limit 1", values: [keyId] },
    { text: "select * from users where id = $1 and deleted = false limit 1", values: [userId] },
  ];
  const list = (limit: number): Statement => {
    const { sql, bindings } = workspacesQuery(farm.knex)
      .where("w.deleted", false)
      .orderByRaw("(w.owner_id = ?) desc, lower(u.username), lower(w.name), w.id", [userId])
      .limit(limit)
      .toSQL()
      .toNative();
    return { text: sql, values: [...bindings] };
  };
  return {
    "/me": login,
    "/workspaces25": [...login, list(25)],
    "/workspaces1000": [...login, list(1_000)],
    "/login": [{ text: "select * from users where lower(email) = $1", values: ["alice@example.com"] }],
  };
}

async function serveControl(databaseUrl: string, routes: Statements): Promise<void> {
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 4 });
  const server = http.createServer(async (req, res) => {
    let rows: Record<string, unknown>[] = [];
    for (const { text, values } of routes[req.url ?? ""] ?? []) ({ rows } = await pool.query(text, values));
    if (req.url === "/login") await verify(String(rows[0]?.["password_hash"]), PASSWORD);
    res.setHeader("content-type", "application/json").end(JSON.stringify(rows));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  process.send?.((server.address() as AddressInfo).port);
  process.on("disconnect", () => process.exit());
}

interface Call {
  method?: "GET" | "POST";
  url: string;
  token?: string;
  body?: unknown;
}

const keptAlive = new http.Agent({ keepAlive: true });

/** @returns ms until the whole answer was there, and its size */
async function call({ method = "GET", url, token, body }: Call): Promise<{ ms: number; bytes: number }> {
  const startedAt = performance.now();
  const text = body === undefined ? undefined : JSON.stringify(body);
  const request = http.request(url, {
    method,
    agent: keptAlive,
    headers: {
      ...(token ? { "coder-session-token": token } : {}),
      ...(text ? { "content-type": "application/json", "content-length": Buffer.byteLength(text) } : {}),
    },
  });
  request.end(text);
  const [answer] = (await once(request, "response")) as [http.IncomingMessage];
  let bytes = 0;
  for await (const chunk of answer) bytes += (chunk as Buffer).length;
  if ((answer.statusCode ?? 500) >= 300) throw new Error(`${url}: status ${answer.statusCode}`);
  return { ms: performance.now() - startedAt, bytes };
}

async function main(): Promise<void> {
  const farm = await Farm.start({ copies: WORKSPACES - 1 });
  const token = farm.owner.token;
  const [{ id: userId }] = await farm.knex("users").where({ username: "alice" }).select("id");
  const control = fork(self, [], { execArgv: ["--import", "tsx"] });
  control.send({
    databaseUrl: farm.postgres.connectionUrl,
    routes: statements(farm, token.split("-")[0], String(userId)),
  });
  try {
    const [port] = (await once(control, "message")) as [number];
    const api = `${farm.server.url}/api/v2`;
    const rows: Row[] = [];
    // Within what one user may ask for in a minute.
    const compare = async (id: string, what: string, count: number, ours: Call, path: string) => {
      const [a, b] = [[], []] as number[][];
      let bytes = 0;
      for (let round = -WARM_UP; round < (quick ? Math.min(count, 10) : count); round++) {
        const mine = await call(ours);
        const other = await call({ url: `http://127.0.0.1:${port}${path}` });
        if (round < 0) continue;
        a.push(mine.ms);
        b.push(other.ms);
        bytes = mine.bytes;
      }
      rows.push(
        row({
          id,
          what: `${what}, ${(bytes / 1e3).toFixed(1)} kB`,
          unit: "ms",
          ours: a,
          control: { name: CONTROL, values: b },
        }),
      );
    };
    const list = (limit: number) => ({ url: `${api}/workspaces?limit=${limit}`, token });
    await compare("me", "GET users/me", 200, { url: `${api}/users/me`, token }, "/me");
    await compare("list-25", `GET workspaces, 25 of ${WORKSPACES}`, 150, list(25), "/workspaces25");
    await compare("list-1000", `GET workspaces, all ${WORKSPACES}`, 40, list(1_000), "/workspaces1000");
    const body = { email: "alice@example.com", password: PASSWORD };
    const login: Call = { method: "POST", url: `${api}/users/login`, body };
    await compare("login", "POST users/login", 40, login, "/login");
    report({ group: "api", title: "a server with 1,000 workspaces, one request at a time", rows });
  } finally {
    control.kill();
    await farm.close();
  }
}

if (process.send && process.argv[1] === self) {
  const [{ databaseUrl, routes }] = (await once(process, "message")) as [
    { databaseUrl: string; routes: Statements },
  ];
  await serveControl(databaseUrl, routes);
} else await main();
