import assert from "node:assert/strict";
import { execFile, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { buildServer, temporaryDirectory } from "./testing.ts";

const run = promisify(execFile);
const digest = (file: string) => createHash("sha256").update(fs.readFileSync(file)).digest("hex");

/** Relative path → type, mode, modification time in seconds and content, of all below. */
function tree(directory: string, withTimes = true): string[] {
  return (fs.readdirSync(directory, { recursive: true, encoding: "utf8" }) as string[]).sort().map((name) => {
    const full = path.join(directory, name);
    const stats = fs.lstatSync(full);
    const time = withTimes ? Math.floor(stats.mtimeMs / 1000) : "";
    return `${name} ${stats.mode.toString(8)} ${time} ${stats.isFile() ? digest(full) : ""}`;
  });
}

describe("OpenSSH's sftp at our server", function () {
  this.timeout(60_000);
  let base: string;
  let program: string;
  let local: string;
  let remote: string;

  before(async function () {
    if (spawnSync("sftp", ["-?"]).error) {
      console.log("      skipped: there is no sftp here");
      return this.skip();
    }
    base = temporaryDirectory();
    program = await buildServer(base);
  });
  beforeEach(() => {
    [local, remote] = [path.join(base, "local"), path.join(base, "remote")];
    for (const directory of [local, remote]) fs.mkdirSync(directory);
    // sftp starts the server where it itself runs; `lcd` then leads its local side away.
  });
  afterEach(() => {
    for (const directory of [local, remote]) fs.rmSync(directory, { recursive: true, force: true });
  });
  after(() => {
    if (base) fs.rmSync(base, { recursive: true, force: true });
  });

  /** Runs a batch, which ends at its first failing command. @returns what it printed */
  async function sftp(commands: string[], ...options: string[]): Promise<string> {
    const batch = path.join(base, "batch");
    fs.writeFileSync(batch, [`lcd ${local}`, ...commands, ""].join("\n"));
    const args = [...options, "-b", batch, "-D", program];
    const { stdout } = await run("sftp", args, { cwd: remote, maxBuffer: 64 * 1024 * 1024 });
    return stdout;
  }

  it("puts and gets files of every size unchanged", async () => {
    const sizes = [0, 1, 32 * 1024 - 1, 32 * 1024, 32 * 1024 + 1, 255 * 1024, 256 * 1024 + 1, 10_000_000];
    for (const size of sizes) fs.writeFileSync(path.join(local, `f${size}`), randomBytes(size));
    await sftp(["put f*", "lmkdir back", "lcd back", "get f*"]);
    for (const size of sizes) {
      assert.equal(
        digest(path.join(remote, `f${size}`)),
        digest(path.join(local, `f${size}`)),
        `${size} put`,
      );
      assert.equal(
        digest(path.join(local, "back", `f${size}`)),
        digest(path.join(local, `f${size}`)),
        `${size} get`,
      );
    }
    // Requests of other sizes, and more of them at once
    await sftp(["lmkdir again", "lcd again", "get f10000000"], "-B", "7777", "-R", "256");
    assert.equal(digest(path.join(local, "again", "f10000000")), digest(path.join(local, "f10000000")));
  });

  it("copies trees with modes and times both ways", async () => {
    for (let i = 0; i < 60; i++) {
      const directory = path.join(local, "tree", `d${i % 7}`, `e${i % 3}`);
      fs.mkdirSync(directory, { recursive: true });
      const file = path.join(directory, `file ${i} ü`);
      fs.writeFileSync(file, `content ${i}\n`.repeat(i));
      fs.chmodSync(file, [0o644, 0o755, 0o600, 0o444][i % 4]);
      fs.utimesSync(file, 1e9, 1e9 + 1_000 * i);
    }
    fs.chmodSync(path.join(local, "tree", "d1"), 0o700);
    for (const name of ["d0", "d1", "d2", ""])
      fs.utimesSync(path.join(local, "tree", name), 1e9, 1_234_567_890);
    await sftp(["put -rp tree", "get -rp tree back"]);
    assert.deepEqual(tree(path.join(remote, "tree")), tree(path.join(local, "tree")));
    assert.deepEqual(tree(path.join(local, "back")), tree(path.join(local, "tree")));
  });

  it("resumes what was cut off, both ways", async () => {
    const content = randomBytes(1_000_000);
    fs.writeFileSync(path.join(local, "up"), content);
    fs.writeFileSync(path.join(remote, "up"), content.subarray(0, 333_333));
    fs.writeFileSync(path.join(remote, "down"), content);
    fs.writeFileSync(path.join(local, "down"), content.subarray(0, 444_444));
    await sftp(["reput up", "reget down", "put -f up synced"]);
    assert.deepEqual(fs.readFileSync(path.join(remote, "up")), content);
    assert.deepEqual(fs.readFileSync(path.join(local, "down")), content);
    assert.deepEqual(fs.readFileSync(path.join(remote, "synced")), content);
  });

  it("does what else there is: links, modes, owners, directories, copies, space", async () => {
    fs.writeFileSync(path.join(local, "f"), "content");
    const own = fs.statSync(local);
    const out = await sftp([
      ...["pwd", "mkdir d", "cd d", "put f", "chmod 640 f", `chown ${own.uid} f`, `chgrp ${own.gid} f`],
      ...[
        "ln f hard",
        "ln -s f soft",
        "copy f copied",
        "rename copied moved",
        "mkdir e",
        "mkdir gone",
        "rmdir gone",
      ],
      ...[
        "rename e renamed",
        "rm hard",
        "df",
        "df -i",
        "ls -la",
        "ls -ln",
        "ls -1",
        "cd ..",
        "ls d/*",
        "-rmdir d",
        "-rm missing",
      ],
      ...["symlink nowhere dangling", "-get dangling", "-cd missing", "-cd d/f", "version"],
    ]);
    const inside = (name: string) => path.join(remote, name);
    assert.match(out, new RegExp(`Remote working directory: ${remote}\n`));
    assert.match(out, /%Capacity/);
    assert.match(out, /-rw-r----- +\S+ +\S+ +\S+ +7 \w{3} [ \d]\d \d\d:\d\d f\n/);
    assert.match(out, /SFTP protocol version 3/);
    assert.deepEqual(fs.readdirSync(inside("d")).sort(), ["f", "moved", "renamed", "soft"]);
    assert.equal(fs.readFileSync(inside("d/moved"), "utf8"), "content");
    assert.equal(fs.readlinkSync(inside("d/soft")), "f");
    assert.equal(fs.readlinkSync(inside("dangling")), "nowhere");
    assert.equal(fs.statSync(inside("d/f")).mode & 0o7777, 0o640);
  });

  it("fails where the file system does, with OpenSSH's words", async () => {
    const failing: [string, RegExp][] = [
      ["get missing", /not found|No such file/],
      ["rm missing", /No such file or directory/],
      ["mkdir d/e", /No such file or directory/],
      ["rename a b", /No such file or directory/],
    ];
    for (const [command, reason] of failing)
      await assert.rejects(sftp([command]), (error: { stderr: string; stdout: string }) =>
        reason.test(error.stderr + error.stdout),
      );
  });

  it("lists ten thousand files, each once", async () => {
    for (let i = 0; i < 10; i++) {
      // Names of one file: making links is several times as fast as making files.
      const seed = path.join(remote, `${i}-`);
      fs.writeFileSync(seed, "");
      for (let j = 1; j < 1_000; j++) fs.linkSync(seed, `${seed}${j}`);
    }
    const lines = (await sftp(["ls -la"])).split("\n").filter((line) => /^[-d]/.test(line));
    assert.equal(lines.length, 10_002);
    assert.equal(new Set(lines).size, 10_002);
  });
});
