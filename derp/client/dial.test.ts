import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import * as fc from "fast-check";
import { keyPair } from "../box.ts";
import { startRelay, type TestRelay } from "../testing.ts";
import { DerpClient } from "./client.ts";
import { dialSteps, raceOrder } from "./dial.ts";
import { MAX_HEAD_BYTES, ResponseHeadReader, requestHead } from "./http-head.ts";
import { nodeAddresses, nodeUrl } from "./nodes.ts";
import { type Environment, proxyAuthorization, proxyFor } from "./proxy.ts";
import { TokenBucket } from "./token-bucket.ts";

const nodeOf = (more: object) => ({ Name: "1a", RegionID: 1, HostName: "relay.test", ...more });

describe("NodeAddrResolve", () => {
  const steps = (more: object, v6KnownGood = false): string[] =>
    dialSteps(nodeAddresses(nodeOf(more)), v6KnownGood).map((step) =>
      step.kind === "address" ? `${step.address} +${step.afterMs}` : `lookup ${step.family} +${step.afterMs}`,
    );

  it("looks the name up for both families at once", () => assert.deepEqual(steps({}), ["lookup 0 +0"]));

  it("literal addresses need no name server; a family left open is looked up later", () => {
    assert.deepEqual(steps({ IPv4: "192.0.2.1", IPv6: "2001:db8::1" }), ["2001:db8::1 +0", "192.0.2.1 +0"]);
    assert.deepEqual(steps({ IPv4: "192.0.2.1" }), ["192.0.2.1 +0", "lookup 6 +250"]);
  });

  it("other text turns a family off", () => {
    assert.deepEqual(steps({ IPv4: "none" }), ["lookup 6 +0"]);
    assert.deepEqual(steps({ IPv4: "none", IPv6: "192.0.2.1" }), []);
  });

  it("an address as host name is the address", () => {
    assert.deepEqual(steps({ HostName: "192.0.2.9" }), ["192.0.2.9 +0"]);
    assert.deepEqual(steps({ HostName: "2001:db8::9", IPv4: "192.0.2.1" }, true), [
      "2001:db8::9 +0",
      "192.0.2.1 +200",
    ]);
    assert.equal(
      nodeUrl(nodeOf({ HostName: "2001:db8::9", DERPPort: 8443 })).href,
      "https://[2001:db8::9]:8443/derp",
    );
  });

  it("where IPv6 is known to work IPv4 starts 200 ms later; further addresses follow in turn, a few at most", () => {
    const order = raceOrder(["a", "b", "c", "d", "e", "f"], ["x"], true).map(
      (step) => step.kind === "address" && `${step.address} +${step.afterMs}`,
    );
    assert.deepEqual(order, ["x +0", "a +200", "b +250", "c +250", "d +250"]);
  });
});

describe("connections to a relay", () => {
  const servers: Server[] = [];
  const sockets: Socket[] = [];
  let relay: TestRelay | undefined;

  const listen = async (onSocket: (socket: Socket) => void, host = "127.0.0.1"): Promise<number> => {
    const server = createServer((socket) => {
      sockets.push(socket);
      socket.on("error", () => {});
      onSocket(socket);
    });
    servers.push(server);
    server.listen(0, host);
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  };

  /** A forward proxy that leads every tunnel to `port`. */
  const proxyTo = (port: number, asked: string[], answer = "HTTP/1.1 200 Connection established\r\n\r\n") =>
    listen((socket) => {
      let head = "";
      const read = (chunk: Buffer): void => {
        head += chunk.toString("latin1");
        if (!head.includes("\r\n\r\n")) return;
        socket.off("data", read);
        asked.push(head);
        socket.write(answer);
        const onward = connect(port, "127.0.0.1");
        sockets.push(onward);
        onward.on("error", () => socket.destroy());
        socket.pipe(onward).pipe(socket);
      };
      socket.on("data", read);
    });

  const client = (url: string, environment: Environment, more: object = {}): DerpClient =>
    new DerpClient({ url, privateKey: keyPair().privateKey, environment, ...more });

  afterEach(async () => {
    for (const socket of sockets.splice(0)) socket.destroy();
    for (const server of servers.splice(0)) {
      server.close();
      await once(server, "close");
    }
    await relay?.close();
    relay = undefined;
  });

  it("ConnectThroughProxyHonorsDERPPort: the tunnel is asked for with the relay's port and our credentials", async () => {
    relay = await startRelay();
    const asked: string[] = [];
    const port = await proxyTo(relay.port, asked);
    const url = nodeUrl(nodeOf({ DERPPort: 3340, ForceHTTP: true })).href;
    const through = client(url, { HTTP_PROXY: `http://us%65r:pa%20ss@127.0.0.1:${port}` });
    await through.connect();
    assert.ok((await through.ping()) > 0);
    assert.match(asked[0], /^CONNECT relay\.test:3340 HTTP\/1\.1\r\nHost: relay\.test:3340\r\n/);
    const expected = Buffer.from("user:pa ss").toString("base64");
    assert.match(asked[0], new RegExp(`\r\nProxy-Authorization: Basic ${expected}\r\n`));
    await through.close();
  });

  it("a proxy that refuses is told apart, without its password", async () => {
    const port = await proxyTo(9, [], "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
    await assert.rejects(
      client("http://relay.test/derp", { http_proxy: `http://u:secret@127.0.0.1:${port}` }).connect(),
      (error) => {
        assert.ok(error instanceof Error && "code" in error);
        assert.equal(error.code, "ERR_RELAY_UNREACHABLE");
        assert.match(error.message, /407.*user:password/);
        assert.doesNotMatch(error.message, /secret/);
        return true;
      },
    );
    await assert.rejects(client("http://relay.test/derp", { HTTP_PROXY: "socks5://127.0.0.1:1" }).connect(), {
      code: "ERR_RELAY_UNREACHABLE",
      message: /unsupported/,
    });
  });

  it("a dead first address costs nothing when another one answers", async () => {
    relay = await startRelay();
    const url = `http://relay.test:${relay.port}/derp`;
    const addresses = nodeAddresses(nodeOf({ IPv4: "127.0.0.1", IPv6: "::1" })); // nothing listens on ::1
    const raced = client(url, {}, { addresses, v6KnownGood: true });
    const startedAt = performance.now();
    await raced.connect();
    assert.ok(performance.now() - startedAt < 190, "it did not wait for IPv4's turn");
    assert.equal(raced.family, 4);
    await raced.close();
  });

  it("all addresses off is told", async () => {
    const addresses = nodeAddresses(nodeOf({ IPv4: "none", IPv6: "none" }));
    await assert.rejects(client("http://relay.test/derp", {}, { addresses }).connect(), {
      code: "ERR_RELAY_UNREACHABLE",
      message: /turns off/,
    });
  });

  for (const [what, bytes, code] of [
    [
      "an endless head",
      () => Buffer.from(`HTTP/1.1 200 OK\r\nX: ${"a".repeat(2 * MAX_HEAD_BYTES)}`),
      "ERR_RELAY_PROTOCOL",
    ],
    [
      "endless informational answers",
      () => Buffer.from("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50)),
      "ERR_RELAY_PROTOCOL",
    ],
    ["another protocol", () => Buffer.from("SSH-2.0-OpenSSH_9.2\r\n"), "ERR_RELAY_PROTOCOL"],
  ] as const)
    it(`${what} ends the attempt`, async () => {
      const port = await listen((socket) => socket.write(bytes()));
      await assert.rejects(client(`http://127.0.0.1:${port}/derp`, {}).connect(), { code });
    });

  it("a head that trickles is given up at the deadline", async () => {
    const port = await listen((socket) => {
      const timer = setInterval(() => socket.write("H"), 5);
      socket.on("close", () => clearInterval(timer));
      socket.write("HTTP/1.1 101 ");
    });
    await assert.rejects(client(`http://127.0.0.1:${port}/derp`, {}, { timeoutMs: 60 }).connect(), {
      code: "ERR_RELAY_TIMEOUT",
    });
  });
});

describe("the proxy of the environment", () => {
  const at = (environment: Environment, host: string, port = 443, secure = true): string | undefined =>
    proxyFor(environment, { host, port, secure })?.href;
  const proxy = "http://proxy.test:3128/";

  it("is chosen by scheme, lower case first, and needs no scheme of its own", () => {
    assert.equal(at({ HTTPS_PROXY: "proxy.test:3128", HTTP_PROXY: "http://other.test" }, "a.test"), proxy);
    assert.equal(at({ https_proxy: proxy, HTTPS_PROXY: "http://other.test" }, "a.test"), proxy);
    assert.equal(at({ HTTPS_PROXY: proxy }, "a.test", 80, false), undefined);
    assert.equal(at({}, "a.test"), undefined);
  });

  it("never serves loopback", () => {
    for (const host of ["localhost", "dev.localhost", "127.0.0.1", "127.8.9.1", "::1"])
      assert.equal(at({ HTTPS_PROXY: proxy }, host), undefined);
  });

  for (const [list, host, exempt] of [
    ["*", "a.test", true],
    ["example.com", "example.com", true],
    ["example.com", "relay.example.com", true],
    ["example.com", "badexample.com", false],
    [".example.com", "example.com", false],
    [".example.com", "relay.example.com", true],
    ["a.test, example.com", "EXAMPLE.com", true],
    ["example.com:8443", "example.com", false],
    ["example.com:443", "example.com", true],
    ["10.0.0.0/8", "10.3.4.5", true],
    ["10.0.0.0/8", "11.3.4.5", false],
    ["10.0.0.1", "10.0.0.1", true],
    ["fd00::/8", "fd12::1", true],
    ["[fd12::1]:443", "fd12::1", true],
    ["10.0.0.0/99, x/y, :", "10.0.0.1", false],
  ] as const)
    it(`NO_PROXY=${list} ${exempt ? "exempts" : "doesn't exempt"} ${host}`, () =>
      assert.equal(at({ HTTPS_PROXY: proxy, NO_PROXY: list }, host), exempt ? undefined : proxy));

  it("has no credentials unless its URL has", () =>
    assert.equal(proxyAuthorization(new URL(proxy)), undefined));
});

describe("response heads", () => {
  it("are read the same however they are cut, and what follows is kept", () => {
    const text = Buffer.from(
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n\x01\x00frames",
    );
    fc.assert(
      fc.property(fc.integer({ min: 1, max: text.length }), (size) => {
        const reader = new ResponseHeadReader();
        for (let at = 0; at < text.length; at += size) {
          const head = reader.push(text.subarray(at, at + size));
          if (!head) continue;
          assert.deepEqual([head.status, head.headers.get("upgrade")], [101, "DERP"]);
          const behind = Buffer.concat([head.rest, text.subarray(at + size)]);
          assert.equal(behind.toString("latin1"), "\x01\x00frames");
          return;
        }
        assert.fail("no head");
      }),
    );
  });

  it("garbage behind an informational answer is refused at once, as in front of it", () => {
    const reader = new ResponseHeadReader();
    assert.throws(() => reader.push(Buffer.from("HTTP/1.1 100 Continue\r\n\r\nSSH-2.0")), {
      code: "ERR_RELAY_PROTOCOL",
    });
  });

  it("a header that could end its line is not sent", () => {
    for (const [name, value] of [
      ["A\r\nB", "x"],
      ["A", "x\r\nB: y"],
      ["A", "\u2028"],
      ["", "x"],
    ])
      assert.throws(() => requestHead("GET", "/derp", { [name]: value }), { code: "ERR_RELAY_PROTOCOL" });
  });
});

describe("token bucket", () => {
  it("lets the burst pass, then the rate; the last packet may overdraw and is waited for", () => {
    const bucket = new TokenBucket(1_000, 200, 0);
    let sent = 0;
    while (bucket.ready(0)) {
      bucket.take(150, 0);
      sent++;
    }
    assert.equal(sent, 2);
    assert.equal(bucket.waitMs(0), 101);
    assert.ok(!bucket.ready(100));
    assert.ok(bucket.ready(101));
  });

  it("never passes more than burst, rate and one packet", () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ afterMs: fc.nat(50), bytes: fc.integer({ min: 1, max: 500 }) }), {
          maxLength: 200,
        }),
        (packets) => {
          const bucket = new TokenBucket(2_000, 300, 0);
          let now = 0;
          let passed = 0;
          for (const { afterMs, bytes } of packets) {
            now += afterMs;
            if (!bucket.ready(now)) continue;
            bucket.take(bytes, now);
            passed += bytes;
            assert.ok(passed <= 300 + 2 * now + 500);
          }
        },
      ),
    );
  });
});
