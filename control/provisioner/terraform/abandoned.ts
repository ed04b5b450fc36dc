// Job folders whose provisioner was killed. They hold a template, its variables and perhaps a state, so they must
// not lie about for ever. Who owns a folder is shown by a unix socket in it: the kernel refuses a connection as soon
// as the owner is gone, whatever process has its id by then, and across containers that share the folder.
import { chmod, copyFile, lstat, mkdir, readdir, readFile, readlink, rm } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const JOB_PREFIX = "coder-job-";
export const STATE_FILE = path.join("t", "terraform.tfstate");
/** Holds the name to keep the state by; there from the moment an apply may change it. */
export const RESCUE_NAME_FILE = "rescue-as";
const OWNER_SOCKET = "owner";
/** A folder just made has no socket yet. */
const UNOWNED_MS = 60_000;
/** A socket refuses between being bound and being listened on. */
const SECOND_LOOK_MS = 100;
const CONNECT_TIMEOUT_MS = 2_000;

/** Marks a job's folder as in use until `close()` or the end of this process. */
export async function own(root: string): Promise<Server> {
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path.join(root, OWNER_SOCKET), resolve);
  });
  server.unref();
  return server;
}

export interface Abandoned {
  /** The job's folder. */
  root: string;
  /** Where its state is now, if it had any that Terraform may have changed. */
  file?: string;
  /** Why it was not removed. */
  error?: unknown;
}

/**
 * Removes the job folders below `base` that belong to this user, whose owner is gone and in which nothing works any
 * more: a Terraform that outlived its provisioner finishes what it does. What it then knew of the world goes to
 * `rescueDir`, without which it is lost.
 *
 * @param nowMs Unix time
 */
export async function removeAbandoned(
  base: string,
  rescueDir?: string,
  nowMs = Date.now(),
): Promise<Abandoned[]> {
  const names = (await readdir(base).catch(() => [])).filter((name) => name.startsWith(JOB_PREFIX));
  const found: Abandoned[] = [];
  for (const name of names) {
    const root = path.join(base, name);
    if (!(await isAbandoned(root, nowMs)) || (await isWorkedIn(root))) continue;
    try {
      const file = rescueDir && (await rescue(root, rescueDir));
      await rm(root, { recursive: true, force: true, maxRetries: 3 });
      found.push({ root, ...(file && { file }) });
    } catch (error) {
      found.push({ root, error });
    }
  }
  return found;
}

/** @returns where the state is now; undefined when there is none */
async function rescue(root: string, rescueDir: string): Promise<string | undefined> {
  const name = await readFile(path.join(root, RESCUE_NAME_FILE), "utf8").catch(() => "");
  const state = path.join(root, STATE_FILE);
  const size = (await lstat(state).catch(() => undefined))?.size ?? 0;
  if (name === "" || size === 0) return undefined;
  await mkdir(rescueDir, { recursive: true, mode: 0o700 });
  const file = path.join(rescueDir, path.basename(name));
  await copyFile(state, file);
  await chmod(file, 0o600);
  return file;
}

async function isAbandoned(root: string, nowMs: number): Promise<boolean> {
  const info = await lstat(root).catch(() => undefined);
  // Anyone may make folders and links below /tmp.
  if (!info?.isDirectory() || info.uid !== process.getuid?.()) return false;
  const owner = path.join(root, OWNER_SOCKET);
  const first = await knock(owner);
  if (first === "ENOENT") return nowMs - info.mtimeMs > UNOWNED_MS;
  if (first !== "ECONNREFUSED") return false;
  await sleep(SECOND_LOOK_MS);
  return (await knock(owner)) === "ECONNREFUSED";
}

/** @returns why nobody answered; undefined when somebody did, or might have */
function knock(socketPath: string): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    socket.setTimeout(CONNECT_TIMEOUT_MS, () => socket.destroy());
    socket.once("connect", () => socket.destroy());
    socket.once("error", (error: NodeJS.ErrnoException) => resolve(error.code));
    socket.once("close", () => resolve(undefined));
  });
}

/** Whether a process of this user has its working folder there (Linux; elsewhere nothing is seen). */
async function isWorkedIn(root: string): Promise<boolean> {
  const pids = (await readdir("/proc").catch(() => [])).filter((name) => /^\d+$/.test(name));
  const folders = await Promise.all(pids.map((pid) => readlink(`/proc/${pid}/cwd`).catch(() => "")));
  return folders.some((folder) => folder === root || folder.startsWith(root + path.sep));
}
