import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import fs from "node:fs";
import net, { type AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import type { Duplex } from "node:stream";
import { ForwardService } from "../../agent/forward/serve.ts";
import { duplexPair, memoryLogger, servicePair } from "../../agent/testing.ts";
import { CALLBACK_SERVICE, type CallbackMetadata, encodeAnswer } from "../../mesh/wire/forward.ts";
import { forwardSshAgent } from "./agent-forward.ts";
import { readAnswer } from "./answer.ts";
import type { Accept, Dial } from "./dial.ts";
import { MAX_FLOWS } from "./flows.ts";
import { join } from "./join.ts";
import { forwardLocal } from "./local.ts";
import { forwardRemote } from "./remote.ts";
import { forwardUdp } from "./udp.ts";
import { forwardX11 } from "./x11-serve.ts";

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

function readAll(stream: Duplex): Promise<Buffer> {
  const chunks: Buffer[] = [];
  return new Promise((resolve, reject) => {
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.once("end", () => resolve(Buffer.concat(chunks)));
    stream.once("error", reject);
    stream.resume();
  });
}

/** However it ends. */
const closed = (stream: Duplex) =>
  new Promise<void>((resolve) => stream.on("error", () => undefined).once("close", () => resolve()));

describe("forwards from the user's side", () => {
  let dir = "";
  let agent: ForwardService;
  let problems: string[] = [];
  const cleanUp: (() => unknown)[] = [];
  const accepted = new Map<string, (stream: Duplex, metadata: CallbackMetadata) => void>();
  const streams: Duplex[] = [];

  beforeEach(() => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), "fw-"));
    agent = new ForwardService({ logger: memoryLogger(), resolvePath: (file) => path.resolve(dir, file) });
    problems = [];
    accepted.clear();
    streams.length = 0;
  });
  afterEach(async () => {
    for (const undo of cleanUp.splice(0).reverse()) await undo();
    agent.close();
    fs.rmSync(dir, { recursive: true, force: true });
  });

  const onProblem = (text: string) => problems.push(text);

  /** What the mesh does: hands the stream to the agent's service, and callbacks to who holds the token. */
  const dial: Dial = async (service, metadata) => {
    const [client, served] = servicePair(service, metadata);
    streams.push(client);
    served.on("error", () => undefined);
    const peer = {
      nodeKey: "",
      grant: { userId: "", username: "" },
      open: (name: string, bytes: Uint8Array) => {
        assert.equal(name, CALLBACK_SERVICE);
        const [mine, theirs] = servicePair(name, bytes);
        const { token, ...rest } = JSON.parse(Buffer.from(bytes).toString()) as CallbackMetadata;
        const handler = accepted.get(token);
        assert.ok(handler, "a callback without its token");
        handler(mine, { token, ...rest });
        return theirs;
      },
    };
    if (service === "listen") void agent.listen(served, peer);
    else void agent[service.slice(0, service.indexOf(":")) as "tcp" | "udp" | "unix"](served);
    return client;
  };
  const accept: Accept = (token, handler) => {
    accepted.set(token, handler);
    return () => accepted.delete(token);
  };

  async function serve(
    onConnection: (socket: net.Socket) => void,
    where: net.ListenOptions = { host: "127.0.0.1", port: 0 },
  ): Promise<number> {
    const sockets = new Set<net.Socket>();
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket);
      socket.on("error", () => undefined);
      onConnection(socket);
    });
    server.listen(where);
    await once(server, "listening");
    cleanUp.push(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return where.path === undefined ? (server.address() as AddressInfo).port : 0;
  }

  function connect(where: net.NetConnectOpts): net.Socket {
    const socket = net.connect({ ...where, allowHalfOpen: true } as net.NetConnectOpts);
    cleanUp.push(() => socket.destroy());
    return socket;
  }

  async function local(port: number, host: string | undefined = undefined) {
    const listener = await forwardLocal({
      dial,
      listen: { kind: "tcp", host: host as undefined, port: 0 },
      target: { kind: "tcp", host: "127.0.0.1", port },
      onProblem,
    });
    cleanUp.push(() => listener.close());
    return listener;
  }

  describe("-L and port-forward", () => {
    it("carry bytes both ways, and each direction ends by itself", async () => {
      const received: Promise<Buffer>[] = [];
      const port = await serve((socket) => {
        socket.end("all I have");
        received.push(readAll(socket));
      });
      const listener = await local(port);
      const socket = connect({ host: "127.0.0.1", port: listener.port });
      assert.equal((await readAll(socket)).toString(), "all I have");
      const late = randomBytes(3 << 20);
      socket.end(late);
      assert.equal(sha256(await received[0]), sha256(late));
    });

    it("localhost works by both of its addresses", async function () {
      if (
        !Object.values(os.networkInterfaces())
          .flat()
          .some((at) => at?.address === "::1")
      ) {
        console.log("      skipped: no IPv6 on this machine");
        this.skip();
      }
      const listener = await local(await serve((socket) => socket.end("hi")));
      for (const host of ["127.0.0.1", "::1"])
        assert.equal((await readAll(connect({ host, port: listener.port }))).toString(), "hi");
    });

    it("what was written before the local program went away arrives whole", async () => {
      const received: Promise<Buffer>[] = [];
      const port = await serve((socket) => received.push(readAll(socket)));
      const listener = await local(port);
      const socket = connect({ host: "127.0.0.1", port: listener.port });
      const data = randomBytes(1 << 20);
      socket.end(data);
      await once(socket, "finish");
      while (received.length === 0) await new Promise(setImmediate);
      assert.equal(sha256(await received[0]), sha256(data));
    });

    it("what a program wrote before its end arrives also when it then breaks off at once", async () => {
      const [local, program] = duplexPair();
      const [stream, target] = duplexPair(1_024);
      for (const side of [local, program, stream, target]) side.on("error", () => undefined);
      join(local, stream);
      const data = randomBytes(48 * 1024);
      program.end(data);
      await once(local, "end");
      assert.ok(!stream.writableFinished, "the target has not taken it yet");
      local.destroy(new Error("gone"));
      assert.equal(sha256(await readAll(target)), sha256(data));
    });

    it("a port nobody listens on breaks the connection off and is told once", async () => {
      const port = await serve(() => undefined);
      for (const undo of cleanUp.splice(0)) await undo();
      const listener = await local(port);
      for (let i = 0; i < 2; i++) {
        const socket = connect({ host: "127.0.0.1", port: listener.port });
        const [error] = (await once(socket, "error")) as [NodeJS.ErrnoException];
        assert.equal(error.code, "ECONNRESET");
      }
      assert.equal(problems.length, 2); // the command leaves the repetition out
      assert.match(problems[0], new RegExp(`^127.0.0.1:${port}: .*refused`, "i"));
    });

    it("a broken target breaks the local connection, never ends it", async () => {
      const port = await serve((socket) => socket.write("half", () => socket.resetAndDestroy()));
      const listener = await local(port);
      const socket = connect({ host: "127.0.0.1", port: listener.port });
      await assert.rejects(readAll(socket), { code: "ECONNRESET" });
    });

    it("a lost session breaks the local connection, and the next one is dialled anew", async () => {
      const port = await serve((socket) => socket.write("x"));
      const listener = await local(port);
      const socket = connect({ host: "127.0.0.1", port: listener.port });
      await once(socket, "data");
      const broken = once(socket, "error");
      streams[0].destroy(new Error("the session is gone"));
      assert.equal(((await broken) as [NodeJS.ErrnoException])[0].code, "ECONNRESET");
      const next = connect({ host: "127.0.0.1", port: listener.port });
      await once(next, "data");
      assert.equal(streams.length, 2);
    });

    it("a local program that does not read holds the target up, not our memory", async () => {
      let written = 0;
      const port = await serve((socket) => {
        const chunk = Buffer.alloc(64 * 1024);
        const more = () => {
          while (written < 256 << 20) {
            written += chunk.length;
            if (!socket.write(chunk)) return;
          }
        };
        socket.on("drain", more);
        more();
      });
      const listener = await local(port);
      const socket = connect({ host: "127.0.0.1", port: listener.port });
      socket.pause();
      await once(socket, "connect");
      for (let last = -1; last !== written; ) {
        last = written;
        await new Promise((resolve) => setTimeout(resolve, 60));
      }
      assert.ok(written < 64 << 20, `${written} bytes were taken`);
    });

    it("a dial that fails is told, and the connection broken off", async () => {
      const listener = await forwardLocal({
        dial: async () => {
          throw new Error("no way to the workspace");
        },
        listen: { kind: "tcp", host: undefined, port: 0 },
        target: { kind: "tcp", host: "localhost", port: 1 },
        onProblem,
      });
      cleanUp.push(() => listener.close());
      await once(connect({ host: "127.0.0.1", port: listener.port }), "error");
      assert.deepEqual(problems, ["localhost:1: no way to the workspace"]);
    });

    it("a taken port, a forbidden one and a foreign address each say what to do", async () => {
      const port = await serve(() => undefined);
      const open = (where: { host?: string; port: number }) =>
        forwardLocal({
          dial,
          listen: { kind: "tcp", host: where.host as undefined, port: where.port },
          target: { kind: "tcp", host: "localhost", port: 1 },
          onProblem,
        });
      await assert.rejects(open({ port }), { code: "ERR_PORT_TAKEN", hint: /another local port/ });
      await assert.rejects(open({ host: "192.0.2.1", port: 0 }), {
        code: "ERR_BAD_ADDRESS",
        hint: /127\.0\.0\.1/,
      });
    });

    it("unix sockets at either end, removed when it is over", async () => {
      await serve((socket) => socket.end("from the socket"), { path: path.join(dir, "t.sock") });
      const listener = await forwardLocal({
        dial,
        listen: { kind: "unix", path: path.join(dir, "l.sock") },
        target: { kind: "unix", path: path.join(dir, "t.sock") },
        onProblem,
      });
      cleanUp.push(() => listener.close());
      // As OpenSSH's StreamLocalBindMask: whoever may connect is let into the workspace.
      assert.equal(fs.statSync(path.join(dir, "l.sock")).mode & 0o777, 0o600);
      assert.equal(
        (await readAll(connect({ path: path.join(dir, "l.sock") }))).toString(),
        "from the socket",
      );
      await listener.close();
      assert.ok(!fs.existsSync(path.join(dir, "l.sock")));
    });
  });

  describe("-R, the SSH agent and X11", () => {
    it("connections to the workspace go on from this machine", async () => {
      const received: Promise<Buffer>[] = [];
      const port = await serve((socket) => {
        socket.end("here");
        received.push(readAll(socket));
      });
      const forward = await forwardRemote(
        { dial, accept },
        {
          listen: { kind: "tcp", host: "", port: 0 },
          target: { kind: "tcp", host: "127.0.0.1", port },
        },
        onProblem,
      );
      cleanUp.push(() => forward.close());
      assert.ok(forward.port > 0);
      const socket = connect({ host: "127.0.0.1", port: forward.port });
      assert.equal((await readAll(socket)).toString(), "here");
      socket.end("thanks");
      assert.equal((await received[0]).toString(), "thanks");
    });

    it("closing it stops the listener and takes the token back", async () => {
      const listen = { kind: "unix", path: path.join(dir, "r.sock") } as const;
      const target = { kind: "tcp", host: "127.0.0.1", port: 1 } as const;
      let lost = 0;
      const forward = await forwardRemote({ dial, accept }, { listen, target }, onProblem, () => lost++);
      assert.equal(accepted.size, 1);
      forward.close();
      while (accepted.size > 0 || fs.existsSync(listen.path)) await new Promise(setImmediate);
      assert.deepEqual([problems, lost], [[], 0]);
    });

    it("a listener that ends by itself is told", async () => {
      const listen = { kind: "tcp", host: "", port: 0 } as const;
      const target = { kind: "tcp", host: "127.0.0.1", port: 1 } as const;
      await new Promise<void>((resolve, reject) => {
        forwardRemote({ dial, accept }, { listen, target }, onProblem, resolve).then(() => {
          streams[0].destroy(new Error("the session is gone"));
        }, reject);
      });
      assert.match(problems[0], /no longer listens on localhost:0/);
      assert.equal(accepted.size, 0);
    });

    it("a place the workspace can't listen on is an error with the agent's reason", async () => {
      const taken = await serve(() => undefined);
      const forward = forwardRemote(
        { dial, accept },
        {
          listen: { kind: "tcp", host: "127.0.0.1", port: taken },
          target: { kind: "tcp", host: "127.0.0.1", port: 1 },
        },
        onProblem,
      );
      await assert.rejects(forward, {
        code: "ERR_AGENT_REFUSED",
        message: new RegExp(`to listen on 127.0.0.1:${taken}`),
      });
      assert.equal(accepted.size, 0);
    });

    it("nothing listening here is told, and the workspace's connection is broken off", async () => {
      const port = await serve(() => undefined);
      for (const undo of cleanUp.splice(0)) await undo();
      const target = { kind: "tcp", host: "127.0.0.1", port } as const;
      const forward = await forwardRemote(
        { dial, accept },
        { listen: { kind: "tcp", host: "", port: 0 }, target },
        onProblem,
      );
      cleanUp.push(() => forward.close());
      const socket = connect({ host: "127.0.0.1", port: forward.port });
      await closed(socket.resume());
      assert.match(problems[0], new RegExp(`cannot reach 127.0.0.1:${port} on this machine: .*ECONNREFUSED`));
    });

    it("the SSH agent is reached through its token, and a missing one is explained", async () => {
      const socketPath = path.join(dir, "a.sock");
      const options = { env: {}, socket: undefined, onProblem };
      assert.throws(() => forwardSshAgent(accept, options), { code: "ERR_NO_SSH_AGENT", hint: /ssh-agent/ });
      assert.throws(() => forwardSshAgent(accept, { ...options, env: { SSH_AUTH_SOCK: socketPath } }), {
        code: "ERR_NO_SSH_AGENT",
      });
      await serve((socket) => socket.end("keys"), { path: socketPath });
      const { token } = forwardSshAgent(accept, { ...options, env: { SSH_AUTH_SOCK: socketPath } });
      assert.match(token, /^[A-Za-z0-9+/]{22}==$/);
      const [mine, theirs] = servicePair(CALLBACK_SERVICE);
      accepted.get(token)?.(mine, { token });
      assert.equal((await readAll(theirs)).toString(), "keys");
      theirs.end();
    });

    it("X11: the workspace never sees the real cookie, the display never the fake one", async () => {
      const bin = path.join(dir, "bin");
      const real = randomBytes(16);
      fs.mkdirSync(bin);
      fs.writeFileSync(
        path.join(bin, "xauth"),
        `#!/bin/sh\necho "box/unix:7  MIT-MAGIC-COOKIE-1  ${real.toString("hex")}"\n`,
        { mode: 0o755 },
      );
      const seen: Buffer[] = [];
      await serve((socket) => socket.on("data", (chunk) => seen.push(chunk)), {
        path: path.join(dir, "x:7"),
      });
      const before = process.env["PATH"];
      process.env["PATH"] = `${bin}:${before}`;
      try {
        const display = `${path.join(dir, "x")}:7`;
        const request = await forwardX11(accept, { display, trusted: true, onProblem });
        assert.notEqual(request.authCookie, real.toString("hex"));
        const setup = (cookie: Buffer) =>
          Buffer.concat([
            Buffer.from("6c000b000000120010000000", "hex"),
            Buffer.from("MIT-MAGIC-COOKIE-1\0\0"),
            cookie,
          ]);
        const [mine, theirs] = servicePair(CALLBACK_SERVICE);
        accepted.get(request.token)?.(mine, { token: request.token });
        theirs.write(setup(Buffer.from(request.authCookie, "hex")));
        theirs.write("rest");
        const whole = Buffer.concat([setup(real), Buffer.from("rest")]);
        while (Buffer.concat(seen).length < whole.length) await new Promise(setImmediate);
        assert.deepEqual(Buffer.concat(seen), whole);
        theirs.destroy();

        const [other, stranger] = servicePair(CALLBACK_SERVICE);
        accepted.get(request.token)?.(other, { token: request.token });
        stranger.write(setup(real));
        await closed(stranger);
        assert.match(problems.at(-1) ?? "", /wrong authentication/);
      } finally {
        process.env["PATH"] = before;
      }
    });
  });

  describe("UDP", () => {
    it("each source is a flow of its own, there and back", async () => {
      const echo = dgram.createSocket("udp4");
      const ports = new Set<number>();
      echo.on("message", (bytes, from) => {
        ports.add(from.port);
        echo.send(Buffer.concat([Buffer.from("re:"), bytes]), from.port, from.address);
      });
      await new Promise<void>((resolve) => echo.bind(0, "127.0.0.1", resolve));
      cleanUp.push(() => echo.close());
      const listener = await forwardUdp({
        dial,
        address: undefined,
        localPort: 0,
        remotePort: echo.address().port,
        onProblem,
      });
      cleanUp.push(() => listener.close());
      for (const text of ["one", "two"]) {
        const socket = dgram.createSocket("udp4");
        cleanUp.push(() => socket.close());
        const answers: string[] = [];
        socket.on("message", (bytes) => answers.push(bytes.toString()));
        for (let i = 0; i < 3; i++) socket.send(`${text}${i}`, listener.port, "127.0.0.1");
        while (answers.length < 3) await once(socket, "message");
        assert.deepEqual(answers.sort(), [`re:${text}0`, `re:${text}1`, `re:${text}2`]);
      }
      assert.equal(ports.size, 2);
      assert.equal(streams.length, 2);
      for (const undo of cleanUp.splice(0).reverse()) await undo();
      for (const stream of streams) assert.ok(stream.destroyed);
    });

    it("while the workspace is away nothing grows: what is no longer waited for is not dialled on", async () => {
      const pending = new Set<AbortSignal>();
      const never: Dial = (_service, _metadata, signal) =>
        new Promise((_, reject) => {
          if (!signal) return;
          pending.add(signal);
          signal.addEventListener("abort", () => {
            pending.delete(signal);
            reject(signal.reason);
          });
        });
      const listener = await forwardUdp({
        dial: never,
        address: undefined,
        localPort: 0,
        remotePort: 9,
        onProblem,
      });
      cleanUp.push(() => listener.close());
      let most = 0;
      for (let i = 0; i < MAX_FLOWS + 20; i++) {
        const socket = dgram.createSocket("udp4");
        await new Promise<void>((resolve) => socket.send("x", listener.port, "127.0.0.1", () => resolve()));
        socket.close();
        await new Promise(setImmediate);
        most = Math.max(most, pending.size);
      }
      assert.equal(most, MAX_FLOWS);
      assert.deepEqual(problems, [], "a flow that had to go is no problem to tell");
      await listener.close();
      assert.equal(pending.size, 0);
      cleanUp.length = 0;
    });

    it("a taken port is explained", async () => {
      const taken = dgram.createSocket("udp4");
      await new Promise<void>((resolve) => taken.bind(0, "127.0.0.1", resolve));
      cleanUp.push(() => taken.close());
      const options = {
        dial,
        address: "127.0.0.1",
        localPort: taken.address().port,
        remotePort: 1,
        onProblem,
      };
      await assert.rejects(forwardUdp(options), { code: "ERR_PORT_TAKEN" });
    });
  });

  describe("answers", () => {
    it("two on one stream are read one after the other, however they are cut", async () => {
      const [client, served] = servicePair("speedtest");
      const wire = Buffer.concat([encodeAnswer(0, "first"), encodeAnswer(0, "second"), Buffer.from("rest")]);
      for (const byte of wire) served.write(Buffer.of(byte));
      served.end();
      assert.equal(await readAnswer(client, "it"), "first");
      assert.equal(await readAnswer(client, "it"), "second");
      assert.equal((await readAll(client)).toString(), "rest");
    });

    it("a refusal, an end and a silence each are an error with a reason", async () => {
      const refuse = servicePair("x");
      refuse[1].end(encodeAnswer(1, "not yours"));
      await assert.rejects(readAnswer(refuse[0], "the list"), {
        code: "ERR_AGENT_REFUSED",
        message: "the workspace refused the list: not yours",
      });
      const ended = servicePair("x");
      ended[1].end();
      await assert.rejects(readAnswer(ended[0], "the list"), { code: "ERR_AGENT_SILENT", hint: /restart/ });
      const silent = servicePair("x");
      await assert.rejects(readAnswer(silent[0], "the list", { timeoutMs: 5 }), { code: "ERR_AGENT_SILENT" });
    });
  });
});
