// npm run bench -- core: the parts that every byte passes, without sockets, in CPU time of one process: sealing and opening,
// a session from end to end, DERP frames; beside the bare cipher and a bare copy. Ours and control take turns.
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import { markHeapAtOnce } from "../mesh/node/collector.ts";
import { nodeCrypto } from "../mesh/node/crypto.ts";
import { Session } from "../mesh/session/session.ts";
import { concatBytes } from "../mesh/wire/bytes.ts";
import { encodeFrame, FRAME, FrameDecoder, maxServerBodyBytes, turnSendIntoRecv } from "../mesh/wire/derp.ts";
import { MAX_PACKET_BYTES } from "../mesh/wire/session.ts";
import { WireGuardDevice } from "../mesh/wireguard/device.ts";
import { type Row, report, rounds, row } from "./report.ts";

const LARGE_BYTES = MAX_PACKET_BYTES;
const SMALL_BYTES = 64;
const ROUNDS = rounds(15, 3);
const LARGE_CALLS = 1_000;
const SMALL_CALLS = 10_000;
const HERE = { key: "here" };
const TAG = { authTagLength: 16 };

markHeapAtOnce(); // as every node does

/** CPU time of `call`, `calls` times, in us each. */
function cpuUs(calls: number, call: () => void): number {
  const before = process.cpuUsage();
  for (let i = 0; i < calls; i++) call();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / calls;
}

interface Pair {
  id: string;
  what: string;
  /** Of payload a call: the row is in Mbit a CPU-second; without it in us a call. */
  bytes?: number;
  calls: number;
  ours: () => void;
  control: { name: string; call: () => void };
}

/** After a round of each that is not counted. */
function measured({ id, what, bytes, calls, ours, control }: Pair): Row {
  const value = (us: number): number => (bytes === undefined ? us : (bytes * 8) / us);
  const [mine, other] = [[], []] as number[][];
  for (let round = -1; round < ROUNDS; round++) {
    const times = [cpuUs(calls, ours), cpuUs(calls, control.call)];
    if (round < 0) continue;
    mine.push(value(times[0]));
    other.push(value(times[1]));
  }
  return row({
    id,
    what,
    unit: bytes === undefined ? "us" : "Mbit/CPU-s",
    better: bytes === undefined ? "lower" : "higher",
    ours: mine,
    control: { name: control.name, values: other },
    paired: true,
  });
}

// --- WireGuard: one device seals, another opens ---

const device = (): WireGuardDevice =>
  new WireGuardDevice({
    privateKey: new Uint8Array(randomBytes(32)),
    crypto: nodeCrypto,
    randomBytes: (count) => new Uint8Array(randomBytes(count)),
    acceptUnknown: true,
  });

/** Two devices with keys for each other. */
function joined(): { near: WireGuardDevice; far: WireGuardDevice } {
  const [near, far] = [device(), device()];
  far.addPeer(near.publicKey);
  near.initiate(far.publicKey, 0, Date.now());
  for (const [from, to] of [
    [near, far],
    [far, near],
  ])
    for (const output of from.takeOutputs())
      if (output.kind === "send") to.receive(output.message, HERE, 0, Date.now());
  near.takeOutputs();
  far.receive(near.seal(far.publicKey, new Uint8Array(1), 0) as Uint8Array, HERE, 0, 0); // proves the keys
  far.takeOutputs();
  return { near, far };
}

/** The cipher alone, as little around it as Node allows. */
function bareSeal(key: Buffer, nonce: Buffer, plaintext: Uint8Array): [Buffer, Buffer] {
  const cipher = createCipheriv("chacha20-poly1305", key, nonce, TAG);
  const sealed = cipher.update(plaintext);
  cipher.final();
  return [sealed, cipher.getAuthTag()];
}

function bareOpen(key: Buffer, nonce: Buffer, [sealed, tag]: [Buffer, Buffer]): Buffer {
  const decipher = createDecipheriv("chacha20-poly1305", key, nonce, TAG);
  decipher.setAuthTag(tag);
  const plaintext = decipher.update(sealed);
  decipher.final();
  return plaintext;
}

function wireguard(): Row[] {
  const { near, far } = joined();
  const [key, nonce] = [randomBytes(32), randomBytes(12)];
  const [large, small] = [new Uint8Array(LARGE_BYTES), new Uint8Array(SMALL_BYTES)];
  const bare = { name: "bare node:crypto" };
  const cross = (plaintext: Uint8Array): void => {
    far.receive(near.seal(far.publicKey, plaintext, 0) as Uint8Array, HERE, 0, 0);
    if (far.takeOutputs().length !== 1) throw new Error("a packet did not arrive");
  };
  return [
    measured({
      id: "seal-large",
      what: `WireGuard, seal ${LARGE_BYTES} B`,
      bytes: LARGE_BYTES,
      calls: LARGE_CALLS,
      ours: () => near.sealPieces(far.publicKey, large, 0),
      control: { ...bare, call: () => bareSeal(key, nonce, large) },
    }),
    measured({
      id: "cross-large",
      what: `WireGuard, seal and open ${LARGE_BYTES} B`,
      bytes: LARGE_BYTES,
      calls: LARGE_CALLS,
      ours: () => cross(large),
      control: { ...bare, call: () => bareOpen(key, nonce, bareSeal(key, nonce, large)) },
    }),
    measured({
      id: "cross-small",
      what: `WireGuard, seal and open ${SMALL_BYTES} B`,
      calls: SMALL_CALLS,
      ours: () => cross(small),
      control: { ...bare, call: () => bareOpen(key, nonce, bareSeal(key, nonce, small)) },
    }),
  ];
}

// --- session: two cores, packets handed over in memory ---

class Pipe {
  readonly client: Session;
  readonly agent: Session;
  readonly stream: number;
  now = 1_000;

  constructor() {
    this.client = new Session({
      role: "client",
      now: this.now,
      sessionId: new Uint8Array(randomBytes(16)),
      grant: new Uint8Array(),
    });
    this.agent = new Session({ role: "agent", now: this.now });
    for (const session of [this.client, this.agent]) session.addLane(1, this.now);
    this.stream = this.client.openStream("sink", new Uint8Array(), this.now);
    this.turn();
    this.agent.accept();
    this.turn();
    this.turn();
  }

  /** Everything either side has to say now, and 0.2 ms: a round trip of a fast local network. */
  turn(): void {
    for (const [from, to] of [
      [this.client, this.agent],
      [this.agent, this.client],
    ]) {
      for (;;) {
        const packet = from.nextPacket(1, MAX_PACKET_BYTES, this.now);
        if (!packet) break;
        to.receivePacket(packet.slice(), 1, this.now + 0.1); // a copy, in place of opening what was sealed
      }
    }
    this.now += 0.2;
    for (const session of [this.client, this.agent]) {
      session.takeEvents();
      session.handleTimeout(this.now);
    }
  }

  /** Carries `chunk` to the reader at the other end. */
  carry(chunk: Uint8Array): void {
    let [written, read] = [0, 0];
    while (read < chunk.length) {
      if (written < chunk.length) written += this.client.write(this.stream, chunk.subarray(written));
      this.turn();
      for (let part = this.agent.read(this.stream); part; part = this.agent.read(this.stream))
        read += part.length;
    }
  }
}

function sessions(): Row[] {
  const [bulk, keys] = [new Pipe(), new Pipe()];
  const chunk = new Uint8Array(1 << 20);
  const [target, key] = [Buffer.alloc(chunk.length), Uint8Array.of(1)];
  return [
    measured({
      id: "session-bulk",
      what: "session core, both ends, 1 MiB at a time",
      bytes: chunk.length,
      calls: 64,
      ours: () => bulk.carry(chunk),
      control: { name: "Buffer.copy, twice", call: () => target.set(chunk) ?? target.set(chunk) },
    }),
    measured({
      id: "session-byte",
      what: "session core, both ends, one byte and its acknowledgement",
      calls: SMALL_CALLS,
      ours: () => keys.carry(key),
      control: { name: "Buffer.copy, twice", call: () => target.set(key) ?? target.set(key) },
    }),
  ];
}

// --- DERP frames ---

function frames(): Row {
  const [src, data] = [randomBytes(32), new Uint8Array(16_384)];
  const stream = concatBytes(
    ...Array.from({ length: 64 }, () => encodeFrame({ kind: "sendPacket", dst: src, data })),
  );
  const chunks: Uint8Array[] = [];
  for (let at = 0; at < stream.length; at += 65_536) chunks.push(stream.subarray(at, at + 65_536));
  const decoder = new FrameDecoder(maxServerBodyBytes);
  const target = Buffer.alloc(stream.length);
  return measured({
    id: "derp-frames",
    what: "DERP, cut reads of 64 KiB into frames of 16 KB and turn them round",
    bytes: stream.length,
    calls: 200,
    ours: () => {
      for (const chunk of chunks)
        decoder.push(chunk, (_type, buffer, start) => {
          turnSendIntoRecv(buffer, start, src);
          buffer[start] = FRAME.sendPacket; // for the next round
        });
    },
    control: { name: "Buffer.copy", call: () => target.set(stream) },
  });
}

report({
  group: "core",
  title: "parts that every byte passes, without sockets, in CPU time",
  rows: [...wireguard(), ...sessions(), frames()],
});
