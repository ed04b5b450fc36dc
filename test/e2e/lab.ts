// One server, one person, one running workspace `dev`, and an OpenSSH client that reaches it: everything through a
// gate that can be cut, and nothing outside a sandbox.
import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { Gate } from "./gate.ts";
import { freePort } from "./outage.ts";
import { bundle, type Finished, type Running, root, Sandbox } from "./sandbox.ts";
import { Person, TestServer } from "./server.ts";
import { poll } from "./tmux.ts";

const quote = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`;

export class SshLab {
  readonly sandbox: Sandbox;
  readonly gate: Gate;
  server: TestServer;
  readonly alice: Person;
  /** OpenSSH's `-F`: it looks up the home in the password database, not in $HOME. */
  readonly sshConfig: string;
  /** The workspace's home directory, on this machine. */
  readonly home: string;

  private constructor(
    sandbox: Sandbox,
    gate: Gate,
    server: TestServer,
    alice: Person,
    sshConfig: string,
    home: string,
  ) {
    this.sandbox = sandbox;
    this.gate = gate;
    this.server = server;
    this.alice = alice;
    this.sshConfig = sshConfig;
    this.home = home;
  }

  /** @param direct past the gate, for measurements */
  static async start({
    args = [],
    direct = false,
  }: {
    args?: string[];
    direct?: boolean;
  } = {}): Promise<SshLab> {
    const sandbox = new Sandbox();
    const gate = await Gate.open();
    try {
      const accessUrl = direct ? [] : ["--access-url", gate.url];
      const port = await freePort();
      gate.targetPort = port;
      const server = await TestServer.start(sandbox, { port: String(port), args: [...accessUrl, ...args] });
      const alice = await Person.first(sandbox, direct ? server.url : gate.url, "alice");
      const template = path.join(root, "deploy/templates/local");
      const workspaces = path.join(sandbox.dir, "ws");
      const push = ["templates", "push", "local", "--yes", "--directory", template];
      await alice.must(...push, "--variable", `path=${workspaces}`);
      await alice.must("create", "dev", "--template", "local", "--yes");
      const sshConfig = path.join(sandbox.home, ".ssh", "config");
      mkdirSync(path.dirname(sshConfig), { mode: 0o700 });
      await alice.must("config-ssh", "--yes", "--ssh-config-file", sshConfig);
      const where = await alice.must("ssh", "dev", "pwd");
      return new SshLab(sandbox, gate, server, alice, sshConfig, where.stdout.trim());
    } catch (error) {
      await gate.close();
      sandbox.dispose();
      throw error;
    }
  }

  /** Ends all of it. @throws when a process or a temporary file is left */
  async close(): Promise<void> {
    await this.alice.must("stop", "dev", "--yes");
    await this.server.stop();
    await this.gate.close();
    try {
      await poll(
        () => this.sandbox.processes().length === 0,
        () => `all processes end:\n${this.sandbox.processes().join("\n")}`,
      );
      assert.deepEqual(readdirSync(this.sandbox.tmp), [], "temporary files left behind");
    } finally {
      this.sandbox.dispose();
    }
  }

  /** A line for bash on this side. `ssh`, `scp`, `sftp`, `rsync` and `git` use the lab's configuration. */
  bash(line: string): Running {
    const functions = `
ssh() { command ssh -F ${quote(this.sshConfig)} "$@"; }
scp() { command scp -F ${quote(this.sshConfig)} "$@"; }
sftp() { command sftp -F ${quote(this.sshConfig)} "$@"; }
rsync() { command rsync -e "ssh -F ${quote(this.sshConfig)}" "$@"; }
export GIT_SSH_COMMAND="ssh -F ${quote(this.sshConfig)}"
`;
    return this.sandbox.start("bash", ["-c", `${functions}${line}`], {
      CODER_CONFIG_DIR: this.alice.configDir,
      LANG: "C.UTF-8",
      GIT_CONFIG_GLOBAL: "/dev/null",
    });
  }

  run(line: string): Promise<Finished> {
    return this.bash(line).finished;
  }

  /** @throws unless the line ends with 0 */
  async must(line: string): Promise<Finished> {
    const done = await this.run(line);
    assert.equal(done.code, 0, `${line}\n${done.stderr}`);
    return done;
  }

  /** `coder` as one word, for other programs. */
  get program(): string {
    const file = path.join(this.sandbox.dir, "coder");
    const text = `#!/bin/sh\nexec '${process.execPath}' '${bundle}' "$@"\n`;
    if (!existsSync(file)) writeFileSync(file, text, { mode: 0o755 });
    return file;
  }

  /** A program for tmux and other shells: the command line of `ssh` with the lab's configuration. */
  get sshCommand(): string {
    return `ssh -F ${quote(this.sshConfig)}`;
  }

  /** A file on this side. */
  local(name: string): string {
    const folder = path.join(this.sandbox.dir, "local");
    mkdirSync(folder, { recursive: true });
    return path.join(folder, name);
  }

  /** A file in the workspace, seen from outside. */
  remote(name: string): string {
    return path.join(this.home, name);
  }

  /** Stops the server (`kill -9` or SIGTERM) and starts it again at the same port after `awayMs`. */
  async restartServer({ signal, awayMs }: { signal: "SIGTERM" | "SIGKILL"; awayMs: number }): Promise<void> {
    this.server.running.child.kill(signal);
    await this.server.running.finished;
    await new Promise((resolve) => setTimeout(resolve, awayMs));
    this.server = await TestServer.start(this.sandbox, {
      port: String(this.gate.targetPort),
      args: ["--access-url", this.gate.url],
    });
  }
}

/** Processes whose command line holds `text`. */
export function processesWith(text: string): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").includes(text);
      } catch {
        return false; // ended meanwhile
      }
    })
    .map(Number);
}
