// The victim of most of it: a real node with services, in a process whose CPU and memory are its own.
import type { MeshStream } from "../../mesh/node/node.ts";
import { messageType } from "../../mesh/wire/wireguard.ts";
import { joinAt, type Place } from "./node.ts";
import type { Functions } from "./part-main.ts";

export const CHUNK_BYTES = 64 << 10;

/** Writes for ever, as fast as somebody reads. */
function pour(stream: MeshStream): void {
  const chunk = new Uint8Array(CHUNK_BYTES);
  const more = () => {
    while (!stream.destroyed && stream.write(chunk)) {}
  };
  stream.on("drain", more);
  stream.on("error", () => undefined);
  more();
}

export async function agent({ agentId, ...place }: Place & { agentId: string }): Promise<Functions> {
  const { node, relay } = await joinAt(place, { kind: "agent", agentId }, { memoryBudgetBytes: 64 << 20 });
  /** What it sent, by type of WireGuard message: 1 initiation, 2 response, 3 cookie reply, 4 transport. */
  const sent: Record<number, number> = { 1: 0, 2: 0, 3: 0, 4: 0 };
  const send = relay.send.bind(relay);
  relay.send = (peer, region, data) => {
    sent[messageType(data) ?? 0]++;
    return send(peer, region, data);
  };
  let opened = 0;
  node.listen("echo", (stream) => {
    stream.on("error", () => undefined);
    stream.pipe(stream);
  });
  node.listen("pour", pour);
  node.listen("hold", (stream) => {
    opened++;
    stream.on("error", () => undefined);
  });
  return {
    nodeKey: () => node.nodeKey,
    sent: () => ({ ...sent }),
    opened: () => opened,
    sessions: () => node.sessions().length,
    close: () => node.close(),
  };
}
