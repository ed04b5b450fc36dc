// Plain HTTP requests a relay answers beside the upgrade. The caller decides where they are mounted.
import type { IncomingMessage, ServerResponse } from "node:http";

/**
 * Answers the relay's own paths: `/derp/latency-check`, `/derp/probe` (GET, HEAD: 200, else 405) and `/derp` without
 * an upgrade (426).
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
    default:
      return false;
  }
}

export const UPGRADE_REQUIRED = "This is a DERP relay: connect with `Upgrade: DERP`.\n";
