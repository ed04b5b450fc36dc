// A line with a round trip of its own between two network namespaces of this machine, for kernels without netem: real IP,
// so that TCP's handshakes, windows and losses are the kernel's own, for our programs and for OpenSSH alike.
//
//   near namespace          this machine's                  far namespace
//   10.91.0.1 (TUN) ── wireguard-go ── UDP ── shaper ── UDP ── wireguard-go ── 10.91.0.2 (TUN)
//
// The TUN devices are made here and moved into the namespaces; the UDP sockets stay behind. Namespaces have no names:
// each lives as long as a process of ours, and every process dies with this one (PR_SET_PDEATHSIG), so even SIGKILL leaves
// no more than two names in /var/run/wireguard. Needs root, /dev/net/tun, ip, wireguard-go, setpriv, unshare, nsenter.
//
// What it can't do: wireguard-go and the shaper share the machine's cores with what is measured; on two busy cores a stream
// got 140 to 165 Mbit/s. Compare bulk on it only with bulk on it.
import { type ChildProcess, execFileSync, fork, spawn } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync, rmSync } from "node:fs";
import { connect } from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { FromShaper, Shape, ToShaper } from "./delay-shaper.ts";

export interface LineOptions {
  /** Added to the line's own, which is some 0.3 ms. */
  rttMs: number;
  /** 0..1, each way. */
  lossShare?: number;
  /** Each way; more than 100 ms of it waiting is dropped. */
  rateMbit?: number;
  seed?: number;
}

export type Side = "near" | "far";

export interface DelayLine {
  readonly addressOfNear: string;
  readonly addressOfFar: string;
  /** What to spawn to run `argv` in a namespace. The program replaces nsenter: signals and exit codes are its own. */
  inside(side: Side, argv: readonly string[]): [command: string, args: string[]];
  /** Makes it another line; connections on it live on. */
  shape(options: LineOptions): Promise<void>;
  close(): Promise<void>;
}

const NEAR = "10.91.0.1";
const FAR = "10.91.0.2";
const MTU = 1_420;
const CONTROL_FOLDER = "/var/run/wireguard"; // where wireguard-go puts its sockets
const READY_MS = 10_000;
const TOOLS = ["ip", "wireguard-go", "setpriv", "unshare", "nsenter"];

/** @returns why there can be no line here, or undefined */
export function whyNoLine(): string | undefined {
  if (process.getuid?.() !== 0) return "making network namespaces needs root";
  if (!existsSync("/dev/net/tun")) return "there is no /dev/net/tun";
  const folders = (process.env["PATH"] ?? "").split(":");
  const missing = TOOLS.filter((tool) => !folders.some((folder) => existsSync(path.join(folder, tool))));
  return missing.length > 0 ? `not installed: ${missing.join(", ")}` : undefined;
}

const run = (command: string, args: string[]): string =>
  execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], timeout: READY_MS });

/** A key pair as wireguard-go's control protocol writes it: hex. */
function keyPair(): { privateKey: string; publicKey: string } {
  const { d, x } = generateKeyPairSync("x25519").privateKey.export({ format: "jwk" });
  const hex = (text: string | undefined) => Buffer.from(text as string, "base64url").toString("hex");
  return { privateKey: hex(d), publicKey: hex(x) };
}

/** One request of wireguard-go's control protocol, `key=value` lines. @returns the values it answered with */
async function control(socketPath: string, request: string): Promise<Map<string, string>> {
  const socket = connect(socketPath);
  let answer = "";
  socket.setEncoding("utf8").on("data", (text: string) => {
    answer += text;
    if (answer.endsWith("\n\n")) socket.end();
  });
  socket.end(`${request}\n\n`);
  await once(socket, "close");
  const values = new Map(answer.split("\n").map((line) => line.split("=") as [string, string]));
  if (values.get("errno") !== "0") throw new Error(`wireguard-go answered ${JSON.stringify(answer)}`);
  return values;
}

/** A process that dies with this one, whatever ends it. */
const mortal = (...argv: string[]): ChildProcess =>
  spawn("setpriv", ["--pdeathsig", "KILL", "--", ...argv], { stdio: ["ignore", "pipe", "pipe"] });

const pause = () => new Promise((resolve) => setTimeout(resolve, 10));

async function until(what: string, holds: () => boolean): Promise<void> {
  const endAt = performance.now() + READY_MS;
  while (!holds()) {
    if (performance.now() > endAt)
      throw new Error(`the delay line: ${what} did not happen in ${READY_MS} ms`);
    await pause();
  }
}

class End {
  readonly address: string;
  readonly device: string;
  readonly #namespace: ChildProcess;
  readonly #tunnel: ChildProcess;
  readonly #keys = keyPair();

  constructor(address: string, device: string) {
    this.address = address;
    this.device = device;
    this.#namespace = mortal(
      "unshare",
      "--net",
      "sh",
      "-c",
      "ip link set lo up && echo ready && exec sleep infinity",
    );
    this.#tunnel = mortal("wireguard-go", "-f", device);
    for (const child of [this.#namespace, this.#tunnel]) child.stderr?.resume();
    this.#tunnel.stdout?.resume();
  }

  get #net(): string {
    return `--net=/proc/${this.#namespace.pid}/ns/net`;
  }

  get control(): string {
    return path.join(CONTROL_FOLDER, `${this.device}.sock`);
  }

  /** @returns the UDP port of its tunnel */
  async start(): Promise<number> {
    const said = once(this.#namespace.stdout as NodeJS.ReadableStream, "data");
    await until(`${this.device} appears`, () => existsSync(this.control));
    await said;
    this.#namespace.stdout?.resume();
    await control(this.control, `set=1\nprivate_key=${this.#keys.privateKey}`);
    run("ip", ["link", "set", this.device, "mtu", String(MTU), "netns", String(this.#namespace.pid)]);
    run("nsenter", [this.#net, "ip", "addr", "add", `${this.address}/30`, "dev", this.device]);
    run("nsenter", [this.#net, "ip", "link", "set", this.device, "up"]);
    // It opens its UDP socket when it hears that the device is up.
    for (;;) {
      const port = Number((await control(this.control, "get=1")).get("listen_port") ?? 0);
      if (port > 0) return port;
      await pause();
    }
  }

  async join(peer: End, port: number): Promise<void> {
    const lines = [
      `public_key=${peer.#keys.publicKey}`,
      `endpoint=127.0.0.1:${port}`,
      `allowed_ip=${peer.address}/32`,
      "persistent_keepalive_interval=25", // begins at once
    ];
    await control(this.control, `set=1\n${lines.join("\n")}`);
  }

  /** Before anything is lost: a handshake is tried again only after 5 s. */
  async greeted(): Promise<void> {
    while (Number((await control(this.control, "get=1")).get("last_handshake_time_sec") ?? 0) === 0)
      await pause();
  }

  inside(argv: readonly string[]): [string, string[]] {
    return ["nsenter", [this.#net, "--", ...argv]];
  }

  async close(): Promise<void> {
    for (const child of [this.#tunnel, this.#namespace]) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      const force = setTimeout(() => child.kill("SIGKILL"), 2_000);
      await ended;
      clearTimeout(force);
    }
    rmSync(this.control, { force: true });
  }
}

const shapeOf = ({ rttMs, lossShare = 0, rateMbit = 0, seed = 1 }: LineOptions): Shape => ({
  delayMs: rttMs / 2,
  lossShare,
  rateMbit,
  seed,
});

async function answer<K extends FromShaper["kind"]>(
  shaper: ChildProcess,
  kind: K,
): Promise<Extract<FromShaper, { kind: K }>> {
  const [message] = (await once(shaper, "message")) as [FromShaper];
  if (message.kind !== kind) throw new Error(`the shaper said ${message.kind} instead of ${kind}`);
  return message as Extract<FromShaper, { kind: K }>;
}

/**
 * Lays a line. Two at once are two pairs of namespaces, each with the same addresses.
 *
 * @throws what `whyNoLine` says, and what the tools say
 */
export async function delayLine(options: LineOptions): Promise<DelayLine> {
  const reason = whyNoLine();
  if (reason) throw new Error(`no delay line: ${reason}`);
  const name = randomBytes(4).toString("hex");
  const shaper = fork(fileURLToPath(new URL("delay-shaper.ts", import.meta.url)), {
    execArgv: ["--import", "tsx"],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const near = new End(NEAR, `dl${name}a`);
  const far = new End(FAR, `dl${name}b`);
  const removeSockets = () => {
    for (const end of [near, far]) rmSync(end.control, { force: true });
  };
  process.once("exit", removeSockets);
  const close = async () => {
    process.off("exit", removeSockets);
    if (shaper.connected) shaper.disconnect();
    await Promise.all([near.close(), far.close()]);
  };
  try {
    const [nearPort, farPort, { ports }] = await Promise.all([
      near.start(),
      far.start(),
      answer(shaper, "ports"),
    ]);
    await Promise.all([near.join(far, ports[0]), far.join(near, ports[1])]);
    const ask = async (message: ToShaper) => {
      const shaped = answer(shaper, "shaped");
      shaper.send(message);
      await shaped;
    };
    await ask({ kind: "ends", ports: [nearPort, farPort], shape: shapeOf({ rttMs: 0 }) });
    await near.greeted();
    await ask({ kind: "shape", shape: shapeOf(options) });
    return {
      addressOfNear: NEAR,
      addressOfFar: FAR,
      inside: (side, argv) => (side === "near" ? near : far).inside(argv),
      shape: (changed) => ask({ kind: "shape", shape: shapeOf(changed) }),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}
