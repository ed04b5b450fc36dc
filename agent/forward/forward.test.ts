import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import fs from "node:fs";
import net, { type AddressInfo } from "node:net";
import os from "node:os";
import path from "node:path";
import type { Duplex } from "node:stream";
import {
  ANSWER,
  encodeMetadata,
  hostPortService,
  LISTEN_SERVICE,
  type ListenMetadata,
} from "../../mesh/wire/forward.ts";
import { fakePeer, memoryLogger, readAnswer, servicePair } from "../testing.ts";
import { ForwardService } from "./serve.ts";

const TOKEN = "AAAAAAAAAAAAAAAAAAAAAA==";
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** Until the other side's end; unlike `for await` it leaves our own side open. */
function readAll(stream: Duplex): Promise<Buffer> {
  const chunks: Buffer[] = [];
  return new Promise((resolve, reject) => {
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.once("end", () => resolve(Buffer.concat(chunks)));
    stream.once("error", reject);
    stream.resume();
  });
}

describe("forwards", () => {
  let dir = "";
  let forwards: ForwardService;
  const cleanUp: (() => void)[] = [];
  beforeEach(() => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), "fwd-"));
    forwards = new ForwardService({ logger: memoryLogger(), resolvePath: (file) => path.resolve(dir, file) });
  });
  afterEach(() => {
    forwards.close();
    for (const undo of cleanUp.splice(0)) undo();
    fs.rmSync(dir, { recursive: true, force: true });
  });

  /** A server of the workspace. @returns its port */
  async function serve(
    onConnection: (socket: net.Socket) => void,
    where: net.ListenOptions = {},
  ): Promise<number> {
    const sockets = new Set<net.Socket>();
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      sockets.add(socket);
      socket.on("error", () => {});
      onConnection(socket);
    });
    server.listen(where.path === undefined ? { host: "127.0.0.1", port: 0, ...where } : where);
    await once(server, "listening");
    cleanUp.push(() => {
      server.close();
      for (const socket of sockets) socket.destroy();
    });
    return where.path === undefined ? (server.address() as AddressInfo).port : 0;
  }

  function open(service: string) {
    const [client, agent] = servicePair(service);
    const method = service.slice(0, service.indexOf(":")) as "tcp" | "unix" | "udp";
    const served = forwards[method](agent);
    client.on("error", () => {});
    cleanUp.push(() => client.destroy());
    return { client, agent, served };
  }

  describe("to a port", () => {
    it("bytes pass both ways, and each direction ends by itself: the target's end first", async () => {
      const received: Promise<Buffer>[] = [];
      const port = await serve((socket) => {
        socket.end("all I have");
        received.push(readAll(socket));
      });
      const { client, served } = open(hostPortService("tcp", "127.0.0.1", port));
      assert.deepEqual((await readAnswer(client)).status, ANSWER.ok);
      assert.equal((await readAll(client)).toString(), "all I have");
      const late = randomBytes(1 << 20); // the other direction goes on behind the target's FIN
      client.end(late);
      await served;
      assert.equal(sha256(await received[0]), sha256(late));
      assert.equal(forwards.count, 0);
    });

    it("each direction ends by itself: the client's end first", async () => {
      const port = await serve((socket) => {
        void readAll(socket).then((bytes) => socket.end(`got ${bytes.length}`));
      });
      const { client, served } = open(hostPortService("tcp", "127.0.0.1", port));
      client.end("12345"); // before the answer
      await readAnswer(client);
      assert.equal((await readAll(client)).toString(), "got 5");
      await served;
    });

    it("carries 20 MB each way at once, unharmed", async () => {
      const port = await serve((socket) => socket.pipe(socket));
      const { client, served } = open(hostPortService("tcp", "127.0.0.1", port));
      const data = randomBytes(20 << 20);
      client.end(data);
      await readAnswer(client);
      assert.equal(sha256(await readAll(client)), sha256(data));
      await served;
    });

    it("a client that reads nothing holds the target up", async () => {
      let sent = 0;
      const port = await serve((socket) => {
        const pump = () => {
          do sent += 65_536;
          while (socket.write(Buffer.alloc(65_536)));
        };
        socket.on("drain", pump);
        pump();
      });
      const { client } = open(hostPortService("tcp", "127.0.0.1", port));
      await readAnswer(client);
      let before = -1;
      while (before !== sent) {
        before = sent;
        await new Promise((resolve) => setTimeout(resolve, 40));
      }
      assert.ok(sent < 32 << 20, `${sent} bytes were taken`); // the kernel's buffers, and ours
    });

    it("a client that goes away resets the target's connection, and the other way round", async () => {
      let resets = 0;
      const port = await serve((socket) => {
        socket.on("close", () => {
          resets++;
        });
        socket.once("data", () => socket.resetAndDestroy());
      });
      const first = open(hostPortService("tcp", "127.0.0.1", port));
      await readAnswer(first.client);
      first.client.destroy();
      await first.served;
      while (resets < 1) await new Promise(setImmediate);
      const second = open(hostPortService("tcp", "127.0.0.1", port));
      await readAnswer(second.client);
      const failed = once(second.client, "error");
      second.client.write("x");
      assert.match(String(await failed), /reset/);
      await second.served;
    });

    it("localhost reaches a server that listens on IPv6 only", async function () {
      let port: number;
      try {
        port = await serve((socket) => socket.end("six"), { host: "::1", ipv6Only: true });
      } catch {
        console.log("skipped: no IPv6 here");
        return this.skip();
      }
      const { client } = open(`tcp:localhost:${port}`);
      client.end();
      assert.equal((await readAnswer(client)).status, ANSWER.ok);
      assert.equal((await readAll(client)).toString(), "six");
    });

    it("localhost is reached also while this process is busy with something else", async () => {
      const port = await serve((socket) => socket.end("here"));
      const { client } = open(hostPortService("tcp", "localhost", port));
      // Longer than Node gives the first of several addresses before it drops that for the next.
      for (const until = performance.now() + 400; performance.now() < until; );
      const answer = await readAnswer(client);
      assert.equal(answer.status, ANSWER.ok, answer.text);
      assert.equal((await readAll(client)).toString(), "here");
    });

    it("says why there is no connection", async () => {
      const port = await serve(() => {});
      cleanUp.pop()?.();
      for (const [service, status, text] of [
        [`tcp:127.0.0.1:${port}`, ANSWER.connectFailed, /127\.0\.0\.1:\d+ .*connection refused/],
        [`tcp:localhost:${port}`, ANSWER.connectFailed, /connection refused/],
        ["tcp:no-such-host.invalid:1", ANSWER.connectFailed, /unknown host|name server/],
        ["tcp:127.0.0.1:0", ANSWER.badRequest, /port/],
        [`unix:${"x".repeat(200)}`, ANSWER.badRequest, /long/],
        ["unix:nobody.sock", ANSWER.connectFailed, /no such socket/],
      ] as const) {
        const { client, served } = open(service);
        const answer = await readAnswer(client);
        assert.equal(answer.status, status, service);
        assert.match(answer.text, text);
        client.resume();
        client.end();
        await served;
      }
    });

    it("gives up on a target that does not answer", async () => {
      const slow = new ForwardService({
        logger: memoryLogger(),
        resolvePath: (file) => file,
        connectTimeoutMs: 30,
      });
      const [client, agent] = servicePair("tcp:192.0.2.1:81"); // RFC 5737: nobody is there
      void slow.tcp(agent);
      const answer = await readAnswer(client);
      assert.equal(answer.status, ANSWER.connectFailed);
      client.end();
      client.resume();
    });

    it("one forward too many, one connecting too many, and a stopping workspace are refused with a reason", async () => {
      const port = await serve(() => {});
      const options = { logger: memoryLogger(), resolvePath: (file: string) => file };
      const service = hostPortService("tcp", "127.0.0.1", port);
      const few = new ForwardService({ ...options, maxForwards: 1 });
      const [held, heldAgent] = servicePair(service);
      const serving = few.tcp(heldAgent);
      await readAnswer(held);
      const refused = async (forwardService: ForwardService) => {
        const [client, agent] = servicePair(service);
        void forwardService.tcp(agent);
        const answer = await readAnswer(client);
        client.end();
        client.resume();
        assert.equal(answer.status, ANSWER.resourceShortage);
        return answer.text;
      };
      assert.match(await refused(few), /already serves 1 /);
      held.on("error", () => {});
      few.close();
      await serving;
      assert.equal(few.count, 0);
      assert.match(await refused(few), /stopping/);
      assert.match(await refused(new ForwardService({ ...options, maxConnecting: 0 })), /busy/);
    });
  });

  it("reaches a unix socket, also one named relative to the session's directory", async () => {
    await serve((socket) => socket.end("hello"), { path: path.join(dir, "app.sock") });
    for (const name of [path.join(dir, "app.sock"), "app.sock"]) {
      const { client, served } = open(`unix:${name}`);
      client.end();
      assert.equal((await readAnswer(client)).status, ANSWER.ok);
      assert.equal((await readAll(client)).toString(), "hello");
      await served;
    }
  });

  describe("UDP", () => {
    async function echo(): Promise<number> {
      const socket = dgram.createSocket("udp4", (message, from) =>
        socket.send(message, from.port, from.address),
      );
      socket.bind(0, "127.0.0.1");
      await once(socket, "listening");
      cleanUp.push(() => socket.close());
      return socket.address().port;
    }

    it("datagrams pass both ways as they are, empty and large ones too, until the client ends", async () => {
      const port = await echo();
      const { client, served } = open(`udp:localhost:${port}`);
      assert.equal((await readAnswer(client)).status, ANSWER.ok);
      for (const size of [0, 1, 1_400, 50_000]) {
        const sent = randomBytes(size);
        const back = new Promise<Uint8Array>((resolve) => {
          client.onDatagram = resolve;
        });
        client.sendDatagram(sent);
        assert.equal(sha256(await back), sha256(sent), `${size} bytes`);
      }
      client.end();
      client.resume();
      await served;
    });

    it("a flow without traffic ends", async () => {
      const quick = new ForwardService({
        logger: memoryLogger(),
        resolvePath: (file) => file,
        udpIdleMs: 20,
      });
      const [client, agent] = servicePair(`udp:127.0.0.1:${await echo()}`);
      const served = quick.udp(agent);
      await readAnswer(client);
      client.once("end", () => client.end());
      client.resume();
      await served;
      assert.equal(quick.count, 0);
    });

    it("a target that isn't there is not the end of the flow, and too large a datagram is dropped", async () => {
      const port = await echo();
      cleanUp.pop()?.();
      const { client, served } = open(`udp:127.0.0.1:${port}`);
      await readAnswer(client);
      client.sendDatagram(new Uint8Array(10));
      client.sendDatagram(new Uint8Array(100_000));
      await new Promise((resolve) => setTimeout(resolve, 20));
      assert.equal(client.destroyed, false);
      client.end();
      client.resume();
      await served;
    });
  });

  describe("listening for a client", () => {
    function listen(metadata: Partial<ListenMetadata>) {
      const peer = fakePeer();
      const wanted = { v: 1, token: TOKEN, ...metadata } as ListenMetadata;
      const [client, agent] = servicePair(LISTEN_SERVICE, encodeMetadata(wanted));
      const served = forwards.listen(agent, peer);
      client.on("error", () => {});
      cleanUp.push(() => {
        client.destroy();
        for (const { stream } of peer.opened) stream.destroy();
      });
      return { client, served, peer };
    }
    const portOf = (text: string) => (JSON.parse(text) as { port: number }).port;
    const refusal = async (metadata: Partial<ListenMetadata>) => {
      const { client, served } = listen(metadata);
      const answer = await readAnswer(client);
      client.end();
      client.resume();
      await served;
      return answer;
    };

    it("each connection becomes a callback with the token and who connected; the stream's end stops it", async () => {
      const { client, served, peer } = listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
      const answer = await readAnswer(client);
      assert.equal(answer.status, ANSWER.ok);
      const port = portOf(answer.text);
      const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
      socket.end("ping");
      const { stream, metadata } = await peer.next();
      assert.equal(metadata.token, TOKEN);
      assert.equal(metadata.origin?.address, "127.0.0.1");
      assert.equal(metadata.origin?.port, socket.localPort);
      assert.equal((await readAll(stream)).toString(), "ping");
      client.end();
      client.resume();
      await served;
      stream.end("pong"); // a connection outlives its listener
      assert.equal((await readAll(socket)).toString(), "pong");
      const late = net.connect({ port, host: "127.0.0.1" });
      const [error] = (await once(late, "error")) as [NodeJS.ErrnoException];
      assert.equal(error.code, "ECONNREFUSED");
    });

    it("localhost means both loopback addresses on one port, and a session that is cut frees it", async () => {
      const { client, served, peer } = listen({ kind: "tcp", host: "localhost", port: 0 });
      const port = portOf((await readAnswer(client)).text);
      const hosts = [
        "127.0.0.1",
        ...(Object.values(os.networkInterfaces())
          .flat()
          .some((at) => at?.address === "::1")
          ? ["::1"]
          : []),
      ];
      for (const host of hosts) {
        const socket = net.connect({ port, host });
        socket.on("error", () => {});
        await peer.next();
        socket.destroy();
      }
      client.destroy();
      await served;
      await serve(() => {}, { port });
    });

    it("a callback that the client resets closes the connection", async () => {
      const { client, peer } = listen({ kind: "tcp", host: "", port: 0 });
      const port = portOf((await readAnswer(client)).text);
      const socket = net.connect({ port, host: "127.0.0.1" });
      socket.on("error", () => {});
      const closed = new Promise((resolve) => socket.once("close", resolve));
      (await peer.next()).stream.destroy();
      await closed;
    });

    it("says why it can't listen", async () => {
      const port = await serve(() => {});
      const taken = await refusal({ kind: "tcp", host: "127.0.0.1", port });
      assert.equal(taken.status, ANSWER.prohibited);
      assert.match(taken.text, /already in use/);
      assert.match((await refusal({ kind: "tcp", host: "192.0.2.1", port: 0 })).text, /no such address/);
      assert.equal(
        (await refusal({ kind: "tcp", host: "x", port: 1, token: "short" })).status,
        ANSWER.badRequest,
      );
      assert.match((await refusal({ kind: "unix", path: "no/such/folder/x.sock" })).text, /no such folder/);
    });

    it("a unix socket is private, makes way for nobody, and is gone at the end", async () => {
      const file = path.join(dir, "ctl.sock");
      const { client, served, peer } = listen({ kind: "unix", path: "ctl.sock" });
      assert.equal((await readAnswer(client)).status, ANSWER.ok);
      assert.equal(fs.lstatSync(file).mode & 0o777, 0o600);
      const socket = net.connect(file);
      const { metadata } = await peer.next();
      assert.equal(metadata.token, TOKEN);
      socket.destroy();
      assert.match((await refusal({ kind: "unix", path: file })).text, /already listens/);
      client.end();
      client.resume();
      await served;
      assert.deepEqual(fs.readdirSync(dir), []);
    });

    it("a stale socket makes way; a file, a link and what replaced ours stay", async () => {
      const stale = path.join(dir, "stale.sock");
      const server = net.createServer();
      server.listen(`${stale}.x`);
      await once(server, "listening");
      fs.linkSync(`${stale}.x`, stale); // what a crash leaves: a name nobody serves
      server.close();
      const { client, served } = listen({ kind: "unix", path: stale });
      assert.equal((await readAnswer(client)).status, ANSWER.ok);
      fs.unlinkSync(stale);
      fs.writeFileSync(stale, "mine now");
      client.end();
      client.resume();
      await served;
      assert.equal(fs.readFileSync(stale, "utf8"), "mine now");
      assert.match((await refusal({ kind: "unix", path: stale })).text, /no socket/);
      fs.symlinkSync("/nowhere", path.join(dir, "link"));
      assert.match((await refusal({ kind: "unix", path: "link" })).text, /no socket/);
      assert.deepEqual(fs.readdirSync(dir).sort(), ["link", "stale.sock"]);
    });

    it("a socket whose folder became something else is left alone at the end", async () => {
      const folder = path.join(dir, "sub");
      fs.mkdirSync(folder);
      const { client, served } = listen({ kind: "unix", path: "sub/x.sock" });
      assert.equal((await readAnswer(client)).status, ANSWER.ok);
      fs.rmSync(folder, { recursive: true });
      fs.writeFileSync(folder, "a file"); // every look below it fails with ENOTDIR now, not with ENOENT
      client.end();
      client.resume();
      await served;
      assert.equal(fs.readFileSync(folder, "utf8"), "a file");
    });
  });
});
