// The API: every shape of its contract, the search syntax, relay maps, rates, tokens, and whole requests through the real
// Koa application with a database that is away (what needs none is answered, what needs one says 503; nothing is a 500).
import assert from "node:assert/strict";
import { IncomingMessage, ServerResponse } from "node:http";
import { Socket } from "node:net";
import { Writable } from "node:stream";
import knexOf from "knex";
import { pino } from "pino";
import type * as z from "zod";
import { createApi } from "../../../control/api/api.ts";
import { authenticateAny, tokenOf } from "../../../control/api/authenticate.ts";
import { toApiError } from "../../../control/api/errors.ts";
import { containsPattern, parseSearch } from "../../../control/api/search.ts";
import { parseKey } from "../../../control/auth/token.ts";
import * as contract from "../../../control/contract/index.ts";
import { resolveParameters } from "../../../control/templates/parameters.ts";
import { DerpMap, mergeRelayMaps, withoutStun } from "../../../derp/map.ts";
import { parseRateConfig } from "../../../derp/server/rate.ts";
import { fromUtf8, utf8 } from "../../../mesh/wire/bytes.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import { type Instance, outcomeOf, type Target } from "../engine.ts";

const json = (value: unknown): Uint8Array => utf8(JSON.stringify(value));
const ID = "6b2f4a3e-9f7c-4a55-8a3c-0d9f5f1f2a10";

const shapes: [string, z.ZodType][] = Object.entries(contract).flatMap(([name, shape]) =>
  typeof shape === "object" && "safeParse" in shape ? [[name, shape as z.ZodType]] : [],
);
/** What comes out of it is no longer what goes in: text of a query becomes a boolean. */
const ONE_WAY = new Set(["QueryFlag"]);

const bodies: Record<string, unknown>[] = [
  { email: "a@example.com", username: "ada", name: "Ada", password: "correct-Horse-7-battery", trial: false },
  { email: "a@example.com", password: "x" },
  {
    username: "bob",
    email: "b@example.com",
    password: "correct-Horse-7-battery",
    user_status: "active",
    login_type: "password",
  },
  { lifetime: 3_600_000_000_000, scope: "all", token_name: "laptop" },
  {
    name: "dev",
    template_id: ID,
    rich_parameter_values: [{ name: "size", value: "2" }],
    autostart_schedule: "CRON_TZ=UTC 0 9 * * *",
    ttl_ms: 3_600_000,
  },
  {
    transition: "start",
    template_version_id: ID,
    rich_parameter_values: [],
    log_level: "debug",
    reason: "cli",
  },
  {
    name: "t",
    template_version_id: ID,
    display_name: "T",
    description: "d",
    icon: "/x.svg",
    default_ttl_ms: 0,
  },
  {
    storage_method: "file",
    file_id: ID,
    provisioner: "terraform",
    tags: { a: "b" },
    user_variable_values: [{ name: "x", value: "y" }],
  },
  { checks: { a: { object: { resource_type: "workspace", owner_id: "me" }, action: "read" } } },
  { state: "ready", changed_at: "2026-01-02T03:04:05.000Z" },
  { log_source_id: ID, logs: [{ created_at: "2026-01-02T03:04:05.000Z", output: "hello", level: "info" }] },
  { version: "v1.2.3", expanded_directory: "/home/x", subsystems: ["envbox"] },
  { limit: "10", offset: "5", after_id: ID, q: "owner:me name:dev" },
  { roles: ["owner", "auditor"] },
  { revoke: true },
];

const nothing = (): void => undefined;
const SILENT = { warn: nothing, error: nothing, debug: nothing, deprecate: nothing };
const NOWHERE = { host: "127.0.0.1", port: 1, user: "x", database: "x" };

interface Asked {
  method: string;
  url: string;
  headers: Record<string, string>;
  body: string;
}

/** One request as JSON: method, url, headers, body. */
const asked = (
  method: string,
  url: string,
  body: unknown = "",
  headers: Record<string, string> = {},
): Uint8Array => json({ method, url, headers, body: typeof body === "string" ? body : JSON.stringify(body) });

const TOKEN = `${"a".repeat(10)}-${"b".repeat(22)}`;
const requests = [
  asked("GET", "/api/v2/buildinfo"),
  asked("GET", "/healthz"),
  asked("GET", "/api/v2/users/first"),
  asked("POST", "/api/v2/users/first", bodies[0]),
  asked("POST", "/api/v2/users/login", bodies[1]),
  asked("GET", "/api/v2/workspaces?q=owner%3Ame&limit=3", "", { "coder-session-token": TOKEN }),
  asked("GET", `/api/v2/users/me?coder_session_token=${TOKEN}`, "", {
    cookie: `coder_session_token=${TOKEN}`,
  }),
  asked("POST", "/api/v2/users/validate-password", { password: "x" }),
  asked("GET", "http://other/api/v2/users/me", "", {
    authorization: `Bearer ${TOKEN}`,
    origin: "http://evil",
  }),
  asked("GET", "/api/v2/workspaceagents/me/manifest", "", { "coder-session-token": ID }),
  asked("GET", "http://x:80/api/v2/users/me"),
  asked("POST", "/api/v2/files", "tar", { "content-type": "application/x-tar" }),
];

/** The real application; each request comes in by a socket that leads nowhere. */
function apiInstance(): Instance {
  const knex = knexOf({ client: "pg", connection: NOWHERE, pool: { min: 0, max: 2 }, log: SILENT });
  const errors: string[] = [];
  const logger = pino(
    { level: "error" },
    new Writable({
      write(chunk, _encoding, done) {
        errors.push(String(chunk));
        done();
      },
    }),
  );
  const app = createApi({
    knex,
    topics: {} as never, // only followers of logs listen to them
    logger,
    accessUrl: () => "http://127.0.0.1:3000",
    version: "0.1.0",
    deploymentId: ID,
    limits: { templateArchiveBytes: 1 << 20, bodyBytes: 1 << 20, agentLogBytes: 1 << 20 },
    maxTokenLifetimeMs: 3_600_000,
    // Beyond the limits of rates: a minute passes between requests.
    now: (() => {
      let at = 1_700_000_000_000;
      return () => {
        at += 60_000;
        return new Date(at);
      };
    })(),
  });
  const handle = app.callback();
  return {
    async run(input) {
      let request: Asked;
      try {
        request = JSON.parse(fromUtf8(input));
        if (typeof request.url !== "string" || typeof request.method !== "string") return "no request";
      } catch {
        return "no JSON";
      }
      // Node's HTTP parser lets neither of these through.
      if (!/^[\x21-\x7e\x80-\xff]+$/.test(request.url) || !/^[A-Z]{1,10}$/.test(request.method))
        return "no HTTP";
      const incoming = new IncomingMessage(new Socket());
      incoming.method = request.method;
      incoming.url = request.url;
      for (const [name, value] of Object.entries(request.headers ?? {}))
        if (typeof value === "string" && /^[a-z-]+$/.test(name) && !/[\x00-\x08\x0a-\x1f\x7f]/.test(value))
          incoming.headers[name] = value;
      incoming.push(Buffer.from(String(request.body ?? "")));
      incoming.push(null);
      const response = new ServerResponse(incoming);
      let text = "";
      response.end = ((chunk?: string | Buffer) => {
        text = chunk === undefined ? "" : String(chunk);
        response.emit("finish");
        return response;
      }) as typeof response.end;
      await handle(incoming, response);
      assert.ok(
        response.statusCode < 500 || response.statusCode === 503,
        `${response.statusCode} ${errors.at(-1)}`,
      );
      errors.length = 0;
      let code = "";
      if (response.statusCode >= 400 && request.method !== "HEAD") {
        const body = contract.ErrorBody.safeParse(text === "" ? undefined : JSON.parse(text));
        assert.ok(body.success, `an error of another form: ${text}`);
        code = body.data.code ?? "";
      }
      return `${response.statusCode} ${code}`;
    },
    end: () => knex.destroy(),
  };
}

const definition = {
  name: "size",
  displayName: "",
  description: "",
  type: "number",
  formType: "",
  mutable: true,
  ephemeral: false,
  required: false,
  defaultValue: "2",
  icon: "",
  order: 0,
  options: [],
  validation: { regex: "^[0-9]+$", error: "", min: 1, max: 9, monotonic: "increasing" },
};

const map = {
  Regions: {
    "1": {
      RegionID: 1,
      RegionCode: "x",
      RegionName: "X",
      Nodes: [
        {
          Name: "1a",
          RegionID: 1,
          HostName: "relay.example.com",
          STUNPort: 3478,
          DERPPort: 443,
          IPv4: "192.0.2.1",
        },
      ],
    },
    "2": {
      RegionID: 2,
      RegionCode: "y",
      Nodes: [{ Name: "2s", RegionID: 2, HostName: "s", STUNOnly: true }],
    },
  },
  HomeParams: { RegionScore: { "1": 0.5 } },
};

export const apiTargets: Target[] = [
  {
    name: "api-shapes",
    format: "json",
    seeds: bodies.map(json),
    shortInputs: 800,
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        let value: unknown;
        try {
          value = JSON.parse(fromUtf8(input));
        } catch {
          return "no JSON";
        }
        const words: string[] = [];
        for (const [name, shape] of shapes) {
          // All of them would take long; which ones follows from the input.
          if (random.chance(0.7)) continue;
          const parsed = shape.safeParse(value);
          if (!parsed.success) continue;
          words.push(name);
          if (ONE_WAY.has(name)) continue;
          const again = shape.safeParse(JSON.parse(JSON.stringify(parsed.data ?? null)));
          if (parsed.data !== undefined) assert.ok(again.success, `${name} refuses what it made`);
        }
        return words.slice(0, 3).join();
      },
    }),
  },
  {
    name: "api-requests",
    format: "json",
    seeds: requests,
    dictionary: ["/api/v2/", "%00", "%ff", "?", "//", "http://[", ":99999", "Bearer ", TOKEN].map(utf8),
    inputsPerInstance: 500,
    shortInputs: 600,
    open: apiInstance,
  },
  {
    name: "api-credentials",
    format: "json",
    seeds: requests.slice(5, 9),
    inputsPerInstance: 1_000,
    open: () => ({
      async run(input) {
        let request: Asked;
        try {
          request = JSON.parse(fromUtf8(input));
        } catch {
          return "no JSON";
        }
        if (typeof request?.url !== "string" || !/^[\x21-\x7e]+$/.test(request.url)) return "no HTTP";
        const incoming = new IncomingMessage(new Socket());
        incoming.url = request.url;
        incoming.method = "GET";
        for (const [name, value] of Object.entries(request.headers ?? {}))
          if (typeof value === "string") incoming.headers[name] = value;
        const found = tokenOf(incoming);
        const key = found && parseKey(found.token);
        if (key || found) return `${key !== undefined} ${found?.fromCookie}`;
        // Nothing that could be a key: nobody asks the database.
        try {
          const nobody = await authenticateAny({ knex: undefined as never }, incoming, new Date(0));
          return String(nobody);
        } catch (error) {
          if (!toApiError(error)) throw error;
          return "refused";
        }
      },
    }),
  },
  {
    name: "api-search",
    format: "text",
    seeds: ["owner:me name:dev", 'template:"my tmpl" status:running word', "a:b:c", '"', "param:x"].map(utf8),
    dictionary: [":", '"', " ", "owner:", "__proto__:x", "constructor:x", "%", "_"].map(utf8),
    inputsPerInstance: 1_000,
    open: () => ({
      run: (input) =>
        outcomeOf(() => {
          const text = fromUtf8(input);
          const search = parseSearch(text, ["owner", "name", "template", "status"]);
          for (const value of [...search.words, ...Object.values(search.keys)])
            assert.ok(typeof value === "string" && value !== "");
          containsPattern(text);
          return `${search.words.length > 0} ${Object.keys(search.keys).length} ${search.problems.length}`;
        }, WireError),
    }),
  },
  {
    name: "relay-maps",
    format: "json",
    seeds: [json(map)],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        let value: unknown;
        try {
          value = JSON.parse(fromUtf8(input));
        } catch {
          return "no JSON";
        }
        const parsed = DerpMap.safeParse(value);
        if (!parsed.success) return parsed.error.issues[0].message.slice(0, 30);
        withoutStun(parsed.data);
        if (!("1" in parsed.data.Regions)) return "no region 1";
        assert.throws(() => mergeRelayMaps({ Regions: parsed.data.Regions }, parsed.data));
        assert.deepEqual(DerpMap.parse(JSON.parse(JSON.stringify(parsed.data))), parsed.data);
        return String(Object.keys(parsed.data.Regions).length);
      },
    }),
  },
  {
    name: "relay-rates",
    format: "json",
    seeds: [
      json({ PerClientRateLimitBytesPerSec: 1_000, PerClientRateBurstBytes: 5 }),
      json({ AnonymousRateLimitBytesPerSec: 1 }),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        try {
          const rates = parseRateConfig(new TextDecoder().decode(input));
          for (const rate of Object.values(rates))
            assert.ok(rate === undefined || (rate.bytesPerSecond >= 0 && rate.burstBytes >= 0));
          return Object.keys(rates).length.toString();
        } catch (error) {
          if (!(error instanceof Error) || !error.message.startsWith("the rate configuration")) throw error;
          return error.message.slice(0, 50);
        }
      },
    }),
  },
  {
    name: "build-parameters",
    format: "json",
    seeds: [
      json({
        definitions: [definition, { ...definition, name: "text", type: "list(string)" }],
        given: [{ name: "size", value: "3" }],
      }),
      json({ definitions: [definition], given: [], previous: [{ name: "size", value: "1" }] }),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        let value: { definitions?: unknown; given?: { value?: unknown; name?: unknown }[] };
        try {
          value = JSON.parse(fromUtf8(input));
        } catch {
          return "no JSON";
        }
        // Definitions are ours (rows); the values are the caller's, checked by the contract.
        const given = contract.BuildParameters.safeParse(value?.given);
        if (!given.success) return "no values";
        const { values, problems } = resolveParameters({
          definitions: [definition] as never,
          given: given.data,
        });
        return `${values.length} ${problems.map(({ detail }) => detail.slice(0, 20)).join()}`;
      },
    }),
  },
];
