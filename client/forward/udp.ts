import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { ANSWER, AnswerDecoder, hostPortService } from "../../mesh/wire/forward.ts";
import type { DatagramStream, Dial } from "./dial.ts";
import { Flows } from "./flows.ts";
import { type Listener, listenError } from "./listen.ts";
import { formatEndpoint } from "./spec.ts";

/** Datagrams of a new source kept until the agent says that its socket is open; UDP may lose the rest. */
const MAX_WAITING = 32;
/** Of one source; there may be MAX_FLOWS of them. */
const MAX_WAITING_BYTES = 256 * 1024;
/** As a TCP forward's: by then nobody waits for an answer any more, and the next datagram tries again. */
const DIAL_TIMEOUT_MS = 30_000;
/** What one datagram of the mesh carries; longer ones could not cross. */
const MAX_DATAGRAM_BYTES = 56_000;
const SWEEP_MS = 10_000;

interface Flow {
  stream: DatagramStream | undefined;
  /** The agent answered: what comes now has somewhere to go. */
  open: boolean;
  waiting: Uint8Array[];
  waitingBytes: number;
  closed: boolean;
  /** Ends the dial, while it is under way. */
  dialling: AbortController;
}

export interface UdpForwardOptions {
  dial: Dial;
  /** undefined: 127.0.0.1 and ::1. */
  address: string | undefined;
  localPort: number;
  remotePort: number;
  onProblem(text: string): void;
}

function bound(type: "udp4" | "udp6", port: number, address: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createSocket({ type, ipv6Only: type === "udp6" && address === "::1" });
    socket.once("error", (error) => {
      socket.close();
      reject(error);
    });
    socket.bind({ port, address, exclusive: true }, () => {
      socket.removeAllListeners("error");
      resolve(socket);
    });
  });
}

/**
 * Forwards a local UDP port: each source is a flow of its own, with a stream whose datagrams are its datagrams.
 *
 * @throws {CliError} as `listen`
 */
export async function forwardUdp(options: UdpForwardOptions): Promise<Listener> {
  const { address, localPort, remotePort, dial, onProblem } = options;
  const host = address ?? "127.0.0.1";
  const sockets: Socket[] = [];
  try {
    sockets.push(await bound(host.includes(":") ? "udp6" : "udp4", localPort, host));
  } catch (error) {
    const at = formatEndpoint({ kind: "tcp", host, port: localPort });
    throw listenError(error as NodeJS.ErrnoException, at, "udp");
  }
  const { port } = sockets[0].address();
  if (address === undefined)
    await bound("udp6", port, "::1").then(
      (socket) => sockets.push(socket),
      () => undefined,
    );

  const flows = new Flows<Flow>();
  const end = (flow: Flow | undefined) => {
    if (!flow) return;
    flow.closed = true;
    flow.waiting = [];
    flow.dialling.abort(new Error("nobody waits for it any more"));
    flow.stream?.destroy();
  };
  const open = (source: string, socket: Socket, from: RemoteInfo): Flow => {
    const dialling = new AbortController();
    const flow: Flow = {
      stream: undefined,
      open: false,
      waiting: [],
      waitingBytes: 0,
      closed: false,
      dialling,
    };
    const timer = setTimeout(
      () => dialling.abort(new Error("there is no connection to the workspace")),
      DIAL_TIMEOUT_MS,
    );
    dialling.signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
    const over = () => {
      end(flow);
      flows.remove(source, flow);
    };
    dial(hostPortService("udp", "localhost", remotePort), new Uint8Array(), dialling.signal).then(
      (stream) => {
        clearTimeout(timer);
        if (flow.closed) return void stream.destroy();
        flow.stream = stream;
        stream.onDatagram = (bytes) => {
          if (flow.closed) return;
          flows.use(source, performance.now());
          // A full socket buffer loses it, as UDP does.
          socket.send(bytes, from.port, from.address, () => undefined);
        };
        const decoder = new AnswerDecoder();
        stream.on("data", (chunk: Uint8Array) => {
          try {
            const answer = decoder.push(chunk);
            if (!answer || flow.open) return;
            if (answer.status !== ANSWER.ok) return onProblem(`udp port ${remotePort}: ${answer.text}`);
            flow.open = true;
            for (const bytes of flow.waiting.splice(0)) stream.sendDatagram(bytes);
          } catch (error) {
            stream.destroy(error as Error);
          }
        });
        stream
          .on("error", () => undefined)
          .on("end", over)
          .on("close", over);
      },
      (error: Error) => {
        clearTimeout(timer);
        if (flow.closed) return; // it had to go: its end is no problem to tell
        over();
        onProblem(`udp port ${remotePort}: ${error.message}`);
      },
    );
    return flow;
  };
  for (const socket of sockets) {
    socket.on("error", () => undefined); // an ICMP error of one source is not the others'
    socket.on("message", (bytes, from) => {
      if (bytes.length > MAX_DATAGRAM_BYTES)
        return onProblem(
          `udp port ${remotePort}: datagrams above ${MAX_DATAGRAM_BYTES} bytes can't be forwarded`,
        );
      const now = performance.now();
      const source = `${from.address} ${from.port}`;
      let flow = flows.use(source, now);
      if (!flow) {
        flow = open(source, socket, from);
        end(flows.add(source, flow, now));
      }
      if (flow.open) flow.stream?.sendDatagram(bytes);
      else if (
        flow.waiting.length < MAX_WAITING &&
        flow.waitingBytes + bytes.length <= MAX_WAITING_BYTES &&
        !flow.closed
      ) {
        flow.waiting.push(bytes);
        flow.waitingBytes += bytes.length;
      }
    });
  }
  const sweep = setInterval(() => {
    for (const flow of flows.expire(performance.now())) end(flow);
  }, SWEEP_MS);
  sweep.unref();
  return {
    at: formatEndpoint({ kind: "tcp", host, port }),
    port,
    close: async () => {
      clearInterval(sweep);
      for (const flow of flows.clear()) end(flow);
      await Promise.all(sockets.map((socket) => new Promise<void>((resolve) => socket.close(resolve))));
    },
  };
}
