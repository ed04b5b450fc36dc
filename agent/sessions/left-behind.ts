import fs from "node:fs";

// A command has ended, but something it started still holds its output. sshd waits for as long as that lasts, which
// is right for `(sleep 1; echo late) &`, and is the well-known hang after `ssh host 'nohup server &'`. What asked to
// outlive its session, by ignoring SIGHUP (nohup) or by a session of its own (setsid), is not waited for here.

interface Holder {
  pid: number;
  ignoresHangup: boolean;
  /** Its session, in the sense of setsid(2). */
  session: number;
}

/** Whether a process asked to outlive its terminal, as nohup does. */
export function ignoresHangup(pid: number): boolean {
  try {
    const status = fs.readFileSync(`/proc/${pid}/status`, "latin1");
    const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0";
    return (BigInt(`0x${mask}`) & 1n) === 1n; // SIGHUP is signal 1, the lowest bit
  } catch {
    return false;
  }
}

/** Fields of /proc/PID/stat behind the name, which may hold anything. `[0]` is the state. */
export function statFields(pid: number): string[] | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

function pipeOf(pid: number, fd: number): string | undefined {
  try {
    return fs.readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return undefined;
  }
}

/** Who has one of the pipes as stdout or stderr. `pipes`: "pipe:[INODE]" as in /proc. */
function holdersOf(pipes: ReadonlySet<string>): Holder[] {
  const holders: Holder[] = [];
  for (const name of fs.readdirSync("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const [out, err] = [pipeOf(pid, 1), pipeOf(pid, 2)];
    if (!(out !== undefined && pipes.has(out)) && !(err !== undefined && pipes.has(err))) continue;
    holders.push({ pid, ignoresHangup: ignoresHangup(pid), session: Number(statFields(pid)?.[3]) });
  }
  return holders;
}

/** What /proc calls pipes, by our ends of them. */
export function pipeNames(fds: readonly number[]): ReadonlySet<string> {
  return new Set(fds.map((fd) => `pipe:[${fs.fstatSync(fd).ino}]`));
}

/**
 * Whether all that holds the pipes asked to outlive the session whose leader was `leader`. Costs some 10 us for each
 * process of the workspace. False when nobody is found: then it is held in a way we don't understand.
 */
export function onlyDetachedHold(pipes: ReadonlySet<string>, leader: number): boolean {
  try {
    const holders = holdersOf(pipes);
    return holders.length > 0 && holders.every((holder) => holder.ignoresHangup || holder.session !== leader);
  } catch {
    return false;
  }
}
