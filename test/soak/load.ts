// What people do all day, as small tasks that check what they got: commands, transfers, forwards, the API, builds.
import { createHash, randomBytes } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net, { type AddressInfo } from "node:net";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { WebSocket } from "ws";
import type { SshLab } from "../e2e/lab.ts";
import type { Finished, Running } from "../e2e/sandbox.ts";
import { PASSWORD, type Person, templates, writeTemplate } from "../e2e/server.ts";

/** Content that is not what was sent: never expected, whatever else goes on. */
export class Corrupt extends Error {}

export interface Ports {
  /** On this side: what is sent comes back; the SHA-256 of what was sent comes back; datagrams come back. */
  echo: number;
  hash: number;
  udp: number;
}

export interface LoadContext {
  lab: SshLab;
  bob: Person;
  ports: Ports;
  random: () => number;
}

export interface Task {
  name: string;
  /** Mean pause between the end of one and the start of the next, seconds. */
  everySeconds: number;
  run(it: LoadContext): Promise<void>;
}

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");

function same(what: string, got: string, wanted: string): void {
  if (got !== wanted) throw new Corrupt(`${what}: got ${got.slice(0, 200)}, wanted ${wanted.slice(0, 200)}`);
}

/** The last words of a command that failed, without what it reports while it works. */
export function lastLine(text: string): string {
  const lines = text.split("\n").filter((line) => line.trim() !== "");
  return lines.findLast((line) => /error|fail|lost|refused|closed|denied/i.test(line)) ?? lines.at(-1) ?? "";
}

async function must(line: string, running: Promise<Finished>): Promise<Finished> {
  const done = await running;
  if (done.code !== 0)
    throw new Error(`${line.slice(0, 60)} ended with ${done.code ?? done.signal}: ${lastLine(done.stderr)}`);
  return done;
}

const bash = ({ lab }: LoadContext, line: string): Promise<Finished> => must(line, lab.run(line));
const coder = ({ lab }: LoadContext, ...args: string[]): Promise<Finished> =>
  must(`coder ${args.join(" ")}`, lab.alice.coder(...args));

async function api(person: Person, method: string, pathname: string, body?: unknown): Promise<string> {
  const answer = await person.api(method, pathname, body);
  if (answer.status >= 300) throw new Error(`${method} ${pathname.split("/")[1]}: HTTP ${answer.status}`);
  return answer.body;
}

/** A folder of this run's own on both sides; gone afterwards. */
async function withFolders(
  { lab }: LoadContext,
  run: (local: string, remote: string, name: string) => Promise<void>,
): Promise<void> {
  const name = `t-${randomBytes(6).toString("hex")}`;
  const [local, remote] = [lab.local(name), lab.remote(name)];
  mkdirSync(local);
  mkdirSync(remote);
  try {
    await run(local, remote, name);
  } finally {
    rmSync(local, { recursive: true, force: true });
    rmSync(remote, { recursive: true, force: true });
  }
}

const fileHash = (file: string): string => sha256(readFileSync(file));

async function transfer(it: LoadContext, bytes: number, lines: (name: string) => string[]): Promise<void> {
  await withFolders(it, async (local, remote, name) => {
    const content = randomBytes(bytes);
    writeFileSync(path.join(local, "up"), content);
    for (const line of lines(name))
      await bash(it, line.replaceAll("LOCAL", local).replaceAll("REMOTE", name));
    same("what was sent", fileHash(path.join(remote, "up")), sha256(content));
    same("what came back", fileHash(path.join(local, "back")), sha256(content));
  });
}

async function exchange(port: number, bytes: Uint8Array): Promise<Buffer> {
  const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
  try {
    socket.end(bytes);
    const chunks: Buffer[] = [];
    for await (const chunk of socket) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks);
  } finally {
    socket.destroy();
  }
}

async function stopAfter(running: Running, ms: number, signal: NodeJS.Signals): Promise<void> {
  await Promise.race([running.finished, delay(ms)]);
  running.child.kill(signal);
  await running.finished;
}

/** Reads what comes in sips of 50 ms each half second, then all the rest. */
async function slowRead(it: LoadContext): Promise<void> {
  const bytes = 24 << 20;
  const running = it.lab.alice.start("ssh", "dev", "--", `head -c ${bytes} /dev/zero`);
  const { stdout } = running.child;
  const hash = createHash("sha256");
  let got = 0;
  stdout?.removeAllListeners("data").setEncoding("latin1");
  stdout?.on("data", (chunk: string) => {
    hash.update(chunk, "latin1");
    got += chunk.length;
  });
  let isOver = false;
  void running.finished.then(() => {
    isOver = true;
  });
  while (!isOver && got < bytes / 2) {
    stdout?.pause();
    await delay(450);
    stdout?.resume();
    await delay(50);
  }
  const { code, stderr } = await running.finished;
  if (code !== 0) throw new Error(`slow reader ended with ${code}: ${lastLine(stderr)}`);
  same("bytes of a slow reader", `${got} ${hash.digest("hex")}`, `${bytes} ${sha256(Buffer.alloc(bytes))}`);
}

/** Follows a log and leaves: at its end, in its middle, or without having read a word. */
async function follow(it: LoadContext): Promise<void> {
  const { lab, random } = it;
  const { latest_build: build } = await lab.alice.json<{ latest_build: { id: string } }>("show", "dev");
  const url = `${lab.gate.url.replace("http", "ws")}/api/v2/workspacebuilds/${build.id}/logs?follow=true`;
  const socket = new WebSocket(url, {
    headers: { "Coder-Session-Token": lab.alice.token },
    perMessageDeflate: false,
  });
  socket.on("error", () => undefined);
  const kind = Math.floor(random() * 3);
  if (kind === 0) {
    let lines = 0;
    socket.on("message", () => lines++);
    const [code] = (await once(socket, "close")) as [number];
    if (code !== 1000 || lines === 0)
      throw new Error(`log followed: closed with ${code} after ${lines} messages`);
    return;
  }
  await Promise.race([once(socket, "open"), once(socket, "close")]);
  if (kind === 1) await Promise.race([once(socket, "message"), once(socket, "close"), delay(2_000)]);
  else {
    socket.pause();
    await delay(3_000);
  }
  socket.terminate();
}

async function tokens(it: LoadContext): Promise<void> {
  const { alice } = it.lab;
  const name = `t${randomBytes(5).toString("hex")}`;
  const { key } = JSON.parse(
    await api(alice, "POST", "/users/me/keys/tokens", { token_name: name, lifetime: 3_600_000_000_000 }),
  ) as { key: string };
  const found = await alice.coder("whoami", "--token", key);
  if (found.code !== 0) throw new Error(`whoami with a new token: ${lastLine(found.stderr)}`);
  await api(alice, "DELETE", `/users/me/keys/${key.split("-")[0]}`);
  const gone = await alice.coder("whoami", "--token", key);
  if (gone.code === 0) throw new Corrupt("a deleted token is still good");
}

async function people(it: LoadContext): Promise<void> {
  const { alice } = it.lab;
  const username = `u${randomBytes(5).toString("hex")}`;
  const body = { username, email: `${username}@example.com`, password: PASSWORD };
  const { id } = JSON.parse(await api(alice, "POST", "/users", body)) as { id: string };
  await api(alice, "PUT", `/users/${id}/profile`, { username, name: "Some Body" });
  await api(alice, "PUT", `/users/${id}/status/suspend`);
  await api(alice, "PUT", `/users/${id}/status/activate`);
  await api(alice, "DELETE", `/users/${id}`);
}

async function broken(it: LoadContext): Promise<void> {
  const pushed = await it.lab.alice.push("broken", templates.broken);
  if (pushed.code === 0) throw new Error("a broken template was taken");
}

async function login(it: LoadContext): Promise<void> {
  const { bob, lab } = it;
  const flags = ["--email", "bob@example.com", "--password", PASSWORD];
  await must("login", bob.coder("login", lab.gate.url, ...flags));
  const { token } = bob;
  await must("list", bob.coder("list"));
  await must("logout", bob.coder("logout", "--yes"));
  const late = await lab.alice.coder("whoami", "--token", token);
  if (late.code === 0) throw new Corrupt("a token works after its logout");
}

async function udp(it: LoadContext): Promise<void> {
  const socket = dgram.createSocket("udp4");
  try {
    const wanted = randomBytes(16).toString("hex");
    const answer = once(socket, "message") as Promise<[Buffer]>;
    // Datagrams may be lost: some tries.
    for (let i = 0; i < 40; i++) {
      socket.send(wanted, it.ports.udp, "127.0.0.1");
      const got = await Promise.race([answer, delay(250)]);
      if (got) return same("a datagram", String(got[0]), wanted);
    }
    throw new Error("no datagram came back within 10 s");
  } finally {
    socket.close();
  }
}

async function remoteForward(it: LoadContext): Promise<void> {
  const server = net.createServer((socket) => socket.on("error", () => undefined).end("from here"));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const socket = it.lab.remote(`r-${randomBytes(4).toString("hex")}`);
    const { port } = server.address() as AddressInfo;
    const ask = `python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(99).decode())' ${socket}`;
    const done = await coder(it, "ssh", "dev", "-R", `${socket}:127.0.0.1:${port}`, "--", ask);
    same("a remote forward", done.stdout.trim(), "from here");
  } finally {
    server.close();
  }
}

async function tree(it: LoadContext): Promise<void> {
  await withFolders(it, async (local, remote, name) => {
    for (let i = 0; i < 40; i++) writeFileSync(path.join(local, `f${i}`), randomBytes(200 + i * 900));
    const hashes = (folder: string) =>
      readdirSync(folder)
        .sort()
        .map((file) => `${file} ${fileHash(path.join(folder, file))}`)
        .join("\n");
    await bash(it, `rsync -a --checksum '${local}/' coder.dev:${name}/`);
    same("a tree by rsync", sha256(hashes(remote)), sha256(hashes(local)));
    await bash(it, `rsync -a --delete coder.dev:${name}/ '${local}-back/'`);
    same("a tree back", sha256(hashes(`${local}-back`)), sha256(hashes(local)));
    rmSync(`${local}-back`, { recursive: true });
  });
}

async function clone(it: LoadContext): Promise<void> {
  await withFolders(it, async (local, remote, name) => {
    const git = "git -c user.name=a -c user.email=a@example.com";
    writeFileSync(path.join(remote, "x"), randomBytes(300_000));
    await bash(it, `cd '${remote}' && git init -q && git add x && ${git} commit -qm one`);
    await bash(it, `git clone -q 'coder.dev:${name}' '${local}/clone'`);
    same("a file by git", fileHash(path.join(local, "clone/x")), fileHash(path.join(remote, "x")));
  });
}

const some = (length: number): string => randomBytes(length).toString("hex");

/** Everything but what needs a workspace of its own: that is chaos.ts. */
export const TASKS: readonly Task[] = [
  {
    name: "coder ssh",
    everySeconds: 12,
    async run(it) {
      const text = some(20);
      same("output", (await coder(it, "ssh", "dev", "--", `echo ${text}`)).stdout.trim(), text);
    },
  },
  {
    name: "ssh, exit code",
    everySeconds: 15,
    async run({ lab }) {
      const done = await lab.run("ssh coder.dev 'echo out; echo err >&2; exit 7'");
      if (done.code !== 7) throw new Error(`ssh ended with ${done.code}: ${lastLine(done.stderr)}`);
      same("output", done.stdout, "out\n");
    },
  },
  {
    name: "terminal",
    everySeconds: 45,
    async run(it) {
      const done = await coder(it, "ssh", "dev", "-t", "--", "test -t 1 && seq 2000 | cksum");
      same("a checksum on a terminal", done.stdout.trim(), "852505425 8893");
    },
  },
  { name: "scp", everySeconds: 60, run: (it) => transfer(it, 6_000_000, scpLines) },
  { name: "sftp", everySeconds: 60, run: (it) => transfer(it, 3_000_000, sftpLines) },
  { name: "rsync", everySeconds: 120, run: tree },
  { name: "git", everySeconds: 180, run: clone },
  {
    name: "forward",
    everySeconds: 15,
    async run({ ports }) {
      const data = Array.from({ length: 12 }, (_, i) => randomBytes(1_000 + i * 7_001));
      const answers = await Promise.all(data.map((bytes) => exchange(ports.echo, bytes)));
      for (const [i, answer] of answers.entries()) same("a forward", sha256(answer), sha256(data[i]));
      const big = randomBytes(4 << 20);
      same("a large forward", (await exchange(ports.hash, big)).toString(), sha256(big));
    },
  },
  {
    name: "forward, reset",
    everySeconds: 15,
    async run({ ports }) {
      const sockets = Array.from({ length: 8 }, () => net.connect(ports.echo, "127.0.0.1"));
      for (const socket of sockets) socket.on("error", () => undefined).write(randomBytes(50_000));
      await delay(30);
      for (const [i, socket] of sockets.entries()) i % 2 ? socket.destroy() : socket.resetAndDestroy();
    },
  },
  { name: "datagrams", everySeconds: 20, run: udp },
  { name: "remote forward", everySeconds: 90, run: remoteForward },
  {
    name: "client killed",
    everySeconds: 20,
    async run({ lab, random }) {
      const how = Math.floor(random() * 3);
      const endless = ["cat /dev/zero", "sleep 1000", "yes | cat"][Math.floor(random() * 3)];
      // The one that can't say goodbye: what it left is kept as long as it asked.
      if (how === 0) {
        const running = lab.alice.start("ssh", "dev", "--resume-window", "20s", "--", endless);
        running.child.stdout?.removeAllListeners("data").resume();
        return await stopAfter(running, 1_000, "SIGKILL");
      }
      const running =
        how === 1
          ? lab.alice.start("ssh", "dev", "--", endless)
          : lab.bash(`exec ssh -F '${lab.sshConfig}' coder.dev '${endless}'`);
      running.child.stdout?.removeAllListeners("data").resume();
      await stopAfter(running, 1_000, how === 1 ? "SIGTERM" : "SIGKILL");
    },
  },
  { name: "slow reader", everySeconds: 120, run: slowRead },
  {
    name: "API reads",
    everySeconds: 3,
    async run({ lab: { alice } }) {
      for (const pathname of ["/workspaces?q=owner:me", "/users", "/templates", "/users/me", "/buildinfo"])
        await api(alice, "GET", pathname);
    },
  },
  {
    name: "list, show, sessions",
    everySeconds: 30,
    async run(it) {
      await coder(it, "list");
      await coder(it, "show", "dev");
      await coder(it, "sessions", "list", "dev");
    },
  },
  { name: "tokens", everySeconds: 60, run: tokens },
  { name: "people", everySeconds: 90, run: people },
  { name: "login, logout", everySeconds: 90, run: login },
  { name: "log followed", everySeconds: 20, run: follow },
  {
    name: "template pushed",
    everySeconds: 300,
    async run(it) {
      await must("push", it.lab.alice.push("empty", `${templates.empty}# ${some(8)}\n`));
    },
  },
  { name: "broken template", everySeconds: 600, run: broken },
  {
    name: "workspace made and deleted",
    everySeconds: 240,
    async run(it) {
      const name = `w${some(4)}`;
      await coder(it, "create", name, "--template", "empty", "--yes");
      await coder(it, "stop", name, "--yes");
      await coder(it, "delete", name, "--yes");
    },
  },
  { name: "ping", everySeconds: 60, run: async (it) => void (await coder(it, "ping", "dev", "-n", "3")) },
];

function scpLines(): string[] {
  return ["scp -q LOCAL/up coder.dev:REMOTE/up", "scp -q coder.dev:REMOTE/up LOCAL/back"];
}

function sftpLines(): string[] {
  return ["printf 'put LOCAL/up REMOTE/up\\nget REMOTE/up LOCAL/back\\n' | sftp -q -b - coder.dev"];
}

/** What "the workspace" serves: an echo, a hash, an echo of datagrams. Lives as long as the run. */
export async function serveTargets(): Promise<{ ports: Ports; close(): void }> {
  const sockets = new Set<net.Socket>();
  const serve = async (take: (socket: net.Socket) => void): Promise<net.Server> => {
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket);
      socket.on("error", () => undefined).on("close", () => sockets.delete(socket));
      take(socket);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return server;
  };
  const echo = await serve((socket) => socket.pipe(socket));
  const hash = await serve((socket) => {
    const sum = createHash("sha256");
    socket.on("data", (chunk) => sum.update(chunk)).on("end", () => socket.end(sum.digest("hex")));
  });
  const datagrams = dgram.createSocket("udp4");
  datagrams.on("message", (bytes, from) => datagrams.send(bytes, from.port, from.address));
  datagrams.bind(0, "127.0.0.1");
  await once(datagrams, "listening");
  const portOf = (server: net.Server): number => (server.address() as AddressInfo).port;
  return {
    ports: { echo: portOf(echo), hash: portOf(hash), udp: datagrams.address().port },
    close() {
      for (const socket of sockets) socket.destroy();
      echo.close();
      hash.close();
      datagrams.close();
    },
  };
}

/** A template without an agent, for the tasks above. */
export async function prepare(lab: SshLab): Promise<void> {
  writeTemplate(lab.sandbox, "empty", templates.empty);
  await lab.alice.mustPush("empty", templates.empty);
}
