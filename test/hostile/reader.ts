// Readers that stop reading: relay connections, and one of the coordinator.
import { randomBytes } from "node:crypto";
import { WebSocket } from "ws";
import type { NodeSubject } from "../../coordinator/coordinator.ts";
import { type RawClient, rawJoin } from "../../derp/testing.ts";
import { newIdentity } from "../../mesh/node/node.ts";
import type { Functions } from "./part-main.ts";
import { RelayedNode } from "./raw-session.ts";

export async function reader({ url }: { url: string }): Promise<Functions> {
  const port = Number(new URL(url).port);
  const raws: RawClient[] = [];
  const sockets: WebSocket[] = [];
  return {
    /** Connections that read nothing, and `bytes` sent to each of them by one sender. */
    async stuffRelay({ connections, bytes }: { connections: number; bytes: number }) {
      for (let i = 0; i < connections; i++) {
        const raw = await rawJoin({ port });
        raw.socket.pause();
        raws.push(raw);
      }
      const sender = await new RelayedNode(url).connect();
      const packet = new Uint8Array(randomBytes(60_000));
      for (let sent = 0; sent < bytes; sent += packet.length)
        for (const { keys } of raws) await sender.send(keys.publicKey, packet);
      await sender.derp.ping();
      await sender.close();
    },

    /** Asks the coordinator for `count` grants of an agent and reads no answer. */
    async stuffCoordinator({ agentId, userId, count }: { agentId: string; userId: string; count: number }) {
      const subject: NodeSubject = { kind: "user", userId, username: "mallory", tokenId: "token" };
      const socket = new WebSocket(`${url.replace("http", "ws")}/coordinate`, {
        headers: { "Coder-Session-Token": JSON.stringify(subject) },
      });
      sockets.push(socket);
      socket.on("error", () => undefined);
      await new Promise((resolve) => socket.once("open", resolve));
      socket.pause();
      socket.send(
        JSON.stringify({ type: "hello", version: 1, nodeKey: newIdentity().nodeKey, liveGrants: [] }),
      );
      for (let request = 1; request <= count; request++)
        socket.send(JSON.stringify({ type: "grant-request", request, agentId }));
    },

    leave() {
      for (const { socket } of raws.splice(0)) socket.destroy();
      for (const socket of sockets.splice(0)) socket.terminate();
    },
  };
}
