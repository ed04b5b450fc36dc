// For tests: devices on a network in virtual time that loses, repeats, delays and so reorders, all from one seed.
import { toHex } from "../wire/bytes.ts";
import { seededRandom } from "../wire/testing.ts";
import type { DeviceOutput, Source, WireGuardDevice } from "./device.ts";

export function seededBytes(seed: number): (count: number) => Uint8Array {
  const random = seededRandom(seed);
  return (count) => Uint8Array.from({ length: count }, () => Math.floor(random() * 256));
}

export interface Weather {
  /** Probabilities. */
  loss: number;
  duplication: number;
  minDelayMs: number;
  maxDelayMs: number;
}

export const CALM: Weather = { loss: 0, duplication: 0, minDelayMs: 20, maxDelayMs: 20 };

interface Delivery {
  at: number;
  to: Node;
  from: Source;
  message: Uint8Array;
}

export interface Node {
  device: WireGuardDevice;
  source: Source;
  /** Everything but what was sent, oldest first. */
  events: Exclude<DeviceOutput, { kind: "send" | "cookie-reply" }>[];
}

/** The Unix time of virtual time zero. */
export const EPOCH_MS = 1_700_000_000_000;

export class SimulatedNetwork {
  now = 0;
  weather: Weather = CALM;
  /** Deliveries so far, for tests that say nothing more was sent. */
  delivered = 0;
  #random: () => number;
  #nodes: Node[] = [];
  #deliveries: Delivery[] = [];

  constructor(seed: number) {
    this.#random = seededRandom(seed);
  }

  add(device: WireGuardDevice): Node {
    const node: Node = { device, source: { key: `node-${this.#nodes.length}` }, events: [] };
    this.#nodes.push(node);
    return node;
  }

  initiate(from: Node, to: Node): void {
    from.device.initiate(to.device.publicKey, this.now, EPOCH_MS + this.now);
    this.flush();
  }

  /** @returns false when there is no session to send it on */
  send(from: Node, to: Node, plaintext: Uint8Array): boolean {
    const message = from.device.seal(to.device.publicKey, plaintext, this.now);
    if (message) this.#carry(from, to, message);
    return message !== undefined;
  }

  /** Advances virtual time; what is due at `untilAt` still happens. */
  run(untilAt: number): void {
    for (;;) {
      this.flush();
      const dueAt = Math.min(
        ...this.#deliveries.map(({ at }) => at),
        ...this.#nodes.map(({ device }) =>
          Math.max(this.now, device.nextTimeout() ?? Number.POSITIVE_INFINITY),
        ),
      );
      if (dueAt > untilAt) break;
      this.now = dueAt;
      const due = this.#deliveries.filter(({ at }) => at <= dueAt);
      this.#deliveries = this.#deliveries.filter(({ at }) => at > dueAt);
      for (const { to, from, message } of due) {
        this.delivered++;
        to.device.receive(message, from, this.now, EPOCH_MS + this.now);
      }
      for (const { device } of this.#nodes) device.handleTimeout(this.now, EPOCH_MS + this.now);
    }
    this.now = untilAt;
  }

  flush(): void {
    for (const node of this.#nodes)
      for (const output of node.device.takeOutputs()) {
        if (output.kind === "send" || output.kind === "cookie-reply") {
          const to = this.#nodes.find(({ device, source }) =>
            output.kind === "send"
              ? toHex(device.publicKey) === toHex(output.peer)
              : source.key === output.replyTo.key,
          );
          if (to) this.#carry(node, to, output.message);
        } else node.events.push(output);
      }
  }

  #carry(from: Node, to: Node, message: Uint8Array): void {
    const copies = this.#random() < this.weather.loss ? 0 : this.#random() < this.weather.duplication ? 2 : 1;
    const { minDelayMs, maxDelayMs } = this.weather;
    for (let i = 0; i < copies; i++) {
      const at = this.now + minDelayMs + this.#random() * (maxDelayMs - minDelayMs);
      this.#deliveries.push({ at, to, from: from.source, message: Uint8Array.from(message) });
    }
  }
}
