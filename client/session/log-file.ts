import { createWriteStream, mkdirSync } from "node:fs";
import path from "node:path";
import type { MeshLogger } from "../../mesh/node/node.ts";
import { CliError } from "../errors.ts";

/** A log grows with what happens to the connection; beyond this it says no more. */
const MAX_LOG_BYTES = 10 << 20;

export interface LogFile extends MeshLogger {
  readonly file: string;
}

/** "coder-ssh-20250131-095959-4242.log". */
export function logFileName(command: string, now: Date, pid: number): string {
  const digits = now
    .toISOString()
    .replace(/[-:]|\..*$/g, "")
    .replace("T", "-");
  return `coder-${command}-${digits}-${pid}.log`;
}

/** One line: time, level, message, fields as JSON. */
export function logLine(level: string, fields: object, message: string, now: Date): string {
  const rest = JSON.stringify(fields, (_, value: unknown) =>
    value instanceof Error ? value.message : value,
  );
  return `${now.toISOString()} ${level} ${message}${rest === "{}" ? "" : ` ${rest}`}\n`;
}

/**
 * Opens a file of this process's own in `folder` (made if need be), for what happens to the connection and why.
 *
 * @throws {CliError} ERR_LOG_DIR
 */
export function openLogFile(folder: string, command: string): LogFile {
  const file = path.join(path.resolve(folder), logFileName(command, new Date(), process.pid));
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new CliError("ERR_LOG_DIR", `cannot write logs to ${folder}: ${(cause as Error).message}`, {
      cause,
      hint: "Choose another folder with --log-dir, or leave it out.",
    });
  }
  // Never into what is there: the folder may be everyone's, and the name can be foreseen.
  const stream = createWriteStream(file, { flags: "ax", mode: 0o600 });
  stream.on("error", () => undefined); // a full disk must not end the session
  let written = 0;
  const at = (level: string) => (fields: object, message: string) => {
    if (written > MAX_LOG_BYTES) return;
    const line = logLine(level, fields, message, new Date());
    written += line.length;
    stream.write(line);
  };
  return { file, debug: at("DEBUG"), warn: at("WARN") };
}
