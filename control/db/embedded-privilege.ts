// PostgreSQL refuses to run as root. As root we run it as somebody else without moving its files:
//
// 1. in a user namespace that shows our uid 0 as an ordinary one. The files stay root's, and the server can
//    read what root can read, so a 0700 home (for the data, or for the programs) is no obstacle;
// 2. where namespaces are switched off (containers mostly), as an unprivileged uid that keeps one capability,
//    CAP_DAC_OVERRIDE, for the same reason. The data folder must then belong to that uid.
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import os from "node:os";
import { promisify } from "node:util";
import { DatabaseError } from "./errors.ts";

const run = promisify(execFile);
const PROBE_TIMEOUT_MS = 10_000;

export interface Launcher {
  kind: "direct" | "user-namespace" | "setpriv";
  /** Command and arguments that go before the program's. */
  prefix: string[];
  /** Who must own the data, as seen from here; undefined: whoever we are. */
  owner?: { uid: number; gid: number };
  /** Major version the program printed, e.g. 18. */
  major: number;
}

export interface Account {
  uid: number;
  gid: number;
}

/**
 * Chooses a non-root account to appear as. initdb looks its own uid up, so it must be listed; `postgres` is
 * made for this, `nobody` exists nearly everywhere.
 *
 * @param passwd text of /etc/passwd
 */
export function pickAccount(passwd: string): Account | undefined {
  const accounts = passwd
    .split("\n")
    .map((line) => line.split(":"))
    .filter((fields) => /^[0-9]+$/.test(fields[2] ?? "") && /^[0-9]+$/.test(fields[3] ?? ""))
    .map((fields) => ({ name: fields[0], uid: Number(fields[2]), gid: Number(fields[3]) }))
    .filter(({ uid, gid }) => uid > 0 && gid > 0);
  const best =
    accounts.find(({ name }) => name === "postgres") ??
    accounts.find(({ name }) => name === "nobody") ??
    accounts[0];
  return best && { uid: best.uid, gid: best.gid };
}

export function namespacePrefix({ uid, gid }: Account): string[] {
  return ["unshare", "--user", `--map-user=${uid}`, `--map-group=${gid}`];
}

export function setprivPrefix({ uid, gid }: Account): string[] {
  return [
    "setpriv",
    ...[`--reuid=${uid}`, `--regid=${gid}`, "--clear-groups", "--no-new-privs"],
    ...["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"],
    // Without it access(2) ignores a non-root user's capabilities, and initdb asks access(2) for its programs.
    "--securebits=+no_setuid_fixup",
  ];
}

/** Fails unless both the data folder and the program can be reached by whom we have become. */
const PROBE = 'cd "$1" && [ -w . ] && exec "$2" --version';

/**
 * Finds a way to run `program` on `dataDir`, by trying each.
 *
 * @param only limits the choice (for tests)
 * @throws {DatabaseError} ERR_DATABASE_START when no way works; the message says what each answered
 */
export async function findLauncher(
  program: string,
  dataDir: string,
  env: NodeJS.ProcessEnv,
  only?: Launcher["kind"],
): Promise<Launcher> {
  const answers: string[] = [];
  for (const way of await ways(only)) {
    const [command, ...args] = [...way.prefix, "/bin/sh", "-c", PROBE, "sh", dataDir, program];
    try {
      const { stdout } = await run(command!, args, { env, timeout: PROBE_TIMEOUT_MS });
      const major = Number(/\(PostgreSQL\) ([0-9]+)/.exec(stdout)?.[1]);
      if (!Number.isInteger(major)) throw new Error(`unexpected answer: ${stdout.trim().slice(0, 200)}`);
      return { ...way, major };
    } catch (error) {
      answers.push(`${way.kind}: ${reason(error)}`);
    }
  }
  throw new DatabaseError(
    "ERR_DATABASE_START",
    (process.getuid?.() === 0
      ? "PostgreSQL refuses to run as root, and no other way worked. Run this as an ordinary user, or allow user " +
        "namespaces (sysctl user.max_user_namespaces), or install util-linux (setpriv), or set CODER_PG_CONNECTION_URL."
      : "the embedded PostgreSQL can't be executed. Reinstall the packages, or set CODER_PG_CONNECTION_URL.") +
      `\n  ${answers.join("\n  ")}`,
  );
}

async function ways(only?: Launcher["kind"]): Promise<Omit<Launcher, "major">[]> {
  const direct: Omit<Launcher, "major"> = { kind: "direct", prefix: [] };
  const asRoot = process.getuid?.() === 0;
  if (!asRoot && hasName()) return [direct];
  const account = pickAccount(await readFile("/etc/passwd", "utf8").catch(() => ""));
  // A uid without a name (containers run with -u 12345) can borrow one inside a namespace; initdb needs it.
  if (!asRoot && account) return [{ kind: "user-namespace", prefix: namespacePrefix(account) }, direct];
  if (!asRoot) return [direct];
  if (!account) {
    throw new DatabaseError(
      "ERR_DATABASE_START",
      "PostgreSQL refuses to run as root, and /etc/passwd lists no other account to run it as: " +
        "add one (nobody will do), or set CODER_PG_CONNECTION_URL",
    );
  }
  const all: Omit<Launcher, "major">[] = [
    { kind: "user-namespace", prefix: namespacePrefix(account), owner: { uid: 0, gid: 0 } },
    { kind: "setpriv", prefix: setprivPrefix(account), owner: account },
  ];
  return all.filter(({ kind }) => only === undefined || kind === only);
}

function hasName(): boolean {
  try {
    os.userInfo();
    return true;
  } catch {
    return false;
  }
}

function reason(error: unknown): string {
  const { stderr, message } = error as { stderr?: string; message: string };
  return (stderr?.trim() || message).slice(0, 500);
}
