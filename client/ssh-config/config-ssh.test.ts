import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { Command } from "commander";
import { register } from "../commands/config-ssh.ts";
import { loadHostKey } from "../ssh-server/hostkey.ts";

function hasSsh(): boolean {
  try {
    execFileSync("ssh", ["-V"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

describe("coder config-ssh", () => {
  let dir = "";
  let file = "";
  const saved = { ...process.env };
  let written: string[] = [];
  const { write: writeOut } = process.stdout;
  const { write: writeErr } = process.stderr;

  beforeEach(() => {
    dir = fs.mkdtempSync(path.join(os.tmpdir(), "config-ssh-"));
    file = path.join(dir, "ssh", "config");
    for (const name of Object.keys(process.env)) if (name.startsWith("CODER_")) delete process.env[name];
  });
  afterEach(() => {
    Object.assign(process.env, saved);
    fs.rmSync(dir, { recursive: true, force: true });
  });

  /** Runs it as the command line does. @returns what it wrote to stdout and stderr */
  async function run(...args: string[]): Promise<string> {
    const program = new Command().enablePositionalOptions().exitOverride();
    for (const option of ["--url <url>", "--token <token>", "--global-config <dir>"]) program.option(option);
    register(program);
    written = [];
    const take = (chunk: unknown) => {
      written.push(String(chunk));
      return true;
    };
    process.stdout.write = take as typeof writeOut;
    process.stderr.write = take as typeof writeErr;
    try {
      const globals = ["--global-config", path.join(dir, "coder"), "config-ssh", "--ssh-config-file", file];
      await program.parseAsync([...globals, "--coder-binary-path", "/opt/coder", ...args], { from: "user" });
    } finally {
      process.stdout.write = writeOut;
      process.stderr.write = writeErr;
    }
    return written.join("");
  }

  const read = () => fs.readFileSync(file, "utf8");
  const sshSays = (host: string) =>
    Object.fromEntries(
      execFileSync("ssh", ["-G", "-F", file, host], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })
        .split("\n")
        .map((line) => [line.split(" ", 1)[0], line.slice(line.indexOf(" ") + 1)]),
    );

  it("makes a configuration that ssh understands", async function () {
    if (!hasSsh()) {
      console.log("      skipped: there is no ssh here");
      return this.skip();
    }
    await run("--yes", "-o", "ForwardAgent=yes", "--wait", "no");
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    assert.equal(fs.statSync(path.dirname(file)).mode & 0o777, 0o700);
    for (const host of ["coder.dev", "dev.coder"]) {
      const says = sshSays(host);
      assert.equal(
        says["proxycommand"],
        `/opt/coder --global-config ${dir}/coder ssh --stdio --ssh-host-prefix coder. --hostname-suffix coder --wait=no '%h'`,
      );
      assert.equal(says["forwardagent"], "yes");
      assert.equal(says["stricthostkeychecking"], "true");
      assert.equal(says["userknownhostsfile"], path.join(dir, "coder", "ssh_known_hosts"));
    }
    assert.equal(sshSays("example.com")["proxycommand"], undefined);
    const known = fs.readFileSync(path.join(dir, "coder", "ssh_known_hosts"), "utf8");
    const key = loadHostKey(path.join(dir, "coder", "ssh_host_ed25519_key"));
    assert.equal(known, `coder-workspaces ssh-ed25519 ${key.getPublicSSH().toString("base64")}\n`);
  });

  it("changes nothing when it runs again, and takes out what it put in", async () => {
    fs.mkdirSync(path.dirname(file));
    const before = "Host other\r\n  User me";
    fs.writeFileSync(file, before, { mode: 0o640 });
    await run("--yes");
    const after = read();
    assert.match(await run("--yes"), /needs no change/);
    assert.equal(read(), after);
    assert.equal(fs.statSync(file).mode & 0o777, 0o640);
    await run("--remove", "--yes");
    assert.equal(read(), before);
    assert.match(await run("--remove", "--yes"), /has no entry/);
  });

  it("keeps a link a link, also one that leads nowhere yet", async () => {
    fs.mkdirSync(path.dirname(file));
    const target = path.join(dir, "dotfiles", "ssh_config");
    fs.symlinkSync(path.relative(path.dirname(file), target), file);
    await run("--yes");
    assert.ok(fs.lstatSync(file).isSymbolicLink());
    assert.match(fs.readFileSync(target, "utf8"), /Host coder\.\*/);
    await run("--yes", "--wait=yes");
    assert.ok(fs.lstatSync(file).isSymbolicLink());
    assert.match(fs.readFileSync(target, "utf8"), /--wait=yes/);
    assert.deepEqual(fs.readdirSync(path.dirname(target)), ["ssh_config"]);
  });

  it("shows a dry run as a diff and writes nothing at all", async () => {
    const out = await run("--dry-run");
    assert.match(out, /^\+Host coder\.\* \*\.coder /m);
    assert.deepEqual(fs.readdirSync(dir), []);
  });

  it("keeps the options of the last time when told to", async () => {
    await run("--yes", "--wait=yes", "--disable-autostart", "-o", "User=ada");
    const first = read();
    await run("--yes", "--use-previous-options");
    assert.equal(read(), first);
    await run("--yes");
    assert.doesNotMatch(read(), /wait=yes|User ada|disable-autostart/);
  });

  it("asks before it changes a configuration; without a terminal it names the flag", async function () {
    if (process.stdin.isTTY) {
      console.log("      skipped: stdin is a terminal");
      return this.skip();
    }
    await assert.rejects(run(), { code: "ERR_NO_TERMINAL" });
    assert.deepEqual(fs.readdirSync(dir), []);
  });

  it("leaves a configuration with broken markers alone", async () => {
    fs.mkdirSync(path.dirname(file));
    const broken = "# ------------START-CODER-----------\nHost coder.*\n";
    fs.writeFileSync(file, broken);
    await assert.rejects(run("--yes"), { code: "ERR_SSH_CONFIG_MARKERS" });
    assert.equal(read(), broken);
  });
});
