// One end of another transport, in a process of its own; bench/peers/main.ts starts two of each.
//
//   node peer.mjs TRANSPORT serve              prints where it listens, as JSON
//   node peer.mjs TRANSPORT measure ADDRESS    reads "open", "echo N" or "bulk BYTES" from stdin, a line each, and answers each
//                                              with a line of JSON: [ms], [ms, ...], [Mbit/s]
//
// A stream's first byte says what it is for: "e" gets everything back, "s" is swallowed, and answered with one byte when as
// many bytes have come as the next eight (BE) say, again and again. All traffic stays on 127.0.0.1.
import { once } from "node:events";
import http from "node:http";
import { createRequire } from "node:module";
import net from "node:net";
import { createInterface } from "node:readline";

const require = createRequire(import.meta.url);
const CHUNK = Buffer.alloc(64 * 1024, 0x5a);
const HOST = "127.0.0.1";

/** What all transports' streams have here: `write` says whether to go on, `drained` waits until one may. */
const ofDuplex = (stream) => {
  stream.on("error", () => undefined);
  return {
    write: (bytes) => stream.write(bytes),
    drained: () => once(stream, "drain"),
    onData: (listener) => stream.on("data", listener),
    end: () => stream.destroy(),
  };
};
const ofLibp2p = (stream) => ({
  write: (bytes) => stream.send(bytes),
  drained: () => stream.onDrain(),
  onData: (listener) => stream.addEventListener("message", ({ data }) => listener(data.subarray())),
  end: () => stream.abort(new Error("done")),
});

async function libp2p(listen) {
  const [{ createLibp2p }, { tcp }, { noise }, { yamux }] = await Promise.all([
    import("libp2p"),
    import("@libp2p/tcp"),
    import("@chainsafe/libp2p-noise"),
    import("@chainsafe/libp2p-yamux"),
  ]);
  return createLibp2p({
    addresses: { listen: listen ? [`/ip4/${HOST}/tcp/0`] : [] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
  });
}

const transports = {
  tcp: {
    async serve(onStream) {
      const server = net.createServer({ noDelay: true }, (socket) => onStream(ofDuplex(socket)));
      await once(server.listen(0, HOST), "listening");
      return server.address().port;
    },
    async dialer(port) {
      return async () => {
        const socket = net.connect({ port, host: HOST, noDelay: true });
        await once(socket, "connect");
        return ofDuplex(socket);
      };
    },
  },
  ws: {
    async serve(onStream) {
      const { WebSocketServer, createWebSocketStream } = await import("ws");
      const server = http.createServer();
      new WebSocketServer({ server, perMessageDeflate: false }).on("connection", (socket) =>
        onStream(ofDuplex(createWebSocketStream(socket))),
      );
      await once(server.listen(0, HOST), "listening");
      return server.address().port;
    },
    async dialer(port) {
      const { WebSocket, createWebSocketStream } = await import("ws");
      return async () => {
        const socket = new WebSocket(`ws://${HOST}:${port}`, { perMessageDeflate: false });
        await once(socket, "open");
        return ofDuplex(createWebSocketStream(socket));
      };
    },
  },
  hyperdht: {
    async serve(onStream) {
      const testnet = await require("hyperdht/testnet")(3, { host: HOST });
      const node = testnet.createNode({ firewalled: false });
      const server = node.createServer((socket) => onStream(ofDuplex(socket)));
      await server.listen();
      return { bootstrap: testnet.bootstrap, key: server.publicKey.toString("hex") };
    },
    async dialer({ bootstrap, key }) {
      const DHT = require("hyperdht");
      const node = new DHT({ bootstrap, host: HOST, firewalled: false });
      await node.fullyBootstrapped();
      return async () => {
        const socket = node.connect(Buffer.from(key, "hex"));
        await once(socket, "open");
        return ofDuplex(socket);
      };
    },
  },
  libp2p: {
    async serve(onStream) {
      const node = await libp2p(true);
      await node.handle("/bench", (stream) => onStream(ofLibp2p(stream)), {
        maxInboundStreams: 1_000,
      });
      return node.getMultiaddrs().map(String)[0];
    },
    async dialer(address) {
      const node = await libp2p(false);
      const { multiaddr } = await import("@multiformats/multiaddr");
      const connection = await node.dial(multiaddr(address));
      return async () => ofLibp2p(await connection.newStream("/bench", { maxOutboundStreams: 1_000 }));
    },
  },
};

/** The far end of one stream. */
function answer(stream) {
  let purpose;
  let head = Buffer.alloc(0);
  let left = 0;
  stream.onData((chunk) => {
    let bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    if (purpose === undefined) {
      purpose = String.fromCharCode(bytes[0]);
      bytes = bytes.subarray(1);
    }
    if (purpose === "e") {
      if (bytes.length > 0) stream.write(Buffer.from(bytes));
      return;
    }
    while (bytes.length > 0) {
      if (left === 0) {
        head = Buffer.concat([head, bytes.subarray(0, 8 - head.length)]);
        bytes = bytes.subarray(Math.min(bytes.length, 8));
        if (head.length < 8) return;
        left = Number(head.readBigUInt64BE());
        head = Buffer.alloc(0);
      }
      const part = Math.min(left, bytes.length);
      left -= part;
      bytes = bytes.subarray(part);
      if (left === 0) stream.write(Buffer.of(1));
    }
  });
}

/** Resolves with the next data. */
function heard(stream) {
  let resolve = () => undefined;
  stream.onData((bytes) => resolve(bytes));
  return () =>
    new Promise((settle) => {
      resolve = settle;
    });
}

async function measurer(dial) {
  const echo = await dial();
  const echoed = heard(echo);
  echo.write(Buffer.from("e"));
  const sink = await dial();
  const swallowed = heard(sink);
  sink.write(Buffer.from("s"));
  return {
    async open() {
      const startedAt = performance.now();
      const stream = await dial();
      const back = heard(stream)();
      stream.write(Buffer.from("e1"));
      await back;
      const ms = performance.now() - startedAt;
      stream.end();
      return [ms];
    },
    async echo(count) {
      const times = [];
      for (let i = 0; i < count; i++) {
        const startedAt = performance.now();
        const back = echoed();
        echo.write(Buffer.of(i & 255));
        await back;
        times.push(performance.now() - startedAt);
      }
      return times;
    },
    async bulk(total) {
      const startedAt = performance.now();
      const done = swallowed();
      const head = Buffer.alloc(8);
      head.writeBigUInt64BE(BigInt(total));
      sink.write(head);
      for (let sent = 0; sent < total; sent += CHUNK.length)
        if (!sink.write(CHUNK.subarray(0, Math.min(CHUNK.length, total - sent)))) await sink.drained();
      await done;
      return [(total * 8) / 1000 / (performance.now() - startedAt)];
    },
  };
}

const [name, role, address] = process.argv.slice(2);
if (role === "serve") console.log(JSON.stringify(await transports[name].serve(answer)));
else {
  const measure = await measurer(await transports[name].dialer(JSON.parse(address)));
  console.log('"ready"');
  for await (const line of createInterface({ input: process.stdin })) {
    const [what, amount] = line.split(" ");
    console.log(JSON.stringify(await measure[what](Number(amount))));
  }
  process.exit();
}
