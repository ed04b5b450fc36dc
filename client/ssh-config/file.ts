import { randomBytes } from "node:crypto";
import {
  chownSync,
  closeSync,
  fchmodSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writeSync,
} from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import { CliError } from "../errors.ts";

/** ssh refuses a configuration that others may write. */
const NEW_FILE_MODE = 0o600;
/** Links that follow each other, as the kernel counts them. */
const MAX_LINKS = 40;

/** "~/.ssh/config" and the like, as a shell that was told to keep its hands off would have expanded it. */
export function expandHome(file: string, home: string = homedir()): string {
  return path.resolve(file === "~" || file.startsWith("~/") ? path.join(home, file.slice(1)) : file);
}

/** Where a path leads, also if the last of its links leads nowhere yet. */
function followLinks(file: string): string {
  let target = file;
  for (let i = 0; i < MAX_LINKS; i++) {
    let stats: Stats;
    try {
      stats = lstatSync(target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return target;
      throw error;
    }
    if (!stats.isSymbolicLink()) return target;
    target = path.resolve(path.dirname(target), readlinkSync(target));
  }
  return target;
}

/** @returns the text, one character a byte; undefined when there is no file @throws {CliError} ERR_SSH_CONFIG_FILE */
export function readText(file: string): string | undefined {
  try {
    return readFileSync(file, "latin1");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw unusable(file, error);
  }
}

/**
 * Replaces a file's content whole or not at all. Links keep leading to it; mode and owner stay; a new file is 0600, its
 * folder 0700.
 *
 * @param expected what was read before: if the file has changed since, nothing is written
 * @throws {CliError} ERR_SSH_CONFIG_FILE, ERR_SSH_CONFIG_CHANGED
 */
export function replaceText(file: string, text: string, expected: string | undefined): void {
  let temporary: string | undefined;
  try {
    const target = followLinks(file);
    mkdirSync(path.dirname(target), { recursive: true, mode: 0o700 });
    let old: Stats | undefined;
    try {
      old = statSync(target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
    temporary = `${target}.${randomBytes(6).toString("hex")}.tmp`;
    const fd = openSync(temporary, "wx", NEW_FILE_MODE);
    try {
      if (old) fchmodSync(fd, old.mode & 0o777);
      const bytes = Buffer.from(text, "latin1");
      for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    if (old && process.getuid?.() === 0) chownSync(temporary, old.uid, old.gid);
    if (readText(file) !== expected)
      throw new CliError("ERR_SSH_CONFIG_CHANGED", `${file} was changed by another program meanwhile`, {
        hint: "Nothing was written. Run it again.",
      });
    renameSync(temporary, target);
    temporary = undefined;
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw unusable(file, error);
  } finally {
    if (temporary) rmSync(temporary, { force: true });
  }
}

function unusable(file: string, cause: unknown): CliError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new CliError("ERR_SSH_CONFIG_FILE", `${file} can't be used: ${reason}`, {
    cause,
    hint: "Name another with --ssh-config-file; ssh reads it with `ssh -F FILE`.",
  });
}
