// What a person does to a workspace without meaning well, or without meaning to: readers that stop, floods, paths that
// are none, and the other side gone in the middle. Nobody else's session may notice, and who is hit must be told.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import net, { type AddressInfo } from "node:net";
import path from "node:path";
import { INIT, packet, string, u32 } from "../../agent/sftp/testing.ts";
import { needsProc } from "../skip.ts";
import { processesWith, SshLab } from "./lab.ts";
import { freePort } from "./outage.ts";
import type { Running } from "./sandbox.ts";
import { poll } from "./tmux.ts";

const MIB = 1 << 20;
/** Above what a process held before. A session's window grows to 32 MiB at either end, and V8 lets some garbage lie. */
const MAX_GROWTH_BYTES = 128 * MIB;
const FLOOD = 300;
/** What coder ssh --stdio lets an SSH client open at once is 224; the session itself is one of them. */
const MIN_SERVED = 200;

function residentBytes(pid: number): number {
  const [, kib] = /^VmRSS:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kib) * 1_024;
}

/** User and system time so far, in the kernel's ticks. */
function cpuTicks(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1].split(" ");
  return Number(fields[11]) + Number(fields[12]);
}

/** @returns whether there still is such a process */
function sendHangup(pid: number): boolean {
  try {
    return process.kill(pid, "SIGHUP");
  } catch {
    return false;
  }
}

describe("hostile input", function () {
  this.timeout(60_000);
  let lab: SshLab;
  let echo: net.Server;
  let echoPort: number;
  const running: Running[] = [];

  before(async function () {
    needsProc(this);
    lab = await SshLab.start({ direct: true });
    echo = net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => undefined);
      socket.pipe(socket);
    });
    echo.listen(0, "127.0.0.1");
    await once(echo, "listening");
    echoPort = (echo.address() as AddressInfo).port;
  });
  after(async () => {
    echo?.close();
    await lab?.close();
  });
  afterEach(async () => {
    for (const one of running.splice(0)) {
      one.child.kill("SIGCONT");
      one.child.kill("SIGTERM");
      await one.finished;
    }
  });

  /** A line of sh that becomes one program: its process is that program's. */
  function start(line: string): Running {
    const one = lab.sandbox.start("sh", ["-c", `exec ${line}`], { CODER_CONFIG_DIR: lab.alice.configDir });
    running.push(one);
    return one;
  }
  const ssh = (line: string): Running => start(`${lab.sshCommand} ${line}`);

  const agentFile = () => path.join(path.dirname(lab.home), "agent.pid");
  const agentPid = () => Number(readFileSync(agentFile(), "utf8").split(/\s/)[0]);

  /** Opens `count` connections at once, each with a word that must come back. @returns how many words did */
  async function flood(port: number, count: number): Promise<number> {
    const words = Array.from({ length: count }, (_, i) => `word ${i}`);
    const answers = await Promise.all(
      words.map(
        (word) =>
          new Promise<string>((resolve) => {
            let text = "";
            const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
            socket.setEncoding("utf8").on("data", (chunk: string) => {
              text += chunk;
            });
            socket.on("error", () => undefined).on("close", () => resolve(text));
            socket.on("end", () => socket.end()).end(word);
          }),
      ),
    );
    // Nobody gets another's bytes, or half of their own.
    for (const [i, answer] of answers.entries()) assert.ok(answer === "" || answer === words[i], answer);
    return answers.filter(Boolean).length;
  }

  async function listening(port: number): Promise<void> {
    for (let tries = 0; ; tries++) {
      const isThere = await new Promise<boolean>((resolve) => {
        const probe = net.connect({ port, host: "127.0.0.1" });
        probe.once("connect", () => resolve(true)).once("error", () => resolve(false));
        probe.once("connect", () => probe.destroy());
      });
      if (isThere) return;
      assert.ok(tries < 500, `nobody listens on ${port}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  it("a client that stops reading fills no memory, and nobody else waits for it", async () => {
    const before = residentBytes(agentPid());
    const stuck = ssh("coder.dev 'echo begins $$. >&2; exec yes' >/dev/null");
    await lab.sandbox.until(stuck, "stderr", /begins \d+\./);
    const yes = Number(/begins (\d+)/.exec(stuck.stderr)?.[1]);
    const [coder, ...more] = processesWith(`${lab.alice.configDir} ssh --stdio`);
    assert.deepEqual(more, []);
    const coderBefore = residentBytes(coder);
    stuck.child.kill("SIGSTOP");
    const others = await Promise.all([
      lab.run("ssh coder.dev echo one"),
      lab.alice.coder("ssh", "dev", "echo two"),
    ]);
    assert.deepEqual(
      others.map(({ stdout }) => stdout),
      ["one\n", "two\n"],
      others.map(({ stderr }) => stderr).join("\n"),
    );
    // `yes` makes gigabytes a second and ends up with nothing to do, or whoever takes its bytes holds them.
    for (let used = -1; used !== cpuTicks(yes); await new Promise((resolve) => setTimeout(resolve, 250))) {
      used = cpuTicks(yes);
      if (residentBytes(agentPid()) - before > MAX_GROWTH_BYTES) break;
    }
    const grown = { agent: residentBytes(agentPid()) - before, coder: residentBytes(coder) - coderBefore };
    assert.ok(grown.agent < MAX_GROWTH_BYTES && grown.coder < MAX_GROWTH_BYTES, JSON.stringify(grown));
    stuck.child.kill("SIGKILL");
    await stuck.finished;
    await poll(
      () => !lab.sandbox.processes().some((line) => / yes $/.test(line)),
      () => "the program ends with its client",
    );
  });

  it(`${FLOOD} connections at once through ssh -L are served or refused one by one`, async () => {
    const port = await freePort();
    const forward = ssh(`-N -L ${port}:127.0.0.1:${echoPort} coder.dev`);
    await listening(port);
    const served = await flood(port, FLOOD);
    assert.ok(served >= MIN_SERVED, `${served} of ${FLOOD}\n${forward.stderr}`);
    assert.equal(await flood(port, 1), 1, "the next one is served as ever");
    assert.equal(forward.child.exitCode, null, forward.stderr);
  });

  it(`${FLOOD} connections at once through coder port-forward are all served`, async () => {
    const forward = lab.alice.start("port-forward", "dev", "--tcp", `0:${echoPort}`);
    running.push(forward);
    const [, port] = await lab.sandbox.until(forward, "stdout", /127\.0\.0\.1:(\d+)/);
    assert.equal(await flood(Number(port), FLOOD), FLOOD, forward.stderr);
  });

  it("a forward to a port where nobody listens breaks off, says why, and stays for later", async () => {
    const [port, closed] = [await freePort(), await freePort()];
    const forward = ssh(`-N -L ${port}:127.0.0.1:${closed} coder.dev`);
    await listening(port);
    assert.equal(await flood(port, 1), 0);
    await lab.sandbox.until(
      forward,
      "stderr",
      /open failed: connect failed: .*refused; nothing listens there/,
    );
    const late = net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
    late.listen(closed, "127.0.0.1");
    await once(late, "listening");
    try {
      assert.equal(await flood(port, 1), 1);
    } finally {
      late.close();
    }
  });

  it("SFTP: names too long, out of the home, in bytes that are no text", async () => {
    const long = "x".repeat(1_500);
    const name = "\u0001\u001b[31m \"'%s~\\";
    const local = lab.local("hostile-name");
    writeFileSync(local, "content");
    const quoted = `"${name.replaceAll(/["\\]/g, "\\$&")}"`;
    const batch = [
      `-ls ${long}`,
      `-put ${local} ${"a/".repeat(750)}b`,
      `-get ../../../../../../../../no/such/file ${local}.x`,
      "cd ../../../../../../../../../..",
      "pwd",
      `cd "${lab.home}"`,
      `put ${local} ${quoted}`,
      `get ${quoted} ${local}.back`,
      `rm ${quoted}`,
    ];
    writeFileSync(`${local}.batch`, `${batch.join("\n")}\n`);
    const done = await lab.must(`sftp -b ${local}.batch coder.dev`);
    assert.match(done.stdout, /Remote working directory: \/\n/);
    assert.match(done.stderr, /x{100}/);
    assert.match(done.stderr, /no\/such\/file.* not found/i);
    assert.equal(readFileSync(`${local}.back`, "utf8"), "content");
  });

  it("SFTP: a NUL in a path is an answer, a packet of 4 GB is the end, and both are bounded", async () => {
    const [requests, replies] = [lab.local("requests"), lab.local("replies")];
    const stat = (id: number, name: string) => packet(17, u32(id), string(name));
    const ok = [INIT, stat(1, "a\0b"), stat(2, `${"../".repeat(1_400)}etc`), stat(3, "/")];
    writeFileSync(requests, Buffer.concat([...ok, Buffer.from("ffffffff11", "hex")]));
    const done = await lab.run(`ssh -s coder.dev sftp <${requests} >${replies}`);
    assert.equal(done.code, 11, done.stderr);
    assert.match(done.stderr, /^sftp: packet of 4294967295 bytes.*ending the session$/m);
    const found: [number, number][] = [];
    const bytes = readFileSync(replies);
    for (let at = 0; at < bytes.length; at += 4 + bytes.readUInt32BE(at))
      if (bytes[at + 4] !== 2)
        found.push([bytes.readUInt32BE(at + 5), bytes[at + 4] === 101 ? bytes.readUInt32BE(at + 9) : 0]);
    assert.deepEqual(found, [
      [1, 5], // bad message
      [2, 5], // as OpenSSH calls a name too long
      [3, 0], // attributes
    ]);
  });

  it("a client that leaves takes its session with it, though ssh hangs up on it in the middle of its goodbye", async () => {
    const session = ssh("coder.dev 'echo up; exec sleep 600'");
    await lab.sandbox.until(session, "stdout", /up/);
    const [coder] = processesWith(`${lab.alice.configDir} ssh --stdio`);
    session.child.kill("SIGKILL");
    // ssh sends one, at a moment of its own; here every moment gets one.
    const giveUpAt = performance.now() + 10_000;
    while (sendHangup(coder)) {
      assert.ok(performance.now() < giveUpAt, "coder ends");
      await new Promise(setImmediate);
    }
    const ids = async () =>
      (await lab.alice.json<{ id: string }[]>("sessions", "list", "dev")).map(({ id }) => id);
    let left = await ids();
    // The goodbye may still be on its way.
    for (let tries = 0; tries < 3 && left.length > 0; tries++) left = await ids();
    assert.deepEqual(left, []);
  });

  // The last two: what the others use ends here.
  it("an agent that is killed: ssh and coder ssh say so and end with 255", async () => {
    const command = "'echo up; exec sleep 600'";
    const both = [ssh(`coder.dev ${command}`), start(`${lab.program} ssh dev -- ${command}`)];
    for (const one of both) await lab.sandbox.until(one, "stdout", /up/);
    const pid = agentPid();
    const strings = (file: string) => readFileSync(`/proc/${pid}/${file}`, "utf8").split("\0").slice(0, -1);
    const [program, ...args] = strings("cmdline");
    const env = Object.fromEntries(
      strings("environ").map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
    );
    process.kill(pid, "SIGKILL");
    const again = lab.sandbox.start(program, args, env); // as a supervisor would
    running.push(again);
    for (const one of both) {
      const done = await one.finished;
      assert.equal(done.code, 255, done.stderr);
      assert.match(done.stderr, /^error: the session was cut off: the agent was restarted/m);
      assert.match(done.stderr, /^Run the command again/m);
    }
    assert.equal((await lab.must("ssh coder.dev echo back")).stdout, "back\n");
  });

  it("a workspace that is stopped: ssh and coder ssh say so and end with 255", async () => {
    await lab.alice.must("stop", "dev", "--yes");
    await lab.alice.must("start", "dev", "--yes");
    const command = "'echo up; exec sleep 600'";
    const both = [ssh(`coder.dev ${command}`), start(`${lab.program} ssh dev -- ${command}`)];
    for (const one of both) await lab.sandbox.until(one, "stdout", /up/);
    await lab.alice.must("stop", "dev", "--yes");
    for (const one of both) {
      const done = await one.finished;
      assert.equal(done.code, 255, done.stderr);
      assert.match(done.stderr, /^error: the session was cut off: .*stop/m);
      assert.match(done.stderr, /coder start/);
    }
  });
});
