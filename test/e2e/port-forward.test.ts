// What `coder` itself does beside a shell: forwards, the SSH agent, sessions that are kept, measurements.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import net, { type AddressInfo } from "node:net";
import path from "node:path";
import { SshLab } from "./lab.ts";
import type { Running } from "./sandbox.ts";
import { assertRefused } from "./server.ts";
import { poll } from "./tmux.ts";

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const PARALLEL = 40;

/** Runs `look` until it stands, or throws what it threw last. */
async function eventually(look: () => Promise<void>, limitMs = 15_000): Promise<void> {
  const giveUpAt = performance.now() + limitMs;
  for (;;) {
    try {
      return await look();
    } catch (error) {
      if (performance.now() > giveUpAt) throw error;
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
}

describe("coder port-forward and its neighbours", function () {
  this.timeout(60_000);
  let lab: SshLab;
  const cleanUp: (() => unknown)[] = [];

  before(async () => {
    lab = await SshLab.start();
  });
  after(async () => {
    await lab?.close();
  });
  afterEach(async () => {
    for (const undo of cleanUp.splice(0).reverse()) await undo();
  });

  /** A server of the "workspace", which is this machine. @returns its port */
  async function serve(onConnection: (socket: net.Socket) => void): Promise<number> {
    const sockets = new Set<net.Socket>();
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket);
      socket.on("error", () => undefined);
      onConnection(socket);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanUp.push(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return (server.address() as AddressInfo).port;
  }

  const echo = () => serve((socket) => socket.pipe(socket));

  function connect(port: number): net.Socket {
    const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    cleanUp.push(() => socket.destroy());
    return socket;
  }

  async function exchange(port: number, bytes: Uint8Array): Promise<Buffer> {
    const socket = connect(port);
    socket.end(bytes);
    const chunks: Buffer[] = [];
    for await (const chunk of socket) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  }

  /** @returns the local ports, in the order of the flags */
  async function forward(...flags: string[]): Promise<{ running: Running; ports: number[] }> {
    const running = lab.alice.start("port-forward", "dev", ...flags);
    cleanUp.push(async () => {
      running.child.kill("SIGINT");
      const done = await running.finished;
      assert.equal(done.code, 0, done.stderr);
    });
    await lab.sandbox.until(running, "stderr", /^Ready\./m);
    const ports = [...running.stdout.matchAll(/^Forwarding \w+:\/\/127\.0\.0\.1:(\d+) -> dev:\d+$/gm)];
    return { running, ports: ports.map((match) => Number(match[1])) };
  }

  it("forwards TCP ports, many connections at once, each direction ending by itself", async () => {
    const talker = await serve((socket) => {
      const hash = createHash("sha256");
      socket.on("data", (chunk) => hash.update(chunk));
      socket.on("end", () => socket.end(hash.digest("hex")));
    });
    const { ports } = await forward("--tcp", `0:${await echo()}`, "--tcp", `0:${talker}`);
    const data = Array.from({ length: PARALLEL }, (_, i) => randomBytes(20_000 + i));
    const answers = await Promise.all(data.map((bytes) => exchange(ports[0], bytes)));
    for (const [i, answer] of answers.entries()) assert.equal(sha256(answer), sha256(data[i]));
    const big = randomBytes(8 << 20);
    assert.equal((await exchange(ports[1], big)).toString(), sha256(big));
  });

  it("forwards UDP, each source for itself", async () => {
    const server = dgram.createSocket("udp4");
    server.on("message", (bytes, from) =>
      server.send(Buffer.concat([Buffer.from("re:"), bytes]), from.port, from.address),
    );
    await new Promise<void>((resolve) => server.bind(0, "127.0.0.1", resolve));
    cleanUp.push(() => server.close());
    const { ports } = await forward("--udp", `0:${server.address().port}`);
    for (const text of ["one", "two"]) {
      const socket = dgram.createSocket("udp4");
      cleanUp.push(() => socket.close());
      socket.send(text, ports[0], "127.0.0.1");
      const [answer] = (await once(socket, "message")) as [Buffer];
      assert.equal(answer.toString(), `re:${text}`);
    }
  });

  it("a port nobody listens on breaks the connection off and says so", async () => {
    const closed = await serve(() => undefined);
    for (const undo of cleanUp.splice(0)) await undo();
    const { running, ports } = await forward("--tcp", `0:${closed}`);
    for (let i = 0; i < 3; i++)
      await assert.rejects(exchange(ports[0], Buffer.from("x")), { code: "ECONNRESET" });
    await lab.sandbox.until(running, "stderr", new RegExp(`^error: localhost:${closed}: .*refused`, "mi"));
    assert.equal(running.stderr.match(/^error:/gm)?.length, 1, running.stderr);
  });

  it("open connections outlive their relay connection and a restart of the server", async () => {
    const { ports } = await forward("--tcp", `0:${await echo()}`);
    const socket = connect(ports[0]);
    const seen: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => seen.push(chunk));
    let expected = "";
    const talk = async (text: string) => {
      expected += text;
      socket.write(text);
      await poll(
        () => Buffer.concat(seen).toString() === expected,
        () => `the echo of ${text}, there is ${Buffer.concat(seen)}`,
      );
    };
    await talk("before ");
    lab.gate.cut("derp");
    await talk("after a cut ");
    await lab.restartServer({ signal: "SIGKILL", awayMs: 500 });
    await talk("after a restart");
    assert.equal((await exchange(ports[0], Buffer.from("new"))).toString(), "new");
  });

  it("a taken port, a bad one and none at all each say what to do", async () => {
    const taken = await echo();
    assertRefused(
      await lab.alice.coder("port-forward", "dev", "--tcp", `${taken}:80`),
      1,
      /is taken/,
      /another local port/,
    );
    assertRefused(
      await lab.alice.coder("port-forward", "dev", "--tcp", "http"),
      1,
      /"http" is no port/,
      /8080:3000/,
    );
    assertRefused(await lab.alice.coder("port-forward", "dev"), 1, /no port to forward/, /--tcp 8080/);
  });

  it("ssh -R: the workspace reaches a port of this side, while the command runs and no longer", async () => {
    const here = await serve((socket) => socket.end("from this side"));
    const command = 'exec 3<>"/dev/tcp/127.0.0.1/$PORT"; cat <&3';
    const there = await serve(() => undefined);
    for (const undo of cleanUp.splice(1)) await undo(); // only its number is wanted
    const spec = `${there}:127.0.0.1:${here}`;
    const done = await lab.alice.coder("ssh", "-R", spec, "-e", `PORT=${there}`, "dev", "--", command);
    assert.deepEqual([done.code, done.stdout], [0, "from this side"], done.stderr);
    await eventually(async () => {
      await assert.rejects(exchange(there, Buffer.alloc(0)), { code: "ECONNREFUSED" });
    });
  });

  it("ssh -L and -N: a port of the workspace, without a shell", async () => {
    const there = await serve((socket) => socket.end("from the workspace"));
    const local = await serve(() => undefined);
    for (const undo of cleanUp.splice(1)) await undo();
    const running = lab.alice.start("ssh", "dev", "-N", "-L", `${local}:127.0.0.1:${there}`);
    cleanUp.push(async () => {
      running.child.kill("SIGTERM");
      await running.finished;
    });
    await eventually(async () => {
      assert.equal(String(await exchange(local, Buffer.alloc(0))), "from the workspace", running.stderr);
    });
  });

  it("ssh -A lends the keys of a real agent to the workspace, and only with -A", async () => {
    const key = path.join(lab.sandbox.dir, "key");
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
    const socket = path.join(lab.sandbox.dir, "a.sock");
    const agent = lab.sandbox.start("ssh-agent", ["-D", "-a", socket]);
    cleanUp.push(async () => {
      agent.child.kill("SIGTERM");
      await agent.finished;
    });
    await lab.sandbox.until(agent, "stdout", /SSH_AUTH_SOCK/);
    const env = { SSH_AUTH_SOCK: socket, CODER_CONFIG_DIR: lab.alice.configDir };
    const added = await lab.sandbox.run("ssh-add", [key], env);
    assert.equal(added.code, 0, added.stderr);
    const coder = (...args: string[]) => lab.sandbox.run(lab.program, args, env);
    const listed = await coder("ssh", "-A", "dev", "--", "ssh-add -L; echo $SSH_AUTH_SOCK");
    assert.equal(listed.code, 0, listed.stderr);
    const [line, remote] = listed.stdout.split("\n");
    assert.equal(line, readFileSync(`${key}.pub`, "utf8").trim());
    assert.notEqual(remote, socket);
    const without = await coder("ssh", "dev", "--", 'echo "[$SSH_AUTH_SOCK]"');
    assert.equal(without.stdout, "[]\n");
    await poll(
      () => !readdirSync(path.dirname(path.dirname(remote))).includes(path.basename(path.dirname(remote))),
      () => `${remote} is removed`,
    );
  });

  it("sessions are listed with what runs in them, and closed by id", async () => {
    const running = lab.alice.start("ssh", "dev", "--", "echo up; exec sleep 600");
    await lab.sandbox.until(running, "stdout", /^up$/m);
    const list = await lab.alice.json<{ id: string; resumeWindowMs: number; streams: { what: string }[] }[]>(
      "sessions",
      "list",
      "dev",
    );
    const own = list.filter(({ streams }) => streams.some(({ what }) => what.includes("sleep 600")));
    assert.equal(own.length, 1, JSON.stringify(list));
    assert.equal(own[0].resumeWindowMs, 86_400_000);
    const table = await lab.alice.must("sessions");
    assert.match(table.stdout, new RegExp(`^dev +${own[0].id.slice(0, 8)} `, "m"));
    const closed = await lab.alice.must("sessions", "close", "dev", own[0].id.slice(0, 12));
    assert.match(closed.stderr, /^Closed session /m);
    const done = await running.finished;
    assert.equal(done.code, 255, done.stderr);
    assertRefused(
      await lab.alice.coder("sessions", "close", "dev", own[0].id),
      1,
      /keeps no session/,
      /sessions list dev/,
    );
    assertRefused(
      await lab.alice.coder("sessions", "close", "dev"),
      1,
      /no session was named/,
      /--all-others/,
    );
  });

  it("ping counts, explains the path, and answers in JSON", async () => {
    const text = await lab.alice.must("ping", "dev", "-n", "3", "--wait", "1ms");
    assert.equal(text.stdout.match(/^pong from dev via relay .* in [\d.]+ ms \(\d\/3\)$/gm)?.length, 3);
    assert.match(text.stdout, /^3 replies, 0 lost; round trip min \/ avg/m);
    assert.match(text.stdout, /relay, end-to-end encrypted/);
    const json = await lab.alice.json<{ replies: unknown[]; lost: number; avg_ms: number }>(
      "ping",
      "dev",
      "-n",
      "2",
      "--wait",
      "1ms",
    );
    assert.deepEqual([json.replies.length, json.lost], [2, 0]);
    assert.ok(json.avg_ms > 0);
    assertRefused(await lab.alice.coder("ping", "dev", "-n", "x"), 1, /is no count/, /--num 5/);
    assertRefused(await lab.alice.coder("ping", "dev", "-t", "5"), 1, /is no duration/, /5s/);
  });

  for (const direction of ["down", "up"])
    it(`speedtest ${direction} measures what really moved`, async () => {
      const args = ["speedtest", "dev", "-t", "1200ms", "--direction", direction];
      const json = await lab.alice.json<{
        overall: { throughput_mbits: number; end_time_seconds: number };
        intervals: unknown[];
      }>(...args);
      assert.ok(json.overall.throughput_mbits > 1, JSON.stringify(json));
      assert.ok(json.overall.end_time_seconds > 0.9 && json.intervals.length >= 1);
    });

  it("--log-dir keeps a file per process that tells how the connection was made", async () => {
    const dir = lab.local("logs");
    await lab.alice.must("ssh", "--log-dir", dir, "dev", "true");
    const [name, ...more] = readdirSync(dir);
    assert.deepEqual(more, []);
    assert.match(name, /^coder-ssh-\d{8}-\d{6}-\d+\.log$/);
    const text = readFileSync(path.join(dir, name), "utf8");
    assert.match(text, /relay connection.*"connected":true/);
    assert.ok(!text.includes(lab.alice.token));
  });
});
