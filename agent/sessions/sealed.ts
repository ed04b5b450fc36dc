import fs from "node:fs";

// node-pty's terminal descriptors are inherited by every child started later, which could then read and type in
// a session that isn't its own, and would keep its terminal from ever hanging up. Node can't set close-on-exec
// on a descriptor it did not open, so the child closes them itself.

let openTerminals = 0;

export const terminalOpened = (): number => ++openTerminals;
export const terminalClosed = (): number => --openTerminals;
/** How many terminals are open in this process. */
export const openTerminalCount = (): number => openTerminals;

const BASH = ["/bin/bash", "/usr/bin/bash"].find((file) => fs.existsSync(file));
const CLOSE_INHERITED =
  // biome-ignore lint/suspicious/noTemplateCurlyInString: this is shell, not a template
  'for f in /proc/self/fd/*; do f=${f##*/}; if ((f > 2)); then eval "exec $f>&-"; fi; done; exec "$@"';

/**
 * The same command without the terminals of other sessions among its open files. Needs bash (POSIX sh can't close
 * descriptors above 9); where there is none the command is left as it is. Costs about 2 ms, and nothing while no
 * terminal is open.
 */
export function sealed(argv: readonly [string, ...string[]]): readonly [string, ...string[]] {
  if (openTerminals === 0 || BASH === undefined || process.platform !== "linux") return argv;
  // -p, --norc: the user's own bash reads its files, this one must not.
  return [BASH, "--norc", "--noprofile", "-p", "-c", CLOSE_INHERITED, "bash", ...argv];
}
