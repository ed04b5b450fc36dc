// A relay and a coordinator, the real ones; the coordinator can be made to lie.

import { verifyEd25519 } from "../../coordinator/client.ts";
import type { Coordinator, NodeConnection } from "../../coordinator/coordinator.ts";
import { generateSigningKey, Signer } from "../../coordinator/signing.ts";
import { fromBase64, toBase64 } from "../../mesh/wire/bytes.ts";
import type { CoordinatorMessage } from "../../mesh/wire/coordinator.ts";
import { encodeStatement, openStatement } from "../../mesh/wire/signed.ts";
import { meshLab } from "../mesh-lab.ts";
import type { Functions } from "./part-main.ts";

/** How the coordinator lies. */
export type Lie =
  /** Records are signed by a key of somebody else's. */
  | "foreign record"
  /** Records are about another agent. */
  | "another agent's record"
  /** Records are of yesterday. */
  | "expired record"
  /** Grants are for another node key. */
  | "another node's grant"
  | "expired grant"
  | "foreign grant"
  /** Answers carry numbers of requests that nobody asked. */
  | "wrong request"
  /** Other signing keys than the agents were told. */
  | "no keys"
  /** A welcome again and again. */
  | "many welcomes";

export async function server(): Promise<Functions> {
  const lab = await meshLab();
  const foreign = new Signer([generateSigningKey()]);
  const connections = new Set<NodeConnection>();
  let lie: Lie | undefined;

  const resign = (
    kind: "nodeRecord" | "grant",
    statement: string,
    change: object,
    by = lab.signer,
  ): string => {
    const body = openStatement(kind, fromBase64(statement), {
      keys: lab.signer.publicKeys,
      verify: verifyEd25519,
      nowMs: Date.now(),
    });
    return toBase64(encodeStatement(kind, { ...body, ...change } as never, by));
  };
  const past = { issuedAt: Date.now() - 90_000_000, expiresAt: Date.now() - 80_000_000 };
  const other = { agentId: "00000000-0000-4000-8000-000000000000" };
  const key = { nodeKey: toBase64(new Uint8Array(32).fill(9)) };

  function bend(message: CoordinatorMessage): CoordinatorMessage {
    if (message.type === "grant") {
      const { record, grant, request } = message;
      const bent = (change: Partial<typeof message>) => ({ ...message, ...change });
      if (lie === "foreign record")
        return bent({ record: record && resign("nodeRecord", record, {}, foreign) });
      if (lie === "another agent's record")
        return bent({ record: record && resign("nodeRecord", record, other) });
      if (lie === "expired record") return bent({ record: record && resign("nodeRecord", record, past) });
      if (lie === "another node's grant") return bent({ grant: resign("grant", grant, key) });
      if (lie === "expired grant") return bent({ grant: resign("grant", grant, past) });
      if (lie === "foreign grant") return bent({ grant: resign("grant", grant, {}, foreign) });
      if (lie === "wrong request") return bent({ request: request + 1_000 });
    }
    return message;
  }

  const accept = lab.coordinator.accept.bind(lab.coordinator);
  lab.coordinator.accept = ((subject, connection, options) => {
    const bending: NodeConnection = {
      send: (message) => connection.send(bend(message)),
      close: (code, message) => {
        connections.delete(bending);
        connection.close(code, message);
      },
    };
    connections.add(bending);
    return accept(subject, bending, options);
  }) satisfies Coordinator["accept"];

  return {
    url: () => lab.url,
    lie: (next: Lie | undefined) => {
      lie = next;
    },
    /** Says `count` of `message` to everybody. */
    say: (message: CoordinatorMessage, count: number) => {
      for (const connection of connections) for (let i = 0; i < count; i++) connection.send(message);
    },
    /** Everybody is told of signing keys that are not the deployment's. */
    otherKeys: () => {
      for (const connection of connections)
        connection.send({ type: "signing-keys", signingKeys: foreign.publicKeys });
    },
    revokeAll: () => lab.coordinator.revoke(() => true),
    /** One message of `bytes` to everybody: nodes take 256 KiB. */
    sayHuge: (bytes: number) => {
      for (const connection of connections)
        connection.send({ type: "error", code: "ERR_X", message: "x".repeat(bytes) });
    },
    stats: () => ({ coordinator: lab.coordinator.stats, relay: lab.relay.stats }),
    close: () => lab.close(),
  };
}
