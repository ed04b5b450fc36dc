import { spawn } from "node:child_process";
import fs from "node:fs";
import net from "node:net";

// Why this exists: Node gives a child *sockets* as stdin, stdout and stderr. On Linux a socket can't be opened
// again by name, so `echo x > /dev/stderr`, `tee /dev/stderr` and `cat /dev/stdin` fail with ENXIO, and bash takes
// a socket on stdin for rshd. Node has no pipe(2); but a shell makes pipes, and whoever may look at its
// /proc/<pid>/fd can open them. So a short-lived shell makes six at a time, and we keep them open. (A FIFO would
// do less: opening it again blocks once the other side has closed.)

const { O_RDONLY, O_WRONLY, O_RDWR, O_NONBLOCK } = fs.constants;
const FIRST_FD = 3;
const PIPES = 6; // POSIX promises fds up to 9 in a redirection; 9 keeps the helper's stdin
const HELPER_TIMEOUT_MS = 5_000;

/** `: | { exec 3<&0; : | { exec 4<&0; …; echo pid, wait } }`: each level's stdin is a fresh pipe. */
const HELPER = (() => {
  let body = "exec sh -c 'echo $$; read line <&9'";
  for (let fd = FIRST_FD + PIPES - 1; fd >= FIRST_FD; fd--) body = `: | { exec ${fd}<&0; ${body}; }`;
  return `exec 9<&0; ${body}`;
})();

/** The ends for one child. Close `child` once it has been spawned. */
export interface StdioPipes {
  child: [number, number, number];
  stdin: net.Socket;
  stdout: net.Socket;
  stderr: net.Socket;
  /** Descriptors of our ends of stdout and stderr, open as long as these are. */
  outputFds: [number, number];
}

async function makePipes(): Promise<number[]> {
  const helper = spawn("/bin/sh", ["-c", HELPER], {
    stdio: ["pipe", "pipe", "ignore"],
    env: { PATH: process.env["PATH"] ?? "/usr/bin:/bin" },
    timeout: HELPER_TIMEOUT_MS,
    killSignal: "SIGKILL",
  });
  const opened: number[] = [];
  try {
    helper.stdin.on("error", () => {});
    const pid = await new Promise<number>((resolve, reject) => {
      let text = "";
      helper.on("error", reject);
      helper.on("close", () => reject(new Error("the pipe helper ended early")));
      helper.stdout.on("data", (chunk) => {
        text += chunk;
        if (text.endsWith("\n")) resolve(Number(text));
      });
    });
    for (let fd = FIRST_FD; fd < FIRST_FD + PIPES; fd++)
      opened.push(fs.openSync(`/proc/${pid}/fd/${fd}`, O_RDWR | O_NONBLOCK));
    return opened;
  } catch (error) {
    for (const fd of opened) fs.closeSync(fd);
    throw error;
  } finally {
    helper.stdin.end();
  }
}

/** What is kept ready: enough for an IDE's burst of commands. */
const READY_PIPES = 24;
const SESSION_PIPES = 3;
/** The stock is filled up when it is calm again: making pipes would slow down the very session that took some. */
const CALM_MS = 100;
/** Helpers at once when sessions are waiting. */
const MAX_HELPERS = 3;

/** Makes real pipes ahead of need. Where that can't be done (no /proc), `take` gives undefined and the caller
 * uses Node's own stdio. Holds at most READY_PIPES + MAX_HELPERS x PIPES file descriptors. */
export class PipePool {
  #fds: number[] = [];
  #waiting: ((gotSome: boolean) => void)[] = [];
  #everWorked = false;
  #helpers = 0;
  #calm: NodeJS.Timeout | undefined;
  #unavailable = process.platform !== "linux";
  #closed = false;

  async take(): Promise<StdioPipes | undefined> {
    while (!this.#unavailable && !this.#closed && this.#fds.length < SESSION_PIPES) {
      const gotSome = await new Promise<boolean>((resolve) => {
        this.#waiting.push(resolve);
        this.#help();
      });
      if (!gotSome) return undefined; // no process can be started just now; perhaps the command's own can
    }
    if (this.#unavailable || this.#closed) return undefined;
    const pipes = this.#fds.splice(0, SESSION_PIPES);
    this.#fillWhenCalm();
    return split(pipes);
  }

  /** Fills the stock, so that the first sessions needn't wait. */
  async warm(): Promise<void> {
    while (!this.#unavailable && !this.#closed && this.#fds.length < READY_PIPES)
      if (!(await this.#make())) return;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#calm);
    for (const fd of this.#fds.splice(0)) fs.closeSync(fd);
    this.#wake(false);
  }

  #fillWhenCalm(): void {
    clearTimeout(this.#calm);
    if (this.#fds.length > READY_PIPES / 2) return;
    this.#calm = setTimeout(() => void this.warm(), CALM_MS);
    this.#calm.unref();
  }

  /** For those who wait; each helper serves two of them. */
  #help(): void {
    while (this.#helpers < MAX_HELPERS && this.#helpers * PIPES < this.#waiting.length * SESSION_PIPES)
      void this.#make();
  }

  async #make(): Promise<boolean> {
    this.#helpers++;
    let gotSome = false;
    try {
      this.#fds.push(...(await makePipes()));
      gotSome = true;
      this.#everWorked = true;
    } catch {
      this.#unavailable = !this.#everWorked;
    }
    this.#helpers--;
    if (this.#closed) this.close();
    else this.#wake(gotSome);
    return gotSome;
  }

  /** As many as there are pipes for; they take theirs in the same turn or ask again. After a failure all. */
  #wake(gotSome: boolean): void {
    const count = gotSome ? Math.floor(this.#fds.length / SESSION_PIPES) : this.#waiting.length;
    for (const resume of this.#waiting.splice(0, count)) resume(gotSome);
    this.#help();
  }
}

function split(pipes: number[]): StdioPipes {
  const opened: number[] = [];
  // Opening through /proc makes a description of its own: our ends don't block, the child's do.
  const open = (fd: number, flags: number) => {
    const end = fs.openSync(`/proc/self/fd/${fd}`, flags);
    opened.push(end);
    return end;
  };
  try {
    const [input, output, errors] = pipes;
    const child: StdioPipes["child"] = [
      open(input, O_RDONLY),
      open(output, O_WRONLY),
      open(errors, O_WRONLY),
    ];
    const ours = [
      open(input, O_WRONLY | O_NONBLOCK),
      open(output, O_RDONLY | O_NONBLOCK),
      open(errors, O_RDONLY | O_NONBLOCK),
    ];
    const stdin = new net.Socket({ fd: ours[0], readable: false, writable: true });
    // Only closing it tells the child: there is no half-close of a pipe.
    stdin.on("finish", () => stdin.destroy());
    return {
      child,
      stdin,
      stdout: new net.Socket({ fd: ours[1], readable: true, writable: false }),
      stderr: new net.Socket({ fd: ours[2], readable: true, writable: false }),
      outputFds: [ours[1], ours[2]],
    };
  } catch (error) {
    for (const fd of opened) fs.closeSync(fd);
    throw error;
  } finally {
    for (const fd of pipes) fs.closeSync(fd);
  }
}
