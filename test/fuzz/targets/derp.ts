// DERP: frames both ways, the relay's connection at every stage of its life, the client's half, and the HTTP around them.
import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import {
  keyPair,
  openClientInfo,
  openServerInfo,
  sealClientInfo,
  sealServerInfo,
  sharedKey,
} from "../../../derp/box.ts";
import { RelayError } from "../../../derp/client/errors.ts";
import { MAX_HEAD_BYTES, ResponseHeadReader } from "../../../derp/client/http-head.ts";
import { ClientProtocol } from "../../../derp/client/protocol.ts";
import { UpgradeAnswer } from "../../../derp/client/upgrade.ts";
import { DerpServer } from "../../../derp/server/server.ts";
import { concatBytes, equalBytes, utf8 } from "../../../mesh/wire/bytes.ts";
import {
  decodeClientInfo,
  decodeFrame,
  decodeServerInfo,
  encodeClientInfo,
  encodeFrame,
  encodeServerInfo,
  FRAME,
  type Frame,
  FrameDecoder,
  HEADER_BYTES,
  MAX_BODY_BYTES,
  maxClientBodyBytes,
  maxServerBodyBytes,
  writeHeader,
} from "../../../mesh/wire/derp.ts";
import { WireError } from "../../../mesh/wire/errors.ts";
import derpVectors from "../../vectors/derp.json" with { type: "json" };
import { type Instance, outcomeOf, type Target } from "../engine.ts";
import { pieces, type Random } from "../random.ts";

const filled = (fill: number, length = 32): Uint8Array => new Uint8Array(length).fill(fill);
const relayKeys = keyPair(filled(1));
const clientKeys = keyPair(filled(2));
const meshKeys = keyPair(filled(3));
const MESH_KEY = "ab".repeat(32);
const shared = sharedKey(relayKeys.publicKey, clientKeys.privateKey);
const meshShared = sharedKey(relayKeys.publicKey, meshKeys.privateKey);
const hello = sealClientInfo({ version: 2, canAckPings: true }, clientKeys.publicKey, shared, filled(4, 24));
const meshHello = sealClientInfo(
  { version: 2, canAckPings: true, meshKey: MESH_KEY },
  meshKeys.publicKey,
  meshShared,
  filled(5, 24),
);
const serverKey = encodeFrame({ kind: "serverKey", key: relayKeys.publicKey });
const serverInfo = sealServerInfo({ version: 2, tokenBucketBytesPerSecond: 1000 }, shared, filled(6, 24));

const someFrames: Exclude<Frame, { kind: "unknown" }>[] = [
  { kind: "serverKey", key: filled(7) },
  { kind: "sendPacket", dst: clientKeys.publicKey, data: filled(9, 40) },
  { kind: "sendPacket", dst: filled(8), data: filled(9, 70) },
  { kind: "recvPacket", src: filled(8), data: filled(9, 20) },
  { kind: "keepAlive" },
  { kind: "notePreferred", home: true },
  { kind: "peerGone", key: filled(8), reason: 1 },
  { kind: "peerPresent", key: filled(8), address: filled(0, 16), port: 443, flags: 1 },
  { kind: "forwardPacket", src: filled(8), dst: clientKeys.publicKey, data: filled(9, 33) },
  { kind: "watchConns" },
  { kind: "closePeer", key: filled(8) },
  { kind: "ping", data: filled(1, 8) },
  { kind: "pong", data: filled(1, 8) },
  { kind: "health", problem: "relay is full" },
  { kind: "restarting", reconnectInMs: 250, tryForMs: 5_000 },
];
const vectorFrames = derpVectors.frames.map(({ wire }) => Uint8Array.from(Buffer.from(wire, "hex")));
const frameSeeds = [
  ...vectorFrames,
  ...someFrames.map(encodeFrame),
  concatBytes(...someFrames.map(encodeFrame)),
  concatBytes(encodeFrame(someFrames[1]), encodeFrame(someFrames[1]), encodeFrame(someFrames[11])),
];
const types = Object.values(FRAME).map((type) => Uint8Array.of(type, 0, 0, 0, 32));

/** Makes the lengths of the frames right again, as far as there are bytes. */
function repairFrames(input: Uint8Array, random: Random): Uint8Array {
  const out = input.slice();
  if (out.length < HEADER_BYTES) return out;
  const first = HEADER_BYTES + random.below(out.length - HEADER_BYTES + 1);
  writeHeader(out, 0, out[0], first - HEADER_BYTES);
  if (out.length - first >= HEADER_BYTES)
    writeHeader(out, first, out[first], out.length - first - HEADER_BYTES);
  return out;
}

/** Frames until the decoder refuses, as texts; then the code. */
function framesOf(chunks: readonly Uint8Array[], maxBodyBytes: (type: number) => number): string[] {
  const seen: string[] = [];
  const decoder = new FrameDecoder(maxBodyBytes);
  const code = outcomeOf(() => {
    for (const chunk of chunks) {
      decoder.push(chunk, (type, buffer, start, end) => {
        seen.push(`${type}:${Buffer.from(buffer.subarray(start + HEADER_BYTES, end)).toString("latin1")}`);
      });
      assert.ok(decoder.pendingBytes <= HEADER_BYTES + MAX_BODY_BYTES);
    }
    return undefined;
  }, WireError);
  return [...seen, code];
}

function frameTarget(name: string, maxBodyBytes: (type: number) => number): Target {
  return {
    name,
    format: "bytes",
    seeds: frameSeeds,
    dictionary: types,
    repair: repairFrames,
    open: () => ({
      run(input, random) {
        const whole = framesOf([input.slice()], maxBodyBytes);
        if (random.chance(0.3)) {
          const cut = framesOf(pieces(input, random), maxBodyBytes);
          assert.equal(cut.join(), whole.join(), "another result when cut");
        }
        const words: string[] = [];
        for (const text of whole.slice(0, -1)) {
          const colon = text.indexOf(":");
          const type = Number(text.slice(0, colon));
          const body = Uint8Array.from(Buffer.from(text.slice(colon + 1), "latin1"));
          words.push(
            outcomeOf(() => {
              const frame = decodeFrame(type, body);
              if (frame.kind === "unknown") return "unknown";
              // What was accepted and is encoded again means the same.
              const encoded = encodeFrame(frame);
              const again = decodeFrame(type, encoded.subarray(HEADER_BYTES));
              assert.ok(again.kind === frame.kind && equalBytes(encodeFrame(again), encoded), "not stable");
              return frame.kind;
            }, WireError),
          );
        }
        return `${words.slice(0, 4).join(" ")} ${whole.at(-1)}`;
      },
    }),
    inputsPerInstance: 1_000,
  };
}

/** A socket whose input is fed by hand and whose output is kept up to a bound. */
class FedSocket extends Duplex {
  override _read(): void {}
  override _write(_chunk: Uint8Array, _encoding: string, callback: () => void): void {
    callback();
  }
  /** Its end is told at once rather than in the next turn. */
  cut(): void {
    this.destroy();
    this.emit("close");
  }
  feed(chunk: Uint8Array): void {
    if (!this.destroyed) this.emit("data", chunk);
  }
}

/** `stage`: what was said before; "open" and "mesh" keep the connection until it is closed. */
function connectionTarget(stage: "greeted" | "open" | "mesh"): Target {
  const before = stage === "open" ? hello : stage === "mesh" ? meshHello : undefined;
  return {
    name: `derp-connection-${stage}`,
    format: "bytes",
    seeds: [hello, meshHello, concatBytes(hello, encodeFrame(someFrames[1])), ...frameSeeds],
    dictionary: types,
    repair: repairFrames,
    inputsPerInstance: 500,
    shortInputs: before ? undefined : 600,
    open: () => relayInstance(before),
  };
}

function relayInstance(before: Uint8Array | undefined): Instance {
  const server = new DerpServer({ privateKey: relayKeys.privateKey, meshKey: MESH_KEY });
  const bystander = connect(server);
  bystander.feed(
    sealClientInfo(
      { version: 2, canAckPings: true },
      keyPair(filled(8)).publicKey,
      sharedKey(relayKeys.publicKey, filled(8)),
      filled(7, 24),
    ),
  );
  let current: FedSocket | undefined;
  let last: DerpServer["stats"] | undefined;
  return {
    run(input, random) {
      // Before the key is proven every input meets a new connection, later only when the old one was ended.
      if (!current || current.destroyed || !before) {
        current?.cut();
        current = connect(server);
        if (before) current.feed(before.slice());
      }
      for (const piece of pieces(input, random)) current.feed(piece);
      const { stats } = server;
      assert.ok(stats.currentConnections <= 2 && stats.currentKeys <= 2, "connections pile up");
      if (!before && stats.currentKeys === 2) {
        // Nobody but the owner of a key comes in: its ClientInfo stood in the input as it was sealed.
        const text = Buffer.from(input).toString("latin1");
        const isGenuine = [hello, meshHello].some((frame) =>
          text.includes(Buffer.from(frame.subarray(HEADER_BYTES)).toString("latin1")),
        );
        assert.ok(isGenuine, "a key came in without proof");
      }
      assert.ok(stats.queuedBytes <= 2 << 20, `${stats.queuedBytes} bytes wait`);
      assert.deepEqual(server.checkConsistency(), []);
      const word = Object.entries(stats)
        .filter(([name, count]) => count !== last?.[name as keyof typeof stats])
        .map(([name]) => name);
      last = stats;
      return `${current.destroyed ? "closed" : "open"} ${word.join(" ")}`;
    },
    async end() {
      current?.destroy();
      bystander.destroy();
      await server.close({ reconnectInMs: 0, tryForMs: 0 });
    },
  };
}

function connect(server: DerpServer): FedSocket {
  const socket = new FedSocket();
  socket.on("error", () => undefined);
  server.handleUpgrade(
    {
      method: "GET",
      url: "/derp",
      headers: { upgrade: "DERP", "derp-fast-start": "1" },
      socket: { remoteAddress: "192.0.2.1", remotePort: 1 },
    },
    socket,
    new Uint8Array(),
  );
  return socket;
}

function clientTarget(stage: "new" | "keyed" | "confirmed"): Target {
  return {
    name: `derp-client-${stage}`,
    format: "bytes",
    seeds: [serverKey, serverInfo, concatBytes(serverKey, serverInfo, ...frameSeeds), ...frameSeeds],
    dictionary: types,
    repair: repairFrames,
    inputsPerInstance: stage === "new" ? 1 : 200,
    open() {
      let events = 0;
      let isConfirmed = false;
      let isSpent = false;
      const protocol = new ClientProtocol(clientKeys, { version: 2, canAckPings: true }, filled(4, 24), {
        write: () => events++,
        onSendable: () => events++,
        onConfirmed: () => {
          isConfirmed = true;
        },
        onPacket: (src, data) => {
          events++;
          assert.equal(src.length, 32);
          assert.ok(data.length <= 65_536 && isConfirmed);
        },
        onPeerGone: (key) => assert.equal(key.length, 32),
        onPong: (data) => assert.equal(data.length, 8),
        onHealth: (problem) =>
          assert.ok(
            problem.length <= 512 && !/[\x00-\x1f\x7f-\x9f]/.test(problem),
            "health is not printable",
          ),
        onRestarting: (reconnectInMs, tryForMs) =>
          assert.ok(reconnectInMs >= 0 && tryForMs >= 0 && reconnectInMs < 2 ** 32 && tryForMs < 2 ** 32),
        onOther: () => events++,
      });
      if (stage !== "new") protocol.startWith(relayKeys.publicKey);
      if (stage === "confirmed") protocol.push(serverInfo.slice());
      return {
        get isSpent() {
          return isSpent;
        },
        run(input, random) {
          const before = events;
          const code = outcomeOf(() => {
            for (const piece of pieces(input, random)) protocol.push(piece);
            return undefined;
          }, WireError);
          isSpent = code !== "ok" || (stage === "keyed" && isConfirmed);
          if (isConfirmed && stage !== "confirmed")
            assert.ok(
              Buffer.from(input).includes(Buffer.from(serverInfo.subarray(HEADER_BYTES))),
              "confirmed without proof",
            );
          return `${code} ${isConfirmed} ${Math.min(4, events - before)}`;
        },
      };
    },
  };
}

const head = (text: string): Uint8Array => Buffer.from(text.replaceAll("\n", "\r\n"), "latin1");
const headSeeds = [
  head("HTTP/1.1 101 Switching Protocols\nUpgrade: DERP\nConnection: Upgrade\nDerp-Version: 2\n\n\u0001\0\0"),
  head("HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early Hints\nLink: </x>\n\nHTTP/1.1 101 X\nUpgrade: DERP\n\n"),
  head("HTTP/1.1 503 Service Unavailable\nContent-Length: 0\n\n"),
  head("HTTP/1.0 200 OK\nA: b\nA:c\n :d\nE\n\nbody"),
  serverKey,
];

/** What a head means, or why it means nothing; `rest` once there is a head. */
function upgradeOf(chunks: readonly Uint8Array[], isFast: boolean): string {
  const answer = new UpgradeAnswer("http://relay", isFast);
  const rest: Uint8Array[] = [];
  return outcomeOf(() => {
    for (const chunk of chunks) {
      const frames = answer.done ? chunk : answer.push(chunk);
      if (frames) rest.push(frames);
    }
    return `${answer.done} ${Buffer.concat(rest).toString("latin1")}`;
  }, RelayError);
}

const textOf = (frame: Uint8Array): Uint8Array => frame.subarray(HEADER_BYTES);

export const derpTargets: Target[] = [
  frameTarget("derp-frames-of-clients", maxClientBodyBytes),
  frameTarget("derp-frames-of-servers", maxServerBodyBytes),
  connectionTarget("greeted"),
  connectionTarget("open"),
  connectionTarget("mesh"),
  clientTarget("new"),
  clientTarget("keyed"),
  clientTarget("confirmed"),
  {
    name: "derp-upgrade-answer",
    format: "bytes",
    seeds: headSeeds,
    maxBytes: 20_000,
    dictionary: [
      "\r\n",
      "\r\n\r\n",
      "HTTP/1.1 ",
      " 101 ",
      "x".repeat(9_000),
      "HTTP/1.1 100 C\r\n\r\n",
      ":",
    ].map(utf8),
    inputsPerInstance: 1_000,
    open: () => ({
      run(input, random) {
        const isFast = random.chance(0.3);
        const whole = upgradeOf([input], isFast);
        const cut = upgradeOf(pieces(input, random), isFast);
        // A refusal may be noticed with less of the answer there; what is accepted must not depend on cuts.
        assert.equal(cut, whole, "another answer when cut");
        if (input.length > MAX_HEAD_BYTES) assert.notEqual(whole, "false ", "a head without an end is held");
        const reader = new ResponseHeadReader();
        outcomeOf(() => {
          const found = reader.push(input);
          assert.ok(!found || (found.status >= 101 && found.status <= 999));
          return undefined;
        }, RelayError);
        return /^(true|false) /.exec(whole)?.[1] ?? whole;
      },
    }),
  },
  {
    name: "derp-info",
    format: "json",
    seeds: [
      encodeClientInfo({ version: 2, canAckPings: true, meshKey: MESH_KEY, isProber: true, appName: "x" }),
      encodeClientInfo({ version: 2, canAckPings: true, peerGoneForAll: true }),
      encodeServerInfo({ version: 2, tokenBucketBytesPerSecond: 1_000, tokenBucketBytesBurst: 10_000 }),
    ],
    inputsPerInstance: 1_000,
    open: () => ({
      run(input) {
        const client = outcomeOf(() => {
          const info = decodeClientInfo(input);
          const frame = sealClientInfo(info, clientKeys.publicKey, shared, filled(4, 24));
          if (input.length < 64)
            assert.deepEqual(openClientInfo(textOf(frame), relayKeys.privateKey).info, info);
          assert.deepEqual(decodeClientInfo(encodeClientInfo(info)), {
            ...info,
            meshKey: info.meshKey || undefined,
          });
          return Object.values(info)
            .map((value) => typeof value)
            .join();
        }, WireError);
        const server = outcomeOf(() => {
          const info = decodeServerInfo(input);
          const frame = sealServerInfo(info, shared, filled(6, 24));
          if (input.length < 64) openServerInfo(textOf(frame), shared);
          return Object.values(info)
            .map((value) => typeof value)
            .join();
        }, WireError);
        return `${client} ${server}`;
      },
    }),
  },
];
