import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { AgentScript } from "../control/contract/agent.ts";
import { describe, type Logger } from "./logging.ts";
import { LineSplitter, type LogLine } from "./logs.ts";
import { pause } from "./retry.ts";
import { type Environment, expandPath } from "./sessions/environment.ts";
import type { PipePool } from "./sessions/pipes.ts";
import { type ExitResult, type SessionProcess, startPlain } from "./sessions/process.ts";

/** After its exit, how long a script's output may take to end before what it left behind is no longer waited for. */
export const LEFT_OPEN_MS = 1_000;
/** Between SIGTERM and SIGKILL of a script that ran out of time. */
export const TERM_GRACE_MS = 5_000;
export const MAX_LOG_FILE_BYTES = 16 << 20;
/** Linux takes no longer single argument. */
const MAX_SCRIPT_BYTES = 131_071;

export type ScriptOutcome = "ok" | "failed" | "timedOut" | "stopped";

export interface ScriptDeps {
  shell: string;
  homeDir: string;
  environment: Environment;
  directory(): string;
  /** Holds bin/ and one folder per script; see ownDirectory. */
  dataDir: string;
  /** Where a relative log_path lies. */
  logDir: string;
  pipes: PipePool;
  logger: Logger;
  log(sourceId: string, level: LogLine["level"], output: string): void;
  /** Ends scripts that still run. */
  signal: AbortSignal;
  leftOpenMs?: number;
  termGraceMs?: number;
}

/** Creates a folder only this user may enter. @throws when it exists and is another's, or is a link */
export function ownDirectory(directory: string): void {
  fs.mkdirSync(directory, { recursive: true, mode: 0o700 });
  const found = fs.lstatSync(directory);
  if (!found.isDirectory() || (process.getuid !== undefined && found.uid !== process.getuid()))
    throw new Error(`${directory} is not this user's own folder`);
}

/**
 * The agent's data folder, with its `bin`: `wanted`, or else a new one beside it in the temporary folder. The place is
 * well known and may be everyone's: what somebody else put there must not get onto the PATH of sessions.
 *
 * @returns undefined when there is no folder to be had
 */
export function claimDataDir(wanted: string, logger: Logger): string | undefined {
  let refused = "";
  for (const make of [() => wanted, () => fs.mkdtempSync(path.join(os.tmpdir(), "coder-agent-"))])
    try {
      const directory = make();
      ownDirectory(directory);
      ownDirectory(binDirOf(directory));
      if (refused !== "")
        logger.warn({ reason: refused, directory }, "using another folder for scripts' files");
      return directory;
    } catch (error) {
      refused ||= describe(error);
    }
  logger.warn({ reason: refused }, "there is no folder for scripts' files");
  return undefined;
}

/** Where scripts put what they install; it ends the PATH of every session. */
export const binDirOf = (dataDir: string): string => path.join(dataDir, "bin");

/**
 * argv for a script. With a `#!` line (indented ones count: heredocs in templates are) its interpreter gets the
 * text through -c, as Coder does it; else the login shell does.
 */
export function scriptCommand(script: string, shell: string): readonly [string, ...string[]] {
  const trimmed = script.trimStart();
  if (!trimmed.startsWith("#!")) return [shell, "-c", script];
  const [file, ...args] = (trimmed.split("\n", 1)[0].slice(2).match(/\S+/g) ?? [shell]) as [
    string,
    ...string[],
  ];
  return [file, ...args, "-c", script];
}

/**
 * Runs scripts side by side and sums them up: one that ran out of time outweighs one that failed, as in Coder.
 * Never rejects.
 */
export async function runScripts(scripts: readonly AgentScript[], deps: ScriptDeps): Promise<ScriptOutcome> {
  const outcomes = await Promise.all(scripts.map((script) => runScript(script, deps)));
  for (const outcome of ["stopped", "timedOut", "failed"] as const)
    if (outcomes.includes(outcome)) return outcome;
  return "ok";
}

/** Never rejects: every way to fail is an outcome, with a line in the script's log. */
export async function runScript(script: AgentScript, deps: ScriptDeps): Promise<ScriptOutcome> {
  const say = (level: LogLine["level"], text: string) => deps.log(script.log_source_id, level, text);
  const startedAt = performance.now();
  let outcome: ScriptOutcome;
  try {
    outcome = await execute(script, deps, say);
  } catch (error) {
    say("error", `The script could not be run: ${describe(error)}`);
    outcome = "failed";
  }
  const durationMs = Math.round(performance.now() - startedAt);
  deps.logger.info({ script: script.display_name, outcome, durationMs }, "script ended");
  return outcome;
}

type Say = (level: LogLine["level"], text: string) => void;

async function execute(script: AgentScript, deps: ScriptDeps, say: Say): Promise<ScriptOutcome> {
  if (Buffer.byteLength(script.script) > MAX_SCRIPT_BYTES)
    throw new Error(`it is longer than ${MAX_SCRIPT_BYTES} bytes; fetch it from a file or URL instead`);
  if (deps.signal.aborted) return "stopped";
  const scriptDir = path.join(deps.dataDir, script.log_source_id);
  const binDir = binDirOf(deps.dataDir);
  for (const directory of [deps.dataDir, scriptDir, binDir]) ownDirectory(directory);
  const file = new LogFile(script, deps, say);
  const splitters = {
    data: new LineSplitter((line) => say("info", line)),
    stderr: new LineSplitter((line) => say("error", line)),
  };
  let onExit: (result: ExitResult) => void = () => {};
  let onEnd: () => void = () => {};
  const exited = new Promise<ExitResult>((resolve) => {
    onExit = resolve;
  });
  const ended = new Promise<void>((resolve) => {
    onEnd = resolve;
  });
  let running: SessionProcess;
  try {
    running = await startPlain(
      {
        argv: scriptCommand(script.script, deps.shell),
        env: { ...deps.environment, CODER_SCRIPT_DATA_DIR: scriptDir, CODER_SCRIPT_BIN_DIR: binDir },
        cwd: deps.directory(),
      },
      deps.pipes,
      {
        output(kind, chunk) {
          splitters[kind].push(chunk);
          file.write(chunk);
        },
        drain() {},
        leaderExit: (result) => onExit(result),
        exit() {
          for (const splitter of Object.values(splitters)) splitter.end();
          file.close();
          onEnd();
        },
      },
    );
  } catch (error) {
    file.close();
    throw error;
  }
  running.endInput();
  const { outcome, result } = await supervise(script, deps, running, exited);
  // Output that is not read any more would kill a server left in the background by SIGPIPE: it stays read and logged.
  if (!(await within(ended, deps.leftOpenMs ?? LEFT_OPEN_MS)))
    say("warn", "The script ended, but something it started still holds its output; that is still logged.");
  if (outcome === "timedOut") say("error", `The script ran into its limit of ${script.timeout_seconds} s.`);
  else if (outcome === "stopped") say("warn", "The script was ended because the workspace stops.");
  else if (result.kind === "signaled") say("error", `The script was ended by signal ${result.name}.`);
  else if (result.status !== 0) say("error", `The script failed with exit code ${result.status}.`);
  return outcome;
}

/** Waits for the script, its time limit or the agent's end, whichever comes first. */
async function supervise(
  script: AgentScript,
  deps: ScriptDeps,
  running: SessionProcess,
  exited: Promise<ExitResult>,
): Promise<{ outcome: ScriptOutcome; result: ExitResult }> {
  const over = new AbortController();
  const limitMs = script.timeout_seconds * 1_000;
  const limit =
    limitMs > 0 ? pause(limitMs, over.signal).then(() => "timedOut" as const) : new Promise<never>(() => {});
  const stop = new Promise<"stopped">((resolve) => {
    deps.signal.addEventListener("abort", () => resolve("stopped"), { once: true, signal: over.signal });
    if (deps.signal.aborted) resolve("stopped");
  });
  const first = await Promise.race([exited, limit, stop]);
  over.abort();
  if (typeof first === "object")
    return { outcome: first.kind === "exited" && first.status === 0 ? "ok" : "failed", result: first };
  running.signal("TERM");
  if (!(await within(exited, deps.termGraceMs ?? TERM_GRACE_MS))) running.signal("KILL");
  return { outcome: first, result: await exited };
}

async function within(promise: Promise<unknown>, limitMs: number): Promise<boolean> {
  const timer = new AbortController();
  const inTime = await Promise.race([
    promise.then(() => true),
    pause(limitMs, timer.signal).then(() => false),
  ]);
  timer.abort();
  return inTime;
}

/**
 * Opens a file to be written anew, where the folder may be everyone's /tmp: not through a link, not waiting at a FIFO
 * (which would freeze the agent), and nothing that others read along or that has a second name.
 *
 * @throws when it is none of that
 */
function openOwnFile(file: string): number {
  const { O_WRONLY, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
  const fd = fs.openSync(file, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600);
  try {
    const found = fs.fstatSync(fd);
    if (!found.isFile()) throw new Error("it is no regular file");
    // What root made is as good as ours: it could read along anyway.
    if (process.getuid !== undefined && found.uid !== process.getuid() && found.uid !== 0)
      throw new Error("it belongs to another user");
    if (found.nlink !== 1) throw new Error("it has another name, too");
    fs.ftruncateSync(fd);
    return fd;
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

/** The script's log on disk: 0600, started anew, bounded. Trouble with it never stops the script. */
class LogFile {
  readonly #say: Say;
  #fd: number | undefined;
  #bytes = 0;

  constructor({ log_path }: AgentScript, { environment, homeDir, logDir }: ScriptDeps, say: Say) {
    this.#say = say;
    if (log_path.trim() === "") return;
    const relative = !/^[~/$]/.test(log_path.trim());
    const file = relative
      ? path.resolve(logDir, log_path.trim())
      : expandPath(log_path, environment, homeDir);
    try {
      fs.mkdirSync(path.dirname(file), { recursive: true });
      this.#fd = openOwnFile(file);
    } catch (error) {
      say("warn", `The log file ${file} can't be written: ${describe(error)}`);
    }
  }

  write(chunk: Uint8Array): void {
    if (this.#fd === undefined) return;
    try {
      fs.writeSync(this.#fd, chunk.subarray(0, MAX_LOG_FILE_BYTES - this.#bytes));
      this.#bytes += chunk.length;
      if (this.#bytes < MAX_LOG_FILE_BYTES) return;
      fs.writeSync(this.#fd, `\n(cut: a log file holds ${MAX_LOG_FILE_BYTES} bytes)\n`);
    } catch (error) {
      this.#say("warn", `The log file can't be written any more: ${describe(error)}`);
    }
    this.close();
  }

  close(): void {
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
    this.#fd = undefined;
  }
}
