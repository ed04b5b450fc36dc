// Who floods the control plane with what it has every right to say: an agent with its logs and questions, a person with
// requests and with logs followed and never read. Each has a share; the others are served meanwhile.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import path from "node:path";
import { WebSocket } from "ws";
import { Sandbox } from "../e2e/sandbox.ts";
import { Person, TestServer } from "../e2e/server.ts";
import { tokenTemplate } from "../e2e/token-template.ts";
import { needsProc } from "../skip.ts";

const MIB = 1 << 20;
const LOG_BYTES = MIB;
const FOLLOWERS = 100;
/** Of these, who are owed the log. */
const HUNGRY = 25;
const REQUESTS_A_MINUTE = 512;

const script = `resource "coder_script" "flood" {
  agent_id     = coder_agent.main.id
  display_name = "flood"
  script       = "true"
  run_on_start = true
}
`;

interface Answer {
  status: number;
  text: string;
}

describe("floods of the control plane", function () {
  this.timeout(60_000);
  let sandbox: Sandbox;
  let server: TestServer;
  let alice: Person;
  let bob: Person;
  let agentToken: string;
  let agentId: string;
  let sourceId: string;
  const sockets: WebSocket[] = [];

  before(async function () {
    needsProc(this);
    sandbox = new Sandbox();
    server = await TestServer.start(sandbox);
    alice = await Person.first(sandbox, server.url, "alice");
    bob = await alice.invite("bob");
    const tokenFile = path.join(sandbox.dir, "agent-token");
    await alice.mustPush("bare", tokenTemplate(tokenFile, script));
    await alice.must("create", "evil", "--template", "bare", "--yes");
    agentToken = readFileSync(tokenFile, "utf8");
    const manifest = JSON.parse((await ask("GET", "/workspaceagents/me/manifest", agentToken)).text) as {
      agent_id: string;
      scripts: { log_source_id: string }[];
    };
    agentId = manifest.agent_id;
    sourceId = manifest.scripts[0].log_source_id;
  });
  after(async () => {
    for (const socket of sockets) socket.terminate();
    await server?.stop();
    sandbox?.dispose();
  });

  async function ask(method: string, pathname: string, token: string, body?: unknown): Promise<Answer> {
    const answer = await fetch(`${server.url}/api/v2${pathname}`, {
      method,
      headers: { "coder-session-token": token, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    return { status: answer.status, text: await answer.text() };
  }

  const residentBytes = (): number => {
    const status = readFileSync(`/proc/${server.running.child.pid}/status`, "utf8");
    return Number(/^VmRSS:\s*(\d+) kB$/m.exec(status)?.[1]) * 1_024;
  };

  /** Asks, 16 times at once, until it was refused for asking too much, or `most` times. @returns how many got which status */
  async function hammer(most: number, request: () => Promise<Answer>): Promise<Record<number, number>> {
    const by: Record<number, number> = {};
    let left = most;
    await Promise.all(
      Array.from({ length: 16 }, async () => {
        while (left-- > 0 && !by[429]) {
          const { status } = await request();
          by[status] = (by[status] ?? 0) + 1;
        }
      }),
    );
    return by;
  }

  it("an agent's log ends at 1 MiB: what comes after is refused, and the rest can be read", async () => {
    const line = { created_at: new Date().toISOString(), level: "info", output: "x".repeat(60_000) };
    const batch = { log_source_id: sourceId, logs: Array.from({ length: 10 }, () => line) };
    const statuses: number[] = [];
    for (let i = 0; i < 4; i++)
      statuses.push((await ask("PATCH", "/workspaceagents/me/logs", agentToken, batch)).status);
    assert.deepEqual(statuses, [204, 413, 413, 413]);
    const tooLong = { log_source_id: sourceId, logs: Array.from({ length: 20 }, () => line) };
    assert.equal((await ask("PATCH", "/workspaceagents/me/logs", agentToken, tooLong)).status, 413);
    const { body, status } = await alice.api("GET", `/workspaceagents/${agentId}/logs`);
    assert.equal(status, 200);
    const kept = (JSON.parse(body) as { output: string }[]).reduce(
      (sum, { output }) => sum + output.length,
      0,
    );
    assert.ok(kept <= LOG_BYTES && kept > LOG_BYTES / 2, `${kept} bytes kept`);
  });

  it("followers of that log who never read cost its 1 MiB each, and no user has more than 100", async () => {
    const url = `${server.url.replace("http", "ws")}/api/v2/workspaceagents/${agentId}/logs?follow=true`;
    const follow = (after = ""): WebSocket => {
      const socket = new WebSocket(`${url}${after}`, { headers: { "coder-session-token": alice.token } });
      socket.on("error", () => undefined);
      sockets.push(socket);
      return socket;
    };
    const before = residentBytes();
    for (let i = 0; i < HUNGRY; i++) {
      const socket = follow();
      await once(socket, "open");
      socket.pause();
    }
    // The rest at once, and some too many.
    const others = Array.from({ length: FOLLOWERS - HUNGRY + 20 }, () => follow("&after=1000000000"));
    const outcomes = await Promise.all(
      others.map((socket) =>
        Promise.race([
          once(socket, "open").then(() => 101),
          once(socket, "unexpected-response").then(([, { statusCode }]) => statusCode as number),
        ]),
      ),
    );
    assert.equal(outcomes.filter((status) => status === 101).length, FOLLOWERS - HUNGRY);
    assert.equal(outcomes.filter((status) => status === 429).length, 20);
    assert.equal((await bob.api("GET", "/users/me")).status, 200);
    const grown = residentBytes() - before;
    assert.ok(grown < 192 * MIB, `the server grew by ${(grown / MIB).toFixed(0)} MiB`);
    for (const socket of sockets.splice(0)) socket.terminate();
  });

  it("an agent's requests beyond 512 a minute are refused, and its owner and others are answered", async () => {
    const flood = hammer(4 * REQUESTS_A_MINUTE, () => ask("GET", "/workspaceagents/me/manifest", agentToken));
    const others = await Promise.all([
      hammer(20, () => ask("GET", "/workspaces", alice.token)),
      hammer(20, () => ask("GET", "/workspaces", bob.token)),
    ]);
    const by = await flood;
    assert.deepEqual(Object.keys(by), ["200", "429"], JSON.stringify(by));
    assert.deepEqual(others, [{ 200: 20 }, { 200: 20 }]);
  });
});
