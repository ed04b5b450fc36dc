// A way through which clients and agents reach a server, and which a test can cut: a TCP proxy that knows what each
// connection was opened for, and whose server can go and come back.
import { once } from "node:events";
import net from "node:net";

export type Purpose = "derp" | "coordinator" | "api";

interface Pair {
  near: net.Socket;
  far: net.Socket;
  purpose: Purpose;
}

/** Bound for the first line of a request. */
const MAX_HEAD_BYTES = 8_192;

export class Gate {
  readonly #server: net.Server;
  readonly #pairs = new Set<Pair>();
  /** Of whom nothing was heard yet; some never say a word. */
  readonly #silent = new Set<net.Socket>();
  /** Where the server listens. */
  targetPort: number;
  /** Connections taken so far, by purpose. */
  readonly taken: Record<Purpose, number> = { derp: 0, coordinator: 0, api: 0 };

  private constructor(server: net.Server, targetPort: number) {
    this.#server = server;
    this.targetPort = targetPort;
  }

  static async open(targetPort = 0): Promise<Gate> {
    const server = net.createServer({ noDelay: true, allowHalfOpen: true });
    const gate = new Gate(server, targetPort);
    server.on("connection", (near) => gate.#take(near));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return gate;
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  #take(near: net.Socket): void {
    near.on("error", () => undefined);
    this.#silent.add(near);
    const leave = () => void near.destroy();
    near.once("end", leave).once("close", () => this.#silent.delete(near));
    let head = Buffer.alloc(0);
    const onData = (chunk: Buffer): void => {
      head = Buffer.concat([head, chunk]);
      if (!head.includes("\r\n") && head.length < MAX_HEAD_BYTES) return;
      near.removeListener("data", onData).removeListener("end", leave);
      this.#silent.delete(near);
      near.pause();
      this.#join(near, head);
    };
    near.on("data", onData);
  }

  #join(near: net.Socket, head: Buffer): void {
    const line = head.subarray(0, head.indexOf("\r\n")).toString("latin1");
    const purpose: Purpose = / \/derp\b/.test(line)
      ? "derp"
      : line.includes("/mesh/coordinate")
        ? "coordinator"
        : "api";
    this.taken[purpose]++;
    const far = net.connect({
      port: this.targetPort,
      host: "127.0.0.1",
      noDelay: true,
      allowHalfOpen: true,
    });
    const pair = { near, far, purpose };
    this.#pairs.add(pair);
    far.write(head);
    near.pipe(far).pipe(near);
    for (const socket of [near, far]) {
      socket.on("error", () => undefined);
      socket.on("close", () => {
        this.#pairs.delete(pair);
        // What a refused or killed server does is what its clients shall see.
        near.destroy();
        far.destroy();
      });
    }
  }

  /** Connections of a kind that are open now. */
  count(purpose: Purpose): number {
    return [...this.#pairs].filter((pair) => pair.purpose === purpose).length;
  }

  /** Cuts every connection of a kind, at both ends, as a reset. @returns how many there were */
  cut(purpose: Purpose): number {
    const found = [...this.#pairs].filter((pair) => pair.purpose === purpose);
    for (const { near, far } of found) {
      near.resetAndDestroy();
      far.resetAndDestroy();
    }
    return found.length;
  }

  /** Connections of a kind stay open, but no byte passes any more: what a NAT does that forgot them. */
  freeze(purpose: Purpose): number {
    const found = [...this.#pairs].filter((pair) => pair.purpose === purpose);
    for (const { near, far } of found) {
      near.unpipe(far);
      far.unpipe(near);
      near.pause();
      far.pause();
    }
    return found.length;
  }

  async close(): Promise<void> {
    for (const near of this.#silent) near.destroy();
    for (const { near, far } of this.#pairs) {
      near.destroy();
      far.destroy();
    }
    this.#server.close();
    await once(this.#server, "close");
  }
}
