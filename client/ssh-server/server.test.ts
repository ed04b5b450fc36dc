import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { EventEmitter, once } from "node:events";
import fs from "node:fs";
import net, { type AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import type { Duplex } from "node:stream";
import ssh2, { type ClientChannel, type PseudoTtyOptions } from "ssh2";
import { ForwardService } from "../../agent/forward/serve.ts";
import { currentAccount } from "../../agent/sessions/environment.ts";
import { PipePool } from "../../agent/sessions/pipes.ts";
import { SessionService } from "../../agent/sessions/serve.ts";
import type { Peer } from "../../agent/streams.ts";
import { collectSession, memoryLogger, servicePair } from "../../agent/testing.ts";
import { decodeHeader, type SessionHeader } from "../../mesh/wire/channel.ts";
import { CallbackMetadata, decodeMetadata } from "../../mesh/wire/forward.ts";
import { freePort } from "../../test/e2e/outage.ts";
import { CliError } from "../errors.ts";
import type { ServerConnection } from "./connection.ts";
import { knownHostsLine, loadHostKey } from "./hostkey.ts";
import { runStdio } from "./stdio.ts";

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const has = (program: string) => {
  try {
    execFileSync("sh", ["-c", `command -v ${program}`], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
};

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; tries < 4_000; tries++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail("waited in vain");
}

interface Done {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: Buffer;
  stderr: string;
}

/** The real OpenSSH client against our server on a loopback port, which reaches the real services of an agent. */
class Lab {
  readonly dir = fs.mkdtempSync(path.join(os.tmpdir(), "sshd-"));
  readonly home = path.join(this.dir, "home");
  readonly servers: Promise<number>[] = [];
  readonly streams: Duplex[] = [];
  readonly signals = new EventEmitter();
  connection: () => Promise<ServerConnection> = async () => this.agent();
  acceptedTokens = new Map<string, Parameters<ServerConnection["accept"]>[1]>();
  readonly #server: net.Server;
  readonly #pipes = new PipePool();
  readonly #logger = memoryLogger();
  readonly #sessions: SessionService;
  readonly #forwards: ForwardService;
  stderr = "";

  private constructor() {
    fs.mkdirSync(this.home);
    const hostKeyPath = path.join(this.dir, "config", "host_key");
    fs.writeFileSync(path.join(this.dir, "known_hosts"), knownHostsLine("ws", loadHostKey(hostKeyPath)));
    this.#sessions = new SessionService({
      account: { ...currentAccount(), shell: "/bin/bash", homeDir: this.home },
      environment: { PATH: process.env["PATH"] ?? "", HOME: this.home, USER: os.userInfo().username },
      directory: () => this.home,
      pipes: this.#pipes,
      logger: this.#logger,
      killAfterMs: 150,
    });
    this.#forwards = new ForwardService({
      logger: this.#logger,
      resolvePath: (file) => path.resolve(this.home, file),
    });
    this.#server = net.createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      socket.on("error", () => {});
      const served = runStdio({
        connection: this.connection(),
        hostKeyPath,
        stdin: socket,
        stdout: socket,
        stderr: socket,
        signals: this.signals,
      });
      served.catch(() => {});
      this.servers.push(served);
    });
  }

  static async start(): Promise<Lab> {
    const lab = new Lab();
    lab.#server.listen(0, "127.0.0.1");
    await once(lab.#server, "listening");
    return lab;
  }

  /** The agent's real services, each stream a pair in memory. */
  agent(): ServerConnection {
    const peer: Peer = {
      nodeKey: "client",
      grant: { userId: "u", username: "ada" },
      open: (service, metadata) => {
        const [client, agent] = servicePair(service, metadata);
        const callback = decodeMetadata(CallbackMetadata, metadata);
        const handler = this.acceptedTokens.get(callback.token);
        if (handler) handler(client, callback);
        else client.destroy();
        return agent;
      },
    };
    return {
      dial: async (service, metadata) => {
        const [client, agent] = servicePair(service, metadata);
        this.streams.push(client);
        if (service === "session") void this.#sessions.handle(agent, metadata, peer);
        else if (service.startsWith("tcp:")) void this.#forwards.tcp(agent);
        else if (service.startsWith("unix:")) void this.#forwards.unix(agent);
        else if (service === "listen") void this.#forwards.listen(agent, peer);
        else assert.fail(`no service ${service}`);
        return client;
      },
      accept: (token, handler) => {
        this.acceptedTokens.set(token, handler);
        return () => this.acceptedTokens.delete(token);
      },
    };
  }

  get address(): { host: string; port: number } {
    return { host: "127.0.0.1", port: (this.#server.address() as AddressInfo).port };
  }

  get options(): string[] {
    return [
      ...["-F", "none", "-p", String(this.address.port)],
      ...["-o", "HostKeyAlias=ws", "-o", `UserKnownHostsFile=${path.join(this.dir, "known_hosts")}`],
      ...["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none"],
      ...["-o", "BatchMode=yes"],
    ];
  }

  start(program: string, args: string[], stdin: "pipe" | "ignore" = "pipe", env: object = {}) {
    return spawn(program, args, {
      cwd: this.dir,
      env: { ...process.env, ...env },
      stdio: [stdin, "pipe", "pipe"],
    });
  }

  async run(
    program: string,
    args: string[],
    input: Uint8Array = Buffer.alloc(0),
    env: object = {},
  ): Promise<Done> {
    const child = this.start(program, args, "pipe", env);
    const out: Buffer[] = [];
    let stderr = "";
    child.stdout?.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr?.on("data", (chunk: Buffer) => {
      stderr += chunk;
    });
    child.stdin?.on("error", () => {});
    child.stdin?.end(input);
    const [code, signal] = await once(child, "close");
    return { code, signal, stdout: Buffer.concat(out), stderr };
  }

  /** `ssh ARGS... ws COMMAND` */
  ssh(command: string, args: string[] = [], input?: Uint8Array, env?: object): Promise<Done> {
    return this.run("ssh", [...this.options, ...args, "127.0.0.1", command], input, env);
  }

  async close(): Promise<void> {
    this.#server.close();
    this.signals.emit("SIGTERM");
    await Promise.allSettled(this.servers);
    await this.#sessions.close();
    this.#forwards.close();
    this.#pipes.close();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

describe("the SSH server behind `coder ssh --stdio`", function () {
  this.timeout(30_000);
  let lab: Lab;
  before(function () {
    if (!has("ssh")) {
      console.log("      skipped: there is no ssh here");
      return this.skip();
    }
  });
  beforeEach(async () => {
    lab = await Lab.start();
  });
  afterEach(async () => {
    await lab.close();
  });

  it("runs a command: output, errors apart, exit code", async () => {
    const done = await lab.ssh("echo out; echo err >&2; exit 7");
    assert.deepEqual([done.stdout.toString(), done.stderr, done.code], ["out\n", "err\n", 7]);
  });

  it("passes all bytes both ways, with the input's end", async () => {
    const bytes = randomBytes(5_000_000);
    const done = await lab.ssh("cat", [], bytes);
    assert.equal(sha256(done.stdout), sha256(bytes));
    assert.equal(done.code, 0);
  });

  it("rekeys in the middle of a transfer, either way, without losing a byte", async () => {
    const bytes = randomBytes(6_000_000);
    const done = await lab.ssh("cat", ["-o", "RekeyLimit=1M"], bytes);
    assert.equal(sha256(done.stdout), sha256(bytes));
  });

  it("reports a process that a signal ended, as OpenSSH's own server does", async () => {
    assert.equal((await lab.ssh("kill -9 $$")).code, 255);
    assert.equal((await lab.ssh("kill -BUS $$")).code, 255);
  });

  it("hands on the variables a client sets", async () => {
    const args = ["-o", "SetEnv=FROM_SET=set", "-o", "SendEnv=LC_TEST"];
    const done = await lab.ssh("echo $FROM_SET $LC_TEST", args, undefined, { LC_TEST: "sent" });
    assert.equal(done.stdout.toString(), "set sent\n");
  });

  it("gives a terminal of the asked size and kind", async () => {
    const child = lab.start(
      "ssh",
      [...lab.options, "-tt", "127.0.0.1", "tty >&2; echo $TERM; stty size"],
      "pipe",
      {
        TERM: "vt220",
      },
    );
    let out = "";
    child.stdout?.on("data", (chunk) => {
      out += chunk;
    });
    await once(child, "close");
    assert.match(out, /\/dev\/pts\/\d+\r\nvt220\r\n\d+ \d+\r\n/);
  });

  it("ends a program whose reader has left", async () => {
    const child = lab.start("sh", ["-c", `ssh ${lab.options.join(" ")} 127.0.0.1 yes | head -1`], "ignore");
    const [code] = await once(child, "close");
    assert.equal(code, 0);
  });

  it("serves many sessions of one master connection", async () => {
    const master = ["-S", path.join(lab.dir, "m"), "127.0.0.1"];
    const child = lab.start("ssh", [...lab.options, "-N", "-M", ...master]);
    await until(() => fs.existsSync(path.join(lab.dir, "m")));
    const all = await Promise.all(
      Array.from({ length: 20 }, (_, i) =>
        lab.run("ssh", [...lab.options, ...master, `echo ${i}; exit ${i}`]),
      ),
    );
    assert.deepEqual(
      all.map(({ stdout, code }) => [stdout.toString(), code]),
      Array.from({ length: 20 }, (_, i) => [`${i}\n`, i]),
    );
    child.kill();
    await once(child, "close");
    assert.equal(lab.servers.length, 1);
  });

  it("answers keepalives by itself", async () => {
    const args = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"];
    assert.equal((await lab.ssh("sleep 2.3; echo there", args)).stdout.toString(), "there\n");
  });

  it("a client with keepalives waits for a workspace that starts, also with a forward to ask for first", async () => {
    const log = path.join(lab.dir, "ssh.log");
    /** Requests the client has sent: its forward, then one keepalive a second. */
    const requests = () => fs.readFileSync(log, "utf8").match(/send packet: type 80/g)?.length ?? 0;
    lab.connection = async () => {
      await until(() => requests() >= 5);
      return lab.agent();
    };
    const keepalives = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"];
    const args = [...keepalives, "-vvv", "-E", log, "-R", "0:127.0.0.1:9"];
    const done = await lab.ssh("echo there", args);
    assert.equal(done.stdout.toString(), "there\n", done.stderr);
  });

  it("hangs up on the process when the client is killed", async () => {
    const child = lab.start("ssh", [
      ...lab.options,
      "127.0.0.1",
      "exec 2>/dev/null; trap 'echo HUP > got; exit' HUP; echo up; while :; do sleep 0.05; done",
    ]);
    await once(child.stdout!, "data");
    child.kill("SIGKILL");
    await once(child, "close");
    assert.equal(await lab.servers[0], 0);
    for (let tries = 0; tries < 200 && !fs.existsSync(path.join(lab.home, "got")); tries++)
      await new Promise((resolve) => setTimeout(resolve, 10));
    assert.equal(fs.readFileSync(path.join(lab.home, "got"), "utf8"), "HUP\n");
  });

  it("SIGTERM ends it; SIGINT and SIGHUP, which reach the whole terminal, do not", async () => {
    const child = lab.start("ssh", [...lab.options, "127.0.0.1", "echo up; cat"]);
    await once(child.stdout!, "data");
    lab.signals.emit("SIGINT");
    lab.signals.emit("SIGHUP");
    child.stdin?.write("still\n");
    await once(child.stdout!, "data");
    lab.signals.emit("SIGTERM");
    assert.equal(await lab.servers[0], 255);
    assert.equal((await once(child, "close"))[0], 255);
  });

  it("says so on the session's standard error when the agent dies, and ends with 255", async () => {
    const running = lab.ssh("echo up; sleep 60");
    await until(() => lab.streams.length > 0);
    lab.streams[0].destroy(new Error("the agent was restarted"));
    const done = await running;
    assert.equal(done.code, 255);
    assert.match(
      done.stderr,
      /^error: the session was cut off: the agent was restarted\nRun the command again/,
    );
  });

  it("says once why the workspace can't be reached", async () => {
    lab.connection = async () => {
      throw new CliError("ERR_NO_WORKSPACE", "there is no workspace x", {
        hint: "`coder list` shows yours.",
      });
    };
    const done = await lab.ssh("true");
    assert.equal(done.stderr, "error: there is no workspace x\n`coder list` shows yours.\n");
    assert.equal(done.code, 255);
    assert.equal(await lab.servers[0], 255);
  });

  it("logs in and takes input while the workspace is not reached yet", async () => {
    let reached: ((connection: ServerConnection) => void) | undefined;
    lab.connection = () =>
      new Promise((resolve) => {
        reached = resolve;
      });
    const running = lab.ssh("cat; echo $A", ["-o", "SetEnv=A=b"], Buffer.from("early\n"));
    await until(() => reached !== undefined);
    // For the login and the input to come first.
    await new Promise((resolve) => setTimeout(resolve, 150));
    reached?.(lab.agent());
    const done = await running;
    assert.equal(done.stdout.toString(), "early\nb\n");
  });

  it("does not take more than windows allow from a program whose output nobody reads", async () => {
    const child = lab.start("ssh", [...lab.options, "127.0.0.1", "cat /dev/zero"]);
    child.stdout?.pause();
    let taken = 0;
    await until(() => lab.streams.length > 0);
    lab.streams[0].on("data", (chunk) => {
      taken += chunk.length;
    });
    // Until nothing more comes.
    for (let before = -1, tries = 0; (taken !== before || taken === 0) && tries < 50; tries++) {
      before = taken;
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
    assert.ok(taken < 6 * 1024 * 1024, `${taken} bytes`);
    child.kill();
    await once(child, "close");
  });

  it("does not take more than a window from a client whose program reads nothing", async () => {
    const child = lab.start(
      "sh",
      ["-c", `ssh ${lab.options.join(" ")} 127.0.0.1 sleep 60 < /dev/zero`],
      "ignore",
    );
    await until(() => lab.streams.length > 0);
    const stream = lab.streams[0];
    let before = -1;
    for (let tries = 0; (stream.writableLength !== before || before <= 0) && tries < 50; tries++) {
      before = stream.writableLength;
      await new Promise((resolve) => setTimeout(resolve, 150));
    }
    assert.ok(before < 3 * 1024 * 1024, `${before} bytes wait`);
    lab.signals.emit("SIGTERM");
    await once(child, "close");
  });

  it("hands on modes, and resizes and signals also after the end of input", async () => {
    const opened: { header: SessionHeader; stream: Duplex }[] = [];
    lab.connection = async () => ({
      dial: async (_service, metadata) => {
        const [client, stream] = servicePair("session", metadata);
        opened.push({ header: decodeHeader(metadata), stream });
        return client;
      },
      accept: () => () => {},
    });
    const client = new ssh2.Client();
    client.connect({ ...lab.address, username: "any", hostVerifier: () => true });
    await once(client, "ready");
    const channel = await new Promise<ClientChannel>((resolve, reject) => {
      const pty = { term: "vt100", rows: 30, cols: 90, modes: { ECHO: 0, VINTR: 3 } } as PseudoTtyOptions;
      client.exec("cat", { pty, env: { A: "b" } }, (error, opened) =>
        error ? reject(error) : resolve(opened),
      );
    });
    await until(() => opened.length > 0);
    const [{ header, stream }] = opened;
    assert.deepEqual(header, {
      kind: "exec",
      command: "cat",
      env: { A: "b" },
      pty: { term: "vt100", cols: 90, rows: 30, widthPx: 640, heightPx: 480, modes: { VINTR: 3, ECHO: 0 } },
    });
    const session = collectSession(stream);
    // Its channel says nothing more after EOF; OpenSSH's does.
    const { outgoing } = channel as unknown as { outgoing: { id: number } };
    const { _protocol: wire } = client as unknown as {
      _protocol: {
        channelEOF(id: number): void;
        windowChange(id: number, rows: number, cols: number, height: number, width: number): void;
        signal(id: number, name: string): void;
      };
    };
    wire.channelEOF(outgoing.id);
    wire.windowChange(outgoing.id, 40, 100, 0, 0);
    wire.signal(outgoing.id, "INT");
    await until(() => session.messages.length >= 3);
    assert.deepEqual(session.messages, [
      { kind: "eof" },
      { kind: "windowChange", cols: 100, rows: 40, widthPx: 0, heightPx: 0 },
      { kind: "signal", name: "INT" },
    ]);
    client.end();
  });

  describe("forwards", () => {
    const servers: net.Server[] = [];
    afterEach(() => {
      for (const server of servers.splice(0)) server.close();
    });

    /** Says what it heard, once it heard the end of it. */
    async function lateEcho(where: net.ListenOptions = { host: "127.0.0.1", port: 0 }): Promise<number> {
      const server = net.createServer({ allowHalfOpen: true }, (socket) => {
        const heard: Buffer[] = [];
        socket.on("error", () => {});
        socket.on("data", (chunk) => heard.push(chunk));
        socket.on("end", () => socket.end(Buffer.concat([Buffer.from("heard:"), ...heard])));
      });
      server.listen(where);
      await once(server, "listening");
      servers.push(server);
      const address = server.address();
      return typeof address === "object" && address ? address.port : 0;
    }

    async function exchange(where: net.NetConnectOpts, bytes: Buffer): Promise<Buffer> {
      for (let tries = 0; ; tries++) {
        const socket = net.connect({ ...where, allowHalfOpen: true });
        try {
          await once(socket, "connect");
        } catch (error) {
          if (tries > 400) throw error;
          await new Promise((resolve) => setTimeout(resolve, 10));
          continue;
        }
        const chunks: Buffer[] = [];
        socket.on("data", (chunk) => chunks.push(chunk));
        socket.end(bytes);
        await once(socket, "close");
        return Buffer.concat(chunks);
      }
    }

    /** Runs `use` while `ssh -N ARGS` is up. */
    async function withSsh(args: string[], use: (stderr: () => string) => Promise<void>): Promise<void> {
      const child = lab.start("ssh", [...lab.options, "-N", ...args, "127.0.0.1"]);
      let stderr = "";
      child.stderr?.on("data", (chunk) => {
        stderr += chunk;
      });
      try {
        await use(() => stderr);
      } finally {
        child.kill();
        await once(child, "close");
      }
    }

    it("-W joins with a port, and what comes after the input's end is not lost", async () => {
      const port = await lateEcho();
      const bytes = randomBytes(300_000);
      const done = await lab.run("ssh", [...lab.options, "-W", `127.0.0.1:${port}`, "127.0.0.1"], bytes);
      assert.equal(sha256(done.stdout), sha256(Buffer.concat([Buffer.from("heard:"), bytes])));
    });

    it("-W to a port where nobody listens says why", async () => {
      const done = await lab.run("ssh", [...lab.options, "-W", `127.0.0.1:${await freePort()}`, "127.0.0.1"]);
      assert.match(done.stderr, /open failed: connect failed: .*refused/);
      assert.equal(done.code, 255);
    });

    it("-L reaches a port and a socket of the workspace, many times at once", async () => {
      const port = await lateEcho();
      const socket = path.join(lab.dir, "target");
      await lateEcho({ path: socket });
      const [a, b] = [await freePort(), await freePort()];
      await withSsh(["-L", `${a}:127.0.0.1:${port}`, "-L", `${b}:${socket}`], async () => {
        const bytes = randomBytes(100_000);
        const answers = await Promise.all(
          [a, b].flatMap((local) =>
            Array.from({ length: 10 }, () => exchange({ port: local, host: "127.0.0.1" }, bytes)),
          ),
        );
        for (const answer of answers) assert.equal(sha256(answer.subarray(6)), sha256(bytes));
      });
    });

    it("-R brings connections of the workspace back, also from a port it chooses and from a socket", async () => {
      const port = await lateEcho();
      const socket = path.join(lab.dir, "remote");
      const asked = await freePort();
      const args = [
        "-R",
        `0:127.0.0.1:${port}`,
        "-R",
        `${asked}:127.0.0.1:${port}`,
        "-R",
        `${socket}:127.0.0.1:${port}`,
      ];
      await withSsh(args, async (stderr) => {
        for (let tries = 0; !/Allocated port \d+/.test(stderr()) && tries < 500; tries++)
          await new Promise((resolve) => setTimeout(resolve, 10));
        const chosen = Number(/Allocated port (\d+)/.exec(stderr())?.[1]);
        const bytes = randomBytes(50_000);
        for (const where of [
          { port: chosen, host: "127.0.0.1" },
          { port: asked, host: "127.0.0.1" },
          { path: socket },
        ]) {
          const answer = await exchange(where, bytes);
          assert.equal(sha256(answer.subarray(6)), sha256(bytes));
        }
      });
      await Promise.all(lab.servers);
      assert.equal(lab.acceptedTokens.size, 0);
      await assert.rejects(once(net.connect(asked, "127.0.0.1"), "connect"));
    });

    it("a listener that can't be had is refused", async () => {
      const taken = await lateEcho();
      lab.connection = async () => {
        const agent = lab.agent();
        const dial: ServerConnection["dial"] = async (service, metadata) => {
          // However late the answer, no command runs before it.
          if (service === "listen") await new Promise((resolve) => setTimeout(resolve, 200));
          return await agent.dial(service, metadata);
        };
        return { ...agent, dial };
      };
      const done = await lab.ssh("echo ran", [
        "-o",
        "ExitOnForwardFailure=yes",
        "-R",
        `127.0.0.1:${taken}:127.0.0.1:1`,
      ]);
      assert.deepEqual([done.code, done.stdout.toString()], [255, ""]);
      assert.match(done.stderr, /remote port forwarding failed/);
    });

    it("-A lets programs in the workspace ask the user's SSH agent", async function () {
      if (!has("ssh-agent") || !has("ssh-add")) {
        console.log("      skipped: there is no ssh-agent here");
        return this.skip();
      }
      const socket = path.join(lab.dir, "agent");
      const agent = lab.start("ssh-agent", ["-D", "-a", socket]);
      await until(() => fs.existsSync(socket));
      try {
        const key = path.join(lab.dir, "key");
        execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "forwarded", "-f", key]);
        const env = { SSH_AUTH_SOCK: socket };
        execFileSync("ssh-add", ["-q", key], { env: { ...process.env, ...env }, stdio: "ignore" });
        const done = await lab.ssh("ssh-add -l", ["-A"], undefined, env);
        assert.match(done.stdout.toString(), /forwarded \(ED25519\)/);
        const without = await lab.ssh("echo [$SSH_AUTH_SOCK]", ["-a"], undefined, env);
        assert.equal(without.stdout.toString(), "[]\n");
      } finally {
        agent.kill();
        await once(agent, "close");
      }
    });

    it("-Y joins X11 clients of the workspace with the user's display", async function () {
      if (!has("xauth")) {
        console.log("      skipped: there is no xauth here");
        return this.skip();
      }
      const display = 900 + Math.floor(Math.random() * 1_000);
      let heard = Buffer.alloc(0);
      const server = net.createServer((socket) => {
        socket.on("data", (chunk) => {
          heard = Buffer.concat([heard, chunk]);
          if (heard.length >= 48) socket.end("display");
        });
      });
      server.listen(6_000 + display, "127.0.0.1");
      await once(server, "listening");
      servers.push(server);
      // biome-ignore-start lint/suspicious/noTemplateCurlyInString: the shell expands them
      // A client of X11 as bash has one: a connection setup with the cookie, then whatever comes back.
      const client = [
        "cookie=$(xauth list | awk '{print $3; exit}')",
        "number=${DISPLAY##*:}; number=${number%.*}",
        "exec 3<>/dev/tcp/127.0.0.1/$((6000 + number))",
        "{ printf 'l\\0\\13\\0\\0\\0\\22\\0\\20\\0\\0\\0MIT-MAGIC-COOKIE-1\\0\\0'; echo $cookie | xxd -r -p; } >&3",
        "cat <&3",
      ].join("; ");
      // biome-ignore-end lint/suspicious/noTemplateCurlyInString: see above
      if (!has("xxd")) {
        console.log("      skipped: there is no xxd here");
        return this.skip();
      }
      const env = { DISPLAY: `127.0.0.1:${display}`, XAUTHORITY: path.join(lab.dir, "Xauthority") };
      const done = await lab.ssh(client, ["-Y"], undefined, env);
      assert.equal(done.stdout.toString(), "display", done.stderr);
      assert.equal(heard.subarray(12, 30).toString(), "MIT-MAGIC-COOKIE-1");
    });

    it("ends when the workspace stopped listening for it: the client can't be told otherwise", async () => {
      const port = await lateEcho();
      const child = lab.start("ssh", [...lab.options, "-N", "-R", `0:127.0.0.1:${port}`, "127.0.0.1"]);
      await until(() => lab.streams.length > 0);
      await new Promise((resolve) => setTimeout(resolve, 100));
      lab.streams[0].destroy(new Error("gone"));
      assert.equal((await once(child, "close"))[0], 255);
      assert.equal(await lab.servers[0], 255);
    });
  });

  it("copies files with scp, sftp and rsync", async () => {
    const source = path.join(lab.dir, "source");
    fs.writeFileSync(source, randomBytes(1_000_000));
    const want = sha256(fs.readFileSync(source));
    const options = lab.options.map((word) => (word === "-p" ? "-P" : word));
    const scp = await lab.run("scp", ["-O", ...options, source, "127.0.0.1:by-scp"]);
    assert.equal(scp.code, 0, scp.stderr);
    assert.equal(sha256(fs.readFileSync(path.join(lab.home, "by-scp"))), want);
    const sftp = await lab.run(
      "sftp",
      [...options, "-b", "-", "127.0.0.1"],
      Buffer.from(`put ${source} by-sftp\n`),
    );
    assert.equal(sftp.code, 0, sftp.stderr);
    assert.equal(sha256(fs.readFileSync(path.join(lab.home, "by-sftp"))), want);
    if (!has("rsync")) return;
    const rsync = await lab.run("rsync", [
      "-e",
      `ssh ${lab.options.join(" ")}`,
      source,
      "127.0.0.1:by-rsync",
    ]);
    assert.equal(rsync.code, 0, rsync.stderr);
    assert.equal(sha256(fs.readFileSync(path.join(lab.home, "by-rsync"))), want);
  });
});
