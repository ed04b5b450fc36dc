// Starts one terraform command: no shell, a process group of its own, bounded output, and a way to stop it that
// leaves nothing running.
import { spawn } from "node:child_process";
import { StringDecoder } from "node:string_decoder";
import { TerraformError } from "./errors.ts";

/** How long terraform may wind down after an interrupt: it finishes what can't be cut short and writes its state. */
export const INTERRUPT_GRACE_MS = 30_000;
/** A line beyond this is cut: providers can print whole responses. */
export const MAX_LINE_CHARS = 64 * 1024;
/** `show -json` of a large workspace is a few MiB. */
export const MAX_STDOUT_BYTES = 64 << 20;
/** After exit, a grandchild may still hold the pipes open. */
const PIPE_GRACE_MS = 2_000;
const STDERR_TAIL_LINES = 20;

export interface TerraformCommand {
  binary: string;
  args: string[];
  cwd: string;
  env: Record<string, string>;
  signal: AbortSignal;
  /** Called for each line as it is printed; without it stdout is collected. */
  onLine?: (line: string, stream: "stdout" | "stderr") => void;
  interruptGraceMs?: number;
}

export interface TerraformExit {
  exitCode: number | null;
  killedBy: NodeJS.Signals | null;
  /** True when `signal` was aborted while it ran. */
  canceled: boolean;
  /** Empty when `onLine` was given. */
  stdout: string;
  /** The last lines of stderr, for a message. */
  stderrTail: string;
}

/**
 * Runs a command to its end. On abort: an interrupt to terraform, which stops its scripts and writes its state;
 * after the grace, SIGKILL to its whole group, and whatever is left of the group afterwards.
 *
 * @throws {TerraformError} ERR_TERRAFORM_CRASHED when it can't be started or prints too much; ERR_JOB_CANCELED
 *   when aborted before it started
 */
export function runTerraform(command: TerraformCommand): Promise<TerraformExit> {
  const { binary, args, cwd, env, signal, onLine, interruptGraceMs = INTERRUPT_GRACE_MS } = command;
  if (signal.aborted) return Promise.reject(new TerraformError("ERR_JOB_CANCELED", "the job was canceled"));
  return new Promise((resolve, reject) => {
    const child = spawn(binary, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"], detached: true });
    const stdout: Buffer[] = [];
    let stdoutBytes = 0;
    let failure: TerraformError | undefined;
    let canceled = false;
    let graceTimer: NodeJS.Timeout | undefined;
    let pipeTimer: NodeJS.Timeout | undefined;
    const stderrTail: string[] = [];

    const killGroup = () => {
      if (child.pid === undefined) return;
      try {
        if (process.platform === "win32") child.kill("SIGKILL");
        else process.kill(-child.pid, "SIGKILL");
      } catch {
        // ESRCH: the group is empty, which is what we want.
      }
    };
    const onAbort = () => {
      canceled = true;
      child.kill("SIGINT");
      graceTimer = setTimeout(killGroup, interruptGraceMs);
    };
    signal.addEventListener("abort", onAbort, { once: true });

    if (onLine) splitLines(child.stdout, (line) => onLine(line, "stdout"));
    else
      child.stdout.on("data", (chunk: Buffer) => {
        stdoutBytes += chunk.length;
        if (stdoutBytes <= MAX_STDOUT_BYTES) stdout.push(chunk);
        else if (!failure) {
          failure = new TerraformError(
            "ERR_TERRAFORM_CRASHED",
            `terraform ${args[0]} printed more than ${MAX_STDOUT_BYTES >> 20} MiB`,
          );
          killGroup();
        }
      });
    splitLines(child.stderr, (line) => {
      stderrTail.push(line);
      if (stderrTail.length > STDERR_TAIL_LINES) stderrTail.shift();
      onLine?.(line, "stderr");
    });

    child.once("error", (cause) => {
      if (child.pid !== undefined) return; // a signal that could not be sent; the exit still comes
      cleanUp();
      reject(
        new TerraformError("ERR_TERRAFORM_CRASHED", `${binary} could not be started: ${cause.message}`, {
          cause,
        }),
      );
    });
    child.once("exit", () => {
      if (canceled) killGroup(); // scripts that terraform's interrupt did not reach
      pipeTimer = setTimeout(() => {
        child.stdout.destroy();
        child.stderr.destroy();
      }, PIPE_GRACE_MS);
    });
    child.once("close", (exitCode, killedBy) => {
      cleanUp();
      if (failure) return reject(failure);
      resolve({
        exitCode,
        killedBy,
        canceled,
        stdout: Buffer.concat(stdout).toString("utf8"),
        stderrTail: stderrTail.join("\n").trim(),
      });
    });

    function cleanUp() {
      signal.removeEventListener("abort", onAbort);
      clearTimeout(graceTimer);
      clearTimeout(pipeTimer);
    }
  });
}

function splitLines(stream: NodeJS.ReadableStream, onLine: (line: string) => void): void {
  const decoder = new StringDecoder("utf8");
  let rest = "";
  let cutting = false;
  const feed = (text: string) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (!cutting) onLine(cut(line));
      cutting = false;
    }
    if (rest.length > MAX_LINE_CHARS) {
      if (!cutting) onLine(cut(rest));
      cutting = true;
      rest = "";
    }
  };
  stream.on("data", (chunk: Buffer) => feed(decoder.write(chunk)));
  stream.on("end", () => {
    feed(decoder.end());
    if (rest && !cutting) onLine(cut(rest));
  });
}

function cut(line: string): string {
  return line.length > MAX_LINE_CHARS ? `${line.slice(0, MAX_LINE_CHARS)}... (cut)` : line;
}
