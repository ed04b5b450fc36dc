// A relay that speaks DERP to both sides and keeps none of its promises: it drops, repeats, reorders, delays and alters
// packets, lies about who sent them and who is gone. It has a coordinator beside it, which is honest.
import { randomBytes } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { keyPair, openClientInfo, sealServerInfo } from "../../derp/box.ts";
import type { DerpServer } from "../../derp/server/server.ts";
import { toHex } from "../../mesh/wire/bytes.ts";
import {
  decodeFrame,
  encodeFrame,
  FrameDecoder,
  HEADER_BYTES,
  maxClientBodyBytes,
} from "../../mesh/wire/derp.ts";
import { seededRandom } from "../../mesh/wire/testing.ts";
import { meshLab } from "../mesh-lab.ts";
import type { Functions } from "./part-main.ts";

/** Shares of packets, 0..1. */
export interface Badness {
  drop?: number;
  repeat?: number;
  alter?: number;
  /** Held back until `heldPackets` others have gone. */
  reorder?: number;
  /** Said to come from a key that did not send it. */
  lieAboutSource?: number;
  /** PeerGone said of a peer that is there. */
  gone?: number;
  /** Sent once more, as junk of the same length. */
  junk?: number;
}

const HELD_PACKETS = 8;

export async function badRelay({ seed }: { seed: number }): Promise<Functions> {
  const lab = await meshLab();
  const honest = lab.relay;
  const keys = keyPair();
  const random = seededRandom(seed);
  const clients = new Map<string, { key: Uint8Array; socket: Duplex }>();
  const held: { to: Duplex; frame: Uint8Array; left: number }[] = [];
  let badness: Badness = {};
  const deeds: Record<keyof Badness, number> = {
    drop: 0,
    repeat: 0,
    alter: 0,
    reorder: 0,
    lieAboutSource: 0,
    gone: 0,
    junk: 0,
  };
  const does = (what: keyof Badness): boolean => {
    if (random() >= (badness[what] ?? 0)) return false;
    deeds[what]++;
    return true;
  };

  function pass(from: Uint8Array, dst: Uint8Array, data: Uint8Array): void {
    const to = clients.get(toHex(dst))?.socket;
    if (!to || does("drop")) return;
    const src = does("lieAboutSource") ? keyPair().publicKey : from;
    const bytes = data.slice();
    if (does("alter")) bytes[Math.floor(random() * bytes.length)] ^= 1 << Math.floor(random() * 8);
    const frame = encodeFrame({ kind: "recvPacket", src, data: bytes });
    if (does("reorder")) held.push({ to, frame, left: HELD_PACKETS });
    else to.write(frame);
    if (does("repeat")) to.write(frame);
    if (does("junk"))
      to.write(
        encodeFrame({ kind: "recvPacket", src: from, data: new Uint8Array(randomBytes(bytes.length)) }),
      );
    if (does("gone")) to.write(encodeFrame({ kind: "peerGone", key: from, reason: 0 }));
    for (const late of held) late.left--;
    while (held.length > 0 && held[0].left <= 0) {
      const { to: late, frame: lateFrame } = held.shift()!;
      late.write(lateFrame);
    }
  }

  function serve(_request: IncomingMessage, socket: Duplex, head: Uint8Array): void {
    let key: Uint8Array | undefined;
    socket.on("error", () => undefined);
    socket.on("close", () => {
      if (key && clients.get(toHex(key))?.socket === socket) clients.delete(toHex(key));
    });
    socket.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n");
    socket.write(encodeFrame({ kind: "serverKey", key: keys.publicKey }));
    const decoder = new FrameDecoder(maxClientBodyBytes);
    const read = (chunk: Uint8Array) =>
      decoder.push(chunk, (type, buffer, start, end) => {
        const body = buffer.slice(start + HEADER_BYTES, end);
        const frame = decodeFrame(type, body);
        if (frame.kind === "clientInfo") {
          const opened = openClientInfo(body, keys.privateKey);
          key = opened.key;
          clients.set(toHex(key), { key, socket });
          socket.write(sealServerInfo({ version: 2 }, opened.shared, randomBytes(24)));
        } else if (frame.kind === "sendPacket" && key) pass(key, frame.dst, frame.data);
        else if (frame.kind === "ping") socket.write(encodeFrame({ kind: "pong", data: frame.data }));
      });
    if (head.length > 0) read(new Uint8Array(head));
    socket.on("data", (chunk: Uint8Array) => read(new Uint8Array(chunk)));
  }

  lab.relay = { handleUpgrade: serve, close: () => honest.close() } as unknown as DerpServer;
  return {
    url: () => lab.url,
    be: (next: Badness) => {
      badness = next;
    },
    deeds: () => ({ ...deeds }),
    cut: () => lab.cutRelay(),
    close: () => lab.close(),
  };
}
