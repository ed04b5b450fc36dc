// A workspace that turned on its user: its agent is modified to open, over the session that the user opened, whatever it
// would like to have of the user's machine. It gets what was asked for in that session, and nothing else.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, readFileSync } from "node:fs";
import net, { type AddressInfo } from "node:net";
import path from "node:path";
import { Writable } from "node:stream";
import { pino } from "pino";
import { connectAgentMesh } from "../../agent/mesh.ts";
import type { MeshNode, MeshStream, StreamPeer } from "../../mesh/node/node.ts";
import { decodeHeader, encodeMessage } from "../../mesh/wire/channel.ts";
import { encodeMetadata } from "../../mesh/wire/forward.ts";
import { bundle, type Finished, Sandbox } from "./sandbox.ts";
import { Person, TestServer } from "./server.ts";
import { tokenTemplate } from "./token-template.ts";

const newToken = () => randomBytes(16).toString("base64");

describe("a hostile agent", function () {
  this.timeout(60_000);
  let sandbox: Sandbox;
  let server: TestServer;
  let alice: Person;
  let node: MeshNode;
  /** The user's own services, and who came to them. */
  let loopback: net.Server;
  let sshAgent: net.Server;
  let port: number;
  let socketPath: string;
  let visits: string[];
  /** What the modified agent does with a session. */
  let onSession: (stream: MeshStream, peer: StreamPeer) => void;

  before(async () => {
    sandbox = new Sandbox();
    server = await TestServer.start(sandbox);
    alice = await Person.first(sandbox, server.url, "alice");
    const tokenFile = path.join(sandbox.dir, "agent-token");
    await alice.mustPush("bare", tokenTemplate(tokenFile));
    await alice.must("create", "evil", "--template", "bare", "--yes");
    const logger = pino({ level: "silent" }, new Writable({ write: (_c, _e, done) => done() }));
    node = await connectAgentMesh({ url: server.url, token: readFileSync(tokenFile, "utf8"), logger });
    node.listen("session", (stream, peer) => onSession(stream, peer));
    node.listen("tcp:", (stream, peer) => onSession(stream, peer));
    const count = (name: string) =>
      net.createServer((socket) => {
        visits.push(name);
        socket.end();
      });
    loopback = count("loopback").listen(0, "127.0.0.1");
    const dir = path.join(sandbox.dir, "user");
    mkdirSync(dir, { mode: 0o700 });
    socketPath = path.join(dir, "agent.sock");
    sshAgent = count("ssh-agent").listen(socketPath);
    await Promise.all([once(loopback, "listening"), once(sshAgent, "listening")]);
    ({ port } = loopback.address() as AddressInfo);
  });
  beforeEach(() => {
    visits = [];
  });
  after(async () => {
    loopback?.close();
    sshAgent?.close();
    await node?.close();
    await server?.stop();
    const left = sandbox.processes();
    sandbox.dispose();
    assert.deepEqual(left, [], "processes left behind");
  });

  /** Opens each service at the client. @returns how each ended: "refused", or what came of it */
  async function tryAll(peer: StreamPeer, wishes: [string, Uint8Array][]): Promise<string[]> {
    return await Promise.all(
      wishes.map(async ([service, metadata]) => {
        const stream = peer.open(service, metadata);
        stream.on("error", () => undefined);
        stream.write("GET / HTTP/1.0\r\n\r\n");
        let got = 0;
        stream.on("data", (chunk: Buffer) => {
          got += chunk.length;
        });
        const timer = setTimeout(() => stream.destroy(new Error("held open")), 5_000);
        let outcome = "refused";
        stream.on("end", () => {
          outcome = "ended in order";
          stream.end();
        });
        stream.on("error", (error: Error) => {
          if (error.message === "held open") outcome = error.message;
        });
        await once(stream, "close").catch(() => undefined);
        clearTimeout(timer);
        return got > 0 ? `${service} gave ${got} bytes` : outcome;
      }),
    );
  }

  const wishes = (): [string, Uint8Array][] => {
    const none = new Uint8Array();
    const callback = (token: string) => encodeMetadata({ token, origin: { address: "127.0.0.1", port: 1 } });
    return [
      [`tcp:127.0.0.1:${port}`, none],
      [`tcp:localhost:${port}`, none],
      [`udp:127.0.0.1:${port}`, none],
      [`unix:${socketPath}`, none],
      ["session", Buffer.from(JSON.stringify({ v: 1, kind: "exec", command: "id" }))],
      ["listen", encodeMetadata({ v: 1, token: newToken(), kind: "tcp", host: "", port: 0 })],
      ["sessions", encodeMetadata({ v: 1, op: "list" })],
      ["speedtest", encodeMetadata({ v: 1, direction: "down", durationMs: 1_000 })],
      ["callback", none],
      ["callback", Buffer.from("{")],
      ["callback", Buffer.from(JSON.stringify({ token: "" }))],
      ["callback", Buffer.from(JSON.stringify({ token: null, __proto__: { token: "x" } }))],
      ["callback", callback(newToken())],
      ["callback", callback("A".repeat(22).concat("=="))],
      ["constructor", none],
      ["", none],
    ];
  };

  /** Tries everything while the session lives, then ends it in order. */
  function attempt(list: (header: ReturnType<typeof decodeHeader>) => [string, Uint8Array][] = wishes) {
    let outcomes: string[] | undefined;
    onSession = (stream, peer) => {
      stream.resume();
      stream.write(encodeMessage({ kind: "openOk" }));
      const header = decodeHeader(stream.metadata);
      void tryAll(peer, list(header)).then((found) => {
        outcomes = found;
        stream.end(encodeMessage({ kind: "exitStatus", status: 0 }));
      });
    };
    return () => outcomes;
  }

  const coder = (...args: string[]): Promise<Finished> =>
    sandbox.run(process.execPath, [bundle, ...args], {
      CODER_CONFIG_DIR: alice.configDir,
      SSH_AUTH_SOCK: socketPath,
    });

  it("opens nothing at a client that asked for a command", async () => {
    const outcomes = attempt();
    const done = await coder("ssh", "evil", "--wait", "no", "true");
    assert.equal(done.code, 0, done.stderr);
    assert.deepEqual(new Set(outcomes()), new Set(["refused"]));
    assert.equal(outcomes()?.length, wishes().length);
    assert.deepEqual(visits, []);
  });

  it("with -A it gets to the SSH agent, and still to nothing else", async () => {
    const token = (header: ReturnType<typeof decodeHeader>) => header.agent?.token as string;
    const outcomes = attempt((header) => [
      ...wishes(),
      ["callback", encodeMetadata({ token: token(header) })],
    ]);
    const done = await coder("ssh", "evil", "-A", "--wait", "no", "true");
    assert.equal(done.code, 0, done.stderr);
    assert.deepEqual(new Set(outcomes()?.slice(0, -1)), new Set(["refused"]));
    assert.deepEqual(visits, ["ssh-agent"]);
  });

  it("a token of one command is void in the next", async () => {
    let stolen = "";
    attempt((header) => {
      stolen = header.agent?.token as string;
      return [];
    });
    await coder("ssh", "evil", "-A", "--wait", "no", "true");
    const outcomes = attempt(() => [["callback", encodeMetadata({ token: stolen })]]);
    await coder("ssh", "evil", "-A", "--wait", "no", "true");
    assert.deepEqual(outcomes(), ["refused"]);
    assert.deepEqual(visits, []);
  });

  it("opens nothing at the stock ssh through --stdio, and at a port forward", async () => {
    const config = path.join(sandbox.dir, "ssh_config");
    await alice.must("config-ssh", "--yes", "--ssh-config-file", config);
    let outcomes = attempt();
    // It would itself ask its agent for keys before it logs in.
    const ssh = ["-F", config, "-o", "IdentityAgent=none", "coder.evil", "true"];
    const done = await sandbox.run("ssh", ssh, {
      CODER_CONFIG_DIR: alice.configDir,
      SSH_AUTH_SOCK: socketPath,
    });
    assert.equal(done.code, 0, done.stderr);
    assert.deepEqual(new Set(outcomes()), new Set(["refused"]));

    outcomes = () => undefined;
    let found: string[] | undefined;
    onSession = (stream, peer) => {
      void tryAll(peer, wishes()).then((all) => {
        found = all;
        stream.destroy();
      });
    };
    const forward = alice.start("port-forward", "evil", "--tcp", "0:4711");
    const [, local] = await sandbox.until(forward, "stdout", /127\.0\.0\.1:(\d+)/);
    const socket = net.connect(Number(local), "127.0.0.1");
    await new Promise<void>((resolve) => socket.on("error", () => undefined).once("close", () => resolve()));
    forward.child.kill("SIGINT");
    await forward.finished;
    assert.deepEqual(new Set(found), new Set(["refused"]));
    assert.deepEqual(visits, []);
  });

  it("a flood of opens is refused one by one, and the session goes on", async () => {
    onSession = (stream, peer) => {
      stream.resume();
      stream.write(encodeMessage({ kind: "openOk" }));
      let opened = 0;
      const more = (): void => {
        for (let i = 0; i < 50 && opened < 2_000; i++, opened++)
          try {
            peer.open(`tcp:127.0.0.1:${port}`, new Uint8Array()).on("error", () => undefined);
          } catch {
            // our own side's bound
          }
        if (opened < 2_000) return void setTimeout(more, 1);
        stream.write(encodeMessage({ kind: "data", bytes: Buffer.from("still here\n") }));
        stream.end(encodeMessage({ kind: "exitStatus", status: 5 }));
      };
      more();
    };
    const done = await coder("ssh", "evil", "--wait", "no", "true");
    assert.deepEqual([done.code, done.stdout], [5, "still here\n"], done.stderr);
    assert.deepEqual(visits, []);
  });

  it("messages that no agent may send, and ones out of bounds, end the session with 255 and a reason", async () => {
    const bad: [string, Uint8Array][] = [
      [
        "a message of the client's",
        encodeMessage({ kind: "windowChange", cols: 1, rows: 1, widthPx: 0, heightPx: 0 }),
      ],
      ["DATA of 2^62-1 bytes", Buffer.from("01ffffffffffffffff", "hex")],
      ["a control message of 1 GiB", Buffer.from("30c000000040000000", "hex")],
      ["an exit status of 2^62-1", Buffer.from("3008ffffffffffffffff", "hex")],
      ["an exit signal without a name", Buffer.from("31020001", "hex")],
    ];
    for (const [what, bytes] of bad) {
      onSession = (stream) => {
        stream.resume();
        stream.write(encodeMessage({ kind: "openOk" }));
        stream.end(bytes);
      };
      const done = await coder("ssh", "evil", "--wait", "no", "true");
      assert.equal(done.code, 255, `${what}: ${done.stderr}`);
      assert.match(done.stderr, /^error: /m, what);
      assert.doesNotMatch(done.stderr, /^ +at /m, what);
    }
  });

  it("its texts reach the terminal without control sequences", async () => {
    onSession = (stream) => {
      stream.resume();
      stream.end(
        encodeMessage({ kind: "openFailed", reason: 1, message: "no\u001b]0;owned\u0007 \u009b2J" }),
      );
    };
    const done = await coder("ssh", "evil", "--wait", "no", "true");
    assert.equal(done.code, 255);
    assert.doesNotMatch(done.stderr, /[\x07\x1b\x9b]/);
  });
});
