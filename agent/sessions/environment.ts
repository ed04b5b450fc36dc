import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { AgentManifest } from "../../control/contract/agent.ts";

export type Environment = Record<string, string>;

export interface Account {
  username: string;
  homeDir: string;
  /** Absolute path of the login shell. */
  shell: string;
}

/** What sessions and scripts are told about where they run. */
export type ManifestContext = Pick<
  AgentManifest,
  "agent_name" | "workspace_name" | "owner_username" | "directory" | "environment_variables"
>;

/**
 * Never handed to a session: the agent's own credentials, and what described *its* terminal, parent or login.
 * Coder hands CODER_AGENT_TOKEN to every process for its git helpers. Nothing of ours needs it there, and
 * whoever may run a command in the workspace could take it away and speak as the agent; so it stays here.
 */
const NOT_INHERITED = new Set([
  ...["CODER_AGENT_TOKEN", "CODER_AGENT_TOKEN_FILE", "CODER_AGENT_AUTH", "CODER_SESSION_TOKEN"],
  ...["TERM", "TERMCAP", "COLUMNS", "LINES", "TMUX", "TMUX_PANE", "STY", "WINDOW", "WINDOWID", "COLORTERM"],
  ...["SHLVL", "PWD", "OLDPWD", "_", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "SSH_AUTH_SOCK", "DISPLAY"],
  ...["NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_OPTIONS", "NODE_ENV", "INIT_CWD"],
  ...["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"],
]);
const NOT_INHERITED_PREFIX = /^(npm_|CODER_PG_|CODER_QUICKSTART_)/;
const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

export function isExecutable(file: string): boolean {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

const refusesLogin = (file: string) => /^(nologin|false|true|sync)$/.test(path.basename(file));

/** First that is usable of: the shell in passwd, $SHELL, bash, sh. Images often give their user `nologin`. */
export function chooseShell(candidates: readonly (string | null | undefined)[]): string {
  const all = [...candidates, "/bin/bash", "/usr/bin/bash"];
  return (
    all.find(
      (file): file is string => !!file && path.isAbsolute(file) && !refusesLogin(file) && isExecutable(file),
    ) ?? "/bin/sh"
  );
}

/** Who the agent runs as. A uid without an entry in passwd (common in containers) is described by its environment. */
export function currentAccount(env: NodeJS.ProcessEnv = process.env): Account {
  let passwd: { username: string; homedir: string; shell: string | null } | undefined;
  try {
    passwd = os.userInfo();
  } catch {
    passwd = undefined;
  }
  const homes = [env["HOME"], passwd?.homedir, "/"];
  return {
    username: passwd?.username ?? env["USER"] ?? env["LOGNAME"] ?? String(process.getuid?.() ?? "user"),
    homeDir: homes.find((home) => home !== undefined && path.isAbsolute(home)) ?? "/",
    shell: chooseShell([passwd?.shell, env["SHELL"]]),
  };
}

/** Replaces $NAME and ${NAME} as Coder does in template values; an unknown name becomes nothing. */
export function expandVariables(text: string, env: Environment): string {
  return text.replace(
    /\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))/g,
    (_, braced: string | undefined, bare: string | undefined) => env[braced ?? bare ?? ""] ?? "",
  );
}

/** An absolute path from a template's value: ~, variables, and relative to the home directory. */
export function expandPath(text: string, env: Environment, homeDir: string): string {
  const expanded = expandVariables(text.trim(), { ...env, HOME: homeDir });
  const tilde = expanded === "~" || expanded.startsWith("~/") ? `${homeDir}${expanded.slice(1)}` : expanded;
  return path.resolve(homeDir, tilde);
}

/**
 * The environment every session and script starts from; later entries win: the agent's own (without what it
 * keeps to itself), the account, CODER_*, the template's (expanded, so that PATH can be extended).
 */
export function baseEnvironment(options: {
  inherited: NodeJS.ProcessEnv;
  account: Account;
  manifest: ManifestContext;
  agentUrl: string;
  /** Appended to PATH: where scripts put what they install. */
  binDir?: string;
}): Environment {
  const { inherited, account, manifest, agentUrl, binDir } = options;
  const env: Environment = {};
  for (const [name, value] of Object.entries(inherited))
    if (value !== undefined && !NOT_INHERITED.has(name) && !NOT_INHERITED_PREFIX.test(name))
      env[name] = value;
  env["USER"] = account.username;
  env["LOGNAME"] = account.username;
  env["HOME"] = account.homeDir;
  env["SHELL"] = account.shell;
  env["PATH"] ||= DEFAULT_PATH;
  if (binDir) env["PATH"] += `:${binDir}`;
  env["CODER"] = "true";
  env["CODER_AGENT_URL"] = agentUrl;
  env["CODER_WORKSPACE_NAME"] = manifest.workspace_name;
  env["CODER_WORKSPACE_OWNER_NAME"] = manifest.owner_username;
  env["CODER_WORKSPACE_AGENT_NAME"] = manifest.agent_name;
  for (const [name, value] of Object.entries(manifest.environment_variables))
    env[name] = expandVariables(value, env);
  return env;
}

/**
 * A session's environment: the base, what says "remote session" to shells, prompts and bash's ~/.bashrc rule, what
 * the client asked for, and `own`: what belongs to this one session (SSH_AUTH_SOCK, DISPLAY). There is no address
 * behind a mesh session, so loopback stands for it.
 */
export function sessionEnvironment(
  base: Environment,
  requested: Environment,
  own: Environment = {},
): Environment {
  return {
    ...base,
    SSH_CLIENT: "127.0.0.1 0 22",
    SSH_CONNECTION: "127.0.0.1 0 127.0.0.1 22",
    ...requested,
    ...own,
  };
}

/** Where sessions and scripts start: the template's directory if there is one, else home, else the root. */
export function workingDirectory(manifest: ManifestContext, env: Environment, homeDir: string): string {
  const wanted = manifest.directory.trim() === "" ? [] : [expandPath(manifest.directory, env, homeDir)];
  return (
    [...wanted, homeDir].find((directory) => {
      try {
        fs.accessSync(directory, fs.constants.X_OK);
        return fs.statSync(directory).isDirectory();
      } catch {
        return false;
      }
    }) ?? "/"
  );
}

/** The directory the template names, expanded, whether or not it exists yet; home when it names none. */
export function expandedDirectory(manifest: ManifestContext, env: Environment, homeDir: string): string {
  return manifest.directory.trim() === "" ? homeDir : expandPath(manifest.directory, env, homeDir);
}
