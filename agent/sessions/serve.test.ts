import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import {
  dataPrefix,
  encodeMessage,
  encodeOpening,
  OPEN_FAILED_REASONS,
  type PtyRequest,
  type SessionHeader,
} from "../../mesh/wire/channel.ts";
import { type CollectedSession, collectSession, duplexPair, memoryLogger } from "../testing.ts";
import { currentAccount } from "./environment.ts";
import { PipePool } from "./pipes.ts";
import { openTerminalCount } from "./sealed.ts";
import { type SessionDeps, SessionService, serveSession } from "./serve.ts";

const BASH = "/bin/bash";
const PTY: PtyRequest = { term: "xterm-256color", cols: 80, rows: 24, widthPx: 0, heightPx: 0 };
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** A process is gone when it is no more or a zombie that only waits to be reaped. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s*Z/m.test(fs.readFileSync(`/proc/${pid}/status`, "latin1"));
  } catch {
    return false;
  }
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`waited in vain for: ${what}`);
}

describe("session service", () => {
  const pipes = new PipePool();
  const logger = memoryLogger();
  let deps: SessionDeps;
  before(() => {
    // Shells and editors write their histories there.
    const home = fs.mkdtempSync(path.join(os.tmpdir(), "sessions-test-"));
    deps = {
      account: { ...currentAccount(), shell: BASH, homeDir: home },
      environment: { PATH: process.env["PATH"] ?? "", HOME: home, BASE: "from the agent", LANG: "C.UTF-8" },
      directory: () => home,
      pipes,
      logger,
      killAfterMs: 150,
    };
  });
  after(() => {
    pipes.close();
    fs.rmSync(deps.account.homeDir, { recursive: true, force: true });
  });

  function open(header: SessionHeader): CollectedSession & { served: Promise<void> } {
    const [client, agent] = duplexPair();
    const served = serveSession(agent, header, deps);
    return Object.assign(collectSession(client), { served });
  }
  const exec = (command: string, env = {}) => open({ kind: "exec", command, env });
  const terminal = (command: string) => open({ kind: "exec", command, env: {}, pty: PTY });

  async function run(session: CollectedSession & { served: Promise<void> }) {
    const last = await session.ended;
    await session.served;
    return { last, stdout: session.stdout().toString(), stderr: session.stderr().toString() };
  }

  describe("without a terminal", () => {
    it("keeps stdout and stderr apart and reports the exit status", async () => {
      const { last, stdout, stderr } = await run(exec("echo out; echo err >&2; exit 7"));
      assert.deepEqual(last, { kind: "exitStatus", status: 7 });
      assert.deepEqual([stdout, stderr], ["out\n", "err\n"]);
    });

    for (const name of ["KILL", "TERM", "SEGV"])
      it(`reports death by SIG${name} as a signal, not as a status`, async () => {
        const { last } = await run(exec(`ulimit -c 0; kill -${name} $$`));
        assert.deepEqual(last, { kind: "exitSignal", name, coreDumped: false, message: "" });
      });

    it("answers OPEN_OK first", async () => {
      const session = exec("echo x");
      await session.ended;
      assert.deepEqual(session.messages, [{ kind: "openOk" }, { kind: "exitStatus", status: 0 }]);
    });

    it("hands the command to the login shell, unparsed", async () => {
      const { stdout } = await run(exec(`printf '%s|' "a  b" '$HOME' $((6*7)); echo "$0"`));
      assert.equal(stdout, `a  b|$HOME|42|${BASH}\n`);
    });

    it("gives the process the base environment and what the client asked for", async () => {
      const { stdout } = await run(exec('echo "$BASE/$LC_X/$SSH_CONNECTION/$TERM"', { LC_X: "é" }));
      assert.match(stdout, /^from the agent\/é\/127\.0\.0\.1 .*\/(dumb)?\n$/);
    });

    it("stdout, stderr and stdin can be opened by name", async function () {
      if (process.platform !== "linux") {
        console.log("skipped: only Linux refuses to open a socket by name");
        this.skip();
      }
      const session = exec("echo a >/dev/stdout; echo b >/dev/stderr; cat /dev/stdin");
      session.send({ kind: "data", bytes: Buffer.from("c") }, { kind: "eof" });
      const { stdout, stderr } = await run(session);
      assert.deepEqual([stdout, stderr], ["a\nc", "b\n"]);
    });

    it("carries 10 MB of random bytes through the process and back", async () => {
      const data = randomBytes(10 << 20);
      const session = exec("cat; echo done >&2");
      const { client } = session;
      for (let at = 0; at < data.length; at += 65_536) {
        const piece = data.subarray(at, at + 65_536);
        client.write(dataPrefix("data", piece.length));
        if (!client.write(piece)) await new Promise((resolve) => client.once("drain", resolve));
      }
      session.send({ kind: "eof" });
      await session.ended;
      assert.equal(sha256(session.stdout()), sha256(data));
      assert.equal(session.stderr().toString(), "done\n");
    });

    it("a client that ends its side without EOF ends the input too", async () => {
      const session = exec("cat; exit 3");
      session.client.end(encodeMessage({ kind: "data", bytes: Buffer.from("x") }));
      const { last, stdout } = await run(session);
      assert.deepEqual([last, stdout], [{ kind: "exitStatus", status: 3 }, "x"]);
    });

    it("input for a process that reads none is dropped, not waited for", async () => {
      const session = exec("exec 0<&-; echo closed; read x <&3; exit 4", {});
      await session.sees("closed");
      for (let i = 0; i < 40; i++) session.send({ kind: "data", bytes: new Uint8Array(65_536) });
      const { last } = await run(session);
      assert.deepEqual(last, { kind: "exitStatus", status: 4 });
    });

    it("a process that reads nothing holds the client up instead of filling memory", async () => {
      const session = exec("echo up; exec sleep 60");
      await session.sees("up");
      const { client } = session;
      let sent = 0;
      while (sent < 64 << 20 && client.write(encodeMessage({ kind: "data", bytes: new Uint8Array(65_536) })))
        sent += 65_536;
      for (let i = 0; i < 200 && client.writableLength < 65_536; i++) {
        client.write(encodeMessage({ kind: "data", bytes: new Uint8Array(65_536) }));
        sent += 65_536;
        await new Promise(setImmediate);
      }
      assert.ok(sent < 2 << 20, `${sent} bytes were taken`);
      client.destroy();
      await session.served;
    });

    it("a client that reads nothing holds the process up", async () => {
      const [client, agent] = duplexPair();
      const served = serveSession(agent, { kind: "exec", command: "yes", env: {} }, deps);
      await until(() => client.readableLength > 0 && agent.writableNeedDrain, "back-pressure");
      const held = agent.writableLength + client.readableLength;
      await new Promise((resolve) => setTimeout(resolve, 50));
      assert.equal(agent.writableLength + client.readableLength, held);
      assert.ok(held < 1 << 20, `${held} bytes held`);
      client.destroy();
      await served;
    });

    it("forwards signals to the whole group", async () => {
      const session = exec("trap 'echo caught; exit 5' USR1; echo up; while :; do sleep 0.02; done");
      await session.sees("up");
      session.send(
        { kind: "signal", name: "NOSUCH" },
        { kind: "break", lengthMs: 1 },
        { kind: "signal", name: "USR1" },
      );
      const { last, stdout } = await run(session);
      assert.deepEqual([last, stdout], [{ kind: "exitStatus", status: 5 }, "up\ncaught\n"]);
    });

    it("output of what the command left behind still comes, as with sshd", async () => {
      const { stdout, last } = await run(exec("(sleep 0.1; echo late) & echo early; exit 2"));
      assert.deepEqual([stdout, last], ["early\nlate\n", { kind: "exitStatus", status: 2 }]);
    });

    it("takes a command too long for the header as the first message", async () => {
      const word = "x".repeat(100_000);
      const { first } = encodeOpening({ kind: "exec", command: `echo ${word} | wc -c`, env: {} });
      const session = open({ kind: "exec", env: {} });
      session.client.write(Buffer.concat([first, encodeMessage({ kind: "eof" })]));
      assert.equal((await run(session)).stdout.trim(), "100001");
    });

    it("a shell without a terminal reads its commands from stdin", async () => {
      const session = open({ kind: "shell", env: {} });
      session.send({ kind: "data", bytes: Buffer.from("shopt -q login_shell && echo login\nexit 9\n") });
      const { last, stdout } = await run(session);
      assert.deepEqual(last, { kind: "exitStatus", status: 9 });
      assert.match(stdout, /login\n$/);
    });
  });

  describe("with a terminal", () => {
    it("is one, with the client's TERM and size", async () => {
      const { stdout, last } = await run(terminal("tty -s && echo $TERM; stty size; exit 6"));
      assert.equal(stdout, "xterm-256color\r\n24 80\r\n");
      assert.deepEqual(last, { kind: "exitStatus", status: 6 });
    });

    it("carries every byte value, text or not, both ways", async () => {
      const session = terminal("stty raw -echo; echo up; head -c 4096");
      await session.sees("up");
      const bytes = Buffer.from(Array.from({ length: 4_096 }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
      session.send({ kind: "data", bytes });
      await run(session);
      assert.deepEqual(session.stdout().subarray("up\n".length), bytes);
    });

    it("line editing erases a character, not a byte", async () => {
      const session = terminal("stty -echo; echo up; head -n1 | od -An -tx1");
      await session.sees("up");
      session.send({ kind: "data", bytes: Buffer.from("aä日\x7f\x7fb\r") });
      assert.match((await run(session)).stdout, /^up\r\n 61 62 0a\r\n$/);
    });

    it("a resize reaches the program", async () => {
      const session = terminal("trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.02; done");
      await session.sees("up");
      session.send({ kind: "windowChange", cols: 132, rows: 43, widthPx: 0, heightPx: 0 });
      assert.match((await run(session)).stdout, /43 132\r\n$/);
    });

    it("Ctrl-C interrupts the program in the foreground", async () => {
      const session = terminal("trap 'echo int; exit 3' INT; echo up; while :; do sleep 0.02; done");
      await session.sees("up");
      session.send({ kind: "data", bytes: Uint8Array.of(3) });
      const { last, stdout } = await run(session);
      assert.match(stdout, /int\r\n$/);
      assert.deepEqual(last, { kind: "exitStatus", status: 3 });
    });

    it("death by a signal is reported as one", async () => {
      const { last } = await run(terminal("kill -KILL $$"));
      assert.deepEqual(last, { kind: "exitSignal", name: "KILL", coreDumped: false, message: "" });
    });

    it("carries 10 MB intact", async () => {
      const { stdout, last } = await run(terminal("stty raw; seq 1 2000000 | head -c 10485760; exit 8"));
      let expected = "";
      for (let i = 1; expected.length < 10 << 20; i++) expected += `${i}\n`;
      assert.equal(sha256(Buffer.from(stdout)), sha256(Buffer.from(expected.slice(0, 10 << 20))));
      assert.deepEqual(last, { kind: "exitStatus", status: 8 });
    });

    it("the last output reaches a client that reads slowly, long after the exit", async () => {
      const [client, agent] = duplexPair(1_024);
      const header: SessionHeader = { kind: "exec", command: "seq 1 2000; exit 5", env: {}, pty: PTY };
      const served = serveSession(agent, header, deps);
      // Longer than the 200 ms after which node-pty would drop what was not read.
      await new Promise((resolve) => setTimeout(resolve, 500));
      const session = collectSession(client);
      assert.deepEqual(await session.ended, { kind: "exitStatus", status: 5 });
      assert.match(session.stdout().toString(), /\r\n1999\r\n2000\r\n$/);
      await served;
    });

    it("a program that reads nothing does not freeze the agent", async () => {
      const session = terminal("stty raw -echo; echo up; exec sleep 60");
      await session.sees("up");
      for (let i = 0; i < 20; i++) session.send({ kind: "data", bytes: new Uint8Array(65_536) });
      await new Promise((resolve) => setTimeout(resolve, 30));
      const { stdout } = await run(exec("echo alive"));
      assert.equal(stdout, "alive\n");
      session.client.destroy();
      await session.served;
    });

    it("a large paste arrives whole", async () => {
      const session = terminal("stty raw -echo; echo up; head -c 1000000 | cksum");
      await session.sees("up");
      const paste = Buffer.alloc(1_000_000, "pasted line\r");
      for (let at = 0; at < paste.length; at += 50_000)
        session.send({ kind: "data", bytes: paste.subarray(at, at + 50_000) });
      const { stdout } = await run(session);
      const plain = exec("cksum");
      for (let at = 0; at < paste.length; at += 50_000)
        plain.send({ kind: "data", bytes: paste.subarray(at, at + 50_000) });
      plain.send({ kind: "eof" });
      assert.equal(stdout.split("\n")[1].trim(), (await run(plain)).stdout.trim());
    });

    it("ends when the shell does, though something in the background keeps the terminal", async () => {
      const session = terminal("trap '' HUP; sleep 20 & echo pid=$!.; exit 4");
      const { last, stdout } = await run(session);
      assert.deepEqual(last, { kind: "exitStatus", status: 4 });
      process.kill(Number(/pid=(\d+)\./.exec(stdout)?.[1]), "SIGKILL");
    });

    it("a full-screen editor starts, draws and quits", async function () {
      if (!["/usr/bin/vim", "/usr/bin/vi"].some((file) => fs.existsSync(file))) {
        console.log("skipped: there is no vim on this machine");
        this.skip();
      }
      const session = terminal("vi -u NONE -N");
      await session.sees("\x1b[?1049h");
      session.send({ kind: "data", bytes: Buffer.from("ihello\x1b:q!\r") });
      const { last, stdout } = await run(session);
      assert.deepEqual(last, { kind: "exitStatus", status: 0 });
      assert.ok(stdout.includes("hello") && stdout.includes("\x1b[?1049l"));
    });

    it("no session inherits the terminal of another", async function () {
      if (process.platform !== "linux") {
        console.log("skipped: needs /proc");
        this.skip();
      }
      const other = terminal("echo up; read line");
      await other.sees("up");
      try {
        for (const session of [exec("ls -l /proc/self/fd"), terminal("ls -l /proc/self/fd")])
          assert.doesNotMatch((await run(session)).stdout, /ptmx/);
      } finally {
        other.client.destroy();
        await other.served;
      }
    });
  });

  describe("when the stream closes", () => {
    const spawnsChildren = "sleep 300 & echo pids=$$,$!.; wait";
    for (const [name, start] of [
      ["without a terminal", exec],
      ["with a terminal", terminal],
    ] as const) {
      it(`a reset kills the process group ${name}`, async () => {
        const session = start(spawnsChildren);
        await session.sees(".");
        const pids = /pids=(\d+),(\d+)\./.exec(session.stdout().toString())!.slice(1).map(Number);
        session.client.destroy();
        await session.served;
        await until(() => !pids.some(isAlive), "the processes' end");
      });

      it(`a process that handles SIGHUP and stays is killed ${name}`, async () => {
        const session = start("trap 'true' HUP; echo pid=$$.; while :; do sleep 0.02; done");
        await session.sees(".");
        const pid = Number(/pid=(\d+)\./.exec(session.stdout().toString())![1]);
        session.client.destroy();
        await session.served;
        assert.ok(!isAlive(pid));
      });
    }

    it("a process under nohup is left alone", async () => {
      const session = exec("trap '' HUP; echo pid=$$.; exec sleep 300");
      await session.sees(".");
      const pid = Number(/pid=(\d+)\./.exec(session.stdout().toString())![1]);
      session.client.destroy();
      await session.served;
      assert.ok(isAlive(pid));
      process.kill(pid, "SIGKILL");
    });

    it("a stopped process ends too", async () => {
      const session = exec("echo pid=$$.; kill -STOP $$");
      await session.sees(".");
      const pid = Number(/pid=(\d+)\./.exec(session.stdout().toString())![1]);
      session.client.destroy();
      await session.served;
      assert.ok(!isAlive(pid));
    });

    it("nothing is left open: descriptors, terminals", async function () {
      if (process.platform !== "linux") {
        console.log("skipped: needs /proc");
        this.skip();
      }
      const count = () => fs.readdirSync("/proc/self/fd").length;
      await run(exec("true"));
      await pipes.warm();
      const before = count();
      for (let i = 0; i < 4; i++) await Promise.all([run(exec("echo x")), run(terminal("echo x"))]);
      const cut = [exec("sleep 60"), terminal("sleep 60")];
      for (const session of cut) session.client.destroy();
      await Promise.all(cut.map(({ served }) => served));
      await pipes.warm();
      // The pool is filled by sixes.
      await until(() => count() <= before + 6, `${before} descriptors, now ${count()}`);
      assert.equal(openTerminalCount(), 0);
    });
  });

  describe("bad input", () => {
    it("a message only an agent may send resets the stream and ends the process", async () => {
      const session = exec("echo pid=$$.; exec sleep 300");
      await session.sees(".");
      const pid = Number(/pid=(\d+)\./.exec(session.stdout().toString())![1]);
      session.send({ kind: "exitStatus", status: 0 });
      await assert.rejects(session.ended, /reset/);
      await session.served;
      assert.ok(!isAlive(pid));
    });

    it("garbage and a cut message reset the stream", async () => {
      for (const bytes of ["01ffffffffffffffff", "110548"]) {
        const session = exec("exec sleep 300");
        session.client.end(Buffer.from(bytes, "hex"));
        await assert.rejects(session.ended, /reset/);
        await session.served;
      }
    });

    it("anything before the announced command resets the stream", async () => {
      const session = open({ kind: "exec", env: {} });
      session.send({ kind: "eof" });
      await assert.rejects(session.ended, /reset/);
      await session.served;
    });

    it("a command that never comes is not waited for long", async () => {
      const [client, agent] = duplexPair();
      const served = serveSession(agent, { kind: "exec", env: {} }, { ...deps, commandTimeoutMs: 20 });
      await assert.rejects(collectSession(client).ended, /reset/);
      await served;
    });

    it("says so when the shell or the subsystem can't be started", async () => {
      const [client, agent] = duplexPair();
      const account = { ...deps.account, shell: "/no/such/shell" };
      const served = serveSession(agent, { kind: "shell", env: {} }, { ...deps, account });
      const last = await collectSession(client).ended;
      await served;
      assert.ok(last?.kind === "openFailed" && last.reason === OPEN_FAILED_REASONS.startFailed);
      assert.match(last.message, /ENOENT/);
      const { last: other } = await run(open({ kind: "subsystem", subsystem: "netconf", env: {} }));
      assert.ok(other?.kind === "openFailed" && other.reason === OPEN_FAILED_REASONS.unknownKind);
    });

    it("an environment the system does not take is told, and leaves nothing open", async function () {
      if (process.platform !== "linux") {
        console.log("skipped: needs /proc");
        this.skip();
      }
      // As from a template that hands a bundle of certificates to its agent.
      const environment = { ...deps.environment, BUNDLE: "x".repeat(200_000) };
      const tried = async () => {
        const [client, agent] = duplexPair();
        const served = serveSession(
          agent,
          { kind: "exec", command: "true", env: {} },
          { ...deps, environment },
        );
        const last = await collectSession(client).ended;
        await served;
        return last;
      };
      await tried();
      await pipes.warm();
      const count = () => fs.readdirSync("/proc/self/fd").length;
      const before = count();
      for (let i = 0; i < 24; i++) {
        const last = await tried();
        assert.ok(last?.kind === "openFailed");
        assert.match(last.message, /could not start the process: .*E2BIG/);
      }
      // Six for each of the three helpers that may be filling the stock; what 24 sessions left open would be 72.
      await until(() => count() <= before + 18, `no more than ${before + 18} descriptors`);
    });

    it("a bad header, one session too many and a stopping agent are refused with a reason", async () => {
      const service = new SessionService(deps, 1);
      const tried = async (metadata: Uint8Array) => {
        const [client, agent] = duplexPair();
        const handled = service.handle(agent, metadata);
        const last = await collectSession(client).ended;
        await handled;
        return last?.kind === "openFailed" ? last.reason : last?.kind;
      };
      const { metadata } = encodeOpening({ kind: "exec", command: "exec sleep 300", env: {} });
      assert.equal(await tried(Buffer.from("{")), OPEN_FAILED_REASONS.badHeader);
      const [client, agent] = duplexPair();
      const handled = service.handle(agent, metadata);
      collectSession(client);
      assert.equal(service.count, 1);
      assert.equal(await tried(metadata), OPEN_FAILED_REASONS.resourceShortage);
      await service.close();
      await handled;
      assert.equal(service.count, 0);
      assert.equal(await tried(metadata), OPEN_FAILED_REASONS.resourceShortage);
    });

    it("50 sessions at once all get their own output", async () => {
      const results = await Promise.all(
        Array.from({ length: 50 }, (_, i) => run(exec(`echo ${i}; exit ${i}`))),
      );
      results.forEach(({ stdout, last }, i) => {
        assert.equal(stdout, `${i}\n`);
        assert.deepEqual(last, { kind: "exitStatus", status: i });
      });
    });
  });
});
