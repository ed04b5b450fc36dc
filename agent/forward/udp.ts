import dgram from "node:dgram";
import { accept, closeOf, type DatagramStream } from "../streams.ts";
import { explain, resolveOne } from "./target.ts";

/** Both ways silent for this long: over. RFC 4787 section 4.3 asks NATs for at least two minutes, and recommends five. */
export const UDP_IDLE_MS = 5 * 60_000;
/** Datagrams that wait for the kernel; more are dropped, as a network would. */
const MAX_QUEUED_BYTES = 1 << 20;
/** The largest payload of UDP over IPv4. */
const MAX_DATAGRAM_BYTES = 65_507;

/**
 * One UDP flow: a socket connected to the target, datagrams both ways until the stream ends or nothing came for
 * `idleMs`. Resolves when it is over.
 *
 * @throws {TargetError} before the flow began
 */
export async function serveUdp(
  stream: DatagramStream,
  host: string,
  port: number,
  idleMs = UDP_IDLE_MS,
): Promise<void> {
  const where = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  const { address, family } = await resolveOne(host, where);
  if (stream.destroyed) return;
  const socket = dgram.createSocket(family === 6 ? "udp6" : "udp4");
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.connect(port, address, () => {
        socket.removeListener("error", reject);
        resolve();
      });
    });
  } catch (error) {
    socket.close();
    throw explain(error as NodeJS.ErrnoException, where);
  }
  if (stream.destroyed) return void socket.close();
  const closed = closeOf(stream);
  let queuedBytes = 0;
  let open = true;
  const idle = setTimeout(() => finish(), idleMs);
  const finish = () => {
    if (!open) return;
    open = false;
    clearTimeout(idle);
    stream.onDatagram = undefined;
    socket.close();
    if (!stream.destroyed) stream.end();
  };
  // A target that isn't there answers with ICMP, which comes as an error of a later call. UDP does not say more.
  socket.on("error", () => {});
  socket.on("message", (message) => {
    idle.refresh();
    stream.sendDatagram(message);
  });
  stream.onDatagram = (bytes) => {
    if (!open || bytes.length > MAX_DATAGRAM_BYTES || queuedBytes + bytes.length > MAX_QUEUED_BYTES) return;
    idle.refresh();
    queuedBytes += bytes.length;
    socket.send(bytes, () => {
      queuedBytes -= bytes.length;
    });
  };
  stream.on("error", () => {});
  stream.once("end", finish);
  stream.once("close", finish);
  stream.resume();
  accept(stream);
  await closed;
}
