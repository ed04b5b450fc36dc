// Plain HTTP requests a relay answers beside the upgrade. The caller decides where they are mounted.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";

/** What is read of an upgrade request: an IncomingMessage, or what another process tells of one. */
export type UpgradeRequest = Pick<IncomingMessage, "method" | "url" | "headers"> & {
  socket: { remoteAddress?: string; remotePort?: number };
};

/** For clients to read the last bytes and close; then we do. */
const CLOSE_GRACE_MS = 1_000;
const CHALLENGE = /^[A-Za-z0-9.:_-]{1,64}$/;

/**
 * Answers the relay's own paths: `/derp/latency-check`, `/derp/probe` (GET, HEAD: 200, else 405) and `/derp` without
 * an upgrade (426), `/generate_204` (which finds captive portals).
 *
 * @returns false when the path is not the relay's; nothing was written then
 */
export function handleDerpRequest(req: IncomingMessage, res: ServerResponse): boolean {
  const path = (req.url ?? "").split("?", 1)[0];
  switch (path) {
    case "/derp/latency-check":
    case "/derp/probe": {
      const ok = req.method === "GET" || req.method === "HEAD";
      // Nodes and web pages anywhere time this request; it tells them nothing else.
      res.writeHead(ok ? 200 : 405, ok ? { "Access-Control-Allow-Origin": "*" } : { Allow: "GET, HEAD" });
      res.end();
      return true;
    }
    case "/derp":
      res.writeHead(426, {
        "Content-Type": "text/plain; charset=utf-8",
        Upgrade: "DERP",
        Connection: "Upgrade",
      });
      res.end(UPGRADE_REQUIRED);
      return true;
    case "/generate_204": {
      // A portal that answers everything with its own page can't know the challenge's answer.
      const challenge = req.headers["x-tailscale-challenge"];
      if (typeof challenge === "string" && CHALLENGE.test(challenge))
        res.setHeader("X-Tailscale-Response", `response ${challenge}`);
      res.writeHead(204, {
        "Cache-Control": "no-cache, no-store, must-revalidate, no-transform, max-age=0",
      });
      res.end();
      return true;
    }
    default:
      return false;
  }
}

export const UPGRADE_REQUIRED = "This is a DERP relay: connect with `Upgrade: DERP`.\n";

/** Answers and ends; reads on for a moment, since closing on unread bytes would reset the answer away. */
export function answer(socket: Duplex, status: string, text: string, headers = ""): void {
  const destroy = (): void => {
    socket.destroy();
  };
  const timer = setTimeout(destroy, CLOSE_GRACE_MS);
  socket.on("error", destroy).on("end", destroy);
  socket.on("close", () => clearTimeout(timer));
  socket.resume();
  socket.end(
    `HTTP/1.1 ${status}\r\n${headers}Content-Type: text/plain; charset=utf-8\r\n` +
      `Content-Length: ${Buffer.byteLength(text)}\r\nConnection: close\r\n\r\n${text}`,
  );
}
