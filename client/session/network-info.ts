import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import type { AgentConnection } from "../connect.ts";

const PING_TIMEOUT_MS = 5_000;

/** What VS Code's extension reads: the shape is Coder's. Rates are bytes a second. */
export interface NetworkInfo {
  p2p: boolean;
  /** Round trip to the workspace, ms. */
  latency: number;
  preferred_derp: string;
  derp_latency: Record<string, number>;
  upload_bytes_sec: number;
  download_bytes_sec: number;
  using_coder_connect: boolean;
}

/**
 * Keeps a small JSON file about the connection up to date, named by our parent's process id: that is the `ssh` an editor
 * started, by which it finds the file.
 *
 * @returns ends it and removes the file
 */
export function writeNetworkInfo(
  connection: Pick<AgentConnection, "ping">,
  options: { dir: string; intervalMs: number; ppid?: number },
): () => void {
  const { dir, intervalMs, ppid = process.ppid } = options;
  const file = path.join(dir, `${ppid}.json`);
  let ended = false;
  let timer: NodeJS.Timeout | undefined;
  const tick = async () => {
    try {
      const { rttMs, region, via } = await connection.ping(PING_TIMEOUT_MS);
      if (ended) return;
      const name = /relay (.+) \(\d+\)$/.exec(via)?.[1] ?? String(region);
      const info: NetworkInfo = {
        p2p: false,
        latency: rttMs,
        preferred_derp: name,
        derp_latency: { [name]: rttMs },
        upload_bytes_sec: 0,
        download_bytes_sec: 0,
        using_coder_connect: false,
      };
      mkdirSync(dir, { recursive: true });
      writeFileSync(`${file}.${process.pid}`, JSON.stringify(info));
      renameSync(`${file}.${process.pid}`, file);
    } catch {
      // a stalled connection, a full disk: the next round tries again, and the session is not concerned
    }
    if (ended) return;
    timer = setTimeout(() => void tick(), intervalMs);
    timer.unref();
  };
  void tick();
  return () => {
    ended = true;
    clearTimeout(timer);
    rmSync(file, { force: true });
  };
}
