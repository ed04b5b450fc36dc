import assert from "node:assert/strict";
import fs from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import type { AgentManifest, AgentScript } from "../control/contract/agent.ts";
import { encodeOpening } from "../mesh/wire/channel.ts";
import { Agent, type AgentOptions, type MeshConnection } from "./agent.ts";
import type { DatagramStream, Peer } from "./streams.ts";
import { collectSession, fakePeer, memoryLogger, readAnswer, servicePair } from "./testing.ts";

const TOKEN = "0d3b5d0e-1111-4111-8111-5ec2e7000001";
const ID = "5b5c9c7e-0000-4000-8000-000000000001";

interface Request {
  name: string;
  body: Record<string, unknown>;
}

/** A control plane that remembers what it was told; `answer` may refuse with a status. */
class FakeServer {
  readonly requests: Request[] = [];
  manifest: AgentManifest;
  answer: (name: string) => number = () => 200;
  url = "";
  readonly #server: http.Server;
  #watchers: (() => void)[] = [];

  constructor() {
    this.manifest = {
      agent_id: ID,
      agent_name: "main",
      workspace_id: ID,
      workspace_name: "dev",
      owner_id: ID,
      owner_username: "ada",
      directory: "",
      environment_variables: { FROM_TEMPLATE: "$HOME/x" },
      motd_file: "",
      startup_script_behavior: "non-blocking",
      scripts: [],
      disable_direct_connections: false,
    };
    this.#server = http.createServer((request, response) => {
      assert.equal(request.headers["coder-session-token"], TOKEN);
      const name = /^\/api\/v2\/workspaceagents\/me\/(\w+)$/.exec(request.url ?? "")?.[1] ?? "";
      let text = "";
      request.setEncoding("utf8").on("data", (chunk) => {
        text += chunk;
      });
      request.on("end", () => {
        const status = this.answer(name);
        this.requests.push({ name, body: text ? JSON.parse(text) : {} });
        if (status >= 300 && status < 400) response.setHeader("Location", "http://elsewhere.invalid/");
        response.writeHead(status, { "Content-Type": "application/json" });
        response.end(name === "manifest" && status === 200 ? JSON.stringify(this.manifest) : "");
        for (const watcher of this.#watchers) watcher();
      });
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  states(): unknown[] {
    return this.requests.filter(({ name }) => name === "lifecycle").map(({ body }) => body["state"]);
  }

  logLines(): string[] {
    return this.requests
      .filter(({ name }) => name === "logs")
      .flatMap(({ body }) => (body["logs"] as { output: string }[]).map(({ output }) => output));
  }

  until(condition: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const watcher = () => {
        if (!condition()) return;
        this.#watchers = this.#watchers.filter((other) => other !== watcher);
        resolve();
      };
      this.#watchers.push(watcher);
      watcher();
    });
  }
}

class FakeMesh implements MeshConnection {
  readonly handlers = new Map<string, (stream: DatagramStream, peer: Peer) => void>();
  isClosed = false;
  readonly closed: Promise<void>;
  leave: () => void = () => {};
  constructor() {
    this.closed = new Promise((resolve) => {
      this.leave = resolve;
    });
  }
  listen(service: string, handler: (stream: DatagramStream, peer: Peer) => void): void {
    this.handlers.set(service, handler);
  }
  sessions() {
    return [];
  }
  endSession(): boolean {
    return false;
  }
  close(): void {
    this.isClosed = true;
  }
  run(command: string) {
    const { metadata } = encodeOpening({ kind: "exec", command, env: {} });
    return collectSession(this.open("session", "session", metadata));
  }
  open(registered: string, service: string, metadata?: Uint8Array) {
    const [client, agent] = servicePair(service, metadata);
    this.handlers.get(registered)?.(agent, fakePeer());
    return client;
  }
}

describe("agent", () => {
  let directory = "";
  let server: FakeServer;
  let stop: AbortController;
  let meshes: FakeMesh[] = [];
  beforeEach(async () => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), "agent-test-"));
    server = new FakeServer();
    await server.listen();
    stop = new AbortController();
    meshes = [];
  });
  afterEach(() => {
    server.close();
    fs.rmSync(directory, { recursive: true, force: true });
  });

  const script = (text: string, more: Partial<AgentScript> = {}): AgentScript => ({
    id: ID,
    log_source_id: ID,
    display_name: "test",
    script: text,
    log_path: "script.log",
    cron: "",
    run_on_start: true,
    run_on_stop: false,
    start_blocks_login: false,
    timeout_seconds: 0,
    ...more,
  });

  function start(more: Partial<AgentOptions> = {}) {
    const logger = memoryLogger();
    const agent = new Agent({
      url: server.url,
      token: TOKEN,
      logger,
      env: { PATH: process.env["PATH"], HOME: directory, CODER_AGENT_TOKEN: TOKEN },
      dataDir: path.join(directory, "data"),
      logDir: directory,
      connectMesh: async () => {
        const mesh = new FakeMesh();
        meshes.push(mesh);
        return mesh;
      },
      ...more,
    });
    return { logger, done: agent.run(stop.signal) };
  }

  it("starts, serves sessions, stops: every state is reported in order, every script's log arrives", async () => {
    server.manifest.scripts = [
      script("echo starting; echo $CODER_WORKSPACE_NAME"),
      script("echo stopping", { run_on_start: false, run_on_stop: true }),
      script("echo never", { run_on_start: false, cron: "0 0 0 29 2 *" }),
      script("echo broken", { run_on_start: false, cron: "* * *" }),
    ];
    const { done, logger } = start();
    await server.until(() => server.states().includes("ready"));
    const session = meshes[0].run(
      'echo "$CODER $CODER_WORKSPACE_OWNER_NAME $FROM_TEMPLATE <$CODER_AGENT_TOKEN>"; pwd',
    );
    assert.deepEqual(await session.ended, { kind: "exitStatus", status: 0 });
    assert.equal(session.stdout().toString(), `true ada ${directory}/x <>\n${directory}\n`);
    stop.abort();
    await done;
    assert.deepEqual(server.states(), ["created", "starting", "ready", "shutting_down", "off"]);
    assert.deepEqual(
      server.logLines().filter((line) => !line.includes("schedule")),
      ["starting", "dev", "stopping"],
    );
    assert.ok(
      server.logLines().some((line) => line.includes('"* * *" can\'t be read: expected 5 or 6 fields')),
    );
    const startup = server.requests.find(({ name }) => name === "startup")?.body;
    assert.equal(startup?.["expanded_directory"], directory);
    assert.ok(meshes[0].isClosed);
    assert.ok(!JSON.stringify(logger.entries).includes(TOKEN), "the token was logged");
  });

  it("puts nothing on the PATH of sessions that another user could fill", async () => {
    const planted = path.join(directory, "planted");
    fs.mkdirSync(path.join(planted, "bin"), { recursive: true });
    // What somebody else made at the well-known place in the temporary folder, before this agent started.
    fs.symlinkSync(planted, path.join(directory, "data"));
    server.manifest.scripts = [script("echo started")];
    const { done, logger } = start({ cli: ["/bin/echo"] });
    await server.until(() => server.states().includes("ready"));
    const session = meshes[0].run('printf "%s\\n" "$PATH"; command -v coder');
    await session.ended;
    const text = session.stdout().toString();
    const [own] = /[^:\n]*coder-agent-[^:/\n]*(?=\/bin)/.exec(text) ?? [];
    try {
      assert.doesNotMatch(text, /planted|agent-test-[^/]*\/data/);
      assert.ok(own && fs.statSync(own).isDirectory(), text);
      assert.equal(fs.statSync(own).mode & 0o777, 0o700);
      assert.ok(logger.entries.some(({ level, message }) => level === "warn" && /folder/.test(message)));
      assert.deepEqual(fs.readdirSync(path.join(planted, "bin")), []);
    } finally {
      if (own) fs.rmSync(own, { recursive: true, force: true });
      stop.abort();
      await done;
    }
  });

  it("runs a script on its schedule once the start scripts have ended", async () => {
    server.manifest.scripts = [script("echo tick", { run_on_start: false, cron: "@every 1s" })];
    const { done } = start();
    await server.until(() => server.logLines().includes("tick"));
    stop.abort();
    await done;
  });

  it("offers forwards, speed tests and the list of sessions beside sessions", async () => {
    const { done } = start({ cli: ["/bin/echo", "the cli:"] });
    await server.until(() => server.states().includes("ready"));
    const [mesh] = meshes;
    assert.deepEqual([...mesh.handlers.keys()].sort(), [
      "listen",
      "session",
      "sessions",
      "speedtest",
      "tcp:",
      "udp:",
      "unix:",
    ]);
    assert.equal((await readAnswer(mesh.open("tcp:", "tcp:[::1"))).status, 5);
    const listed = mesh.open("sessions", "sessions", Buffer.from('{"v":1,"op":"list"}'));
    assert.deepEqual((await readAnswer(listed)).text, "[]");
    const session = mesh.run("coder version");
    await session.ended;
    assert.equal(session.stdout().toString(), "the cli: version\n");
    stop.abort();
    await done;
  });

  for (const [text, limit, state] of [
    ["exit 1", 0, "start_error"],
    ["sleep 60", 1, "start_timeout"],
  ] as const)
    it(`a start script that does \`${text}\` is reported as ${state}, and sessions work all the same`, async () => {
      server.manifest.scripts = [script(text, { timeout_seconds: limit })];
      const { done } = start();
      await server.until(() => server.states().includes(state));
      assert.deepEqual(await meshes[0].run("exit 3").ended, { kind: "exitStatus", status: 3 });
      stop.abort();
      await done;
      assert.deepEqual(server.states(), ["created", "starting", state, "shutting_down", "off"]);
    });

  it("a failing stop script is reported, and open sessions are hung up on", async () => {
    server.manifest.scripts = [script("exit 1", { run_on_start: false, run_on_stop: true })];
    const { done } = start();
    await server.until(() => server.states().includes("ready"));
    const session = meshes[0].run("echo pid=$$.; exec sleep 300");
    await session.sees(".");
    const pid = Number(/pid=(\d+)/.exec(session.stdout().toString())?.[1]);
    stop.abort();
    await done;
    assert.equal(server.states().at(-1), "shutdown_error");
    const message = "the workspace is stopping";
    assert.deepEqual(await session.ended, { kind: "exitSignal", name: "HUP", coreDumped: false, message });
    assert.throws(() => process.kill(pid, 0));
  });

  it("waits for a token that is not valid yet, and says so once", async () => {
    let refusals = 3;
    server.answer = (name) => (name === "manifest" && refusals-- > 0 ? 401 : 200);
    const { done, logger } = start();
    await server.until(() => server.states().includes("ready"));
    const warnings = logger.entries.filter(({ level }) => level === "warn");
    assert.equal(warnings.length, 1);
    assert.match(JSON.stringify(warnings[0].fields), /does not accept this agent's token/);
    stop.abort();
    await done;
  });

  it("gives up on a token that stays rejected, with the next step", async () => {
    server.answer = () => 401;
    const { done } = start({ tokenPatienceMs: 0 });
    await assert.rejects(done, { code: "ERR_TOKEN_REJECTED", message: /start the workspace/ });
  });

  it("a server that fails, redirects or talks nonsense is tried again", async () => {
    const statuses = [503, 302, 200];
    const manifest = { ...server.manifest };
    Object.assign(server.manifest, { agent_id: "nonsense" });
    server.answer = (name) => (name === "manifest" ? (statuses.shift() ?? 200) : 200);
    const { done, logger } = start();
    await server.until(() => statuses.length === 0);
    server.manifest = manifest;
    await server.until(() => server.states().includes("ready"));
    const reasons = JSON.stringify(logger.entries.filter(({ level }) => level === "warn"));
    for (const part of [/status 503/, /redirects to .*elsewhere/, /another version/])
      assert.match(reasons, part);
    stop.abort();
    await done;
  });

  it("a lifecycle report that fails is repeated before the next one", async () => {
    let failures = 2;
    server.answer = (name) => (name === "lifecycle" && failures-- > 0 ? 500 : 200);
    const { done } = start();
    await server.until(() => server.states().length >= 5);
    stop.abort();
    await done;
    assert.deepEqual(server.states().slice(0, 5), ["created", "created", "created", "starting", "ready"]);
  });

  it("joins the mesh again when that fails or ends, without running scripts again", async () => {
    server.manifest.scripts = [script("echo once")];
    let failures = 1;
    const { done } = start({
      connectMesh: async () => {
        if (failures-- > 0) throw new Error("no relay");
        const mesh = new FakeMesh();
        meshes.push(mesh);
        if (meshes.length === 2) stop.abort();
        return mesh;
      },
    });
    await server.until(() => server.states().includes("ready"));
    while (meshes.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    meshes[0].leave();
    await done;
    assert.equal(meshes.length, 2);
    assert.deepEqual(server.logLines(), ["once"]);
  });

  it("stops at once while the server is away", async () => {
    server.close();
    const { done } = start();
    await new Promise(setImmediate);
    stop.abort();
    await done;
  });
});
