import { spawnSync } from "node:child_process";
import fs from "node:fs";

// node-pty's terminal descriptors are inherited by every child started later, which could then read and type in
// a session that isn't its own, and would keep its terminal from ever hanging up. Node can't set close-on-exec
// on a descriptor it did not open. So a child Node starts gets /dev/null in their place, and a child node-pty starts
// closes them itself, in the shell that prepares its terminal.

const terminals = new Set<number>();
let devNull: number | undefined;

export function terminalOpened(fd: number): void {
  terminals.add(fd);
}
export function terminalClosed(fd: number): void {
  terminals.delete(fd);
}
/** How many terminals are open in this process. */
export const openTerminalCount = (): number => terminals.size;

/**
 * What follows stdin, stdout and stderr in `stdio` of child_process.spawn, so that the child has /dev/null where this
 * process has terminals. Costs nothing while none is open.
 */
export function sealedStdio(): ("ignore" | number)[] {
  if (terminals.size === 0) return [];
  devNull ??= fs.openSync("/dev/null", "r+");
  const last = Math.max(...terminals);
  const rest: ("ignore" | number)[] = [];
  for (let fd = 3; fd <= last; fd++) rest.push(terminals.has(fd) ? devNull : "ignore");
  return rest;
}

/** POSIX promises descriptors up to 9 in a redirection, and dash knows no more; bash and busybox do. */
function closesHighDescriptors(shell: string): boolean {
  const probe = "exec 15</dev/null && [ -e /proc/self/fd/15 ] && exec 15<&-";
  return spawnSync(shell, ["-c", probe], { stdio: "ignore", timeout: 2_000 }).status === 0;
}

let found: { shell: string; sealing: boolean } | undefined;

/** The shell that prepares terminals, and whether it can close what they inherited. */
export function preparingShell(): { shell: string; sealing: boolean } {
  if (found) return found;
  if (closesHighDescriptors("/bin/sh")) found = { shell: "/bin/sh", sealing: true };
  else {
    const bash = ["/bin/bash", "/usr/bin/bash"].find((file) => fs.existsSync(file));
    found = bash ? { shell: bash, sealing: true } : { shell: "/bin/sh", sealing: false };
  }
  return found;
}

/**
 * The start of a script that closes, in the shell that runs it, every terminal of this process.
 *
 * @param fds the open ones by default
 */
export function closeTerminals(fds: Iterable<number> = terminals): string {
  const all = [...fds].filter((fd) => fd > 2);
  return all.length === 0 ? "" : `exec ${all.map((fd) => `${fd}<&-`).join(" ")}; `;
}
