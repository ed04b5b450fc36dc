import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import type { PtyRequest, SessionHeader } from "../../mesh/wire/channel.ts";
import { collectSession, duplexPair, type FakePeer, fakePeer, memoryLogger } from "../testing.ts";
import { currentAccount } from "./environment.ts";
import { MAX_MOTD_BYTES, messageOfTheDay } from "./motd.ts";
import { PipePool } from "./pipes.ts";
import { type SessionDeps, SessionService, serveSession } from "./serve.ts";
import { xauthority } from "./x11.ts";

const TOKEN = "AAAAAAAAAAAAAAAAAAAAAA==";
const PTY: PtyRequest = { term: "xterm", cols: 80, rows: 24, widthPx: 0, heightPx: 0 };
const COOKIE = "00112233445566778899aabbccddeeff";

describe("a session's extras", () => {
  const pipes = new PipePool();
  const logger = memoryLogger();
  let home = "";
  let deps: SessionDeps;
  beforeEach(() => {
    home = fs.mkdtempSync(path.join(os.tmpdir(), "extras-"));
    deps = {
      account: { ...currentAccount(), shell: "/bin/bash", homeDir: home },
      environment: { PATH: process.env["PATH"] ?? "", HOME: home, PS1: "$ " },
      directory: () => home,
      pipes,
      logger,
      killAfterMs: 150,
    };
  });
  afterEach(() => fs.rmSync(home, { recursive: true, force: true }));
  after(() => pipes.close());

  function open(header: SessionHeader, peer?: FakePeer) {
    const [client, agent] = duplexPair();
    const served = serveSession(agent, header, deps, peer);
    return Object.assign(collectSession(client), { served });
  }
  const exec = (command: string, more: Partial<SessionHeader> = {}, peer?: FakePeer) =>
    open({ kind: "exec", command, env: {}, ...more } as SessionHeader, peer);
  async function text(session: ReturnType<typeof open>): Promise<string> {
    await session.ended;
    await session.served;
    return session.stdout().toString();
  }

  describe("SSH agent", () => {
    it("each connection to SSH_AUTH_SOCK reaches the client with its token; the socket is private and goes", async () => {
      const peer = fakePeer();
      const session = exec('echo "sock=$SSH_AUTH_SOCK."; read x', { agent: { token: TOKEN } }, peer);
      await session.sees(".\n");
      const file = /sock=(.*)\.\n/.exec(session.stdout().toString())![1];
      assert.equal(fs.statSync(file).mode & 0o777, 0o600);
      assert.equal(fs.statSync(path.dirname(file)).mode & 0o777, 0o700);
      for (const word of ["one", "two"]) {
        const socket = net.connect(file);
        socket.write(word);
        const { stream, metadata } = await peer.next();
        assert.deepEqual(metadata, { token: TOKEN });
        assert.equal(String((await once(stream, "data"))[0]), word);
        stream.end("answer");
        assert.equal(String((await once(socket, "data"))[0]), "answer");
        socket.destroy();
      }
      session.send({ kind: "eof" });
      await text(session);
      assert.equal(fs.existsSync(path.dirname(file)), false);
    });

    it("ssh-add in the session lists what the client's agent answers", async function () {
      if (spawnSync("sh", ["-c", "command -v ssh-add"]).status !== 0) {
        console.log("skipped: there is no ssh-add here");
        this.skip();
      }
      const peer = fakePeer();
      const session = exec("ssh-add -l; echo status=$?", { agent: { token: TOKEN } }, peer);
      const { stream } = await peer.next();
      // SSH_AGENTC_REQUEST_IDENTITIES (11) is answered with an empty list (12): draft-ietf-sshm-ssh-agent.
      stream.once("data", () => stream.write(Buffer.from("000000050c00000000", "hex")));
      assert.match(await text(session), /The agent has no identities\.\nstatus=1/);
    });

    it("a session that replaces the folder of its socket harms nobody", async () => {
      const command = 'd=$(dirname "$SSH_AUTH_SOCK"); rm -r "$d"; touch "$d"; echo "$d"';
      const folder = (await text(exec(command, { agent: { token: TOKEN } }, fakePeer()))).trim();
      assert.ok(path.isAbsolute(folder), folder);
      assert.equal(fs.existsSync(folder), false);
    });

    it("without a client to ask there is none", async () => {
      assert.equal(await text(exec('echo "<$SSH_AUTH_SOCK>"', { agent: { token: TOKEN } })), "<>\n");
    });
  });

  describe("X11", () => {
    const x11 = {
      token: TOKEN,
      singleConnection: false,
      authProtocol: "MIT-MAGIC-COOKIE-1",
      authCookie: COOKIE,
      screen: 0,
    };

    it("each session gets a display of its own, with its cookie, and programs on it reach the client", async () => {
      const peer = fakePeer();
      const session = exec('echo "d=$DISPLAY,$XAUTHORITY."; read x', { x11 }, peer);
      const other = exec('echo "d=$DISPLAY,$XAUTHORITY."; read x', { x11 }, peer);
      const seen = await Promise.all(
        [session, other].map(async (one) => {
          await one.sees(".\n");
          return /d=localhost:(\d+)\.0,(.*)\.\n/.exec(one.stdout().toString())!;
        }),
      );
      assert.notEqual(seen[0][1], seen[1][1]);
      const display = Number(seen[0][1]);
      assert.ok(display >= 10);
      assert.equal(fs.statSync(seen[0][2]).mode & 0o777, 0o600);
      const socket = net.connect(6_000 + display, "127.0.0.1");
      socket.write("hello");
      const { stream, metadata } = await peer.next();
      assert.equal(metadata.token, TOKEN);
      assert.equal(String((await once(stream, "data"))[0]), "hello");
      socket.destroy();
      for (const one of [session, other]) {
        one.send({ kind: "eof" });
        await text(one);
      }
      assert.equal(fs.existsSync(seen[0][2]), false);
      await assert.rejects(once(net.connect(6_000 + display, "127.0.0.1"), "connect"), /ECONNREFUSED/);
    });

    it("with singleConnection only the first program is let in", async () => {
      const peer = fakePeer();
      const session = exec('echo "$DISPLAY."; read x', { x11: { ...x11, singleConnection: true } }, peer);
      await session.sees(".\n");
      const port = 6_000 + Number(/:(\d+)/.exec(session.stdout().toString())![1]);
      const socket = net.connect(port, "127.0.0.1");
      await peer.next();
      await assert.rejects(once(net.connect(port, "127.0.0.1"), "connect"), /ECONNREFUSED/);
      socket.destroy();
      session.client.destroy();
      await session.served;
    });

    it("xauth reads the file we write", function () {
      if (spawnSync("sh", ["-c", "command -v xauth"]).status !== 0) {
        console.log("skipped: there is no xauth here");
        this.skip();
      }
      const file = path.join(home, "xa");
      fs.writeFileSync(file, xauthority(12, "MIT-MAGIC-COOKIE-1", COOKIE, os.hostname()));
      const { stdout } = spawnSync("xauth", ["-f", file, "list"]);
      assert.match(stdout.toString(), new RegExp(`/unix:12 +MIT-MAGIC-COOKIE-1 +${COOKIE}`));
      const { stdout: found } = spawnSync("xauth", ["-f", file, "list", "localhost:12.0"]);
      assert.match(found.toString(), new RegExp(COOKIE));
    });
  });

  describe("terminal", () => {
    it("has the client's modes before the program starts", async () => {
      const modes = { ECHO: 0, VERASE: 8, VINTR: 24, ONLCR: 0, VEOL: 255, IXANY: 0, ICRNL: 0 };
      const out = await text(exec("stty -a", { pty: { ...PTY, modes } }));
      for (const part of [
        /-echo\b/,
        /erase = \^H/,
        /intr = \^X/,
        /-onlcr/,
        /eol = <undef>/,
        /-ixany/,
        /-icrnl/,
      ])
        assert.match(out, part);
    });

    it("names itself in SSH_TTY, and only there", async () => {
      assert.match(await text(exec('[ "$SSH_TTY" = "$(tty)" ] && echo same', { pty: PTY })), /same/);
      assert.equal(await text(exec('echo "<$SSH_TTY>"')), "<>\n");
    });

    it("a signal reaches the job in the foreground, not the shell that waits for it", async () => {
      // An interactive shell gives each job a group of its own.
      const session = open({ kind: "shell", env: {}, pty: PTY });
      session.send({
        kind: "data",
        bytes: Buffer.from(
          "sh -c 'trap \"echo got it; exit 3\" USR1; echo up''right; while :; do sleep 0.02; done'; echo st$?\r",
        ),
      });
      await session.sees("upright");
      session.send({ kind: "signal", name: "USR1" });
      await session.sees("st3");
      session.send({ kind: "data", bytes: Buffer.from("exit 5\r") });
      assert.deepEqual(await session.ended, { kind: "exitStatus", status: 5 });
      await session.served;
    });

    it("the message of the day comes first in a login shell, unless the user wants none", async () => {
      const file = path.join(home, "motd");
      fs.writeFileSync(file, "Welcome\nto dev");
      deps = { ...deps, motdFile: () => file };
      const shell = () => {
        const session = open({ kind: "shell", env: {}, pty: PTY });
        session.send({ kind: "data", bytes: Buffer.from("exit\r") });
        return text(session);
      };
      assert.match(await shell(), /^Welcome\r\nto dev\r\n/);
      assert.doesNotMatch(await text(exec("true", { pty: PTY })), /Welcome/);
      fs.writeFileSync(path.join(home, ".hushlogin"), "");
      assert.doesNotMatch(await shell(), /Welcome/);
    });

    it("a message of the day is bounded, and what is no file is none", () => {
      const file = path.join(home, "motd");
      fs.writeFileSync(file, "x".repeat(MAX_MOTD_BYTES * 2));
      assert.equal(messageOfTheDay(file, home)?.length, MAX_MOTD_BYTES + 2);
      assert.equal(messageOfTheDay(home, home), undefined);
      assert.equal(messageOfTheDay("/dev/zero", home), undefined);
      assert.equal(messageOfTheDay(path.join(home, "none"), home), undefined);
    });
  });

  describe("what a command leaves behind", () => {
    function left(out: string): number {
      const pid = Number(/pid=(\d+)\./.exec(out)?.[1]);
      process.kill(pid, 0); // it lives
      return pid;
    }

    for (const [how, command] of [
      ["under nohup", "nohup sleep 60 2>&1 & echo pid=$!."],
      ["by setsid", "setsid sh -c 'echo pid=$$.; exec sleep 60' &"],
      ["with its output elsewhere", "sh -c 'sleep 60 </dev/null >log 2>&1 & echo pid=$!.'"],
    ])
      it(`${how} lives on and holds nobody up`, async () => {
        const session = exec(command);
        assert.deepEqual(await session.ended, { kind: "exitStatus", status: 0 });
        await session.served;
        process.kill(left(session.stdout().toString()), "SIGKILL");
      });

    it("a detached server may still write without dying of it", async () => {
      const session = exec(
        "nohup sh -c 'echo pid=$$.; sleep 0.5; echo late; echo later; echo alive >proof; exec sleep 60' 2>&1 &",
      );
      const out = await text(session);
      assert.doesNotMatch(out, /late/);
      while (!fs.existsSync(path.join(home, "proof")))
        await new Promise((resolve) => setTimeout(resolve, 10));
      process.kill(left(out), "SIGKILL");
    });

    it("what only runs in the background is waited for, and none of its output is lost", async () => {
      assert.equal(await text(exec("(sleep 0.6; echo late) & echo early")), "early\nlate\n");
    });

    it("a slow client loses nothing of the command's own output to a detached server", async () => {
      const [client, agent] = duplexPair(1_024);
      const command = "seq 1 20000; nohup sleep 60 2>/dev/null & echo pid=$!. >&2; exit 3";
      const served = serveSession(agent, { kind: "exec", command, env: {} }, deps);
      await new Promise((resolve) => setTimeout(resolve, 500));
      const session = collectSession(client);
      assert.deepEqual(await session.ended, { kind: "exitStatus", status: 3 });
      assert.match(session.stdout().toString(), /\n20000\n$/);
      await served;
      process.kill(left(session.stderr().toString()), "SIGKILL");
    });
  });

  it("the subsystem sftp answers as a file server does, and ends with status 0", async () => {
    const session = open({ kind: "subsystem", subsystem: "sftp", env: {} });
    const init = Buffer.from("000000050100000003", "hex"); // SSH_FXP_INIT, version 3
    session.send({ kind: "data", bytes: init }, { kind: "eof" });
    assert.deepEqual(await session.ended, { kind: "exitStatus", status: 0 });
    await session.served;
    assert.equal(session.stdout().subarray(4, 9).toString("hex"), "0200000003"); // SSH_FXP_VERSION, 3
  });

  it("a workspace that stops says so in every session, also to one that reads nothing", async () => {
    const service = new SessionService(deps);
    const metadata = Buffer.from(JSON.stringify({ v: 1, kind: "exec", command: "echo up; exec sleep 300" }));
    const [client, agent] = duplexPair();
    const handled = service.handle(agent, metadata);
    const session = collectSession(client);
    await session.sees("up");
    const [deaf, deafAgent] = duplexPair();
    deaf.on("error", () => {});
    const flood = Buffer.from(JSON.stringify({ v: 1, kind: "exec", command: "yes" }));
    const deafHandled = service.handle(deafAgent, flood);
    await service.close();
    await Promise.all([handled, deafHandled]);
    const message = "the workspace is stopping";
    assert.deepEqual(await session.ended, { kind: "exitSignal", name: "HUP", coreDumped: false, message });
  });
});
