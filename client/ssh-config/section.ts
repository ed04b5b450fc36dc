// Our section of an OpenSSH client configuration, ssh_config(5): text in, text out.
//
//   # ------------START-CODER-----------
//   # ... remarks
//   # Last config-ssh options:
//   # :NAME=VALUE          one a line, ssh-option several times
//   #
//   Host coder.* *.coder !-* "!*'*"
//       KEYWORD VALUE
//   # ------------END-CODER------------
//
// The markers and the recorded options are Coder's. Everything outside of the section stays as it is, byte for byte:
// texts are "latin1" strings, one character a byte.
import { CliError } from "../errors.ts";

const START = "# ------------START-CODER-----------";
const END = "# ------------END-CODER------------";
/** By this name the host key is known, whatever the workspace is called. */
export const HOST_KEY_ALIAS = "coder-workspaces";

/** What config-ssh was told, and records in the section. */
export interface SectionOptions {
  wait: "yes" | "no" | "auto";
  disableAutostart: boolean;
  /** "" for none */
  sshHostPrefix: string;
  /** Without the dot before it; "" for none. */
  hostnameSuffix: string;
  forceUnixFilePaths: boolean;
  /** Path of the program to run instead of this one; "" for this one. */
  coderBinaryPath: string;
  skipProxyCommand: boolean;
  /** "Keyword Value" or "Keyword=Value", as ssh takes them. */
  sshOptions: string[];
  /** Likewise, what the server wants for all; not recorded. */
  serverOptions?: string[];
}

/** What a section is made of beside its options. */
export interface SectionPaths {
  /** argv before the command's name: the program, perhaps run by another, and its global options. */
  program: readonly string[];
  knownHosts: string;
  /** ssh there runs ProxyCommand by cmd.exe. */
  isWindows: boolean;
}

/**
 * Host names that are none of ours, as ssh_config patterns. A name may come from others, as in the address of a git
 * submodule, and ssh before 9.6 hands it to the shell as it is; quoted (see below) only these could do harm there. A
 * leading "-" would be an option.
 */
const HOSTILE_HOSTS = ["!-*", `"!*'*"`];
/** In double quotes, for cmd.exe, or for sh under the ssh that comes with Git. */
const HOSTILE_HOSTS_WINDOWS = ["!-*", '"!* *"', "!*&*", "!*|*", "!*<*", "!*>*", "!*^*", "!*$*", "!*`*"];

export interface FoundSection {
  before: string;
  /** From the start marker to the end of the end marker's line. */
  section: string;
  after: string;
}

/**
 * Splits a configuration at our section.
 *
 * @returns undefined when it has none
 * @throws {CliError} ERR_SSH_CONFIG_MARKERS when the markers don't form one section
 */
export function findSection(text: string): FoundSection | undefined {
  const starts = lineStarts(text, START);
  const ends = lineStarts(text, END);
  if (starts.length === 0 && ends.length === 0) return undefined;
  if (starts.length !== 1 || ends.length !== 1 || ends[0] < starts[0])
    throw new CliError("ERR_SSH_CONFIG_MARKERS", "the markers of coder's section are not one pair", {
      hint: `Repair or remove the lines "${START}" and "${END}" by hand, then run it again.`,
    });
  const lineEnd = text.indexOf("\n", ends[0]);
  const end = lineEnd === -1 ? text.length : lineEnd + 1;
  return { before: text.slice(0, starts[0]), section: text.slice(starts[0], end), after: text.slice(end) };
}

function lineStarts(text: string, line: string): number[] {
  const found: number[] = [];
  for (let at = text.indexOf(line); at !== -1; at = text.indexOf(line, at + line.length)) {
    const startsLine = at === 0 || text[at - 1] === "\n";
    const next = text[at + line.length];
    if (startsLine && (next === undefined || next === "\n" || next === "\r")) found.push(at);
  }
  return found;
}

/** @param section undefined removes it; else with "\n" at each line's end @returns the whole configuration */
export function replaceSection(text: string, section: string | undefined): string {
  const found = findSection(text);
  const eol = /\r\n/.test(text) ? "\r\n" : "\n";
  const lines = section?.replace(/\n/g, eol);
  if (found) {
    if (lines !== undefined) return found.before + lines + found.after;
    return (found.after === "" ? withoutSeparator(found) : found.before) + found.after;
  }
  if (lines === undefined) return text;
  if (text === "") return lines;
  // A blank line between; where the last line has no end, the one it needs must do, so that removing restores it.
  return text + eol + lines;
}

/** A "\r" alone is no part of it: it was there before. */
const withoutSeparator = ({ before, section }: FoundSection) =>
  before.replace(section.includes("\r\n") ? /\r?\n$/ : /\n$/, "");

const FLAGS = ["disable-autostart", "force-unix-filepaths", "skip-proxy-command"] as const;

/** The options recorded in a section; what is missing or can't be read is as by default. */
export function recordedOptions(section: string, defaults: SectionOptions): SectionOptions {
  const values = new Map<string, string[]>();
  for (const [, name, value] of section.matchAll(/^# :([a-z-]+)=(.*?)\r?$/gm))
    values.set(name, [...(values.get(name) ?? []), Buffer.from(value, "latin1").toString()]);
  const text = (name: string, fallback: string) => values.get(name)?.at(-1) ?? fallback;
  const flag = (name: (typeof FLAGS)[number]) => text(name, "false") === "true";
  const wait = text("wait", defaults.wait);
  return {
    wait: wait === "yes" || wait === "no" ? wait : "auto",
    disableAutostart: flag("disable-autostart"),
    forceUnixFilePaths: flag("force-unix-filepaths"),
    skipProxyCommand: flag("skip-proxy-command"),
    sshHostPrefix: text("ssh-host-prefix", defaults.sshHostPrefix),
    hostnameSuffix: text("hostname-suffix", defaults.hostnameSuffix),
    coderBinaryPath: text("coder-binary-path", ""),
    sshOptions: values.get("ssh-option") ?? [],
  };
}

function recorded(options: SectionOptions): string[] {
  return [
    `wait=${options.wait}`,
    `ssh-host-prefix=${options.sshHostPrefix}`,
    `hostname-suffix=${options.hostnameSuffix}`,
    ...(options.disableAutostart ? ["disable-autostart=true"] : []),
    ...(options.forceUnixFilePaths ? ["force-unix-filepaths=true"] : []),
    ...(options.skipProxyCommand ? ["skip-proxy-command=true"] : []),
    ...(options.coderBinaryPath ? [`coder-binary-path=${options.coderBinaryPath}`] : []),
    ...options.sshOptions.map((option) => `ssh-option=${option}`),
  ];
}

/** @throws {CliError} ERR_BAD_SSH_OPTION, ERR_BAD_HOST_PATTERN, ERR_BAD_PATH for what a line of ssh_config can't hold */
export function renderSection(options: SectionOptions, paths: SectionPaths): string {
  const chosen = [...options.sshOptions, ...(options.serverOptions ?? [])].map(parseSshOption);
  const taken = new Set(chosen.map(({ keyword }) => keyword.toLowerCase()));
  const patterns = [
    ...(options.sshHostPrefix ? [`${checkAffix(options.sshHostPrefix)}*`] : []),
    ...(options.hostnameSuffix ? [`*.${checkAffix(options.hostnameSuffix)}`] : []),
  ];
  if (patterns.length === 0)
    throw new CliError("ERR_BAD_HOST_PATTERN", "neither a host prefix nor a hostname suffix is left", {
      hint: "Give --ssh-host-prefix coder. or --hostname-suffix coder.",
    });
  const path = (text: string) => (options.forceUnixFilePaths ? text.replaceAll("\\", "/") : text);
  const ours: [string, string][] = [
    // Starting a stopped workspace takes as long as it takes.
    ["ConnectTimeout", "0"],
    ["HostKeyAlias", HOST_KEY_ALIAS],
    ["UserKnownHostsFile", quotePath(path(paths.knownHosts))],
    ["StrictHostKeyChecking", "yes"],
  ];
  if (!options.skipProxyCommand) {
    const argv = [...paths.program.map(path), "ssh", "--stdio", ...stdioFlags(options)];
    // cmd.exe knows no single quotes; in a POSIX shell nothing but their own end ends them.
    const host = paths.isWindows ? '"%h"' : "'%h'";
    ours.push(["ProxyCommand", `${argv.map(quoteWord).join(" ")} ${host}`]);
  }
  const lines = [
    START,
    "# This section is managed by coder: changes to it are lost when `coder config-ssh` runs again.",
    "# `coder config-ssh --remove` takes it out.",
    "#",
    "# Last config-ssh options:",
    ...recorded(options).map((entry) => `# :${entry}`),
    "#",
    `Host ${[...patterns, ...(paths.isWindows ? HOSTILE_HOSTS_WINDOWS : HOSTILE_HOSTS)].join(" ")}`,
    ...chosen.map(({ keyword, value }) => `    ${keyword} ${value}`),
    ...ours.filter(([keyword]) => !taken.has(keyword.toLowerCase())).map((line) => `    ${line.join(" ")}`),
    END,
  ];
  return Buffer.from(`${lines.join("\n")}\n`).toString("latin1");
}

function stdioFlags(options: SectionOptions): string[] {
  return [
    ...(options.sshHostPrefix ? ["--ssh-host-prefix", options.sshHostPrefix] : []),
    ...(options.hostnameSuffix ? ["--hostname-suffix", options.hostnameSuffix] : []),
    ...(options.wait === "auto" ? [] : [`--wait=${options.wait}`]),
    ...(options.disableAutostart ? ["--disable-autostart"] : []),
  ];
}

/** @throws {CliError} ERR_BAD_SSH_OPTION */
export function parseSshOption(text: string): { keyword: string; value: string } {
  const match = /^\s*([A-Za-z][A-Za-z0-9]*)(?:\s*=\s*|\s+)(\S[^\r\n\0]*)$/.exec(text);
  if (!match || /^(host|match|include)$/i.test(match[1]))
    throw new CliError("ERR_BAD_SSH_OPTION", `"${text}" is no option of an ssh_config section`, {
      hint: "Write it as in ssh_config(5): -o ForwardAgent=yes",
    });
  return { keyword: match[1], value: match[2].trimEnd() };
}

function checkAffix(text: string): string {
  if (/^[A-Za-z0-9._-]{1,64}$/.test(text)) return text;
  throw new CliError("ERR_BAD_HOST_PATTERN", `"${text}" can't be part of a host name`, {
    hint: "Use letters, digits, dots, dashes and underscores, as in --ssh-host-prefix coder.",
  });
}

function unwritable(text: string): CliError {
  return new CliError(
    "ERR_BAD_PATH",
    `the path ${JSON.stringify(text)} can't be written into an SSH configuration`,
    {
      hint: "Move the program or the config folder (--global-config) to a path without quotes, $ and line breaks.",
    },
  );
}

/** For a keyword that takes paths: ssh expands % and ${}, and splits at blanks. @throws {CliError} ERR_BAD_PATH */
function quotePath(text: string): string {
  if (/["\r\n\0]|\$\{/.test(text)) throw unwritable(text);
  const escaped = text.replaceAll("%", "%%");
  return /[\s#'\\]/.test(escaped) ? `"${escaped.replaceAll("\\", "\\\\")}"` : escaped;
}

/**
 * For ProxyCommand: ssh expands %, then the user's shell (on Windows cmd.exe) takes words apart. Double quotes are what
 * all of them and other programs that read the file understand.
 *
 * @throws {CliError} ERR_BAD_PATH
 */
function quoteWord(text: string): string {
  if (/["$`!\r\n\0]/.test(text)) throw unwritable(text);
  const escaped = text.replaceAll("%", "%%");
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(escaped)) return escaped;
  return `"${escaped}"`;
}
