// What `coder ssh` was told, checked before anything is connected.

import { durationMsIn } from "../duration.ts";
import { CliError } from "../errors.ts";
import { parseSshForward, type SshForward } from "../forward/spec.ts";
import type { WaitMode } from "../ready.ts";

/** As the command line has them. */
export interface SshFlags {
  /** false: --no-wait, as older versions had it. */
  wait: WaitMode | false;
  disableAutostart?: boolean;
  env: string[];
  forceTty?: boolean;
  disableTty?: boolean;
  stdio?: boolean;
  sshHostPrefix?: string;
  hostnameSuffix?: string;
  forwardAgent?: boolean;
  identityAgent?: string;
  forwardX11?: boolean;
  forwardX11Trusted?: boolean;
  localForward: string[];
  remoteForward: string[];
  /** commander's name for -N: false when given. */
  command?: boolean;
  resumeWindow: string;
  logDir?: string;
  networkInfoDir?: string;
  networkInfoInterval: string;
}

export interface SshPlan {
  wait: WaitMode;
  autostart: boolean;
  env: Record<string, string>;
  tty: boolean | undefined;
  stdio: boolean;
  agent: { socket: string | undefined } | undefined;
  x11: { trusted: boolean } | undefined;
  local: SshForward[];
  remote: SshForward[];
  /** Only forwards; no shell, no command. */
  noCommand: boolean;
  resumeWindowMs: number;
  logDir: string | undefined;
  networkInfo: { dir: string; intervalMs: number } | undefined;
}

/** The agents' own limit is as long. */
const MAX_RESUME_WINDOW_MS = 24 * 3_600_000;
const MIN_RESUME_WINDOW_MS = 10_000;

const isTrue = (text: string | undefined) => text === "true" || text === "1";

/** @throws {CliError} for the first flag or variable that can't be what it says, with what to write instead */
export function planSsh(flags: SshFlags, env: NodeJS.ProcessEnv, words: readonly string[]): SshPlan {
  const local = flags.localForward.map((spec) => parseSshForward(spec, "-L"));
  const remote = flags.remoteForward.map((spec) => parseSshForward(spec, "-R"));
  const noCommand = flags.command === false;
  if (flags.stdio && words.length > 0)
    throw new CliError("ERR_BAD_OPTION", "--stdio speaks SSH on stdin and stdout and takes no command", {
      hint: "It is for OpenSSH's ProxyCommand; leave it out to run a command.",
    });
  if (noCommand && (words.length > 0 || flags.forceTty))
    throw new CliError("ERR_BAD_OPTION", "-N runs no command and opens no terminal", {
      hint: "Leave -N out, or the command.",
    });
  if (noCommand && local.length + remote.length === 0)
    throw new CliError("ERR_BAD_OPTION", "-N alone does nothing", {
      hint: "Name a forward: -L 8080:localhost:8080, or -R.",
    });
  if (flags.forceTty && flags.disableTty)
    throw new CliError("ERR_BAD_OPTION", "-t and -T contradict each other", { hint: "Give one of them." });
  return {
    wait: flags.wait === false ? "no" : flags.wait,
    autostart: !flags.disableAutostart && !isTrue(env["CODER_SSH_DISABLE_AUTOSTART"]),
    env: parseEnv(flags.env),
    tty: flags.forceTty ? true : flags.disableTty ? false : undefined,
    stdio: flags.stdio === true,
    agent:
      flags.forwardAgent || flags.identityAgent !== undefined || isTrue(env["CODER_SSH_FORWARD_AGENT"])
        ? { socket: flags.identityAgent }
        : undefined,
    x11:
      flags.forwardX11 || flags.forwardX11Trusted ? { trusted: flags.forwardX11Trusted === true } : undefined,
    local,
    remote,
    noCommand,
    resumeWindowMs: durationMsIn(
      flags.resumeWindow,
      "--resume-window",
      MIN_RESUME_WINDOW_MS,
      MAX_RESUME_WINDOW_MS,
    ),
    logDir: flags.logDir,
    networkInfo:
      flags.networkInfoDir === undefined
        ? undefined
        : {
            dir: flags.networkInfoDir,
            intervalMs: durationMsIn(flags.networkInfoInterval, "--network-info-interval", 500, 3_600_000),
          },
  };
}

/** "NAME=VALUE" pairs. @throws {CliError} ERR_BAD_ENV */
export function parseEnv(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const match = /^([A-Za-z_][A-Za-z0-9_]*)=(.*)$/s.exec(pair);
      if (!match)
        throw new CliError("ERR_BAD_ENV", `"${pair}" is not NAME=VALUE`, {
          hint: "Write --env LANG=C.UTF-8",
        });
      return [match[1], match[2]];
    }),
  );
}
