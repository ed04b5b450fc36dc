// Attacks on an agent by one who has, or has not, a grant. Each runs to its end and says what came of it.

import { newIdentity } from "../../mesh/node/node.ts";
import { fromBase64 } from "../../mesh/wire/bytes.ts";
import { encodePacket, PROBE, sessionTag } from "../../mesh/wire/session.ts";
import type { Functions } from "./part-main.ts";
import { NONE, newDevice, RawSession, RelayedNode, type Target } from "./raw-session.ts";

/** A genuine first message to `agentKey` from a node nobody knows. */
function initiation(agentKey: Uint8Array, privateKey = newIdentity().privateKey): Uint8Array {
  const device = newDevice(privateKey);
  device.initiate(agentKey, performance.now(), Date.now());
  const [output] = device.takeOutputs();
  if (output.kind !== "send") throw new Error("no initiation");
  return output.message;
}

export interface Outcome {
  code?: number;
  [what: string]: number | string | undefined;
}

export async function rogue(target: Target & { agentKey: string }): Promise<Functions> {
  const relayUrl = target.relayUrl ?? target.url;
  const agentKey = fromBase64(target.agentKey);
  const live: RawSession[] = [];
  const admitted = async (change?: Parameters<RawSession["hello"]>[0]): Promise<RawSession> => {
    const raw = await RawSession.admitted(target, change);
    live.push(raw);
    return raw;
  };
  const open = (stream: number, service = "hold", metadata: Uint8Array = NONE) =>
    ({ kind: "open", stream, service, metadata }) as const;
  const data = (stream: number, offset: number, length: number) =>
    ({ kind: "stream", stream, offset, fin: false, data: new Uint8Array(length) }) as const;

  return {
    /** Sends `count` initiations of strangers from `keys` places; with `isReplay` one, again and again. */
    async flood({ count, keys, isReplay = false }: { count: number; keys: number; isReplay?: boolean }) {
      const first = initiation(agentKey);
      const messages = Array.from({ length: isReplay ? 1 : Math.min(count, 2_000) }, () =>
        isReplay ? first : initiation(agentKey),
      );
      const nodes = await Promise.all(
        Array.from({ length: keys }, () => new RelayedNode(relayUrl).connect()),
      );
      for (let i = 0; i < count; i++) {
        await nodes[i % keys].send(agentKey, messages[i % messages.length]);
        // Whoever doesn't read what comes back is closed by the relay.
        if (i % 64 === 0) await new Promise(setImmediate);
      }
      // One who asks last is answered last: the relay keeps each sender's order.
      await Promise.all(nodes.map((node) => node.derp.ping()));
      const sum = (type: number) => nodes.reduce((total, { came }) => total + came[type], 0);
      const came = { responses: sum(2), cookies: sum(3) };
      await Promise.all(nodes.map((node) => node.close()));
      return came;
    },

    /** Sends what is no message, or one whose mac1 is wrong. */
    async noise(count: number) {
      const node = await new RelayedNode(relayUrl).connect();
      const genuine = initiation(agentKey);
      for (let i = 0; i < count; i++) {
        const message = genuine.slice(0, i % 3 === 0 ? i % 149 : 148);
        if (message.length > 116) message[116 + (i % 16)] ^= 1 + (i % 255);
        await node.send(agentKey, message);
        if (i % 64 === 0) await new Promise(setImmediate);
      }
      await node.derp.ping();
      await node.close();
      return { responses: node.came[2], cookies: node.came[3] };
    },

    /** A session by the rules, as a control: it is let in. */
    async polite() {
      const raw = await admitted();
      await raw.say(open(0, "echo"), data(0, 0, 100));
      await raw.until(() => raw.streamBytes === 100, "the echo");
    },

    async openTooMany(count: number): Promise<Outcome> {
      const raw = await admitted();
      for (let i = 0; i < count && !raw.closed; i += 100)
        await raw.say(...Array.from({ length: 100 }, (_, n) => open(2 * (i + n))));
      return raw.end();
    },

    /** As many as allowed, with all the metadata there can be; then nothing more. */
    async hoardStreams(): Promise<Outcome> {
      const raw = await admitted();
      for (let i = 0; i < 256; i += 2)
        await raw.say(
          open(2 * i, "hold", new Uint8Array(16_384)),
          open(2 * i + 2, "hold", new Uint8Array(16_384)),
        );
      await raw.settle();
      return { code: raw.closed?.code };
    },

    async sendBeyondCredit(): Promise<Outcome> {
      const raw = await admitted();
      await raw.say(open(0));
      for (let at = 0; at < 4 << 20 && !raw.closed; at += 60_000) await raw.say(data(0, at, 60_000));
      return raw.end();
    },

    async ackUnsent(): Promise<Outcome> {
      const raw = await admitted();
      await raw.settle();
      const last = raw.largest + 1_000;
      await raw.say({ kind: "ack", echo: last, delayUs: 0, ranges: [[last, last]] });
      return raw.end();
    },

    /** Acknowledges every other packet, each in a range of its own, again and again. */
    async floodAcks(count: number): Promise<Outcome> {
      const raw = await admitted();
      await raw.say(open(0, "pour"), { kind: "max-data", max: 1e12 });
      await raw.until(() => raw.largest >= 0, "packets");
      for (let i = 0; i < count && !raw.closed; i++) {
        const last = raw.largest - (raw.largest % 2);
        const ranges: [number, number][] = [];
        for (let at = last; at >= 0 && ranges.length < 256; at -= 2) ranges.push([at, at]);
        await raw.say({ kind: "ack", echo: last, delayUs: 0, ranges });
        if (i % 8 === 0) await new Promise(setImmediate);
      }
      await raw.settle();
      return { code: raw.closed?.code, packets: raw.largest };
    },

    /** Claims windows without end, and acknowledges whatever could have been sent by now. */
    async optimist(): Promise<Outcome> {
      const max = Number.MAX_SAFE_INTEGER;
      const raw = await admitted({ maxDataBytes: max, maxStreamDataBytes: max });
      await raw.say(open(0, "pour"));
      for (let i = 0; i < 2_000 && !raw.closed; i++) {
        const { largest } = raw;
        if (largest >= 0)
          await raw.say(
            { kind: "ack", echo: largest, delayUs: 1e9, ranges: [[0, largest]] },
            { kind: "max-data", max },
          );
        if (raw.streamBytes > 64 << 20) break;
        await new Promise(setImmediate);
      }
      return { code: raw.closed?.code, bytes: raw.streamBytes };
    },

    /** Windows without end on `streams` streams, nothing acknowledged. */
    async neverAck(streams: number): Promise<Outcome> {
      const max = Number.MAX_SAFE_INTEGER;
      const raw = await admitted({ maxDataBytes: max, maxStreamDataBytes: max });
      for (let i = 0; i < streams; i++) await raw.say(open(2 * i, "pour"));
      await raw.until(() => raw.streamBytes > 0, "the first data");
      return { code: raw.closed?.code };
    },

    /** Probes, signals and datagrams that nobody asked for. */
    async babble(count: number): Promise<Outcome> {
      const raw = await admitted();
      for (let i = 0; i < count && !raw.closed; i++)
        await raw.say(
          { kind: "probe", type: i % 2 ? PROBE.challenge : PROBE.response, body: new Uint8Array(1_024) },
          { kind: "signal", type: 0x2f, seq: i, body: new Uint8Array(100) },
          { kind: "datagram", stream: 2 * i, data: new Uint8Array(1_000) },
        );
      await raw.settle();
      return { code: raw.closed?.code };
    },

    /** Sessions with one key. @returns how the last was refused */
    async hoardSessions(count: number): Promise<Outcome> {
      const first = await admitted();
      for (let i = 1; i < count; i++) {
        const id = first.sessionId.slice();
        id[0] ^= i;
        await first.sayBytes(encodePacket(sessionTag(id), 0, [first.hello({ sessionId: id })]));
      }
      return first.end();
    },

    /** Sessions of one user, each with a key of its own, as `coder ssh` would have. @returns how many stay open */
    async hoardUser(count: number): Promise<Outcome> {
      const all: RawSession[] = [];
      for (let i = 0; i < count; i += 16)
        all.push(...(await Promise.all(Array.from({ length: Math.min(16, count - i) }, () => admitted()))));
      await Promise.all(all.map((raw) => raw.closed ?? raw.settle()));
      const refused = all.find(({ closed }) => closed);
      return { kept: all.filter(({ closed }) => !closed).length, code: refused?.closed?.code };
    },

    /** A stranger's HELLOs: a grant that is none. */
    async knock(count: number): Promise<Outcome> {
      const raw = await RawSession.connect(target);
      for (let i = 0; i < count; i++) {
        const id = raw.sessionId.slice();
        id.set([i & 255, i >> 8]);
        const hello = raw.hello({ sessionId: id, grant: raw.grant.slice(0, -1) });
        await raw.sayBytes(encodePacket(sessionTag(id), 0, [hello]));
      }
      const end = await raw.end();
      await raw.close();
      return end;
    },

    async leave() {
      await Promise.all(live.splice(0).map((raw) => raw.close()));
    },
  };
}
