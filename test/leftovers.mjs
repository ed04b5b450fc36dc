// A private temporary folder for a run of the tests, and a look at what was left of the run when it is over.
// Its path is in the environment (TMPDIR) or the arguments of everything the tests start, which is how
// processes are found.
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";

const MAX_LISTED = 20;

export class TestFolder {
  constructor() {
    // A short name: unix sockets lie below it, and their paths must stay under 108 bytes.
    this.path = mkdtempSync(path.join(os.tmpdir(), "t-"));
    // Tests also run commands as another user, who has to get to folders of theirs below.
    chmodSync(this.path, 0o711);
    /** For this run's own files. */
    this.own = path.join(this.path, ".own");
    mkdirSync(this.own);
  }

  /** For commands whose files are to be taken for leftovers. */
  get environment() {
    return {
      TMPDIR: this.path,
      // Caches that would stay behind: tsx's in the temporary folder, biome's and terraform's in the home.
      TSX_DISABLE_CACHE: "1",
      CHECKPOINT_DISABLE: "1",
    };
  }

  /** @returns {string[]} what was left behind, a line each; all of it is ended and removed */
  clear() {
    if (!existsSync(this.path)) return []; // a second time
    const processes = this.#processes();
    for (const { pid } of processes) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // ended meanwhile
      }
    }
    const files = readdirSync(this.path).filter((name) => name !== path.basename(this.own));
    rmSync(this.path, { recursive: true, force: true, maxRetries: 5 });
    const lines = [
      ...processes.map(({ pid, command }) => `process ${pid}: ${command.slice(0, 200)}`),
      ...files.map((name) => `in the temporary folder: ${name}`),
    ];
    const more = lines.length - MAX_LISTED;
    return more > 0 ? [...lines.slice(0, MAX_LISTED), `and ${more} more`] : lines;
  }

  #processes() {
    if (process.platform !== "linux") return [];
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
      .flatMap((pid) => {
        try {
          const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
          // One that only waits to be collected has no arguments any more.
          if (command === "") return [];
          const environment = readFileSync(`/proc/${pid}/environ`, "utf8");
          return `${command}\0${environment}`.includes(this.path) ? [{ pid: Number(pid), command }] : [];
        } catch {
          return []; // ended meanwhile, or another user's
        }
      });
  }
}
