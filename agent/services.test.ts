import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { encodeOpening } from "../mesh/wire/channel.ts";
import {
  ANSWER,
  encodeMetadata,
  MAX_ANSWER_BYTES,
  type SessionSummary,
  type SessionsMetadata,
  type SpeedtestMetadata,
} from "../mesh/wire/forward.ts";
import { installCli, ownCli } from "./cli.ts";
import { encodeList, type LiveSession, serveSessionList, summarize } from "./session-list.ts";
import { MAX_SPEEDTESTS, SpeedtestService } from "./speedtest.ts";
import { fakePeer, memoryLogger, readAnswer, servicePair } from "./testing.ts";

const ADA = "0d3b5d0e-2222-4222-8222-000000000001";

describe("speed test", () => {
  function start(service: SpeedtestService, metadata: Omit<SpeedtestMetadata, "v">) {
    const [client, agent] = servicePair("speedtest", encodeMetadata({ v: 1, ...metadata }));
    client.on("error", () => {});
    return { client, served: service.handle(agent) };
  }

  it("down: bytes come until the time is over, then the end", async () => {
    const { client, served } = start(new SpeedtestService(), { direction: "down", durationMs: 100 });
    const startedAt = performance.now();
    assert.equal((await readAnswer(client)).status, ANSWER.ok);
    let bytes = 0;
    client.on("data", (chunk: Uint8Array) => {
      bytes += chunk.length;
    });
    client.resume();
    await new Promise((resolve) => client.once("end", resolve));
    client.end();
    await served;
    assert.ok(bytes > 1 << 20, `${bytes} bytes`);
    assert.ok(performance.now() - startedAt >= 95);
  });

  it("down: a client that reads nothing does not keep it past its time", async () => {
    const { client, served } = start(new SpeedtestService(), { direction: "down", durationMs: 100 });
    await readAnswer(client);
    await new Promise((resolve) => setTimeout(resolve, 150));
    client.resume();
    client.once("end", () => client.end());
    await served;
  });

  it("up: the agent counts what came, and says so in a second answer", async () => {
    const { client, served } = start(new SpeedtestService(), { direction: "up", durationMs: 1_000 });
    assert.equal((await readAnswer(client)).status, ANSWER.ok);
    client.end(Buffer.alloc(3_000_000));
    const { text } = await readAnswer(client);
    const result = JSON.parse(text) as { bytes: number; durationMs: number };
    assert.equal(result.bytes, 3_000_000);
    assert.ok(result.durationMs >= 0);
    client.resume();
    await served;
  });

  it("few run at once, and a bad request is answered", async () => {
    const service = new SpeedtestService();
    const running = Array.from({ length: MAX_SPEEDTESTS }, () =>
      start(service, { direction: "up", durationMs: 100 }),
    );
    for (const [metadata, status] of [
      [{ direction: "up", durationMs: 100 }, ANSWER.resourceShortage],
      [{ direction: "up", durationMs: 1 }, ANSWER.badRequest],
    ] as const) {
      const { client, served } = start(service, metadata);
      assert.equal((await readAnswer(client)).status, status);
      client.resume();
      client.end();
      await served;
    }
    for (const { client } of running) client.destroy();
    await Promise.all(running.map(({ served }) => served));
    const { client, served } = start(service, { direction: "up", durationMs: 100 });
    assert.equal((await readAnswer(client)).status, ANSWER.ok);
    client.destroy();
    await served;
  });
});

describe("list of sessions", () => {
  const session = (id: string, userId: string | undefined, more: Partial<LiveSession> = {}): LiveSession => ({
    id,
    peerKey: `key of ${id}`,
    grant: userId === undefined ? undefined : { userId },
    startedAtMs: 1_000,
    lastHeardAtMs: 2_000,
    resumeWindowMs: 300_000,
    path: { kind: "relay", region: 1 },
    rttMs: 12,
    streams: [],
    ...more,
  });

  async function ask(
    metadata:
      | Omit<Extract<SessionsMetadata, { op: "list" }>, "v">
      | Omit<Extract<SessionsMetadata, { op: "close" }>, "v">,
    live: LiveSession[],
  ) {
    const ended: string[] = [];
    const [client, agent] = servicePair("sessions", encodeMetadata({ v: 1, ...metadata }));
    const directory = { sessions: () => live, endSession: (id: string) => ended.push(id) > 0 };
    const served = serveSessionList(
      agent,
      { ...fakePeer(ADA), nodeKey: "key of mine" },
      directory,
      memoryLogger(),
    );
    const answer = await readAnswer(client);
    assert.deepEqual(ended, [], "ended before the answer");
    client.resume();
    client.end();
    await served;
    return { answer, ended };
  }

  it("shows the sessions of who asks, newest first, and what runs in them; nobody else's", async () => {
    const { metadata } = encodeOpening({ kind: "exec", command: "make -j8", env: {} });
    const streams = [
      { service: "session", metadata, openedAtMs: 5 },
      { service: "session", metadata: Buffer.from("garbage"), openedAtMs: 6 },
      { service: "tcp:localhost:80", metadata: new Uint8Array(), openedAtMs: 7 },
    ];
    const live = [
      session("mine", ADA, { streams }),
      session("newer", ADA, { startedAtMs: 9_000, rttMs: undefined }),
      session("bob's", "0d3b5d0e-2222-4222-8222-000000000002"),
      session("nobody's", undefined),
    ];
    const { answer } = await ask({ op: "list" }, live);
    const list = JSON.parse(answer.text) as SessionSummary[];
    assert.deepEqual(
      list.map(({ id, isCurrent }) => [id, isCurrent]),
      [
        ["newer", false],
        ["mine", true],
      ],
    );
    assert.equal(list[1].path, "relay 1");
    assert.deepEqual(
      list[1].streams.map(({ what }) => what),
      ["make -j8", "", ""],
    );
  });

  it("ends one of theirs, after the answer; another's is as unknown as one that isn't there", async () => {
    const live = [session("mine", ADA), session("bob's", "0d3b5d0e-2222-4222-8222-000000000002")];
    const done = await ask({ op: "close", id: "mine" }, live);
    assert.deepEqual([done.answer.status, done.ended], [ANSWER.ok, ["mine"]]);
    const texts = [];
    for (const id of ["bob's", "none"]) {
      const { answer, ended } = await ask({ op: "close", id }, live);
      assert.deepEqual([answer.status, ended], [ANSWER.connectFailed, []]);
      texts.push(answer.text);
    }
    assert.equal(texts[0], texts[1]);
  });

  it("a list too long for an answer keeps the newest", () => {
    const metadata = encodeOpening({ kind: "exec", command: "é".repeat(500), env: {} }).metadata;
    const streams = Array.from({ length: 100 }, () => ({ service: "session", metadata, openedAtMs: 0 }));
    const all = Array.from({ length: 20 }, (_, i) =>
      summarize(session(String(i), ADA, { startedAtMs: i, streams }), ""),
    );
    const text = encodeList(all);
    assert.ok(Buffer.byteLength(text) <= MAX_ANSWER_BYTES);
    const kept = (JSON.parse(text) as SessionSummary[]).map(({ id }) => id);
    assert.ok(kept.length > 0 && kept.length < 20);
    assert.equal(kept[0], "19");
  });
});

describe("coder on the PATH", () => {
  it("is this program when this is coder, quoted for the shell", () => {
    assert.deepEqual(ownCli(["/usr/bin/node", "/opt/x/coder.js"]), ["/usr/bin/node", "/opt/x/coder.js"]);
    assert.equal(ownCli(["/usr/bin/node", "/opt/mocha.js"]), undefined);
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), "cli-"));
    try {
      for (let times = 0; times < 2; times++)
        installCli(path.join(dir, "data"), ["/bin/echo", "it's $HOME"], memoryLogger());
      const file = path.join(dir, "data", "bin", "coder");
      assert.equal(fs.readFileSync(file, "utf8"), `#!/bin/sh\nexec '/bin/echo' 'it'\\''s $HOME' "$@"\n`);
      assert.equal(fs.statSync(file).mode & 0o777, 0o755);
      assert.deepEqual(fs.readdirSync(path.dirname(file)), ["coder"]);
    } finally {
      fs.rmSync(dir, { recursive: true, force: true });
    }
  });
});
