import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { type Duplex, PassThrough, Writable } from "node:stream";
import { currentAccount } from "../../agent/sessions/environment.ts";
import { PipePool } from "../../agent/sessions/pipes.ts";
import { SessionService } from "../../agent/sessions/serve.ts";
import { duplexPair, memoryLogger } from "../../agent/testing.ts";
import {
  ChannelDecoder,
  type ChannelMessage,
  encodeMessage,
  type WindowSize,
} from "../../mesh/wire/channel.ts";
import { forwardedEnvironment, ptyRequest, sessionHeader } from "./header.ts";
import { runInteractive } from "./interactive.ts";
import { runSession } from "./run.ts";

class Sink extends Writable {
  readonly chunks: Buffer[] = [];
  columns = 100;
  rows = 30;
  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    this.chunks.push(chunk);
    this.emit("seen");
    setImmediate(() => done()); // a little slow, so that back-pressure has work
  }
  bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
  override toString(): string {
    return this.bytes().toString();
  }
  sees(text: string): Promise<void> {
    return new Promise((resolve) => {
      const look = () => {
        if (!this.toString().includes(text)) return;
        this.removeListener("seen", look);
        resolve();
      };
      this.on("seen", look);
      look();
    });
  }
}

class TerminalInput extends PassThrough {
  isTTY = true;
  isRaw = false;
  readonly rawModes: boolean[] = [];
  setRawMode(raw: boolean): this {
    this.isRaw = raw;
    this.rawModes.push(raw);
    return this;
  }
}

function local() {
  return { stdin: new TerminalInput(), stdout: new Sink(), stderr: new Sink(), env: { LANG: "C.UTF-8" } };
}

describe("runSession against a scripted agent", () => {
  function start(isTerminal = false, abort?: AbortSignal, size?: WindowSize) {
    const io = local();
    const [client, agent] = duplexPair();
    agent.on("error", () => {});
    const result = runSession(client, { ...io, isTerminal, abort, size });
    const send = (message: ChannelMessage) => agent.write(encodeMessage(message));
    return { ...io, client, agent, result, send };
  }

  it("passes the exit code through once all output was written", async () => {
    const { send, agent, result, stdout } = start();
    send({ kind: "openOk" });
    for (let i = 0; i < 50; i++) send({ kind: "data", bytes: Buffer.alloc(60_000, 65 + (i % 26)) });
    agent.end(encodeMessage({ kind: "exitStatus", status: 42 }));
    assert.deepEqual(await result, { exitCode: 42 });
    assert.equal(stdout.bytes().length, 50 * 60_000);
  });

  it("reports a signal as shells do", async () => {
    const { agent, result } = start();
    agent.end(encodeMessage({ kind: "exitSignal", name: "TERM", coreDumped: false, message: "" }));
    assert.deepEqual(await result, { exitCode: 143, signal: "TERM" });
  });

  it("an agent that stops says so, and it is no result of the command", async () => {
    const { agent, result, stderr } = start();
    agent.end(
      encodeMessage({
        kind: "exitSignal",
        name: "HUP",
        coreDumped: false,
        message: "the workspace is stopping",
      }),
    );
    assert.deepEqual(await result, { exitCode: 255 });
    assert.match(
      stderr.toString(),
      /cut off: the workspace ended it \(the workspace is stopping\)\n.*coder start/,
    );
  });

  const cuts: [string, (agent: Duplex) => void, RegExp][] = [
    ["reset", (agent) => agent.destroy(), /cut off: reset by the peer/],
    ["ended without a result", (agent) => agent.end(), /without a result/],
    ["ended inside a message", (agent) => agent.end(Buffer.from("0105", "hex")), /without a result/],
    ["garbage", (agent) => agent.write(Buffer.from("11ffffffffffffffff", "hex")), /cut off/],
    [
      "a message of the wrong side",
      (agent) => agent.write(Buffer.from("1103494e54", "hex")),
      /must not send/,
    ],
  ];
  for (const [name, cut, message] of cuts)
    it(`a stream ${name} is exit code 255 with a message, and the terminal is as it was`, async () => {
      const { agent, result, stderr, stdin } = start(true);
      cut(agent);
      assert.equal((await result).exitCode, 255);
      assert.match(stderr.toString(), message);
      assert.deepEqual(stdin.rawModes, [true, false]);
    });

  it("a refusal's text is shown without its control sequences", async () => {
    const { agent, result, stderr } = start();
    agent.end(encodeMessage({ kind: "openFailed", reason: 4, message: "\x1b]0;x\x07full" }));
    assert.equal((await result).exitCode, 255);
    assert.equal(stderr.toString(), "error: the workspace refused the session:  ]0;x full\n");
  });

  it("an abort ends the session and restores the terminal", async () => {
    const abort = new AbortController();
    const { agent, result, stdin } = start(true, abort.signal);
    abort.abort();
    assert.deepEqual(await result, { exitCode: 130, cutShort: true });
    assert.equal(stdin.isRaw, false);
    assert.ok(agent.destroyed);
  });

  it("a closed stdout ends the session quietly", async () => {
    const { result, stdout, stderr, send } = start();
    stdout._write = (_chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void) =>
      done(Object.assign(new Error("EPIPE"), { code: "EPIPE" }));
    send({ kind: "data", bytes: Buffer.from("x") });
    assert.deepEqual(await result, { exitCode: 141, cutShort: true });
    assert.equal(stderr.toString(), "");
  });

  it("output that can't be written is told, also when the result came right behind it", async () => {
    const { agent, result, stdout, stderr } = start();
    stdout._write = (_chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void) =>
      done(new Error("ENOSPC: no space left on device"));
    const data = encodeMessage({ kind: "data", bytes: Buffer.from("x") });
    agent.end(Buffer.concat([data, encodeMessage({ kind: "exitStatus", status: 0 })]));
    assert.deepEqual(await result, { exitCode: 255, cutShort: true });
    assert.equal(
      stderr.toString(),
      "error: the output could not be written: ENOSPC: no space left on device\n",
    );
  });

  it("~. leaves and restores the terminal, though the agent is silent and nobody takes our output", async () => {
    const { agent, result, stdin, stdout, stderr, send } = start(true);
    stdout._write = () => {}; // never done
    send({ kind: "data", bytes: Buffer.from("x") });
    stdin.write("ls\r~.");
    assert.deepEqual(await result, { exitCode: 255, left: true });
    assert.match(stderr.toString(), /Session closed/);
    assert.deepEqual(stdin.rawModes, [true, false]);
    assert.ok(agent.destroyed);
  });

  it("after a stop and SIGCONT the terminal is raw again", async () => {
    const { agent, result, stdin } = start(true);
    const listeners = process.listenerCount("SIGCONT");
    process.emit("SIGCONT", "SIGCONT");
    assert.deepEqual(stdin.rawModes, [true, false, true]);
    agent.end(encodeMessage({ kind: "exitStatus", status: 0 }));
    await result;
    assert.equal(stdin.isRaw, false);
    assert.equal(process.listenerCount("SIGCONT"), listeners - 1);
  });

  it("a terminal resized while the session was opened is measured again", async () => {
    const { agent, result } = start(true, undefined, { cols: 80, rows: 24, widthPx: 0, heightPx: 0 });
    const decoder = new ChannelDecoder();
    const [first] = await once(agent, "data");
    assert.deepEqual(decoder.push(first), [
      { kind: "windowChange", cols: 100, rows: 30, widthPx: 0, heightPx: 0 },
    ]);
    agent.end(encodeMessage({ kind: "exitStatus", status: 0 }));
    await result;
  });

  it("leaves no listener behind that could act later, and lets stdin go", async () => {
    const { agent, result, stdin, stdout } = start(true);
    const exitListeners = process.listenerCount("exit");
    agent.end(encodeMessage({ kind: "exitStatus", status: 0 }));
    await result;
    assert.deepEqual([stdin.listenerCount("data"), stdout.listenerCount("resize")], [0, 0]);
    assert.ok(stdin.isPaused());
    assert.equal(process.listenerCount("exit"), exitListeners - 1);
  });

  it("sends input and its end", async () => {
    const { agent, stdin, result } = start();
    const decoder = new ChannelDecoder();
    const got: ChannelMessage[] = [];
    agent.on("data", (chunk) => got.push(...decoder.push(chunk)));
    stdin.end("keys");
    while (got.length < 2) await new Promise(setImmediate);
    agent.end(encodeMessage({ kind: "exitStatus", status: 0 }));
    await result;
    assert.deepEqual(got, [{ kind: "data", bytes: Buffer.from("keys") }, { kind: "eof" }]);
  });

  it("tells a terminal's new size", async () => {
    const { agent, stdout, result } = start(true);
    const decoder = new ChannelDecoder();
    const got: ChannelMessage[] = [];
    agent.on("data", (chunk) => got.push(...decoder.push(chunk)));
    stdout.emit("resize");
    while (got.length < 1) await new Promise(setImmediate);
    agent.end(encodeMessage({ kind: "exitStatus", status: 0 }));
    await result;
    assert.deepEqual(got, [{ kind: "windowChange", cols: 100, rows: 30, widthPx: 0, heightPx: 0 }]);
  });

  it("a terminal that is gone hangs up, and is no end of input", async () => {
    const { agent, stdin, result } = start(true);
    const got: Uint8Array[] = [];
    agent.on("data", (chunk) => got.push(chunk));
    stdin.end();
    assert.deepEqual(await result, { exitCode: 129, left: true });
    assert.ok(agent.destroyed);
    assert.deepEqual(got, []);
  });

  it("~? helps, ~I tells the path, ~B sends a break, and the session goes on", async () => {
    const io = local();
    const [client, agent] = duplexPair();
    const decoder = new ChannelDecoder();
    const got: ChannelMessage[] = [];
    agent.on("data", (chunk) => got.push(...decoder.push(chunk)));
    const result = runSession(client, { ...io, isTerminal: true, describe: async () => "via relay x" });
    io.stdin.write("~?~I~Bls");
    await io.stderr.sees("[coder] via relay x\r\n");
    assert.match(io.stderr.toString(), /~\. +- end the session/);
    while (got.length < 2) await new Promise(setImmediate);
    agent.end(encodeMessage({ kind: "exitStatus", status: 3 }));
    assert.deepEqual(await result, { exitCode: 3 });
    assert.deepEqual(got, [
      { kind: "break", lengthMs: 0 },
      { kind: "data", bytes: Buffer.from("ls") },
    ]);
  });
});

describe("a session from end to end", () => {
  const pipes = new PipePool();
  let home: string;
  let service: SessionService;
  before(() => {
    home = fs.mkdtempSync(path.join(os.tmpdir(), "client-session-test-"));
    service = new SessionService({
      account: { ...currentAccount(), shell: "/bin/bash", homeDir: home },
      environment: { PATH: process.env["PATH"] ?? "", HOME: home },
      directory: () => home,
      pipes,
      logger: memoryLogger(),
      killAfterMs: 150,
    });
  });
  after(async () => {
    await service.close();
    pipes.close();
    fs.rmSync(home, { recursive: true, force: true });
  });
  const connection = {
    streams: [] as Duplex[],
    async dial(name: string, metadata: Uint8Array): Promise<Duplex> {
      assert.equal(name, "session");
      const [client, agent] = duplexPair();
      this.streams.push(agent);
      void service.handle(agent, metadata);
      return client;
    },
  };

  it("a command: output apart, input ended, exit code passed through", async () => {
    const io = local();
    io.stdin.isTTY = false;
    const done = runInteractive(connection, { command: "cat; echo $LANG >&2; exit 7", io });
    io.stdin.end("input");
    assert.equal(await done, 7);
    assert.deepEqual([io.stdout.toString(), io.stderr.toString()], ["input", "C.UTF-8\n"]);
  });

  it("10 MB each way with equal checksum", async () => {
    const io = local();
    const data = randomBytes(10 << 20);
    const done = runInteractive(connection, { command: "cat", io });
    io.stdin.end(data);
    assert.equal(await done, 0);
    const sum = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
    assert.equal(sum(io.stdout.bytes()), sum(data));
  });

  it("a command of 100 kB arrives whole", async () => {
    const io = local();
    io.stdin.end();
    assert.equal(await runInteractive(connection, { command: `printf %s ${"y".repeat(100_000)}`, io }), 0);
    assert.equal(io.stdout.bytes().length, 100_000);
  });

  it("a shell on a terminal: raw mode, size, resize, Ctrl-C, exit code", async () => {
    const io = local();
    const done = runInteractive(connection, { io });
    io.stdin.write("PS1='<\\#> '; stty size\n");
    await io.stdout.sees("30 100\r\n");
    await io.stdout.sees("<2> "); // the prompt shows its command number
    io.stdout.columns = 70;
    io.stdout.emit("resize");
    io.stdin.write("stty size; sh -c 'echo sleep\"\"ing; exec sleep 300'\n");
    await io.stdout.sees("30 70\r\n");
    await io.stdout.sees("sleeping");
    io.stdin.write("\x03");
    await io.stdout.sees("<3> ");
    io.stdin.write("exit 9\n");
    assert.equal(await done, 9);
    assert.deepEqual(io.stdin.rawModes, [true, false]);
  });

  it("an agent that goes away in the middle is exit code 255 with the next step", async () => {
    const io = local();
    const done = runInteractive(connection, { io, command: "echo up; exec sleep 300" });
    await io.stdout.sees("up");
    connection.streams.at(-1)!.destroy();
    assert.equal(await done, 255);
    assert.match(io.stderr.toString(), /cut off.*\n.*coder show/);
  });

  it("a command that can't be sent is explained before anything is opened", async () => {
    const opened = connection.streams.length;
    const tooLong = { io: local(), command: "x".repeat(200_000) };
    await assert.rejects(runInteractive(connection, tooLong), { code: "ERR_BAD_COMMAND" });
    const tooMuch = { io: local(), command: "env", env: { A: "x".repeat(20_000) } };
    await assert.rejects(runInteractive(connection, tooMuch), { code: "ERR_BAD_COMMAND" });
    assert.equal(connection.streams.length, opened);
  });
});

describe("what a session asks for", () => {
  it("locale and colour follow the user, secrets do not", () => {
    const env = {
      LANG: "C",
      LC_ALL: "C",
      COLORTERM: "truecolor",
      AWS_SECRET: "no",
      CODER_SESSION_TOKEN: "no",
    };
    assert.deepEqual(forwardedEnvironment(env), { LANG: "C", LC_ALL: "C", COLORTERM: "truecolor" });
  });

  it("an unusable TERM is replaced", () => {
    const size = { cols: 1, rows: 1, widthPx: 0, heightPx: 0 };
    for (const [term, expected] of [
      ["vt100", "vt100"],
      [undefined, "xterm-256color"],
      ["", "xterm-256color"],
      ["a b", "xterm-256color"],
    ])
      assert.equal(ptyRequest(size, term).term, expected);
  });

  it("an empty command is a command", () =>
    assert.deepEqual(sessionHeader({ command: "" }), { kind: "exec", command: "", env: {} }));

  it("the client's side names no Linux-only file", () => {
    for (const name of ["run.ts", "terminal.ts", "header.ts", "interactive.ts"])
      assert.doesNotMatch(fs.readFileSync(new URL(name, import.meta.url), "utf8"), /\/proc|\/dev|SIGWINCH/);
  });
});
