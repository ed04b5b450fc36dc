import type { PtyRequest, SessionHeader, WindowSize, X11Request } from "../../mesh/wire/channel.ts";

/** What follows the user into a workspace, as Debian's ssh sends it. */
const FORWARDED = /^(LANG|LC_[A-Z0-9_]+|COLORTERM|NO_COLOR)$/;
const DEFAULT_TERM = "xterm-256color";

export function forwardedEnvironment(env: NodeJS.ProcessEnv): Record<string, string> {
  const forwarded: Record<string, string> = {};
  for (const [name, value] of Object.entries(env))
    if (FORWARDED.test(name) && value !== undefined) forwarded[name] = value;
  return forwarded;
}

/** The terminal to ask for. `term`: the local TERM; a name the format does not allow is replaced. */
export function ptyRequest(size: WindowSize, term: string | undefined): PtyRequest {
  return { ...size, term: term && /^[\x21-\x7e]{1,64}$/.test(term) ? term : DEFAULT_TERM };
}

/** The header of a shell, or of `command` as one string for the login shell. */
export function sessionHeader(options: {
  command?: string;
  env?: Record<string, string>;
  pty?: PtyRequest;
  agent?: { token: string };
  x11?: X11Request;
}): SessionHeader {
  const { env = {}, pty, agent, x11 } = options;
  const base = { env, ...(pty ? { pty } : {}), ...(agent ? { agent } : {}), ...(x11 ? { x11 } : {}) };
  return options.command === undefined
    ? { kind: "shell", ...base }
    : { kind: "exec", command: options.command, ...base };
}
