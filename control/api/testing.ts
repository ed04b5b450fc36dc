// For tests: a control plane on a database of its own, a client that speaks JSON, and a daemon that does nothing
// but say it did.

import { randomUUID } from "node:crypto";
import { Writable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { pino } from "pino";
import tar from "tar-stream";
import { WebSocket } from "ws";
import { type TestDatabase, testDatabase } from "../db/testing.ts";
import type {
  BuildJob,
  BuildResult,
  ImportResult,
  Job,
  ProvisionedAgent,
  TemplateParameter,
} from "../provisioner/protocol.ts";
import { type ControlPlane, type ControlPlaneOptions, startControlPlane } from "../server.ts";

export const PASSWORD = "correct-Horse-7-battery";

export interface Answer<T = Record<string, unknown>> {
  status: number;
  body: T & {
    message: string;
    detail?: string;
    validations?: { field: string; detail: string }[];
    code?: string;
  };
  headers: Headers;
}

/** Unchecked on purpose: a test reads the field it is about, and fails where that isn't what it should be. */
export type Json = ReturnType<typeof JSON.parse>;

export class TestClient {
  readonly url: string;
  token: string | undefined;
  constructor(url: string, token?: string) {
    this.url = url;
    this.token = token;
  }

  async call(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Answer<Json>> {
    const raw = body instanceof Uint8Array;
    const response = await fetch(`${this.url}${path.startsWith("/healthz") ? "" : "/api/v2"}${path}`, {
      method,
      headers: {
        ...(this.token ? { "Coder-Session-Token": this.token } : {}),
        ...(body === undefined ? {} : { "Content-Type": raw ? "application/x-tar" : "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : raw ? (body as BodyInit) : JSON.stringify(body),
    });
    const text = await response.text();
    return {
      status: response.status,
      headers: response.headers,
      body: response.headers.get("content-type")?.includes("json") && text ? JSON.parse(text) : text,
    };
  }

  get = (path: string) => this.call("GET", path);
  post = (path: string, body?: unknown) => this.call("POST", path, body ?? {});
  put = (path: string, body?: unknown) => this.call("PUT", path, body ?? {});
  patch = (path: string, body?: unknown) => this.call("PATCH", path, body ?? {});
  delete = (path: string) => this.call("DELETE", path);

  /** Follows a log until the server closes it. */
  follow(
    path: string,
    onMessage: (message: Json) => void = () => {},
  ): Promise<{ code: number; messages: Json[] }> {
    const ws = new WebSocket(`${this.url.replace("http", "ws")}/api/v2${path}`, {
      headers: this.token ? { "Coder-Session-Token": this.token } : {},
    });
    const messages: Json[] = [];
    return new Promise((resolve, reject) => {
      ws.on("message", (data) => {
        messages.push(JSON.parse(String(data)));
        onMessage(messages.at(-1));
      });
      ws.on("close", (code) => resolve({ code, messages }));
      ws.on("error", reject);
    });
  }
}

export interface TestPlane {
  database: TestDatabase;
  plane: ControlPlane;
  /** Nobody. */
  anyone: TestClient;
  /** The first user. */
  owner: TestClient;
  /** Everything logged, as lines of JSON. */
  logged: () => string;
  stop(): Promise<void>;
}

export async function startTestPlane(
  options: Partial<ControlPlaneOptions> & { database?: TestDatabase } = {},
): Promise<TestPlane> {
  const { database = await testDatabase(), ...rest } = options;
  let logged = "";
  const logger = pino(
    { level: "debug" },
    new Writable({
      write(chunk, _encoding, done) {
        logged += String(chunk);
        done();
      },
    }),
  );
  const plane = await startControlPlane({
    knex: database.knex,
    databaseUrl: database.url,
    listenHost: "127.0.0.1",
    listenPort: 0,
    version: "0.1.0",
    logger,
    ...rest,
  });
  const anyone = new TestClient(plane.url);
  await anyone.post("/users/first", {
    email: "ada@example.com",
    username: "ada",
    name: "Ada",
    password: PASSWORD,
  });
  const owner = await login(anyone, "ada@example.com");
  return {
    database,
    plane,
    anyone,
    owner,
    logged: () => logged,
    async stop() {
      await plane.stop();
      await database.drop();
    },
  };
}

export async function login(client: TestClient, email: string): Promise<TestClient> {
  const { status, body } = await client.post("/users/login", { email, password: PASSWORD });
  if (status !== 201) throw new Error(`login of ${email}: ${status} ${body.message}`);
  return new TestClient(client.url, body.session_token);
}

export async function addUser(
  owner: TestClient,
  username: string,
  roles: string[] = [],
): Promise<TestClient> {
  const email = `${username}@example.com`;
  const { status, body } = await owner.post("/users", { email, username, password: PASSWORD, roles });
  if (status !== 201) throw new Error(`adding ${username}: ${status} ${JSON.stringify(body)}`);
  return login(new TestClient(owner.url), email);
}

export async function tarOf(files: Record<string, string>): Promise<Uint8Array> {
  const pack = tar.pack();
  for (const [name, text] of Object.entries(files)) pack.entry({ name }, text);
  pack.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of pack) chunks.push(chunk as Buffer);
  return new Uint8Array(Buffer.concat(chunks));
}

export const importResult = (overrides: Partial<ImportResult> = {}): ImportResult => ({
  type: "template_version_import",
  readme: "# Read me",
  variables: [],
  parameters: [],
  presets: [],
  workspaceTags: {},
  externalAuth: [],
  startResources: [],
  stopResources: [],
  ...overrides,
});

export function parameter(overrides: Partial<TemplateParameter>): TemplateParameter {
  return {
    name: "size",
    displayName: "Size",
    description: "How *big*",
    type: "number",
    formType: "input",
    styling: "",
    mutable: true,
    ephemeral: false,
    required: false,
    defaultValue: "1",
    icon: "",
    order: 0,
    options: [],
    validation: { regex: "", error: "", monotonic: "", min: 1, max: 9 },
    ...overrides,
  };
}

export function agent(
  token: string = randomUUID(),
  overrides: Partial<ProvisionedAgent> = {},
): ProvisionedAgent {
  return {
    id: randomUUID(),
    name: "main",
    operatingSystem: "linux",
    architecture: "amd64",
    auth: { kind: "token", token },
    directory: "~",
    env: { EDITOR: "vim" },
    motdFile: "",
    troubleshootingUrl: "",
    connectionTimeoutSeconds: 120,
    startupScriptBehavior: "non-blocking",
    apiKeyScope: "all",
    order: 0,
    displayApps: ["web_terminal"],
    apps: [],
    scripts: [
      {
        displayName: "Startup Script",
        icon: "",
        script: "echo hello",
        logPath: "",
        cron: "",
        runOnStart: true,
        runOnStop: false,
        startBlocksLogin: false,
        timeoutSeconds: 0,
      },
    ],
    metadata: [],
    ...overrides,
  };
}

export const buildResult = (agents: ProvisionedAgent[] = [], state = '{"version":4}'): BuildResult => ({
  type: "workspace_build",
  state: new TextEncoder().encode(state),
  dailyCost: 0,
  resources: [
    {
      type: "terraform_data",
      name: "home",
      hide: false,
      icon: "",
      instanceType: "",
      dailyCost: 0,
      metadata: [
        { key: "region", value: "here", sensitive: false, isNull: false },
        { key: "password", value: "hunter2", sensitive: true, isNull: false },
      ],
      agents,
    },
  ],
});

export const daemon = { id: randomUUID(), name: "test-daemon", tags: {} };

/** The next job, or a failure after 10 s. */
export async function nextJob({ plane }: Pick<TestPlane, "plane">): Promise<Job> {
  const job = await plane.queue.acquire(daemon, AbortSignal.timeout(10_000));
  if (!job) throw new Error("no job came");
  return job;
}

/** Uploads, imports and makes a template. @returns its JSON */
export async function pushTemplate(
  test: TestPlane,
  name: string,
  result: Partial<ImportResult> = {},
): Promise<Json> {
  const { owner, plane } = test;
  const file = await owner.call("POST", "/files", await tarOf({ "main.tf": `# ${name}` }));
  const version = await owner.post("/organizations/default/templateversions", { file_id: file.body.hash });
  const job = await nextJob(test);
  await plane.queue.complete(job.id, importResult(result));
  const template = await owner.post("/organizations/default/templates", {
    name,
    template_version_id: version.body.id,
  });
  if (template.status !== 201) throw new Error(`template ${name}: ${JSON.stringify(template.body)}`);
  return template.body;
}

/** A running workspace. @returns its JSON, and the agent's token */
export async function runningWorkspace(
  test: TestPlane,
  client: TestClient,
  templateId: string,
  name: string,
): Promise<{ workspace: Json; agentToken: string; job: BuildJob }> {
  const created = await client.post("/users/me/workspaces", { template_id: templateId, name });
  if (created.status !== 201) throw new Error(`workspace ${name}: ${JSON.stringify(created.body)}`);
  const agentToken = randomUUID();
  const job = (await nextJob(test)) as BuildJob;
  await test.plane.queue.complete(job.id, buildResult([agent(agentToken)]));
  return { workspace: (await client.get(`/workspaces/${created.body.id}`)).body, agentToken, job };
}

/** Asks until it is so: for what another connection does. */
export async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const endAt = Date.now() + 10_000;
  while (!(await isSo())) {
    if (Date.now() > endAt) throw new Error(`waited 10 s for: ${what}`);
    await delay(10);
  }
}
