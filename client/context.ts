import type { Command } from "commander";
import { configDir, parseServerUrl, readLogin } from "./config.ts";
import { CliError } from "./errors.ts";
import { ApiClient } from "./http.ts";

export interface GlobalOptions {
  url?: string;
  token?: string;
  globalConfig?: string;
}

/** What every command gets: where the login is kept and, when there is one, a client for it. */
export interface Context {
  configDir: string;
  url: string | undefined;
  token: string | undefined;
}

export function contextOf(command: Command): Context {
  const { url, token, globalConfig } = command.optsWithGlobals<GlobalOptions>();
  const dir = configDir(globalConfig);
  const login = readLogin(dir);
  const chosen = url ?? process.env["CODER_URL"];
  return {
    configDir: dir,
    url: chosen ? parseServerUrl(chosen) : login.url,
    token: token ?? process.env["CODER_SESSION_TOKEN"] ?? login.token,
  };
}

/** @throws {CliError} ERR_NOT_LOGGED_IN */
export function apiOf(command: Command): ApiClient {
  const { url, token } = contextOf(command);
  if (!url || !token)
    throw new CliError("ERR_NOT_LOGGED_IN", "You are not logged in.", { hint: "Try `coder login <url>`." });
  return new ApiClient(url, token);
}
