// A foreign WireGuard (wireguard-go, driven by `wg`) in its own network namespace, joined to ours by a veth pair, and
// our device on a UDP socket beside it. Needs root; everything made here is gone after `close`.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { existsSync, rmdirSync } from "node:fs";
import { nodeCrypto } from "../../mesh/node/crypto.ts";
import { fromBase64, toBase64, toHex } from "../../mesh/wire/bytes.ts";
import { type DeviceOptions, type DeviceOutput, WireGuardDevice } from "../../mesh/wireguard/device.ts";

const CONTROL_FOLDER = "/var/run/wireguard"; // where wireguard-go puts its sockets, and `wg` looks
const OUR_ADDRESS = "198.18.77.1"; // RFC 2544's range for tests: nothing real lives there
const THEIR_ADDRESS = "198.18.77.2";
export const THEIR_PORT = 51_820;
export const OUR_TUNNEL_ADDRESS = [10, 77, 0, 2];
export const THEIR_TUNNEL_ADDRESS = [10, 77, 0, 1];
const TUNNEL_MTU = 8_000;

function run(command: string, args: string[], input?: string): string {
  return execFileSync(command, args, {
    encoding: "utf8",
    input,
    stdio: ["pipe", "pipe", "pipe"],
    timeout: 10_000,
  });
}

const succeeds = (command: string, ...args: string[]): boolean => {
  try {
    run(command, args);
    return true;
  } catch {
    return false;
  }
};

/** @returns why the peer can't run here, or undefined */
export function whyNot(): string | undefined {
  if (process.getuid?.() !== 0) return "making a network namespace needs root";
  if (!existsSync("/dev/net/tun")) return "there is no /dev/net/tun";
  if (!succeeds("ip", "-V")) return "ip is not installed (Debian: iproute2)";
  if (!succeeds("wg", "--version")) return "wg is not installed (Debian: wireguard-tools)";
  if (!succeeds("wireguard-go", "--version")) return "wireguard-go is not installed (Debian: wireguard-go)";
  return undefined;
}

export class ForeignPeer {
  readonly publicKey: Uint8Array;
  #namespace: string;
  #link: string;
  #tunnel: string;
  #process: ChildProcess | undefined;
  #madeFolder = false;

  private constructor(namespace: string, publicKey: Uint8Array) {
    this.#namespace = namespace;
    this.#link = `${namespace}v`;
    this.#tunnel = `${namespace}t`;
    this.publicKey = publicKey;
  }

  static async start(): Promise<ForeignPeer> {
    const privateKey = run("wg", ["genkey"]).trim();
    const publicKey = fromBase64(run("wg", ["pubkey"], privateKey).trim());
    const peer = new ForeignPeer(`wg${process.pid}`, publicKey);
    try {
      await peer.#start(privateKey);
    } catch (error) {
      await peer.close();
      throw error;
    }
    return peer;
  }

  async #start(privateKey: string): Promise<void> {
    run("ip", ["netns", "add", this.#namespace]);
    const inside = `${this.#link}p`;
    run("ip", ["link", "add", this.#link, "type", "veth", "peer", "name", inside, "netns", this.#namespace]);
    run("ip", ["addr", "add", `${OUR_ADDRESS}/30`, "dev", this.#link]);
    run("ip", ["link", "set", this.#link, "up"]);
    this.#ip("addr", "add", `${THEIR_ADDRESS}/30`, "dev", inside);
    this.#ip("link", "set", inside, "up");
    await this.#startProcess();
    const setup = ["private-key", "/dev/stdin", "listen-port", `${THEIR_PORT}`];
    this.#inside("wg", ["set", this.#tunnel, ...setup], privateKey);
    this.#ip("addr", "add", `${THEIR_TUNNEL_ADDRESS.join(".")}/24`, "dev", this.#tunnel);
    this.#ip("link", "set", this.#tunnel, "mtu", `${TUNNEL_MTU}`, "up");
  }

  async #startProcess(): Promise<void> {
    this.#madeFolder = !existsSync(CONTROL_FOLDER);
    this.#process = spawn("ip", ["netns", "exec", this.#namespace, "wireguard-go", "-f", this.#tunnel], {
      stdio: "ignore", // `ip` becomes wireguard-go, so this process is the one to end
    });
    for (let tries = 0; !existsSync(`${CONTROL_FOLDER}/${this.#tunnel}.sock`); tries++) {
      if (tries > 200 || this.#process.exitCode !== null) throw new Error("wireguard-go did not start");
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Tells it of us. With `port` it knows where we are and says something every second, so it initiates. */
  addPeer(publicKey: Uint8Array, options: { port?: number; presharedKey?: Uint8Array } = {}): void {
    const settings = ["allowed-ips", `${OUR_TUNNEL_ADDRESS.join(".")}/32`];
    if (options.port)
      settings.push("endpoint", `${OUR_ADDRESS}:${options.port}`, "persistent-keepalive", "1");
    if (options.presharedKey) settings.push("preshared-key", "/dev/stdin");
    const input = options.presharedKey && toBase64(options.presharedKey);
    this.#inside("wg", ["set", this.#tunnel, "peer", toBase64(publicKey), ...settings], input);
  }

  removePeer(publicKey: Uint8Array): void {
    this.#inside("wg", ["set", this.#tunnel, "peer", toBase64(publicKey), "remove"]);
  }

  /** Makes its kernel send a UDP packet to our tunnel address. */
  sendUdp(port: number, text: string): void {
    const target = `/dev/udp/${OUR_TUNNEL_ADDRESS.join(".")}/${port}`;
    this.#inside("bash", ["-c", `printf %s "$0" > ${target}`, text]);
  }

  async close(): Promise<void> {
    const child = this.#process;
    if (child && child.exitCode === null) {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGTERM");
      await ended;
    }
    succeeds("ip", "link", "del", this.#link);
    succeeds("ip", "netns", "del", this.#namespace);
    if (this.#madeFolder) rmdirSync(CONTROL_FOLDER);
  }

  #ip(...args: string[]): void {
    run("ip", ["-n", this.#namespace, ...args]);
  }

  #inside(command: string, args: string[], input?: string): string {
    const inside = ["netns", "exec", this.#namespace, command, ...args];
    if (input === undefined) return run("ip", inside);
    // `wg` opens /dev/stdin, which works for a pipe but not for the socket that Node gives a child.
    return run("sh", ["-c", 'cat | ip "$@"', "sh", ...inside], input);
  }
}

type Wanted = Exclude<DeviceOutput, { kind: "send" | "cookie-reply" }>;

/** Our device with a UDP socket for its only path: the whole shell that the pure core needs. */
export class UdpNode {
  readonly device: WireGuardDevice;
  #socket: Socket;
  #timer: NodeJS.Timeout | undefined;
  #events: Wanted[] = [];
  #waiting: (() => void) | undefined;

  private constructor(options: Partial<DeviceOptions>) {
    this.device = new WireGuardDevice({
      privateKey: randomBytes(32),
      crypto: nodeCrypto,
      randomBytes,
      ...options,
    });
    this.#socket = createSocket("udp4");
    this.#socket.on("message", (message, { address, port }) => {
      this.device.receive(message, { key: `${address}:${port}` }, performance.now(), Date.now());
      this.#settle();
    });
  }

  static async start(options: Partial<DeviceOptions> = {}): Promise<UdpNode> {
    const node = new UdpNode(options);
    await new Promise<void>((resolve, reject) => {
      node.#socket.once("error", reject);
      node.#socket.bind(0, OUR_ADDRESS, resolve);
    });
    return node;
  }

  get port(): number {
    return this.#socket.address().port;
  }

  initiate(peer: Uint8Array): void {
    this.device.initiate(peer, performance.now(), Date.now());
    this.#settle();
  }

  send(peer: Uint8Array, plaintext: Uint8Array): void {
    const message = this.device.seal(peer, plaintext, performance.now());
    if (!message) throw new Error("no session");
    this.#transmit(message);
    this.#settle();
  }

  /** @throws when nothing fits in time */
  async next<K extends Wanted["kind"]>(
    kind: K,
    fits: (event: Extract<Wanted, { kind: K }>) => boolean = () => true,
    timeoutMs = 5_000,
  ): Promise<Extract<Wanted, { kind: K }>> {
    const untilAt = performance.now() + timeoutMs;
    for (;;) {
      const index = this.#events.findIndex(
        (event) => event.kind === kind && fits(event as Extract<Wanted, { kind: K }>),
      );
      if (index >= 0) return this.#events.splice(0, index + 1)[index] as Extract<Wanted, { kind: K }>;
      const leftMs = untilAt - performance.now();
      if (leftMs <= 0)
        throw new Error(
          `no ${kind} within ${timeoutMs} ms; counters ${JSON.stringify(this.device.counters)}`,
        );
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leftMs);
        this.#waiting = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#socket.close();
  }

  #transmit(message: Uint8Array): void {
    this.#socket.send(message, THEIR_PORT, THEIR_ADDRESS);
  }

  #settle(): void {
    for (const output of this.device.takeOutputs()) {
      if (output.kind === "send" || output.kind === "cookie-reply") this.#transmit(output.message);
      else this.#events.push(output);
    }
    this.#waiting?.();
    clearTimeout(this.#timer);
    const at = this.device.nextTimeout();
    if (at === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.device.handleTimeout(performance.now(), Date.now());
        this.#settle();
      },
      Math.max(0, at - performance.now()),
    );
  }
}

/** RFC 1071. */
function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/** An IPv4 packet from our tunnel address to theirs that holds an ICMP echo request. */
export function echoRequest(id: number, payload: Uint8Array): Uint8Array {
  const packet = new Uint8Array(28 + payload.length);
  const view = new DataView(packet.buffer);
  packet.set([0x45, 0, packet.length >> 8, packet.length & 0xff, 0, 0, 0, 0, 64, 1]);
  packet.set(OUR_TUNNEL_ADDRESS, 12);
  packet.set(THEIR_TUNNEL_ADDRESS, 16);
  view.setUint16(10, checksum(packet.subarray(0, 20)));
  packet[20] = 8;
  view.setUint16(24, id);
  packet.set(payload, 28);
  view.setUint16(22, checksum(packet.subarray(20)));
  return packet;
}

/** Whether `packet` (padded or not) is the reply to `echoRequest(id, payload)`. */
export function isEchoReply(packet: Uint8Array, id: number, payload: Uint8Array): boolean {
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength);
  const length = view.getUint16(2);
  return (
    packet[9] === 1 &&
    packet[20] === 0 &&
    view.getUint16(24) === id &&
    toHex(packet.subarray(28, length)) === toHex(payload)
  );
}
