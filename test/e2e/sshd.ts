// A real OpenSSH server on loopback, with a key of its own: the host that a jump ends at, and the one to compare with.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { freePort } from "./outage.ts";

const SSHD = "/usr/sbin/sshd";
const READY_MS = 10_000;

export const hasSshd = (): boolean => existsSync(SSHD);

export class Sshd {
  readonly port: number;
  /** Options of `ssh` that reach it as the user who runs this. */
  readonly options: string[];
  readonly user = os.userInfo().username;
  readonly #child: ChildProcess;

  private constructor(port: number, options: string[], child: ChildProcess) {
    this.port = port;
    this.options = options;
    this.#child = child;
  }

  /**
   * @param dir a folder of the caller's, 0700 all the way up as sshd wants it (StrictModes is off)
   * @param address where it listens @param within what to spawn to run a command line, in a network namespace for example
   */
  static async start(
    dir: string,
    {
      address = "127.0.0.1",
      within = ([command, ...args]: [string, ...string[]]): [string, string[]] => [command, args],
    } = {},
  ): Promise<Sshd> {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const file = (name: string) => path.join(dir, name);
    for (const name of ["host", "user"])
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", file(name)]);
    execFileSync("cp", [file("user.pub"), file("authorized_keys")]);
    const port = await freePort();
    writeFileSync(
      file("sshd_config"),
      [
        `ListenAddress ${address}:${port}`,
        `HostKey ${file("host")}`,
        `AuthorizedKeysFile ${file("authorized_keys")}`,
        `PidFile ${file("pid")}`,
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "Subsystem sftp internal-sftp",
        "",
      ].join("\n"),
    );
    // Debian's sshd insists on this folder when it runs as root.
    if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 });
    const child = spawn(...within([SSHD, "-D", "-e", "-f", file("sshd_config")]), {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let said = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const until = performance.now() + READY_MS;
    while (!/listening on/.test(said)) {
      if (child.exitCode !== null || performance.now() > until)
        throw new Error(`sshd did not start: ${said}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const options = [
      ...["-F", "/dev/null", "-p", String(port), "-i", file("user")],
      ...["-o", "IdentitiesOnly=yes", "-o", `UserKnownHostsFile=${file("known_hosts")}`],
      ...["-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR"],
    ];
    return new Sshd(port, options, child);
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null) return;
    this.#child.kill("SIGTERM");
    await once(this.#child, "exit");
  }
}
