// Asks a process that was started with `probed(folder)` in its environment.
import net from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";

export interface Look {
  /** How much later than planned its event loop ran since the last look, ms. */
  loop: { p50: number; p99: number; max: number };
  memory: NodeJS.MemoryUsage;
}

/** Environment for a server or agent whose probe is to listen in `folder`. */
export const probed = (folder: string): NodeJS.ProcessEnv => ({
  NODE_OPTIONS: `--require=${fileURLToPath(new URL("./probe.cjs", import.meta.url))}`,
  BENCH_PROBE: folder,
});

/** @param collect garbage first: for what it really holds */
export async function look(folder: string, pid: number, { collect = false } = {}): Promise<Look> {
  const socket = net.connect(path.join(folder, `${pid}.sock`));
  socket.write(collect ? "gc" : "look");
  let text = "";
  for await (const chunk of socket.setEncoding("utf8")) text += chunk;
  return JSON.parse(text) as Look;
}

/** What V8 and Node hold for a program's own data, bytes. */
export const heldBytes = ({ memory }: Look): number => memory.heapUsed + memory.external;
