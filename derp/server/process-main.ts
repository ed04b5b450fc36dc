// A relay in a process of its own: takes over the sockets its server hands it, and listens itself where TLS ends here.
// It lives as long as its server, and holds nothing of it but the relay's key.
import { createPublicKey, verify } from "node:crypto";
import https from "node:https";
import { type AddressInfo, Socket } from "node:net";
import { markHeapAtOnce } from "../../mesh/node/collector.ts";
import type { PublicSigningKey } from "../../mesh/wire/signed.ts";
import { handleDerpRequest } from "./http.ts";
import type { FromRelay, RelayListen, ToRelay } from "./process-protocol.ts";
import { DerpServer } from "./server.ts";
import { readTls } from "./tls.ts";

/** DER in front of a raw Ed25519 public key (RFC 8410). */
const SPKI = Buffer.from("302a300506032b6570032100", "hex");

markHeapAtOnce();

/** A TCP connection that doesn't get as far as TLS. */
const TLS_HANDSHAKE_MS = 10_000;

let relay: DerpServer | undefined;
let signingKeys: readonly PublicSigningKey[] = [];
let listener: { server: https.Server; listen: RelayListen } | undefined;

const tell = (message: FromRelay): void => {
  if (process.connected) process.send?.(message, () => {}); // a server that is gone can't be told
};
const logAt =
  (level: "debug" | "info" | "warn") =>
  (fields: object, message: string): void =>
    tell({ kind: "log", level, fields, message });
const logger = { debug: logAt("debug"), info: logAt("info"), warn: logAt("warn") };

// Signals to the whole group (Ctrl-C, a service manager's stop) are for the server, which then closes us in order.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});
process.on("disconnect", () => process.exit(0));
process.on("message", (message: ToRelay, handle: unknown) => {
  onMessage(message, handle).catch((error: unknown) => {
    tell({ kind: "failed", message: error instanceof Error ? error.message : String(error) });
    process.exitCode = 1;
    process.disconnect?.();
  });
});

async function onMessage(message: ToRelay, handle: unknown): Promise<void> {
  switch (message.kind) {
    case "configure":
      await configure(message);
      return;
    case "upgrade":
      // The handle is missing when its client was gone before it arrived.
      if (handle instanceof Socket) {
        handle.on("error", () => handle.destroy());
        if (relay) relay.handleUpgrade(message.request, handle, message.head);
        else handle.destroy();
      }
      return;
    case "signingKeys":
      signingKeys = message.keys;
      return;
    case "siblings":
      relay?.setSiblings(message.urls, { ca: message.ca });
      return;
    case "health":
      relay?.setHealth(message.problem);
      return;
    case "disconnect":
      relay?.disconnect(message.key);
      return;
    case "closePeer":
      relay?.closePeer(message.key, message.nowMs);
      return;
    case "closeSubject":
      relay?.closeSubject(message.subject, message.nowMs);
      return;
    case "rates":
      relay?.setRates(message.rates);
      return;
    case "reloadCertificates":
      reloadCertificates();
      return;
    case "metrics":
      tell({ kind: "metrics", id: message.id, metrics: relay?.metrics() ?? [] });
      return;
    case "ping":
      tell({ kind: "pong" });
      return;
    case "close":
      listener?.server.close();
      await relay?.close(definedOnly(message));
      listener?.server.closeAllConnections();
      process.disconnect?.();
  }
}

async function configure(message: Extract<ToRelay, { kind: "configure" }>): Promise<void> {
  const { privateKey, meshKey, admission, rates } = message;
  signingKeys = message.signingKeys ?? [];
  relay = new DerpServer({
    privateKey,
    meshKey,
    admission,
    rates,
    logger,
    ...(message.signingKeys && { tickets: { keys: () => signingKeys, verify: verifyEd25519 } }),
  });
  const port = message.listen && (await listen(relay, message.listen));
  tell({ kind: "ready", port });
}

/** @returns the port */
async function listen(derp: DerpServer, where: RelayListen): Promise<number> {
  const server = https.createServer(
    { ...readTls(where.tls, derp.publicKey, Date.now()), handshakeTimeout: TLS_HANDSHAKE_MS },
    (req, res) => {
      if (!handleDerpRequest(req, res)) res.writeHead(404).end();
    },
  );
  server.headersTimeout = 20_000;
  server.requestTimeout = 30_000;
  server.on("upgrade", (req, socket, head) => {
    socket.on("error", () => socket.destroy());
    if ((req.url ?? "").split("?", 1)[0] === "/derp") derp.handleUpgrade(req, socket, head);
    else socket.end("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n");
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(where.port, where.host, () => {
      server.off("error", reject);
      resolve();
    });
  });
  listener = { server, listen: where };
  return (server.address() as AddressInfo).port;
}

function reloadCertificates(): void {
  if (!listener || !relay) return;
  try {
    listener.server.setSecureContext(readTls(listener.listen.tls, relay.publicKey, Date.now()));
    logger.info({}, "relay: certificates reloaded");
  } catch (error) {
    logger.warn(
      { err: (error as Error).message },
      "relay: certificates not reloaded, the old ones stay in use",
    );
  }
}

function verifyEd25519(publicKey: Uint8Array, signed: Uint8Array, signature: Uint8Array): boolean {
  const key = createPublicKey({ key: Buffer.concat([SPKI, publicKey]), format: "der", type: "spki" });
  return verify(null, signed, key, signature);
}

function definedOnly({ reconnectInMs, tryForMs }: { reconnectInMs?: number; tryForMs?: number }) {
  return {
    ...(reconnectInMs !== undefined && { reconnectInMs }),
    ...(tryForMs !== undefined && { tryForMs }),
  };
}
