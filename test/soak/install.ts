// A private copy of the installation for runs that last for hours: builds of the checkout don't disturb it, and its
// programs can be asked for their heap and handles (probe.cjs).
import { copyFileSync, cpSync, existsSync, mkdirSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "../../deploy/build.mjs";
import { root, useInstallation } from "../e2e/sandbox.ts";

const ANSWER_MS = 20_000;

export class Installation {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  /** Builds into `dir` and has every sandbox start its programs from there. */
  static async make(dir: string): Promise<Installation> {
    const dist = path.join(dir, "dist");
    mkdirSync(dir, { recursive: true });
    await build({ force: true, outdir: dist });
    cpSync(path.join(root, "deploy"), path.join(dir, "deploy"), { recursive: true });
    copyFileSync(path.join(root, "package.json"), path.join(dir, "package.json"));
    symlinkSync(path.join(root, "node_modules"), path.join(dir, "node_modules"));
    copyFileSync(fileURLToPath(new URL("probe.cjs", import.meta.url)), path.join(dist, "probe.cjs"));
    const inDist = (name: string) => path.join(dist, name);
    renameSync(inDist("coder.js"), inDist("coder-itself.js"));
    writeFileSync(inDist("coder.js"), 'require("./probe.cjs");\nrequire("./coder-itself.js");\n', {
      mode: 0o755,
    });
    renameSync(inDist("relay.mjs"), inDist("relay-itself.mjs"));
    writeFileSync(inDist("relay.mjs"), 'import "./probe.cjs";\nimport "./relay-itself.mjs";\n');
    useInstallation(dir);
    return new Installation(dir);
  }

  /** What a process says of itself; undefined when it is gone or can't be asked. */
  async ask(pid: number): Promise<Inside | undefined> {
    const file = path.join(this.dir, "probes", `${pid}.sock`);
    if (!existsSync(file)) return undefined;
    return await new Promise((resolve) => {
      const socket = net.connect(file);
      let text = "";
      const timer = setTimeout(() => socket.destroy(), ANSWER_MS);
      socket.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      socket.on("error", () => undefined);
      socket.on("close", () => {
        clearTimeout(timer);
        try {
          resolve(JSON.parse(text) as Inside);
        } catch {
          resolve(undefined);
        }
      });
    });
  }
}

/** Bytes after a collection; counts by kind; microseconds. */
export interface Inside {
  memory: NodeJS.MemoryUsage;
  resources: Record<string, number>;
  cpu: NodeJS.CpuUsage;
  uptimeSeconds: number;
}
