import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import { CliError } from "./errors.ts";

/** Where the CLI keeps its login: two files, `url` and `session`, as Coder's CLI does. */
export function configDir(flag?: string, env: NodeJS.ProcessEnv = process.env): string {
  if (flag) return path.resolve(flag);
  if (env["CODER_CONFIG_DIR"]) return path.resolve(env["CODER_CONFIG_DIR"]);
  const home = homedir();
  if (process.platform === "win32")
    return path.join(env["APPDATA"] ?? path.join(home, "AppData/Roaming"), "coderv2");
  if (process.platform === "darwin") return path.join(home, "Library/Application Support/coderv2");
  return path.join(env["XDG_CONFIG_HOME"] ?? path.join(home, ".config"), "coderv2");
}

function read(dir: string, name: string): string | undefined {
  try {
    return readFileSync(path.join(dir, name), "utf8").trim() || undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new CliError(
      "ERR_CONFIG_UNREADABLE",
      `cannot read ${path.join(dir, name)}: ${(error as Error).message}`,
    );
  }
}

/** Written beside and renamed into place, so that a reader never sees half a token. */
function write(dir: string, name: string, value: string): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const target = path.join(dir, name);
  const temporary = `${target}.${process.pid}`;
  writeFileSync(temporary, value, { mode: 0o600 });
  chmodSync(temporary, 0o600);
  renameSync(temporary, target);
}

export interface Login {
  url: string | undefined;
  token: string | undefined;
}

export function readLogin(dir: string): Login {
  return { url: read(dir, "url"), token: read(dir, "session") };
}

export function writeLogin(dir: string, login: { url: string; token: string }): void {
  write(dir, "url", login.url);
  write(dir, "session", login.token);
}

/** Forgets the token; the address stays, so that the next login need not name it. */
export function forgetSession(dir: string): void {
  rmSync(path.join(dir, "session"), { force: true });
}

/** @throws {CliError} ERR_BAD_URL */
export function parseServerUrl(text: string): string {
  const withScheme = /^https?:\/\//i.test(text) ? text : `https://${text}`;
  try {
    const url = new URL(withScheme);
    return url.origin + url.pathname.replace(/\/+$/, "");
  } catch (cause) {
    throw new CliError("ERR_BAD_URL", `"${text}" is not a server address`, {
      cause,
      hint: "Give it as https://coder.example.com",
    });
  }
}
